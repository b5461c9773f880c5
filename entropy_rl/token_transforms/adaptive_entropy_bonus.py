"""Skywork-OR1's entropy bonus, whose coefficient follows the entropy (arXiv 2505.22312)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import stateful


class AdaptiveBonus(NamedTuple):
    """State of the bonus; it belongs in the checkpoint.

    Attributes:
      coef: α, the coefficient the next update uses, f32[].
    """

    coef: Array


def adaptive_entropy_bonus(
    target: float = 0.2, step: float = 1e-4, max_coef: float = 5e-3, initial: float = 0.0
) -> optax.GradientTransformationExtraArgs:
    """loss −= α · 1[H ≤ target] · Σ weight · H, then α ← clip(α ± step, 0, max_coef), + where H < target.

    H is the token mean over the batch. An empty batch adds nothing and leaves α alone.

    Args:
      target: entropy to hold, nats.
      step: change of α per update, Δ.
      max_coef: largest α.
      initial: α₀.
    """

    def edit(grads, state, tokens, key):
        entropy = masked.mean(tokens.entropy, tokens.mask)
        active = jnp.where(entropy <= target, state.coef, 0.0)
        moved = jnp.clip(state.coef + jnp.where(entropy < target, step, -step), 0.0, max_coef)
        coef = jnp.where(masked.size(tokens.mask) > 0, moved, state.coef)
        return grads._replace(entropy=grads.entropy - active * tokens.weight), AdaptiveBonus(coef)

    return stateful(lambda: AdaptiveBonus(jnp.float32(initial)), edit)
