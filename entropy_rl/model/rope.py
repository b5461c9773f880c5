"""Rotary position embeddings (RoPE; Su et al., 2021, https://arxiv.org/abs/2104.09864), as the Hugging Face models do.

Shapes: B rows, S positions, N heads, h head_dim.
"""

import math

import jax
import jax.numpy as jnp

from entropy_rl.model.config import LinearScaling, Llama3Scaling, ModelConfig, Rope, YarnScaling
from entropy_rl.model.kinds import per_option

Array = jax.Array


def inverse_frequencies(rope: Rope, head_dim: int) -> Array:
    """f32[h/2]: RoPE's inverse frequencies, scaled as the model has it."""
    inv = rope.theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    match rope.scaling:
        case LinearScaling(factor):
            return inv / factor
        case Llama3Scaling() as s:
            return _llama3(inv, s)
        case YarnScaling() as s:
            return _yarn(inv, s, rope.theta)
    return inv


def _llama3(inv: Array, s: Llama3Scaling) -> Array:
    wavelength = 2 * jnp.pi / inv
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * inv / s.factor + smooth * inv
    long, short = s.original_max_positions / s.low_freq_factor, s.original_max_positions / s.high_freq_factor
    return jnp.where(wavelength > long, inv / s.factor, jnp.where(wavelength < short, inv, blended))


def _yarn(inv: Array, s: YarnScaling, theta: float) -> Array:
    """YaRN (https://arxiv.org/abs/2309.00071): between two frequencies, a ramp from inv to inv / factor."""
    half = len(inv)

    def place(turns: float) -> float:  # the index of the frequency that turns so often within the original positions
        return half * math.log(s.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(place(s.beta_fast)), 0)
    high = min(math.ceil(place(s.beta_slow)), 2 * half - 1)
    ramp = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 0.001), 0, 1)
    return inv / s.factor * ramp + inv * (1 - ramp)


def rope_tables(cfg: ModelConfig, position_BxS: Array) -> tuple[Array, Array]:
    """(cos, sin), f32[B, S, 1, h] each; [options, B, S, 1, h] if layers differ, see `kinds.per_option`."""

    def tables(rope: Rope | None) -> tuple[Array, Array]:
        if rope is None:  # a layer without RoPE turns by no angle
            none = jnp.zeros((*position_BxS.shape, 1, cfg.head_dim))
            return none + 1, none
        angle = position_BxS[:, :, None].astype(jnp.float32) * inverse_frequencies(rope, cfg.head_dim)[None, None]
        angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        if isinstance(rope.scaling, YarnScaling):
            return cos * rope.scaling.attention_factor, sin * rope.scaling.attention_factor
        return cos, sin

    return per_option(cfg.ropes, tables)


def rotate(x_BxSxNxh: Array, cos_BxSx1xh: Array, sin_BxSx1xh: Array) -> Array:
    """Each head's values, rotated by the angles of their positions; the two halves of a head form the pairs."""
    a, b = jnp.split(x_BxSxNxh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return (x_BxSxNxh * cos_BxSx1xh + turned * sin_BxSx1xh).astype(x_BxSxNxh.dtype)
