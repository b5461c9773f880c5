"""Rewards that are none: what takes the verdict's place, by hand and by counting."""

import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.rewards import votes
from entropy_rl.rewards.controls import CONTROLS, Graded, control

TEXTS = ["so \\boxed{7}", "7", "<answer>8</answer>", "a long\nstory", "\\boxed{8}", "9", "\\boxed{}", "9 \\boxed{8}"]
ANSWERS = ["7", "7", "8", None, "8", "9", "", "8"]


def graded(seed=0, step=1, uid=(11, 12), texts=TEXTS, answers=ANSWERS) -> Graded:
    B = len(texts)
    verdict = np.array([1, 1, 0, 0, 0, 1, 0, np.nan] * (B // 8), np.float32)
    return Graded(texts, answers, verdict, np.arange(B) / 4, np.array(uid, np.uint32), seed, step)


def values(kind, some=None, **options):
    c = config.default()
    c.reward.update(kind=kind, **options)
    return control(c.reward, graded() if some is None else some)


def test_by_hand():
    assert values("format").tolist() == [1, 0, 0, 0, 1, 0, 0, 1]
    # a wrong answer pays, no answer does not, and what was not scored is not known to be wrong
    np.testing.assert_array_equal(values("incorrect"), [0, 0, 1, 0, 1, 0, 0, np.nan])
    assert values("majority").tolist() == [1, 1, 0, 0, 1, 0, 0, 1]  # in each group of four
    assert values("confidence").tolist() == [-b / 4 for b in range(8)]
    assert values("none").tolist() == [0] * 8
    assert all(values(kind).dtype == np.float32 for kind in CONTROLS)


def test_a_tie_goes_to_the_answer_that_was_given_first():
    some = graded(uid=(11, 12), answers=["8", "7", "7", "8", None, "", "", None])
    assert values("majority", some).tolist() == [1, 0, 0, 1, 0, 0, 0, 0]  # without an answer there is no majority
    assert votes.majority(["7", "8", "8", "7"]) == "7"


def many(seed=0, step=1, prompts=400):
    return graded(seed, step, tuple(range(prompts)), [""] * 8 * prompts, [None] * 8 * prompts)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_random_rewards_have_their_probability_and_no_pattern(p):
    drawn = values("random", many(), random_p=p).reshape(400, 8)
    assert abs(drawn.mean() - p) <= 5 * np.sqrt(p * (1 - p) / drawn.size)
    if 0 < p < 1:
        between = np.corrcoef(drawn.T) - np.eye(8)  # samples of one prompt
        assert np.abs(between).max() < 5 / np.sqrt(400)
        assert len({tuple(group) for group in drawn}) > 100


def test_random_rewards_depend_on_seed_step_prompt_and_sample_alone():
    first = values("random", many())
    assert np.array_equal(first, values("random", many()))
    assert np.array_equal(first[:80], values("random", many(prompts=10)))  # not on the rest of the batch
    for other in (many(seed=1), many(step=2)):
        assert 0.4 < np.mean(first != values("random", other)) < 0.6
