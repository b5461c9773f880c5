"""The matrices of a layer: which axes of a leaf are inputs, and which are outputs.

A leaf keeps heads and head_dim apart, and the leaves of all layers are stacked, so the product x · W of one layer is
that of a matrix which no leaf shows as it is: q, [D, H, h], is [D, H·h], and o, [H, h, D], is [H·h, D].
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from entropy_rl.model.config import ADAPTER

# The matrices' leaves, and how many of the first axes of each, in one layer, are inputs.
WEIGHTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
INPUTS = {
    **WEIGHTS,
    **{f"{name}{ADAPTER}a": inputs for name, inputs in WEIGHTS.items()},
    **{f"{name}{ADAPTER}b": 1 for name in WEIGHTS},
}

Array = jax.Array


def as_matrices(layer: dict[str, Any]) -> dict[str, Array]:
    """The leaves of one layer, each matrix as [inputs, outputs], all others (norms, biases) as vectors."""
    return {name: _flat(name, x) for name, x in layer.items()}


def as_leaves(flat: dict[str, Any], layer: dict[str, Any]) -> dict[str, Array]:
    """The inverse of `as_matrices`, in the shapes of `layer`."""
    return {name: x.reshape(layer[name].shape) for name, x in flat.items()}


def by_name(tree: Any, of: Callable[[str, int], Any]) -> dict[str, Any]:
    """For each leaf of the parameters: of(name, input axes) if it is a matrix of the layers, otherwise None."""
    layers = {name: of(name, INPUTS[name]) if name in INPUTS else None for name in tree["layers"]}
    return {**{name: None for name in tree}, "layers": layers}


def _flat(name: str, x: Array) -> Array:
    return x.reshape(math.prod(x.shape[: INPUTS[name]]), -1) if name in INPUTS else x.reshape(-1)
