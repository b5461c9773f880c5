"""EntroPIC: a PI controller weights the sure tokens so that the entropy holds a target (arXiv 2511.15248)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, From0To1
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped
from entropy_rl.token_transforms.base import Normalizer, checked, normalised, stateful


class Controller(NamedTuple):
    """State of the controller; it is part of the checkpoint.

    Attributes:
        error: Σ (H − target) over the updates so far, nats, f32[].
        used: α of the last update, f32[]; 0 before the first.
    """

    error: Array
    used: Array


@checked
def entropic(
    target: From0 = 0.1,
    proportional: From0 = 1.0,
    integral: From0 = 0.01,
    bound: From0To1 = 0.95,
    normalizer: Normalizer = "selected",
) -> optax.GradientTransformationExtraArgs:
    """Adds −α · |A| · r to the loss of the tokens with p > bound, α = K_p (H − target) + K_i Σ (H − target) in [−1, 1].

    H is the token mean of the entropy over the update, the sum is over the updates before it. So with α < 0, below the
    target, a sure token of a right answer pushes with the weight 1 + α and one of a wrong answer with 1 − α: what
    lowers the entropy counts less, what raises it more. The clip of the objective does not stop the added term. An
    empty batch changes nothing.

    As in the official code, where K_i acts on micro-batches and each rank has a sum of its own.

    Args:
        target: the entropy to hold, nats.
        proportional: K_p, per nat; with `integral` 0 too, the transform does nothing.
        integral: K_i, per nat.
        bound: the probability above which a token is sure.
        normalizer: "selected" divides the added term by the number of sure tokens, as the official code does; "all"
            by that of all tokens, so that the weights are exactly 1 ± α.

    Returns:
        A transform with state `Controller`.

    Raises:
        ValueError: If an option is out of range.
    """

    def init() -> Controller:
        return Controller(jnp.float32(0), jnp.float32(0))

    def edit(grads: TokenGrads, state: Controller, tokens: TokenInfo, key: Array) -> tuple[TokenGrads, Controller]:
        some = masked.size(tokens.mask) > 0
        error = jnp.where(some, masked.mean(tokens.entropy, tokens.mask) - target, 0.0)
        alpha = jnp.where(some, jnp.clip(proportional * error + integral * state.error, -1.0, 1.0), state.used)
        sure_BxT = (tokens.mask > 0) & (jnp.exp(tokens.logp) > bound)
        weight_BxT = normalised(sure_BxT, tokens, normalizer) * tokens.weight
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        added_BxT = alpha * jnp.abs(tokens.advantage) * ratio_BxT * weight_BxT
        return grads._replace(logp=grads.logp - added_BxT), Controller(state.error + error, alpha)

    return stateful(init, edit)
