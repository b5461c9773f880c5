"""Archer: which clip a token gets, by its own response's entropies, and whom the penalty holds."""

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import token_transforms as tt

ENTROPY = [0.1, 0.2, 0.3, 0.4, 5.0]  # the last token is above the 80% quantile


def gradients(ratio, advantage, entropy=ENTROPY, ref_gap=0.0, mask=None, **options):
    """The gradients of tokens whose objective has gradient 1 everywhere, [B, T]."""
    ratio, entropy = jnp.atleast_2d(jnp.array(ratio)), jnp.atleast_2d(jnp.array(entropy))
    mask = jnp.ones_like(ratio) if mask is None else jnp.array(mask)
    logp = jnp.full_like(ratio, -1.0)
    tokens = tt.TokenInfo(
        logp,
        logp - jnp.log(ratio),
        jnp.full_like(ratio, advantage),
        jnp.broadcast_to(entropy, ratio.shape),
        mask,
        mask < 0,
        ref_logp=logp + ref_gap,
    )
    made, grads = tt.archer(**options), tt.TokenGrads(jnp.ones_like(ratio), jnp.ones_like(ratio))
    out, _ = made.update(grads, made.init(grads), tokens=tokens, key=None)
    np.testing.assert_array_equal(out.entropy, np.where(mask > 0, 1.0, 0.0))
    return np.asarray(out.logp)


@pytest.mark.parametrize(
    ("ratio", "advantage", "kept"),
    [
        (1.1, 1.0, [1, 1, 1, 1, 1]),
        (1.4, 1.0, [0, 0, 0, 0, 1]),
        (1.6, 1.0, [0, 0, 0, 0, 0]),
        (1.6, -1.0, [1, 1, 1, 1, 1]),
        (0.7, -1.0, [0, 0, 0, 0, 1]),
        (0.4, -1.0, [0, 0, 0, 0, 0]),
        (0.4, 1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_the_clip_is_wide_above_the_quantile_and_narrow_below(ratio, advantage, kept):
    assert gradients([ratio] * 5, advantage, coef=0.0)[0].tolist() == kept


def test_the_quantile_is_that_of_the_response():
    """The second response is more certain everywhere; a batch's quantile would call none of its tokens unsure."""
    out = gradients([[1.4] * 5] * 2, 1.0, entropy=[ENTROPY, [x / 100 for x in ENTROPY]], coef=0.0)
    assert out.tolist() == [[0, 0, 0, 0, 1]] * 2
    short = gradients([[1.4] * 5], 1.0, mask=[[1, 1, 0, 0, 0]], coef=0.0)  # of 0.1 and 0.2
    assert short.tolist() == [[0, 1, 0, 0, 0]]


def test_the_penalty_is_a_mean_over_the_tokens_below_the_quantile_clipped_or_not():
    """k3 has the slope 1 − π_ref / π; four tokens share the weight of the batch."""
    slope = 0.5 * (1 - np.exp(0.3)) / 4
    free = gradients([1.0] * 5, 1.0, ref_gap=0.3, coef=0.5)
    np.testing.assert_allclose(free, [[1 + slope] * 4 + [1.0]], rtol=1e-6)
    clipped = gradients([1.4] * 5, 1.0, ref_gap=0.3, coef=0.5)
    np.testing.assert_allclose(clipped, [[slope] * 4 + [1.0]], rtol=1e-6)


def test_it_needs_a_reference_policy():
    assert tt.needs([("archer", {})]) == {"ref_logp"}
    one = jnp.ones((1, 2))
    tokens, made = tt.TokenInfo(-one, -one, one, one, one, one < 0), tt.archer()
    with pytest.raises(ValueError, match=r"archer needs TokenInfo\.ref_logp, which is None"):
        made.update(tt.TokenGrads(one, one), made.init(None), tokens=tokens, key=None)


def test_an_option_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"algo\.transforms\.archer\.clip_above=1\.5 must be from 0 to 1"):
        tt.archer(clip_above=1.5)
