"""What an update does to the entropy of its own tokens: measured, to first order, and as the theorems predict it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from entropy_rl import covariance
from entropy_rl.model import lora
from entropy_rl.model.head_extras import Extras
from entropy_rl.model.transformer import Transformer
from entropy_rl.objective.tokens import TokenGrads
from entropy_rl.stats import masked
from entropy_rl.training.batch import Batch, TrainState
from entropy_rl.training.scoring import pieces, pulled_along, score
from entropy_rl.training.update import Method, Metrics, train_step

Array = jax.Array


def measured_step(
    model: Transformer,
    method: Method,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    rate_of: Callable[[optax.OptState], Array | float],
    state: TrainState,
    batch: Batch,
    key: Array,
    on_policy: Array | bool,
) -> tuple[TrainState, Metrics]:
    """`update.train_step`, with more metrics: the change that the update makes to its tokens' entropy, nats.

    `entropy/delta` is the change of their mean entropy. `entropy/delta_predicted` is the same, exact to first order:
    ⟨∇H, Δθ⟩ with the Δθ of the optimiser. `entropy/delta_thm1` and `entropy/delta_thm2` are the covariance proxies
    of arXiv 2505.22617 with η = `rate_of(opt_state)`, the rate of this update. `entropy/delta_score` is that of arXiv
    2602.03392, by entropy scores (`covariance.py: entropy_change_by_score`). `quadrant/*` splits the change by
    probability and sign of the advantage. The cost is two forward passes, one pass forward and back, and, in memory,
    the parameters from before the update beside those after it.
    """
    mask = batch.mask * batch.valid[:, None]
    asked = Extras(score_mean=True)
    logp, before, score_mean = score(model, method.temperature, micro_batches, state.params, batch, asked)
    step_size = rate_of(state.opt_state)
    new, metrics = train_step(model, method, optimizer, micro_batches, state, batch, key, on_policy)
    # After the update, piece by piece: no gradient of the entropy is in memory beside the update's own.
    (old, frozen), (trained, _) = lora.split(state.params), lora.split(new.params)
    old, trained, batch = jax.lax.optimization_barrier((old, trained, batch))
    _, after = score(model, method.temperature, micro_batches, lora.join(trained, frozen), batch)
    p = pieces(model, method.temperature, micro_batches, batch)
    summed = TokenGrads(jnp.zeros_like(before), mask.astype(jnp.float32))
    moved = pulled_along(p, lora.join(old, frozen), summed, jax.tree.map(jnp.subtract, trained, old))
    table = covariance.quadrants(logp, batch.advantage, mask, after - before)

    def theorem(number: int) -> Array:
        return step_size * covariance.predicted_entropy_change(logp, batch.advantage, mask, 1.0, number)

    return new, metrics | {
        "entropy/delta": masked.mean(after - before, mask),
        "entropy/delta_predicted": moved / jnp.maximum(masked.size(mask), 1),
        "entropy/delta_thm1": theorem(1),
        "entropy/delta_thm2": theorem(2),
        "entropy/delta_score": covariance.entropy_change_by_score(
            logp, before, score_mean, batch.advantage, mask, step_size
        ),
        **{f"quadrant/{name}/{field}": x for name, row in table.items() for field, x in row.items()},
    }
