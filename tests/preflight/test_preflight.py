"""`python -m entropy_rl.preflight`, and the reports that it made for results/preflight."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def preflight(config: str, topology: str, *more: str, code: int = 0) -> str:
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "entropy_rl.preflight", f"--config={config}", f"--topology={topology}", *more]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_gpus_by_arithmetic():
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
    # statistics, forward, forward again for remat, and a backward pass of twice that: 5/3 of the useful FLOPs, except
    # for positions that the head skips
    assert 1.2 < update["flops"] / found["useful_flops"] < 1.8
    assert 0.2 < found["programs"]["score"]["flops"] / found["useful_flops"] < 0.5  # one forward pass
    # the weights are sent three times, by whatever collectives the compiler chose, except for the looked-up table
    assert update["collective_bytes"] > 3 * 358e6 * 2 * 3 / 4
    # products wait for whole weights: they are not summed slice by slice as slices arrive
    assert all(row["bytes"] < 1e6 for row in update["collectives"] if "permute" in row["what"])
    assert rollout["decode"]["time"]["step"] < rollout["prefill"]["time"]["step"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason='needs pip install "jax[tpu]"')
def test_every_program_of_a_run_on_one_chip():
    """One chip is a part of a host; whatever a run executes is compiled, the measured update and the warm-up's too."""
    small = ["--config.rollout.prompts=8", "--config.train.updates_per_rollout=4", "--config.rollout.max_tokens=127"]
    small += ["--config.rollout.samples=2", "--config.rollout.slots=8", "--config.data.max_prompt_len=128"]
    small += ["--config.mesh.fsdp=1", "--config.eval.batch=16", "--config.eval.every=10", "--config.measure.every=5"]
    small += ["--config.warmup.updates=1", "--config.warmup.batch=8", "--config.warmup.micro_batches=4"]
    small += ["--config.train.micro_batches=1"]
    found = json.loads(preflight("configs/entropy_mechanism.py:qwen2_5_0_5b", "v5e:1x1", "--json", *small))
    names = ["update", "score", "measured update", "warm-up update", "rollout", "evaluation, greedy"]
    assert list(found["programs"]) == names and all("time" in one for one in found["programs"].values())
    plain, measured = (found["programs"][name]["peak"] for name in ("update", "measured update"))
    assert measured < plain + 1.3 * found["parameters"]  # those from before the update


def test_the_published_table_is_that_of_the_reports():
    """The runs in results/preflight fit and keep the chips busy, and what a chip sends does not grow with the pod."""
    folder = ROOT / "results/preflight"
    files = sorted(folder.glob("*.json"))
    command = [sys.executable, "results/preflight/table.py", *map(str, files)]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table.strip() in (folder / "README.md").read_text()
    reports = {path.stem: json.loads(path.read_text()) for path in files}
    for name in ("7b-v5e-16x16", "7b-v5p-4x4x4", "32b-v5p-4x4x4", "14b-v6e-16x16"):
        assert reports[name]["fits"] and reports[name]["mfu"] >= 0.4, name
    sent = []
    for name in ("7b-weak-v5p-2x2x4", "7b-weak-v5p-4x4x4", "7b-weak-v5p-4x8x8"):
        assert reports[name]["fits"] and reports[name]["pieces"] == 4
        sent.append(sum(reports[name]["programs"][part]["collective_bytes"] for part in ("update", "score")))
    assert all(more < 1.15 * less for less, more in itertools.pairwise(sent))
