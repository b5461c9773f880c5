"""Whole runs whose reward is not the verdict: what they train on, what they report, and that they resume."""

import json

import numpy as np
import pytest
from small_runs import get_config

from entropy_rl import config, loop
from entropy_rl.record import jsonl

pytestmark = pytest.mark.usefixtures("compiled_once")

UNTIMED = ("time", "throughput")


def run(folder, kind, method="grpo", schedule=None, steps=4):
    """The rows of a run of a few steps from an untrained model, times aside."""
    c = get_config("file")
    config.apply_recipe(c, method)
    c.algo.schedule.update(schedule or {})
    c.data.task, c.data.settings.kind = str(folder.parent / "sums.jsonl"), "even_verifier:even"
    c.reward.kind, c.reward.weights.length, c.train.steps = kind, 0.0, steps
    lines = [json.dumps({"question": f"{i} + {i}", "answer": f"{2 * i}"}) for i in range(10, 50)]
    (folder.parent / "sums.jsonl").write_text("\n".join(lines) + "\n")
    loop.run(c, str(folder))
    rows = jsonl.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(UNTIMED)} for row in rows]


@pytest.mark.slow
def test_the_accuracy_is_the_true_one_under_every_reward(tmp_path):
    """Up to the first update all runs are the same, so their first accuracies are."""
    found = {k: run(tmp_path / k, k, steps=1)[1] for k in ("answer", "random", "incorrect", "majority", "none")}
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
    run(tmp_path / "cut", "random", "kl_cov", moves, steps=2)
    assert run(tmp_path / "cut", "random", "kl_cov", moves) == whole
    assert len({row["reward/control"] for row in whole[1:]}) > 1
    assert [row["schedule/kl_cov.coef"] for row in whole[1:]] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.slow
def test_entropy_is_minimised_without_any_reward(tmp_path):
    rows = run(tmp_path / "run", "none", "entropy_minimise", steps=8)[1:]
    entropy = np.array([row["entropy/mean"] for row in rows])
    assert all(row["group/degenerate_frac"] == 1 and row["grad/norm"] > 0 for row in rows)
    assert np.all(np.diff(entropy) < 0), entropy
