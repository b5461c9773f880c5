"""SIREN: the gradient of its penalty, and the anchor that the first update sets."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective.tokens import TokenGrads

OFFICIAL = np.load(pathlib.Path(__file__).parents[1] / "golden" / "official_entropy_scores.npz")


def pulled(transform, state, tokens, on_policy=False):
    """(gradient of the nucleus entropy, the state after) of an update without any other gradient."""
    zero = jnp.zeros_like(tokens.mask)
    update = jax.jit(transform.update)
    grads, state = update(TokenGrads(zero, zero, zero), state, tokens=tokens, key=None, on_policy=on_policy)
    assert not grads.logp.any() and not grads.entropy.any()
    return np.asarray(grads.nucleus_entropy), state


@pytest.mark.parametrize("case", range(3))
def test_the_official_code_has_the_same_gradient(case):
    """`mask_by_quantile`, `agg_loss` and the squared distance to an anchor of 0.3, of Linn3a/siren at fa59a8df."""
    mask, nucleus, expected = (
        jnp.asarray(OFFICIAL[f"case{case}/{key}"]) for key in ("mask", "nucleus_0.95", "siren_grad")
    )
    _, tokens = random_tokens(0, *mask.shape)
    made = tt.siren(coef=0.005, anchor=0.3)
    got, _ = pulled(made, made.init(None), tokens._replace(mask=mask, nucleus_entropy=nucleus))
    assert np.any(got)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_gradient_is_the_derivative_of_the_penalty():
    _, tokens = random_tokens(1, 6, 20)
    made = tt.siren(coef=0.1, anchor=0.2)
    got, _ = pulled(made, made.init(None), tokens)
    high = got != 0
    assert 5 <= high.sum() < tokens.mask.sum() / 3

    def penalty(h):
        means = [jnp.mean(h[b][high[b]]) if high[b].any() else 0.0 for b in range(6) if tokens.mask[b].any()]
        return 0.1 * (sum(means) / len(means) - 0.2) ** 2

    np.testing.assert_allclose(got, jax.grad(penalty)(tokens.nucleus_entropy), rtol=1e-4, atol=1e-8)


def test_the_first_update_sets_the_anchor_and_later_ones_are_pulled_to_it():
    _, tokens = random_tokens(1, 6, 20)
    made = tt.siren()
    lower = tokens._replace(nucleus_entropy=0.5 * tokens.nucleus_entropy)
    empty = tokens._replace(mask=jnp.zeros_like(tokens.mask))
    none, state = pulled(made, made.init(None), empty, on_policy=True)
    assert not none.any() and state.anchor == -1  # nothing was seen
    first, state = pulled(made, state, tokens, on_policy=True)
    anchor = float(state.anchor)
    assert not first.any() and anchor > 0
    later, state = pulled(made, state, lower, on_policy=False)
    assert np.all(later[later != 0] < 0) and later.any()  # the loss falls as the entropy rises
    again, state = pulled(made, state, lower, on_policy=True)
    np.testing.assert_array_equal(again, later)
    assert state.anchor == anchor


def test_a_coefficient_of_0_is_the_plain_objective_bit_for_bit():
    grads, tokens = random_tokens(1, 6, 20)
    made = tt.siren(coef=0.0, anchor=0.3)
    out, _ = jax.jit(made.update)(grads, made.init(grads), tokens=tokens, key=None)
    jax.tree.map(np.testing.assert_array_equal, out, grads)


def test_the_missing_statistic_is_named():
    grads, tokens = random_tokens(1, 6, 20)
    with pytest.raises(ValueError, match=r"siren needs TokenInfo.nucleus_entropy, which is None"):
        tt.siren().update(grads, tt.siren().init(grads), tokens=tokens._replace(nucleus_entropy=None), key=None)


def test_a_recipe_has_one_nucleus():
    asked = tt.extras([("matched_norm", {"inner": ("siren", {"top_p": 0.5})}), "keep_top_gradient"])
    assert asked.names == ("prob_square", "nucleus_entropy") and asked.top_p == 0.5
    assert tt.extras(["siren"]).top_p == 0.8
    with pytest.raises(ValueError, match=r"algo.transforms: top_p=\[0.5, 0.8\], but a recipe has one nucleus"):
        tt.extras([("matched_norm", {"inner": ("siren", {"top_p": 0.5})}), "siren"])
