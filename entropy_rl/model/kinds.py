"""What differs from layer to layer: a window and rotary positions, as data that a scan over the layers can select.

Masks and RoPE's tables are made once per option and stacked; a layer takes its own by an index. A model whose layers
are all alike has one option, no index and nothing stacked, so that its program knows nothing of this.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model.config import ModelConfig


class Kind(NamedTuple):
    """The kind of one layer, or of all of them, [L].

    Attributes:
        window: i32, an index into `ModelConfig.windows`; None: there is only one.
        rope: i32, an index into `ModelConfig.ropes`; None: there is only one.
    """

    window: Any = None
    rope: Any = None


ALIKE = Kind()  # of a model whose layers are all alike


def kinds(cfg: ModelConfig) -> Kind:
    """The kinds of all layers, i32[L] each."""

    def index(options: Sequence[Any], of: Callable[[int], Any]) -> np.ndarray | None:
        return np.array([options.index(of(i)) for i in range(cfg.n_layers)], np.int32) if len(options) > 1 else None

    return Kind(index(cfg.windows, cfg.window_of), index(cfg.ropes, cfg.rope_of))


def kind_of(kind_L: Kind, layer: int) -> Kind:
    """The kind of one layer, with indices that are known when a program is compiled."""
    return Kind(*(None if index is None else int(index[layer]) for index in kind_L))


def per_option(options: Sequence[Any], make: Callable[[Any], Any]) -> Any:
    """The arrays that are made from each option, stacked along a new first axis unless there is only one option."""
    made = [make(option) for option in options]
    return made[0] if len(made) == 1 else jax.tree.map(lambda *arrays: jnp.stack(arrays), *made)


def pick(x: Any, index: Any) -> Any:
    """The array of an option, from those of `per_option`."""
    return x if index is None else x[index]
