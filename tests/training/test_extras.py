"""Statistics that some recipes read beside logp and entropy: through scoring, micro-batches, packed rows and meshes."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from updates import CFG, B, G, N, P, T, batch, distance, packed, params, token_state

from entropy_rl import config, loop
from entropy_rl import token_transforms as tt
from entropy_rl.config.recipes import RECIPES
from entropy_rl.model import head_extras
from entropy_rl.model.transformer import Transformer, head_weight, positions
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training import engine as engine_lib
from entropy_rl.training import scoring, update
from entropy_rl.training.batch import TrainState
from entropy_rl.training.engine import Engine
from entropy_rl.training.update import Method

ALL = head_extras.Extras(prob_square=True, score_mean=True, top_p=0.8)

# Options with which each of the recipes changes something in so small a batch.
OPTIONS = {
    "gmts": {"keep_top_gradient.fraction": 0.5},
    "entropy_score_clip_v": {"entropy_score_clip_v.bound": 0.2, "entropy_score_clip_v.max_fraction": 0.1},
    "siren": {"siren.anchor": 0.0, "siren.coef": 0.5},
}


@pytest.fixture(autouse=True)
def compile_quickly() -> Iterator[None]:
    """Each program runs once or twice."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def section(name: str):
    c = config.apply_recipe(config.default(), name)
    with c.unlocked():
        c.algo.transforms.update_from_flattened_dict(OPTIONS.get(name, {}))
    return c


def method(name: str) -> Method:
    c = section(name)
    return engine_lib.method_of(c.algo, c.rollout, c.train)


def of_all() -> Method:
    """A method with the transforms of all three recipes, which reads every statistic."""
    transforms = [t for name in OPTIONS for t in config.transforms_of(section(name).algo)]
    return method("grpo")._replace(chain=tt.build(transforms), extras=tt.extras(transforms))


@functools.cache
def train_step(micro: int):
    return jax.jit(functools.partial(update.train_step, Transformer(CFG), of_all(), optax.sgd(1.0), micro))


def gradients(on_policy=False, micro=1, data=None):
    """(parameter gradient, metrics, token state) of one update of `of_all`, read off a step of plain SGD at rate 1."""
    state = TrainState(jnp.int32(0), params(), optax.sgd(1.0).init(params()), token_state(of_all()), jnp.int32(0))
    new, metrics = train_step(micro)(state, batch() if data is None else data, jax.random.key(1), on_policy)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b), params(), new.params)
    return moved, jax.device_get(metrics), jax.device_get(new.token_state)


@functools.cache
def whole():
    return gradients()


@functools.cache
def dense_logits():
    """f32[B, T, V]: each response after its prompt, without groups, chunks or the fused head."""
    b = batch()
    tokens = np.concatenate([np.repeat(b.prompt, G, axis=0), b.tokens], axis=1)
    mask = np.concatenate([np.repeat(b.prompt_mask, G, axis=0), b.mask], axis=1)
    forward = jax.jit(lambda p: Transformer(CFG).apply({"params": p}, tokens, positions(jnp.asarray(mask)), mask)[0])
    return np.asarray(forward(params())[:, P - 1 : -1] @ head_weight(params()).T, np.float64)


@pytest.mark.parametrize("micro, data", [(1, batch), (4, batch), (1, packed)])
def test_the_statistics_are_those_of_dense_logits(micro, data):
    z, mask = dense_logits(), batch().mask
    logp = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    p = np.exp(logp)
    entropy = -(p * logp).sum(-1)
    want = {
        "entropy": entropy,
        "prob_square": (p**2).sum(-1),
        "score_mean": (p**2 * (entropy[..., None] + logp)).sum(-1),
    }
    score = jax.jit(functools.partial(scoring.score, Transformer(CFG), 1.0, micro, extras=ALL))
    got = dict(zip(("logp", "entropy", *ALL.names), score(params(), data()), strict=True))
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected * mask, atol=2e-5, err_msg=name)
    assert np.all((np.asarray(got["nucleus_entropy"]) < np.asarray(got["entropy"]))[mask > 0])


@pytest.mark.parametrize("micro, data", [pytest.param(4, batch, marks=pytest.mark.slow), (1, packed)])
def test_pieces_change_only_rounding(micro, data):
    """In the first update too: the batch's scores lack what the recipe reads, so it makes its own pass."""
    want, want_metrics, want_state = whole()
    assert 0.2 < want_metrics["tokens/kept_frac"] < 0.6
    got, metrics, state = gradients(micro=micro, data=data())
    assert distance(got, want) < 1e-5
    assert metrics["tokens/kept_frac"] == want_metrics["tokens/kept_frac"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state, want_state)
    want, want_metrics, _ = gradients(on_policy=True)
    spoilt = data()._replace(old_logp=np.full((B, T), -3.0, np.float32), old_entropy=np.full((B, T), 9.0, np.float32))
    got, metrics, _ = gradients(on_policy=True, micro=micro, data=spoilt)
    assert distance(got, want) < 1e-5
    assert metrics["kl/old"] == want_metrics["kl/old"] == 0


@pytest.mark.slow
def test_eight_devices_do_what_one_does():
    want, want_metrics, _ = whole()
    c = section("grpo")
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout = 1
    engine = Engine(c, CFG, None, make_mesh(2, 2, 2), of_all(), optax.sgd(1.0), G)
    with engine.on_mesh():
        state = engine.init(jax.device_put(params(), engine.params_sharding))
        state, metrics = engine.update(state, batch(), jax.random.key(1), False)
        got = jax.tree.map(lambda a, b: a - np.asarray(b), params(), state.params)
    assert distance(got, want) < 1e-5
    assert metrics["tokens/kept_frac"] == want_metrics["tokens/kept_frac"]


@pytest.mark.parametrize("name, scored", [("forking", True), ("gmts", False)])
def test_the_loop_scores_the_first_batch_only_if_its_update_reads_that(name, scored):
    c = section(name)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.train.micro_batches, c.train.layout, c.mesh.data = 1, 2, "group", 1
    engine = Engine.of(c, CFG, None, make_mesh(1, devices=jax.devices()[:1]))
    with engine.on_mesh():
        state = engine.init(jax.device_put(params(), engine.params_sharding))
        (part,) = loop.with_old_logp(engine, state, [batch()])
    assert (part.old_logp is not batch().old_logp) == scored


def test_sirens_gradient_is_that_of_its_penalty_through_the_model():
    """Without an advantage only coef · (M − M₀)² is left; the selection is held fixed."""
    how, model = method("siren"), Transformer(CFG)
    b = batch()._replace(advantage=np.zeros((B, T), np.float32))
    mask = np.asarray(b.mask * b.valid[:, None])

    def nucleus(p):
        return scoring.token_stats(model, p, b, 1.0, head_extras.Extras(top_p=0.8))[2]

    def by_loss(p):
        return jax.grad(functools.partial(update.loss_fn, model, how), has_aux=True)(
            p, b, jax.random.key(1), token_state(how)
        )[0]

    h = np.asarray(jax.jit(nucleus)(params()))
    weight = np.zeros((B, T))
    for row in np.flatnonzero(mask.any(axis=1)):
        valid = mask[row] > 0
        high = valid & (h[row] > np.quantile(h[row][valid].astype(np.float64), 0.8))
        weight[row] = high / max(high.sum(), 1) / mask.any(axis=1).sum()
    want = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum(weight * nucleus(p)) ** 2))(params())
    assert float(optax.tree.norm(want)) > 1e-3
    assert distance(jax.jit(by_loss)(params()), want) < 1e-5


def test_only_recipes_that_ask_have_extras():
    asked = {name: method(name).extras.names for name in RECIPES}
    assert {name: names for name, names in asked.items() if names} == {
        "gmts": ("prob_square",),
        "entropy_score_clip_v": ("score_mean",),
        "siren": ("nucleus_entropy",),
    }


@pytest.mark.parametrize("micro", [1, 2])
def test_a_recipe_that_asks_for_nothing_computes_nothing_more(micro):
    """Compared with the same method and extras that no transform reads; what the head fills shows in its scatters."""

    def program(how):
        state = TrainState(jnp.int32(0), params(), optax.sgd(1.0).init(params()), token_state(how), jnp.int32(0))
        f = jax.jit(functools.partial(update.train_step, Transformer(CFG), how, optax.sgd(1.0), micro))
        return f.lower(state, batch(), jax.random.key(1), False).as_text().count("stablehlo.scatter")

    how = method("grpo")
    assert how.extras == head_extras.NONE
    assert program(how) < program(how._replace(extras=head_extras.Extras(prob_square=True)))


def test_a_token_gradient_has_a_third_field_only_for_recipes_that_ask():
    def edited(name):
        how, some = method(name), np.full((B, T), -0.5, np.float32)
        extras = [-some] * len(how.extras.names)
        return update.edit(how, some, -some, batch(), token_state(how), jax.random.key(1), False, 0, *extras)[0]

    assert edited("grpo").nucleus_entropy is None and edited("gmts").nucleus_entropy is None
    assert edited("siren").nucleus_entropy.shape == (B, T)
    assert len(jax.tree.leaves(tt.TokenGrads(jnp.zeros(1), jnp.zeros(1)))) == 2
