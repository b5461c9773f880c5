"""Lopti: unlikely tokens get updates of their own, before those of the others (arXiv 2505.12929)."""

import jax.numpy as jnp
from jax import Array

from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import Share
from entropy_rl.token_transforms.base import TokenMask, checked, mask, require


@checked
def lopti(bound: Share = 0.5) -> TokenMask:
    """Keeps the tokens with π_old < bound in the first turn of a rollout's updates, and the others in the second.

    The train loop makes all updates of a rollout once per turn (`token_transforms.TURNS`), so there are twice as many.
    In the second turn the policy has already moved: the ratio is not 1, and a clip may act. As in the official code,
    the loss of a turn is divided by the number of all tokens. Penalties and bonuses are divided among the turns like
    the objective, as they are there, if this is the last transform of the chain. If a batch has no token for a turn,
    that update has a gradient of 0.

    Args:
        bound: η, a probability; 0.5 in the official scripts.

    Returns:
        A mask that needs `TokenInfo.turn`. On an empty batch it keeps nothing.

    Raises:
        ValueError: If the bound is out of range.
    """

    def factor(tokens: TokenInfo, key: Array) -> Array:
        second_Bx1 = require(tokens.turn, "turn", "lopti")[:, None] > 0
        return (jnp.exp(tokens.old_logp) < bound) != second_Bx1

    return mask(factor)
