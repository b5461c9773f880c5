"""Sampling in pure functions: prompts are prefilled once, then responses are made in slots, a few steps at a time.

Shapes: N prompts, P prompt positions, n samples per prompt, B = N·n responses, T response positions, W slots,
V vocabulary. Nats.

Log-probability and entropy come from the logits that the token is drawn from, so neither costs an extra pass. A
response's random draws depend only on (key, prompt, sample, position), not on its slot or on the other slots.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_rl.model import decode, head
from entropy_rl.model.decode import KV
from entropy_rl.model.transformer import Params, Transformer
from entropy_rl.sampling.base import Decoding
from entropy_rl.sampling.draw import draw, row_keys

Array = jax.Array
STEPS = "decode_steps"  # the name of the loop over a chunk's steps: preflight counts how often it runs


class Prefilled(NamedTuple):
    """Prompts after their prefill.

    Attributes:
        prefix: their keys and values, N rows.
        hidden: [N, D], the hidden states that predict the first token of a response.
        length: i32[N], the prompts' tokens.
        keys: key[B], one for each response, see `row_keys`.
    """

    prefix: KV
    hidden: Array
    length: Array
    keys: Array


class Slots(NamedTuple):
    """W responses in the making.

    Attributes:
        prefix: the prompts' keys and values; W/N consecutive slots share a row.
        cache: the responses' keys and values.
        column: i32[], the steps written to the cache so far; the cache is written round and round.
        token: i32[W], the last token drawn, not fed yet.
        age: i32[W], tokens drawn.
        length: i32[W], the prompt's tokens.
        keys: key[W].
        alive: bool[W], the response continues.
    """

    prefix: KV
    cache: KV
    column: Array
    token: Array
    age: Array
    length: Array
    keys: Array
    alive: Array


class Drawn(NamedTuple):
    """The tokens of a few steps, as in `Rollout`: [W, steps]; a slot's tokens come first, masked once it stops."""

    tokens: Array
    logp: Array
    entropy: Array
    mask: Array


def read_prompts(
    model: Transformer, params: Params, prompt_NxP: Array, mask_NxP: Array, uid_N: Array, key: Array, *, n: int
) -> Prefilled:
    """One prefill per prompt, for n responses to each."""
    hidden, prefix = decode.prefill(model, params, prompt_NxP, mask_NxP)
    return Prefilled(prefix, hidden, jnp.sum(mask_NxP, axis=1), row_keys(key, uid_N, n))


def constrain(prompts: Prefilled) -> Prefilled:
    """Prompts sharded by the mesh and rules in force: rows over the batch's axes, heads over the heads' axis."""

    def rows(x: Array) -> Array:
        return nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))

    return Prefilled(decode.constrain(prompts.prefix), *map(rows, prompts[1:]))


def admit(
    model: Transformer,
    weights: decode.DecodeWeights,
    prompts: Prefilled,
    slots: Slots | None,
    keep_W: Array,
    row_W: Array,
    *,
    n: int,
    shared: int,
    cache_len: int,
    decoding: Decoding,
) -> tuple[Slots, Drawn]:
    """New slots: some continue old responses, perhaps in another slot; the others begin one and draw its first token.

    Args:
        model: the decoder.
        weights: its weights, see `decode.decode_weights`.
        prompts: all of them.
        slots: the slots before; None at the beginning.
        keep_W: i32, for each new slot the old slot that it continues; an index past the end begins a response.
        row_W: i32, the response that each slot makes, numbered prompt by prompt; −1: none.
        n: responses per prompt.
        shared: consecutive slots that share one prompt.
        cache_len: places in the cache, at least as many as before.
        decoding: how tokens are drawn and what ends a response.

    Returns:
        (slots, the tokens drawn [W, 1], masked in slots that continue).
    """
    prompt_W = jnp.maximum(row_W, 0) // n
    of_W = prompt_W[::shared]
    logits = jnp.repeat(_logits(weights, jnp.take(prompts.hidden, of_W, axis=0)), shared, axis=0)
    keys = prompts.keys[jnp.maximum(row_W, 0)]
    age = jnp.zeros_like(row_W)
    fresh = row_W >= 0
    if slots is None:
        cache = decode.empty(model, len(row_W), cache_len)
        column, token = jnp.zeros((), jnp.int32), jnp.zeros_like(row_W)
        alive = jnp.zeros(len(row_W), bool)
    else:
        old = slots.cache.segment.shape[1]
        fresh &= keep_W >= len(slots.token)
        token, age, alive = (
            jnp.take(x, keep_W, axis=0, mode="fill", fill_value=0) for x in (slots.token, slots.age, slots.alive)
        )
        cache = decode.move(slots.cache, keep_W, slots.column % old, cache_len)
        column = jnp.asarray(old if cache_len > old else 0, jnp.int32)
    first, drawn = _draw(logits, keys, age, fresh, decoding)
    prefix = decode.unstack(model, decode.take(prompts.prefix, of_W))
    return Slots(
        prefix,
        cache,
        column,
        jnp.where(fresh, first, token),
        age + fresh,
        prompts.length[prompt_W],
        keys,
        jnp.where(fresh, ~_ends(first, decoding) & (decoding.max_tokens > 1), alive),
    ), Drawn(*(x[:, None] for x in drawn))


def advance(
    model: Transformer,
    weights: decode.DecodeWeights,
    slots: Slots,
    alive_W: Array,
    *,
    steps: int,
    decoding: Decoding,
) -> tuple[Slots, Drawn]:
    """Up to `steps` more tokens for every slot that is alive here and in `alive_W`; fewer once all have stopped."""
    W, cache_len = len(slots.token), slots.cache.segment.shape[1]
    zeros = jnp.zeros((W, steps), jnp.float32)
    drawn = Drawn(zeros.astype(jnp.int32), zeros, zeros, zeros.astype(jnp.int32))

    def step(carry: tuple[Any, Slots, Drawn]) -> tuple[Any, Slots, Drawn]:
        i, s, drawn = carry
        hidden, cache = decode.step(
            model, weights, s.token, s.length + s.age - 1, s.alive, s.prefix, s.cache, s.column % cache_len
        )
        token, columns = _draw(_logits(weights, hidden), s.keys, s.age, s.alive, decoding)
        drawn = Drawn(*(x.at[:, i].set(c) for x, c in zip(drawn, columns, strict=True)))
        alive = s.alive & ~_ends(token, decoding) & (s.age + 1 < decoding.max_tokens)
        s = s._replace(cache=cache, column=s.column + 1, token=token, age=s.age + s.alive, alive=alive)
        return i + 1, s, drawn

    def more(carry: tuple[Any, Slots, Drawn]) -> Array:
        i, s, _ = carry
        return (i < steps) & jnp.any(s.alive)

    slots = slots._replace(alive=slots.alive & alive_W)
    with jax.named_scope(STEPS):
        _, slots, drawn = jax.lax.while_loop(more, step, (0, slots, drawn))
    return slots, drawn


def _logits(weights: decode.DecodeWeights, hidden_WxD: Array) -> Array:
    head_VxD = weights.embed if weights.head is None else weights.head
    hidden_WxD, precision = hidden_WxD.astype(head_VxD.dtype), head.exactly(head_VxD.dtype)
    return jnp.dot(hidden_WxD, head_VxD.T, precision=precision, preferred_element_type=jnp.float32)


def _ends(token_W: Array, decoding: Decoding) -> Array:
    return jnp.isin(token_W, jnp.array(decoding.eos_ids, jnp.int32))


def _draw(
    logits_WxV: Array, keys_W: Array, age_W: Array, alive_W: Array, decoding: Decoding
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """(token, (token, logp, entropy, mask)), each [W]; 0 in slots that are not alive."""
    keys = jax.vmap(jax.random.fold_in)(keys_W, age_W)
    token, logp, entropy = draw(logits_WxV, keys, decoding.sampling, decoding.ids)
    token = jnp.where(alive_W, token, 0)
    return token, (token, logp * alive_W, entropy * alive_W, alive_W.astype(jnp.int32))
