"""The rows of metrics.jsonl and samples.jsonl, by hand."""

import numpy as np
import pytest
from experiences import MIXED, RIGHT, UNSCORED, WRONG, G, T, graded, with_length_penalty

from entropy_rl.record.words import METRIC_KEYS
from entropy_rl.training import rows
from entropy_rl.training.experience import degenerate, refill


def test_a_group_is_degenerate_by_one_definition():
    """A spread of length alone does not count: group/degenerate_frac is defined as refill/degenerate_frac is."""
    shaped = with_length_penalty(graded([RIGHT, MIXED, WRONG]))
    assert degenerate(shaped).tolist() == [True, False, True]
    assert rows.rollout_row(shaped)["group/degenerate_frac"] == pytest.approx(2 / 3)
    wrong_again = with_length_penalty(graded([WRONG] * 3, 10))
    _, refilled = refill(shaped, lambda refill_round: wrong_again, 1)
    assert refilled["refill/degenerate_frac"] == rows.rollout_row(shaped)["group/degenerate_frac"]


def test_a_rollout_row_describes_the_sampling_policy():
    row = rows.rollout_row(graded([MIXED, UNSCORED], first_uid=1))
    assert row["reward/mean"] == pytest.approx(1 / 3) and row["reward/std"] == pytest.approx(np.sqrt(2) / 3)
    assert row["reward/answer"] == row["reward/mean"] and row["reward/unscored"] == 1 + G
    # three tokens per response: entropy 2·(10·u + t), logp −(10·u + t)
    assert row["entropy/mean"] == row["entropy/response_mean"] == pytest.approx(2 * 16)
    assert row["entropy/sampled"] == pytest.approx(16) and row["entropy/frac_below_0.01"] == 0
    # of the problems with an answer: two of MIXED, with shares 1/3 and 2/3
    assert row["answers/distinct"] == 2
    assert row["answers/entropy"] == pytest.approx(-(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3)
    assert row["length/mean"] == 3 and row["length/clipped_frac"] == 0 and row["group/degenerate_frac"] == 0.5


def test_without_a_score_there_is_no_mean_reward():
    row = rows.reward_row(graded([UNSCORED]))
    assert row == {"reward/mean": None, "reward/std": None, "reward/unscored": G, "reward/answer": None}


def test_without_an_answer_there_is_no_number_of_answers():
    assert rows.answers_row(graded([UNSCORED])) == {"answers/distinct": None, "answers/entropy": None}
    assert rows.answers_row(graded([RIGHT, MIXED]))["answers/distinct"] == 1.5


def test_skipped_updates_are_only_counted():
    good = {"loss": 1.0, "grad/norm": 2.0, "grad/skipped": 0}
    bad = {"loss": np.nan, "grad/norm": np.nan, "grad/skipped": 1}
    measured = {"loss": 3.0, "grad/norm": 4.0, "grad/skipped": 0, "entropy/delta": 0.5}
    row = rows.update_row([good, bad, measured])
    assert row == {"loss": 2.0, "grad/norm": 3.0, "grad/skipped": 1, "entropy/delta": 0.5}
    alone = rows.update_row([bad])
    assert np.isnan(alone["loss"]) and alone["grad/skipped"] == 1


def test_speed_counts_all_that_was_sampled_and_the_sequences_that_were_consumed():
    first, consumed = graded([WRONG, MIXED]), graded([MIXED, MIXED], 10, tokens=T)
    row = rows.speed_row(first, consumed, 100, {"rollout": 2.0, "reward": 0.5, "train": 4.0, "total": 10.0})
    assert row == {
        "throughput/rollout_tokens_per_s": (2 * G * 3 + 100) / 2.0,
        "throughput/train_tokens_per_s": 2 * G * (T + 2) / 4.0,
        "time/rollout_s": 2.0,
        "time/reward_s": 0.5,
        "time/train_s": 4.0,
        "time/eval_s": 0.0,
        "time/other_s": 3.5,
    }


def test_the_law_is_null_until_there_are_points_enough():
    history = [{"entropy/mean": h, "reward/mean": 0.8 - 0.2 * np.exp(h)} for h in (1.2, 0.9, 0.6, 0.3, 0.1)]
    found = rows.law_row(history[:2])
    assert set(found) == {k for k in METRIC_KEYS if k.startswith("law/")} and set(found.values()) == {None}
    token_mean = {"law/a": 0.2, "law/b": 0.8, "law/ceiling": 0.6}
    found = rows.law_row(history)  # of an earlier version, whose rows lack the mean over responses
    assert {k: found[k] for k in token_mean} == pytest.approx(token_mean) and found["law/response_mean/a"] is None


def test_the_law_is_fitted_to_either_mean_of_the_entropy():
    """Eq. 5 of arXiv 2505.22617 is the mean over responses, `entropy/mean` that over tokens."""
    mask, history = np.array([[1, 0, 0, 0], [1, 1, 1, 1]]), []
    for h in (1.2, 0.9, 0.6, 0.3, 0.1):
        entropy = np.where(mask, [[h], [h / 2]], 0.0)
        found = rows.rollout_entropy(-entropy, entropy, mask)
        assert found["entropy/response_mean"] == pytest.approx(0.75 * h) and found["entropy/mean"] == pytest.approx(
            0.6 * h
        )
        row = {k: float(found[k]) for k in ("entropy/mean", "entropy/response_mean")}
        history.append(row | {"reward/mean": 0.8 - 0.2 * np.exp(0.75 * h)})
    found = rows.law_row(history)
    by_response = {"law/response_mean/a": 0.2, "law/response_mean/b": 0.8, "law/response_mean/ceiling": 0.6}
    assert {k: found[k] for k in by_response} == pytest.approx(by_response, rel=1e-5)
    assert found["law/a"] > 0.25  # the same rewards against another series


def test_samples_are_the_first_responses_of_a_step():
    advantage = np.arange(2 * G, dtype=np.float32)
    first, *_, last = found = rows.sample_rows(7, G + 1, graded([MIXED, WRONG], first_uid=1), advantage)
    assert len(found) == G + 1 and len(rows.sample_rows(7, 99, graded([MIXED, WRONG]), advantage)) == 2 * G
    assert first == {
        "step": 7,
        "question": "question 1",
        "response": "1 0",
        "reward": 1.0,
        "advantage": 0.0,
        "length": 3,
        "finished": True,
        "entropy": sum(2 * (10 + t) for t in range(T)) / 3,
    }
    assert last["question"] == "question 2" and last["response"] == "2 0" and last["advantage"] == G
    assert found[3]["reward"] is None  # it could not be scored
