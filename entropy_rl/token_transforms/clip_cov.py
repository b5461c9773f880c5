"""Clip-Cov: a few tokens of high covariance, drawn at random, do not push the policy (arXiv 2505.22617, eq. 11)."""

from typing import Annotated

from jax import Array

from entropy_rl.covariance import token_covariance
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share, one_of
from entropy_rl.stats import masked
from entropy_rl.stats.selection import count, random_scores, select
from entropy_rl.token_transforms.base import Salt, TokenMask, checked, mask


@checked
def clip_cov(
    fraction: Share = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    salt: Salt = 0,
    pick: Annotated[str, one_of("random", "highest")] = "random",
) -> TokenMask:
    """Stops count(fraction, N) tokens, drawn uniformly from those with low < covariance < high, or all if fewer.

    As in the official code the interval is open, and a token that PPO's clip has already stopped is not a candidate.

    Args:
        fraction: share of the batch's N valid tokens to stop.
        low: lower bound of the covariance (ω_low), nats times advantage.
        high: upper bound (ω_high).
        salt: distinguishes this random draw from others in the same chain.
        pick: "random" draws the tokens, as the paper and its code do; "highest" takes those of the highest covariance
            in the interval, which no published run has tried.

    Returns:
        A mask. On an empty batch it stops nothing.

    Raises:
        ValueError: If an option is out of range or `pick` is unknown.
    """
    if not isinstance(low, Array) and not isinstance(high, Array) and low >= high:
        raise ValueError(f"algo.transforms.clip_cov.low={low!r} must be below high={high!r}: no covariance is between")

    def factor(tokens: TokenInfo, key: Array) -> Array:
        cov_BxT = token_covariance(tokens.logp, tokens.advantage, tokens.mask)
        candidate_BxT = (tokens.mask > 0) & ~tokens.clipped & (cov_BxT > low) & (cov_BxT < high)
        score_BxT = cov_BxT if pick == "highest" else random_scores(key, salt, tokens.uid, tokens.mask.shape[1])
        return ~select(score_BxT, tokens.uid, candidate_BxT, count(fraction, masked.size(tokens.mask)))

    return mask(factor)
