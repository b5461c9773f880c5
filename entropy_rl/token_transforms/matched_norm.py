"""Matched gradient norm: does a method act by its choice of tokens, or only by making the gradient smaller?"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads, TokenInfo
from entropy_rl.token_transforms.base import stateful


def _norm(grads: TokenGrads) -> Array:
    return jnp.sqrt(jnp.sum(grads.logp**2) + jnp.sum(grads.entropy**2))


def matched_norm(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Scales the gradients of all tokens alike, to the norm that they would have after `inner`.

    The norm is taken over both [B, T] arrays. In a config `inner` is written as a pair (name, options).

    Args:
        inner: the transform that this one is the control for.

    Returns:
        A transform with the state of `inner`. Gradients of norm 0 stay 0.
    """

    def edit(grads: TokenGrads, state: Any, tokens: TokenInfo, key: Array) -> tuple[TokenGrads, Any]:
        edited, state = inner.update(grads, state, tokens=tokens, key=key)
        before = _norm(grads)
        scale = _norm(edited) / jnp.where(before > 0, before, 1.0)
        return jax.tree.map(lambda g: g * scale, grads), state

    made = stateful(tuple, edit)
    return optax.GradientTransformationExtraArgs(inner.init, made.update)
