"""Controls of `keep_top_entropy`: do forking tokens matter because of their entropy (arXiv 2506.01939)?

Each keeps as many tokens as `keep_top_entropy`, and leaves one explanation of its effect while it removes the others:

    keep_shuffled_entropy     as many in each response, at random positions: which responses the forks are in
    keep_entropy_positions    as many at each position, of random responses: where in a response the forks are
    keep_top_ref_entropy      the forks of the reference policy: a property of the text, not of the policy as it is now
    keep_by_probability       the likeliest or the least likely tokens: the choice that was made, not the uncertainty

`random_mask` keeps as many anywhere, `keep_bottom_entropy` all the others.
"""

import jax
from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import count, random_scores, select
from entropy_rl.token_transforms.base import Normalizer, Salt, TokenMask, checked, mask, normalised, require
from entropy_rl.token_transforms.entropy_mask import top_entropy


@checked
def keep_shuffled_entropy(fraction: Share = 0.2, normalizer: Normalizer = "selected", salt: Salt = 11) -> TokenMask:
    """Keeps what `keep_top_entropy` would if the entropies of each response were dealt to its tokens at random.

    A response keeps as many tokens as it has among the count(fraction, N) tokens of highest entropy in the batch, drawn
    uniformly. So long or uncertain responses have the same share of the gradient, and only the positions change.

    Args:
        fraction: ρ, the share to keep.
        normalizer: as for `keep_top_entropy`.
        salt: distinguishes this random draw from others in the same chain.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        kept_B = top_entropy(tokens, fraction).sum(axis=1)
        draw_BxT = random_scores(key, salt, tokens.uid, tokens.mask.shape[1])

        def one(draw_T: Array, uid: Array, mask_T: Array, kept: Array) -> Array:
            return select(draw_T[None], uid[None], mask_T[None], kept)[0]

        return normalised(jax.vmap(one)(draw_BxT, tokens.uid, tokens.mask, kept_B), tokens, normalizer)

    return mask(factor)


@checked
def keep_entropy_positions(fraction: Share = 0.2, normalizer: Normalizer = "selected", salt: Salt = 12) -> TokenMask:
    """Keeps at each position as many tokens as `keep_top_entropy` does, of responses that are drawn uniformly.

    So the kept tokens have the same distribution over positions, and nothing else of the entropy.

    Args:
        fraction: ρ, the share to keep.
        normalizer: as for `keep_top_entropy`.
        salt: distinguishes this random draw from others in the same chain.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        kept_T = top_entropy(tokens, fraction).sum(axis=0)
        draw_BxT = random_scores(key, salt, tokens.uid, tokens.mask.shape[1])

        def one(draw_B: Array, mask_B: Array, kept: Array) -> Array:
            return select(draw_B[:, None], tokens.uid, mask_B[:, None], kept)[:, 0]

        keep_BxT = jax.vmap(one, (1, 1, 0), 1)(draw_BxT, tokens.mask, kept_T)
        return normalised(keep_BxT, tokens, normalizer)

    return mask(factor)


@checked
def keep_top_ref_entropy(fraction: Share = 0.2, normalizer: Normalizer = "selected") -> TokenMask:
    """Keeps the count(fraction, N) valid tokens of highest entropy under the reference policy, that before step 1.

    Args:
        fraction: ρ, the share to keep.
        normalizer: as for `keep_top_entropy`.

    Returns:
        A mask that needs `TokenInfo.ref_entropy`. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        entropy_BxT = require(tokens.ref_entropy, "ref_entropy", "keep_top_ref_entropy")
        kept = count(fraction, masked.size(tokens.mask))
        return normalised(select(entropy_BxT, tokens.uid, tokens.mask, kept), tokens, normalizer)

    return mask(factor)


@checked
def keep_by_probability(fraction: Share = 0.2, normalizer: Normalizer = "selected", lowest: bool = False) -> TokenMask:
    """Keeps the count(fraction, N) valid tokens of highest probability under the policy, or of lowest.

    Unlikely tokens mostly have a high entropy too, but not all tokens of high entropy are unlikely.

    Args:
        fraction: ρ, the share to keep.
        normalizer: as for `keep_top_entropy`.
        lowest: keep the least likely tokens.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the fraction is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        kept = count(fraction, masked.size(tokens.mask))
        score_BxT = -tokens.logp if lowest else tokens.logp
        return normalised(select(score_BxT, tokens.uid, tokens.mask, kept), tokens, normalizer)

    return mask(factor)
