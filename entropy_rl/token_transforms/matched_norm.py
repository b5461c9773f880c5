"""Matched gradient norm: does a method act by choosing tokens, or only by making the gradient smaller?"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.token_transforms.base import stateful


def _norm(grads: TokenGrads) -> Array:
    return jnp.sqrt(jnp.sum(grads.logp**2) + jnp.sum(grads.entropy**2))


def matched_norm(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The incoming token gradients, all of them, scaled to the norm that `inner` would have left.

    The norm is over both [B, T] arrays. In a config `inner` is written as a pair (name, options).

    Args:
      inner: the transform this is the control to.
    """

    def edit(grads, state, tokens, key):
        edited, state = inner.update(grads, state, tokens=tokens, key=key)
        before = _norm(grads)
        scale = _norm(edited) / jnp.where(before > 0, before, 1.0)
        return jax.tree.map(lambda g: g * scale, grads), state

    made = stateful(tuple, edit)
    return optax.GradientTransformationExtraArgs(inner.init, made.update)
