"""The one selection primitive: exactly k tokens, the same ones on every mesh and for every order of rows.

B sequences, T response positions. Scores are float32, or uint32 for random draws.

The k-th largest score is found by 32 bisections on the ordered-integer view of float32. Each round costs
one scalar all-reduce, so nothing of shape [B, T] is ever gathered or sorted, and there is no size limit.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array

_MAX_DENOMINATOR = 10**9  # keeps 3 * denominator below 2**32, see floor_product


def as_ratio(fraction: float) -> tuple[int, int]:
    """`fraction` as whole numbers p / q, reading 0.2 as 1/5 and 1 - 0.8 as 1/5 too.

    A share is written in decimal, and its float lies up to half a unit in the last place away, on either side.
    Taking the nearest ratio with q <= 1e9 undoes that, and moves any other number by less than 1e-9.

    Raises:
      ValueError: if `fraction` is not in [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction: got {fraction!r}, a share of tokens must be from 0 to 1")
    ratio = Fraction(fraction).limit_denominator(_MAX_DENOMINATOR)
    return ratio.numerator, ratio.denominator


def floor_product(fraction: float, n: Array | int) -> tuple[Array, Array]:
    """floor(fraction * n) exactly, as int32[], and the remainder fraction * n - floor, as f32[].

    Binary long division in uint32: a float32 product is wrong by whole tokens once n passes 2**24, and int64
    is switched off in JAX by default. After each bit of n, p * (bits so far) = quotient * q + remainder.
    """
    p, q = (jnp.uint32(x) for x in as_ratio(fraction))
    n = jnp.asarray(n, jnp.uint32)

    def next_bit(i, carry):
        quotient, rest = carry
        rest = 2 * rest + p * ((n >> (31 - i)) & 1)
        return 2 * quotient + rest // q, rest % q

    zero = jnp.uint32(0)
    quotient, rest = jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32), next_bit, (zero, zero))
    return quotient.astype(jnp.int32), rest.astype(jnp.float32) / q.astype(jnp.float32)


def count(fraction: float, n: Array | int) -> Array:
    """How many of n tokens a share means: max(1, floor(fraction * n)) for n > 0, and 0 for n = 0. int32[]."""
    return jnp.minimum(jnp.maximum(floor_product(fraction, n)[0], 1), jnp.asarray(n, jnp.int32))


def ordered(score: Array) -> Array:
    """uint32 with the order of the float32 scores; -0 equals 0, NaN is below everything. uint32 passes through."""
    if score.dtype == jnp.uint32:
        return score
    score = score.astype(jnp.float32) + 0.0
    score = jnp.where(score == 0, 0.0, score)
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    flipped = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    return jnp.where(jnp.isnan(score), jnp.uint32(0), flipped)


def _unordered(key: Array) -> Array:
    bits = jnp.where(key >> 31 == 1, key & jnp.uint32((1 << 31) - 1), ~key)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _threshold(key: Array, weight: Array, k: Array, bits: int = 32) -> Array:
    """The largest t with sum(weight where key >= t) >= k; 0 where even t = 0 does not reach k. uint32[]."""

    def round_(i, t):
        trial = t | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        reached = jnp.sum(jnp.where(key >= trial, weight, 0), dtype=jnp.int32)
        return jnp.where(reached >= k, trial, t)

    return jax.lax.fori_loop(0, bits, round_, jnp.uint32(0))


def kth_largest(score_BxT: Array, mask_BxT: Array, k: Array | int) -> Array:
    """The k-th largest valid score, k from 1 to the number of valid tokens. f32[]; 0 on an empty mask."""
    valid_BxT = mask_BxT > 0
    t = _threshold(ordered(score_BxT), valid_BxT.astype(jnp.int32), jnp.asarray(k, jnp.int32))
    return jnp.where(jnp.any(valid_BxT), _unordered(t), 0.0)


def select(score_BxT: Array, tiebreak_B: Array, mask_BxT: Array, k: Array | int) -> Array:
    """Marks the k valid tokens with the highest scores: exactly min(k, valid) of them, for k >= 0.

    Ties go to the lower `tiebreak` (the sequence's uid), then to the lower position; sequences that share a
    uid, which a 32-bit hash allows, are told apart by their row, so that the count stays exact.

    Args:
      score_BxT: f32 or u32[B, T].
      tiebreak_B: u32[B], the sequences' uids.
      mask_BxT: bool or f32[B, T]; a token is a candidate where it is > 0.
      k: how many, int32[]; may be traced.

    Returns:
      bool[B, T], false at every masked token.
    """
    B, T = score_BxT.shape
    key_BxT = ordered(score_BxT)
    valid_BxT = mask_BxT > 0
    k = jnp.asarray(k, jnp.int32)

    t = _threshold(key_BxT, valid_BxT.astype(jnp.int32), k)
    chosen_BxT = valid_BxT & (key_BxT > t)
    tied_BxT = valid_BxT & (key_BxT == t)
    # Each level takes whole classes that fit and hands the class that does not to the next. Row and column
    # sums of the ties are all the later levels need, so they cost nothing beside the first.
    by_uid_B = ~tiebreak_B.astype(jnp.uint32)
    by_position_T = jnp.arange(T, dtype=jnp.uint32)[::-1]
    by_row_B = jnp.arange(B, dtype=jnp.uint32)[::-1]
    for key, axis, bits in ((by_uid_B, 0, 32), (by_position_T, 1, T.bit_length()), (by_row_B, 0, B.bit_length())):
        need = k - jnp.sum(chosen_BxT, dtype=jnp.int32)
        ties = jnp.sum(tied_BxT, axis=1 - axis, dtype=jnp.int32)
        t = _threshold(key, ties, need, bits)
        key_BxT = jnp.expand_dims(key, 1 - axis)
        chosen_BxT |= tied_BxT & (key_BxT > t)
        tied_BxT &= key_BxT == t
    need = k - jnp.sum(chosen_BxT, dtype=jnp.int32)
    return chosen_BxT | (tied_BxT & (need > 0))


def random_scores(key: Array, salt: int, uid_B: Array, T: int) -> Array:
    """Independent uniform draws, u32[B, T], that belong to (key, salt, uid, position) and to nothing else.

    A row keeps its draws wherever it stands in the batch and however far it is padded.
    """
    salted = jax.random.fold_in(key, salt)

    def one(uid, position):
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(salted, uid), position), dtype=jnp.uint32)

    positions_T = jnp.arange(T, dtype=jnp.uint32)
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(uid_B.astype(jnp.uint32), positions_T)
