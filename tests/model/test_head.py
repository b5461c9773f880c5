"""The fused head against dense float32 logits. Shapes: B sequences, T positions, D width, V vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from entropy_rl.model import head
from entropy_rl.runtime.mesh import FSDP, ROWS, TENSOR, make_mesh

B, T, D, V = 3, 7, 8, 50


def inputs(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden, W = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    return hidden, W, targets, jax.random.bernoulli(keys[3], 0.6, (B, T))


def dense(hidden, W, targets, mask, temperature):
    logp = jax.nn.log_softmax(hidden @ W / temperature)
    at = jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]
    return mask * at, mask * -jnp.sum(jnp.exp(logp) * logp, -1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_equals_dense_forward_and_backward(temperature, chunk):
    hidden, W, targets, mask = inputs()
    ours = jax.jit(lambda h, w: head.logp_and_entropy(h, w, targets, temperature, mask, chunk))
    want, want_vjp = jax.vjp(lambda h, w: dense(h, w, targets, mask, temperature), hidden, W)
    got, got_vjp = jax.vjp(ours, hidden, W)
    np.testing.assert_allclose(got[0], want[0], atol=5e-6)
    np.testing.assert_allclose(got[1], want[1], atol=5e-6)
    for keep in (1.0, 0.3, 0.0):  # share of cotangents that are not zero
        g = jax.random.normal(jax.random.key(2), (2, B, T)) * jax.random.bernoulli(jax.random.key(3), keep, (2, B, T))
        for a, b in zip(got_vjp((g[0], g[1])), want_vjp((g[0], g[1]))):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_a_mesh_changes_only_rounding(shape):
    """Rows over data and fsdp, the vocabulary over tensor, each shard with its own number of chunks."""
    hidden, W, targets, mask = (jnp.tile(x, (8, 1, 1)[: x.ndim]) if x.shape[0] == B else x for x in inputs())
    W = jnp.pad(W, ((0, 0), (0, 6)), constant_values=0.1)
    g = jax.random.normal(jax.random.key(2), (2, *targets.shape))
    g *= jnp.arange(8 * B)[None, :, None] > B  # the first of eight shards has no cotangent

    def run(hidden, W):
        out, vjp = jax.vjp(lambda h, w: head.logp_and_entropy(h, w, targets, 0.7, mask, chunk=8), hidden, W)
        return out, vjp((g[0], g[1]))

    want = jax.jit(run)(hidden, W)
    mesh = make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(hidden, P(ROWS)), jax.device_put(W, P(FSDP, TENSOR))
        compiled = jax.jit(run).lower(*placed).compile()
        for a, b in zip(jax.tree.leaves(compiled(*placed)), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_gradients_are_derivatives():
    hidden, W, targets, _ = inputs(1)
    check_grads(lambda h, w: head.logp_and_entropy(h, w, targets, 0.7), (hidden, W), order=1, modes=["rev"])


def test_masked_positions_are_exactly_zero_and_have_no_gradient():
    hidden, W, targets, mask = inputs()
    hidden = jnp.where(mask[..., None], hidden, jnp.nan)  # nothing there may be read

    def f(h, w):
        return sum(jnp.sum(x) for x in head.logp_and_entropy(h, w, targets, 1.0, mask))

    logp, entropy = head.logp_and_entropy(hidden, W, targets, 1.0, mask)
    assert np.all(np.asarray(logp)[~mask] == 0) and np.all(np.asarray(entropy)[~mask] == 0)
    d_hidden, d_W = jax.grad(f, argnums=(0, 1))(hidden, W)
    assert np.all(np.asarray(d_hidden)[~mask] == 0) and np.all(np.isfinite(d_W))


def test_all_masked_is_zero():
    hidden, W, targets, _ = inputs()
    none = jnp.zeros((B, T), bool)
    value, grads = jax.value_and_grad(
        lambda h, w: jnp.sum(head.logp_and_entropy(h, w, targets, 1.0, none)[0]), argnums=(0, 1)
    )(hidden, W)
    assert value == 0 and all(np.all(np.asarray(g) == 0) for g in grads)


def test_infinite_logits_stay_finite():
    """One token has all the probability: the entropy is 0, and a token that cannot be drawn has no gradient."""
    hidden, W = jnp.ones((1, 2, 1)), jnp.array([[1e5, -1e5, -3e38]])
    targets = jnp.array([[0, 0]])

    def f(h, w):
        return sum(jnp.sum(x) for x in head.logp_and_entropy(h * 10, w, targets))

    value, grads = jax.value_and_grad(f, argnums=(0, 1))(hidden, W)
    assert value == 0 and all(np.all(np.isfinite(g)) for g in grads)


def test_the_full_logits_are_never_held():
    hidden, W, targets, _ = inputs()
    big = jnp.tile(targets, (40, 10))

    def f(h, w):
        return sum(jnp.sum(x) for x in head.logp_and_entropy(h, w, big, chunk=32))

    text = jax.jit(jax.grad(f, argnums=(0, 1))).lower(jnp.zeros((*big.shape, D)), W).compile().as_text()
    n = big.size
    assert f"f32[{n},{V}]" not in text and f"f32[{big.shape[0]},{big.shape[1]},{V}]" not in text
    assert f"f32[32,{V}]" in text


def test_temperature_must_be_positive():
    hidden, W, targets, _ = inputs()
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        head.logp_and_entropy(hidden, W, targets, 0)
