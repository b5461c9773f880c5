"""Sampling, in pure functions: prompts are read once, responses are made in slots, some steps at a time.

Shapes: N prompts, P prompt positions, n samples a prompt, B = N·n responses, T response positions, W slots,
V vocabulary. Nats.

Log-probability and entropy come from the logits that the token is drawn from, so neither costs a pass. What a response
draws hangs on (key, prompt, sample, position), not on its slot or on what stands in the others.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from entropy_rl.model import decode, head
from entropy_rl.model.transformer import KV, Transformer

Array = jax.Array
STEPS = "decode_steps"  # the name of the loop over a chunk's steps: preflight counts how often it runs


class Rollout(NamedTuple):
    """Sampled responses; masked positions are exactly 0.

    Attributes:
      tokens: i32[B, T], the end-of-sequence token included.
      logp: f32[B, T], log π(token) of the untruncated distribution at the sampling temperature.
      entropy: f32[B, T], of that distribution.
      mask: i32[B, T], 1 on response tokens.
      finished: bool[B], the response ended by itself and was not cut at T.
    """

    tokens: Any
    logp: Any
    entropy: Any
    mask: Any
    finished: Any


class Sampling(NamedTuple):
    """How tokens are drawn. `temperature` 0 is greedy, its logp and entropy those at temperature 1."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def check(self):
        """Raises ValueError, naming the key of the config, where a value makes no distribution."""
        if self.temperature < 0:
            raise ValueError(f"rollout.temperature={self.temperature} must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout.top_p={self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"rollout.top_k={self.top_k} must be 0 (off) or above")
        return self


def row_keys(key: Array, uid_N: Array, n: int) -> Array:
    """key[B]: one key for each (prompt, sample), whatever row it stands in."""
    one = lambda uid, sample: jax.random.fold_in(jax.random.fold_in(key, uid), sample)
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(uid_N, jnp.arange(n, dtype=jnp.uint32)).reshape(-1)


def draw(logits_BxV: Array, keys_B: Array, sampling: Sampling) -> Array:
    """i32[B]: a token for each row.

    The draw inverts the distribution function in two levels, a block of the vocabulary and a token of the
    block, each with its own uniform: Gumbel noise over a large vocabulary costs twenty times as much on a CPU,
    and one float32 uniform alone cannot tell tokens below 1e-7 apart.
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
    """i32[B]: the first index whose cumulated p exceeds u·total; never one with p = 0."""
    total = jnp.cumsum(p_BxW, axis=-1)
    index = jnp.sum(total <= u_B[:, None] * total[:, -1:], axis=-1)
    last = p_BxW.shape[-1] - 1 - jnp.argmax(p_BxW[:, ::-1] > 0, axis=-1)  # u·total may round up to total
    return jnp.minimum(index, last)


def _nucleus(p_BxV: Array, sampling: Sampling) -> Array:
    """bool[B, V]: the top-k tokens, of these the smallest set that holds top_p of their probability."""
    k = min(sampling.top_k or p_BxV.shape[-1], p_BxV.shape[-1])
    top_BxK = jax.lax.top_k(p_BxV, k)[0]
    before = jnp.cumsum(top_BxK, axis=-1) - top_BxK
    inside = before < sampling.top_p * jnp.sum(top_BxK, axis=-1, keepdims=True)
    floor_B = jnp.min(jnp.where(inside, top_BxK, jnp.inf), axis=-1, keepdims=True)
    return p_BxV >= floor_B


class Prompts(NamedTuple):
    """Prompts that were read.

    Attributes:
      prefix: their keys and values, N rows.
      hidden: [N, D], what predicts the first token of a response.
      length: i32[N].
      keys: key[B], one for each response, see `row_keys`.
    """

    prefix: KV
    hidden: Array
    length: Array
    keys: Array


class Slots(NamedTuple):
    """W responses that are being made.

    Attributes:
      prefix: the prompts' keys, a row shared by W/N consecutive slots.
      cache: the responses' keys.
      column: i32[], how many steps have been written to the cache, round and round.
      token: i32[W], drawn last and not fed yet.
      age: i32[W], tokens drawn.
      length: i32[W], of the prompt.
      keys: key[W].
      alive: bool[W].
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
    """Tokens of some steps, as in `Rollout`: [W, steps]; a slot's are its first ones, masked from where it stopped."""

    tokens: Any
    logp: Any
    entropy: Any
    mask: Any


class How(NamedTuple):
    """What decides a response: temperature and truncation, where it is cut, and the tokens that end it."""

    sampling: Sampling
    max_tokens: int
    eos_ids: tuple[int, ...]


def read_prompts(model: Transformer, params, prompt_NxP, mask_NxP, uid_N, key, *, n: int) -> Prompts:
    """One prefill a prompt, for n responses to each."""
    hidden, prefix = decode.prefill(model, params, prompt_NxP, mask_NxP)
    return Prompts(prefix, hidden, jnp.sum(mask_NxP, axis=1), row_keys(key, uid_N, n))


def constrain(prompts: Prompts) -> Prompts:
    """Prompts where the mesh and the rules around it have them: rows over the batch's axes, heads over the heads'."""
    rows = lambda x: nn.with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1)))
    return Prompts(decode.constrain(prompts.prefix), *map(rows, prompts[1:]))


def admit(
    model: Transformer,
    ready: decode.Ready,
    prompts: Prompts,
    slots: Slots | None,
    keep_W: Array,
    row_W: Array,
    *,
    n: int,
    shared: int,
    room: int,
    how: How,
) -> tuple[Slots, Drawn]:
    """New slots: some go on as they were, in other places; the rest begin a response and draw its first token.

    Args:
      model, ready: the decoder, see `decode.ready`.
      prompts: all of them.
      slots: as they were; None at the beginning.
      keep_W: i32, for each new slot the old one that it goes on with, or an index past the end: it begins.
      row_W: i32, which response each slot makes, of the n to each prompt in order; −1: none.
      n: responses a prompt.
      shared: so many consecutive slots have one prompt.
      room: places of the cache, at least as many as before.
      how: see `How`.

    Returns:
      (slots, the tokens drawn [W, 1], masked where a slot goes on).
    """
    prompt_W = jnp.maximum(row_W, 0) // n
    of_W = prompt_W[::shared]
    logits = jnp.repeat(_logits(ready, jnp.take(prompts.hidden, of_W, axis=0)), shared, axis=0)
    keys = prompts.keys[jnp.maximum(row_W, 0)]
    age = jnp.zeros_like(row_W)
    fresh = row_W >= 0
    if slots is None:
        cache, column, token = decode.empty(model, len(row_W), room), jnp.zeros((), jnp.int32), jnp.zeros_like(row_W)
        alive = jnp.zeros(len(row_W), bool)
    else:
        old = slots.cache.segment.shape[1]
        fresh &= keep_W >= len(slots.token)
        kept = lambda x: jnp.take(x, keep_W, axis=0, mode="fill", fill_value=0)
        token, age, alive = kept(slots.token), kept(slots.age), kept(slots.alive)
        cache = decode.grow(decode.take(slots.cache, keep_W), slots.column % old, room)
        column = jnp.asarray(old if room > old else 0, jnp.int32)
    first, drawn = _draw(logits, keys, age, fresh, how)
    prefix = decode.unstack(model, decode.take(prompts.prefix, of_W))
    return Slots(
        prefix,
        cache,
        column,
        jnp.where(fresh, first, token),
        age + fresh,
        prompts.length[prompt_W],
        keys,
        jnp.where(fresh, ~_ends(first, how) & (how.max_tokens > 1), alive),
    ), Drawn(*(x[:, None] for x in drawn))


def advance(
    model: Transformer, ready: decode.Ready, slots: Slots, alive_W, *, steps: int, how: How
) -> tuple[Slots, Drawn]:
    """So many tokens more for every slot that is alive here and in `alive_W`; fewer when all have stopped."""
    W, room = len(slots.token), slots.cache.segment.shape[1]
    zeros = jnp.zeros((W, steps), jnp.float32)
    drawn = Drawn(zeros.astype(jnp.int32), zeros, zeros, zeros.astype(jnp.int32))

    def step(carry):
        i, s, drawn = carry
        hidden, cache = decode.step(
            model, ready, s.token, s.length + s.age - 1, s.alive, s.prefix, s.cache, s.column % room
        )
        token, columns = _draw(_logits(ready, hidden), s.keys, s.age, s.alive, how)
        drawn = Drawn(*(x.at[:, i].set(c) for x, c in zip(drawn, columns, strict=True)))
        alive = s.alive & ~_ends(token, how) & (s.age + 1 < how.max_tokens)
        s = s._replace(cache=cache, column=s.column + 1, token=token, age=s.age + s.alive, alive=alive)
        return i + 1, s, drawn

    more = lambda carry: (carry[0] < steps) & jnp.any(carry[1].alive)
    slots = slots._replace(alive=slots.alive & alive_W)
    with jax.named_scope(STEPS):
        _, slots, drawn = jax.lax.while_loop(more, step, (0, slots, drawn))
    return slots, drawn


def _logits(ready: decode.Ready, hidden_WxD) -> Array:
    head_VxD = ready.embed if ready.head is None else ready.head
    return jnp.dot(hidden_WxD, head_VxD.T, preferred_element_type=jnp.float32)


def _ends(token_W: Array, how: How) -> Array:
    return jnp.isin(token_W, jnp.array(how.eos_ids, jnp.int32))


def _draw(logits_WxV, keys_W, age_W, alive_W, how: How) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """(token, (token, logp, entropy, mask)), each [W]; 0 where nothing is alive."""
    token = draw(logits_WxV, jax.vmap(jax.random.fold_in)(keys_W, age_W), how.sampling)
    token = jnp.where(alive_W, token, 0)
    logp, entropy = head.from_logits(logits_WxV, token, how.sampling.temperature or 1.0)
    return token, (token, logp * alive_W, entropy * alive_W, alive_W.astype(jnp.int32))


def rollout(
    model: Transformer,
    params,
    prompt_NxP: Array,
    prompt_mask_NxP: Array,
    uid_N: Array,
    key: Array,
    *,
    n: int,
    max_tokens: int,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
) -> Rollout:
    """Samples n responses for each left-padded prompt, all at once. Pure; jit it with keyword arguments static.

    `rollouts.sample` gives the same responses in less time where their lengths differ.

    Args:
      model, params: the decoder and its parameters.
      prompt_NxP, prompt_mask_NxP: i32, padded on the left.
      uid_N: u32, what the randomness of a prompt hangs on (not its row).
      key: the step's key.
      n: samples a prompt; rows come out prompt by prompt.
      max_tokens: T.
      sampling: temperature, top-p, top-k.
      eos_ids: tokens that end a response.
    """
    how, rows = How(sampling, max_tokens, eos_ids), jnp.arange(prompt_NxP.shape[0] * n)
    prompts = read_prompts(model, params, prompt_NxP, prompt_mask_NxP, uid_N, key, n=n)
    room = max(max_tokens - 1, 1)
    ready = decode.ready(model, params, places=prompt_NxP.shape[1] + max_tokens)
    slots, first = admit(model, ready, prompts, None, rows, rows, n=n, shared=n, room=room, how=how)
    _, rest = advance(model, ready, slots, slots.alive, steps=max_tokens - 1, how=how)
    drawn = Drawn(*(jnp.concatenate(x, axis=1) for x in zip(first, rest, strict=True)))
    return Rollout(*drawn, jnp.any(_ends(drawn.tokens, how) & (drawn.mask > 0), axis=1))
