"""The TPU kernel for whole rows, interpreted, against the plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import attention
from entropy_rl.model.transformer import attend, visible

B, S, H, K, h = 2, 200, 4, 2, 128


def plain(q, k, v, position, segment, window):
    return attend(q, ((k, v),), (visible(position, segment, position, segment, window),))


@pytest.mark.parametrize("window", [None, 40])
def test_kernel_agrees_with_plain_attention_and_its_gradient(window):
    rng = np.random.default_rng(0)
    q, k, v, g = (jnp.asarray(rng.normal(size=(B, S, n, h)), jnp.float32) for n in (H, K, K, H))
    segment = jnp.asarray([[1] * 70 + [2] * 120 + [0] * 10, [0] * 30 + [1] * 170])  # packed; padded on the left
    position = jnp.asarray([[*range(70), *range(120), *[0] * 10], [*[0] * 30, *range(170)]])
    real = (segment > 0)[:, :, None, None]

    def both(f):
        loss = lambda q, k, v: jnp.sum(jnp.where(real, f(q, k, v), 0) * g)
        return jax.jit(lambda *x: (jnp.where(real, f(*x), 0), jax.grad(loss, (0, 1, 2))(*x)))(q, k, v)

    got, got_grad = both(lambda *x: attention.rows(*x, segment, window, interpret=True))
    want, want_grad = both(lambda *x: plain(*x, position, segment, window))
    np.testing.assert_allclose(got, want, atol=2e-5)
    for a, b in zip(got_grad, want_grad, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
