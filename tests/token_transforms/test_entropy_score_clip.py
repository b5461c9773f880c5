"""Clip_B and Clip_V keep the tokens that the official code keeps; and their limits."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.batches import random_tokens

from entropy_rl import token_transforms as tt

OFFICIAL = np.load(pathlib.Path(__file__).parents[1] / "golden" / "official_entropy_scores.npz")
SETTINGS = {
    "clip_b": tt.entropy_score_clip_b(bound=0.5),
    "clip_v": tt.entropy_score_clip_v(bound=0.5, max_fraction=1.0),
    "clip_v_capped": tt.entropy_score_clip_v(bound=0.5, max_fraction=0.05),
}


def update(transform, grads, tokens):
    return jax.jit(transform.update)(grads, transform.init(grads), tokens=tokens, key=None)[0]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_official_code_keeps_the_same_tokens(setting, case):
    """`clipb_advantage.py` and `clipv_advantage.py` in hiyuchang/Trinity-RFT at eedef4b5, run in torch."""
    logits, targets, mask, advantage, mean, kept = (
        jnp.asarray(OFFICIAL[f"case{case}/{key}"])
        for key in ("logits", "tokens", "mask", "advantage", "score_mean", setting)
    )
    logp_all = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(logp_all, targets[..., None], -1)[..., 0]
    tokens = tt.TokenInfo(
        logp=logp,
        old_logp=logp,
        advantage=advantage,
        entropy=-jnp.sum(jnp.exp(logp_all) * logp_all, -1),
        mask=mask,
        clipped=mask < 0,
        score_mean=mean,
    )
    out = update(SETTINGS[setting], tt.TokenGrads(mask, mask), tokens)
    np.testing.assert_array_equal(out.logp != 0, kept > 0)
    assert 0 < kept.sum() < mask.sum()
    np.testing.assert_allclose(jnp.sum(out.logp), mask.sum(), rtol=1e-6)  # their mean is over the tokens that they keep


@pytest.mark.parametrize("factory", [tt.entropy_score_clip_b, tt.entropy_score_clip_v])
def test_a_bound_that_nothing_passes_is_the_plain_objective_bit_for_bit(factory):
    grads, tokens = random_tokens(1, 8, 25)
    jax.tree.map(np.testing.assert_array_equal, update(factory(bound=1e9), grads, tokens), grads)
    assert np.any(update(factory(bound=0.1), grads, tokens).logp != grads.logp)


@pytest.mark.parametrize("factory", [tt.entropy_score_clip_b, tt.entropy_score_clip_v])
def test_tokens_of_one_score_have_no_outliers_even_at_bound_0(factory):
    grads, tokens = random_tokens(1, 8, 25)
    same = jnp.full_like(tokens.mask, 0.7)
    tokens = tokens._replace(logp=-same, entropy=2 * same, score_mean=0.9 * same, advantage=-same)
    jax.tree.map(np.testing.assert_array_equal, update(factory(bound=0.0), grads, tokens), grads)


def test_rewarded_tokens_are_never_stopped():
    grads, tokens = random_tokens(1, 8, 25)
    for factory in (tt.entropy_score_clip_b, tt.entropy_score_clip_v):
        out = update(factory(bound=0.0), grads, tokens._replace(advantage=jnp.abs(tokens.advantage)))
        jax.tree.map(np.testing.assert_array_equal, out, grads)


def test_the_missing_statistic_is_named():
    grads, tokens = random_tokens(1, 8, 25)
    with pytest.raises(ValueError, match=r"entropy_score_clip_v needs TokenInfo.score_mean, which is None"):
        update(tt.entropy_score_clip_v(), grads, tokens._replace(score_mean=None))
