"""A penalty that holds the policy to a reference: loss += coef · KL(π_θ ‖ π_ref), estimated at the sampled tokens."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, one_of
from entropy_rl.stats.divergence import KINDS, kl_estimate
from entropy_rl.token_transforms.base import checked, require, stateless


@checked
def reference_kl(coef: From0, kind: Annotated[str, one_of(*KINDS)] = "k3") -> optax.GradientTransformationExtraArgs:
    """Adds coef · weight · d kl_estimate / d logp, with x = ref_logp − logp.

    Args:
        coef: per nat. The entropy paper (arXiv 2505.22617) finds that 1e-3 to 0.1 lowers the score.
        kind: "k2" and "k3" pull towards the reference. As a loss, "k1" has a gradient whose expectation is 0: it is
            here for comparison, not for use.

    Returns:
        A transform without state that needs `TokenInfo.ref_logp`.

    Raises:
        ValueError: If the coefficient is below 0 or the kind is unknown.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        ref_BxT = require(tokens.ref_logp, "ref_logp", "reference_kl")

        def penalty(logp_BxT: Array) -> Array:
            return coef * jnp.sum(tokens.weight * kl_estimate(ref_BxT - logp_BxT, kind))

        return grads._replace(logp=grads.logp + jax.grad(penalty)(tokens.logp))

    return stateless(edit)
