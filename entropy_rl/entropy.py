"""Entropy, cross-entropy and divergence from logits, in nats and float32, and summaries of a batch's entropy.

V vocabulary; B sequences, T response positions. H(P, Q) = H(P) + KL(P ‖ Q).

A logit of −inf removes its token from the support: its probability is 0, and gradients stay finite. If P has mass
outside the support of Q, cross-entropy and divergence are inf.
"""

import jax
import jax.numpy as jnp
from jax import Array

from entropy_rl.model.head import logp_and_entropy
from entropy_rl.stats import masked
from entropy_rl.stats.masked import fraction_below, quantile, response_mean

__all__ = [
    "cross_entropy",
    "entropy",
    "entropy_score",
    "fraction_below",
    "kl_divergence",
    "logp_and_entropy",
    "quantile",
    "response_mean",
    "sampled",
    "token_mean",
]

_OUTSIDE = -1e30  # a finite stand-in for −inf: exp gives 0, and 0 · −1e30 is 0 where 0 · −inf is NaN


def _log_probs(logits: Array) -> tuple[Array, Array]:
    """Log-probabilities, about −1e30 outside the support, and the support, [..., V]."""
    logits = logits.astype(jnp.float32)
    inside = logits > -jnp.inf
    largest = jnp.max(logits, axis=-1, keepdims=True, initial=_OUTSIDE)
    below = jnp.maximum(jnp.where(inside, logits, _OUTSIDE) - jax.lax.stop_gradient(largest), _OUTSIDE)
    return jax.nn.log_softmax(below, axis=-1), inside


def _expected(logp: Array, inside: Array, value: Array) -> Array:
    """Σ_v p(v) · value(v) over the support of p, [...]."""
    return jnp.sum(jnp.where(inside, jnp.exp(logp) * value, 0.0), axis=-1)


def entropy(logits: Array) -> Array:
    """H = −Σ p log p of softmax(logits), nats, f32[...] from [..., V].

    For the entropy at a sampling temperature, divide the logits by it first.

    Example:
        >>> logits = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, 5.0, 10.0]])
        >>> [round(h, 3) for h in entropy(logits).tolist()]  # ln 2 = 0.693: two tokens are equally likely
        [0.693, 0.041]
    """
    logp, inside = _log_probs(logits)
    return -_expected(logp, inside, logp)


def cross_entropy(logits_p: Array, logits_q: Array) -> Array:
    """H(P, Q) = −Σ p log q, nats, f32[...] from two [..., V]."""
    logp, inside = _log_probs(logits_p)
    logq, inside_q = _log_probs(logits_q)
    outside = jnp.any(inside & ~inside_q, axis=-1)
    return jnp.where(outside, jnp.inf, -_expected(logp, inside & inside_q, logq))


def kl_divergence(logits_p: Array, logits_q: Array) -> Array:
    """KL(P ‖ Q) = Σ p (log p − log q), nats, f32[...] from two [..., V]; negative only by rounding."""
    logp, inside = _log_probs(logits_p)
    logq, inside_q = _log_probs(logits_q)
    outside = jnp.any(inside & ~inside_q, axis=-1)
    return jnp.where(outside, jnp.inf, _expected(logp, inside & inside_q, logp - logq))


def entropy_score(logp: Array, entropy: Array) -> Array:
    """S = π(y) (H + log π(y)): how reinforcing a token moves the entropy of its position (arXiv 2602.03392).

    To first order, the logit step ε (e_y − π) changes H by −ε (S − E_π S). E_π S = Σ π² (H + log π) is
    `TokenInfo.score_mean`.

    Args:
        logp: f32[...], nats, log π(y).
        entropy: f32[...], nats, H(π).

    Returns:
        f32[...], nats; 0 where both arguments are 0, such as at masked tokens.
    """
    return jnp.exp(logp) * (entropy + logp)


def token_mean(entropy_BxT: Array, mask_BxT: Array) -> Array:
    """Mean entropy over the valid tokens of the batch, nats, f32[]; 0 on an empty mask (metric `entropy/mean`)."""
    return masked.mean(entropy_BxT, mask_BxT)


def sampled(logp_BxT: Array, mask_BxT: Array) -> Array:
    """−mean logp of sampled tokens, the one-sample estimate of the mean entropy, nats, f32[]; 0 on an empty mask."""
    return -masked.mean(logp_BxT, mask_BxT)
