"""The default configuration is locked and small, and a wrong flag stops the command early and names the key."""

import pathlib
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from entropy_rl import config

ROOT = pathlib.Path(__file__).parents[2]


def fields(section: ConfigDict) -> int:
    """The number of fields in a section and its subsections."""
    return sum(fields(value) if isinstance(value, ConfigDict) else 1 for value in section.values())


def test_config_is_locked_and_small():
    c = config.apply_recipe(config.default(), "dapo")
    c.eval.sets.math = {"task": "math-500"}  # here the user chooses the names
    c.reward.own.brevity = {"function": "my_rewards:brevity", "weight": 0.1}
    with pytest.raises(AttributeError, match="set"):
        c.eval.set = {}
    with pytest.raises(AttributeError, match="lr"):
        c.optim.learning_rate = 1.0
    with pytest.raises(TypeError, match="float"):
        c.optim.lr = "fast"
    assert fields(config.default()) < 105


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.optim.lrr=1"], "lrr"),
        (["--config.optim.lr=fast"], "optim.lr"),
        (["--config.rollout.prompts=7"], "rollout.prompts=7 must be a multiple"),
        (["--config.data.task=chain_som"], "data.task: reasoning-gym has no task 'chain_som'; near it: chain_sum"),
        (["--config.model.source=no/such/folder"], "no/such/folder"),
    ],
)
def test_the_command_stops_early_and_names_the_key(tmp_path: pathlib.Path, flags: list[str], message: str):
    command = [sys.executable, "-m", "entropy_rl.train", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
    started = time.monotonic()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(f"{time.monotonic() - started:.1f} s")
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
