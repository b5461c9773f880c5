"""The clip of DCPO: the rarer a token was, the further its ratio may move (arXiv 2509.02333)."""

from typing import Annotated

import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.surrogates import ppo_loss
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import From0, number
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import TokenMask, checked, mask


@checked
def dcpo_clip(low: From0 = 0.16, high: From0 = 0.2, cap: Annotated[float, number(least=1)] = 10.0) -> TokenMask:
    """PPO's clip over `policy_gradient`, with bounds of the ratio r that depend on the old probability q.

    With q = exp(old_logp), a token with A < 0 stops if r is below 0.5 + 0.5 · sqrt(max(1 − 4 · low / q, 0)), and one
    with A > 0 if r is above 0.5 + 0.5 · sqrt(1 + 4 · high / q). With the defaults the bounds are 0.8 and 1.17 at q = 1,
    0.5 and 5 at q = 0.01. A token with r above `cap` stops whatever the sign of A. One with A = 0 never stops.

    The defaults of `low` and `high` could not be confirmed. DCPO's other parts, its advantage and its mean over a
    response alone, are not here. The metric `ratio/clip_frac` is the objective's, so it is 0.

    Args:
        low: bounds (1 − r) · r · q from above, for r from 0.5 to 1; 0: the lower bound of r is 1.
        high: bounds (r − 1) · r · q from above; 0: the upper bound of r is 1.
        cap: largest r.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If an option is out of range.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        old_BxT = jnp.exp(jnp.maximum(tokens.old_logp, -87.0))  # below, float32 has no normal numbers, then 0
        lowest_BxT = 0.5 + 0.5 * jnp.sqrt(jnp.maximum(1 - 4 * low / old_BxT, 0.0))
        highest_BxT = 0.5 + 0.5 * jnp.sqrt(1 + 4 * high / old_BxT)
        _, clipped_BxT = ppo_loss(ratio_BxT, tokens.advantage, lowest_BxT, highest_BxT)
        return ~(clipped_BxT | ((ratio_BxT > cap) & (tokens.advantage != 0)))

    return mask(factor)
