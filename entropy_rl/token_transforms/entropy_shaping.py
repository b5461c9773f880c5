"""Entropy-shaped advantage: more push for tokens chosen where the policy was unsure (arXiv 2506.14758)."""

import jax.numpy as jnp
import optax

from entropy_rl.token_transforms.base import stateless


def entropy_shaped_advantage(alpha: float = 0.4, kappa: float = 2.0) -> optax.GradientTransformationExtraArgs:
    """Replaces A by A' = A + min(α · H, |A| / κ), H detached.

    A' keeps the sign of A for κ ≥ 1, so the clip stops the same tokens, and every objective here has a gradient
    proportional to A: multiplying the gradient by A' / A is the same as putting A' in the loss. 1 where A = 0.

    Args:
      alpha: α, advantage per nat.
      kappa: κ ≥ 1; the term is at most |A| / κ.
    """
    if kappa < 1:
        raise ValueError(f"algo.transforms: entropy_shaped_advantage: kappa {kappa!r}, must be at least 1")

    def edit(grads, tokens, key):
        size_BxT = jnp.abs(tokens.advantage)
        bonus_BxT = jnp.minimum(alpha * tokens.entropy, size_BxT / kappa)
        ratio_BxT = 1 + jnp.sign(tokens.advantage) * bonus_BxT / jnp.where(size_BxT > 0, size_BxT, 1.0)
        return grads._replace(logp=grads.logp * ratio_BxT)

    return stateless(edit)
