"""Whole runs whose reward is not the verdict: what they train on, what they report, and that they resume."""

import numpy as np
import pytest
from small_runs import get_config

from entropy_rl import loop
from entropy_rl.record import jsonl

UNTIMED = ("time", "throughput")


def run(folder, kind, method="grpo", schedule=None, **changes):
    """The rows of a run of a few steps without evaluations, times aside."""
    c = get_config(method)
    c.algo.schedule.update(schedule or {})
    c.reward.kind, c.reward.weights.length, c.train.steps, c.eval.every = kind, 0.0, 4, 0
    c.update_from_flattened_dict(changes)
    loop.run(c, str(folder))
    rows = jsonl.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(UNTIMED)} for row in rows]


@pytest.mark.slow
def test_the_accuracy_is_the_true_one_under_every_reward(tmp_path):
    """Up to the first update all runs are the same, so their first accuracies are."""
    found = {k: run(tmp_path / k, k)[1] for k in ("answer", "random", "incorrect", "majority", "none")}
    true = found["answer"]["reward/answer"]
    assert 0 < true < 1 and "reward/control" not in found["answer"]
    for kind, row in found.items():
        assert row["reward/answer"] == true and row["answers/distinct"] == found["answer"]["answers/distinct"] > 1
        if kind != "answer":
            assert row["reward/mean"] == pytest.approx(row["reward/control"])
    assert 0.2 < found["random"]["reward/control"] < 0.8
    assert 0 < found["incorrect"]["reward/control"] <= 1 - true
    assert found["none"]["reward/control"] == 0 and found["none"]["group/degenerate_frac"] == 1
    assert found["none"]["grad/norm"] == 0 < found["random"]["grad/norm"]


@pytest.mark.slow
def test_random_rewards_and_schedules_resume_bit_for_bit(tmp_path):
    moves = {"kl_cov": {"coef": {"to": 0.0, "steps": 4}}}
    whole = run(tmp_path / "whole", "random", "kl_cov", moves)
    run(tmp_path / "cut", "random", "kl_cov", moves, **{"train.steps": 2})
    assert run(tmp_path / "cut", "random", "kl_cov", moves) == whole
    assert len({row["reward/control"] for row in whole[1:]}) > 1
    assert [row["schedule/kl_cov.coef"] for row in whole[1:]] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.slow
def test_entropy_is_minimised_without_any_reward(tmp_path):
    rows = run(tmp_path, "none", "entropy_minimise", **{"train.steps": 8})[1:]
    entropy = np.array([row["entropy/mean"] for row in rows])
    assert all(row["group/degenerate_frac"] == 1 and row["grad/norm"] > 0 for row in rows)
    assert entropy[-1] < 0.7 * entropy[0], entropy
