"""Rows 17 to 19, and Ctrl-C: signals at every phase, and one of two processes that dies."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import small_runs

from entropy_rl.record.checkpoint import Checkpoints

STEPS = 10
AT = str(small_runs.ROOT / "tests/signal_at.py")


def assert_nobody_is_left(group: int) -> None:
    """Every process of a group, which a run was started in, ends within seconds of the run."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail(f"process group {group} is still there")


def signalled(run: pathlib.Path, cache: pathlib.Path, point: str, count: int, number: str, code: int) -> str:
    """The output of a process that gets a signal at the `count`-th call of a point, and must end with `code`."""
    before = small_runs.log_of(run).stat().st_size if small_runs.log_of(run).exists() else 0
    program = AT, point, str(count), number
    process = small_runs.start(run, cache, program=program, start_new_session=True)
    try:
        returned = process.wait(small_runs.LIMIT)
    finally:
        process.kill()
    output = small_runs.log_of(run).read_text()[before:]
    assert returned == code, f"exit code {returned}, expected {code}:\n{output[-4000:]}"
    assert "Traceback" not in output
    assert_nobody_is_left(process.pid)
    return output


def assert_is_a_beginning(run: pathlib.Path, whole: pathlib.Path) -> None:
    """Every row of a run is a row of the whole run, so none lacks its evaluation."""
    rows = small_runs.rows(run) if (run / "metrics.jsonl").exists() else []
    assert rows == small_runs.rows(whole)[: len(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("point, count", [("import", 1), ("model", 1), ("compile", 5), ("warm-up", 12)])
def test_17_sigterm_before_the_first_step(whole, cache, tmp_path, point, count):
    run = tmp_path / "run"
    signalled(run, cache, point, count, "SIGTERM", code=75)
    assert_is_a_beginning(run, whole)
    small_runs.finish(run, cache)
    assert not small_runs.differences(whole, run, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("point, count", [("compile", 5), ("rollout", 1), ("grading", 1), ("step", 1)])
def test_17_sigterm_in_a_step(whole, stopped, cache, point, count):
    signalled(stopped, cache, point, count, "SIGTERM", code=75)
    assert Checkpoints(stopped / "checkpoints").latest() in (8, 9)
    assert_is_a_beginning(stopped, whole)
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["evaluation", "row"])
def test_17_sigterm_in_the_evaluation_after_a_step_loses_no_step(whole, stopped, cache, point):
    signalled(stopped, cache, point, 1, "SIGTERM", code=75)
    assert Checkpoints(stopped / "checkpoints").latest() == 9
    assert_is_a_beginning(stopped, whole)
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["save", "commit"])
def test_18_the_grace_runs_out_during_a_save(whole, stopped, cache, point):
    """SIGTERM, and SIGKILL at the worst moment of what follows: the step before is whole."""
    process = small_runs.start(stopped, cache, program=(AT, "step", "1", "SIGTERM", point, "1", "SIGKILL"))
    try:
        assert process.wait(small_runs.LIMIT) in (-signal.SIGKILL, 75)
    finally:
        process.kill()
    assert Checkpoints(stopped / "checkpoints").latest() in (8, 9)
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
def test_18_sigkill_a_fifth_of_a_second_after_sigterm(whole, stopped, cache):
    process = small_runs.start(stopped, cache, program=(AT, "rollout", "1", "SIGTERM"))
    try:
        deadline = time.monotonic() + small_runs.LIMIT
        while "SIGTERM at rollout" not in small_runs.log_of(stopped).read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        process.kill()
    assert process.wait() in (-signal.SIGKILL, 75)
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, STEPS)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_continue(whole, stopped, cache):
    output = signalled(stopped, cache, "evaluation", 1, "SIGINT", code=130)
    assert Checkpoints(stopped / "checkpoints").latest() == 9
    assert "step 9" in output.splitlines()[-1]
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, STEPS)


def two_processes(workdir: pathlib.Path, cache: pathlib.Path, steps: int) -> subprocess.Popen:
    command = [sys.executable, "launch/local.py", "--processes=2", "--devices=1", "--"]
    command += [f"--config={small_runs.__file__}", f"--workdir={workdir}", "--config.mesh.data=2"]
    command += [f"--config.train.steps={steps}", "--config.warmup.updates=2", "--config.eval.every=0"]
    env = small_runs.environment(cache) | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with small_runs.log_of(workdir).open("a") as log:
        return subprocess.Popen(command, cwd=small_runs.ROOT, env=env, stdout=log, stderr=log, start_new_session=True)


@pytest.mark.slow
def test_19_one_of_two_processes_dies(cache, tmp_path):
    """The other one ends too, with an error, and leaves no process behind; the same command resumes the run."""
    run = tmp_path / "run"
    process = two_processes(run, cache, steps=10_000)
    try:
        while not Checkpoints(run / "checkpoints").steps():
            assert process.poll() is None, small_runs.log_of(run).read_text()[-4000:]
            time.sleep(0.1)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        assert process.wait(small_runs.LIMIT) not in (0, 75)
    finally:
        process.kill()
    assert_nobody_is_left(process.pid)
    saved = Checkpoints(run / "checkpoints").latest()
    process = two_processes(run, cache, steps=saved + 1)
    try:
        assert process.wait(small_runs.LIMIT) == 0, small_runs.log_of(run).read_text()[-4000:]
    finally:
        process.kill()
    assert [row["step"] for row in small_runs.rows(run)] == list(range(saved + 2))
