"""Editing token gradients gives the same parameter gradient as writing the method into the loss, up to rounding.

The policy is a softmax over V tokens at every position. One side is jax.grad of the loss as the papers write it, with
detached tokens and added penalties; the other is the token gradient, the chain and the pull-back.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient as sg
from reference import batches
from reference import transforms as ref

from entropy_rl import token_transforms as tt
from entropy_rl.entropy import entropy
from entropy_rl.objective import surrogates as objectives
from entropy_rl.stats.divergence import kl_estimate
from entropy_rl.stats.selection import random_scores

B, T, V, KEY = 6, 20, 11, jax.random.key(5)
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, V)) * 2, jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)))
PPO = objectives.ppo_clip(0.2, 0.28)


def statistics(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[..., None], -1)[..., 0]
    return logp, entropy(logits)


def batch() -> tt.TokenInfo:
    _, tokens = batches.random_tokens(3, B, T)
    logp, h = statistics(LOGITS)
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(B, T)) * 0.3, jnp.float32)
    return tokens._replace(
        logp=logp,
        entropy=h,
        old_logp=logp + noise,
        old_entropy=h * (1 + 0.2 * noise),
        weight=None,
        ref_logp=logp - noise,
    )


TOKENS = batch()
N = TOKENS.mask.sum()
AS_NUMPY = jax.tree.map(
    np.asarray, TOKENS._replace(weight=TOKENS.mask / N, clipped=PPO(TOKENS.logp, TOKENS)[1] & (TOKENS.mask > 0))
)
ONES = tt.TokenGrads(np.asarray(TOKENS.mask), np.asarray(TOKENS.mask))
DRAWS = {salt: np.asarray(random_scores(KEY, salt, TOKENS.uid, T)) for salt in (0, 1, 2)}


def kept(name: str, salt: int = 0, **options: float) -> np.ndarray:
    """The tokens that the mask `name` keeps, by its NumPy reference, bool[B, T]."""
    return getattr(ref, name)(ONES, AS_NUMPY, None, DRAWS[salt], **options)[0] != 0


def mean(x_BxT: jax.Array, keep: jax.Array | None = None, over: jax.Array | None = None) -> jax.Array:
    """Sum of x over `keep` (None: the valid tokens) divided by `over` (None: N)."""
    keep = TOKENS.mask if keep is None else keep
    return jnp.sum(jnp.where(keep > 0, x_BxT, 0)) / (N if over is None else over)


def surrogate(logp: jax.Array, tokens: tt.TokenInfo = TOKENS) -> jax.Array:
    return PPO(logp, tokens)[0]


def clip_cov(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(jnp.where(kept("clip_cov", fraction=0.1, low=0.0), logp, sg(logp)))) - 0 * h.sum()


def forking(logp: jax.Array, h: jax.Array) -> jax.Array:
    keep = kept("keep_top_entropy")
    return mean(surrogate(logp), keep, keep.sum())


def forking_all(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp), kept("keep_top_entropy"))


def bottom(logp: jax.Array, h: jax.Array) -> jax.Array:
    keep = kept("keep_bottom_entropy")
    return mean(surrogate(logp), keep, keep.sum())


def random_mask(logp: jax.Array, h: jax.Array) -> jax.Array:
    keep = kept("random_mask", salt=1, fraction=0.3)
    return mean(surrogate(logp), keep, keep.sum())


def kl_cov(logp: jax.Array, h: jax.Array) -> jax.Array:
    held = ref.kl_cov(ONES._replace(logp=0 * ONES.logp), AS_NUMPY, None, None, fraction=0.1, coef=0.7)[0] != 0
    return mean(surrogate(logp)) + 0.7 * mean(kl_estimate(logp - TOKENS.old_logp, "abs"), held)


def bonus(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp)) - 0.05 * mean(h)


def masked_bonus(logp: jax.Array, h: jax.Array) -> jax.Array:
    keep = kept("keep_top_entropy")
    return mean(surrogate(logp) - 0.05 * h, keep, keep.sum())


def adaptive(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp)) - 0.004 * mean(h)


def shaped(logp: jax.Array, h: jax.Array) -> jax.Array:
    a = TOKENS.advantage
    return mean(surrogate(logp, TOKENS._replace(advantage=a + jnp.minimum(0.4 * sg(h), jnp.abs(a) / 2))))


def ratio_clip(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp), kept("entropy_ratio_clip"))


def reference(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp)) + 0.1 * mean(kl_estimate(TOKENS.ref_logp - logp, "k3"))


def positive(logp: jax.Array, h: jax.Array) -> jax.Array:
    return mean(surrogate(logp) * jnp.where(TOKENS.advantage > 0, 0.5, 1.0))


BONUS = ("entropy_bonus", {"coef": 0.05})
CASES = [
    (clip_cov, [("clip_cov", {"fraction": 0.1, "low": 0.0})]),
    (kl_cov, [("kl_cov", {"fraction": 0.1, "coef": 0.7})]),
    (forking, ["keep_top_entropy"]),
    (forking_all, [("keep_top_entropy", {"normalizer": "all"})]),
    (bottom, ["keep_bottom_entropy"]),
    (random_mask, [("random_mask", {"fraction": 0.3})]),
    (bonus, [BONUS]),
    (masked_bonus, [BONUS, "keep_top_entropy"]),
    (adaptive, [("adaptive_entropy_bonus", {"target": 9.0, "initial": 0.004})]),
    (shaped, ["entropy_shaped_advantage"]),
    (ratio_clip, ["entropy_ratio_clip"]),
    (reference, [("reference_kl", {"coef": 0.1})]),
    (positive, [("positive_reweighting", {"initial": 0.5})]),
]


@pytest.mark.parametrize(("loss_side", "transforms"), CASES, ids=[f.__name__ for f, _ in CASES])
def test_the_two_formulations_have_one_gradient(loss_side, transforms):
    chain = tt.build(transforms)

    @jax.jit
    def token_side(logits):
        _, pull_back = jax.vjp(statistics, logits)
        _, grads, clipped = objectives.token_gradient(PPO, TOKENS)
        out, _ = chain.update(grads, chain.init(grads), tokens=TOKENS._replace(clipped=clipped), key=KEY)
        return pull_back((out.logp, out.entropy))[0]

    expected = jax.jit(jax.grad(lambda z: loss_side(*statistics(z))))(LOGITS)
    got = token_side(LOGITS)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max())
