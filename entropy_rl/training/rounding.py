"""Parameters in bfloat16: the optimiser computes in float32, and its step is added with stochastic rounding.

bfloat16 has 8 bits: a step below 1/512 of a parameter is lost if it is rounded to the nearest, and with learning rates
of 1e-6 nearly every step is. Rounded up or down at random, with the chances that make the mean exact, steps add up.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from entropy_rl.model.precision import stochastic

Array = jax.Array
ROUNDING = 1 << 20  # folded into an update's key; the chain's transforms fold in small numbers


def in_float32(tree: Any) -> Any:
    """The tree as an optimiser computes with it; the tree itself if it is float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def moved(params: Any, updates: Any, key: Array) -> Any:
    """The parameters after a step, in their own dtype; bfloat16 is rounded stochastically.

    Args:
        params: float32 or bfloat16.
        updates: float32, to be added.
        key: of the update, which its chain draws from too; the same one gives the same parameters, on any mesh.
    """
    if all(x.dtype == jnp.float32 for x in jax.tree.leaves(params)):
        return optax.apply_updates(params, updates)
    key, number = jax.random.fold_in(key, ROUNDING), itertools.count()

    def move(x: Array, step: Array) -> Array:
        own = jax.random.fold_in(key, next(number))
        return x + step if x.dtype == jnp.float32 else stochastic(x.astype(jnp.float32) + step, own)

    return jax.tree.map(move, params, updates)
