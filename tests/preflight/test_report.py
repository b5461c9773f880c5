"""Preflight: what is read from a compiled program's text, what is counted, and one small topology compiled for."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from entropy_rl import config
from entropy_rl.preflight import chips, programs, report
from entropy_rl.training import engine

ROOT = pathlib.Path(__file__).parents[2]


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
    found = json.loads(preflight("configs/entropy_mechanism.py:qwen2_5_7b", "h100:64", "--json"))
    assert found["fits"]
    assert found["parameters"] == pytest.approx(7.6156e9 * 4 / 64, rel=1e-3)
    assert found["optimiser"] == pytest.approx(2 * found["parameters"], rel=1e-3)
    assert 0.3 < found["mfu"] < 0.7
    text = preflight("configs/entropy_mechanism.py:qwen2_5_7b", "h100:8", "--config.mesh.fsdp=8", code=1)
    assert "nothing was compiled" in text and "rollout.slots=1024" in text


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason='needs pip install "jax[tpu]"')
def test_a_small_run_compiled_for_four_chips():
    small = ["--config.rollout.prompts=32", "--config.train.updates_per_rollout=8", "--config.rollout.max_tokens=511"]
    small += ["--config.data.max_prompt_len=128", "--config.mesh.fsdp=4", "--config.eval.batch=4"]
    found = json.loads(preflight("configs/entropy_mechanism.py:qwen2_5_0_5b", "v5e:2x2", "--json", *small))
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
