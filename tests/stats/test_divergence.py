"""Estimates of KL from log-ratios: their values, their gradients and their expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.stats.divergence import KINDS, kl_estimate


def test_values():
    x = jnp.array([-0.5, 0.0, 2.0])
    np.testing.assert_allclose(kl_estimate(x, "k1"), -x)
    np.testing.assert_allclose(kl_estimate(x, "k2"), x**2 / 2)
    np.testing.assert_allclose(kl_estimate(x, "k3"), np.exp(x) - 1 - x, rtol=1e-6)
    np.testing.assert_allclose(kl_estimate(x, "abs"), np.abs(x))


@pytest.mark.parametrize(
    ("kind", "slope"), [("k1", [-1, -1, -1]), ("k2", [-0.5, 0, 2]), ("k3", np.expm1([-0.5, 0, 2])), ("abs", [-1, 0, 1])]
)
def test_gradients_are_zero_if_the_policies_agree_except_for_k1(kind, slope):
    grad = jax.vmap(jax.grad(lambda x: kl_estimate(x, kind)))(jnp.array([-0.5, 0.0, 2.0]))
    np.testing.assert_allclose(grad, slope, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_a_log_ratio_of_1e4(kind):
    for x in (1e4, -1e4):
        value, grad = jax.value_and_grad(lambda x: kl_estimate(x, kind))(x)
        assert np.isfinite(value) and np.isfinite(grad)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    estimate = kl_estimate(jnp.log(q) - jnp.log(p), kind)
    np.testing.assert_allclose(np.sum(p * estimate), np.sum(p * np.log(p / q)), rtol=1e-5)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kl: got 'k4', choose one of k1, k2, k3, abs"):
        kl_estimate(jnp.zeros(2), "k4")
