"""The one selection primitive: exactly k tokens, the same ones on every mesh and for every order of rows.

B sequences, T response positions. Scores are float32, or uint32 for random draws.

The k-th largest score is found by 32 bisections on the ordered-integer view of float32. Each bisection costs
one scalar all-reduce, so nothing of shape [B, T] is gathered or sorted, and the number of tokens is not limited.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array

_MAX_DENOMINATOR = 10**9  # keeps 3 * denominator below 2**32, see floor_product


def as_ratio(fraction: float) -> tuple[int, int]:
    """`fraction` as integers p / q that read 0.2, and 1 - 0.8 too, as 1/5.

    A share is written in decimal, and its float differs from that by up to half a unit in the last place, in either
    direction. The nearest ratio with q <= 1e9 removes the difference, and moves any other number by less than 1e-9.

    Raises:
        ValueError: If `fraction` is not in [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction: got {fraction!r}, a share of tokens must be from 0 to 1")
    ratio = Fraction(fraction).limit_denominator(_MAX_DENOMINATOR)
    return ratio.numerator, ratio.denominator


def floor_product(fraction: float | Array, n: Array | int) -> tuple[Array, Array]:
    """floor(fraction * n) exactly, as int32[], and the remainder fraction * n - floor, as f32[].

    This is binary long division in uint32: a float32 product is off by whole tokens once n exceeds 2**24, and JAX
    disables int64 by default. After each bit of n, p * (bits so far) = quotient * q + remainder. A fraction that is
    known only at run time, f32[], is taken as the nearest number of seven decimals.
    """
    if isinstance(fraction, Array):
        p, q = jnp.round(jnp.clip(fraction, 0.0, 1.0) * 1e7).astype(jnp.uint32), jnp.uint32(10**7)
    else:
        p, q = (jnp.uint32(x) for x in as_ratio(fraction))
    n = jnp.asarray(n, jnp.uint32)

    def next_bit(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        quotient, rest = carry
        rest = 2 * rest + p * ((n >> (31 - i)) & 1)
        return 2 * quotient + rest // q, rest % q

    zero = jnp.uint32(0)
    quotient, rest = jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(32), next_bit, (zero, zero))
    return quotient.astype(jnp.int32), rest.astype(jnp.float32) / q.astype(jnp.float32)


def count(fraction: float | Array, n: Array | int, up: bool = False) -> Array:
    """How many of n tokens a share means: max(1, floor(fraction * n)) if n > 0, and 0 if n = 0. int32[].

    Args:
        fraction: the share.
        n: the number of tokens.
        up: round up in place of down.

    Example:
        >>> [int(count(0.2, n)) for n in (0, 1, 14, 15)], [int(count(0.2, n, up=True)) for n in (0, 1, 14, 15)]
        ([0, 1, 2, 3], [0, 1, 3, 3])
    """
    whole, rest = floor_product(fraction, n)
    whole = whole + (rest > 0) if up else whole
    return jnp.minimum(jnp.maximum(whole, 1), jnp.asarray(n, jnp.int32))


def ordered(score: Array) -> Array:
    """float32 scores as uint32 in the same order: -0 equals 0, and NaN is below everything. uint32 is unchanged."""
    if score.dtype == jnp.uint32:
        return score
    score = score.astype(jnp.float32) + 0.0
    score = jnp.where(score == 0, 0.0, score)
    bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
    flipped = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    return jnp.where(jnp.isnan(score), jnp.uint32(0), flipped)


def _unordered(key: Array) -> Array:
    """The inverse of `ordered`, f32."""
    bits = jnp.where(key >> 31 == 1, key & jnp.uint32((1 << 31) - 1), ~key)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _threshold(key: Array, weight: Array, k: Array, bits: int = 32) -> Array:
    """The largest t with sum(weight[key >= t]) >= k, or 0 if not even t = 0 reaches k. uint32[]."""

    def add_bit(i: Array, t: Array) -> Array:
        trial = t | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
        reached = jnp.sum(jnp.where(key >= trial, weight, 0), dtype=jnp.int32)
        return jnp.where(reached >= k, trial, t)

    threshold: Array = jax.lax.fori_loop(0, bits, add_bit, jnp.uint32(0))
    return threshold


def kth_largest(score_BxT: Array, mask_BxT: Array, k: Array | int) -> Array:
    """The k-th largest valid score, f32[], for k from 1 to the number of valid tokens; 0 on an empty mask."""
    valid_BxT = mask_BxT > 0
    t = _threshold(ordered(score_BxT), valid_BxT.astype(jnp.int32), jnp.asarray(k, jnp.int32))
    return jnp.where(jnp.any(valid_BxT), _unordered(t), 0.0)


def select(score_BxT: Array, tiebreak_B: Array, mask_BxT: Array, k: Array | int) -> Array:
    """Marks the k valid tokens with the highest scores: exactly min(k, valid) of them, for k >= 0.

    Ties go to the lower `tiebreak` (the sequence's uid), then to the lower position. uids are 32-bit hashes, so two
    sequences may share one; their ties go to the lower row, which keeps the count exact.

    Args:
        score_BxT: f32 or u32[B, T].
        tiebreak_B: u32[B], the sequences' uids.
        mask_BxT: bool or f32[B, T]; a token is a candidate if this is > 0.
        k: number of tokens to mark, int32[]; may be traced.

    Returns:
        bool[B, T], false at every masked token.

    Example:
        >>> score = jnp.array([[0.1, 0.7, 0.7], [0.7, 0.9, 5.0]])
        >>> mask = jnp.array([[1, 1, 1], [1, 1, 0]])  # 5.0 is masked
        >>> uid = jnp.array([8, 3], jnp.uint32)  # of the three 0.7, the one in the sequence with uid 3 comes first
        >>> select(score, uid, mask, 2).astype(int).tolist()
        [[0, 0, 0], [1, 1, 0]]
        >>> select(score, uid, mask, 3).astype(int).tolist()
        [[0, 1, 0], [1, 1, 0]]
    """
    B, T = score_BxT.shape
    key_BxT = ordered(score_BxT)
    valid_BxT = mask_BxT > 0
    k = jnp.asarray(k, jnp.int32)

    t = _threshold(key_BxT, valid_BxT.astype(jnp.int32), k)
    chosen_BxT = valid_BxT & (key_BxT > t)
    tied_BxT = valid_BxT & (key_BxT == t)
    # Each level takes the whole classes of tied tokens that fit and leaves the one that does not fit to the next
    # level. The later levels need only the row and column sums of the ties, so they cost next to nothing.
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
    """Independent uniform draws, u32[B, T], that depend only on (key, salt, uid, position).

    A sequence keeps its draws in any row of the batch and with any padding.

    Args:
        key: the PRNG key of the update.
        salt: distinguishes draws that are made with one key.
        uid_B: u32[B], the sequences' uids.
        T: number of positions.
    """
    salted = jax.random.fold_in(key, salt)

    def draw(uid: Array, position: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(salted, uid), position), dtype=jnp.uint32)

    positions_T = jnp.arange(T, dtype=jnp.uint32)
    over_positions = jax.vmap(draw, (None, 0))
    scores_BxT: Array = jax.vmap(over_positions, (0, None))(uid_B.astype(jnp.uint32), positions_T)
    return scores_BxT
