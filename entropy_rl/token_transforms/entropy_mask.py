"""Forking tokens: only the tokens of high entropy push the policy (arXiv 2506.01939, eq. 6), and the reverse."""

from fractions import Fraction

from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import as_ratio, count, select
from entropy_rl.token_transforms.base import Normalizer, TokenMask, checked, mask, normalised


def top_entropy(tokens: TokenInfo, fraction: float, up: bool = False) -> Array:
    """The count(fraction, N, up) valid tokens of highest entropy, bool[B, T]."""
    return select(tokens.entropy, tokens.uid, tokens.mask, count(fraction, masked.size(tokens.mask), up))


@checked
def keep_top_entropy(fraction: Share = 0.2, normalizer: Normalizer = "selected", up: bool = False) -> TokenMask:
    """Keeps the count(fraction, N, up) valid tokens of highest entropy in the batch.

    Args:
        fraction: ρ, the share to keep.
        normalizer: "selected" divides the loss by the weight of the kept tokens (the paper's v2 and the official
            code), "all" by that of all tokens (its v1, and TRL). The gradients differ by a factor of 1/ρ.
        up: round the count up, as the official code does, which takes it of each micro-batch of a rank.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from entropy_rl.token_transforms import TokenGrads, TokenInfo
        >>> zero, one = jnp.zeros((1, 4)), jnp.ones((1, 4))
        >>> entropy = jnp.array([[0.1, 2.0, 0.3, 1.5]])
        >>> tokens = TokenInfo(logp=zero, old_logp=zero, advantage=one, entropy=entropy, mask=one, clipped=zero > 0)
        >>> grads = TokenGrads(logp=one, entropy=zero)
        >>> transform = keep_top_entropy(fraction=0.5)
        >>> grads, state = transform.update(grads, transform.init(grads), tokens=tokens, key=None)
        >>> grads.logp.tolist()  # twice as large, because the loss is now a mean over two tokens, not four
        [[0.0, 2.0, 0.0, 2.0]]
        >>> float(state.kept)
        0.5
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        return normalised(top_entropy(tokens, fraction, up), tokens, normalizer)

    return mask(factor)


@checked
def keep_bottom_entropy(fraction: Share = 0.8, normalizer: Normalizer = "selected") -> TokenMask:
    """Keeps exactly the tokens that keep_top_entropy(1 − fraction) drops: the control of arXiv 2506.01939.

    If there is only one valid token, it belongs to the top and is dropped here.

    Args:
        fraction: the share to keep.
        normalizer: as for `keep_top_entropy`.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """
    rest = float(1 - Fraction(*as_ratio(fraction)))

    def factor(tokens: TokenInfo, key: Array) -> Array:
        keep_BxT = tokens.mask > 0
        if rest > 0:  # the top 0% is nothing, but count() takes at least one token
            keep_BxT &= ~top_entropy(tokens, rest)
        return normalised(keep_BxT, tokens, normalizer)

    return mask(factor)
