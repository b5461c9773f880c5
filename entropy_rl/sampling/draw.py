"""Random draws: a key for every response, and a token from a distribution.

Shapes: N prompts, n samples per prompt, B = N·n rows, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model import head
from entropy_rl.sampling.base import Forks, Sampling

Array = jax.Array


def row_keys(key: Array, uid_N: Array, n: int) -> Array:
    """key[B]: one key for each (prompt, sample), independent of the row it is in."""

    def one(uid: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, uid), sample)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(uid_N, jnp.arange(n, dtype=jnp.uint32)).reshape(-1)


def draw(logits_BxV: Array, keys_B: Array, sampling: Sampling, ids: int = 0) -> tuple[Array, Array, Array]:
    """A token for each row, never one of probability 0, with its logp and the entropy of the whole distribution.

    The draw inverts the distribution function in two levels, first a block of the vocabulary and then a token in that
    block, each with its own uniform. Gumbel noise over a large vocabulary costs twenty times as much on a CPU, and a
    single float32 uniform cannot distinguish tokens of probability below 1e-7.

    Args:
        logits_BxV: f32.
        keys_B: a key for each row.
        sampling: how the token is drawn.
        ids: tokens from this one on are never drawn: a model's vocabulary may be padded, so that the last rows of its
            head belong to no token of its tokenizer; 0: all may be drawn.

    Returns:
        (token i32[B], logp f32[B], entropy f32[B]), in nats; the last two are those of the distribution before any
        token is left out, at the row's temperature, or at temperature 1 if `sampling` is greedy.
    """
    V = logits_BxV.shape[-1]
    ids = min(ids or V, V)
    logits_BxV = logits_BxV.astype(jnp.float32)
    z = logits_BxV / (sampling.temperature or 1.0)
    if sampling.forks is not None:
        # a product with a reciprocal, which is what compilers make of the quotient by a constant: the bits are the same
        fork, other = (np.float32(1) / np.float32(x) for x in (sampling.forks.temperature, sampling.temperature))
        z = logits_BxV * jnp.where(_is_fork(logits_BxV, sampling.forks), fork, other)[:, None]
    d = z - jnp.max(z, axis=-1, keepdims=True)
    e = jnp.exp(d)  # serves the draw, logp and entropy: arrays of B·V are what sampling's memory goes into
    if sampling.temperature == 0:
        token = jnp.argmax(d if ids == V else jnp.where(jnp.arange(V)[None] < ids, d, -jnp.inf), axis=-1)
    else:
        p = e if ids == V else jnp.where(jnp.arange(V)[None] < ids, e, 0.0)
        if sampling.top_k or sampling.top_p < 1:
            p = jnp.where(_nucleus(p, sampling), p, 0.0)
        token = invert(p, jax.vmap(lambda k: jax.random.uniform(k, (2,)))(keys_B))
    token = jnp.minimum(token, ids - 1).astype(jnp.int32)  # if no token has a probability that float32 can hold
    return token, *head.statistics(d, e, token)


def invert(p_BxV: Array, u_Bx2: Array) -> Array:
    """i32[B]: the tokens that two uniforms for each row select: a block of the vocabulary, then a token of that block.

    Args:
        p_BxV: f32, probabilities that need not sum to 1; a token with 0 is not selected, nor one below 1e-38, which
            devices do not tell from 0 everywhere. A row that holds a NaN selects any token.
        u_Bx2: f32, at least 0 and below 1.

    Example:
        >>> print(invert(jnp.array([[0.0, 2.0, 0.0, 0.0, 2.0]]), jnp.array([[0.6, 0.0]])))
        [4]
    """
    B, V = p_BxV.shape
    block = 1 << max(1, (V - 1).bit_length() // 2)
    p_BxV = jnp.where(p_BxV < jnp.finfo(jnp.float32).tiny, 0.0, p_BxV)
    p_BxMxW = jnp.pad(p_BxV, ((0, 0), (0, -V % block))).reshape(B, -1, block)
    which_B = _first(jnp.sum(p_BxMxW, axis=-1), u_Bx2[:, 0])
    p_BxW = jnp.take_along_axis(p_BxMxW, which_B[:, None, None], axis=1)[:, 0]
    token_B = which_B * block + _first(p_BxW, u_Bx2[:, 1])
    return jnp.minimum(token_B, V - 1).astype(jnp.int32)  # past V is padding, to which only a NaN leads


def _first(p_BxW: Array, u_B: Array) -> Array:
    """i32[B]: the first index with p > 0 whose cumulative p exceeds u·total; if there is none, the last with p > 0.

    A float32 cumulative sum is not monotone, since neighbouring sums are added up in different orders: counting the
    places that do not exceed u·total would find places with p = 0 too.
    """
    total = jnp.cumsum(p_BxW, axis=-1)
    exceeds = (total > u_B[:, None] * total[:, -1:]) & (p_BxW > 0)
    last = p_BxW.shape[-1] - 1 - jnp.argmax(p_BxW[:, ::-1] > 0, axis=-1)  # u·total may round up to total
    return jnp.where(jnp.any(exceeds, axis=-1), jnp.argmax(exceeds, axis=-1), last)


def _is_fork(logits_BxV: Array, forks: Forks) -> Array:
    """bool[B]: the rows whose entropy at temperature 1 is above the threshold."""
    d = logits_BxV - jnp.max(logits_BxV, axis=-1, keepdims=True)
    return head.statistics(d, jnp.exp(d), jnp.zeros(len(d), jnp.int32))[1] > forks.threshold


def _nucleus(p_BxV: Array, sampling: Sampling) -> Array:
    """bool[B, V]: of the top-k tokens, the smallest set that holds top_p of their probability."""
    k = min(sampling.top_k or p_BxV.shape[-1], p_BxV.shape[-1])
    top_BxK = jax.lax.top_k(p_BxV, k)[0]
    before = jnp.cumsum(top_BxK, axis=-1) - top_BxK
    inside = before < sampling.top_p * jnp.sum(top_BxK, axis=-1, keepdims=True)
    floor_B = jnp.min(jnp.where(inside, top_BxK, jnp.inf), axis=-1, keepdims=True)
    return p_BxV >= floor_B
