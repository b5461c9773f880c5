"""Truncated importance sampling between the sampler and the trainer, and the gap between the two.

B sequences, T response positions. Kernels and precision make the sampler's log-probabilities differ from the
trainer's at the same parameters. The weight corrects for this; the gap is a metric to watch.
"""

import jax.numpy as jnp
from jax import Array, lax

from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped, kl_estimate


def importance_weights(trainer_logp: Array, sampler_logp: Array, mask: Array, cap: float) -> Array:
    """min(π_trainer / π_sampler, cap) of each token, detached, both at the parameters that sampled.

    Args:
        trainer_logp: f32[B, T], nats, the trainer's score of the rollout.
        sampler_logp: f32[B, T], nats, at which the sampler drew it.
        mask: f32 or bool[B, T].
        cap: the largest weight; 2 to 3 is usual.

    Returns:
        f32[B, T] in [0, cap], 0 at masked tokens: the `correction_BxT` of `surrogates.token_gradient`.

    Raises:
        ValueError: If cap is not above 0.
    """
    if cap <= 0:
        raise ValueError(f"algo.is_cap: got {cap!r}, must be above 0 if the correction is used")
    ratio_BxT = jnp.exp(clamped(jnp.where(mask > 0, trainer_logp - sampler_logp, 0.0)))
    return lax.stop_gradient(jnp.where(mask > 0, jnp.minimum(ratio_BxT, cap), 0.0))


def sampler_gap(trainer_logp: Array, sampler_logp: Array, mask: Array) -> dict[str, Array]:
    """The gap between the trainer's and the sampler's logp, in nats.

    Args:
        trainer_logp: as for `importance_weights`.
        sampler_logp: as for `importance_weights`.
        mask: as for `importance_weights`.

    Returns:
        f32[] each, 0 on an empty mask: `mean_abs` and `max_abs` of the difference, and `kl`, the k3 estimate of
        KL(sampler ‖ trainer). The means are over the valid tokens.
    """
    gap_BxT = jnp.where(mask > 0, trainer_logp - sampler_logp, 0.0)
    return {
        "mean_abs": masked.mean(jnp.abs(gap_BxT), mask),
        "max_abs": jnp.max(jnp.abs(gap_BxT), initial=0.0),
        "kl": masked.mean(kl_estimate(gap_BxT, "k3"), mask),
    }
