"""A run's rows as numbers and curves."""

import numpy as np
import pytest

from entropy_rl.sweep.outcomes import MEANING, curve, outcomes


def row(step: int, **values):
    names = {"reward": "reward/mean", "entropy": "entropy/mean", "kept": "tokens/kept_frac", "length": "length/mean"}
    return {"step": step} | {names.get(k, k): v for k, v in values.items()}


def run_of(steps: int):
    rows = [row(0, **{"eval/a/accuracy": 0.2, "eval/b/accuracy": 0.4})]
    for step in range(1, steps + 1):
        rows.append(row(step, reward=step / steps, entropy=1.0 / step, kept=0.5, length=10 + step))
        rows[-1] |= {
            "reward/answer": step / steps / 2,
            "time/rollout_s": 2.0,
            "time/train_s": 1.0,
            "time/eval_s": 100.0,
            "eval/a/accuracy": None,
        }
    rows[-1] |= {"eval/a/accuracy": 0.6, "eval/b/accuracy": 0.8, "eval/a/pass@4": 0.7, "eval/b/pass@4": 0.9}
    return rows


def test_outcomes_are_taken_from_the_ends_that_they_name():
    found = outcomes(run_of(100))
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["accuracy_gain"] == pytest.approx(0.4)
    assert found["reward"] == pytest.approx(np.mean(np.arange(91, 101) / 100))
    assert found["train_accuracy"] == pytest.approx(found["reward"] / 2)
    assert found["entropy"] == pytest.approx(np.mean(1 / np.arange(91, 101)))
    assert found["entropy_kept"] == pytest.approx(np.mean(1 / np.arange(91, 101)) / np.mean([1, 1 / 2]))
    assert found["accuracy/a"] == pytest.approx(0.6) and found["accuracy/b"] == pytest.approx(0.8)
    assert found["pass@4"] == pytest.approx(0.8)
    assert set(MEANING) <= set(found)


def test_seconds_leave_out_evaluations():
    assert outcomes(run_of(10))["step_s"] == pytest.approx(3.0)
    steps, seconds, values = curve(run_of(10), "reward/mean")
    np.testing.assert_allclose(seconds, 3.0 * steps)
    np.testing.assert_allclose(values, steps / 10)


def test_the_curve_of_the_accuracy_is_the_mean_over_sets_where_it_was_measured():
    steps, _, values = curve(run_of(10), "accuracy")
    assert steps.tolist() == [0, 10]
    np.testing.assert_allclose(values, [0.3, 0.7])


def test_what_was_not_measured_is_nan():
    found = outcomes([row(1, reward=0.5, entropy=None)])
    assert found["reward"] == 0.5
    assert np.isnan([found["accuracy"], found["accuracy_gain"], found["entropy"], found["entropy_kept"]]).all()
