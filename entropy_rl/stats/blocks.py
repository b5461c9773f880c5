"""The rows of a batch as micro-batches: blocks of whole groups, strided over prompts.

Prompt i belongs to block i % parts. The stride keeps prompts that are sharded over devices where they are.
"""

import jax
import jax.numpy as jnp
from jax import Array


def _view(x: Array, parts: int, prompts: int) -> Array:
    """[rows, …] -> [prompts / parts, parts, rows per prompt, …]."""
    return x.reshape(prompts // parts, parts, x.shape[0] // prompts, *x.shape[1:])


def take(x: Array, i: Array | int, parts: int, prompts: int) -> Array:
    """Block i of [rows, …], in which each prompt has rows / prompts consecutive rows: [rows / parts, …]."""
    block: Array = jax.lax.dynamic_index_in_dim(_view(x, parts, prompts), i, axis=1, keepdims=False)
    return block.reshape(x.shape[0] // parts, *x.shape[1:])


def put(x: Array, i: Array | int, block: Array, parts: int, prompts: int) -> Array:
    """A copy of x with its block i replaced."""
    view = _view(x, parts, prompts)
    block = block.reshape(view.shape[0], *view.shape[2:])
    replaced: Array = jax.lax.dynamic_update_index_in_dim(view, block, i, axis=1)
    return replaced.reshape(x.shape)


def split(x: Array, parts: int, prompts: int) -> Array:
    """All blocks: [rows, …] -> [parts, rows / parts, …]."""
    return jnp.swapaxes(_view(x, parts, prompts), 0, 1).reshape(parts, x.shape[0] // parts, *x.shape[1:])


def join(x: Array, prompts: int) -> Array:
    """The inverse of `split`: [parts, rows / parts, …] -> [rows, …]."""
    parts, rows = x.shape[:2]
    blocks = x.reshape(parts, prompts // parts, rows * parts // prompts, *x.shape[2:])
    return jnp.swapaxes(blocks, 0, 1).reshape(parts * rows, *x.shape[2:])
