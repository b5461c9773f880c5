"""The official code's losses and gradients (arXiv 2505.22617) on random inputs, met to 1e-5 relative.

`golden/official_losses.npz` was computed by that code in torch: see the settings below. A failure here means that
the science changed, not the style: do not refresh the numbers, find what moved.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import objectives
from entropy_rl import token_transforms as tt
from entropy_rl.divergence import kl_estimate

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "official_losses.npz")
PPO = ("ppo_clip", {"low": 0.2, "high": 0.28})
SETTINGS = {
    "ppo_clip": (PPO, ()),
    "kl_cov_2pct": ("policy_gradient", (("kl_cov", {"fraction": 0.02, "coef": 1.0}),)),
    "kl_cov_20pct": ("policy_gradient", (("kl_cov", {"fraction": 0.2, "coef": 0.5}),)),
    "clip_cov_all_candidates": (PPO, (("clip_cov", {"fraction": 1.0}),)),
    "clip_cov_no_ppo_clip": (("ppo_clip", {"low": 1.0, "high": 1.0}), (("clip_cov", {"fraction": 1.0, "low": 0.5}),)),
}


def tokens_of(case):
    logp, old, advantage, mask = (jnp.asarray(GOLDEN[f"{case}/{k}"]) for k in ("logp", "old_logp", "advantage", "mask"))
    return tt.TokenInfo(logp, old, advantage, jnp.zeros_like(logp), mask, jnp.zeros(logp.shape, bool))


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradient(case, setting):
    spec, transforms = SETTINGS[setting]
    tokens, surrogate, chain = tokens_of(case), objectives.build(spec), tt.build(transforms)
    _, grads, clipped = objectives.token_gradient(surrogate, tokens)
    tokens = tokens._replace(clipped=clipped)
    out, _ = jax.jit(chain.update)(grads, chain.init(grads), tokens=tokens, key=jax.random.key(0))
    expected = GOLDEN[f"{case}/{setting}/grad"]
    np.testing.assert_allclose(out.logp, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())

    # The loss as they write it: what the transforms did to the gradient tells which tokens were detached or held.
    loss_BxT, _ = surrogate(tokens.logp, tokens)
    if setting.startswith("clip_cov"):
        ones = tt.TokenGrads(tokens.mask, tokens.mask)
        loss_BxT *= jax.jit(chain.update)(ones, chain.init(ones), tokens=tokens, key=jax.random.key(0))[0].logp
    if setting.startswith("kl_cov"):
        held_BxT = out.logp != grads.logp
        loss_BxT += transforms[0][1]["coef"] * held_BxT * kl_estimate(tokens.logp - tokens.old_logp, "abs")
    loss = jnp.sum(jnp.where(tokens.mask > 0, loss_BxT, 0)) / tokens.mask.sum()
    np.testing.assert_allclose(loss, GOLDEN[f"{case}/{setting}/loss"], rtol=1e-5)
