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
        coef: c, the coefficient of the next rollout, f32[].
        used: α, the coefficient of this rollout's updates, f32[].
    """

    coef: Array
    used: Array


@checked
def adaptive_entropy_bonus(
    target: From0 = 0.2, step: From0 = 1e-4, max_coef: From0 = 5e-3, initial: From0 = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Subtracts α · Σ weight · H from the loss; α = c · 1[H₀ ≤ target] and c move once per rollout.

    H₀ is the token mean of the entropy over the first update of a rollout, whose policy is the one that sampled. That
    update sets α for all updates of the rollout; then c rises by `step` if H₀ < target, falls otherwise, and stays in
    [0, max_coef]. So it is in the paper, with k counting rollouts: α_k = c_k · 1[H_k ≤ target], c_{k+1} = c_k ± step.
    The official code takes the indicator from the rollout before, and H₀ as −mean(log π) over all of the rollout. An
    empty batch adds nothing and leaves both unchanged.

    Args:
        target: the entropy to hold, nats.
        step: change of c per rollout, Δ.
        max_coef: largest c.
        initial: c₀.

    Returns:
        A transform with state `AdaptiveBonus`.

    Raises:
        ValueError: If an option is below 0.
    """

    def init() -> AdaptiveBonus:
        return AdaptiveBonus(jnp.float32(initial), jnp.float32(0))

    def begin(state: AdaptiveBonus, tokens: TokenInfo) -> AdaptiveBonus:
        entropy = masked.mean(tokens.entropy, tokens.mask)
        moved = jnp.clip(state.coef + jnp.where(entropy < target, step, -step), 0.0, max_coef)
        used = jnp.where(entropy <= target, state.coef, 0.0)
        some = masked.size(tokens.mask) > 0
        return AdaptiveBonus(jnp.where(some, moved, state.coef), jnp.where(some, used, state.used))

    def edit(
        grads: TokenGrads, state: AdaptiveBonus, tokens: TokenInfo, key: Array
    ) -> tuple[TokenGrads, AdaptiveBonus]:
        return grads._replace(entropy=grads.entropy - state.used * tokens.weight), state

    return stateful(init, edit, begin)
