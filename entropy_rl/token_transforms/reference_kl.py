"""A penalty that holds the policy to a reference: loss += coef · KL(π_θ ‖ π_ref), estimated at the sampled tokens."""

import jax
import jax.numpy as jnp
import optax

from entropy_rl.stats.divergence import KINDS, kl_estimate
from entropy_rl.token_transforms.base import require, stateless


def reference_kl(coef: float, kind: str = "k3") -> optax.GradientTransformationExtraArgs:
    """Adds coef · weight · d kl_estimate / d logp, with x = ref_logp − logp.

    Args:
      coef: per nat. The entropy paper finds 1e-3 to 0.1 to lower the score.
      kind: "k2" and "k3" pull towards the reference. "k1" has, as a loss, a gradient whose expectation is 0: it is
        here to be compared with, not to be used.

    Returns:
      A transform without state that needs `TokenInfo.ref_logp`.
    """
    if kind not in KINDS:
        raise ValueError(f"algo.transforms: reference_kl: kind {kind!r}, choose one of {', '.join(KINDS)}")

    def edit(grads, tokens, key):
        ref_BxT = require(tokens.ref_logp, "ref_logp", "reference_kl")
        penalty = lambda logp: coef * jnp.sum(tokens.weight * kl_estimate(ref_BxT - logp, kind))  # noqa: E731
        return grads._replace(logp=grads.logp + jax.grad(penalty)(tokens.logp))

    return stateless(edit)
