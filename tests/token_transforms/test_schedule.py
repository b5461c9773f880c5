"""Options that move with the steps: every number of every transform, or a sentence that says why it cannot."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference.batches import random_tokens
from token_transforms.test_matrix import OPTIONS
from updates import CFG, batch, params, token_state

from entropy_rl import config, rules
from entropy_rl import token_transforms as tt
from entropy_rl.model.transformer import Transformer
from entropy_rl.stats.selection import count
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import update
from entropy_rl.training.batch import TrainState

FIXED = {  # read when the run starts, or by Python's own arithmetic
    "adaptive_entropy_bonus.initial",
    "keep_bottom_entropy.fraction",
    "positive_reweighting.initial",
}
MOVES = {
    "clip_cov.low",
    "entropy_bonus.coef",
    "kl_cov.coef",
    "kl_cov.fraction",
    "reference_kl.coef",
    "steer.min_weight",
}


def numbers() -> list[Any]:
    """(transform, option) of every option that is a number; slow, unless it is in one of the two sets."""
    every = ((name, option, rule) for name, f in tt.TRANSFORMS.items() for option, rule in rules.of_options(f).items())
    found = [(name, option) for name, option, rule in every if rule.kind == "number" and not rule.optional]
    quick = MOVES | FIXED
    return [
        pytest.param(name, option, id=f"{name}.{option}", marks=[] if f"{name}.{option}" in quick else pytest.mark.slow)
        for name, option in found
    ]


@functools.cache
def other(name: str, option: str) -> tuple[float, float]:
    """The option's value in the common matrix, and another one that is legal."""
    options = {k: p.default for k, p in inspect.signature(tt.TRANSFORMS[name]).parameters.items()}
    first = float((options | OPTIONS.get(name, {}))[option])
    for to in (first / 2, first * 1.5, first + 0.1, first - 0.1):
        try:
            tt.build([(name, OPTIONS.get(name, {}) | {option: to})])
        except ValueError:
            continue
        if to != first:
            return first, to
    raise AssertionError(f"no other legal value of {name}.{option} was found")


def moving(name: str, option: str, steps: int = 4, shape: str = "linear") -> Any:
    return tt.build([(name, OPTIONS.get(name, {}) | {option: tt.Schedule(*other(name, option), steps, shape)})])


@pytest.mark.parametrize(("name", "option"), numbers())
def test_a_number_has_at_each_step_the_effect_of_its_value_then_or_is_refused(name, option):
    try:
        made = moving(name, option)
    except ValueError as error:
        assert f"algo.transforms.{name}.{option} cannot have a schedule" in str(error)
        assert f"{name}.{option}" not in MOVES
        return
    assert f"{name}.{option}" not in FIXED
    first, to = other(name, option)
    grads, tokens = random_tokens(1, 8, 24)
    state = made.init(grads)
    jax.tree.map(np.testing.assert_array_equal, state, tt.build([(name, OPTIONS.get(name, {}))]).init(grads))
    got = jax.jit(made.update)(grads, state, tokens=tokens, key=jax.random.key(7), step=jnp.int32(1))
    plain = tt.build([(name, OPTIONS.get(name, {}) | {option: first + (to - first) / 4})])
    want = jax.jit(plain.update)(grads, state, tokens=tokens, key=jax.random.key(7))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-7), got, want)


def test_a_schedule_is_a_function_of_the_step_alone():
    for shape, half in (("linear", 0.5), ("cosine", 0.5)):
        values = [float(tt.Schedule(0.25, 0.75, 8, shape).at(step)) for step in range(12)]
        assert values[0] == 0.25 and values[8:] == [0.75] * 4 and values == sorted(values)
        assert values[4] == pytest.approx(0.25 + 0.5 * half)
    cosine = [float(tt.Schedule(0.0, 1.0, 8, "cosine").at(step)) for step in (1, 7)]
    assert cosine == pytest.approx([(1 - np.cos(np.pi / 8)) / 2, (1 - np.cos(np.pi * 7 / 8)) / 2], abs=1e-6)


def test_a_share_that_is_known_only_at_run_time_counts_as_the_same_share():
    for fraction in (0.0, 2e-4, 0.2, 0.21, 1.0):
        for n in (0, 1, 5, 14, 15, 1000, 12345, 3_000_001):
            want, got = int(count(fraction, n)), int(jax.jit(count)(jnp.float32(fraction), n))
            assert got == want, (fraction, n)


def _jaxpr(how: update.Method) -> str:
    f = functools.partial(update.loss_fn, Transformer(CFG), how)
    return str(jax.make_jaxpr(f)(params(), batch(), jax.random.key(1), token_state(how), False, jnp.int32(3)))


def method(**schedule: Any) -> update.Method:
    c = config.apply_recipe(config.default(), "kl_cov")
    c.algo.schedule.update(schedule)
    config.check(c)
    return engine_lib.method_of(c.algo, c.rollout, c.train)


def test_a_schedule_that_does_not_move_is_the_same_program():
    plain = _jaxpr(method())
    assert _jaxpr(method(kl_cov={"coef": {"to": 1.0, "steps": 5}})) == plain
    assert _jaxpr(method(kl_cov={"coef": {"to": 0.0, "steps": 5}})) != plain


def test_the_update_takes_the_step_and_reports_the_value():
    how = method(kl_cov={"coef": {"to": 0.0, "steps": 4}, "fraction": {"to": 0.5, "steps": 4, "shape": "cosine"}})
    f = jax.jit(functools.partial(update.loss_fn, Transformer(CFG), how))
    for step, coef, fraction in ((0, 1.0, 2e-3), (2, 0.5, 0.251), (9, 0.0, 0.5)):
        _, (_, metrics) = f(params(), batch(), jax.random.key(1), token_state(how), False, step)
        found = {k: float(v) for k, v in metrics.items() if k.startswith("schedule/")}
        assert found == pytest.approx({"schedule/kl_cov.coef": coef, "schedule/kl_cov.fraction": fraction})


@pytest.mark.parametrize("micro", [1, 2])
def test_a_train_step_is_at_the_step_of_its_state(micro):
    how = method(kl_cov={"coef": {"to": 0.0, "steps": 4}})
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.int32(3), params(), optimizer.init(params()), token_state(how), jnp.int32(0))
    f = jax.jit(functools.partial(update.gradients, Transformer(CFG), how, micro))
    _, _, metrics = f(state, batch(), jax.random.key(1), False)
    assert float(metrics["schedule/kl_cov.coef"]) == 0.25


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"clip_cov": {"fraction": {"to": 0.1, "steps": 5}}}, r"algo\.schedule\.clip_cov: algo\.chain has no such"),
        (
            {"kl_cov": {"coef": {"to": 0.1}}},
            r"algo\.schedule\.kl_cov\.coef=\{'to': 0\.1\} must be \{to, steps, shape\}",
        ),
        ({"kl_cov": {"coef": 0.1}}, r"algo\.schedule\.kl_cov\.coef=0\.1 must be \{to, steps, shape\}"),
        ({"kl_cov": {"coef": {"to": 0.1, "steps": 5, "end": 1}}}, r"algo\.schedule\.kl_cov\.coef\.end is no field"),
        ({"kl_cov": {"kl": {"to": 0.1, "steps": 5}}}, r"algo\.schedule\.kl_cov\.kl: kl_cov has no option of that name"),
        ({"kl_cov": {"coef": {"to": -1.0, "steps": 5}}}, r"algo\.schedule\.kl_cov\.coef\.to=-1\.0 must be 0 or above"),
        ({"kl_cov": {"coef": {"to": 0.0, "steps": 0}}}, r"algo\.schedule\.kl_cov\.coef\.steps=0 must be 1 or above"),
        ({"kl_cov": {"coef": {"to": 0.0, "steps": 5, "shape": "step"}}}, r"coef\.shape='step' must be one of linear"),
    ],
)
def test_what_a_schedule_may_not_be(schedule, message):
    with pytest.raises(ValueError, match=message):
        method(**schedule)


def test_a_transform_within_another_does_not_move():
    inner = ("clip_cov", {"fraction": tt.Schedule(0.1, 0.2, 5)})
    with pytest.raises(ValueError, match=r"matched_norm\.inner: the options of a transform within another"):
        tt.build([("matched_norm", {"inner": inner})])


def test_a_schedule_acts_per_micro_batch_too():
    spec = ("clip_cov", {"fraction": tt.Schedule(0.1, 0.5, 4), "low": -5.0})
    grads, tokens = random_tokens(1, 8, 24)
    made = tt.build([spec], "microbatch", 2, 2)
    out, _ = made.update(grads, made.init(grads), tokens=tokens, key=jax.random.key(0), step=4)
    plain = tt.build([("clip_cov", {"fraction": 0.5, "low": -5.0})], "microbatch", 2, 2)
    want, _ = plain.update(grads, plain.init(grads), tokens=tokens, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, out, want)
