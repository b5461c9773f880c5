"""Right answers and verifiers are tried before any work: by the run's own path, in the graders' processes."""

import json

import pytest

from entropy_rl import config, start
from entropy_rl.data import Problem
from entropy_rl.rewards import Grader
from entropy_rl.training import checks


def run_config(tmp_path, rows, **changes):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (tmp_path / "x.jsonl").write_text(text)
    c = config.default()
    c.model.source, c.data.task = "tiny", str(tmp_path / "x.jsonl")
    c.data.held_out_modulus, c.eval.every, c.mesh.data, c.rollout.prompts = 0, 0, 1, 4
    c.data.update(changes)
    return c


def rows(*answers, **more):
    good = [{"question": f"{i} + 1?", "answer": str(i + 1), **more} for i in range(4)]
    return [{"question": f"bad {i}?", "answer": answer, **more} for i, answer in enumerate(answers)] + good


def names(c):
    return {p.answer for p in start.prepare(c).sources.train.train(1, 4)}


@pytest.mark.parametrize(
    "answer",
    ["$$", "10^{10^{10}}", "\\frac{", "nan"],  # d13: the first two
)
def test_an_answer_that_nothing_can_be_graded_with_is_a_bad_row(tmp_path, answer):
    c = run_config(tmp_path, rows(answer))
    with pytest.raises(ValueError, match=r"1 bad rows\n.*x\.jsonl, line 1: (.|\n)*set data\.bad_rows to 'skip'"):
        start.prepare(c)
    c.data.bad_rows = "skip"
    assert names(c) == {"1", "2", "3", "4"}


def test_answers_of_evaluation_sets_are_tried_too(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "a?", "answer": "$$"}) + "\n")
    c = run_config(tmp_path, rows())
    c.eval.every, c.eval.sets.test = 10, {"task": str(tmp_path / "test.jsonl")}
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: "):
        start.prepare(c)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("maths", r"data\.settings\.kind='maths' of .*x\.jsonl: unknown; expected 'math', 'exact'"),
        ("reasoning_gym:gdc", r"data\.settings\.kind='reasoning_gym:gdc'.*has no such task; near it: gcd"),
        ("nonesuch:judge", r"data\.settings\.kind='nonesuch:judge'.*could not be imported"),
        ("json:nonesuch", r"data\.settings\.kind='json:nonesuch'.*could not be imported"),
    ],
)
def test_a_verifier_that_does_not_exist(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        start.prepare(run_config(tmp_path, rows(), settings={"kind": kind}))


def test_an_entry_that_its_verifier_cannot_read(tmp_path):
    """reasoning-gym's verifier of gcd needs no more than the answer; the one of a puzzle needs its metadata."""
    c = run_config(tmp_path, rows(metadata={}), settings={"kind": "reasoning_gym:countdown"})
    with pytest.raises(ValueError, match=r"4 bad rows\n.*line 1: "):
        start.prepare(c)


class Counting(Grader):
    """A grader that counts what it is asked."""

    asked = 0

    def grade(self, items, *, local=False):
        Counting.asked += len(items)
        return super().grade(items, local=local)


def faults(answers, bad_rows="skip"):
    """(the number of faults, the items graded)."""
    Counting.asked = 0
    problems = [Problem(i, str(i), answer, "math") for i, answer in enumerate(answers)]
    fault = checks.check_golds(problems, [], config.default().reward, bad_rows)
    return [p.entry for p in problems if fault(p)], Counting.asked


def test_equal_answers_are_graded_once(monkeypatch):
    monkeypatch.setattr(checks, "Grader", Counting)
    assert faults(["1", "2", "3"] * 100 + ["$$"] * 7) == (["$$"] * 7, 4)


def test_of_very_many_answers_a_sample_is_graded_that_depends_on_them_alone(monkeypatch):
    monkeypatch.setattr(checks, "_MOST_GOLDS", 3)
    monkeypatch.setattr(checks, "Grader", Counting)
    broken = ["$$", "$ $", "\\frac{", "\\sqrt{", "{", "}"]
    some, asked = faults(broken)
    assert asked == 3 == len(some)
    assert sorted(faults(broken[::-1])[0]) == sorted(some)


def test_the_rest_is_not_looked_at_once_bad_rows_are_found_that_are_an_error(monkeypatch):
    monkeypatch.setattr(checks, "_GOLD_CHUNK", 2)
    monkeypatch.setattr(checks, "Grader", Counting)
    answers = ["$$", "$ $", *(str(i) for i in range(10))]
    assert faults(answers, "error") == (["$$", "$ $"], 2)
    assert faults(answers, "skip") == (["$$", "$ $"], 12)
