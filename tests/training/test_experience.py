"""Dynamic sampling, on arrays."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from experiences import MIXED, RIGHT, UNSCORED, WRONG, G, T, graded, with_length_penalty
from tiny_models import tiny_tokenizer

from entropy_rl import config
from entropy_rl.data import Problem
from entropy_rl.rewards import Grader
from entropy_rl.sampling.base import Rollout
from entropy_rl.training.experience import Grading, degenerate, distinct_uids, refill


def whole(experience):
    """The uids, after a check that every array of every group belongs to the group's problem."""
    prompts, rollout = experience.prompts, experience.rollout
    for i, p in enumerate(experience.problems):
        rows = slice(i * G, i * G + G)
        assert prompts.uid_N[i] == p.uid and (prompts.tokens_NxP[i] == p.uid).all()
        assert [t.split()[0] for t in experience.texts[rows]] == [str(p.uid)] * G
        assert (rollout.entropy[rows, 0] == p.uid * 20).all() and (rollout.tokens[rows, 0] == p.uid * 10).all()
    return [p.uid for p in experience.problems]


def test_degenerate_groups():
    groups = graded([RIGHT, WRONG, MIXED, UNSCORED, [1.0, 1.0, None, 1.0]])
    assert degenerate(groups).tolist() == [True, True, False, True, True]
    # A spread of length alone is no reason to keep a group that is all right.
    shaped = with_length_penalty(graded([RIGHT]))
    assert degenerate(shaped).tolist() == [True]
    assert degenerate(shaped._replace(parts={"own": shaped.parts["answer"]})).tolist() == [False]
    # A control in the verdict's place decides: what is trained on, not what is right.
    control = np.array([1.0, 0.0, 1.0, 1.0, *[0.0] * G], np.float32)
    assert degenerate(groups._replace(parts=groups.parts | {"control": np.tile(control, 3)[: 5 * G]})).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_refill_replaces_degenerate_groups_in_order():
    rounds = {1: graded([WRONG, MIXED, RIGHT, WRONG], 10), 2: graded([MIXED, MIXED, MIXED, MIXED], 20, tokens=5)}
    first = graded([RIGHT, MIXED, WRONG, UNSCORED])
    experience, row = refill(first, rounds.__getitem__, 3)
    assert whole(experience) == [11, 1, 20, 21] and not degenerate(experience).any()
    assert row == {
        "refill/rounds": 2,
        "refill/replaced_frac": 0.75,
        "refill/degenerate_frac": 0.0,
        "refill/tokens": 16 * 3 + 16 * 5,
    }
    assert experience.answers == [str(s) if s is not None else None for s in (MIXED * 4)]
    assert whole(first) == [0, 1, 2, 3]  # the first rollout, whose metrics are reported, is not changed
    assert experience.reward_B[12:].tolist() == [1.0, 0.0, 0.0, 0.0] and np.isnan(experience.parts["answer"][15])
    assert experience.valid_B[12:].tolist() == [True, True, True, False]


def test_refill_is_bounded_and_stops_when_all_is_well():
    def wrong_again(refill_round):
        return graded([WRONG, WRONG], 10 * refill_round)

    experience, row = refill(graded([MIXED, WRONG]), wrong_again, 2)
    assert whole(experience) == [0, 1] and row["refill/rounds"] == 2 and row["refill/degenerate_frac"] == 0.5
    asked = []
    experience, row = refill(graded([MIXED, MIXED]), asked.append, 2)
    assert not asked and row["refill/rounds"] == row["refill/tokens"] == 0
    experience, row = refill(graded([WRONG, WRONG]), asked.append, 0)
    assert not asked and row == {}


def test_refill_takes_no_problem_twice():
    again = graded([MIXED, MIXED])  # the very problems of the first rollout
    experience, _ = refill(graded([WRONG, WRONG]), lambda refill_round: again, 1)
    assert degenerate(experience).all()
    twice = graded([MIXED, MIXED], 7)
    twice.problems[1] = twice.problems[0]
    experience, _ = refill(graded([WRONG, WRONG]), lambda refill_round: twice, 1)
    assert degenerate(experience).tolist() == [False, True]


@pytest.mark.parametrize(
    "changes, own, message",
    [
        ({"reward.weights.overlong": 1.0}, {}, r"reward\.weights\.overlong=1\.0 with reward\.overlong_cache=0"),
        ({"reward.overlong_cache": 4}, {}, r"reward\.overlong_cache=4: soft overlong punishment needs both"),
        ({"reward.overlong_cache": 99, "reward.weights.overlong": 1.0}, {}, r"must be at most rollout\.max_tokens=64"),
        ({"reward.weights.answer": 0.0}, {}, r"every part has weight 0"),
        (
            {},
            {"answer": {"function": "a:b", "weight": 1.0}},
            r"reward\.own\.answer: choose a name without '/' that is none of answer",
        ),
        ({}, {"mean": {"function": "a:b", "weight": 1.0}}, r"reward\.own\.mean: choose a name without '/'"),
        ({}, {"mine": {"function": "a.b", "weight": 1.0}}, r'must be \{function: "module:function", weight: number\}'),
        ({"reward.kind": "rnd"}, {}, r"reward\.kind='rnd' must be one of answer, format, random"),
        ({"reward.kind": "none", "reward.weights.answer": 0.0, "reward.weights.format": 1.0}, {}, r"has that weight"),
        ({"reward.kind": "none", "rollout.refills": 2}, {}, r"reward\.kind='none' with rollout\.refills=2"),
        (
            {"reward.kind": "random"},
            {"control": {"function": "a:b", "weight": 1.0}},
            r"reward\.own\.control: choose a name",
        ),
        ({"eval.samples": -1}, {}, r"eval\.samples=-1 must be 0 or above"),
        ({"eval.temperature": 0.0}, {}, r"eval\.temperature=0\.0 must be above 0"),
    ],
)
def test_contradictions_of_the_reward(changes, own, message):
    c = config.default()
    c.update_from_flattened_dict(changes)
    with c.unlocked():
        c.reward.own.update(own)
    with pytest.raises(ValueError, match=message):
        config.check(c)


@pytest.mark.parametrize("problems, ends", [(1, False), (2, True)])
def test_graders_are_broken_if_8_responses_cannot_be_scored_and_no_fewer(problems, ends):
    """A few answers that never end must not end a run."""
    tokenizer, kind = tiny_tokenizer(), "bad_verifiers:broken"
    asked = [Problem(i, "1+1?", "2", kind) for i in range(problems)]
    ones = np.ones((problems * G, T), np.int32)
    rollout = Rollout(ones, -1.0 * ones, 1.0 * ones, ones, ones[:, 0] > 0)
    with Grader(cpu_seconds=2.0) as grader, ThreadPoolExecutor(1) as pool:
        grading = Grading(tokenizer, config.default().reward, grader, pool, asked, G)
        grading.start(list(range(problems * G)), rollout)
        if ends:
            with pytest.raises(RuntimeError, match=r"0 of 8 scored, by cause \{'raised': 8\}"):
                grading.finish()
        else:
            assert np.isnan(grading.finish()[0]["answer"]).all()


def test_a_problem_twice_in_a_batch_draws_twice():
    problems = [Problem(5, "a", "", "math"), Problem(6, "b", "", "math"), Problem(5, "a", "", "math")]
    uids = distinct_uids(problems)
    assert uids[:2].tolist() == [5, 6] and len(set(uids.tolist())) == 3


class Counted(np.ndarray):
    """Counts the bytes of new arrays that are made from it, views left out."""

    made = 0

    def __array_finalize__(self, obj):
        if obj is not None and self.base is None:
            Counted.made += self.nbytes


@pytest.mark.parametrize("groups", [4, 64])
def test_a_refill_copies_the_rollout_once_per_round(groups):
    """Not once per replaced group: that took minutes for a rollout of the papers' size."""
    first, fresh = graded([WRONG] * groups), graded([MIXED] * groups, 1000)
    counted = [x.view(Counted) for x in first.rollout]
    size = sum(x.nbytes for x in counted)
    Counted.made = 0
    experience, row = refill(first._replace(rollout=Rollout(*counted)), lambda refill_round: fresh, 1)
    assert row["refill/replaced_frac"] == 1 and whole(experience) == list(range(1000, 1000 + groups))
    assert size <= Counted.made < 2 * size
