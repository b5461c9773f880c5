"""Accuracies, and accuracy by properties of the response, by hand."""

import math

import pytest
from evaluations import answered

from entropy_rl.evaluation import tables
from entropy_rl.record.lines import accuracy_text


def test_without_a_score_there_is_no_accuracy():
    none = {"accuracy": None, "low": None, "high": None, "problems": 0}
    assert tables.greedy_row([answered(None)]) == tables.greedy_row([]) == none
    row = {f"eval/a/{k}": v for k, v in none.items()} | {"eval/b/accuracy": 0.5, "eval/b/low": 0.4, "eval/b/high": 0.6}
    assert accuracy_text(row) == "a not scored  b 50.0% [40.0, 60.0]"


def test_rows_by_hand():
    greedy = [answered(1.0), answered(0.0), answered(None), answered(1.0)]
    row = tables.greedy_row(greedy)
    assert row["accuracy"] == pytest.approx(2 / 3) and row["problems"] == 3 and row["low"] < 2 / 3 < row["high"]
    samples = [
        [answered(1.0, 0, answer="1"), answered(0.0, 0, answer="2"), answered(1.0, 0, answer="1")],
        [answered(0.0, 1, answer="3"), answered(0.0, 1, answer="4"), answered(None, 1)],
    ]
    values = {k: v[0] for k, v in tables.sampled_row(samples, (1, 2, 3)).items()}
    assert values == pytest.approx(
        {
            "avg@3": 2 / 5,
            "pass@1": (2 / 3 + 0) / 2,
            "maj@1": (2 / 3 + 0) / 2,
            "pass@2": 0.5,
            "maj@2": (1 / 3 * 1 + 2 / 3 * 0.5) / 2,
            "pass@3": 1.0,  # the second problem has two that were scored
            "maj@3": 1.0,
            "distinct@1": 1.0,
            "distinct@2": (5 / 3 + 2) / 2,  # of three pairs two are {1, 2}; the second problem has 3 and 4
            "distinct@3": 2.0,
            "answer_entropy@3": (math.log(3) - 2 / 3 * math.log(2) + math.log(2)) / 2,
        }
    )


def test_a_problem_without_an_answer_has_no_answer_entropy():
    some = [[answered(0.0, 0, answer=None)] * 2, [answered(0.0, 1, answer="1")] * 2]
    row = tables.sampled_row(some, (2,))
    assert row["distinct@2"][0] == 0.5 and row["answer_entropy@2"][0] == 0.0
    assert math.isnan(tables.sampled_row(some[:1], (2,))["answer_entropy@2"][0])


def test_accuracy_by_groups():
    some = [
        answered(float(i % 2), uid=i, length=i + 1, finished=i < 6, entropy=i / 8, difficulty=f"level={10 - i // 4}")
        for i in range(8)
    ]
    groups = tables.by_groups(some)
    assert [(label, n, value) for label, n, value, *_ in groups["difficulty"]] == [
        ("level=9", 4, 0.5),
        ("level=10", 4, 0.5),
    ]
    assert [(label, n) for label, n, *_ in groups["truncation"]] == [("cut", 2), ("ended by itself", 6)]
    for what in ("length, tokens", "entropy, nats"):
        assert 2 <= len(groups[what]) <= 4 and sum(n for _, n, *_ in groups[what]) == 8
    assert tables.by_groups([answered(1.0, uid=i) for i in range(4)]) == {}
    many = [answered(1.0, uid=i, difficulty=str(i / 2)) for i in range(16)]
    assert sorted(n for _, n, *_ in tables.by_groups(many)["difficulty"]) == [3, 4, 4, 5]
    assert tables.by_groups([answered(1.0, uid=i, difficulty="abcdefghijklmnop"[i]) for i in range(16)]) == {}
