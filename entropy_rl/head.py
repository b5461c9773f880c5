"""The fused head: log-probability and exact entropy from hidden states, never [B, T, V].

Shapes: B sequences, T positions, N = B·T, C positions a chunk, D width, V vocabulary. Nats.

With z = h·W/τ and p = softmax(z):  ∂logp/∂z = onehot(y) − p  and  ∂H/∂z = −p ⊙ (log p + H).
Both passes first gather the positions that matter (the forward those in the mask, the backward those whose
cotangents are not zero) and run only as many chunks as these fill, so that padding, groups without a
gradient and every token mask make the head cheaper and nobody has to declare anything.
"""

from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array


def logp_and_entropy(
    hidden_BxTxD: Array,
    head_DxV: Array,
    targets_BxT: Array,
    temperature: float = 1.0,
    mask_BxT: Array | None = None,
    chunk: int = 256,
) -> tuple[Array, Array]:
    """log π(y) and H(π) of π = softmax(hidden · head / temperature) at every position.

    Args:
      hidden_BxTxD: hidden states that predict the targets.
      head_DxV: the output head; a transposed embedding costs nothing, the transpose is folded into the product.
      targets_BxT: i32 tokens.
      temperature: the sampling temperature, > 0.
      mask_BxT: where to compute; None is everywhere. Elsewhere both results are exactly 0.
      chunk: positions whose logits exist at the same time.

    Returns:
      (logp, entropy), f32[B, T] in nats, differentiable in `hidden` and `head` through both.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    shape = targets_BxT.shape
    mask = jnp.ones(shape, bool) if mask_BxT is None else mask_BxT.astype(bool)
    size = min(chunk, targets_BxT.size)
    logp, entropy = _head(
        float(temperature),
        size,
        jnp.reshape(hidden_BxTxD, (-1, hidden_BxTxD.shape[-1])),
        jnp.transpose(head_DxV),
        jnp.ravel(targets_BxT),
        jnp.ravel(mask),
    )
    return logp.reshape(shape), entropy.reshape(shape)


def from_logits(logits: Array, targets: Array, temperature: float = 1.0) -> tuple[Array, Array]:
    """(logp, entropy), f32[...], of dense logits [..., V]: the sampler's form, where the logits are there anyway."""
    z = logits.astype(jnp.float32) / temperature
    logp, entropy, _ = _statistics(z, targets)
    return logp, entropy


def _statistics(z, y):
    """Of logits z [..., V] and targets y: log π(y), entropy, log Σ exp z."""
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    d = z - top
    e = jnp.exp(d)
    total = jnp.sum(e, axis=-1)
    log_total = jnp.log(total)
    # Σ p·(z − max): a token that cannot be drawn (z = −inf) adds 0, not 0·inf
    mean = jnp.sum(jnp.where(e > 0, e * d, 0.0), axis=-1) / total
    at_y = jnp.take_along_axis(d, y[..., None], axis=-1)[..., 0]
    return at_y - log_total, log_total - mean, log_total + top[..., 0]


def _chunks(active_N, size):
    """Indices of the active positions first (N where there is none), padded to whole chunks; chunks to run."""
    n = active_N.shape[0]
    order = jnp.nonzero(active_N, size=-(-n // size) * size, fill_value=n)[0]
    return order, (jnp.sum(active_N) + size - 1) // size


def _logits(temperature, hidden_CxD, head_VxD):
    z = jax.lax.dot_general(hidden_CxD, head_VxD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return z / temperature


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head(temperature, size, hidden_NxD, head_VxD, targets_N, mask_N):
    return _head_fwd(temperature, size, hidden_NxD, head_VxD, targets_N, mask_N)[0]


def _head_fwd(temperature, size, hidden_NxD, head_VxD, targets_N, mask_N):
    order, trips = _chunks(mask_N, size)

    def body(i, out):
        at = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        z = _logits(temperature, jnp.take(hidden_NxD, at, axis=0, mode="fill", fill_value=0), head_VxD)
        stats = _statistics(z, jnp.take(targets_N, at, mode="clip"))
        return tuple(o.at[at].set(s, mode="drop") for o, s in zip(out, stats, strict=True))

    zeros = jnp.zeros(targets_N.shape, jnp.float32)
    logp, entropy, lse = jax.lax.fori_loop(0, trips, body, (zeros, zeros, zeros))
    return (logp, entropy), (hidden_NxD, head_VxD, targets_N, mask_N, entropy, lse)


def _head_bwd(temperature, size, residuals, cotangents):
    hidden_NxD, head_VxD, targets_N, mask_N, entropy, lse = residuals
    g_logp, g_entropy = cotangents
    order, trips = _chunks(mask_N & ((g_logp != 0) | (g_entropy != 0)), size)

    def body(i, carry):
        d_hidden, d_head = carry
        at = jax.lax.dynamic_slice_in_dim(order, i * size, size)
        take = lambda x: jnp.take(x, at, axis=0, mode="fill", fill_value=0)
        h, gl, ge = take(hidden_NxD), take(g_logp), take(g_entropy)
        logp_CxV = _logits(temperature, h, head_VxD) - take(lse)[:, None]
        p = jnp.exp(logp_CxV)
        # finite even where a logit is −inf: p·log p is 0 there
        slope = jnp.where(p > 0, p * (logp_CxV + take(entropy)[:, None]), 0.0)
        is_target = jax.lax.broadcasted_iota(jnp.int32, p.shape, 1) == take(targets_N)[:, None]
        dz = (jnp.where(is_target, gl[:, None], 0.0) - gl[:, None] * p - ge[:, None] * slope) / temperature
        dz = dz.astype(head_VxD.dtype)
        dh = jnp.dot(dz, head_VxD, preferred_element_type=jnp.float32)
        dw = jax.lax.dot_general(dz, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return d_hidden.at[at].set(dh.astype(d_hidden.dtype), mode="drop"), d_head + dw

    start = jnp.zeros(hidden_NxD.shape, hidden_NxD.dtype), jnp.zeros(head_VxD.shape, jnp.float32)
    d_hidden, d_head = jax.lax.fori_loop(0, trips, body, start)
    return d_hidden, d_head.astype(head_VxD.dtype), None, None


_head.defvjp(_head_fwd, _head_bwd)
