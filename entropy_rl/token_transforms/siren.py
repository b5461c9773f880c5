"""SIREN: the entropy among likely tokens, where it is high, is held at that of the first step (arXiv 2509.25133)."""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, Share
from entropy_rl.stats import masked
from entropy_rl.stats.selection import as_ratio
from entropy_rl.token_transforms.base import checked, require, stateful

UNKNOWN = -1.0  # of an anchor, which is an entropy and so at least 0


class Siren(NamedTuple):
    """State of SIREN; it is part of the checkpoint.

    Attributes:
        anchor: M₀, the entropy that is held, nats, f32[]; −1 before the first update.
    """

    anchor: Array


@checked
def siren(
    coef: From0 = 0.005, top_p: Share = 0.8, fraction: Share = 0.2, anchor: From0 | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds coef · (M − M₀)² to the loss; M is the mean nucleus entropy of the tokens where that is high.

    A position's nucleus is the fewest next tokens that have `top_p` together (`model/head_extras.py: Extras`). M is the
    mean over responses of the mean over those tokens whose nucleus entropy is above the (1 − fraction)-quantile of
    their response. The selection is detached. M₀ is M at the first update, whose gradient is therefore 0.

    The defaults, the quantile per response and the two means are those of the official code (Linn3a/siren). It takes M₀
    over the whole first rollout and M per micro-batch. Its nucleus lacks the token that reaches `top_p`, and so is
    empty if one token has `top_p` alone; here it is the usual one.

    Args:
        coef: per nat squared.
        top_p: p of the nucleus.
        fraction: share of each response's tokens, those of highest nucleus entropy.
        anchor: M₀, nats; None: taken from the first update.

    Returns:
        A transform with state `Siren` that needs `TokenInfo.nucleus_entropy`. An empty batch adds nothing and sets no
        anchor.

    Raises:
        ValueError: If an option is out of range.
    """
    quantile = float(1 - Fraction(*as_ratio(fraction)))

    def init() -> Siren:
        return Siren(jnp.float32(UNKNOWN if anchor is None else anchor))

    def begin(state: Siren, tokens: TokenInfo) -> Siren:
        found = jnp.where(masked.size(tokens.mask) > 0, _mean_and_weight(tokens, quantile)[0], UNKNOWN)
        return Siren(jnp.where(state.anchor < 0, found, state.anchor))

    def edit(grads: TokenGrads, state: Siren, tokens: TokenInfo, key: Array) -> tuple[TokenGrads, Siren]:
        mean, weight_BxT = _mean_and_weight(tokens, quantile)
        distance = jnp.where(state.anchor < 0, 0.0, mean - state.anchor)
        pull_BxT = 2 * coef * distance * weight_BxT
        before = grads.nucleus_entropy
        return grads._replace(nucleus_entropy=pull_BxT if before is None else before + pull_BxT), state

    return stateful(init, edit, begin)


def _mean_and_weight(tokens: TokenInfo, quantile: float) -> tuple[Array, Array]:
    """(M f32[], each token's weight in it f32[B, T])."""
    entropy_BxT = require(tokens.nucleus_entropy, "nucleus_entropy", "siren")
    valid_BxT = tokens.mask > 0
    bound_B = jax.vmap(lambda h, valid: masked.quantile(h, valid, quantile))(entropy_BxT, valid_BxT)
    high_BxT = valid_BxT & (entropy_BxT > bound_B[:, None])
    responses = jnp.maximum(jnp.sum(jnp.any(valid_BxT, axis=1)), 1)
    weight_BxT = high_BxT / (responses * jnp.maximum(jnp.sum(high_BxT, axis=1, keepdims=True), 1)).astype(jnp.float32)
    return jnp.sum(weight_BxT * entropy_BxT), weight_BxT
