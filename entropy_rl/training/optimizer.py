"""The optimiser of the parameters, from Optax: its rate, and its view of stacked layers as matrices."""

from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from entropy_rl import config as config_lib
from entropy_rl import token_transforms
from entropy_rl.model.matrices import as_leaves, as_matrices, by_name

ADAM_RMS = 0.2  # of Muon's updates, which is that of AdamW's (arXiv 2502.16982), so that a rate means the same


def optimizer_of(optim: ConfigDict, updates: int = 0) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimiser of that name.

    All of them take `optim.lr` as the size of a step: Adafactor does not scale it by the parameters' norm, as in the
    trainer of transformers, and Muon's matrices are scaled to the RMS of AdamW's. Both see each layer's matrices as
    such. What is no matrix of a layer (embedding, head, norms, biases) is moved by NAdamW under Muon.

    Args:
        optim: the config section.
        updates: of the whole run (`updates_of`), over which `optim.schedule` falls.

    Raises:
        ValueError: The schedule falls and `updates` is 0.
    """
    lr = _schedule(optim, updates) if _moves(optim) else optim.lr
    mean = None if optim.mu_dtype == "float32" else optim.mu_dtype
    if optim.name == "adamw":
        step = optax.adamw(lr, optim.b1, optim.b2, optim.eps, mu_dtype=mean, weight_decay=optim.weight_decay)
    elif optim.name == "lion":
        step = optax.lion(lr, optim.b1, optim.b2, mu_dtype=mean, weight_decay=optim.weight_decay)
    elif optim.name == "adafactor":
        factored = per_layer(optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))
        decay = optax.add_decayed_weights(optim.weight_decay)
        step = optax.chain(factored, decay, optax.scale_by_learning_rate(lr))
    elif optim.name == "muon":
        decay = {"weight_decay": optim.weight_decay, "adam_weight_decay": optim.weight_decay}
        adam = {"adam_b1": optim.b1, "adam_b2": optim.b2, "eps": optim.eps, "mu_dtype": mean}
        step = muon(lr, consistent_rms=ADAM_RMS, muon_weight_dimension_numbers=matrix_axes, **decay, **adam)
    else:
        step = optax.sgd(lr)
    return optax.chain(optax.clip_by_global_norm(optim.grad_clip), step)


def updates_of(c: ConfigDict) -> int:
    """The updates of a whole run, those of every turn of its method; at least 1."""
    turns = token_transforms.turns(config_lib.transforms_of(c.algo))
    return max(1, int(c.train.steps * c.train.updates_per_rollout * turns))


def rate_of(optim: ConfigDict, opt_state: optax.OptState, updates: int = 0) -> jax.Array | float:
    """The learning rate of the next update.

    Args:
        optim: the config section.
        opt_state: the state of its optimiser; it counts the updates that were made, and not those that were skipped.
        updates: as for `optimizer_of`.
    """
    if not _moves(optim):
        return optim.lr

    def scheduled(state: object) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    # Muon has two, one of its own and one of its AdamW, which count the same
    state, *_ = filter(scheduled, jax.tree.leaves(opt_state, is_leaf=scheduled))
    return _schedule(optim, updates)(state.count)


def _moves(optim: ConfigDict) -> bool:
    return bool(optim.warmup_updates) or optim.schedule != "constant"


def _schedule(optim: ConfigDict, updates: int) -> optax.Schedule:
    """Linear from 0, then as `optim.schedule`: to 0 at `updates`, which is one after the run's last."""
    warm = optax.linear_schedule(0.0, optim.lr, optim.warmup_updates)
    if optim.schedule == "constant":
        return warm
    if not updates:
        raise ValueError(f"optim.schedule={optim.schedule!r} falls over a run's updates, and their number is not given")
    left = max(1, updates - optim.warmup_updates)
    linear = optim.schedule == "linear"
    fall = optax.linear_schedule(optim.lr, 0.0, left) if linear else optax.cosine_decay_schedule(optim.lr, left)
    return optax.join_schedules([warm, fall], [optim.warmup_updates]) if optim.warmup_updates else fall


def matrix_axes(params: Any) -> Any:
    """Muon's view: which axes of each stacked leaf are a matrix's; None: it is no matrix of a layer."""

    def axes(name: str, inputs: int) -> MuonDimensionNumbers:
        size = params["layers"][name].ndim
        return MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, size)))

    return by_name(params, axes)


class PerLayerState(NamedTuple):
    """The state of `per_layer`.

    Attributes:
        layers: the inner state of every layer, stacked.
        rest: the inner state of the other parameters.
    """

    layers: optax.OptState
    rest: optax.OptState


def per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that sees one layer at a time, its weights as matrices, so that no statistic mixes layers."""

    def split(tree: Any) -> tuple[Any, Any]:
        return jax.vmap(as_matrices)(tree["layers"]), {name: x for name, x in tree.items() if name != "layers"}

    def init(params: Any) -> PerLayerState:
        layers, rest = split(params)
        return PerLayerState(jax.vmap(inner.init)(layers), inner.init(rest))

    def update(updates: Any, state: PerLayerState, params: Any = None) -> tuple[Any, PerLayerState]:
        (layers, rest), (of_layers, of_rest) = split(updates), split(params)
        layers, layers_state = jax.vmap(inner.update)(layers, state.layers, of_layers)
        rest, rest_state = inner.update(rest, state.rest, of_rest)
        shaped = {**rest, "layers": jax.vmap(as_leaves)(layers, updates["layers"])}
        return shaped, PerLayerState(layers_state, rest_state)

    return optax.GradientTransformation(init, update)
