"""Corrections between the sampler and the trainer, and the gap that they correct.

B sequences, T response positions. Kernels and precision make the log-probabilities at which a response was sampled
differ from the trainer's at the same parameters (arXiv 2510.26788). With ρ = π_trainer / π_sampler of a token, a
correction is a factory that returns

    f(log_rho_BxT, mask_BxT) -> weight_BxT

which multiplies the loss of every token. So it acts before the token transforms: these edit the gradient of the
corrected loss, and a token that a correction stopped has the gradient 0 when they see it. Statistics such as the
covariance and the entropy are taken over all valid tokens, stopped or not.

Every correction has a `veto`: a response in which some token has ρ below it is stopped whole, because no weight can
repair what the trainer thinks impossible. 0 turns it off; 1e-4 is usual.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jax import Array, lax

from entropy_rl import rules
from entropy_rl.objective.registry import Spec, check_spec, split_spec
from entropy_rl.stats import masked
from entropy_rl.stats.divergence import clamped, kl_estimate

Correction = Callable[[Array, Array], Array]  # (log ρ, mask) -> weight, f32[B, T]

Cap = Annotated[float, rules.number(above=0)]
Low = Annotated[float, rules.number(least=0, most=1)]
High = Annotated[float, rules.number(least=1)]
Veto = Annotated[float, rules.number(least=0, below=1)]

checked = rules.checked("algo.correction")  # decorates a factory: its options are checked by their annotations


@checked
def token_truncate(cap: Cap = 2.0, veto: Veto = 0.0) -> Correction:
    """min(ρ, cap) of each token: truncated importance sampling; the same as `algo.is_cap`.

    Args:
        cap: the largest weight; 2 to 3 is usual.
        veto: see the top of this file.

    Raises:
        ValueError: If an option is out of range.
    """
    return _vetoed(veto, lambda log_rho, mask: jnp.minimum(jnp.exp(clamped(log_rho)), cap))


@checked
def token_mask(low: Low = 0.5, high: High = 5.0, veto: Veto = 0.0) -> Correction:
    """ρ of each token, and 0 outside [low, high] (IcePop; bounds as in INTELLECT-3, arXiv 2512.16144, eq. 1).

    Args:
        low: smallest ρ that is kept.
        high: largest.
        veto: see the top of this file.

    Raises:
        ValueError: If an option is out of range.
    """

    def weight(log_rho_BxT: Array, mask_BxT: Array) -> Array:
        rho_BxT = jnp.exp(clamped(log_rho_BxT))
        return jnp.where((rho_BxT >= low) & (rho_BxT <= high), rho_BxT, 0.0)

    return _vetoed(veto, weight)


@checked
def sequence_truncate(cap: Cap = 2.0, veto: Veto = 0.0) -> Correction:
    """min(Π_t ρ_t, cap) for every token of a response: the unbiased weight, truncated.

    Args:
        cap: the largest weight.
        veto: see the top of this file.

    Raises:
        ValueError: If an option is out of range.
    """

    def weight(log_rho_BxT: Array, mask_BxT: Array) -> Array:
        total_Bx1 = jnp.sum(log_rho_BxT, axis=1, keepdims=True)
        return jnp.broadcast_to(jnp.minimum(jnp.exp(clamped(total_Bx1)), cap), log_rho_BxT.shape)

    return _vetoed(veto, weight)


@checked
def sequence_mask(low: Low = 0.5, high: High = 2.0, veto: Veto = 0.0) -> Correction:
    """Π_t ρ_t for every token of a response, and 0 if it is outside [low, high].

    Args:
        low: smallest product that is kept.
        high: largest.
        veto: see the top of this file.

    Raises:
        ValueError: If an option is out of range.
    """

    def weight(log_rho_BxT: Array, mask_BxT: Array) -> Array:
        product_Bx1 = jnp.exp(clamped(jnp.sum(log_rho_BxT, axis=1, keepdims=True)))
        kept_Bx1 = (product_Bx1 >= low) & (product_Bx1 <= high)
        return jnp.broadcast_to(jnp.where(kept_Bx1, product_Bx1, 0.0), log_rho_BxT.shape)

    return _vetoed(veto, weight)


@checked
def geometric_mask(low: Low = 0.99, high: High = 1.01, veto: Veto = 0.0) -> Correction:
    """1 for the responses whose geometric mean of ρ, exp(mean_t log ρ_t), is within [low, high], and 0 for the others.

    It does not depend on the length, where a product drifts off with it. The weight is 1 and not ρ: what is kept is so
    close to the trainer's distribution that weighting it would only add noise.

    Args:
        low: smallest mean that is kept.
        high: largest.
        veto: see the top of this file.

    Raises:
        ValueError: If an option is out of range.
    """

    def weight(log_rho_BxT: Array, mask_BxT: Array) -> Array:
        length_Bx1 = jnp.maximum(jnp.sum(mask_BxT > 0, axis=1, keepdims=True), 1)
        mean_Bx1 = jnp.exp(clamped(jnp.sum(log_rho_BxT, axis=1, keepdims=True) / length_Bx1))
        kept_Bx1 = (mean_Bx1 >= low) & (mean_Bx1 <= high)
        return jnp.broadcast_to(kept_Bx1.astype(jnp.float32), log_rho_BxT.shape)

    return _vetoed(veto, weight)


def none() -> None:
    """No correction: every weight is 1."""


CORRECTIONS: dict[str, Callable[..., Correction | None]] = {
    f.__name__: f for f in (geometric_mask, none, sequence_mask, sequence_truncate, token_mask, token_truncate)
}


def build(spec: Spec) -> Correction | None:
    """The correction that `algo.correction` names, None for "none".

    Args:
        spec: a name, or a pair (name, options).

    Raises:
        ValueError: If the name or an option is unknown or out of range.
    """
    name, options = split_spec(spec, "algo.correction")
    return check_spec(CORRECTIONS, name, options, "algo.correction")(**options)


def weights(correction: Correction, trainer_logp: Array, sampler_logp: Array, mask: Array) -> Array:
    """The weight of each token's loss, detached.

    Args:
        correction: the return value of a factory of this module.
        trainer_logp: f32[B, T], nats, the trainer's score of the rollout, at the parameters that sampled.
        sampler_logp: f32[B, T], nats, at which the sampler drew it.
        mask: f32 or bool[B, T].

    Returns:
        f32[B, T], 0 at masked tokens: the `correction_BxT` of `surrogates.token_gradient`.
    """
    log_rho_BxT = jnp.where(mask > 0, trainer_logp - sampler_logp, 0.0)
    return lax.stop_gradient(jnp.where(mask > 0, correction(log_rho_BxT, mask), 0.0))


def stopped(weight_BxT: Array, mask: Array) -> dict[str, Array]:
    """What a correction did to the valid tokens, f32[] each: `stopped_frac`, with weight 0, and their `mean`."""
    return {"stopped_frac": masked.mean(weight_BxT == 0, mask), "mean": masked.mean(weight_BxT, mask)}


def sampler_gap(trainer_logp: Array, sampler_logp: Array, mask: Array) -> dict[str, Array]:
    """The gap between the trainer's and the sampler's logp, in nats.

    Args:
        trainer_logp: as for `weights`.
        sampler_logp: as for `weights`.
        mask: as for `weights`.

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


def _vetoed(veto: float, weight: Correction) -> Correction:
    """`weight`, and 0 for a whole response in which some ρ is below `veto`."""
    if not veto:
        return weight

    def vetoed(log_rho_BxT: Array, mask_BxT: Array) -> Array:
        impossible_Bx1 = jnp.any((log_rho_BxT < jnp.log(veto)) & (mask_BxT > 0), axis=1, keepdims=True)
        return jnp.where(impossible_Bx1, 0.0, weight(log_rho_BxT, mask_BxT))

    return vetoed
