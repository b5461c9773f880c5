"""All responses at once, as an oracle: continuous batching must make the same ones, whatever its slots."""

import functools

import jax
import jax.numpy as jnp

from entropy_rl.model import decode
from entropy_rl.sampling import slots
from entropy_rl.sampling.base import Rollout


@functools.partial(jax.jit, static_argnames=("model", "n", "decoding"))
def rollout(model, params, prompts, key, *, n, decoding) -> Rollout:
    """n responses to each left-padded prompt, prompt by prompt, made side by side in as many slots as responses."""
    rows, T = jnp.arange(len(prompts.uid_N) * n), decoding.max_tokens
    prefilled = slots.read_prompts(model, params, *prompts, key, n=n)
    weights = decode.decode_weights(model, params, places=prompts.tokens_NxP.shape[1] + T)
    made, first = slots.admit(
        model, weights, prefilled, None, rows, rows, n=n, shared=n, cache_len=max(T - 1, 1), decoding=decoding
    )
    _, rest = slots.advance(model, weights, made, made.alive, steps=T - 1, decoding=decoding)
    drawn = slots.Drawn(*(jnp.concatenate(x, axis=1) for x in zip(first, rest, strict=True)))
    ended = jnp.isin(drawn.tokens, jnp.array(decoding.eos_ids, jnp.int32)) & (drawn.mask > 0)
    return Rollout(*drawn, jnp.any(ended, axis=1))
