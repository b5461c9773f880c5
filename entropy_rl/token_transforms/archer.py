"""Archer: a wide clip where a response is unsure, a narrow one and a KL penalty where it is sure (arXiv 2507.15778)."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.surrogates import ppo_loss
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, From0To1
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped, kl_estimate
from entropy_rl.token_transforms.base import checked, normalised, require, stateless


@checked
def archer(
    quantile: From0To1 = 0.8, clip_above: From0To1 = 0.5, clip_below: From0To1 = 0.2, coef: From0 = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """PPO's clip and a penalty, each by whether a token's entropy is above a quantile of its own response.

    A token above it is clipped to 1 ± clip_above, the others to 1 ± clip_below. The others also have the penalty
    coef · KL(π ‖ π_ref), estimated by k3, as a mean over them alone, by their weights; it acts on clipped ones too.
    The clip is made here, so the objective is `policy_gradient`: with clip_above = clip_below and coef = 0 this is
    `ppo_clip`. The metric `ratio/clip_frac` is the objective's, so it is 0.

    The quantile is interpolated linearly, and H is that of the current policy, as in the official code. That code takes
    the mean of each micro-batch of one response, and has a dual clip of 10, which is left out here.

    Args:
        quantile: of the entropy of a response's tokens.
        clip_above: ε above the quantile, on both sides.
        clip_below: ε up to the quantile, on both sides.
        coef: of the penalty, per nat.

    Returns:
        A transform without state that needs `TokenInfo.ref_logp`.

    Raises:
        ValueError: If an option is out of range.
    """

    def above(entropy_T: Array, mask_T: Array) -> Array:
        return entropy_T > masked.quantile(entropy_T[None], mask_T[None], quantile)

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        ref_BxT = require(tokens.ref_logp, "ref_logp", "archer")
        above_BxT = jax.vmap(above)(tokens.entropy, tokens.mask)
        ratio_BxT = jnp.exp(clamped(tokens.logp - tokens.old_logp))
        lowest_BxT = jnp.where(above_BxT, 1 - clip_above, 1 - clip_below)
        highest_BxT = jnp.where(above_BxT, 1 + clip_above, 1 + clip_below)
        _, clipped_BxT = ppo_loss(ratio_BxT, tokens.advantage, lowest_BxT, highest_BxT)
        weight_BxT = tokens.weight * normalised((tokens.mask > 0) & ~above_BxT, tokens, "selected")

        def penalty(logp_BxT: Array) -> Array:
            return coef * jnp.sum(weight_BxT * kl_estimate(ref_BxT - logp_BxT, "k3"))

        return grads._replace(logp=jnp.where(clipped_BxT, 0.0, grads.logp) + jax.grad(penalty)(tokens.logp))

    return stateless(edit)
