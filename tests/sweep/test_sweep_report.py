"""The table, the page and the curves of a sweep, from records written here."""

import csv
import json
import math

import numpy as np
import pytest

from entropy_rl.sweep import report, runner
from entropy_rl.sweep.plan import plan

STEPS = 4


def record(folder, gain: float, seed: int, steps: int = STEPS):
    folder.mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    rng = np.random.default_rng(seed)
    rows = [{"step": 0, "eval/a/accuracy": 0.1 + 0.01 * seed}]
    for step in range(1, steps + 1):
        rows.append({"step": step, "reward/mean": gain + 0.01 * seed + 0.1 * step, "entropy/mean": 1 / step})
        rows[-1] |= {"time/train_s": float(rng.uniform(1, 2)), "tokens/kept_frac": 1.0, "length/mean": 9.0}
    rows[-1]["eval/a/accuracy"] = 0.5 + gain + 0.01 * seed
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"commit": "abc", "jax": "0.1", "command": "x"}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")


@pytest.fixture
def swept(tmp_path):
    made = plan("configs/quickstart.py", ["grpo", "kl_cov"], [0, 1, 2], [("train.steps", str(STEPS))])
    for job in made.jobs[:-1]:
        record(tmp_path / job.folder, 0.2 if job.arm == "kl_cov" else 0.0, job.seed)
    return tmp_path, made


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_pairs_seeds_that_both_arms_have(swept):
    out, made = swept
    report.write(out, made, {}, "the command")
    table = {(row["outcome"], row["arm"]): row for row in rows_of(out / "table.csv")}
    gain = table["accuracy", "kl_cov"]
    assert (gain["seeds"], gain["pairs"], gain["base"]) == ("2", "2", "grpo")
    assert float(gain["difference"]) == pytest.approx(0.2) and float(gain["better"]) == 1.0
    assert float(table["accuracy", "grpo"]["mean"]) == pytest.approx(0.51)
    assert "difference" not in {k for k, v in table["accuracy", "grpo"].items() if v}


def test_every_run_has_its_command_its_commit_and_its_state(swept):
    out, made = swept
    failed = {made.jobs[-1].folder: "no room left"}
    text = report.write(out, made, failed, "the command")
    rows = rows_of(out / "runs.csv")
    assert [row["state"] for row in rows] == ["done"] * 5 + ["failed"]
    assert "--config=configs/quickstart.py:kl_cov" in rows[3]["command"] and "--config.seed=0" in rows[3]["command"]
    assert {row["commit"] for row in rows[:5]} == {"abc"}
    assert "5 of 6 runs, 1 failed" in text and "no room left" in text
    page = (out / "index.html").read_text()
    assert "no room left" in page and "the command" in page


def test_the_page_escapes_what_it_shows(swept):
    out, made = swept
    report.write(out, made, {made.jobs[-1].folder: "<script>alert(1)</script>"}, "a<b>")
    page = (out / "index.html").read_text()
    assert "<script>" not in page and "a&lt;b&gt;" in page


def test_the_curves_hold_every_point_by_step_and_by_seconds(swept):
    out, made = swept
    report.write(out, made, {}, "the command")
    rows = [row for row in rows_of(out / "curves.csv") if row["metric"] == "reward/mean"]
    assert len(rows) == 5 * STEPS
    seconds = [float(row["seconds"]) for row in rows[:STEPS]]
    assert seconds == sorted(seconds) and seconds[0] >= 1
    assert (out / "curves.svg").stat().st_size > 1000 and (out / "curves.png").stat().st_size > 1000


def test_the_band_is_students_interval_of_the_mean():
    x = np.array([0.0, 1.0])
    mean, low, high = report.band([(x, np.array([0.0, 1.0])), (x, np.array([2.0, 1.0]))], x)
    np.testing.assert_allclose(mean, [1.0, 1.0])
    np.testing.assert_allclose(high - mean, [12.7062 * math.sqrt(2) / math.sqrt(2), 0.0], rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(mean - low, high - mean)


def test_a_report_of_no_finished_run_says_so(tmp_path):
    made = plan("configs/quickstart.py", ["grpo"], [0], [])
    assert report.write(tmp_path, made, {}, "x").startswith("0 of 1 runs")


def test_a_run_is_done_when_its_record_has_the_last_step(tmp_path):
    (job,) = plan("configs/quickstart.py", ["grpo"], [0], [("train.steps", str(STEPS))]).jobs
    assert not runner.is_done(tmp_path, job)
    record(tmp_path / job.folder, 0.0, 0, steps=STEPS - 1)
    assert not runner.is_done(tmp_path, job) and runner.last_step(tmp_path / job.folder) == STEPS - 1
    line = {"step": STEPS}
    with (tmp_path / job.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert runner.is_done(tmp_path, job)


def test_shares_of_the_machine_do_not_overlap(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    shares = runner.places(2)
    assert [share.gpus for share in shares] == ["0,1", "2,3"]
    assert [sorted(share.cores) for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match="--jobs=5: this machine has 4 GPUs"):
        runner.places(5)
