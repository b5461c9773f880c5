"""The first recorded responses under later policies: the pure functions by hand, and a real run's own numbers."""

import csv
import shutil

import numpy as np
import pandas as pd
import pytest

from entropy_rl import analyze
from entropy_rl.report import rescore, tokens


def test_the_overlap_by_hand():
    base = np.array([9.0, 8.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert rescore.overlap(base, base) == 1
    assert rescore.overlap(base, base[::-1].copy()) == 0
    assert rescore.overlap(base, np.roll(base, 1)) == 0.5
    assert rescore.overlap(np.zeros(7), np.zeros(7)) == 1  # ties: the earlier positions, in both
    assert np.isnan(rescore.overlap(np.zeros(0), np.zeros(0)))
    rng = np.random.default_rng(0)
    assert rescore.overlap(*rng.normal(size=(2, 100_000))) == pytest.approx(rescore.TOP, abs=0.01)


def test_the_change_by_percentile_by_hand():
    base, later = np.arange(100.0)[::-1], np.arange(100.0)[::-1] * 1.5
    rows = rescore.by_percentile(base, later)
    assert [row["tokens"] for row in rows] == [5] * 20 and rows[0]["from, %"] == 0 and rows[-1]["to, %"] == 100
    assert [row["mean before, nats"] for row in rows] == [2 + 5 * i for i in range(20)]
    assert [row["mean change, nats"] for row in rows] == [1 + 2.5 * i for i in range(20)]
    assert len(rescore.by_percentile(base[:3], later[:3])) == 3  # fewer tokens than groups


def test_a_run_without_recorded_rollouts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--rescore: .* has no recorded rollouts; set log.rollouts"):
        rescore.rescore(str(tmp_path))


def test_a_run_without_checkpoints_is_refused(made_up_run):
    with pytest.raises(ValueError, match=r"checkpoints of steps \[\], and nothing later .*checkpoint.keep_every"):
        rescore.rescore(str(made_up_run))


@pytest.mark.slow
def test_the_policy_that_sampled_gives_the_entropy_that_was_recorded(real_run):
    """The first update of step 3 starts from the policy of checkpoint 2; later checkpoints are other policies."""
    step = tokens.read(str(real_run), 3)
    first = step.per_token("update") == 0
    own, later = (rescore.score(str(real_run), number, step) for number in (2, 6))
    np.testing.assert_allclose(own[first], step.values["entropy"][first], atol=1e-4)
    assert first.any() and np.abs(later[first] - own[first]).mean() > 1e-3


@pytest.mark.slow
def test_the_page_of_a_rescored_run(real_run):
    analyze.report(str(real_run), rescore=True)
    table = (real_run / "report" / "tables" / "entropy_overlap.csv").read_text().splitlines()
    assert [line.split(",")[1:3] for line in table[1:]] == [["step 0", "2"], ["step 0", "4"], ["step 0", "6"]]
    assert "id='entropy_by_percentile'" in (real_run / "report" / "index.html").read_text()


@pytest.mark.slow
def test_without_an_earlier_checkpoint_the_start_is_the_recorded_entropy(real_run, tmp_path):
    """The numbers of the two tables, from the Parquet file, the later policies' scores and plain sums."""
    run = tmp_path / "run"
    shutil.copytree(real_run, run)
    for gone in (0, 2):
        shutil.rmtree(run / "checkpoints" / str(gone))
    analyze.report(str(run), rescore=True)
    recorded = pd.read_parquet(run / "rollouts" / "step-00000003.parquet")
    base = np.concatenate(recorded.entropy.to_list()).astype(np.float64)
    later = {n: rescore.score(str(run), n, tokens.read(str(run), 3)).astype(np.float64) for n in (4, 6)}
    n, places = -(-len(base) // 5), np.arange(len(base))
    highest = [set(sorted(places, key=lambda i: (-x[i], i))[:n]) for x in (base, later[4], later[6])]
    with (run / "report/tables/entropy_overlap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["start"], row["step"]) for row in rows] == [
        ("as recorded in step 3", "4"),
        ("as recorded in step 3", "6"),
    ]
    for row, other in zip(rows, highest[1:], strict=True):
        assert float(row["overlap"]) == len(highest[0] & other) / n
        assert float(row["mean entropy at the start"]) == pytest.approx(base.mean(), rel=1e-6)
        assert float(row["mean entropy"]) == pytest.approx(later[int(row["step"])].mean(), rel=1e-6)
    with (run / "report/tables/entropy_by_percentile.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "6"]
    order, done = np.argsort(base, kind="stable"), 0
    for row in rows:
        part = order[done : done + int(row["tokens"])]
        done += len(part)
        assert float(row["mean before, nats"]) == pytest.approx(base[part].mean(), rel=1e-6)
        assert float(row["mean change, nats"]) == pytest.approx((later[6] - base)[part].mean(), abs=1e-7)
    assert done == len(base) and len(rows) == 20
