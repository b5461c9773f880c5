"""ADAPO: the upper clip follows the entropy (arXiv 2603.11682)."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.surrogates import ppo_loss
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, From0To1, number
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import checked, stateful


class AdaptiveClip(NamedTuple):
    """State of the clip; it is part of the checkpoint.

    Attributes:
        high: ε_high of this rollout's updates, f32[].
        target: the entropy to hold, nats, f32[]; below 0: not known yet.
    """

    high: Array
    target: Array


@checked
def adapo(
    target: From0 | None = None,
    low: From0To1 = 0.2,
    initial: From0 = 0.28,
    least: From0 = 0.1,
    most: From0 = 1.0,
    factor: Annotated[float, number(least=1)] = 1.1,
) -> optax.GradientTransformationExtraArgs:
    """PPO's clip to [1 − low, 1 + ε_high] over `policy_gradient`, with an ε_high that moves once per rollout.

    With H₀ the token mean of the entropy over the first update of a rollout, whose policy is the one that sampled:
    ε_high is multiplied by `factor` if H₀ < target, divided by it if H₀ > target, and stays in [least, most]. It then
    holds for all updates of the rollout; the first of them has ratios of 1, so it clips nothing. An empty batch leaves
    ε_high unchanged.

    Confirmed from notes on the paper: ε_high rises below the target and falls above it, the target is the entropy at
    the start, and the controller multiplies and divides (by 2 for the coefficient of REPO). The numbers `factor`,
    `least` and `most` are this code's; the paper's were not found.

    Args:
        target: the entropy to hold, nats; None: that of the first rollout.
        low: ε_low.
        initial: ε_high before the first rollout; 0.28 is DAPO's.
        least: smallest ε_high.
        most: largest ε_high.
        factor: of one move; 1: it does not move, and the method is PPO's clip.

    Returns:
        A transform with state `AdaptiveClip`.

    Raises:
        ValueError: If an option is out of range, or `initial` is not from `least` to `most`.
    """
    if not least <= initial <= most:
        raise ValueError(f"algo.transforms.adapo.initial={initial!r} must be from least={least!r} to most={most!r}")

    def init() -> AdaptiveClip:
        return AdaptiveClip(jnp.float32(initial), jnp.float32(-1 if target is None else target))

    def begin(state: AdaptiveClip, tokens: TokenInfo) -> AdaptiveClip:
        entropy = masked.mean(tokens.entropy, tokens.mask)
        held = jnp.where(state.target < 0, entropy, state.target)
        moved = jnp.where(
            entropy < held, state.high * factor, jnp.where(entropy > held, state.high / factor, state.high)
        )
        some = masked.size(tokens.mask) > 0
        return AdaptiveClip(
            jnp.where(some, jnp.clip(moved, least, most), state.high), jnp.where(some, held, state.target)
        )

    def edit(grads: TokenGrads, state: AdaptiveClip, tokens: TokenInfo, key: Array) -> tuple[TokenGrads, AdaptiveClip]:
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        _, clipped_BxT = ppo_loss(ratio_BxT, tokens.advantage, 1 - low, 1 + state.high)
        return grads._replace(logp=jnp.where(clipped_BxT, 0.0, grads.logp)), state

    return stateful(init, edit, begin)
