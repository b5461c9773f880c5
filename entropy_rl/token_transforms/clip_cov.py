"""Clip-Cov: a few tokens of high covariance, drawn at random, do not push the policy (arXiv 2505.22617, eq. 11)."""

from jax import Array

from entropy_rl.covariance import token_covariance
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import count, random_scores, select
from entropy_rl.token_transforms.base import Salt, TokenMask, checked, mask


@checked
def clip_cov(fraction: Share = 2e-4, low: float = 1.0, high: float = 5.0, salt: Salt = 0) -> TokenMask:
    """Stops count(fraction, N) tokens, drawn uniformly from those with low < covariance < high, or all if fewer.

    As in the official code the interval is open, and a token that PPO's clip has already stopped is not a candidate.

    Args:
        fraction: share of the batch's N valid tokens to stop.
        low: lower bound of the covariance (ω_low), nats times advantage.
        high: upper bound (ω_high).
        salt: distinguishes this random draw from others in the same chain.

    Returns:
        A mask. On an empty batch it stops nothing.

    Raises:
        ValueError: If an option is out of range.
    """
    if low >= high:
        raise ValueError(f"algo.transforms.clip_cov.low={low!r} must be below high={high!r}: no covariance is between")

    def factor(tokens: TokenInfo, key: Array) -> Array:
        cov_BxT = token_covariance(tokens.logp, tokens.advantage, tokens.mask)
        candidate_BxT = (tokens.mask > 0) & ~tokens.clipped & (cov_BxT > low) & (cov_BxT < high)
        draw_BxT = random_scores(key, salt, tokens.uid, tokens.mask.shape[1])
        return ~select(draw_BxT, tokens.uid, candidate_BxT, count(fraction, masked.size(tokens.mask)))

    return mask(factor)
