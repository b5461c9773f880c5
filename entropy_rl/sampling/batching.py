"""Continuous batching: responses of unequal length in slots that are seldom empty.

Shapes: N prompts, P prompt positions, n samples per prompt, B = N·n responses, T response positions, W slots,
S shards, each with W/S slots that make the responses to its own prompts.

A compiled chunk of steps runs. Then finished responses leave their slots, and waiting ones take their place; if none
waits, the living ones move together into half as many slots. The cache grows by doubling as responses grow. There are
few shapes (the slots halved, the cache doubled), so nothing is compiled after the first rollouts. The next shape
depends on the responses alone: a rollout is a function of (parameters, prompts, key), and several processes, each of
which sees every response, decide alike.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model import decode
from entropy_rl.model.transformer import Params, Transformer
from entropy_rl.runtime import distributed, preemption
from entropy_rl.sampling import slots as slots_lib
from entropy_rl.sampling.base import Decoding, Done, Prompts, Rollout, Stop
from entropy_rl.sampling.room import CHUNK, choose, lengths

_read_prompts = jax.jit(slots_lib.read_prompts, static_argnames=("model", "n"))
_ADMIT = "model", "n", "shared", "cache_len", "decoding"
_admit = jax.jit(slots_lib.admit, static_argnames=_ADMIT)
_refill = jax.jit(slots_lib.admit, static_argnames=_ADMIT, donate_argnames="slots")  # into slots of the same shapes
_weights: Callable[..., decode.DecodeWeights] = jax.jit(decode.decode_weights, static_argnames=("model", "places"))
_advance = jax.jit(slots_lib.advance, static_argnames=("model", "steps", "decoding"), donate_argnames="slots")


class Watch(NamedTuple):
    """What a caller does while responses are made.

    Attributes:
        stop: (a response's tokens so far, how many of them it has seen) -> how many to keep, or None to continue.
        done: see `base.Done`.
    """

    stop: Stop | None = None
    done: Done | None = None


def _same(x: Any) -> Any:
    return x


def _ignore(seconds: float, weights: decode.DecodeWeights) -> None:
    pass


class Placement(NamedTuple):
    """Where the parts of a rollout are placed; sampling may use another layout than training.

    Attributes:
        shards: S, the parts of the mesh that have their own slots; divides prompts and slots.
        put_prompts: places prompts for the prefill, from host arrays that are the same on every process.
        put_slots: the same for arrays with one entry per slot.
        put_key: the same for the key.
        weights: (model, params, places=…) -> the weights that the steps read, placed for them.
        move: prefilled prompts -> the same, placed for the slots.
        on_moved: called with the seconds that placing weights and prompts took, and the weights.
        on_mesh: the context in which the slots' programs run.
    """

    shards: int = 1
    put_prompts: Callable[[jax.Array | np.ndarray], jax.Array] = jnp.asarray
    put_slots: Callable[[jax.Array | np.ndarray], jax.Array] = jnp.asarray
    put_key: Callable[[jax.Array], jax.Array] = _same
    weights: Callable[..., decode.DecodeWeights] = _weights
    move: Callable[[slots_lib.Prefilled], slots_lib.Prefilled] = _same
    on_moved: Callable[[float, decode.DecodeWeights], None] = _ignore
    on_mesh: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


UNWATCHED, LOCAL = Watch(), Placement()


def sample(
    model: Transformer,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    *,
    n: int,
    decoding: Decoding,
    slots: int = 0,
    widths: dict[str, int] | None = None,
    placement: Placement = LOCAL,
    watch: Watch = UNWATCHED,
    chunk: int = CHUNK,
) -> Rollout:
    """Makes n responses to each left-padded prompt, prompt by prompt, as arrays on the host.

    Args:
        model: the decoder.
        params: its parameters.
        prompts: the prompts.
        key: the step's key.
        n: samples per prompt.
        decoding: how tokens are drawn and what ends a response.
        slots: responses made at a time; 0: as many as memory has room for (`room.choose`).
        widths: the widths that were chosen for slots=0 before, and are kept; None: there are none.
        placement: where prompts, weights and slots are placed.
        watch: the caller's stops, and its use of responses that have ended.
        chunk: steps between two looks at the slots.
    """
    N, P = np.shape(prompts.tokens_NxP)
    B, T = N * n, decoding.max_tokens
    out = Rollout.empty(B, T)
    if not B:
        return out
    prefilled = jax.block_until_ready(
        _read_prompts(model, params, *map(placement.put_prompts, prompts), placement.put_key(key), n=n)
    )
    began = time.monotonic()
    weights = placement.weights(model, params, places=P + T)
    with placement.on_mesh():
        # Free memory is read, and the move is timed, only once weights and prompts have arrived.
        weights, prefilled = jax.block_until_ready((weights, placement.move(prefilled)))
        placement.on_moved(time.monotonic() - began, weights)
        if not slots:
            slots = choose(model, prefilled.prefix.key, n, decoding, placement.shards, {} if widths is None else widths)
        _decode(model, weights, prefilled, out, n, decoding, slots, placement, watch, chunk)
    return out


def _decode(
    model: Transformer,
    weights: decode.DecodeWeights,
    prompts: slots_lib.Prefilled,
    out: Rollout,
    n: int,
    decoding: Decoding,
    slots: int,
    placement: Placement,
    watch: Watch,
    chunk: int,
) -> None:
    """Writes all responses to `out`; arguments as in `sample`."""
    (B, T), shards, place = out.tokens.shape, placement.shards, placement.put_slots
    width = min(slots, B)
    if width < B:
        width = max(shards, width // shards * shards)
    admit = functools.partial(_admit, model, weights, prompts, n=n, decoding=decoding)
    refill = functools.partial(_refill, model, weights, prompts, n=n, decoding=decoding)
    cache_len, *longer = lengths(T)
    # Each shard makes the responses to its own prompts in its own slots, so that no cache crosses the mesh: shard s
    # has slots s·w … (s+1)·w − 1, and of its `each` responses the first `begun_S` have begun.
    w, each = width // shards, B // shards
    first_S, begun_S = np.arange(shards) * each, np.full(shards, w)
    rows = (first_S[:, None] + np.arange(w)).ravel()
    shared = n if width == B else 1
    state: slots_lib.Slots
    state, drawn = admit(None, place(rows), place(rows), shared=shared, cache_len=cache_len)
    alive = np.ones(width, bool)
    age = np.zeros(width, np.int64)
    while True:
        preemption.look()
        alive = _record(out, rows, age, alive, distributed.fetch(drawn), decoding, watch)
        left_S = each - begun_S
        if not alive.any() and not left_S.any():
            return
        # What comes next: new responses in free slots, or fewer slots; and a larger cache if this one is too small.
        free_S = w - alive.reshape(shards, w).sum(axis=1)
        fresh_S = np.minimum(free_S, left_S) if free_S.sum() >= max(1, len(rows) // 8) else np.zeros_like(left_S)
        fewer = w if left_S.any() else _halve(w, w - free_S.min())
        larger = cache_len
        while longer and age[alive].max(initial=0) - 1 + chunk > larger:
            larger = longer.pop(0)
        if fresh_S.any() or fewer < w or larger > cache_len:
            move = refill if fewer == w and larger == cache_len else admit
            shared = shared if fewer == w and not fresh_S.any() else 1
            keep, begin = _rearrange(alive, shards, fewer, fresh_S)
            at, there = np.minimum(keep, len(rows) - 1), keep < len(rows)
            keep[begin] = len(rows)
            rows, age, alive = (np.where(there, x[at], none) for x, none in ((rows, -1), (age, 0), (alive, False)))
            rows[begin] = np.concatenate([a + np.arange(k) for a, k in zip(first_S + begun_S, fresh_S)])
            age[begin], alive[begin] = 0, False
            w, cache_len, begun_S = fewer, larger, begun_S + fresh_S
            state, drawn = move(state, place(keep), place(rows), shared=shared, cache_len=cache_len)
            if len(begin):
                begun = np.isin(np.arange(len(rows)), begin)
                alive[begin] = _record(out, rows, age, begun, distributed.fetch(drawn), decoding, watch)[begin]
        state, drawn = _advance(model, weights, state, place(alive), steps=min(chunk, max(T - 1, 1)), decoding=decoding)


def _halve(width: int, living: int) -> int:
    while width > 1 and -(-width // 2) >= living:
        width = -(-width // 2)
    return width


def _rearrange(alive: np.ndarray, shards: int, fewer: int, fresh_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which old slot each new slot continues (past the end: none), `fewer` per shard; and the slots that begin."""
    of_shard = alive.reshape(shards, -1)
    w = of_shard.shape[1]
    keep = np.full((shards, fewer), len(alive))
    begin = []
    for s, lives in enumerate(of_shard):
        # with fewer slots the living come first; otherwise each stays in its place
        stay = np.flatnonzero(lives) if fewer < w else np.arange(w)
        keep[s, : len(stay)] = s * w + stay
        free = np.flatnonzero(~lives) if fewer == w else np.arange(len(stay), fewer)
        begin.append(s * fewer + free[: fresh_S[s]])
    return keep.ravel(), np.concatenate(begin)


def _record(
    out: Rollout,
    rows: np.ndarray,
    age: np.ndarray,
    alive: np.ndarray,
    drawn: slots_lib.Drawn,
    decoding: Decoding,
    watch: Watch,
) -> np.ndarray:
    """Writes what was drawn to its rows of `out` and advances `age`, in place; bool[W], the slots that continue."""
    went = alive.copy()
    mask = np.asarray(drawn.mask) > 0
    slot, at = np.nonzero(mask & alive[:, None])
    for x, new in zip(out[:4], drawn, strict=True):
        x[rows[slot], age[slot] + at] = np.asarray(new)[slot, at]
    seen = age.copy()
    age += np.where(alive, mask.sum(axis=1), 0)
    last = out.tokens[rows, np.maximum(age - 1, 0)]
    ended = alive & np.isin(last, decoding.eos_ids) & (age > 0)
    out.finished[rows[ended]] = True
    alive = alive & ~ended & (age < decoding.max_tokens)
    if watch.stop:
        for w in np.flatnonzero(went):  # those that ended too: the stop text may have come before the end
            if (kept := watch.stop(out.tokens[rows[w], : age[w]], seen[w])) is not None:
                for x in out[:4]:
                    x[rows[w], kept:] = 0
                out.finished[rows[w]], alive[w] = True, False
    if watch.done and len(over := rows[went & ~alive]):
        watch.done(over.tolist(), out)
    return alive
