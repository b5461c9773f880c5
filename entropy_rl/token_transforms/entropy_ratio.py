"""Entropy-ratio clipping: tokens whose entropy moved too far since the rollout stop pushing (arXiv 2512.05591)."""

from typing import Annotated

from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import number
from entropy_rl.token_transforms.base import TokenMask, checked, mask, require


@checked
def entropy_ratio_clip(
    low: Annotated[float, number(least=0, below=1)] = 0.95, high: Annotated[float, number(above=1)] = 1.05
) -> TokenMask:
    """Keeps the tokens with low < H / H_old < high, and those whose entropy did not move, even if it is 0.

    Args:
        low: lower bound of the ratio, below 1.
        high: upper bound, above 1.

    Returns:
        A mask that needs `TokenInfo.old_entropy`. On an empty batch it keeps nothing.

    Raises:
        ValueError: If a bound is out of range.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        old_BxT = require(tokens.old_entropy, "old_entropy", "entropy_ratio_clip")
        inside_BxT = (low * old_BxT < tokens.entropy) & (tokens.entropy < high * old_BxT)
        return inside_BxT | (tokens.entropy == old_BxT)

    return mask(factor)
