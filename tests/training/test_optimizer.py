"""The optimiser: its rate during and after the warm-up of the rate."""

import jax.numpy as jnp
import optax
import pytest

from entropy_rl import config
from entropy_rl.training.optimizer import optimizer_of, rate_of


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_is_that_of_the_next_update(name, warmup):
    """At a constant gradient of 1, SGD and AdamW move by the rate."""
    c = config.default()
    c.optim.update(name=name, lr=0.5, warmup_updates=warmup)
    optimizer, params = optimizer_of(c.optim), {"w": jnp.float32(0.0)}
    state, rates, moves = optimizer.init(params), [], []
    for _ in range(6):
        rates.append(float(rate_of(c.optim, state)))
        updates, state = optimizer.update({"w": jnp.float32(1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        moves.append(-float(updates["w"]))
    assert rates == pytest.approx([0.5 * min(1, i / warmup) if warmup else 0.5 for i in range(6)])
    assert moves == pytest.approx(rates, rel=1e-4)
