"""BAPO: the clip opens for positive tokens and closes for negative ones until both weigh enough (arXiv 2510.18927)."""

from typing import Annotated

import jax.numpy as jnp
from jax import Array, lax

from entropy_rl.objective.surrogates import ppo_loss
from entropy_rl.objective.tokens import TokenInfo
from entropy_rl.rules import From0, From0To1, number
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import TokenMask, checked, mask

Bound = Annotated[float, number(least=1)]
Step = Annotated[float, number(above=0)]


@checked
def bapo(
    target: From0 = 1.0,
    low: From0To1 = 0.6,
    low_most: From0To1 = 0.8,
    low_step: Step = 0.05,
    high: Bound = 1.2,
    high_most: Bound = 2.0,
    high_step: Step = 0.05,
) -> TokenMask:
    """PPO's clip over `policy_gradient`, with bounds of the ratio that each update looks for anew.

    From (low, high) the lower bound rises, then the upper one, until P ≥ target · N or both are at their largest. P is
    the sum over the tokens with A > 0 of weight · |A| · min(r, upper), N that over the tokens with A < 0 of
    weight · |A| · max(r, lower). A token stops if A > 0 and r > upper, or A < 0 and r < lower.

    The search and the defaults are those of the official code, without its dual clip. A token below the lower bound
    counts in N as if it were at it, though it pushes no more. So a higher lower bound makes N larger, and if the first
    bounds are not enough the lower one always rises to `low_most`. The paper differs: Algorithm 1 raises the upper one
    first, P and N are weighted by π_old, P is compared with |P − N| (eq. 8), and section 5.1 has the target 0.4 and
    bounds from 0.6 to 0.9 by 0.02 and from 1.2 to 3 by 0.05.

    Args:
        target: ρ₀, positive over negative contributions.
        low: first lower bound of the ratio.
        low_most: largest lower bound; as large as `low`: it does not move.
        low_step: its step.
        high: first upper bound of the ratio.
        high_most: largest upper bound; as large as `high`: it does not move.
        high_step: its step.

    Returns:
        A mask. On an empty batch it keeps nothing.

    Raises:
        ValueError: If an option is out of range, or a largest bound is below the first one.
    """
    bounds_Kx2 = jnp.array(_search(("low", low, low_most, low_step), ("high", high, high_most, high_step)), jnp.float32)

    def factor(tokens: TokenInfo, key: Array) -> Array:
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        push_BxT = tokens.advantage * tokens.weight

        def balanced(bounds: Array) -> Array:
            held_BxT = jnp.where(push_BxT > 0, jnp.minimum(ratio_BxT, bounds[1]), jnp.maximum(ratio_BxT, bounds[0]))
            positive, negative = (  # exact sums: the bounds do not depend on the order of rows, nor on the mesh
                masked.exact_mean(jnp.maximum(side * push_BxT, 0.0) * held_BxT, tokens.mask) for side in (1, -1)
            )
            return positive >= target * negative

        balanced_K = lax.map(balanced, bounds_Kx2)
        chosen = jnp.where(jnp.any(balanced_K), jnp.argmax(balanced_K), len(bounds_Kx2) - 1)
        least, most = bounds_Kx2[chosen]
        return ~ppo_loss(ratio_BxT, tokens.advantage, least, most)[1]

    return mask(factor)


def _search(low: tuple[str, float, float, float], high: tuple[str, float, float, float]) -> list[tuple[float, float]]:
    """The pairs of bounds in the order in which they are tried; a bound is (name, first, largest, step)."""
    pairs = [(low[1], high[1])]
    for place, (name, first, most, step) in enumerate((low, high)):
        if most < first:
            raise ValueError(
                f"algo.transforms.bapo.{name}_most={most!r} is below {name}={first!r}: the bound rises from {name} to "
                f"{name}_most; set both to the same number to hold it"
            )
        while pairs[-1][place] < most:
            raised = min(pairs[-1][place] + step, most)
            pairs.append((raised, pairs[-1][1]) if place == 0 else (pairs[-1][0], raised))
    return pairs
