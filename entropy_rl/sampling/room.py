"""How many slots a device has room for, chosen once for each shape of a rollout.

Shapes: N prompts, P prompt positions, n samples per prompt, B = N·n responses, T response positions, W slots,
V vocabulary, H query heads, K key/value heads.

The width decides what is compiled and, on an accelerator, how sums are rounded. So it is a power of two per shard,
which a little more or less of free memory seldom changes; it is kept for the rest of the run, and in its checkpoints.
"""

from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.model.transformer import ModelConfig, Transformer
from entropy_rl.runtime import distributed
from entropy_rl.sampling.base import Decoding

CHUNK = 16  # steps between two looks at the slots
FIRST_CACHE = 32  # places in the cache at the start
EVEN = 16  # the cache has a multiple of this many places: products over an odd number of places are slower

# Temporaries as multiples of f32[W, V], and of attention's scores f32[W, H, P + T]. They are the most that the compiled
# programs took on a v5e, over widths and lengths; `tests/preflight/test_slots_fit.py` compiles some of them again.
STEP_LOGITS, STEP_SCORES, ADMIT_LOGITS = 7.1, 1.0, 2.0
TRUNCATED_LOGITS = 4.0  # more of them if the draw is truncated, which sorts; another temperature of forks takes none
SHARE = 0.9  # of the free memory that the slots may take


def places(T: int) -> int:
    """Places in the cache for responses of T tokens, the last of which is never fed.

    >>> places(1), places(17), places(18)
    (16, 16, 32)
    """
    return -(-max(T - 1, 1) // EVEN) * EVEN


def lengths(T: int) -> list[int]:
    """The lengths that the cache may have, ascending: it doubles.

    >>> lengths(20), lengths(100)
    ([32], [32, 64, 112])
    """
    most = places(T)
    found = [min(FIRST_CACHE, most)]
    while found[-1] < most:
        found.append(min(2 * found[-1], most))
    return found


def choose(
    model: Transformer,
    key_LxNxKxhxP: jax.Array,
    n: int,
    decoding: Decoding,
    shards: int,
    widths: dict[str, int],
) -> int:
    """The width of a rollout that does not name one: that of `widths`, or, of what fits now, a round number.

    Args:
        model: the decoder.
        key_LxNxKxhxP: the prompts' keys, which determine the device and the number of heads that it holds of a slot.
        n: samples per prompt.
        decoding: how tokens are drawn.
        shards: S, the parts that have their own slots.
        widths: the widths chosen before, by shape and device; a new one is added. Nothing is chosen on a CPU, which
            makes all responses at once.
    """
    addressable: set[Any] = key_LxNxKxhxP.sharding.addressable_devices
    device = min(addressable, key=lambda d: d.id)
    N, P = key_LxNxKxhxP.shape[1], key_LxNxKxhxP.shape[4]
    name = f"{N}x{n} responses of {P}+{decoding.max_tokens} tokens"
    name += (
        " truncated" * _truncates(decoding)
        + " forked" * (decoding.sampling.forks is not None)
        + f", {jnp.dtype(model.dtype)}, {shards} of {device.device_kind}"
    )
    if name not in widths:
        stats = device.memory_stats() if device.platform != "cpu" else None
        mine = stats["bytes_limit"] - stats["bytes_in_use"] if stats and "bytes_limit" in stats else -1
        free = min(distributed.collect(mine))  # all processes have to decide alike
        if free < 0:
            return N * n
        heads = key_LxNxKxhxP.sharding.shard_shape(key_LxNxKxhxP.shape)[2]
        widths[name] = width_that_fits(model, SHARE * free, N, P, n, decoding, heads, shards)
    return widths[name]


def width_that_fits(
    model: Transformer, free: float, N: int, P: int, n: int, decoding: Decoding, heads: int, shards: int
) -> int:
    """All responses, or S times the largest power of two for which `free` bytes per device suffice; at least S.

    Args:
        model: the decoder.
        free: bytes of each device.
        N: prompts.
        P: prompt positions.
        n: samples per prompt.
        decoding: how tokens are drawn.
        heads: key/value heads that a device holds of a slot.
        shards: S.
    """
    if N * n // shards * slot_bytes(model, P, n, decoding, heads) <= free:
        return N * n
    room = int(free // slot_bytes(model, P, 1, decoding, heads))
    return shards * (1 << max(0, room.bit_length() - 1))


def slot_bytes(model: Transformer, P: int, shared: int, decoding: Decoding, heads: int) -> float:
    """Bytes per slot on its device when slots take most, during a step or while they move.

    Slots move in three ways: into the same shapes, in place; into half as many; and into a longer cache. In the last
    two, the old slots and the new ones are held together.

    Args:
        model: the decoder.
        P: prompt positions.
        shared: slots that share a prompt's keys, until slots move.
        decoding: how tokens are drawn.
        heads: key/value heads that a device holds of a slot.
    """
    c: ModelConfig = model.cfg
    token = 2 * c.n_layers * heads * c.head_dim * jnp.dtype(model.dtype).itemsize
    full = places(decoding.max_tokens)
    before = lengths(decoding.max_tokens)[-2:][0]
    prefix = P / shared
    more = TRUNCATED_LOGITS * _truncates(decoding)
    halved = prefix + full + (P + full) / 2
    longer = 2 * prefix + full + (before if before < full else 0)
    moves = max(halved, longer) * token * (1 + 1 / c.n_layers) + 4 * c.vocab_size * (ADMIT_LOGITS + more)
    scores = 4 * c.n_heads * (P + full) * STEP_SCORES
    steps = (prefix + full) * token + 4 * c.vocab_size * (STEP_LOGITS + more) + scores
    return max(moves, steps)


def _truncates(decoding: Decoding) -> bool:
    sampling = decoding.sampling
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1)
