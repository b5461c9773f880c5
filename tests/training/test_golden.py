"""The official code's losses and gradients (arXiv 2505.22617) on random inputs, met to 1e-5 relative.

`golden/official_losses.npz` was computed by that code in torch: see the settings below. A failure here means that
the science changed, not the style: do not refresh the numbers, find what moved.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import token_transforms as tt
from entropy_rl.objective import surrogates

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "official_losses.npz")
PPO = ("ppo_clip", {"low": 0.2, "high": 0.28})
SETTINGS = {
    "ppo_clip": (PPO, ()),
    "kl_cov_2pct": ("policy_gradient", (("kl_cov", {"fraction": 0.02, "coef": 1.0}),)),
    "kl_cov_20pct": ("policy_gradient", (("kl_cov", {"fraction": 0.2, "coef": 0.5}),)),
    "clip_cov_all_candidates": (PPO, (("clip_cov", {"fraction": 1.0}),)),
    "clip_cov_no_ppo_clip": (("ppo_clip", {"low": 1.0, "high": 1.0}), (("clip_cov", {"fraction": 1.0, "low": 0.5}),)),
}


CASES = ("case0", "case1", "case2")
SHAPE = (12, 128)  # of the largest case: the others are padded with masked tokens, and share its program


def padded(name):
    x = GOLDEN[name]
    return jnp.asarray(np.pad(x, [(0, full - had) for full, had in zip(SHAPE, x.shape, strict=True)]))


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_and_gradients(setting):
    spec, transforms = SETTINGS[setting]
    objective, chain = surrogates.build(spec), tt.build(transforms)

    @jax.jit
    def run(tokens):
        _, grads, clipped = surrogates.token_gradient(objective, tokens)
        state, seen = chain.init(grads), tokens._replace(clipped=clipped)

        def edit(g):
            return chain.update(g, state, tokens=seen, key=jax.random.key(0))[0]

        ones = tt.TokenGrads(tokens.mask, tokens.mask)
        return grads, edit(grads), edit(ones), objective(tokens.logp, tokens)[0]

    for case in CASES:
        logp, old, advantage, mask = (padded(f"{case}/{k}") for k in ("logp", "old_logp", "advantage", "mask"))
        tokens = tt.TokenInfo(logp, old, advantage, jnp.zeros(SHAPE), mask, jnp.zeros(SHAPE, bool))
        grads, out, of_ones, loss_BxT = run(tokens)
        expected = np.asarray(padded(f"{case}/{setting}/grad"))
        np.testing.assert_allclose(out.logp, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())

        # The loss as they write it: the edited gradients show which tokens were detached or held.
        if setting.startswith("clip_cov"):
            loss_BxT *= of_ones.logp
        if setting.startswith("kl_cov"):
            loss_BxT += transforms[0][1]["coef"] * (out.logp != grads.logp) * jnp.abs(logp - old)
        loss = jnp.sum(jnp.where(mask > 0, loss_BxT, 0)) / mask.sum()
        np.testing.assert_allclose(loss, GOLDEN[f"{case}/{setting}/loss"], rtol=1e-5)
