"""Only responses with an advantage push, and only they count: PSR and NSR (arXiv 2506.01347)."""

from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.token_transforms.base import Normalizer, TokenMask, checked, mask, normalised


@checked
def keep_nonzero_advantage(normalizer: Normalizer = "selected") -> TokenMask:
    """Keeps the tokens with A ≠ 0.

    The official code of PSR (NSR) removes the wrong (right) responses from the batch, so its mean is over the tokens of
    the others. Here they stay, with advantage 0, and the loss is divided by the weight of the tokens that are kept. The
    official batch then has fewer updates too; here an update has as many prompts as before.

    Args:
        normalizer: as for `keep_top_entropy`.

    Returns:
        A mask. On an empty batch, or if no advantage differs from 0, it keeps nothing.

    Raises:
        ValueError: If the normaliser is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        return normalised((tokens.mask > 0) & (tokens.advantage != 0), tokens, normalizer)

    return mask(factor)
