"""The compiled update has no surprises: every collective is in the budget below, and nothing is as large as logits.

Shapes: B responses, T response positions, S positions of a row, D width, V vocabulary; a 2×2×2 mesh of CPU devices.

The budget, for each piece of an update (W: a layer's weights on one `tensor` shard, A: one activation [rows, S, D]):

    layer, each pass       weights gathered over fsdp once: W
    layer, forward         the results of attention and of the mlp summed over tensor: 2 A
    layer, backward        gradients of the inputs of q, k, v, gate and up summed over tensor: 5 A
    layer's gradient       summed over fsdp: W; its slices over data: W / fsdp
    each pass              the head gathered over fsdp once: V·D / tensor
    look-up                the tokens over fsdp, their vectors over tensor and fsdp: A each; the same backward
    head's gradient        over data, and over fsdp: V·D / tensor each; that of the hidden states over tensor: A
    anything else          at most as large as statistics and tokens [B, T]: the scales and biases of a layer
"""

import dataclasses
import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.model import head
from entropy_rl.model.transformer import ModelConfig
from entropy_rl.preflight import collectives, hlo, programs
from entropy_rl.preflight import rollout as rollout_lib
from entropy_rl.preflight.sizes import bytes_per_chip
from entropy_rl.runtime.mesh import make_mesh
from entropy_rl.training.engine import Engine

CFG = ModelConfig(
    vocab_size=1024, d_model=64, n_layers=3, n_heads=8, n_kv_heads=4, head_dim=16, d_ff=192, tied=False, qkv_bias=True
)
N, P, G, T = 16, 16, 4, 65
LAYOUTS = ["group", "packed"]


def run_of(shape=(2, 2, 2), tied=False, train=None, rollout=None) -> programs.Run:
    """A run of one update per rollout on a mesh of this shape, with changes to two sections of its configuration."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = N, G, T, P
    c.train.updates_per_rollout = 1
    c.train.update(train or {})
    c.rollout.update(rollout or {})
    return programs.Run(c, Engine.of(c, dataclasses.replace(CFG, tied=tied), None, make_mesh(*shape)))


def text_of(phase: programs.Phase) -> str:
    return phase.compile()[1].as_text()


@functools.cache
def compiled(layout):
    """(text, mesh, positions per piece and device) of an update in two pieces, or in packed rows."""
    run = run_of(train={"micro_batches": 2, "layout": layout})
    plan, groups = run.engine.plan, N // 2 * (P + G * (T - 1))
    positions = plan.rows * plan.length if layout == "packed" else groups
    return text_of(programs.update(run)), run.engine.mesh, positions // 4


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
        if one.label.startswith("state.params") and one.size == head_bytes:
            heads += one.times  # the compiler labels it by its operand, not by its use
            continue
        # a layer's slice of the stacked weights is taken in the loop over layers
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
    # the weights of a layer are gathered: the labels are those that the budget expects
    assert spent["layer", "forward", "all-gather", "fsdp"] > 0.9 * W


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_as_large_as_logits(layout):
    """An array as wide as the vocabulary, whole or on a tensor shard, has at most the rows of a chunk."""
    text, _, positions = compiled(layout)
    assert positions > 2 * head.chunk_of(jnp.float32)
    for dims in re.findall(r"f32\[([\d,]+)\]", text):
        shape = tuple(map(int, dims.split(",")))
        if len(shape) > 1 and shape[-1] in (CFG.vocab_size, CFG.vocab_size // 2):
            assert np.prod(shape[:-1]) <= head.chunk_of(jnp.float32), shape


def collectives_of(phase: programs.Phase) -> list[collectives.Collective]:
    return collectives.find(hlo.read(text_of(phase)), None)


def sent_by_decoding(shape, tensor: int, tied=False) -> list[float]:
    """Bytes that a chunk of steps sends, except within the groups that share heads, one number per collective."""
    run = run_of(shape, tied, rollout={"tensor": tensor})
    found = collectives_of(rollout_lib.phases(run)["decode"])
    return [one.size * one.times for one in found if collectives.axes(one, run.engine.sampling.mesh) != "tensor"]


@pytest.mark.slow
def test_gathered_weights_are_read_where_they_are_placed():
    """A step then sends only tokens and activations; otherwise it sends the weights, or sums over a split width."""
    step = 4 * N * G / 4 * CFG.d_model  # bytes of one activation of a step's tokens
    for shape, tensor in (((2, 2, 2), 2), ((1, 8, 1), 2), ((2, 4, 1), 2)):
        for tied in (False, True):
            assert sum(sent_by_decoding(shape, tensor, tied)) <= 4 * step
    assert sum(sent_by_decoding((2, 2, 2), 0)) > CFG.n_layers * min(weights(), 2 * step)


@pytest.mark.parametrize("shape, tensor", [((2, 2, 2), 0), ((2, 4, 1), 2)])
def test_an_admission_moves_no_cache_across_the_mesh(shape, tensor):
    """Slots are refilled and move together within their data shard; only prompts' hidden states and keys are sent."""
    admit = rollout_lib.phases(run_of(shape, rollout={"slots": 32, "tensor": tensor}))["admit"]
    sent = sum(one.size * one.times for one in collectives_of(admit))
    cache = bytes_per_chip(admit.args[2].cache)
    assert 0 < sent < cache / 2, (sent, cache)


@pytest.mark.slow
def test_recording_tokens_gathers_nothing():
    """What each update did with its tokens stays where their rows are, until a step is recorded."""

    def gathers(records):
        run = run_of()
        if records:
            run.config.log.rollouts = 1
            run = programs.Run(run.config, Engine.of(run.config, CFG, None, run.engine.mesh))
        return len(re.findall(r" all-gather(?:-start)?\(", text_of(programs.update(run))))

    assert gathers(True) == gathers(False) > 0
