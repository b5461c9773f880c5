"""The compiled update holds no surprise: every collective is in the budget below, and nothing is as large as logits.

Shapes: B responses, T response positions, S positions of a row, D width, V vocabulary; a 2×2×2 mesh of CPU devices.

The budget, for each piece of an update (W: a layer's weights on one `tensor` shard, A: one activation [rows, S, D]):

    a layer, each pass     weights gathered over fsdp once: W
    a layer, forward       after attention and after the mlp, summed over tensor: 2 A
    a layer, back          products back into q, k, v, gate and up, summed over tensor: 5 A
    a layer's gradient     summed over fsdp: W; its slices over data: W / fsdp
    a pass                 the head gathered over fsdp once: V·D / tensor
    a look-up              the tokens over fsdp, their vectors over tensor and fsdp: A each; back again
    the head's gradient    over data, and over fsdp: V·D / tensor each; the hidden states' over tensor: A
    anything else          statistics and tokens [B, T], and less: the scales and biases of a layer
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.model import head
from entropy_rl.model.transformer import ModelConfig
from entropy_rl.preflight import collectives, hlo, programs
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training import engine

CFG = ModelConfig(
    vocab_size=1024, d_model=64, n_layers=3, n_heads=8, n_kv_heads=4, head_dim=16, d_ff=192, tied=False, qkv_bias=True
)
N, P, G, T = 16, 16, 4, 65
LAYOUTS = ["group", "packed"]


@functools.cache
def compiled(layout):
    """(text, mesh, positions of a piece on a device) of an update in two pieces, or in packed rows."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.train.micro_batches, c.train.layout = 1, 2, layout
    mesh = make_mesh(2, 2, 2)
    e = engine.build(c, CFG, None, mesh)
    key, first = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.bool_)
    with e.on_mesh():
        text = e.update.lower(e.abstract_state, programs.batch(c, e), key, first).compile().as_text()
    groups = N // 2 * (P + G * (T - 1))
    return text, mesh, (e.plan.rows * e.plan.length if layout == "packed" else groups) // 4


def weights() -> float:
    """W: bytes of a layer's matrices on one `tensor` shard."""
    c = CFG
    return 4 * (2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim + 3 * c.d_model * c.d_ff) / 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_collective_is_in_the_budget(layout):
    text, mesh, positions = compiled(layout)
    W, A, head_bytes = weights(), 4 * positions * CFG.d_model, 4 * CFG.vocab_size * CFG.d_model / 2
    spent: dict[tuple, float] = {}
    heads = 0.0
    for one in collectives.find(hlo.read(text), None):
        assert "opt_state" not in one.label, one
        back = "transpose(" in one.label
        scoring = "branch" in one.label
        # what slices a layer of the stack stands in the loop over layers
        if one.label.startswith("state.params") and one.size == head_bytes:
            heads += one.times  # where the compiler names what it gathers and not what for
            continue
        where = "layer" if re.search(r"/layers[/.]|Transformer\)+/while/body/", one.label) else "rest"
        key = where, "scoring" if scoring else "back" if back else "forward", one.kind, collectives.axes(one, mesh)
        spent[key] = spent.get(key, 0) + one.size
    small = 2 * 4 * N * G * T  # two of [B, T]
    forward = {("all-gather", "fsdp"): W, ("all-reduce", "tensor"): 2 * A}
    of_layer = {
        "scoring": forward,
        "forward": forward,
        "back": {
            ("all-gather", "fsdp"): W,
            ("all-reduce", "tensor"): 5 * A,
            ("all-reduce", "fsdp"): W,
            ("all-reduce", "data"): W / 2,
        },
    }
    look_up = {("all-to-all", "fsdp"): A, ("all-reduce", "tensor"): A}
    of_rest = {
        "scoring": look_up | {("all-gather", "fsdp"): head_bytes},
        "forward": look_up | {("all-gather", "fsdp"): head_bytes},
        "back": {
            ("all-gather", "fsdp"): head_bytes,
            ("all-to-all", "fsdp"): A,
            ("all-reduce", "tensor"): 2 * A,
            ("all-reduce", "data"): 1.5 * head_bytes,
            ("reduce-scatter", "fsdp"): head_bytes,
        },
    }
    for (where, passing, kind, axes), size in spent.items():
        allowed = (of_layer if where == "layer" else of_rest)[passing].get((kind, axes), 0) + small
        assert size <= allowed, f"{where}, {passing}: {kind} over {axes}: {size:.0f} bytes, budget {allowed:.0f}"
    gathers = [size for (where, _, *how), size in spent.items() if where == "rest" and how == ["all-gather", "fsdp"]]
    assert heads + sum(size >= head_bytes for size in gathers) == 2  # once to score, once for what is differentiated
    # and what the budget is for is there: the layer's weights are gathered
    assert spent["layer", "forward", "all-gather", "fsdp"] > 0.9 * W


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_as_large_as_logits(layout):
    """The rows of anything as wide as the vocabulary, on a tensor shard or in whole, are a chunk's, or the table's."""
    text, _, positions = compiled(layout)
    assert positions > 2 * head.chunk_of(jnp.float32)
    for dims in re.findall(r"f32\[([\d,]+)\]", text):
        shape = tuple(map(int, dims.split(",")))
        if len(shape) > 1 and shape[-1] in (CFG.vocab_size, CFG.vocab_size // 2):
            assert np.prod(shape[:-1]) <= head.chunk_of(jnp.float32), shape


def collectives_of(called: programs.Called) -> list[collectives.Collective]:
    with engine.on_mesh(*called.on, jnp.float32):
        text = called.f.lower(*called.args).compile().as_text()
    return collectives.find(hlo.read(text), None)


def sent_by_decoding(shape, tensor: int, tied=False) -> list[float]:
    """Bytes of what a chunk of steps sends, but over the heads' groups, one number for each collective."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.rollout.tensor = 1, tensor
    cfg = dataclasses.replace(CFG, tied=tied)
    e = engine.build(c, cfg, None, make_mesh(*shape))
    found = collectives_of(programs.rollout(programs.Run(c, cfg, e, ()))["decode"])
    return [one.size * one.times for one in found if collectives.axes(one, e.sampling[0]) != "tensor"]


def test_weights_that_were_gathered_are_read_where_they_lie():
    """A step then sends tokens and activations alone; else it sends the layers' weights, or sums over a split width."""
    step = 4 * N * G / 4 * CFG.d_model  # an activation of the tokens of a step
    for shape, tensor in (((2, 2, 2), 2), ((1, 8, 1), 2), ((2, 4, 1), 2)):
        for tied in (False, True):
            assert sum(sent_by_decoding(shape, tensor, tied)) <= 4 * step
    assert sum(sent_by_decoding((2, 2, 2), 0)) > CFG.n_layers * min(weights(), 2 * step)


@pytest.mark.parametrize("shape, tensor", [((2, 2, 2), 0), ((2, 4, 1), 2)])
def test_an_admission_moves_no_cache_across_the_mesh(shape, tensor):
    """Slots are refilled and close ranks within their data shard; what is sent are prompts' hidden states, and keys."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout, c.rollout.slots, c.rollout.tensor = 1, 32, tensor
    e = engine.build(c, CFG, None, make_mesh(*shape))
    admit = programs.rollout(programs.Run(c, CFG, e, ()))["admit"]
    sent = sum(one.size * one.times for one in collectives_of(admit))
    cache = programs.bytes_per_chip(admit.args[2].cache)
    assert 0 < sent < cache / 2, (sent, cache)
