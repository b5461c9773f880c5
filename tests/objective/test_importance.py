"""The importance weights between sampler and trainer, and the gap that they correct."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.objective.importance import importance_weights, sampler_gap

TRAINER = jnp.array([[-1.0, -2.0, -1e4], [-1.0, 0.0, jnp.nan]])
SAMPLER = jnp.array([[-1.5, -2.0, 0.0], [-9.0, -1e4, jnp.nan]])
MASK = jnp.array([[1, 1, 1], [1, 1, 0]])


def test_weights_are_the_capped_ratio():
    weights = importance_weights(TRAINER, SAMPLER, MASK, 2.0)
    np.testing.assert_allclose(weights, [[np.exp(0.5), 1.0, 0.0], [2.0, 2.0, 0.0]], rtol=1e-6, atol=1e-8)
    assert weights[1, 2] == 0.0


def test_weights_are_detached():
    grad = jax.grad(lambda x: importance_weights(x, SAMPLER, MASK, 2.0).sum())(TRAINER)
    assert not np.any(grad)


def test_a_cap_of_zero_is_an_error():
    with pytest.raises(ValueError, match=r"algo.is_cap: got 0.0"):
        importance_weights(TRAINER, SAMPLER, MASK, 0.0)


def test_the_gap():
    mask = jnp.array([[1, 1, 0], [1, 0, 0]])
    gap = sampler_gap(TRAINER, SAMPLER, mask)
    assert float(gap["mean_abs"]) == pytest.approx(8.5 / 3)
    assert float(gap["max_abs"]) == 8.0
    assert float(gap["kl"]) == pytest.approx((np.expm1(0.5) - 0.5 + np.expm1(8.0) - 8.0) / 3, rel=1e-5)
    assert all(float(v) == 0.0 for v in sampler_gap(TRAINER, SAMPLER, 0 * MASK).values())
