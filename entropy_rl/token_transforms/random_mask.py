"""Random controls: does it matter which tokens are stopped, or only how many?

arXiv 2511.05993 asks this of Clip-Cov.
"""

from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import count, random_scores, select
from entropy_rl.token_transforms.base import Normalizer, Salt, TokenMask, checked, mask, normalised


@checked
def random_mask(fraction: Share = 0.2, normalizer: Normalizer = "selected", salt: Salt = 1) -> TokenMask:
    """Keeps count(fraction, N) valid tokens drawn uniformly: the control of the same size for `keep_top_entropy`.

    Args:
        fraction: share to keep.
        normalizer: as for `keep_top_entropy`.
        salt: distinguishes this random draw from others in the same chain.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        draw_BxT = random_scores(key, salt, tokens.uid, tokens.mask.shape[1])
        keep_BxT = select(draw_BxT, tokens.uid, tokens.mask, count(fraction, masked.size(tokens.mask)))
        return normalised(keep_BxT, tokens, normalizer)

    return mask(factor)


@checked
def random_positive_clip(fraction: Share = 2e-4, salt: Salt = 2) -> TokenMask:
    """Stops count(fraction, N) tokens drawn uniformly from those with A > 0, or all if fewer: Clip-Cov's control.

    Args:
        fraction: share of the batch's N valid tokens to stop.
        salt: distinguishes this random draw from others in the same chain.

    Returns:
        A mask. On an empty batch it stops nothing.

    Raises:
        ValueError: If the fraction is out of range.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        draw_BxT = random_scores(key, salt, tokens.uid, tokens.mask.shape[1])
        candidate_BxT = (tokens.mask > 0) & (tokens.advantage > 0)
        return ~select(draw_BxT, tokens.uid, candidate_BxT, count(fraction, masked.size(tokens.mask)))

    return mask(factor)
