"""bfloat16 parameters: steps too small for them add up in the mean, and a run's rounding is its key's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import updates

from entropy_rl import config
from entropy_rl.model.precision import stochastic
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training.engine import Engine
from entropy_rl.training.rounding import moved
from entropy_rl.training.warmup import Lessons


def test_rounding_is_right_in_the_mean():
    x = jnp.float32(1 + 2**-10)  # bfloat16 has 1 and 1 + 2^-7: an eighth of the way
    draws = np.asarray(jax.vmap(lambda k: stochastic(x, k))(jax.random.split(jax.random.key(0), 20_000)), np.float32)
    assert set(draws.tolist()) == {1.0, 1 + 2**-7}
    assert np.mean(draws > 1) == pytest.approx(1 / 8, abs=4 * np.sqrt(1 / 8 * 7 / 8 / 20_000))
    negative = np.asarray(stochastic(jnp.full(20_000, -x), jax.random.key(1)), np.float32)
    assert negative.mean() == pytest.approx(-float(x), abs=2e-4)


def test_what_bfloat16_can_hold_stays():
    kept = jnp.array([0.0, -0.0, 1.5, -3e38, 1e-38, jnp.inf, -jnp.inf], jnp.bfloat16)
    for seed in range(8):
        out = stochastic(kept.astype(jnp.float32), jax.random.key(seed))
        assert np.asarray(out).tobytes() == np.asarray(kept).tobytes()


def test_small_steps_add_up():
    """A thousand steps of 1e-4: to the nearest, 1 would never move."""
    params = {"w": jnp.ones(1000, jnp.bfloat16), "scale": jnp.ones(3)}
    step = jax.tree.map(lambda x: jnp.full(x.shape, -1e-4), params)
    assert jnp.all(params["w"] + step["w"].astype(jnp.bfloat16) == 1)

    def one(i, params):
        return moved(params, step, jax.random.fold_in(jax.random.key(0), i))

    end = jax.lax.fori_loop(0, 1000, one, params)
    assert end["w"].dtype == jnp.bfloat16 and end["scale"].dtype == jnp.float32
    assert float(end["w"].astype(jnp.float32).mean()) == pytest.approx(0.9, abs=2e-3)
    np.testing.assert_allclose(end["scale"], 0.9, rtol=1e-4)


@pytest.mark.slow
def test_an_update_of_bfloat16_parameters_is_a_function_of_its_key():
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens = updates.N, updates.G, updates.T
    c.data.max_prompt_len, c.train.updates_per_rollout, c.train.layout = updates.P, 1, "group"
    c.model.param_dtype, c.optim.lr = "bfloat16", 1e-3
    engine = Engine.of(c, updates.CFG, None, make_mesh(devices=jax.devices()[:1]))
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), updates.params())
    ends = []
    with engine.on_mesh():
        for seed in (1, 1, 2):
            state = engine.init(jax.tree.map(jnp.copy, start))
            state, metrics = engine.update(state, updates.batch(), jax.random.key(seed), False)
            ends.append(jax.device_get(state))
            assert int(metrics["grad/skipped"]) == 0 and float(metrics["grad/norm"]) > 0
    assert {x.dtype for x in jax.tree.leaves(ends[0].params)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(ends[0].opt_state)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    same, other = (jax.tree.map(lambda x, y: bool(np.all(x == y)), ends[0].params, end.params) for end in ends[1:])
    assert all(jax.tree.leaves(same)) and not any(jax.tree.leaves(other["layers"]))


def test_every_update_of_the_warm_up_rounds_by_its_own_key():
    keys = [Lessons(config.default().warmup, seed, 8, None, None).key(i) for seed in (0, 1) for i in range(3)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 6
