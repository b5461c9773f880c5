"""Preflight: what is read from a compiled program's text, what is counted, and one small topology compiled for."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from entropy_rl import config
from entropy_rl.preflight import chips, collectives, flops, hlo, programs, report
from entropy_rl.training import engine

ROOT = pathlib.Path(__file__).parents[2]

TEXT = """HloModule jit_f, is_scheduled=true

%sliced (p0: bf16[6,128,512], p1: s32[]) -> bf16[1,128,512] {
  %p0 = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %ds = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,128,512}
}

%known_body (b: (s32[], bf16[6,128,512])) -> (s32[], bf16[6,128,512]) {
  %b = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%b), index=0
  %w = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %slice = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} fusion(%w, %n), kind=kLoop, calls=%sliced, metadata={op_name="layer/slice"}
  %gather = bf16[1,512,512]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%slice), channel_id=5, replica_groups=[1,4]<=[4], dimensions={1}
  ROOT %t = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%n, %w)
}

%known_cond (c: (s32[], bf16[6,128,512])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %c = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %six), direction=LT
}

%data_cond (c2: (s32[], bf16[6,128,512])) -> pred[] {
  %c2 = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i2 = s32[]{:T(128)} get-tuple-element(%c2), index=0
  ROOT %lt2 = pred[]{:T(512)} compare(%i2, %i2), direction=LT
}

%outer (o: (s32[], bf16[6,128,512])) -> (s32[], bf16[6,128,512]) {
  %o = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %inner = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) while(%o), condition=%known_cond, body=%known_body
}

ENTRY %main (x: s32[], y: bf16[6,128,512]) -> (s32[], bf16[6,128,512]) {
  %x = s32[]{:T(128)} parameter(0)
  %y = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %both = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%x, %y)
  ROOT %loop = (s32[]{:T(128)}, bf16[6,128,512]{2,1,0:T(8,128)(2,1)}) while(%both), condition=%data_cond, body=%outer, metadata={op_name="jit(f)/jvp()/update_pieces/while"}
}
"""  # noqa: E501
TRIPS = {"update_pieces": 5}


def test_loops_count_by_their_bound_or_by_their_name():
    program = hlo.read(TEXT)
    times = {i.name: n for n, i, _ in program.walk(TRIPS)}
    assert times["loop"] == 1 and times["inner"] == 5 and times["gather"] == times["slice"] == 30


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match=r"written under 'jit\(f\)/jvp\(\)/update_pieces'.*which has other"):
        list(hlo.read(TEXT).walk({"other": 5}))
    x = jnp.zeros((8, 8))
    jaxpr = jax.make_jaxpr(lambda x, n: jax.lax.fori_loop(0, n, lambda i, c: c @ x, x))(x, 3).jaxpr
    with pytest.raises(ValueError, match="written under ''"):
        flops.count(jaxpr, {"other": 5})


def test_of_a_sliced_operand_the_slice_is_moved():
    one = 128 * 512 * 2
    # the fusion reads a slice and writes it; the gather reads it, its result stays in scratch memory
    assert hlo.read(TEXT).traffic(TRIPS) == pytest.approx(30 * (one + one + 4 + one), rel=1e-3)
    assert hlo.read(TEXT).largest(1) == [(one, "bf16[1,128,512]", "layer/slice")]


def test_of_an_operand_sliced_by_a_fusion_within_a_fusion_the_slice_is_moved():
    """As a TPU's products take a layer's weights out of the stacked ones."""
    one, rows = 128 * 512 * 2, 128 * 2
    nested = """%product (w: bf16[6,128,512], n: s32[], x: bf16[1,128]) -> bf16[1,512] {
  %w = bf16[6,128,512]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = bf16[1,128]{1,0} parameter(2)
  %layer = bf16[1,128,512]{2,1,0} fusion(%w, %n), kind=kLoop, calls=%sliced
  ROOT %dot = bf16[1,512]{1,0} custom-call(%x, %layer)
}

%known_body"""
    fusion = "%slice = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} fusion(%w, %n), kind=kLoop, calls=%sliced"
    within = "%x = bf16[1,128]{1,0} constant({...})\n"
    within += "  %slice = bf16[1,512]{1,0} fusion(%w, %n, %x), kind=kOutput, calls=%product"
    assert TEXT.count("%known_body (b") == 1 and TEXT.count(fusion) == 1
    text = TEXT.replace("%known_body (b", nested + " (b").replace(fusion, within)
    (moved,) = {hlo.read(text)._moved(i, around) for _, i, around in hlo.read(text).walk(TRIPS) if i.name == "slice"}
    assert moved == one + 4 + rows + 512 * 2


def test_what_a_collective_beside_a_fusion_holds_is_not_moved_by_the_fusion():
    """A gather that goes on while a product is computed is handed through it, both its buffers."""
    text = """HloModule one

%async_collective (own: bf16[128,64], all: bf16[128,512], x: bf16[8,16]) -> (bf16[8,16]) {
  %own = bf16[128,64]{1,0} parameter(0)
  %all = bf16[128,512]{1,0} parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  %gather = bf16[128,512]{1,0} all-gather(%own), channel_id=4, replica_groups=[1,8]<=[8], dimensions={1}
  %y = bf16[8,16]{1,0} add(%x, %x)
  ROOT %all_of_it = (bf16[8,16]{1,0}, bf16[128,64]{1,0}, bf16[128,512]{1,0}) tuple(%y, %own, %gather)
}

ENTRY %main (own: bf16[128,64], all: bf16[128,512], x: bf16[8,16]) -> (bf16[8,16], bf16[128,64], bf16[128,512]) {
  %own = bf16[128,64]{1,0} parameter(0)
  %all = bf16[128,512]{1,0} parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  ROOT %b = (bf16[8,16]{1,0}, bf16[128,64]{1,0}, bf16[128,512]{1,0}) fusion(%own, %all, %x), calls=%async_collective
}
"""
    assert hlo.read(text).traffic(TRIPS) == 2 * 8 * 16 * 2


def test_collectives_by_kind_bytes_and_axis():
    (found,) = collectives.find(hlo.read(TEXT), TRIPS)
    assert (found.kind, found.times, found.bytes, found.group) == ("all-gather", 30, 512 * 512 * 2, (0, 1, 2, 3))
    assert found.sent() == 512 * 512 * 2 * 3 / 4 and not found.overlapped
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), ("data", "fsdp", "tensor"))
    assert collectives.axes(found, mesh) == "fsdp+tensor"


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={1}", (0, 2)),
        ("replica_groups=[2,2]<=[4], dimensions={1}", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}, x={1}", (0, 1, 2, 3)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)2}, x={1}", (0, 2)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}, x={1}", (0, 2)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
    ],
)
def test_groups_in_every_form(text, group):
    assert collectives.first_group(text) == group


def test_flops_of_loops_and_branches():
    x, w = jnp.zeros((8, 16)), jnp.zeros((3, 16, 16))

    def f(x, w, n):
        y, _ = jax.lax.scan(lambda c, w: (c @ w, None), x, w)
        y = jax.lax.cond(n > 0, lambda: y @ w[0], lambda: y)
        with jax.named_scope("loop"):
            return jax.lax.fori_loop(0, n, lambda i, c: c @ w[0], y)

    jaxpr = jax.make_jaxpr(f)(x, w, 3).jaxpr
    product = 2 * 8 * 16 * 16
    assert flops.count(jaxpr, {"loop": 10}) == (3 + 1 + 10) * product
    grad = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.tanh(x @ w[0]) @ w[1])(x))))(x).jaxpr
    assert flops.count(grad, {}) == (2 + 1 + 2) * product  # forward, the first product again, two pull-backs


@pytest.mark.parametrize("text", ["v5p", "v5p:4x4", "v9:2x2", "h100:2x2", "v5e:axb"])
def test_topologies_that_are_none(text):
    with pytest.raises(ValueError, match=rf"--topology='{text}'"):
        chips.parse(text)
    assert chips.parse("v5p:4x4x8").size == 128 and str(chips.parse("v6e:16x16")) == "v6e:16x16"


@pytest.mark.parametrize(
    "message, bytes",
    [
        ("Used 484.02G of 95.74G hbm. Exceeded hbm capacity by 388.28G.", 484.02 * chips.GIB),
        ("the total memory required for HLO temporaries (223.53G) exceeds available HBM (15.75G).", 223.53 * chips.GIB),
        ("something else", 101.0),
    ],
)
def test_what_did_not_fit_says_how_much_it_took(message, bytes):
    """The two forms of libtpu's message."""
    assert report.needed(message, 100.0) == pytest.approx(bytes)


@pytest.mark.parametrize("wanted, fsdp", [(0, 2), (20, 2), (20, 4)])
def test_a_rollouts_programs_follow_one_another(wanted, fsdp):
    """What sampling makes of the slots lies as preflight supposes, on CPU devices, and a chunk writes in place."""
    c = config.default()
    c.rollout.prompts, c.rollout.samples, c.rollout.max_tokens, c.data.max_prompt_len = 8, 4, 150, 16
    c.rollout.slots, c.mesh.data, c.mesh.fsdp, c.mesh.tensor, c.rollout.tensor = wanted, 2, fsdp, 4 // fsdp, 2
    c.eval.batch = c.warmup.batch = 8
    c.train.updates_per_rollout, c.model.source = 1, "tiny"
    run = programs.prepare(c, jax.devices()[:8])
    assert programs.slots(run) == (20 if wanted else 32)
    parts = programs.rollout(run)
    admit, chunk = parts["admit"], parts["decode"]
    with engine.on_mesh(*chunk.on, run.e.model.dtype):
        made, _ = admit.f.lower(*admit.args).compile().output_shardings
        done = chunk.f.lower(*chunk.args).compile()
    old, full = admit.args[2], chunk.args[1]
    assert old.cache.segment.shape[1] == (160 if wanted else 128) and full.cache.segment.shape == (len(full.age), 160)
    assert full.prefix.segment.shape[0] == (20 if wanted else 8)
    for want, got in zip(jax.tree.leaves(full.cache), jax.tree.leaves(made.cache), strict=True):
        assert got.is_equivalent_to(want.sharding, want.ndim)
    assert done.memory_analysis().alias_size_in_bytes >= programs.bytes_per_chip(full.cache)
    token = 2 * run.cfg.n_layers * run.cfg.n_kv_heads * run.cfg.head_dim * 4 / 8
    kv = lambda x: programs.bytes_per_chip((x.key, x.value))
    total = kv(parts["admit"].args[1].prefix) + kv(full.prefix) + kv(full.cache)
    assert total == programs.cache_bytes(run) == token * ((8 + (20 if wanted else 8)) * 16 + len(full.age) * 160)


def preflight(file, topology, *more, code=0):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "entropy_rl.preflight", f"--config={file}", f"--topology={topology}", *more]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code in (0, 1) else done.stderr


@pytest.mark.slow
def test_gpus_by_numbers():
    found = json.loads(preflight("configs/qwen2_5_7b.py", "h100:64", "--json"))
    assert found["fits"]
    assert found["parameters"] == pytest.approx(7.6156e9 * 4 / 64, rel=1e-3)
    assert found["optimiser"] == pytest.approx(2 * found["parameters"], rel=1e-3)
    assert 0.3 < found["mfu"] < 0.7
    text = preflight("configs/qwen2_5_7b.py", "h100:8", "--config.mesh.fsdp=8", code=1)
    assert "nothing was compiled" in text and "rollout.slots=1024" in text


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason='needs pip install "jax[tpu]"')
def test_a_small_run_compiled_for_four_chips():
    small = ["--config.rollout.prompts=32", "--config.train.updates_per_rollout=8", "--config.rollout.max_tokens=511"]
    small += ["--config.data.max_prompt_len=128", "--config.mesh.fsdp=4", "--config.eval.batch=4"]
    found = json.loads(preflight("configs/qwen2_5_0_5b.py", "v5e:2x2", "--json", *small))
    assert found["fits"] and found["parameters"] == pytest.approx(494e6 * 4 / 4, rel=1e-2)
    update, rollout = found["programs"]["update"], found["programs"]["rollout"]
    # forward, again, forward once more, twice back: five thirds of what is useful, but for the head's positions
    assert 1.2 < update["flops"] / found["useful_flops"] < 1.8
    assert 0.2 < found["programs"]["score"]["flops"] / found["useful_flops"] < 0.5  # a pass forward
    # the weights come three times, gathered in whatever way the compiler took, but for the table's look-up
    assert update["collective_bytes"] > 3 * 358e6 * 2 * 3 / 4
    # and products wait for them: they are not summed up slice by slice as slices arrive
    assert all(row["bytes"] < 1e6 for row in update["collectives"] if "permute" in row["what"])
    assert rollout["decode"]["time"]["step"] < rollout["prefill"]["time"]["step"]


def test_the_readmes_table_is_that_of_the_reports():
    """`results/preflight`: what was compiled fits and is busy, and collectives do not grow with the pod."""
    files = sorted((ROOT / "results/preflight").glob("*.json"))
    command = [sys.executable, "results/preflight/table.py", *map(str, files)]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table.strip() in (ROOT / "README.md").read_text()
    reports = {path.stem: json.loads(path.read_text()) for path in files}
    for name in ("7b-v5e-16x16", "7b-v5p-4x4x4", "32b-v5p-4x4x4", "14b-v6e-16x16"):
        assert reports[name]["fits"] and reports[name]["mfu"] >= 0.4, name
    sent = []
    for name in ("7b-weak-v5p-2x2x4", "7b-weak-v5p-4x4x4", "7b-weak-v5p-4x8x8"):
        assert reports[name]["fits"] and reports[name]["pieces"] == 4
        sent.append(sum(reports[name]["programs"][part]["collective_bytes"] for part in ("update", "score")))
    assert all(more < 1.15 * less for less, more in itertools.pairwise(sent))
