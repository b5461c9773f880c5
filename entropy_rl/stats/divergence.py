"""One-sample estimates of a KL divergence from the log-ratio of two policies at the sampled token."""

import jax.numpy as jnp
from jax import Array, lax

KINDS = ("k1", "k2", "k3", "abs")

LOG_RATIO_LIMIT = 20.0  # exp(20) = 4.9e8 is the largest ratio allowed, so that the product of two does not overflow


def clamped(log_ratio: Array) -> Array:
    """The log-ratio clipped to ±20; its gradient is 0 outside."""
    return jnp.where(
        jnp.abs(log_ratio) <= LOG_RATIO_LIMIT,
        log_ratio,
        lax.stop_gradient(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)),
    )


def kl_estimate(log_q_over_p: Array, kind: str) -> Array:
    """Elementwise estimate of KL(p ‖ q), in nats, from tokens drawn from p.

    With x = log q − log p at the token:
        k1: −x, unbiased, of either sign.
        k2: x²/2.
        k3: exp(x) − 1 − x, unbiased and never negative (Schulman 2020); x is clipped to ±20 nats.
        abs: |x|, which the official KL-Cov code calls its KL.
    At x = 0 the gradient of each is 0, except for k1.

    Args:
        log_q_over_p: x, f32 of any shape.
        kind: one of KINDS.

    Returns:
        The estimates, f32 of the same shape.

    Raises:
        ValueError: If the kind is unknown.
    """
    x = log_q_over_p
    if kind == "k1":
        return -x
    if kind == "k2":
        return 0.5 * x * x
    if kind == "k3":
        x = clamped(x)
        return jnp.expm1(x) - x
    if kind == "abs":
        return x * lax.stop_gradient(jnp.sign(x))  # jnp.abs has gradient 1 at 0
    raise ValueError(f"kl: got {kind!r}, choose one of {', '.join(KINDS)}")
