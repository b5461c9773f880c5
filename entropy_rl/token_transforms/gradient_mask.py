"""GMTS: only the tokens with the largest gradients push the policy (arXiv 2608.30632, OpenReview JGvOicAo3g)."""

import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.stats.selection import count, select
from entropy_rl.token_transforms.base import Normalizer, TokenMask, checked, mask, normalised, require


@checked
def keep_top_gradient(fraction: Share = 0.2, normalizer: Normalizer = "selected") -> TokenMask:
    """Keeps the count(fraction, N) valid tokens with the largest |ω| · ‖e_y − π‖, the gradient's norm at the logits.

    ω = r · A is the gradient of the loss with respect to logp, 0 if PPO's clip has stopped it, and
    ‖e_y − π‖ = sqrt(1 − 2 π(y) + Σ π²) that of logp with respect to the logits. The paper estimates the second factor
    by the entropy, see `keep_top_gradient_estimate`; here it is exact.

    Args:
        fraction: ρ, the share to keep.
        normalizer: as for `keep_top_entropy`; "selected" is the paper's eq. 2. The official code uses "all", and takes
            the share of each prompt's group.

    Returns:
        A mask that needs `TokenInfo.prob_square`. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        square_BxT = require(tokens.prob_square, "prob_square", "keep_top_gradient")
        prob_BxT = jnp.exp(tokens.logp)
        others_BxT = jnp.maximum(square_BxT - prob_BxT**2, 0.0)  # Σ π² over all other tokens
        return _largest(tokens, jnp.sqrt(jnp.expm1(tokens.logp) ** 2 + others_BxT), fraction, normalizer)

    return mask(factor)


@checked
def keep_top_gradient_estimate(fraction: Share = 0.2, normalizer: Normalizer = "selected") -> TokenMask:
    """Keeps the count(fraction, N) valid tokens with the largest |ω · H|, the estimate of the paper.

    If the token is almost certain, H and ‖e_y − π‖ vanish alike (the paper's proposition 3.1).

    Args:
        fraction: as for `keep_top_gradient`.
        normalizer: as for `keep_top_gradient`.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        return _largest(tokens, tokens.entropy, fraction, normalizer)

    return mask(factor)


def _largest(tokens: TokenInfo, slope_BxT: Array, fraction: float, normalizer: str) -> Array:
    """The factor that keeps the tokens with the largest |ω| · slope."""
    ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
    size_BxT = jnp.where(tokens.clipped, 0.0, ratio_BxT * jnp.abs(tokens.advantage)) * slope_BxT
    keep_BxT = select(size_BxT, tokens.uid, tokens.mask, count(fraction, masked.size(tokens.mask)))
    return normalised(keep_BxT, tokens, normalizer)
