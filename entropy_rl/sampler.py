"""The rollout: one prefill a prompt, its keys shared by the G samples, then decoding until all have stopped.

Shapes: N prompts, P prompt positions, G samples a prompt, B = N·G, T response positions, V vocabulary. Nats.

Log-probability and entropy come from the logits that the token is drawn from, so neither costs a pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from entropy_rl import head
from entropy_rl.model.transformer import KV, Transformer, empty_cache, head_weight, positions

Array = jax.Array


class Rollout(NamedTuple):
    """Sampled responses; masked positions are exactly 0.

    Attributes:
      tokens: i32[B, T], the end-of-sequence token included.
      logp: f32[B, T], log π(token) of the untruncated distribution at the sampling temperature.
      entropy: f32[B, T], of that distribution.
      mask: i32[B, T], 1 on response tokens.
      finished: bool[B], the response ended by itself and was not cut at T.
    """

    tokens: Array
    logp: Array
    entropy: Array
    mask: Array
    finished: Array


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
    """Samples n responses for each left-padded prompt. Pure; jit it with all keyword arguments static.

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
    B, T = prompt_NxP.shape[0] * n, max_tokens
    W_VxD = head_weight(params).astype(model.dtype)
    to_logits = lambda h: jnp.dot(h, W_VxD.T, preferred_element_type=jnp.float32)
    temperature = sampling.temperature or 1.0
    keys_B = row_keys(key, uid_N, n)
    ends = lambda token_B: jnp.isin(token_B, jnp.array(eos_ids, jnp.int32))

    hidden, prefix = model.apply({"params": params}, prompt_NxP, positions(prompt_mask_NxP), prompt_mask_NxP)
    logits_BxV = jnp.repeat(to_logits(hidden[:, -1]), n, axis=0)
    length_B = jnp.repeat(jnp.sum(prompt_mask_NxP, axis=1), n)
    zeros = jnp.zeros((B, T), jnp.float32)
    out = Rollout(zeros.astype(jnp.int32), zeros, zeros, zeros.astype(jnp.int32), jnp.zeros(B, bool))

    def emit(t, logits_BxV, out: Rollout) -> tuple[Array, Rollout]:
        token_B = draw(logits_BxV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, t), sampling)
        alive_B = ~out.finished
        token_B = jnp.where(alive_B, token_B, 0)
        logp_B, entropy_B = head.from_logits(logits_BxV, token_B, temperature)
        columns = token_B, logp_B * alive_B, entropy_B * alive_B, alive_B.astype(jnp.int32)
        tokens, logp, entropy, mask = (x.at[:, t].set(c) for x, c in zip(out[:4], columns, strict=True))
        return token_B, Rollout(tokens, logp, entropy, mask, out.finished | (alive_B & ends(token_B)))

    def step(carry):
        t, logits_BxV, cache, out = carry
        token_B, out = emit(t, logits_BxV, out)
        alive_Bx1 = (~out.finished).astype(jnp.int32)[:, None]
        hidden, cache = model.apply(
            {"params": params},
            token_B[:, None],
            (length_B + t)[:, None],
            alive_Bx1,
            prefix=prefix,
            cache=cache,
            index=t,
        )
        return t + 1, to_logits(hidden[:, 0]), cache, out

    # The last token is drawn but never fed back: the loop runs to T − 1, the last draw stands behind it.
    more = lambda carry: (carry[0] < T - 1) & ~jnp.all(carry[3].finished)
    cache: KV = empty_cache(model.cfg, B, max(T - 1, 1), model.dtype)
    t, logits_BxV, _, out = jax.lax.while_loop(more, step, (0, logits_BxV, cache, out))
    return emit(t, logits_BxV, out)[1]
