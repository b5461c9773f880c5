"""Matched gradient norm: does a method act by its choice of tokens, or only by making the gradient smaller?"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo


def _norm(grads: TokenGrads) -> Array:
    total = jnp.sum(grads.logp**2) + jnp.sum(grads.entropy**2)
    return jnp.sqrt(total if grads.nucleus_entropy is None else total + jnp.sum(grads.nucleus_entropy**2))


def matched_norm(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Scales the gradients of all tokens alike, to the norm that they would have after `inner`.

    The norm is taken over all [B, T] arrays. In a config `inner` is written as a pair (name, options).

    Args:
        inner: the transform that this one is the control for.

    Returns:
        A transform with the state of `inner`. Gradients of norm 0 stay 0.
    """

    def update(
        grads: TokenGrads, state: Any, params: Any = None, *, tokens: TokenInfo, key: Array, **extra: Any
    ) -> tuple[TokenGrads, Any]:
        edited, state = inner.update(grads, state, params, tokens=tokens, key=key, **extra)
        before = _norm(grads)
        scale = _norm(edited) / jnp.where(before > 0, before, 1.0)
        return jax.tree.map(lambda g: jnp.where(tokens.mask > 0, g * scale, 0.0), grads), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
