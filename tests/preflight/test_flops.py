"""Products counted in a jaxpr."""

import jax
import jax.numpy as jnp
import pytest

from entropy_rl.preflight import flops


def test_flops_of_loops_and_branches():
    x, w = jnp.zeros((8, 16)), jnp.zeros((3, 16, 16))

    def f(x, w, n):
        y, _ = jax.lax.scan(lambda c, w: (c @ w, None), x, w)
        y = jax.lax.cond(n > 0, lambda: y @ w[0], lambda: y)
        with jax.named_scope("loop"):
            return jax.lax.fori_loop(0, n, lambda i, c: c @ w[0], y)

    jaxpr = jax.make_jaxpr(f)(x, w, 3).jaxpr
    product = 2 * 8 * 16 * 16
    assert flops.count(jaxpr, {"loop": 10}) == (3 + 1 + 10) * product
    grad = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.tanh(x @ w[0]) @ w[1])(x))))(x).jaxpr
    assert flops.count(grad, {}) == (2 + 1 + 2) * product  # forward, the first product again, two pull-backs


def test_a_loop_of_unknown_length_is_an_error():
    x = jnp.zeros((8, 8))
    jaxpr = jax.make_jaxpr(lambda x, n: jax.lax.fori_loop(0, n, lambda i, c: c @ x, x))(x, 3).jaxpr
    with pytest.raises(ValueError, match="written under ''"):
        flops.count(jaxpr, {"other": 5})


def test_a_loop_is_known_by_its_scope_under_transformations():
    """JAX writes a scope that it differentiates as jvp(loop)."""
    w = jnp.zeros((8, 8))

    def f(x, n):
        with jax.named_scope("loop"):
            return jax.lax.fori_loop(0, n, lambda i, c: c @ w, x)

    jaxpr = jax.make_jaxpr(lambda x, n: jax.jvp(lambda x: f(x, n), (x,), (x,)))(w, 3).jaxpr
    assert flops.count(jaxpr, {"loop": 10}) == 2 * 10 * 2 * 8 * 8 * 8
