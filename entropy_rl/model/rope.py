"""Rotary position embeddings (RoPE; Su et al., 2021, https://arxiv.org/abs/2104.09864), as the Hugging Face models do.

Shapes: B rows, S positions, N heads, h head_dim.
"""

import jax
import jax.numpy as jnp

from entropy_rl.model.config import ModelConfig

Array = jax.Array


def inverse_frequencies(cfg: ModelConfig) -> Array:
    """f32[h/2]: RoPE's inverse frequencies, with Llama-3's scaling if the model has it."""
    inv = cfg.rope_theta ** -(jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim)
    if (s := cfg.rope_scaling) is None:
        return inv
    wavelength = 2 * jnp.pi / inv
    smooth = (s.original_max_positions / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    blended = (1 - smooth) * inv / s.factor + smooth * inv
    long, short = s.original_max_positions / s.low_freq_factor, s.original_max_positions / s.high_freq_factor
    return jnp.where(wavelength > long, inv / s.factor, jnp.where(wavelength < short, inv, blended))


def rope_tables(cfg: ModelConfig, position_BxS: Array) -> tuple[Array, Array]:
    """(cos, sin), f32[B, S, 1, h] each."""
    angle = position_BxS[:, :, None].astype(jnp.float32) * inverse_frequencies(cfg)[None, None]
    angle = jnp.concatenate([angle, angle], axis=-1)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxSxNxh: Array, cos_BxSx1xh: Array, sin_BxSx1xh: Array) -> Array:
    """Each head's values, rotated by the angles of their positions; the two halves of a head form the pairs."""
    a, b = jnp.split(x_BxSxNxh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-b, a], axis=-1)
    return (x_BxSxNxh * cos_BxSx1xh + turned * sin_BxSx1xh).astype(x_BxSxNxh.dtype)
