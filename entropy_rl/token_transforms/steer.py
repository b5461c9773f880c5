"""STEER: tokens that would change the entropy most push less (arXiv 2510.10150)."""

import math
from typing import Annotated

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import Share, number
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import checked, stateless


@checked
def steer(
    min_weight: Share = 0.8, floor: Annotated[float, number(above=0)] = 0.02
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the logp gradient by exp(−k·Ω), Ω = |r · A · (1 − π)(log π + H)|, k = −ln(min_weight) / max(Ω).

    The maximum is taken over the valid tokens of the batch and is at least `floor`; the factor is detached.

    Args:
        min_weight: the factor of the token with the largest Ω, above 0 and at most 1.
        floor: lower bound of max(Ω), so that a batch that hardly moves the entropy is left almost unchanged.

    Returns:
        A transform without state.

    Raises:
        ValueError: If an option is out of range.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        omega_BxT = ratio_BxT * tokens.advantage * (1 - jnp.exp(tokens.logp)) * (tokens.logp + tokens.entropy)
        omega_BxT = jnp.where(tokens.mask > 0, jnp.abs(omega_BxT), 0.0)
        log = jnp.log if isinstance(min_weight, Array) else math.log
        rate = -log(min_weight) / jnp.maximum(jnp.max(omega_BxT, initial=0.0), floor)
        return grads._replace(logp=grads.logp * jnp.exp(-rate * omega_BxT))

    return stateless(edit)
