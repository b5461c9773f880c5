"""The training command's errors: one sentence where it is enough, a traceback where the code is at fault."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

ERRORS = """
import jax, jax.numpy as jnp
from entropy_rl import train
from entropy_rl.loop import check_finite
from entropy_rl.record.checkpoint import Checkpoints

def of_jax():
    raise jax.errors.JaxRuntimeError("INTERNAL: out of luck")

def of_another():
    raise RuntimeError("somewhere else")

def full():
    raise OSError(28, "No space left on device")

wrong = {
    "ours": lambda: check_finite(3, 9, 2),
    "value": lambda: Checkpoints("x", keep=0),
    "disk": full,
    "jax": of_jax,
    "another's": of_another,
    "a bug": lambda: {}["key"],
}
for name, raising in wrong.items():
    try:
        raising()
    except Exception as error:
        print(name, train.is_expected(error))
"""


def test_which_errors_are_a_sentence():
    done = subprocess.run([sys.executable, "-c", ERRORS], capture_output=True, text=True, cwd=ROOT, check=True)
    expected = {"ours": True, "value": True, "disk": True, "jax": False, "another's": False, "a bug": False}
    assert done.stdout.splitlines() == [f"{name} {value}" for name, value in expected.items()]


@pytest.mark.parametrize(
    "place, message",
    [
        ("file", "error: --workdir={0}/file: {0}/file is a file; name a directory, or move the file away\n"),
        ("file/run", "error: --workdir={0}/file/run: {0}/file is a file; name a directory, or move the file away\n"),
        ("/proc/run", "error: --workdir=/proc/run cannot be made: No such file or directory\n"),
        ("/proc", "error: --workdir=/proc cannot be written: No such file or directory\n"),
        ("lost", "error: {0}/lost/metrics.jsonl has rows up to step 3, but "),
        ("taken", "error: {0}/taken/checkpoints/7 is a file, where the checkpoint of that step has to go; "),
    ],
)
def test_a_workdir_that_will_not_do_is_one_line(tmp_path, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "lost").mkdir()
    rows = (f'{{"step": {step}, "reward/mean": null, "entropy/mean": null}}\n' for step in range(4))
    (tmp_path / "lost" / "metrics.jsonl").write_text("".join(rows))
    (tmp_path / "taken" / "checkpoints").mkdir(parents=True)
    (tmp_path / "taken" / "checkpoints" / "7").touch()
    workdir = place if place.startswith("/") else f"{tmp_path}/{place}"
    command = [sys.executable, "-m", "entropy_rl.train", "--config=configs/quickstart.py", f"--workdir={workdir}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith(message.format(tmp_path)), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / place / "lock.json").exists()
