"""Advantage reweighting: tokens that the policy found unlikely push less (AR, arXiv 2505.12929)."""

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0To1
from entropy_rl.token_transforms.base import checked, stateless


@checked
def low_probability_reweighting(alpha: From0To1 = 0.3) -> optax.GradientTransformationExtraArgs:
    """Replaces A by A' = A · (α · π_old + 1 − α), with the probability at which the token was sampled.

    Every objective here has a gradient proportional to A, and the factor is not negative. So multiplying the gradient
    by it equals putting A' into the loss, and the clip stops the same tokens. With α = 0 nothing changes; with α = 1 a
    token pushes in proportion to its probability.

    Args:
        alpha: α. The official scripts have 0.2 for this method alone, and 0.3 together with `lopti`. They also have a
            clip of 0.2 / 0.24, a dual clip of 10 and a KL penalty of 1e-3 to the reference policy.

    Returns:
        A transform without state.

    Raises:
        ValueError: If α is out of range.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        return grads._replace(logp=grads.logp * (alpha * jnp.exp(tokens.old_logp) + (1 - alpha)))

    return stateless(edit)
