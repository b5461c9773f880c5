"""A method with turns: the loop makes every update once per turn, with the gradient of that turn's tokens alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from updates import CFG, G, N, P, T, batch, distance, method, params, token_state

from entropy_rl import config, loop
from entropy_rl import token_transforms as tt
from entropy_rl.model.transformer import Transformer
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training import update
from entropy_rl.training.batch import TrainState, in_turn
from entropy_rl.training.engine import Engine

BOUND = 0.05  # about half of the tokens of so flat a model are below it


def gradient(how, data):
    """The parameters' gradient of an update, read off a step of plain SGD at rate 1, and its metrics."""
    state = TrainState(jnp.int32(0), params(), optax.sgd(1.0).init(params()), token_state(how), jnp.int32(0))
    step = jax.jit(functools.partial(update.train_step, Transformer(CFG), how, optax.sgd(1.0), 1))
    new, metrics = step(state, data, jax.random.key(1), False)
    return jax.tree.map(lambda a, b: np.asarray(a - b), params(), new.params), jax.device_get(metrics)


@pytest.mark.slow
def test_the_turns_have_the_whole_gradient_between_them():
    how = method("grpo")._replace(chain=tt.build([("lopti", {"bound": BOUND})]))
    turns = [gradient(how, in_turn(batch(), turn)) for turn in range(2)]
    whole, _ = gradient(method("grpo"), batch())
    assert distance(jax.tree.map(np.add, turns[0][0], turns[1][0]), whole) < 1e-5
    assert all(distance(g, whole) > 0.1 for g, _ in turns)
    kept = [metrics["tokens/kept_frac"] for _, metrics in turns]
    assert sum(kept) == pytest.approx(1.0) and 0.1 < kept[0] < 0.9


def engine_of(name: str) -> Engine:
    c = config.apply_recipe(config.default(), name)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.train.layout, c.optim.lr, c.mesh.data = 2, "group", 1e-2, 1
    if name == "lopti":
        c.algo.transforms.lopti.bound = BOUND
    return Engine.of(c, CFG, None, make_mesh(1, devices=jax.devices()[:1]))


def test_the_loop_makes_all_updates_of_the_first_turn_and_then_those_of_the_second():
    engine, key = engine_of("lopti"), jax.random.key(3)
    with engine.on_mesh():

        def fresh():
            return engine.init(jax.device_put(params(), engine.params_sharding))

        state = fresh()
        parts = loop.with_old_logp(engine, state, engine.parts(batch()))
        scored = [engine.score(state.params, part)[0] for part in parts]
        for part, logp in zip(parts, scored, strict=True):  # the second turn starts its ratios from these
            np.testing.assert_array_equal(part.old_logp, logp)
        got, metrics, _ = loop.update_all(engine, state, parts, key, measure=False, record=False)
        want = fresh()
        for i, (turn, part) in enumerate([(0, parts[0]), (0, parts[1]), (1, parts[0]), (1, parts[1])]):
            want, _ = engine.update(want, in_turn(part, turn), jax.random.fold_in(key, 1 + i), i == 0)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(metrics) == 4
    for i, (part, logp) in enumerate(zip(parts, scored, strict=True)):
        valid = (part.mask * part.valid[:, None]) > 0
        unlikely = np.mean(np.exp(logp)[valid] < BOUND)
        assert metrics[i]["tokens/kept_frac"] == pytest.approx(unlikely)
        assert metrics[i + 2]["tokens/kept_frac"] == pytest.approx(1 - unlikely)
    assert metrics[0]["kl/old"] == 0 and metrics[2]["kl/old"] != 0


def test_a_method_without_turns_makes_each_update_once_and_is_told_of_none():
    engine, seen = engine_of("grpo"), []
    real = engine.update

    def update_and_note(state, part, key, on_policy):
        seen.append(part.turn)
        return real(state, part, key, on_policy)

    engine.update = update_and_note
    with engine.on_mesh():
        state = engine.init(jax.device_put(params(), engine.params_sharding))
        _, metrics, _ = loop.update_all(engine, state, engine.parts(batch()), jax.random.key(3), False, False)
    assert seen == [None, None] and len(metrics) == 2


def test_the_turns_of_a_chain():
    assert tt.turns(()) == 1 and tt.turns([("clip_cov", {})]) == 1
    assert tt.turns([("matched_norm", {"inner": ("lopti", {})})]) == 2


def test_a_missing_turn_is_named():
    one = jnp.ones((1, 2))
    tokens, made = tt.TokenInfo(-one, -one, one, one, one, one < 0), tt.lopti()
    with pytest.raises(ValueError, match=r"lopti needs TokenInfo\.turn, which is None"):
        made.update(tt.TokenGrads(one, one), made.init(None), tokens=tokens, key=None)
