"""RSI-S: only tokens whose surprisal is neither far below nor far above the entropy push (arXiv 2606.31575)."""

from typing import Annotated

from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import From0, number
from entropy_rl.token_transforms.base import Normalizer, TokenMask, checked, mask, normalised


@checked
def rsi(
    low: From0 = 0.1, high: Annotated[float, number(above=0)] = 3.0, normalizer: Normalizer = "selected"
) -> TokenMask:
    """Keeps the tokens with low ≤ −log π / H ≤ high, the relative surprisal index of the token that was drawn.

    Its mean over the tokens that could have been drawn is 1 at every position, whatever the entropy. Below the interval
    are tokens that the policy was nearly certain of, above it those from the tail of the distribution. Where H is 0, a
    token with π = 1 is kept; its gradient is 0.

    Only the paper's definition could be read, not its interval nor its normaliser: the interval is that of a public
    port. It drops a token with π above about 0.9999, if the rest of the distribution is one token.

    Args:
        low: lower bound.
        high: upper bound.
        normalizer: as for `keep_top_entropy`.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If an option is out of range, `low` is not below `high`, or the normaliser is unknown.
    """
    if low >= high:
        raise ValueError(f"algo.transforms.rsi.low={low!r} must be below high={high!r}: no token is between")

    def factor(tokens: TokenInfo, key: Array) -> Array:
        surprisal_BxT = -tokens.logp
        keep_BxT = (low * tokens.entropy <= surprisal_BxT) & (surprisal_BxT <= high * tokens.entropy)
        return normalised((tokens.mask > 0) & keep_BxT, tokens, normalizer)

    return mask(factor)
