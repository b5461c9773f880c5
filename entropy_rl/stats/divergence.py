"""One-sample estimates of a KL divergence from the log-ratio of two policies at the sampled token."""

import jax.numpy as jnp
from jax import Array, lax

KINDS = ("k1", "k2", "k3", "abs")

LOG_RATIO_LIMIT = 20.0  # exp(20) = 4.9e8: the largest ratio let through, so that no product of two overflows


def clamped(log_ratio: Array) -> Array:
    """The log-ratio held within ±20; its gradient is 0 outside."""
    return jnp.where(
        jnp.abs(log_ratio) <= LOG_RATIO_LIMIT,
        log_ratio,
        lax.stop_gradient(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)),
    )


def kl_estimate(log_q_over_p: Array, kind: str) -> Array:
    """Estimate of KL(p ‖ q) in nats from tokens drawn from p, elementwise; x = log q − log p at the token.

    k1: −x, unbiased, of either sign. k2: x²/2. k3: exp(x) − 1 − x, unbiased and never negative (Schulman 2020).
    abs: |x|, what the official KL-Cov code calls its KL. The gradient of each is 0 at x = 0, but k1's.
    exp(x) is held at ±20 nats.

    Raises:
      ValueError: on an unknown kind.
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
