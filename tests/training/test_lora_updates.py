"""Updates of adapters: they alone move, on any mesh and in any number of pieces, and what is frozen costs less.

Shapes: as in updates.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import updates
from updates import CFG, G, N, P, T, batch, distance, method

from entropy_rl import config
from entropy_rl.model import lora
from entropy_rl.model.config import Lora
from entropy_rl.model.matrices import WEIGHTS
from entropy_rl.preflight import flops
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.sampling.base import Prompts
from entropy_rl.training import scoring
from entropy_rl.training.engine import Engine

ADAPTED = lora.adapted(CFG, Lora(4, 8.0, tuple(WEIGHTS)))


def start():
    """The shared parameters with adapters that already do something."""
    trained = lora.fresh(ADAPTED, jax.random.key(1))
    noise = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(2), x.shape), trained)
    return lora.join(jax.device_get(noise), updates.params())


def engine_of(recipe="clip_cov", cfg=ADAPTED, mesh=(1, 1, 1), optimizer=None, **changes):
    c = config.apply_recipe(config.default(), recipe)
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.train.layout = 1, "group"
    c.model.lora.rank = cfg.lora.rank if cfg.lora else 0
    c.update_from_flattened_dict(changes)
    devices = make_mesh(*mesh, devices=jax.devices()[: int(np.prod(mesh))])
    return Engine(c, cfg, None, devices, method(recipe), optimizer or optax.sgd(1.0), G)


def updated(engine, b=None):
    with engine.on_mesh():
        state = engine.init(jax.device_put(start(), engine.params_sharding))
        new, metrics = engine.update(state, batch() if b is None else b, jax.random.key(1), False)
        return jax.device_get(new), jax.device_get(metrics)


@pytest.fixture(scope="module")
def one():
    return updated(engine_of())


def moves(state):
    return jax.tree.map(np.subtract, lora.split(state.params)[0], lora.split(start())[0])


def test_adapters_alone_move(one):
    state, metrics = one
    assert jax.tree.all(jax.tree.map(np.array_equal, lora.split(state.params)[1], updates.params()))
    assert all(np.any(x) for x in jax.tree.leaves(moves(state)))
    assert metrics["grad/norm"] == pytest.approx(float(optax.tree.norm(moves(state))), rel=1e-4)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_merged_weights(one):
    """By the chain rule: dA = scale · dW · Bᵀ and dB = scale · Aᵀ · dW, with the dW of a full update."""
    full = engine_of(cfg=CFG)
    with full.on_mesh():
        merged = jax.device_get(lora.merged(ADAPTED, start(), np.float32))
        state = full.init(jax.device_put(merged, full.params_sharding))
        new, _ = full.update(state, batch(), jax.random.key(1), False)
    layers, before = start()["layers"], merged["layers"]
    for name in ("q", "o", "up"):
        dW = jax.device_get(new.params["layers"][name]) - before[name]
        a, b = layers[f"{name}_lora_a"], layers[f"{name}_lora_b"]
        rank = a.shape[-1]
        flat = dW.reshape(len(a), a.shape[1] * (a.shape[2] if a.ndim == 4 else 1), -1)
        a, b = a.reshape(len(a), -1, rank), b.reshape(len(b), rank, -1)
        want = 2.0 * np.einsum("lio,lro->lir", flat, b), 2.0 * np.einsum("lir,lio->lro", a, flat)
        for part, x in zip("ab", want, strict=True):
            got = moves(one[0])["layers"][f"{name}_lora_{part}"].reshape(x.shape)
            assert distance(got, x) < 1e-4


@pytest.mark.slow
def test_pieces_and_packed_rows_give_the_same_update(one):
    pieces = updated(engine_of(**{"train.micro_batches": 4}))[0]
    assert distance(moves(pieces), moves(one[0])) < 1e-5
    packed = updated(engine_of(**{"train.layout": "packed"}), updates.packed(4))[0]
    assert distance(moves(packed), moves(one[0])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 8)])
def test_eight_devices_equal_one(one, mesh):
    eight, metrics = updated(engine_of(mesh=mesh))
    assert distance(moves(eight), moves(one[0])) < 1e-5
    assert metrics["tokens/kept_frac"] == one[1]["tokens/kept_frac"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [0, 4])
def test_eight_devices_sample_what_one_does(tensor):
    """Merged on the mesh, or as the weights move to the layout of sampling."""
    prompts = Prompts(*batch()[:2], np.arange(N, dtype=np.uint32))
    made = []
    for engine in (engine_of(), engine_of(mesh=(1, 4, 2), **{"rollout.tensor": tensor})):
        with engine.on_mesh():
            params = jax.device_put(start(), engine.params_sharding)
            made.append(engine.rollout(params, prompts, jax.random.key(0)))
    np.testing.assert_array_equal(made[0].tokens, made[1].tokens)
    np.testing.assert_allclose(made[0].logp, made[1].logp, atol=2e-5)


def test_no_gradient_of_a_frozen_weight_is_computed():
    """FLOPs of the update's jaxpr: a frozen matrix needs two products, not three, and the state no moments of it."""
    counts, states = {}, {}
    for cfg in (CFG, ADAPTED):
        engine = engine_of("grpo", cfg, optimizer=optax.adamw(1e-3), **{"model.remat": "none"})
        with engine.on_mesh():
            traced = engine.jitted_update.trace(engine.abstract_state, batch(), jax.random.key(0), False)
        counts[cfg.lora] = flops.count(traced.jaxpr.jaxpr, {"head_chunks": 1, "head_rest_of_chunks": 1})
        states[cfg.lora] = sum(x.size for x in jax.tree.leaves(engine.abstract_state.opt_state))
    assert counts[ADAPTED.lora] < counts[None]
    adapters = sum(x.size for x in jax.tree.leaves(lora.split(start())[0]))
    assert states[ADAPTED.lora] == 2 * adapters + 1 and adapters < 0.5 * states[None]


def test_frozen_weights_have_the_dtype_of_the_computation():
    found = {}
    for dtype in ("float32", "bfloat16", "bfloat16_float32_head"):
        params = engine_of(**{"model.dtype": dtype}).abstract_state.params
        trained, frozen = lora.split(params)
        assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype(jnp.float32)}
        found[dtype] = {str(x.dtype) for x in jax.tree.leaves(frozen)}
    assert found == {"float32": {"float32"}, "bfloat16": {"bfloat16"}, "bfloat16_float32_head": {"float32"}}


@pytest.mark.slow
def test_the_reference_policy_is_a_copy_of_the_adapters():
    engine = engine_of("reference_kl")
    with engine.on_mesh():
        state = engine.init(jax.device_put(start(), engine.params_sharding))
        assert jax.tree.structure(state.ref) == jax.tree.structure(lora.split(start())[0])
        before = jax.device_get(engine.score(engine.reference(state), batch()))
        state, _ = engine.update(state, batch(), jax.random.key(1), False)
        after = jax.device_get(engine.score(engine.reference(state), batch()))
        moved = jax.device_get(engine.score(state.params, batch()))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(moved[0] - after[0]).max() > 1e-3


@pytest.mark.slow
def test_the_change_of_entropy_is_predicted_along_the_adapters():
    engine = engine_of("grpo", optimizer=optax.sgd(0.002))
    with engine.on_mesh():
        state = engine.init(jax.device_put(start(), engine.params_sharding))
        _, m = engine.measured_update(state, batch(), jax.random.key(1), False)
    assert float(m["entropy/delta"]) != 0
    assert float(m["entropy/delta_predicted"]) == pytest.approx(float(m["entropy/delta"]), rel=0.1)


def test_scores_are_those_of_the_merged_model():
    merged = lora.merged(ADAPTED, start(), np.float32)
    score = jax.jit(scoring.token_stats, static_argnums=(0, 3))
    own = score(engine_of().model, start(), batch(), 1.0)
    plain = score(engine_of(cfg=CFG).model, merged, batch(), 1.0)
    for a, b in zip(own, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
