"""Right answers that nothing can be graded with are named."""

import pytest

from entropy_rl.rewards import Grader, gold_problem, gold_problems

ENTRY = {"question": "1 + 2 =", "answer": "3", "metadata": {}}


@pytest.fixture(scope="module")
def grader():
    with Grader(cpu_seconds=0.5) as grader:
        yield grader


@pytest.mark.parametrize(
    "answer, kind, problem",
    [
        (float("nan"), "math", "is nan, not a finite number"),
        (float("-inf"), "exact", "is -inf, not a finite number"),
        ("NaN", "math", "is 'NaN': there is none"),
        ("  ", "exact", "there is none"),
        (None, "math", "is None, a NoneType; it must be a text or a number"),
        ([1, 2], "math", r"is \[1, 2\], a list"),
        ({"a": 1}, "exact", "a dict; it must be a text or a number"),
        (True, "exact", "is True, a bool"),
        ("3", "reasoning_gym:chain_sum", "is a str, not an entry of the task"),
    ],
)
def test_what_cannot_be_a_right_answer(answer, kind, problem):
    with pytest.raises(AssertionError, match=problem):
        assert gold_problem(answer, kind) is None, gold_problem(answer, kind)


@pytest.mark.parametrize(
    "answer, kind, problem",
    [
        ("$$", "math", "cannot read the answer '\\$\\$'"),
        ("10^{10^{10}}", "math", "or cannot finish computing it"),
        (r"\sum_{k=1}^{10^{12}} \sin k", "math", "or cannot finish computing it"),
        (r"\frac{1}{", "math", "scores 0 against itself"),
        ({**ENTRY, "answer": "two"}, "reasoning_gym:prime_factorization", "cannot read the answer 'two'"),
    ],
)
def test_what_a_verifier_cannot_use(grader, answer, kind, problem):
    with pytest.raises(AssertionError, match=problem):
        assert gold_problems(grader, [("1", "exact"), (answer, kind)]) == [None, None]


def test_answers_that_can_be_used(grader):
    mathematical = [
        "5",
        5,
        1e-05,
        "1e-07",
        r"\{\}",
        r"\text{yes}",
        r"so \boxed{(1,2)}.",
        "x>3",
        r"\textbf{(B)}\ 12",
        "0",
    ]
    golds = [(answer, "math") for answer in mathematical]
    golds += [("}", "exact"), ("two\nlines", "exact"), (ENTRY, "reasoning_gym:chain_sum")]
    golds += [(None, "format"), (object(), "my_rewards:brevity")]
    assert gold_problems(grader, golds) == [None] * len(golds)
