"""Recorded rollouts: what a reader of the Parquet files finds, the budget, and a disk that is nearly full."""

import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from test_jsonl import bucket  # noqa: F401

from entropy_rl.record import rollouts
from entropy_rl.record.rollouts import RolloutLog

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
TEXTS = ["<script>\u2028\x00", "b", ""]


def columns(n=3):
    given = {"update": [0, 0, 1], "prompt": [7, 7, 9], "sample": [0, 1, 0], "question": ["q"] * 3, "text": TEXTS}
    given |= {"answer": ["4", None, None], "reward": [1.0, None, 0.0], "advantage": [0.5, 0.0, -0.5]}
    return given | {"length": [3, 1, 0], "finished": [True, False, True], "reward/answer": [1.0, np.nan, 0.0]}


def lists():
    logp = np.arange(12, dtype=np.float32).reshape(3, 4) / -7
    fate = np.array(["kept", "clip", "kl_cov", "x"] * 3).reshape(3, 4)
    return {"id": np.arange(12).reshape(3, 4), "logp": logp, "entropy": -2 * logp, "fate": fate}


def test_a_reader_finds_every_response_with_its_tokens(tmp_path):
    log = RolloutLog(tmp_path, 1.0)
    log.write(40, columns(), lists(), MASK)
    found = pd.read_parquet(tmp_path / "rollouts")
    assert list(found.columns) == [*rollouts.COLUMNS, "reward/answer", *rollouts.TOKEN_COLUMNS]
    assert found.step.tolist() == [40] * 3 and found.text.tolist() == TEXTS and found["prompt"].tolist() == [7, 7, 9]
    assert found.answer.tolist()[0] == "4" and found.answer.isna().tolist() == [False, True, True]
    assert found.reward.isna().tolist() == found["reward/answer"].isna().tolist() == [False, True, False]
    assert [list(x) for x in found.id] == [[0, 1, 2], [4], []]
    assert [list(x) for x in found.fate] == [["kept", "clip", "kl_cov"], ["kept"], []]
    want = lists()["logp"]
    np.testing.assert_array_equal(np.concatenate(found.logp.to_list()), want[MASK > 0])  # to the last bit
    assert found.covariance.isna().all()  # not given
    assert found.logp.iloc[0].dtype == np.float32 and found.step.dtype == np.int32


def test_what_was_not_scored_is_null_in_an_array_too(tmp_path):
    given = columns() | {"reward": np.array([1, np.nan, 0], np.float32), "update": np.array([0, 300, 70_000])}
    RolloutLog(tmp_path, 1.0).write(1, given, lists(), MASK)
    table = pyarrow.parquet.read_table(tmp_path / "rollouts")
    assert table["reward"].to_pylist() == [1.0, None, 0.0] and table["update"].to_pylist() == [0, 300, 70_000]


@pytest.mark.parametrize("name, value", [("text", "a\ud800"), ("sample", 40_000)])
def test_what_a_column_cannot_hold_ends_no_run(tmp_path, caplog, name, value):
    given = columns() | {name: [value, *columns()[name][1:]]}
    RolloutLog(tmp_path, 1.0).write(1, given, lists(), MASK)
    assert "log.rollouts: step 1 could not be recorded: " in caplog.text
    RolloutLog(tmp_path, 1.0).write(2, columns(), lists(), MASK)
    assert RolloutLog(tmp_path, 1.0).steps() == [2]


def test_what_a_kill_leaves_in_the_folder_is_not_read(tmp_path, monkeypatch):
    log, synced = RolloutLog(tmp_path, 1.0), os.fsync
    log.write(1, columns(), lists(), MASK)

    def half(handle):
        synced(handle)
        (left,) = set((tmp_path / "rollouts").iterdir()) - {tmp_path / "rollouts/step-00000001.parquet"}
        left.write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", half)
    with pytest.raises(KeyboardInterrupt):
        log.write(2, columns(), lists(), MASK)
    assert len(list((tmp_path / "rollouts").iterdir())) == 2
    assert pd.read_parquet(tmp_path / "rollouts").step.unique().tolist() == log.steps() == [1]


def test_a_run_that_resumes_drops_what_it_will_write_again(tmp_path):
    log = RolloutLog(tmp_path, 1.0)
    for step in (10, 20, 30):
        log.write(step, columns(), lists(), MASK)
    log.resume(20)
    assert log.steps() == [10, 20]
    log.resume(5)
    log.resume(5)
    assert log.steps() == []


def test_beyond_the_budget_the_oldest_are_thinned(tmp_path):
    size = len(rollouts.encode({"step": [1] * 3, **columns()}, lists(), MASK > 0))
    log = RolloutLog(tmp_path, 5.5 * size / 1e9)
    for step in range(1, 33):
        log.write(step, columns(), lists(), MASK)
        kept = log.steps()
        assert kept[0] == 1 and kept[-1] == step and len(kept) <= 5
    gaps = np.diff(kept)
    assert gaps.max() <= 16  # spread over the run, and not the newest alone
    assert RolloutLog(tmp_path, 0.1 * size / 1e9).steps() == kept
    tiny = RolloutLog(tmp_path, 0.0)
    tiny.write(33, columns(), lists(), MASK)
    assert tiny.steps() == [1, 33]


def test_a_disk_that_is_nearly_full_is_left_alone_and_said_once(tmp_path, monkeypatch, caplog):
    log, usage = RolloutLog(tmp_path, 1.0), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=rollouts.FREE_BYTES))
    for step in (1, 2):
        log.write(step, columns(), lists(), MASK)
    assert log.steps() == [] and caplog.text.count("is not recorded: 2.0 GB are free on the disk") == 1
    monkeypatch.undo()
    log.write(3, columns(), lists(), MASK)
    assert log.steps() == [3]


@pytest.mark.parametrize("name", ["step-x.parquet", "step-00000004.parquet.new", "notes.txt"])
def test_other_files_are_no_steps_and_are_left(tmp_path, name):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / name).write_text("mine")
    log = RolloutLog(tmp_path, 0.0)
    log.write(1, columns(), lists(), MASK)
    log.resume(0)
    assert log.steps() == [] and (tmp_path / "rollouts" / name).read_text() == "mine"


def test_in_a_bucket(bucket, tmp_path):  # noqa: F811
    log = RolloutLog("gs://bucket/runs/a", 1.0)
    for step in (10, 20, 30):
        log.write(step, columns(), lists(), MASK)
    log.resume(20)
    assert log.steps() == [10, 20] and bucket.puts == [f"step-000000{step}.parquet" for step in (10, 20, 30)]
    assert len(pd.read_parquet(tmp_path / "bucket/runs/a/rollouts")) == 6
