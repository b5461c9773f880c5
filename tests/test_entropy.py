"""Entropy, cross-entropy and divergence against NumPy, and their gradients in edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from entropy_rl import entropy as ent
from entropy_rl.model.head import logp_and_entropy


def logits(seed: int, *shape: int, scale: float = 3.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def probabilities(z: jax.Array) -> np.ndarray:
    z = np.asarray(z, np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_values_and_the_identity_that_joins_them():
    zp, zq = logits(0, 4, 5, 11), logits(1, 4, 5, 11)
    p, q = probabilities(zp), probabilities(zq)
    h, c, d = ent.entropy(zp), ent.cross_entropy(zp, zq), ent.kl_divergence(zp, zq)
    np.testing.assert_allclose(h, -(p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(c, -(p * np.log(q)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(d, (p * np.log(p / q)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(c, h + d, rtol=1e-5)
    np.testing.assert_allclose(ent.kl_divergence(zp, zp + 3.0), 0.0, atol=1e-6)


def test_it_computes_in_float32_for_any_input():
    z = logits(2, 3, 50000).astype(jnp.bfloat16)
    assert ent.entropy(z).dtype == jnp.float32
    np.testing.assert_allclose(ent.entropy(z), ent.entropy(z.astype(jnp.float32)), rtol=1e-6)


def test_minus_infinity_removes_a_token():
    z = logits(3, 2, 6)
    out = jnp.array([True, False, False, True, False, False])
    masked_z = jnp.where(out, -jnp.inf, z)
    kept = z[:, ~out]
    np.testing.assert_allclose(ent.entropy(masked_z), ent.entropy(kept), rtol=1e-6)
    np.testing.assert_allclose(
        ent.kl_divergence(masked_z, jnp.where(out, -jnp.inf, 2 * z)), ent.kl_divergence(kept, 2 * kept), rtol=1e-5
    )
    assert np.all(np.isinf(ent.kl_divergence(z, masked_z))), "mass outside the support of Q"
    assert np.all(np.isfinite(ent.cross_entropy(masked_z, z)))
    assert float(ent.entropy(jnp.array([-jnp.inf, 0.0, -jnp.inf]))) == 0.0


@pytest.mark.parametrize(
    "row", [[-np.inf, 1.0, 2.0], [-np.inf, 0.0, -np.inf], [-1e30, 0.0, 5.0], [3e38, 0.0, -3e38], [-np.inf] * 3]
)
def test_gradients_are_finite(row):
    z = jnp.array(row, jnp.float32)
    for f in (ent.entropy, lambda z: ent.cross_entropy(z, z), lambda z: ent.kl_divergence(z, 0.5 * z)):
        value, grad = jax.value_and_grad(f)(z)
        assert np.isfinite(value) and np.all(np.isfinite(grad)), (value, grad)


def test_gradients_are_right():
    zp, zq = logits(4, 2, 7, scale=1.0), logits(5, 2, 7, scale=1.0)
    for f, arguments in ((ent.entropy, (zp,)), (ent.cross_entropy, (zp, zq)), (ent.kl_divergence, (zp, zq))):
        check_grads(f, arguments, order=1, modes=["rev"], rtol=2e-2)


def test_summaries():
    x, mask = jnp.array([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]]), jnp.array([[1, 1, 0], [1, 0, 0]])
    assert float(ent.token_mean(x, mask)) == 3.0
    assert float(ent.response_mean(x, mask)) == 3.5
    assert float(ent.sampled(-x, mask)) == 3.0
    assert float(ent.quantile(x, mask, 0.5)) == 3.0
    assert float(ent.fraction_below(x, mask, 3.5)) == pytest.approx(2 / 3)
    assert float(ent.sampled(x, 0 * mask)) == 0.0


def test_the_fused_head_is_public_here():
    assert ent.logp_and_entropy is logp_and_entropy
