"""Entropy-discriminator clipping: punished tokens that would lower the entropy most do not push (arXiv 2602.03392).

To first order, an update that reinforces a token changes the entropy of its position in proportion to −(S − E_π S),
with S = π (H + log π) (`entropy.py: entropy_score`); one that punishes it, in proportion to S − E_π S. So of the tokens
with A < 0 those are stopped whose centred score is far below 0. The rules and defaults are those of the official code,
`clipb_advantage.py` and `clipv_advantage.py` in agentscope-ai/Trinity-RFT. It takes the scores once per rollout, and
not per update as here. Whether the paper's own runs had these thresholds could not be confirmed.
"""

import jax.numpy as jnp
from jax import Array

from entropy_rl.entropy import entropy_score
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import From0, Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import count, select
from entropy_rl.token_transforms.base import Normalizer, TokenMask, checked, mask, normalised, require

_NO_SPREAD = 1e-12  # below this standard deviation nothing is an outlier, as in the official code


@checked
def entropy_score_clip_b(bound: From0 = 2.5, normalizer: Normalizer = "selected") -> TokenMask:
    """Clip_B: stops the tokens with A < 0 and S − mean S < −bound · std S, both taken over the batch's valid tokens.

    Args:
        bound: μ, in standard deviations.
        normalizer: as for `keep_top_entropy`; the official code takes the stopped tokens out of the response mask.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the bound is below 0 or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        score_BxT = entropy_score(tokens.logp, tokens.entropy)
        centred_BxT = score_BxT - masked.exact_mean(score_BxT, tokens.mask)
        keep_BxT = (tokens.mask > 0) & ~_outliers(tokens, centred_BxT, bound)
        return normalised(keep_BxT, tokens, normalizer)

    return mask(factor)


@checked
def entropy_score_clip_v(
    bound: From0 = 8.5, max_fraction: Share = 1e-4, normalizer: Normalizer = "selected"
) -> TokenMask:
    """Clip_V: stops tokens with A < 0 and D < −bound · std D, with D = S − E_π S centred over the vocabulary.

    The standard deviation is that of D over the batch's valid tokens. At most count(max_fraction, N) tokens are
    stopped, those with the lowest D.

    Args:
        bound: μ, in standard deviations.
        max_fraction: the largest share of the valid tokens to stop.
        normalizer: as for `entropy_score_clip_b`.

    Returns:
        A mask that needs `TokenInfo.score_mean`. On an empty batch it keeps nothing.

    Raises:
        ValueError: If an option is out of range or the normalizer is unknown.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        mean_BxT = require(tokens.score_mean, "score_mean", "entropy_score_clip_v")
        centred_BxT = entropy_score(tokens.logp, tokens.entropy) - mean_BxT
        most = count(max_fraction, masked.size(tokens.mask))
        stop_BxT = select(-centred_BxT, tokens.uid, _outliers(tokens, centred_BxT, bound), most)
        return normalised((tokens.mask > 0) & ~stop_BxT, tokens, normalizer)

    return mask(factor)


def _outliers(tokens: TokenInfo, centred_BxT: Array, bound: float) -> Array:
    """The valid tokens with A < 0 whose centred score is below −bound of its standard deviations, bool[B, T]."""
    deviation_BxT = centred_BxT - masked.exact_mean(centred_BxT, tokens.mask)
    spread = jnp.sqrt(masked.exact_mean(deviation_BxT**2, tokens.mask))
    low_BxT = (centred_BxT < -bound * spread) & (spread >= _NO_SPREAD)
    return (tokens.mask > 0) & (tokens.advantage < 0) & low_BxT
