"""The rows of a batch as micro-batches: blocks of whole groups, strided over prompts.

Strided, so that prompts sharded over devices stay where they are.
"""

import jax.numpy as jnp
from jax import Array


def split(x: Array, parts: int, prompts: int) -> Array:
    """[rows, …] -> [parts, rows / parts, …]; prompt i, that is rows / prompts consecutive rows, goes to i % parts."""
    group = x.shape[0] // prompts
    blocks = x.reshape(prompts // parts, parts, group, *x.shape[1:])
    return jnp.swapaxes(blocks, 0, 1).reshape(parts, x.shape[0] // parts, *x.shape[1:])


def join(x: Array, prompts: int) -> Array:
    """The inverse of `split`: [parts, rows / parts, …] -> [rows, …]."""
    parts, rows = x.shape[:2]
    blocks = x.reshape(parts, prompts // parts, rows * parts // prompts, *x.shape[2:])
    return jnp.swapaxes(blocks, 0, 1).reshape(parts * rows, *x.shape[2:])
