"""Reading answers out of responses, and judging them."""

import builtins
import pathlib
import time

import pytest
import reasoning_gym

from entropy_rl.rewards import extract_answer, extract_boxed, score
from entropy_rl.rewards.answer import MAX_ANSWER_CHARS, MAX_RESPONSE_CHARS
from entropy_rl.rewards.verify import verifier

THREE = {"question": "1 + 2 =", "answer": "3", "metadata": {}}


@pytest.mark.parametrize(
    "response, answer",
    [
        ("so \\boxed{42}.", "42"),
        ("\\boxed{1} then \\boxed{ 2 }", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed{2 then \\boxed{1}", "1"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1\\right.} }", "\\left\\{1\\right."),
        ("{ \\boxed {7} }", "7"),
        ("}}} \\boxed{7}", "7"),
        ("\\\\boxed{7}", "7"),
        ("\\boxed{}", ""),
        ("\\boxed{7}, as asked in \\boxed{}", "7"),
        ("\\boxed{} and then \\boxed{7 \\boxed{ }}", "7 \\boxed{ }"),
        ("\\boxed{7}, as asked in \\boxed{...}", "7"),
        ("\\boxed{7}, as asked in \\boxed{\\ldots}", "7"),
        ("\\boxed{7}, as asked in \\boxed{\\text{your answer}}", "7"),
        ("\\boxed{7}, as asked in \\boxed{answer}", "7"),
        ("\\boxed{7}, as asked in \\boxed{~\\,\\text{}}", "7"),
        ("\\boxed{...}", "..."),
        ("\\boxed{7\\\\} }", "7\\\\"),
        ("\\boxed{7} and \\boxed{1,2,...}", "1,2,..."),
        ("so \\boxed B.", "B"),
        ("so $\\boxed 5$", "5"),
        ("so \\boxed -12.5.", "-12.5"),
        ("\\boxed{5}. No, $\\boxed 6$", "6"),
        ("\\boxed 6, no, \\boxed{5}", "5"),
        ("so $\\boxed B$", "B"),
        ("\\boxed{5}, in \\boxed form", "5"),
        ("\\boxed{5}, in a \\boxed environment", "5"),
        ("\\boxed{1} <answer>2</answer>", "1"),
        ("a\n<answer>1</answer><answer>\n2 </answer>", "2"),
        ("a\n<answer>1</answer> <answer>2", "1"),
        (" 42 \n", "42"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("so\n42", None),
        ("42</answer>\n", "42</answer>"),
        ("", None),
        ("\\boxed{\x00\ud800}", "\x00\ud800"),
    ],
)
def test_extract_answer(response, answer):
    assert extract_answer(response) == answer


def test_extract_boxed_reads_only_boxes():
    assert extract_boxed("42") is None
    assert extract_boxed("<answer>42</answer>") is None
    assert extract_boxed("\\boxed{42}") == "42"


def test_long_responses_and_answers():
    flood = "a " * MAX_RESPONSE_CHARS
    assert extract_answer(flood + "\\boxed{42}") == "42"
    assert extract_answer("\\boxed{42}" + flood) is None
    assert extract_answer("a\n" + " " * MAX_RESPONSE_CHARS + "42") is None
    assert extract_answer("\\boxed{" + "1" * MAX_ANSWER_CHARS + "}") == "1" * MAX_ANSWER_CHARS
    assert extract_answer("\\boxed{" + "1" * (MAX_ANSWER_CHARS + 1) + "}") is None


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "<answer>", "</answer>", "{", "}", "\\boxed{}", "\\", *("\\boxed{" + c * 70 + "x}" for c in "._ ~")],
)
def test_extraction_is_linear(piece):
    # In CPU time, with a bound that is two orders of magnitude above the time it takes: quadratic code takes minutes.
    start = time.process_time()
    extract_answer(piece * (MAX_RESPONSE_CHARS // len(piece)))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "kind, response, answer, reward",
    [
        ("exact", "\\boxed{Paris}", "Paris", 1.0),
        ("exact", " Paris", "Paris ", 1.0),
        ("exact", "\\boxed{paris}", "Paris", 0.0),
        ("exact", "no\nanswer", "answer", 0.0),
        ("exact", "\\boxed{\\text{**Paris**}}", "Paris", 1.0),
        ("exact", "\\boxed{`x`}", "$x$", 1.0),
        ("exact", "\\boxed{$}", "$", 1.0),
        ("exact", "\\boxed{\\text{Par}is}", "Paris", 0.0),
        ("exact", "", "", 0.0),
        ("exact", "\\boxed{50\\%}", "50%", 1.0),
        ("exact", "\\boxed{a\\_b}", "a_b", 1.0),
        ("exact", "\\boxed{50}", "50%", 0.0),
        ("exact", "\\boxed{e\u0301}", "\u00e9", 1.0),
        ("exact", "\\boxed{7}", 7, 1.0),
        ("reasoning_gym:chain_sum", "1+2=3 \\boxed{3}", THREE, 1.0),
        ("reasoning_gym:chain_sum", "3.0", THREE, 1.0),
        ("reasoning_gym:chain_sum", "\\boxed{$3$}", THREE, 1.0),
        ("reasoning_gym:chain_sum", "\\boxed{\\textbf{3}}", THREE, 1.0),
        ("reasoning_gym:chain_sum", "<answer>**3**</answer>", THREE, 1.0),
        ("reasoning_gym:chain_sum", "\\boxed{$34$}", THREE, 0.0),
        ("reasoning_gym:chain_sum", "\\boxed{4}", THREE, 0.0),
        ("reasoning_gym:chain_sum", "\\boxed{}", THREE, 0.0),
        ("reasoning_gym:chain_sum", "well\nwell", THREE, 0.0),
    ],
)
def test_score(kind, response, answer, reward):
    assert score(kind, response, answer) == reward


def test_a_fraction_of_a_point_is_not_a_reward():
    # The verifier itself gives 0.5 to "34" for "3", and 0.01 to any number in gsm_symbolic.
    assert verifier("reasoning_gym:chain_sum")("34", THREE) == 0.5
    assert score("reasoning_gym:chain_sum", "\\boxed{34}", THREE) == 0.0
    entry = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=1)[0]
    assert verifier("reasoning_gym:gsm_symbolic")("-1", entry) == 0.01
    assert score("reasoning_gym:gsm_symbolic", "-1", entry) == 0.0
    assert score("reasoning_gym:gsm_symbolic", f"\\boxed{{{entry['answer']}}}", entry) == 1.0


@pytest.mark.parametrize("task", ["countdown", "gcd", "spell_backward", "puzzle24", "maze"])
def test_the_right_answer_to_a_task_scores_1(task):
    entry = reasoning_gym.create_dataset(task, seed=0, size=1)[0]
    assert score(f"reasoning_gym:{task}", f"\\boxed{{{entry['answer']}}}", entry) == 1.0
    assert score(f"reasoning_gym:{task}", "\\boxed{0}", entry) == 0.0


def test_a_verifier_that_raises_scores_none():
    entry = reasoning_gym.create_dataset("prime_factorization", seed=0, size=1)[0]
    assert score("reasoning_gym:prime_factorization", "\\boxed{two}", entry) is None


@pytest.mark.parametrize(
    "kind, message", [("maths", "'maths'; the kinds are 'math'"), ("reasoning_gym:chainsum", "chain_sum")]
)
def test_unknown_kind(kind, message):
    with pytest.raises(ValueError, match=message):
        score(kind, "3", "3")


def test_math_without_its_library_names_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "math_verify":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    verifier.cache_clear()
    with pytest.raises(ImportError, match="pip install math-verify"):
        verifier("math")


@pytest.mark.parametrize(
    "response, answer, reward",
    [
        ("so \\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("\\boxed{1/2}", "\\frac12", 1.0),
        ("\\boxed{x^2+1}", "1+x^2", 1.0),
        ("\\boxed{4}", "$4$", 1.0),
        ("\\boxed{(1,2)}", "\\boxed{(1,2)}", 1.0),
        ("\\boxed{34}", "3", 0.0),
        ("4", "4", 0.0),
        ("\\boxed{zz?}", "3", 0.0),
        ("\\boxed{5}", "", None),
    ],
)
def test_math(response, answer, reward):
    assert score("math", response, answer) == reward


def answer_pairs():
    for line in (pathlib.Path(__file__).parents[1] / "answers.tsv").read_text().splitlines():
        if not line.startswith("#"):
            kind, given, right, verdict, *disagrees = line.split("\t")
            yield pytest.param(given, right, float(verdict), bool(disagrees), id=f"{kind}: {given} for {right}")


@pytest.mark.parametrize("given, right, verdict, disagrees", list(answer_pairs()))
def test_answers_that_everybody_would_judge_the_same_way(given, right, verdict, disagrees):
    """195 pairs: the verifier disagrees with the meaning only on the two that are marked."""
    reward = score("math", f"So the answer is \\boxed{{{given}}}.", right)
    assert reward == (1.0 - verdict if disagrees else verdict)


def test_the_table_of_answers_is_large_and_has_many_of_both_verdicts():
    verdicts = [p.values[2] for p in answer_pairs()]
    assert len(verdicts) >= 150 and 50 < sum(verdicts) < len(verdicts) - 50
    assert sum(p.values[3] for p in answer_pairs()) == 2


def test_the_format_is_a_box_that_is_not_empty():
    assert [score("format", text, None) for text in ("\\boxed{7}", "\\boxed{}", "7", "\\boxed{7")] == [1, 0, 0, 0]
