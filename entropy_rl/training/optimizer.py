"""The optimiser of the parameters."""

import jax
import optax
from ml_collections import ConfigDict


def optimizer_of(optim: ConfigDict) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or plain SGD, at a constant rate after a linear warm-up.

    Args:
        optim: the config section.
    """
    lr = _schedule(optim) if optim.warmup_updates else optim.lr
    if optim.name == "adamw":
        step = optax.adamw(lr, optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay)
    else:
        step = optax.sgd(lr)
    return optax.chain(optax.clip_by_global_norm(optim.grad_clip), step)


def rate_of(optim: ConfigDict, opt_state: optax.OptState) -> jax.Array | float:
    """The learning rate of the next update.

    Args:
        optim: the config section.
        opt_state: the state of its optimiser; it counts the updates that were made, and not those that were skipped.
    """
    if not optim.warmup_updates:
        return optim.lr

    def scheduled(state: object) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    (state,) = filter(scheduled, jax.tree.leaves(opt_state, is_leaf=scheduled))
    return _schedule(optim)(state.count)


def _schedule(optim: ConfigDict) -> optax.Schedule:
    return optax.linear_schedule(0.0, optim.lr, optim.warmup_updates)
