"""Forking tokens: only the tokens of high entropy push the policy (arXiv 2506.01939, eq. 6), and the reverse."""

from fractions import Fraction

from entropy_rl.stats import masked
from entropy_rl.stats.selection import as_ratio, count, select
from entropy_rl.token_transforms.base import TokenMask, check_fraction, check_normalizer, mask, normalised


def _top(tokens, fraction):
    return select(tokens.entropy, tokens.uid, tokens.mask, count(fraction, masked.size(tokens.mask)))


def keep_top_entropy(fraction: float = 0.2, normalizer: str = "selected") -> TokenMask:
    """Keeps the count(fraction, N) valid tokens of highest entropy in the batch.

    Args:
      fraction: ρ, the share to keep.
      normalizer: "selected" divides the loss by the kept tokens' weight (v2 and the official code),
        "all" by every token's (v1, TRL): 1/ρ apart in gradient scale.

    Returns:
      A mask.
    """
    check_fraction(fraction, "keep_top_entropy")
    check_normalizer(normalizer, "keep_top_entropy")
    return mask(lambda tokens, key: normalised(_top(tokens, fraction), tokens, normalizer))


def keep_bottom_entropy(fraction: float = 0.8, normalizer: str = "selected") -> TokenMask:
    """Keeps the tokens that keep_top_entropy(1 − fraction) drops, exactly: the control of 2506.01939.

    Args and normalizer as for `keep_top_entropy`. A single valid token belongs to the top: it is dropped here.
    """
    check_fraction(fraction, "keep_bottom_entropy")
    check_normalizer(normalizer, "keep_bottom_entropy")
    rest = float(1 - Fraction(*as_ratio(fraction)))

    def factor(tokens, key):
        keep_BxT = tokens.mask > 0
        if rest > 0:  # the top 0% is nothing, where count() would still take one token
            keep_BxT &= ~_top(tokens, rest)
        return normalised(keep_BxT, tokens, normalizer)

    return mask(factor)
