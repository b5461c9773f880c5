"""Positive-advantage reweighting: rewarded tokens push less while entropy is low (arXiv 2511.05993)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, From0To1
from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import checked, stateful


class PositiveWeight(NamedTuple):
    """State of the reweighting; it is part of the checkpoint.

    Attributes:
        weight: λ, the factor of tokens with A > 0 in the next update, f32[].
    """

    weight: Array


@checked
def positive_reweighting(
    target: From0 = 0.2, step: From0 = 0.05, initial: From0To1 = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the logp gradient of tokens with A > 0 by λ, then moves λ by ±step within [0, 1].

    λ falls if H < target and rises otherwise; H is the token mean over the batch. An empty batch leaves λ unchanged.

    Args:
        target: the entropy to hold, nats.
        step: change of λ per update.
        initial: λ₀.

    Returns:
        A transform with state `PositiveWeight`.
    """

    def init() -> PositiveWeight:
        return PositiveWeight(jnp.float32(initial))

    def edit(
        grads: TokenGrads, state: PositiveWeight, tokens: TokenInfo, key: Array
    ) -> tuple[TokenGrads, PositiveWeight]:
        entropy = masked.mean(tokens.entropy, tokens.mask)
        moved = jnp.clip(state.weight + jnp.where(entropy < target, -step, step), 0.0, 1.0)
        weight = jnp.where(masked.size(tokens.mask) > 0, moved, state.weight)
        return (
            grads._replace(logp=grads.logp * jnp.where(tokens.advantage > 0, state.weight, 1.0)),
            PositiveWeight(weight),
        )

    return stateful(init, edit)
