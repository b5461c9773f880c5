"""STAPO: unlikely tokens that were drawn where the policy was sure are not rewarded (arXiv 2602.15620)."""

import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import From0To1
from entropy_rl.stats import masked
from entropy_rl.token_transforms.base import TokenMask, checked, mask, normalised


@checked
def stapo(probability: From0To1 = 0.002, quantile: From0To1 = 0.8) -> TokenMask:
    """Stops the tokens with A > 0, π < probability and H < the quantile of H; the loss is the mean over the others.

    The paper finds about one token in 10,000 to be such, and calls it spurious: a slip that got the reward of its
    response. π and H are those of the current policy; the quantile is taken over the batch.

    The paper writes the entropy's threshold as 80% in its settings, and as 20% when it varies it, with the bottom 80%
    of the tokens as candidates. Both are read as the 80% quantile here. No official code was found.

    Args:
        probability: τ_p; 0 stops nothing.
        quantile: τ_h, as a quantile of the entropy of the batch's valid tokens.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If an option is out of range.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        sure_BxT = tokens.entropy < masked.quantile(tokens.entropy, tokens.mask, quantile)
        spurious_BxT = (tokens.advantage > 0) & (jnp.exp(tokens.logp) < probability) & sure_BxT
        return normalised((tokens.mask > 0) & ~spurious_BxT, tokens, "selected")

    return mask(factor)
