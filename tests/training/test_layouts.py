"""One device, eight in every layout, and two processes of four: the same batch gives the same update and tokens."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import layouts
import numpy as np
import pytest
from tiny_models import FAMILIES

from entropy_rl.model import sharding
from entropy_rl.model.transformer import ModelConfig, Transformer, init_params
from entropy_rl.record import checkpoint
from entropy_rl.runtime import mesh as mesh_lib
from entropy_rl.runtime.mesh import AXES, make_mesh

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@functools.cache
def alone() -> dict:
    return layouts.results((1, 1, 1))


def same(got, want):
    assert np.linalg.norm(got["gradient"] - want["gradient"]) < 1e-5 * np.linalg.norm(want["gradient"])
    assert np.linalg.norm(got["params"] - want["params"]) < 1e-6 * np.linalg.norm(want["params"])
    np.testing.assert_allclose(got["norm"], want["norm"], rtol=1e-5)
    np.testing.assert_allclose(got["logp"], want["logp"], atol=2e-5)
    np.testing.assert_allclose(got["entropy"], want["entropy"], atol=2e-5)
    np.testing.assert_array_equal(got["selected"], want["selected"])
    assert got["kept"] == want["kept"] < 1
    np.testing.assert_array_equal(got["greedy"], want["greedy"])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_eight_devices_do_what_one_does(shape):
    same(layouts.results(shape), alone())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo3", "gemma3_text"])
def test_eight_devices_do_what_one_does_with_norms_of_all_heads_and_layers_that_differ(name):
    """OLMo's norms of q and k are over all heads, which `tensor` splits; in training and in the rollout's layout."""
    sizes = {"n_heads": 8, "n_kv_heads": 4, "head_dim": 8, "d_model": 32, "d_ff": 64, "vocab_size": 64, "eos_ids": (2,)}
    cfg = dataclasses.replace(FAMILIES[name], **sizes)
    same(layouts.results((2, 2, 2), cfg=cfg, tensor=4), layouts.results((1, 1, 1), cfg=cfg))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_two_processes_of_four_devices_do_what_one_device_does(shape, tmp_path):
    """Real `jax.distributed` on loopback; what they save together is restored by one process on another layout."""
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "launch/local.py", "--processes=2", "--devices=4", "--module=layouts", "--"]
    command += [*map(str, shape), str(tmp_path / "found.npz")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(np.load(tmp_path / "found.npz"))
    same(found, alone())
    for other in ((1, 2, 1), (2, 1, 4)):
        restored, _ = checkpoint.Checkpoints(tmp_path / "found").restore(layouts.build(other).abstract_state)
        np.testing.assert_array_equal(layouts.flat(restored.params), found["params"])


@pytest.mark.slow
@pytest.mark.parametrize("shape, other", [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (1, 8, 1)), ((1, 8, 1), (2, 1, 4))])
def test_a_checkpoint_of_one_layout_is_restored_on_another(shape, other, tmp_path):
    want = layouts.results(shape, save=tmp_path)["params"]
    abstract = layouts.build(other).abstract_state
    state, _ = checkpoint.Checkpoints(tmp_path).restore(abstract)
    np.testing.assert_array_equal(layouts.flat(state.params), want)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)


@pytest.mark.parametrize(
    "shape, tensor", [((2, 2, 2), 2), ((2, 2, 2), 1), ((1, 8, 1), 1), ((2, 4, 1), 2), ((1, 8, 1), 8)]
)
def test_a_rollout_in_its_own_layout_draws_the_same_tokens(shape, tensor):
    weights, engine = layouts.params(), layouts.build(shape, tensor)
    mesh = engine.sampling.mesh
    assert mesh.shape["tensor"] == tensor and list(mesh.devices.flat) == list(engine.mesh.devices.flat)
    with engine.on_mesh():
        start = jax.device_put(weights, engine.params_sharding)
        greedy = engine.greedy(start, layouts.prompts(), jax.random.key(2))
    np.testing.assert_array_equal(greedy.tokens, alone()["greedy"])


@pytest.mark.slow
def test_few_slots_and_heads_that_do_not_divide_draw_the_same_tokens_in_their_own_layout():
    """Slots refilled and moved together, at temperature 1, two key/value heads over groups of eight devices or four."""
    cfg = dataclasses.replace(layouts.CFG, n_kv_heads=2)
    weights = jax.device_get(init_params(cfg, jax.random.key(0)))
    drawn = []
    for shape, tensor, slots in (((1, 1, 1), 0, 0), ((1, 8, 1), 8, 9), ((2, 4, 1), 4, 6)):
        engine = layouts.build(shape, tensor, cfg, slots)
        with engine.on_mesh():
            start = jax.device_put(weights, engine.params_sharding)
            drawn.append(engine.rollout(start, layouts.prompts(), jax.random.key(2)))
    for other in drawn[1:]:
        np.testing.assert_array_equal(other.tokens, drawn[0].tokens)
        np.testing.assert_allclose(other.logp, drawn[0].logp, atol=1e-5)
    assert len({int(n) for n in drawn[0].mask.sum(axis=1)}) > 1  # they end at different times


def test_a_rollout_layout_that_does_not_divide_the_mesh_is_refused():
    with pytest.raises(ValueError, match=r"rollout.tensor=3 must divide mesh.fsdp × mesh.tensor = 4"):
        layouts.build((2, 2, 2), tensor=3)
    with pytest.raises(ValueError, match=r"rollout.tensor=16 must divide"):
        sharding.rules(layouts.CFG, jax.sharding.AbstractMesh((1, 1, 16), AXES), "rollout.tensor")


class Chip(NamedTuple):
    """The attributes of a TPU that a mesh reads."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "a kind without its own layout"


def test_slices_differ_along_data_alone():
    chips = [Chip(i, i // 8, (i % 4, i // 4 % 2, 0)) for i in range(16)]
    for shape in ((2, 8, 1), (2, 4, 2), (4, 2, 2)):
        grid = mesh_lib._grid(shape, chips)
        slices = np.array([chip.slice_index for chip in grid.flat]).reshape(shape)
        assert grid.shape == shape and len({chip.id for chip in grid.flat}) == 16
        assert (slices == np.repeat([0, 1], shape[0] // 2)[:, None, None]).all()
    with pytest.raises(ValueError, match="mesh.data=1 must be a multiple of the 2 slices"):
        mesh_lib._grid((1, 16, 1), chips)


def test_nine_query_heads_are_not_split_in_two():
    """SmolLM2's."""
    smollm2 = ModelConfig(
        vocab_size=49152, d_model=576, n_layers=1, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, tied=True
    )
    with pytest.raises(ValueError, match=r"mesh.tensor=2 must divide the model's n_heads=9; legal sizes: \[1, 3\]"):
        sharding.rules(smollm2, make_mesh(1, 4, 2))


def test_two_key_value_heads_on_eight_devices_are_replicated():
    cfg = dataclasses.replace(layouts.CFG, n_kv_heads=2)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 64, (4, 10)).astype(np.int32)
    place, segment = np.tile(np.arange(10, dtype=np.int32), (4, 1)), np.ones((4, 10), np.int32)
    params = jax.device_get(init_params(cfg, jax.random.key(0)))

    @jax.jit
    def hidden(p):
        return Transformer(cfg).apply({"params": p}, tokens, place, segment)[0]

    want, mesh = hidden(params), make_mesh(1, 1, 8)
    rules = sharding.rules(cfg, mesh)
    shardings = sharding.param_shardings(cfg, mesh, rules)
    assert shardings["layers"]["k"].is_fully_replicated and not shardings["layers"]["q"].is_fully_replicated
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        np.testing.assert_allclose(hidden(jax.device_put(params, shardings)), want, atol=1e-5)
