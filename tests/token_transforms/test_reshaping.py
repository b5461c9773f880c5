"""Transforms that reweight tokens: they equal the same change made in the loss; and their options."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates as objectives


def apply(made: optax.GradientTransformationExtraArgs, grads: tt.TokenGrads, tokens: tt.TokenInfo) -> tt.TokenGrads:
    return made.update(grads, made.init(grads), tokens=tokens, key=None)[0]


@pytest.mark.parametrize("objective", ["ppo_clip", "policy_gradient", "cispo", "ce_gppo", "gspo"])
def test_entropy_shaping_is_the_shaped_advantage_in_the_loss(objective):
    _, tokens = random_tokens(2, 6, 20)
    shaped = tokens.advantage + jnp.minimum(0.4 * tokens.entropy, jnp.abs(tokens.advantage) / 2)
    surrogate = objectives.build(objective)
    _, grads, clipped = objectives.token_gradient(surrogate, tokens)
    _, expected, shaped_clipped = objectives.token_gradient(surrogate, tokens._replace(advantage=shaped))
    out = apply(tt.entropy_shaped_advantage(), grads, tokens)
    np.testing.assert_allclose(out.logp, expected.logp, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(clipped, shaped_clipped)


@pytest.mark.parametrize("objective", ["ppo_clip", "policy_gradient", "cispo", "ce_gppo", "gspo"])
def test_low_probability_reweighting_is_the_reweighted_advantage_in_the_loss(objective):
    _, tokens = random_tokens(2, 6, 20)
    reweighted = tokens.advantage * (0.6 * jnp.exp(tokens.old_logp) + 0.4)
    surrogate = objectives.build(objective)
    _, grads, clipped = objectives.token_gradient(surrogate, tokens)
    _, expected, clipped_then = objectives.token_gradient(surrogate, tokens._replace(advantage=reweighted))
    out = apply(tt.low_probability_reweighting(alpha=0.6), grads, tokens)
    np.testing.assert_allclose(out.logp, expected.logp, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(clipped, clipped_then)


def test_the_smallest_steer_weight_is_min_weight():
    grads, tokens = random_tokens(2, 6, 20)
    out = apply(tt.steer(min_weight=0.3), grads, tokens)
    live = np.asarray(grads.logp) != 0
    weight = np.asarray(out.logp)[live] / np.asarray(grads.logp)[live]
    assert weight.min() == pytest.approx(0.3, rel=1e-5) and weight.max() <= 1.0


def test_steer_leaves_a_batch_that_hardly_moves_entropy_almost_unchanged():
    grads, tokens = random_tokens(2, 6, 20)
    out = apply(tt.steer(min_weight=0.3), grads, tokens._replace(advantage=1e-7 * tokens.advantage))
    np.testing.assert_allclose(out.logp, grads.logp, rtol=1e-4)


def test_entropy_ratio_keeps_tokens_that_did_not_move_even_at_zero():
    grads, tokens = random_tokens(2, 6, 20)
    still = tokens._replace(entropy=jnp.zeros_like(tokens.mask), old_entropy=jnp.zeros_like(tokens.mask))
    np.testing.assert_array_equal(apply(tt.entropy_ratio_clip(), grads, still).logp, grads.logp)


def test_a_missing_field_is_named():
    grads, tokens = random_tokens(2, 6, 20)
    with pytest.raises(ValueError, match=r"entropy_ratio_clip needs TokenInfo.old_entropy"):
        apply(tt.entropy_ratio_clip(), grads, tokens._replace(old_entropy=None))
    with pytest.raises(ValueError, match=r"reference_kl needs TokenInfo.ref_logp"):
        apply(tt.reference_kl(coef=0.1), grads, tokens._replace(ref_logp=None))
    assert tt.needs([("matched_norm", {"inner": ("entropy_ratio_clip", {})}), ("reference_kl", {"coef": 1.0})]) == {
        "old_entropy",
        "ref_logp",
    }


@pytest.mark.parametrize(
    ("factory", "options", "match"),
    [
        (tt.entropy_shaped_advantage, {"kappa": 0.5}, "kappa=0.5 must be 1 or above"),
        (tt.entropy_ratio_clip, {"low": 1.1}, "entropy_ratio_clip.low=1.1 must be from 0 to below 1"),
        (tt.steer, {"min_weight": 0.0}, "min_weight=0.0 must be above 0"),
        (tt.reference_kl, {"coef": 0.1, "kind": "k9"}, "kind='k9' must be one of k1"),
    ],
)
def test_an_option_out_of_range_is_an_error(factory, options, match):
    with pytest.raises(ValueError, match=match):
        factory(**options)
