"""The optimiser of the parameters."""

import optax
from ml_collections import ConfigDict


def optimizer_of(optim: ConfigDict) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or plain SGD, at a constant rate after a linear warm-up.

    Args:
        optim: the config section.
    """
    lr = optax.linear_schedule(0.0, optim.lr, optim.warmup_updates) if optim.warmup_updates else optim.lr
    if optim.name == "adamw":
        step = optax.adamw(lr, optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay)
    else:
        step = optax.sgd(lr)
    return optax.chain(optax.clip_by_global_norm(optim.grad_clip), step)
