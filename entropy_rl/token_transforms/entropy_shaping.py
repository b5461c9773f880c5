"""Entropy-shaped advantage: tokens that were chosen while the policy was unsure push more (arXiv 2506.14758)."""

from typing import Annotated

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, number
from entropy_rl.token_transforms.base import checked, stateless


@checked
def entropy_shaped_advantage(
    alpha: From0 = 0.4, kappa: Annotated[float, number(least=1)] = 2.0
) -> optax.GradientTransformationExtraArgs:
    """Replaces A by A' = A + min(α · H, |A| / κ), H detached.

    With κ ≥ 1, A' keeps the sign of A, so the clip stops the same tokens. Every objective here has a gradient
    proportional to A, so multiplying the gradient by A' / A equals putting A' into the loss. The factor is 1 if A = 0.

    Args:
        alpha: α, advantage per nat.
        kappa: κ ≥ 1; the added term is at most |A| / κ.

    Returns:
        A transform without state.

    Raises:
        ValueError: If α is below 0 or κ below 1.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        size_BxT = jnp.abs(tokens.advantage)
        bonus_BxT = jnp.minimum(alpha * tokens.entropy, size_BxT / kappa)
        ratio_BxT = 1 + jnp.sign(tokens.advantage) * bonus_BxT / jnp.where(size_BxT > 0, size_BxT, 1.0)
        return grads._replace(logp=grads.logp * ratio_BxT)

    return stateless(edit)
