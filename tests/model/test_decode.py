"""Prefill in pieces, and the cache when it moves."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import decode
from entropy_rl.model.config import ModelConfig
from entropy_rl.model.precision import on_mesh
from entropy_rl.model.shapes import SHAPES
from entropy_rl.model.sharding import MeshRules, param_shardings, rules
from entropy_rl.model.transformer import Transformer, abstract_params, init_params
from entropy_rl.runtime.mesh import make_mesh, row_sharding

CFG = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
MODEL = Transformer(CFG)
N, P = 12, 6


def prompts():
    tokens = np.random.default_rng(0).integers(5, 64, (N, P)).astype(np.int32)
    mask = (np.arange(P) >= np.random.default_rng(1).integers(0, P, N)[:, None]).astype(np.int32)
    return tokens * mask, mask


def agree(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("some", [1, 5, 12])
def test_prompts_read_in_pieces_are_the_same(some, monkeypatch):
    """A piece of five leaves a rest, which is read together with prompts that were read before."""
    params = init_params(CFG, jax.random.key(0))
    want = decode.prefill(MODEL, params, *prompts())
    monkeypatch.setattr(decode, "prompts_at_once", lambda model, P: some)
    agree(jax.jit(functools.partial(decode.prefill, MODEL))(params, *prompts()), want)


def test_prompts_read_in_pieces_on_a_mesh_stay_where_they_are(monkeypatch):
    """Each shard reads its own prompts piece by piece: the keys come out as they would at once."""
    params = init_params(CFG, jax.random.key(0))
    want = decode.prefill(MODEL, params, *prompts())
    monkeypatch.setattr(decode, "prompts_at_once", lambda model, P: 2)
    mesh = make_mesh(2, 2, 2)
    layout = MeshRules(mesh, rules(CFG, mesh))
    with on_mesh(layout, MODEL.dtype):
        placed = jax.device_put(params, param_shardings(CFG, *layout))
        rows = jax.device_put(prompts(), row_sharding(mesh))
        hidden, kv = jax.jit(functools.partial(decode.prefill, MODEL))(placed, *rows)
    agree((hidden, kv), want)
    assert kv.key.sharding.shard_shape(kv.key.shape) == (2, N // 4, 1, 8, P)


def test_a_prefill_holds_no_more_than_a_piece():
    """256 prompts of 1024 tokens: the scores of all of them would take 15 GB, and their MLP as much."""
    model = Transformer(SHAPES["Qwen/Qwen2.5-0.5B"], jnp.dtype(jnp.bfloat16))
    tokens = jax.ShapeDtypeStruct((256, 1024), jnp.int32)
    params = abstract_params(model.cfg)
    assert decode.prompts_at_once(model, 1024) == 9
    compiled = jax.jit(functools.partial(decode.prefill, model)).lower(params, tokens, tokens).compile()
    held = compiled.memory_analysis().temp_size_in_bytes
    weights = 4 * 494_032_768  # a CPU's compiler keeps its own copies of them
    assert held < 2 * weights + 4 * decode.PIECE


def test_scores_that_a_kernel_does_not_hold_are_not_counted():
    with_kernel = dataclasses.replace(MODEL, kernel=lambda *_: None)
    assert decode.prompts_at_once(with_kernel, 4096) > 2 * decode.prompts_at_once(MODEL, 4096)
    assert decode.prompts_at_once(MODEL, 10**6) == 1


def cache(unroll, places=8):
    """A cache whose numbers are all different."""
    empty = decode.empty(Transformer(CFG, unroll=unroll), 4, places)
    leaves, tree = jax.tree.flatten(empty)
    return jax.tree.unflatten(tree, [jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) + 1 for x in leaves])


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("keep", [[0, 1, 2, 3], [3, 9, 1, 1], [2, 0]])
@pytest.mark.parametrize("places", [8, 12])
def test_a_moved_cache_is_turned_and_lengthened(unroll, keep, places):
    """Against NumPy: a row past the end is empty, the places start at the column, new ones are empty."""
    before, column = cache(unroll), 3
    moved = jax.jit(decode.move, static_argnums=3)(before, jnp.asarray(keep), column, places)

    def want(x, axis, rows):
        x = np.roll(np.asarray(x), -column, axis=axis)
        padded = np.concatenate([x, np.zeros_like(np.take(x, [0], axis=rows))], axis=rows)
        x = np.take(padded, np.minimum(keep, 4), axis=rows)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, places - 8)
        return np.pad(x, widths)

    for name, axis in (("key", -1), ("value", -2), ("position", 1), ("segment", 1)):
        got, old = jax.tree.leaves(getattr(moved, name)), jax.tree.leaves(getattr(before, name))
        for a, b in zip(got, old, strict=True):
            assert np.array_equal(a, want(b, axis, max(b.ndim - 4, 0))), name


def test_a_cache_that_keeps_its_shape_moves_in_place():
    """Compiled: besides the donated cache little more than one of its eight layers is held."""
    cfg = dataclasses.replace(CFG, n_layers=8)
    kv = jax.eval_shape(lambda: decode.empty(Transformer(cfg), 64, 256))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((kv.key, kv.value)))
    move = jax.jit(decode.move, static_argnums=3, donate_argnums=0)
    memory = move.lower(kv, jax.ShapeDtypeStruct((64,), jnp.int32), jnp.int32(3), 256).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.7 * size


@pytest.mark.parametrize("platform, wanted", [("cpu", True), ("gpu", True), ("tpu", False)])
def test_layers_are_decoded_one_by_one_where_a_scan_would_copy_them(platform, wanted):
    assert decode.unrolled(types.SimpleNamespace(platform=platform)) is wanted
