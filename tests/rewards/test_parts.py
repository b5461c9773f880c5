"""The parts of the reward: which are graded, those that count tokens, and their weighted sum."""

import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.rewards import Grader, parts


@pytest.fixture
def reward(tmp_path, monkeypatch):
    """The config section with every part of the package and a function of the user's own."""
    (tmp_path / "half_point.py").write_text("def give(response, entry):\n    return 0.5 if response else None\n")
    monkeypatch.syspath_prepend(tmp_path)
    c = config.default()
    c.rollout.max_tokens, c.reward.overlong_cache = 10, 5
    c.reward.weights.update(answer=1.0, format=0.2, length=-0.1, overlong=1.0)
    with c.unlocked():
        c.reward.own.half = {"function": "half_point:give", "weight": 2.0}
    config.check(c)
    return c.reward


def test_a_part_without_weight_does_not_count(reward):
    assert parts.weights(reward) == {"answer": 1.0, "format": 0.2, "length": -0.1, "overlong": 1.0, "half": 2.0}
    reward.weights.format = 0.0
    with reward.unlocked():
        reward.own.half.weight = 0.0
    assert list(parts.weights(reward)) == ["answer", "length", "overlong"]


def test_soft_overlong_punishment():
    # Equation 13 of arXiv 2503.14476 with L_max 20, L_cache 5.
    lengths = np.array([1, 15, 16, 18, 20])
    np.testing.assert_allclose(parts.soft_overlong(lengths, 20, 5), [0, 0, -0.2, -0.6, -1.0], atol=1e-7)


@pytest.mark.parametrize("local", [False, True])
def test_parts_are_weighted_summed_and_masked_together(reward, local):
    texts, length = ["\\boxed{7}", "7", "8", ""], np.array([2, 7, 10, 5])
    with Grader() as grader:
        graded = parts.verdicts(reward, grader, [("exact", text, "7") for text in texts], local=local)
    assert list(graded) == ["answer", "format", "half"]
    assert graded["answer"].tolist() == [1, 1, 0, 0] and graded["format"].tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(graded["half"], [0.5, 0.5, 0.5, np.nan])
    found = parts.with_lengths(reward, graded, length, 10)
    assert list(found) == ["answer", "format", "length", "overlong", "half"]
    np.testing.assert_allclose(found["length"], [0.2, 0.7, 1.0, 0.5])
    np.testing.assert_allclose(found["overlong"], [0, -0.4, -1, 0], atol=1e-7)
    total, valid = parts.total(reward, found)
    assert valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(total, [1 + 0.2 - 0.02 + 1, 1 - 0.07 - 0.4 + 1, -0.1 - 1 + 1, 0], atol=1e-6)


@pytest.mark.parametrize("value", [1e16, -1e30, 1e39, 1e200])
def test_a_reward_that_training_cannot_use_is_named(reward, tmp_path, value):
    """1e39 is infinite in float32: it must not pass for a response that could not be scored."""
    (tmp_path / "huge.py").write_text(f"def give(response, entry):\n    return {value} if response == '8' else 1e15\n")
    with reward.unlocked():
        reward.own.half.function = "huge:give"
    with (
        Grader() as grader,
        pytest.raises(ValueError, match=r"reward part 'half': -?1e\+\d+ for response 1 of 2; a reward"),
    ):
        parts.verdicts(reward, grader, [("exact", text, "7") for text in ("7", "8")])


@pytest.mark.parametrize("weight", [1e3, 1e38])
def test_a_weighted_sum_that_training_cannot_use_is_named(reward, weight):
    reward.weights.update(answer=weight, format=0.0, length=0.0, overlong=0.0)
    found = {"answer": np.array([0.0, np.nan, 1e14], np.float32)}
    with pytest.raises(ValueError, match=r"reward\.weights: the weighted sum: \S+ for response 2 of 3"):
        parts.total(reward, found)


def test_a_control_has_the_weight_of_the_verdict_which_is_still_measured(reward):
    reward.kind = "none"
    assert parts.weights(reward) == {"format": 0.2, "length": -0.1, "overlong": 1.0, "half": 2.0, "control": 1.0}
    reward.weights.update(format=0.0, length=0.0, overlong=0.0)
    with reward.unlocked():
        reward.own.half.weight = 0.0
    with Grader() as grader:
        graded = parts.verdicts(reward, grader, [("exact", text, "7") for text in ("7", "8")], local=True)
    assert graded.keys() == {"answer"} and graded["answer"].tolist() == [1, 0]
    graded["answer"][1] = np.nan  # what was not scored can still be rewarded
    found = parts.with_lengths(reward, graded | {"control": np.array([0.25, 0.5], np.float32)}, np.array([1, 1]), 10)
    assert list(found) == ["control", "answer"]
    total, valid = parts.total(reward, found)
    assert total.tolist() == [0.25, 0.5] and valid.all()
