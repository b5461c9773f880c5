"""The record of a run: exact rows, nulls, torn lines, resume, and the check of the configuration."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.record import jsonl
from entropy_rl.record.metrics import (
    RunLog,
    check_config,
    config_hash,
    refuse_lost_checkpoints,
)
from entropy_rl.record.word_table import EVAL_PATTERN
from entropy_rl.record.words import METRIC_KEYS

CONFIG = {
    "seed": 0,
    "data": {"path": "a.jsonl", "sha256": "11"},
    "train": {"steps": 60, "batch": 32},
    "checkpoint": {"every": 10, "keep": 2},
    "eval": {"every": 5, "tasks": ["chain_sum"]},
    "log": {"every": 1},
}


def written(workdir: Path, steps: range) -> Path:
    log = RunLog(workdir, resume_step=None)
    for step in steps:
        log.write({"step": step, "reward/mean": step / 7})
        log.sample([{"step": step, "text": "é\n\ud800"}, {"step": step, "text": "b"}])
    return workdir / "metrics.jsonl"


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in jsonl.read(path)]


def test_a_row_has_all_fixed_keys_in_their_order(tmp_path):
    row = {"step": 0, "extra/b": 1, "eval/sums/accuracy": 0.5, "reward/mean": 1.0, "eval/gsm/accuracy": None}
    returned = RunLog(tmp_path, None).write(row)
    (read,) = jsonl.read(tmp_path / "metrics.jsonl")
    evals = ["eval/sums/accuracy", "eval/gsm/accuracy"]
    at = METRIC_KEYS.index(EVAL_PATTERN)
    assert list(read) == [*METRIC_KEYS[:at], *evals, *METRIC_KEYS[at + 1 :], "extra/b"]
    assert read == returned
    assert {k for k, v in read.items() if v is not None} == {
        "step",
        "time",
        "reward/mean",
        "eval/sums/accuracy",
        "extra/b",
    }
    assert abs(read["time"] - time.time()) < 3600


def test_floats_keep_every_bit(tmp_path):
    f32 = np.float32(0.1)
    values = {
        "reward/mean": jnp.float32(0.1),
        "reward/std": 0.1,
        "entropy/mean": np.float64(1 / 3),
        "kl/old": jnp.bfloat16(1.5),
        "grad/skipped": jnp.int32(3),
        "law/a": jnp.array(True),
        "law/b": 5e-324,
    }
    RunLog(tmp_path, None).write({"step": 1} | values)
    (row,) = jsonl.read(tmp_path / "metrics.jsonl")
    assert np.float32(row["reward/mean"]).tobytes() == f32.tobytes()
    assert (row["reward/std"], row["entropy/mean"], row["kl/old"], row["law/b"]) == (0.1, 1 / 3, 1.5, 5e-324)
    assert type(row["grad/skipped"]) is int
    assert row["law/a"] is True


def test_values_that_are_not_finite_are_null_and_the_file_is_strict_json(tmp_path):
    log = RunLog(tmp_path, None)
    log.write({"step": 1, "reward/mean": jnp.nan, "kl/old": jnp.float32(jnp.inf), "law/a": -math.inf})
    log.sample([{"step": 1, "logp": jnp.array([-1.5, -jnp.inf]), "more": {"x": (float("nan"), "s", None)}}])
    for name in ("metrics.jsonl", "samples.jsonl"):
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=pytest.fail)
    (row,) = jsonl.read(tmp_path / "metrics.jsonl")
    assert (row["reward/mean"], row["kl/old"], row["law/a"]) == (None, None, None)
    (sample,) = jsonl.read(tmp_path / "samples.jsonl")
    assert sample == {"step": 1, "logp": [-1.5, None], "more": {"x": [None, "s", None]}}


@pytest.mark.parametrize("value, got", [(jnp.ones(2), "list"), ("0.5", "str"), ({"a": 1}, "dict")])
def test_a_metric_is_one_number(tmp_path, value, got):
    with pytest.raises(ValueError, match=f"metric 'reward/mean': got {got}, expected one number"):
        RunLog(tmp_path, None).write({"step": 1, "reward/mean": value})


@pytest.mark.parametrize("row", [{}, {"step": 2}, {"step": 1}, {"step": 3.0}, {"step": True}])
def test_steps_are_ascending_ints(tmp_path, row):
    log = RunLog(tmp_path, None)
    log.write({"step": jnp.int32(2)})
    with pytest.raises(ValueError, match="expected an int above 2"):
        log.write(row)
    assert steps_in(tmp_path / "metrics.jsonl") == [2]


def test_a_sample_needs_its_step(tmp_path):
    with pytest.raises(ValueError, match=r"samples.jsonl: every sample needs its step"):
        RunLog(tmp_path, None).sample([{"text": "a"}])


def test_resuming_drops_the_rows_of_later_steps_and_keeps_the_others_byte_for_byte(tmp_path, caplog):
    path = written(tmp_path, range(1, 8))
    before = path.read_bytes().splitlines(keepends=True)
    log = RunLog(tmp_path, resume_step=4)
    assert path.read_bytes() == b"".join(before[:4])
    assert steps_in(tmp_path / "samples.jsonl") == [1, 1, 2, 2, 3, 3, 4, 4]
    assert "metrics.jsonl: 3 rows past step 4 dropped" in caplog.text
    with pytest.raises(ValueError, match="step is 4, expected an int above 4"):
        log.write({"step": 4})
    log.write({"step": 5})
    assert steps_in(path) == [1, 2, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_a_run_that_starts_from_nothing_sets_the_old_record_aside(tmp_path, caplog):
    before = written(tmp_path, range(1, 4)).read_bytes()
    (tmp_path / "config.json").write_text("{}")
    RunLog(tmp_path, None).write({"step": 1})
    assert steps_in(tmp_path / "metrics.jsonl") == [1]
    assert (tmp_path / "before-1" / "metrics.jsonl").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "before-1").iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
    ]
    assert f"the record that was there is now in {tmp_path / 'before-1'}" in caplog.text
    RunLog(tmp_path, None)
    assert steps_in(tmp_path / "before-2" / "metrics.jsonl") == [1]
    RunLog(tmp_path, None)
    assert not (tmp_path / "before-3").exists()  # there was nothing to keep


CONFIGS = {  # the first checkpoint is committed before row 0, and after the row of step 10
    "warm": {"warmup": {"updates": 5}, "checkpoint": {"every": 10}},
    "cold": {"warmup": {"updates": 0}, "checkpoint": {"every": 10}},
}


@pytest.mark.parametrize("name, last, refused", [("warm", 0, True), ("cold", 10, False), ("cold", 11, True)])
def test_rows_that_must_have_had_a_checkpoint_are_not_started_over(tmp_path, name, last, refused):
    path = written(tmp_path, range(0, last + 1))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    if refused:
        with pytest.raises(ValueError, match=rf"has rows up to step {last}, but .*checkpoints holds no checkpoint"):
            refuse_lost_checkpoints(tmp_path)
        refuse_lost_checkpoints(tmp_path, force=True)
    else:
        refuse_lost_checkpoints(tmp_path)
    assert steps_in(path) == [*range(0, last + 1)]


def test_metrics_removed_under_a_run_are_written_again(tmp_path, caplog):
    path = written(tmp_path, range(1, 4))
    log = RunLog(tmp_path, resume_step=2)
    log.write({"step": 3})
    path.unlink()
    log.write({"step": 4})
    assert steps_in(path) == [1, 2, 3, 4]
    assert "metrics.jsonl was removed under the run: its 3 rows are written again" in caplog.text


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"reward/mean": 1}', "step is None, expected an int from 0 on"),
        ('{"step": null}', "step is None"),
        ('{"step": "3"}', "step is '3'"),
        ('{"step": -1}', "step is -1"),
        ('{"step": true}', "step is True"),
        ("[1]", "a JSON list, expected an object"),
        ("null", "a JSON NoneType, expected an object"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_nothing_is_changed(tmp_path, line, message):
    path = written(tmp_path, range(1, 4))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + line + "\n" + "".join(lines[1:]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"metrics.jsonl, line 2: {re.escape(message)}"):
        RunLog(tmp_path, resume_step=1)
    assert path.read_bytes() == before


FULL_DISK = """
import resource, sys
from entropy_rl.record.metrics import RunLog
log = RunLog(sys.argv[1], None)
log.config({"seed": 0})
log.write({"step": 1})
log.sample([{"step": 1, "text": "a"}])
resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
for work in (lambda: log.config({"seed": "1" * 2000}), lambda: log.sample([{"step": 2, "text": "b" * 2000}]),
             lambda: log.write({"step": 2, "reward/mean": 0.5})):
    try:
        work()
        print("written")
    except OSError as error:
        print(error.strerror)
"""


def test_a_full_disk_destroys_nothing_that_was_there(tmp_path):
    root = str(Path(__file__).parents[2])
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=True)
    assert done.stdout.splitlines() == ["File too large"] * 3
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 0}
    assert steps_in(tmp_path / "metrics.jsonl") == [1] and (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1, "text": "a"}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", "samples.jsonl"]


def test_a_broken_line_in_the_middle_is_an_error_not_a_gap(tmp_path):
    path = written(tmp_path, range(1, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20] + b"\n" + lines[2])
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not JSON"):
        jsonl.read(path)


def test_another_config_is_refused_with_a_diff(tmp_path):
    RunLog(tmp_path, None).config(CONFIG)
    now = json.loads(json.dumps(CONFIG))
    now["seed"] = 1
    now["data"]["sha256"] = "22"
    now["train"]["batch"] = 64
    now["train"]["group"] = 8
    del now["eval"]["tasks"]
    expected = [
        "data.sha256: '11' in the run, '22' now",
        "eval.tasks: ['chain_sum'] in the run, '(absent)' now",
        "seed: 0 in the run, 1 now",
        "train.batch: 32 in the run, 64 now",
        "train.group: '(absent)' in the run, 8 now",
    ]
    with pytest.raises(ValueError, match="started with another configuration") as caught:
        check_config(tmp_path, now)
    for line in expected:
        assert line in str(caught.value)
    assert check_config(tmp_path, now, force=True) == expected
    assert config_hash(now) != config_hash(CONFIG)


def test_free_keys_may_change(tmp_path):
    RunLog(tmp_path, None).config(CONFIG)
    now = CONFIG | {
        "train": {"batch": 32, "steps": 100},
        "checkpoint": {"every": 1, "keep": 5},
        "eval": {"every": 1, "tasks": ("chain_sum",)},
        "log": {"every": 7},
    }
    assert check_config(tmp_path, now) == []
    assert config_hash(now) == config_hash(CONFIG)
    with pytest.raises(ValueError, match=r"train.steps: 60 in the run, 100 now"):
        check_config(tmp_path, now, free=("checkpoint.*", "eval.*", "log.*"))


def test_no_config_is_a_new_run_and_a_broken_one_an_error(tmp_path):
    assert check_config(tmp_path, CONFIG) == []
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        check_config(tmp_path, CONFIG)


def test_a_field_that_an_older_run_lacks_has_its_default_there(tmp_path):
    before = config.default().to_dict()
    del before["optim"]["max_skipped"]
    RunLog(tmp_path, None).config(before)
    now = config.default()
    assert check_config(tmp_path, now.to_dict()) == []
    now.optim.max_skipped = 9
    with pytest.raises(ValueError, match=r"optim.max_skipped: 3 in the run, 9 now"):
        check_config(tmp_path, now.to_dict())


def test_a_run_whose_rate_falls_over_its_steps_keeps_their_number(tmp_path):
    now = config.default()
    RunLog(tmp_path, None).config(now.to_dict())
    now.train.steps += 1
    assert check_config(tmp_path, now.to_dict()) == []
    now.train.steps -= 1
    now.optim.schedule = "linear"
    RunLog(tmp_path, None).config(now.to_dict())
    assert check_config(tmp_path, now.to_dict()) == []
    now.train.steps += 1
    with pytest.raises(
        ValueError, match=r"train.steps: 100 in the run, 101 now \(optim.schedule='linear' falls over its"
    ):
        check_config(tmp_path, now.to_dict())
