"""Means, shares and quantiles over the valid tokens of a [B, T] array; masked tokens are never read.

B sequences, T response positions; `mask` is 1 on valid tokens. Every function returns 0 on an empty mask.
"""

import jax.numpy as jnp
from jax import Array

from entropy_rl.stats.selection import count, floor_product, kth_largest


def total(x_BxT: Array, mask_BxT: Array) -> Array:
    """Sum over the valid tokens, f32[]; the value at a masked token may be anything, even NaN."""
    return jnp.sum(jnp.where(mask_BxT > 0, x_BxT, 0), dtype=jnp.float32)


def size(mask_BxT: Array) -> Array:
    """Number of valid tokens, int32[]."""
    return jnp.sum(mask_BxT > 0, dtype=jnp.int32)


def mean(x_BxT: Array, mask_BxT: Array) -> Array:
    """Mean over the valid tokens, f32[]."""
    return total(x_BxT, mask_BxT) / jnp.maximum(size(mask_BxT), 1)


def token_mean_weight(mask_BxT: Array) -> Array:
    """The weight of each token in the mean over the N valid tokens: mask / N, f32[B, T]."""
    return (mask_BxT > 0) / jnp.maximum(size(mask_BxT), 1).astype(jnp.float32)


def response_mean(x_BxT: Array, mask_BxT: Array) -> Array:
    """Mean over responses of each response's token mean, f32[]; responses without a valid token are left out."""
    valid_BxT = mask_BxT > 0
    length_B = jnp.sum(valid_BxT, axis=1)
    mean_B = jnp.sum(jnp.where(valid_BxT, x_BxT, 0), axis=1) / jnp.maximum(length_B, 1)
    return jnp.sum(mean_B) / jnp.maximum(jnp.sum(length_B > 0), 1)


def fraction_below(x_BxT: Array, mask_BxT: Array, bound: float) -> Array:
    """Share of the valid tokens with x < bound, f32[]."""
    return mean((x_BxT < bound).astype(jnp.float32), mask_BxT)


def quantile(x_BxT: Array, mask_BxT: Array, q: float) -> Array:
    """The q-quantile of the valid tokens, with linear interpolation as in numpy.quantile, f32[].

    It takes two bisections instead of a sort: nothing is gathered, and the number of tokens is not limited.

    Args:
        x_BxT: f32[B, T].
        mask_BxT: bool or f32[B, T].
        q: from 0 to 1.

    Example:
        >>> x = jnp.array([[1.0, 2.0, 99.0], [4.0, 99.0, 99.0]])
        >>> mask = jnp.array([[1, 1, 0], [1, 0, 0]])
        >>> float(quantile(x, mask, 0.75))  # of 1, 2 and 4: halfway from 2 to 4
        3.0
    """
    n = size(mask_BxT)
    below, part = floor_product(q, jnp.maximum(n - 1, 0))
    low = kth_largest(x_BxT, mask_BxT, n - below)
    high = kth_largest(x_BxT, mask_BxT, jnp.maximum(n - below - 1, 1))
    return jnp.where(part > 0, low + part * (high - low), low)


def top_mean(x_BxT: Array, mask_BxT: Array, fraction: float) -> Array:
    """Mean of the count(fraction, N) largest of the N valid values, f32[]."""
    k = count(fraction, size(mask_BxT))
    t = kth_largest(x_BxT, mask_BxT, k)
    above_BxT = (mask_BxT > 0) & (x_BxT > t)
    return (total(x_BxT, above_BxT) + (k - size(above_BxT)) * t) / jnp.maximum(k, 1)


def exact_mean(x_BxT: Array, mask_BxT: Array) -> Array:
    """Mean over the valid tokens, with the same bits for any order of rows and on any mesh, f32[].

    A float sum depends on its order, so ranks taken after subtracting a float mean could differ at near-ties
    between one device and eight. Here each value is scaled by a power of two to (-1, 1) and split into integers
    whose int32 sums are exact: three of at most 7 bits and a sign if B·T is below 2**24, more and narrower ones from
    there on. The error is at most 2**-24 of the largest absolute value.
    """
    x_BxT = jnp.where(mask_BxT > 0, x_BxT, 0).astype(jnp.float32)
    exponent = jnp.frexp(jnp.max(jnp.abs(x_BxT), initial=0.0))[1]
    rest_BxT = jnp.ldexp(x_BxT, -exponent)
    result = jnp.float32(0)
    width = min(7, 31 - x_BxT.size.bit_length())  # B·T integers of at most 2**width in size stay within an int32
    for bits in range(width, 24 + width, width + 1):
        limb_BxT = jnp.round(jnp.ldexp(rest_BxT, bits))
        rest_BxT -= jnp.ldexp(limb_BxT, -bits)
        limbs = jnp.sum(limb_BxT.astype(jnp.int32), dtype=jnp.int32)
        result += jnp.ldexp(limbs.astype(jnp.float32), -bits)
    return jnp.ldexp(result / jnp.maximum(size(mask_BxT), 1), exponent)
