"""Rows 1, 2, 6, 9, 10: a save that is killed, dies before its commit or meets a full disk, each in its own process."""

import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from states import ABSTRACT, assert_bitwise, make_state, saved, warnings_in

from entropy_rl.record.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]

# 16 MB per step, every bit of which follows from the step's number.
PRELUDE = """
import os, resource, sys
import jax.numpy as jnp
from entropy_rl.record.checkpoint import Checkpoints

def make_state(step):
    return {f"w{i}": jnp.full((1 << 20,), step + i / 7, jnp.float32) for i in range(4)}

checkpoints = Checkpoints(sys.argv[1], keep=int(sys.argv[2]))

def save(step):
    checkpoints.save(step, make_state(step), {"position": step * 10})
    print("saved", step, flush=True)
"""

SAVE_FOREVER = """
step = (checkpoints.latest() or 0) + 1
while True:
    save(step)
    step += 1
"""

DIE_IN_FINALIZE = """
import orbax.checkpoint as ocp
save(1)
ocp.PyTreeCheckpointHandler.finalize = lambda *args, **kwargs: os._exit(9)
save(2)
"""

DIE_BEFORE_MANIFEST = """
from entropy_rl.record import manifest
save(1)
manifest.write = lambda *args: os._exit(9)
save(2)
"""

FULL_DISK = """
save(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
save(2)
"""


def command(script: str, directory: Path, keep: int = 2) -> list[str]:
    return [sys.executable, "-c", PRELUDE + script, str(directory), str(keep)]


ENV = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def run(script: str, directory: Path, keep: int = 2) -> tuple[int, str, str]:
    done = subprocess.run(
        command(script, directory, keep), capture_output=True, text=True, env=ENV, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def assert_holds_step(directory: Path, step: int) -> None:
    """A restore returns `step`, bit for bit, and the next save leaves no trace of the death."""
    checkpoints = Checkpoints(directory)
    abstract = {f"w{i}": jax.ShapeDtypeStruct((1 << 20,), np.float32) for i in range(4)}
    state, meta = checkpoints.restore(abstract)
    assert meta == {"position": step * 10, "step": step}
    for i in range(4):
        np.testing.assert_array_equal(state[f"w{i}"], np.full(1 << 20, step + i / 7, np.float32))
    checkpoints.save(step + 1, state, {})
    assert sorted(int(path.name) for path in directory.iterdir()) == checkpoints.steps()


def kill_at_random(parent: Path, count: int, seed: int) -> None:
    """Kills `count` processes that do nothing but save, each at its own moment; the newest step must be whole."""
    rng = random.Random(seed)
    parent.mkdir(exist_ok=True)
    logs = [parent / f"{i}.log" for i in range(count)]
    processes = []
    try:
        for i, log in enumerate(logs):
            with log.open("w") as out:
                processes.append(subprocess.Popen(command(SAVE_FOREVER, parent / str(i)), stdout=out, env=ENV))
        for log, process in zip(logs, processes, strict=True):
            while not log.read_text():
                assert process.poll() is None, "died before its first save"
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 0.3))
            process.kill()
            process.wait()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for i, log in enumerate(logs):
        announced = int(log.read_text().split()[-1])
        newest = Checkpoints(parent / str(i)).latest()
        # One more than announced if the kill came between the commit and the print.
        assert newest in (announced, announced + 1)
        assert_holds_step(parent / str(i), newest)


def test_01_sigkill_during_a_save(tmp_path):
    kill_at_random(tmp_path, count=2, seed=0)


@pytest.mark.slow
def test_01_sigkill_during_a_save_twenty_times(tmp_path):
    for batch in range(5):
        kill_at_random(tmp_path / str(batch), count=4, seed=1 + batch)


@pytest.mark.parametrize("script", [DIE_IN_FINALIZE, DIE_BEFORE_MANIFEST], ids=["finalize", "manifest"])
def test_02_death_before_the_commit(tmp_path, script):
    code, out, err = run(script, tmp_path)
    assert (code, out) == (9, "saved 1\n"), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert_holds_step(tmp_path, 1)


@pytest.mark.parametrize("keep", [1, 2])
def test_06_a_full_disk(tmp_path, keep):
    code, out, err = run(FULL_DISK, tmp_path, keep)
    assert code == 1, err
    assert out == "saved 1\n"
    assert "File too large" in err
    assert_holds_step(tmp_path, 1)


@pytest.mark.slow
def test_06_a_run_without_room_ends_and_continues_later(whole, stopped, cache):
    """No file may grow beyond the record as it is: a row, or a leaf, does not fit."""
    room = (stopped / "metrics.jsonl").stat().st_size - 100
    output = small_runs.finish(stopped, cache, code=1, program=small_runs.with_room(room))
    assert "File too large" in output and "Traceback" not in output
    assert Checkpoints(stopped / "checkpoints").latest() in (8, 9)
    small_runs.finish(stopped, cache)
    assert not small_runs.differences(whole, stopped, 10)


def test_02_leftovers_are_no_checkpoint_and_the_next_save_removes_them(tmp_path, caplog):
    checkpoints = saved(tmp_path, 1, 2, 3)
    (tmp_path / "3/manifest.json").unlink()
    torn = (tmp_path / "2/manifest.json").read_bytes()
    (tmp_path / "2/manifest.json").write_bytes(torn[:-1])
    saved(tmp_path / "only", 1)
    (tmp_path / "only/1/manifest.json").unlink()
    assert (checkpoints.steps(), checkpoints.restore(ABSTRACT)) == ([], None)
    assert f"{tmp_path}/3 has no manifest" in warnings_in(caplog)
    assert Checkpoints(tmp_path / "only").latest() is None
    checkpoints.save(1, make_state(1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "only"]


def test_09_buffers_may_be_donated_once_save_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"w": jnp.arange(1 << 20, dtype=jnp.float32)}
    before = np.array(state["w"])
    step = partial(jax.jit, donate_argnums=0)(lambda s: jax.tree.map(lambda x: x * 0 - 1, s))
    checkpoints.save(1, state, {})
    jax.block_until_ready(step(state))
    restored, _ = checkpoints.restore({"w": jax.ShapeDtypeStruct(before.shape, before.dtype)})
    np.testing.assert_array_equal(restored["w"], before)


def test_10_the_older_step_survives_a_next_save_that_fails(tmp_path):
    checkpoints = saved(tmp_path, 1, keep=1)
    (tmp_path / "2").write_text("a file in the way")
    with pytest.raises(OSError):
        checkpoints.save(2, make_state(2), {})
    assert checkpoints.steps() == [1]
    assert_bitwise(checkpoints.restore(ABSTRACT)[0], make_state(1))
