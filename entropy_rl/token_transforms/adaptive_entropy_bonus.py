"""Skywork-OR1's entropy bonus, whose coefficient follows the entropy (arXiv 2505.22312)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0
from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import checked, stateful


class AdaptiveBonus(NamedTuple):
    """State of the bonus; it is part of the checkpoint.

    Attributes:
        coef: α, the coefficient of the next update, f32[].
    """

    coef: Array


@checked
def adaptive_entropy_bonus(
    target: From0 = 0.2, step: From0 = 1e-4, max_coef: From0 = 5e-3, initial: From0 = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Subtracts α · Σ weight · H from the loss if H ≤ target, then moves α by ±step within [0, max_coef].

    α rises if H < target and falls otherwise. The H that is compared with the target is the token mean over the batch.
    An empty batch adds nothing and leaves α unchanged.

    Args:
        target: the entropy to hold, nats.
        step: change of α per update, Δ.
        max_coef: largest α.
        initial: α₀.

    Returns:
        A transform with state `AdaptiveBonus`.
    """

    def init() -> AdaptiveBonus:
        return AdaptiveBonus(jnp.float32(initial))

    def edit(
        grads: TokenGrads, state: AdaptiveBonus, tokens: TokenInfo, key: Array
    ) -> tuple[TokenGrads, AdaptiveBonus]:
        entropy = masked.mean(tokens.entropy, tokens.mask)
        active = jnp.where(entropy <= target, state.coef, 0.0)
        moved = jnp.clip(state.coef + jnp.where(entropy < target, step, -step), 0.0, max_coef)
        coef = jnp.where(masked.size(tokens.mask) > 0, moved, state.coef)
        return grads._replace(entropy=grads.entropy - active * tokens.weight), AdaptiveBonus(coef)

    return stateful(init, edit)
