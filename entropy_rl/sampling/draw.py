"""Random draws: a key for every response, and a token from a distribution.

Shapes: N prompts, n samples per prompt, B = N·n rows, V vocabulary.
"""

import jax
import jax.numpy as jnp

from entropy_rl.sampling.base import Sampling

Array = jax.Array


def row_keys(key: Array, uid_N: Array, n: int) -> Array:
    """key[B]: one key for each (prompt, sample), independent of the row it is in."""

    def one(uid: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, uid), sample)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(uid_N, jnp.arange(n, dtype=jnp.uint32)).reshape(-1)


def draw(logits_BxV: Array, keys_B: Array, sampling: Sampling) -> Array:
    """i32[B]: a token for each row.

    The draw inverts the distribution function in two levels, first a block of the vocabulary and then a token in that
    block, each with its own uniform. Gumbel noise over a large vocabulary costs twenty times as much on a CPU, and a
    single float32 uniform cannot distinguish tokens of probability below 1e-7.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    z = logits_BxV.astype(jnp.float32) / sampling.temperature
    p = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
    if sampling.top_k or sampling.top_p < 1:
        p = jnp.where(_nucleus(p, sampling), p, 0.0)
    B, V = p.shape
    block = 1 << max(1, (V - 1).bit_length() // 2)
    p_BxMxW = jnp.pad(p, ((0, 0), (0, -V % block))).reshape(B, -1, block)
    u_Bx2 = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys_B)
    which_B = _invert(jnp.sum(p_BxMxW, axis=-1), u_Bx2[:, 0])
    p_BxW = jnp.take_along_axis(p_BxMxW, which_B[:, None, None], axis=1)[:, 0]
    return (which_B * block + _invert(p_BxW, u_Bx2[:, 1])).astype(jnp.int32)


def _invert(p_BxW: Array, u_B: Array) -> Array:
    """i32[B]: the first index at which the cumulative p exceeds u·total; never one with p = 0."""
    total = jnp.cumsum(p_BxW, axis=-1)
    index = jnp.sum(total <= u_B[:, None] * total[:, -1:], axis=-1)
    last = p_BxW.shape[-1] - 1 - jnp.argmax(p_BxW[:, ::-1] > 0, axis=-1)  # u·total may round up to total
    return jnp.minimum(index, last)


def _nucleus(p_BxV: Array, sampling: Sampling) -> Array:
    """bool[B, V]: of the top-k tokens, the smallest set that holds top_p of their probability."""
    k = min(sampling.top_k or p_BxV.shape[-1], p_BxV.shape[-1])
    top_BxK = jax.lax.top_k(p_BxV, k)[0]
    before = jnp.cumsum(top_BxK, axis=-1) - top_BxK
    inside = before < sampling.top_p * jnp.sum(top_BxK, axis=-1, keepdims=True)
    floor_B = jnp.min(jnp.where(inside, top_BxK, jnp.inf), axis=-1, keepdims=True)
    return p_BxV >= floor_B
