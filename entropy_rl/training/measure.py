"""What an update does to the entropy of its own tokens: measured, to first order, and as the theorems predict it."""

import jax
import jax.numpy as jnp
import optax

from entropy_rl import covariance
from entropy_rl.model.transformer import Transformer
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.stats import masked
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.scoring import pieces, pull_back, score
from entropy_rl.training.update import Method, Metrics, train_step

Array = jax.Array


def measured_step(
    model: Transformer,
    method: Method,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    step_size: float,
    state: TrainState,
    batch: Batch,
    key: Array,
    on_policy: Array | bool,
) -> tuple[TrainState, Metrics]:
    """`update.train_step`, with more metrics: the change that the update makes to its tokens' entropy, nats.

    `entropy/delta` is the change of their mean entropy. `entropy/delta_predicted` is the same, exact to first order:
    ⟨∇H, Δθ⟩ with the Δθ of the optimiser. `entropy/delta_thm1` and `entropy/delta_thm2` are the covariance proxies
    of arXiv 2505.22617 with η = `step_size`. `quadrant/*` splits the change by probability and sign of the advantage.
    The cost is two forward passes, one pass forward and back, and a tree of gradients.
    """
    mask = batch.mask * batch.valid[:, None]
    logp, before = score(model, method.temperature, micro_batches, state.params, batch)
    p = pieces(model, method.temperature, micro_batches, batch)
    slope = pull_back(p, state.params, TokenGrads(jnp.zeros_like(before), mask.astype(jnp.float32)))
    new, metrics = train_step(model, method, optimizer, micro_batches, state, batch, key, on_policy)
    _, after = score(model, method.temperature, micro_batches, new.params, batch)
    moved = jax.tree.map(lambda d, a, b: jnp.sum(d * (a - b)), slope, new.params, state.params)
    table = covariance.quadrants(logp, batch.advantage, mask, after - before)

    def theorem(number: int) -> Array:
        return covariance.predicted_entropy_change(logp, batch.advantage, mask, step_size, number)

    return new, metrics | {
        "entropy/delta": masked.mean(after - before, mask),
        "entropy/delta_predicted": sum(jax.tree.leaves(moved)) / jnp.maximum(masked.size(mask), 1),
        "entropy/delta_thm1": theorem(1),
        "entropy/delta_thm2": theorem(2),
        **{f"quadrant/{name}/{field}": x for name, row in table.items() for field, x in row.items()},
    }
