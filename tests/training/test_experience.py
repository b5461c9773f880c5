"""Dynamic sampling, on arrays."""

import numpy as np
import pytest

from entropy_rl import config
from entropy_rl.data import Problem
from entropy_rl.sampling.base import Prompts, Rollout
from entropy_rl.training import experience
from entropy_rl.training.rows import rollout_row

G, T = 4, 8


def rollout(rights, first_uid, tokens=3):
    """N groups whose samples are right as said (None: not scored), with arrays that tell whose row is whose."""
    N, B = len(rights), len(rights) * G
    uid = np.arange(first_uid, first_uid + N, dtype=np.uint32)
    score = np.array([np.nan if r is None else r for group in rights for r in group], np.float32)
    rows = np.repeat(uid, G)[:, None] * 10 + np.arange(T)
    mask = np.broadcast_to(np.arange(T) < tokens, (B, T)).astype(np.int32)
    out = Rollout(rows.astype(np.int32) * mask, -rows * 1.0, rows * 2.0, mask, np.ones(B, bool))
    valid = np.isfinite(score)
    return experience.Experience(
        [Problem(int(u), f"question {u}", "1", "math") for u in uid],
        Prompts(np.broadcast_to(uid[:, None], (N, 2)).astype(np.int32), np.ones((N, 2), np.int32), uid),
        out,
        out.logp,
        [f"{u} {g}" for u in uid for g in range(G)],
        {"answer": score},
        np.where(valid, score, 0.0).astype(np.float32),
        valid,
    )


RIGHT, WRONG, MIXED, UNSCORED = [1.0] * G, [0.0] * G, [1.0, 0.0, 0.0, None], [None] * G


def whole(x):
    """Every array of every group belongs to the group's problem."""
    for i, p in enumerate(x.problems):
        rows = slice(i * G, i * G + G)
        assert x.prompts.uid_N[i] == p.uid and (x.prompts.tokens_NxP[i] == p.uid).all()
        assert [t.split()[0] for t in x.texts[rows]] == [str(p.uid)] * G
        assert (x.rollout.entropy[rows, 0] == p.uid * 20).all() and (x.rollout.tokens[rows, 0] == p.uid * 10).all()
    return [p.uid for p in x.problems]


def test_degenerate_groups():
    x = rollout([RIGHT, WRONG, MIXED, UNSCORED, [1.0, 1.0, None, 1.0]], 0)
    assert experience.degenerate(x).tolist() == [True, True, False, True, True]
    # A spread of length alone is no reason to keep a group that is all right.
    shaped = rollout([RIGHT], 0)
    shaped = shaped._replace(reward_B=shaped.reward_B - np.array([0, 0.1, 0.2, 0.3], np.float32))
    assert experience.degenerate(shaped).tolist() == [True]
    assert experience.degenerate(shaped._replace(parts={"own": shaped.parts["answer"]})).tolist() == [False]


def test_refill_replaces_degenerate_groups_in_order():
    rounds = {1: rollout([WRONG, MIXED, RIGHT, WRONG], 10), 2: rollout([MIXED, MIXED, MIXED, MIXED], 20, tokens=5)}
    first = rollout([RIGHT, MIXED, WRONG, UNSCORED], 0)
    x, row = experience.refill(first, rounds.__getitem__, 3)
    assert whole(x) == [11, 1, 20, 21] and not experience.degenerate(x).any()
    assert row == {
        "refill/rounds": 2,
        "refill/replaced_frac": 0.75,
        "refill/degenerate_frac": 0.0,
        "refill/tokens": 16 * 3 + 16 * 5,
    }
    assert whole(first) == [0, 1, 2, 3]  # what the policy itself did, and reward/mean, are as they were
    assert x.reward_B[12:].tolist() == [1.0, 0.0, 0.0, 0.0] and np.isnan(x.parts["answer"][15])
    assert x.valid_B[12:].tolist() == [True, True, True, False]


def test_refill_is_bounded_and_stops_when_all_is_well():
    x, row = experience.refill(rollout([MIXED, WRONG], 0), lambda number: rollout([WRONG, WRONG], 10 * number), 2)
    assert whole(x) == [0, 1] and row["refill/rounds"] == 2 and row["refill/degenerate_frac"] == 0.5
    asked = []
    x, row = experience.refill(rollout([MIXED, MIXED], 0), asked.append, 2)
    assert not asked and row["refill/rounds"] == row["refill/tokens"] == 0
    x, row = experience.refill(rollout([WRONG, WRONG], 0), asked.append, 0)
    assert not asked and row == {}


def test_refill_takes_no_problem_twice():
    again = rollout([MIXED, MIXED], 0)  # the very problems of the first rollout
    x, _ = experience.refill(rollout([WRONG, WRONG], 0), lambda number: again, 1)
    assert experience.degenerate(x).all()
    twice = rollout([MIXED, MIXED], 7)
    twice.problems[1] = twice.problems[0]
    x, _ = experience.refill(rollout([WRONG, WRONG], 0), lambda number: twice, 1)
    assert experience.degenerate(x).tolist() == [False, True]


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
            r"reward\.own\.answer: choose a name without ./. that is none of answer",
        ),
        ({}, {"mean": {"function": "a:b", "weight": 1.0}}, r"reward\.own\.mean: choose a name without '/'"),
        ({}, {"mine": {"function": "a.b", "weight": 1.0}}, r'must be \{function: "module:function", weight: number\}'),
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


def test_a_problem_twice_in_a_batch_draws_twice():
    problems = [Problem(5, "a", "", "math"), Problem(6, "b", "", "math"), Problem(5, "a", "", "math")]
    uids = experience.distinct_uids(problems)
    assert uids[:2].tolist() == [5, 6] and len(set(uids.tolist())) == 3


def test_a_group_is_degenerate_by_one_definition():
    """A spread of length alone is none: the row's group/degenerate_frac is that of the refills."""
    shaped = rollout([RIGHT, MIXED, WRONG], 0)
    shaped = shaped._replace(reward_B=shaped.reward_B - np.tile(np.array([0, 0.1, 0.2, 0.3], np.float32), 3))
    assert rollout_row(shaped)["group/degenerate_frac"] == pytest.approx(2 / 3)
    assert experience.degenerate(shaped).tolist() == [True, False, True]
