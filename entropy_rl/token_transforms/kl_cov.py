"""KL-Cov: a KL penalty holds the tokens of highest covariance to the old policy (arXiv 2505.22617)."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.covariance import token_covariance
from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.rules import From0, Share, one_of
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import kl_estimate
from entropy_rl.stats.selection import count, select
from entropy_rl.token_transforms.base import checked, stateless


@checked
def kl_cov(
    fraction: Share = 2e-3, coef: From0 = 1.0, kl: Annotated[str, one_of("abs", "k3")] = "abs"
) -> optax.GradientTransformationExtraArgs:
    """Adds coef · weight · d KL(π_old ‖ π_θ) / d logp on the count(fraction, N) tokens of highest covariance.

    Every form of the penalty has zero gradient if π_θ = π_old, so on the first update after a rollout this does
    nothing; see `check_updates_per_rollout`. The official runs use no PPO clip with it.

    A batch without any advantage, whose groups are all degenerate, has covariance 0 everywhere. The penalty acts on
    that share of its tokens all the same, as in the official code (`compute_policy_loss_kl_cov`). So from the second
    update after a rollout on, the gradient of such a batch is not 0.

    Args:
        fraction: share k of the batch's N valid tokens to hold.
        coef: β.
        kl: "abs" (|logp − old_logp|, the official code; gradient 0 at 0) or "k3".

    Returns:
        A transform without state. On an empty batch it adds nothing.

    Raises:
        ValueError: If an option is out of range or `kl` is unknown.
    """

    def edit(grads: TokenGrads, tokens: TokenInfo, key: Array) -> TokenGrads:
        cov_BxT = token_covariance(tokens.logp, tokens.advantage, tokens.mask)
        held_BxT = select(cov_BxT, tokens.uid, tokens.mask, count(fraction, masked.size(tokens.mask)))

        def penalty(logp_BxT: Array) -> Array:
            kl_BxT = kl_estimate(logp_BxT - tokens.old_logp, kl)
            return coef * jnp.sum(jnp.where(held_BxT, tokens.weight * kl_BxT, 0.0))

        return grads._replace(logp=grads.logp + jax.grad(penalty)(tokens.logp))

    return stateless(edit)
