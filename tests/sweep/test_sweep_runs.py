"""Real sweeps of the smallest run: shared warm-ups, interruptions, failures."""

import csv
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import small_runs

pytestmark = pytest.mark.slow

METHODS = ("grpo", "adaptive_entropy")
SETTINGS = ("--config.train.steps=6", "--config.warmup.updates=20")
TIMED = ("step_s", "starts", "commit", "jax")


def sweep(out: pathlib.Path, cache: pathlib.Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "entropy_rl.sweep", f"--config={small_runs.__file__}", f"--out={out}"]
    command += [f"--methods={','.join(METHODS)}", "--seeds=2", *SETTINGS, *more]
    return subprocess.Popen(command, cwd=small_runs.ROOT, env=small_runs.environment(cache), start_new_session=True)


def rows(out: pathlib.Path) -> list[dict[str, str]]:
    with (out / "runs.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def outcomes_by_step(out: pathlib.Path) -> list[dict[str, str]]:
    with (out / "curves.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("sweep") / "whole"
    assert sweep(out, cache).wait(900) == 0
    return out


def test_a_run_with_a_shared_warm_up_equals_one_that_made_its_own(whole, cache, tmp_path):
    method = METHODS[1]
    flags = (f"--config={small_runs.__file__}:{method}", "--config.seed=1", *SETTINGS)
    small_runs.finish(tmp_path / "alone", cache, *flags)
    assert small_runs.differences(tmp_path / "alone", whole / "runs" / method / "seed-1", 6) == []


def test_a_warm_up_of_other_settings_is_refused_before_any_work(whole, cache, tmp_path):
    (warm_up,) = (whole / "warmups").glob("seed-0-*")
    flags = (f"--config={small_runs.__file__}", "--config.seed=0", *SETTINGS, "--config.warmup.lr=0.5")
    output = small_runs.finish(tmp_path / "a", cache, *flags, f"--warm_up_of={warm_up}", code=1)
    assert "that run's warm-up is another one, by warmup" in output


def test_a_sweep_that_was_interrupted_ten_times_gives_the_same_table(whole, cache, tmp_path):
    rng, out = random.Random(5), tmp_path / "torn"
    for _ in range(10):
        process = sweep(out, cache)
        try:
            process.wait(rng.uniform(2, 25))
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)))
            process.wait(120)
            time.sleep(1)  # after SIGKILL the run that it left ends by itself
    assert sweep(out, cache).wait(900) == 0
    assert rows(out) == rows(whole)
    assert outcomes_by_step(out) == outcomes_by_step(whole)


def test_a_run_that_fails_is_named_and_the_others_are_made(cache, tmp_path):
    broken = tmp_path / "out" / "runs" / METHODS[0] / "seed-0"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "checkpoints" / "7").write_text("a file in the place of a checkpoint")
    assert sweep(tmp_path / "out", cache, "--jobs=2").wait(900) == 1
    states = {(row["arm"], row["seed"]): row["state"] for row in rows(tmp_path / "out")}
    assert states.pop((METHODS[0], "0")) == "failed" and set(states.values()) == {"done"}
    assert "checkpoints/7" in (tmp_path / "out" / "index.html").read_text()
