"""Rollouts by continuous batching: responses of unequal length in slots that are never empty for long.

Shapes: N prompts, P prompt positions, n samples a prompt, B = N·n responses, T response positions, W slots.

A compiled chunk of steps runs; then what has ended leaves, what waits takes its place, or, where nothing waits, the
slots close ranks into half as many. The cache grows by doubling as responses do. Shapes are few (the slots halved, the
cache doubled), so that after the first rollouts nothing is compiled any more, and which one is next hangs on the
responses alone: a rollout is a function of (parameters, prompts, key), and several processes, which all see every
response, decide the same.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model import decode
from entropy_rl.model.transformer import ModelConfig, Transformer
from entropy_rl.runtime import distributed
from entropy_rl.sampling import slots as sampler

CHUNK = 16  # steps between two looks
ROOM = 32  # places of the cache, at first
EVEN = 16  # they come in multiples of this: products over an odd number of places are slower

_read = jax.jit(sampler.read_prompts, static_argnames=("model", "n"))
_admit = jax.jit(sampler.admit, static_argnames=("model", "n", "shared", "room", "how"))
_ready: Callable[..., decode.DecodeWeights] = jax.jit(decode.decode_weights, static_argnames=("model", "places"))
_advance = jax.jit(sampler.advance, static_argnames=("model", "steps", "how"), donate_argnames="slots")


class Watch(NamedTuple):
    """What a caller does while responses are made.

    Attributes:
      stop: (response number, its tokens so far) -> how many of them to keep, or None to go on.
      done: (numbers of the responses that have just ended, the rollout so far) -> None.
    """

    stop: Callable[[int, np.ndarray], int | None] | None = None
    done: Callable[[list[int], sampler.Rollout], None] | None = None


class Layout(NamedTuple):
    """Where a rollout lies, which may be elsewhere than training does.

    Attributes:
      shards: the parts of the mesh that have slots of their own; divides prompts and slots.
      prompts: puts prompts where they are read, from host arrays that are the same on every process.
      slots: the same for what hangs on slots.
      ready: (model, params, places=…) -> the weights as the steps take them, where they are to lie.
      move: prompts that were read -> where slots take them from.
      moved: (seconds, weights) -> None, told what both took.
      on_mesh: the context in which slots are made.
    """

    shards: int = 1
    prompts: Callable[[Any], Any] = jnp.asarray
    slots: Callable[[Any], Any] = jnp.asarray
    ready: Callable[..., decode.DecodeWeights] = _ready
    move: Callable[[sampler.Prompts], sampler.Prompts] = lambda prompts: prompts
    moved: Callable[[float, decode.DecodeWeights], None] = lambda seconds, weights: None
    on_mesh: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


NOBODY, LOCAL = Watch(), Layout()


def sample(
    model: Transformer,
    params,
    prompt_NxP,
    prompt_mask_NxP,
    uid_N,
    key,
    *,
    n: int,
    how: sampler.How,
    slots: int = 0,
    layout: Layout = LOCAL,
    watch: Watch = NOBODY,
    chunk: int = CHUNK,
) -> sampler.Rollout:
    """n responses to each left-padded prompt, prompt by prompt, as arrays on the host.

    Args:
      model, params: the decoder and its parameters.
      prompt_NxP, prompt_mask_NxP: i32, padded on the left.
      uid_N: u32, what the randomness of a prompt hangs on.
      key: the step's key.
      n: samples a prompt.
      how: sampling, where a response is cut, what ends it.
      slots: how many responses are made at a time; 0: as many as memory has room for (`slots_that_fit`).
      layout: where the prompts, the weights and the slots lie.
      watch: the caller's stops and what it does with responses as they end.
      chunk: steps between two looks.
    """
    N, P = np.shape(prompt_NxP)
    B, T = N * n, how.max_tokens
    out = _nothing(B, T)
    if not B:
        return out
    asked = map(layout.prompts, (prompt_NxP, prompt_mask_NxP, uid_N))
    prompts = jax.block_until_ready(_read(model, params, *asked, key, n=n))
    began = time.monotonic()
    weights = layout.ready(model, params, places=P + T)
    with layout.on_mesh():
        # what is free is told, and what was moved is timed, once the weights and prompts lie where they will
        weights, prompts = jax.block_until_ready((weights, layout.move(prompts)))
        layout.moved(time.monotonic() - began, weights)
        if not slots:
            slots = slots_that_fit(model, prompts.prefix.key, P, B, T, layout.shards)
        _decode(model, weights, prompts, out, n=n, how=how, slots=slots, layout=layout, watch=watch, chunk=chunk)
    return out


def _decode(model, weights, prompts, out: sampler.Rollout, *, n, how, slots, layout: Layout, watch, chunk) -> None:
    """All responses to the prompts, written to `out`; the rest as in `sample`."""
    (B, T), shards, place = out.tokens.shape, layout.shards, layout.slots
    width = min(slots, B)
    if width < B:
        width = max(shards, width // shards * shards)
    admit = functools.partial(_admit, model, weights, prompts, n=n, how=how)
    most = places(T)
    room = min(ROOM, most)
    # Each shard makes the responses to its own prompts in slots of its own, so that no cache crosses the mesh: shard s
    # has slots s·w … (s+1)·w − 1, and of its `each` responses the first `waiting` have begun.
    w, each = width // shards, B // shards
    first_S, waiting_S = np.arange(shards) * each, np.full(shards, w)
    rows = (first_S[:, None] + np.arange(w)).ravel()
    shared = n if width == B else 1
    state: sampler.Slots
    state, drawn = admit(None, place(rows), place(rows), shared=shared, room=room)
    alive = np.ones(width, bool)
    age = np.zeros(width, np.int64)
    while True:
        alive = _record(out, rows, age, alive, distributed.fetch(drawn), how, watch)
        left_S = each - waiting_S
        if not alive.any() and not left_S.any():
            return
        # what is next: fresh responses in free slots, else fewer slots; a larger cache where this one would not do
        free_S = w - alive.reshape(shards, w).sum(axis=1)
        fresh_S = np.minimum(free_S, left_S) if free_S.sum() >= max(1, len(rows) // 8) else np.zeros_like(left_S)
        fewer = w if left_S.any() else _halve(w, w - free_S.min())
        larger = room
        while larger < most and age[alive].max(initial=0) - 1 + chunk > larger:
            larger = min(2 * larger, most)
        if fresh_S.any() or fewer < w or larger > room:
            shared = shared if fewer == w and not fresh_S.any() else 1
            keep, begin = _places(alive, shards, fewer, fresh_S)
            at, there = np.minimum(keep, len(rows) - 1), keep < len(rows)
            keep[begin] = len(rows)
            rows, age, alive = (np.where(there, x[at], nobody) for x, nobody in ((rows, -1), (age, 0), (alive, False)))
            rows[begin] = np.concatenate([a + np.arange(k) for a, k in zip(first_S + waiting_S, fresh_S)])
            age[begin], alive[begin] = 0, False
            w, room, waiting_S = fewer, larger, waiting_S + fresh_S
            state, drawn = admit(state, place(keep), place(rows), shared=shared, room=room)
            if len(begin):
                begun = np.isin(np.arange(len(rows)), begin)
                alive[begin] = _record(out, rows, age, begun, distributed.fetch(drawn), how, watch)[begin]
        state, drawn = _advance(model, weights, state, place(alive), steps=min(chunk, max(T - 1, 1)), how=how)


def places(T: int) -> int:
    """Places of the cache for responses of T tokens, the last of which is never fed."""
    return -(-max(T - 1, 1) // EVEN) * EVEN


def _nothing(B: int, T: int) -> sampler.Rollout:
    tokens, values = np.zeros((B, T), np.int32), np.zeros((B, T), np.float32)
    return sampler.Rollout(tokens, values, values.copy(), tokens.copy(), np.zeros(B, bool))


def _halve(width: int, living: int) -> int:
    while width % 2 == 0 and width // 2 >= living:
        width //= 2
    return width


def _places(alive, shards: int, fewer: int, fresh_S) -> tuple[np.ndarray, np.ndarray]:
    """For each new slot, `fewer` a shard, the old one that moves in (past the end: nobody), and those that begin."""
    of_shard = alive.reshape(shards, -1)
    w = of_shard.shape[1]
    keep = np.full((shards, fewer), len(alive))
    begin = []
    for s, lives in enumerate(of_shard):
        # the living first where ranks close, else everyone in their place
        stay = np.flatnonzero(lives) if fewer < w else np.arange(w)
        keep[s, : len(stay)] = s * w + stay
        free = np.flatnonzero(~lives) if fewer == w else np.arange(len(stay), fewer)
        begin.append(s * fewer + free[: fresh_S[s]])
    return keep.ravel(), np.concatenate(begin)


def _record(out: sampler.Rollout, rows, age, alive, drawn: sampler.Drawn, how: sampler.How, watch: Watch):
    """Writes what was drawn to its rows, moves the ages on in place; bool[W], who goes on."""
    went = alive.copy()
    mask = np.asarray(drawn.mask) > 0
    slot, at = np.nonzero(mask & alive[:, None])
    for x, new in zip(out[:4], drawn, strict=True):
        x[rows[slot], age[slot] + at] = np.asarray(new)[slot, at]
    age += np.where(alive, mask.sum(axis=1), 0)
    last = out.tokens[rows, np.maximum(age - 1, 0)]
    ended = alive & np.isin(last, how.eos_ids) & (age > 0)
    out.finished[rows[ended]] = True
    alive = alive & ~ended & (age < how.max_tokens)
    if watch.stop:
        for w in np.flatnonzero(went):  # those with an end of their own too: the stop may have come before it
            if (kept := watch.stop(int(rows[w]), out.tokens[rows[w], : age[w]])) is not None:
                for x in out[:4]:
                    x[rows[w], kept:] = 0
                out.finished[rows[w]], alive[w] = True, False
    if watch.done and len(over := rows[went & ~alive]):
        watch.done(over.tolist(), out)
    return alive


def slots_that_fit(model: Transformer, key_LxNxKxhxP: Any, P: int, B: int, T: int, shards: int) -> int:
    """Responses whose keys and values fit into nine tenths of the memory that the first device has left; B on a CPU.

    The prompts' keys tell the device, and how many heads of a slot it holds.
    """
    device = min(key_LxNxKxhxP.sharding.addressable_devices, key=lambda d: d.id)
    stats = device.memory_stats() if device.platform != "cpu" else None
    mine = stats["bytes_limit"] - stats["bytes_in_use"] if stats and "bytes_limit" in stats else -1
    free = min(distributed.collect(mine))  # all processes have to decode the same
    if free < 0:
        return B
    c: ModelConfig = model.cfg
    heads = key_LxNxKxhxP.sharding.shard_shape(key_LxNxKxhxP.shape)[2]
    token = 2 * c.n_layers * heads * c.head_dim * jnp.dtype(model.dtype).itemsize
    left = 0.9 * free * shards
    # twice: while slots move, both copies are there
    return int(np.clip(left // (2 * (P + T) * token), shards, B))


def stopper(tokenizer, stops: Sequence[str]) -> Callable[[int, np.ndarray], int | None] | None:
    """`Watch.stop` for stop strings: the tokens up to the one that completes the first of them."""
    if not stops:
        return None

    def stop(_, tokens: np.ndarray) -> int | None:
        text = lambda count: tokenizer.decode(tokens[:count], skip_special_tokens=True)
        if not any(s in text(len(tokens)) for s in stops):
            return None
        return next(i for i in range(1, len(tokens) + 1) if any(s in text(i) for s in stops))

    return stop
