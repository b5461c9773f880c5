"""Rows 20 to 23: verifiers that hang, die, use up memory or are broken, and answers that are meant to do harm."""

import json

import pytest
import reasoning_gym
import small_runs

from entropy_rl.rewards import Grader

KIND = "bad_verifiers:faulty"
RIGHT, WRONG = (KIND, "7", "7"), (KIND, "8", "7")


def graded(response):
    """(rewards of a right answer, this response, a right and a wrong answer, the causes)."""
    with Grader(cpu_seconds=0.5, wall_seconds=4.0) as grader:
        rewards = grader.grade([RIGHT, (KIND, response, "7"), RIGHT, WRONG])
        assert grader.grade([WRONG, RIGHT]) == [0.0, 1.0]  # the next batch is graded as if nothing had been
        return rewards, dict(grader.causes)


@pytest.mark.parametrize("response", ["hang", "hang in C", "wait"])
def test_20_a_verifier_that_hangs_costs_its_response_alone(response):
    assert graded(response) == ([1.0, None, 1.0, 0.0], {"timeout": 1})


@pytest.mark.parametrize("response, cause", [("exit", "died"), ("segfault", "died"), ("memory", "memory")])
def test_21_a_verifier_that_dies_costs_its_response_alone(response, cause):
    assert graded(response) == ([1.0, None, 1.0, 0.0], {cause: 1})


def hostile(path):
    """Answers that would touch a file if anything evaluated them, and answers that take forever to read."""
    return {
        "command": f"__import__('os').system('touch {path}')",
        "write": f"open('{path}', 'w')",
        "digits": "9" * 200_000,
        "parentheses": "(" * 300 + ")" * 300,
        "powers": "9^9^9",
        "NUL": "\x00",
        "surrogates": "\ud800\udfff",
        "10 MB": "x" * 10_000_000,
        "braces": "{" * 9999,
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["math", "exact", "chain_sum", "string_insertion", "n_queens", "spiral_matrix"])
def test_22_hostile_answers_have_no_side_effect_and_no_reward(tmp_path, kind):
    answer = "7"
    if kind not in ("math", "exact"):
        answer = reasoning_gym.create_dataset(kind, seed=0, size=1)[0]
        kind = f"reasoning_gym:{kind}"
    texts = hostile(tmp_path / "made")
    with Grader(cpu_seconds=0.5, wall_seconds=10.0) as grader:
        items = [(kind, f"\\boxed{{{text}}}", answer) for text in texts.values()]
        rewards = grader.grade([*items, ("exact", "\\boxed{7}", "7")])
    assert not any(rewards[:-1]), dict(zip(texts, rewards, strict=False))  # each is 0 or None
    assert rewards[-1] == 1.0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_23_a_broken_verifier_stops_the_run(cache, tmp_path):
    """It never trains on zeros: no step is made, and the sentence says why."""
    lines = [json.dumps({"question": f"{i} + {j} =", "answer": str(i + j)}) for i in range(4) for j in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    flags = [f"--config={small_runs.__file__}:file", f"--config.data.task={tmp_path / 'sums.jsonl'}"]
    flags += ["--config.data.settings.kind=bad_verifiers:broken", "--config.train.steps=2"]
    output = small_runs.finish(run, cache, *flags, code=1)
    assert "0 of 32 scored" in output and "this verifier is broken" in output
    assert "Traceback" not in output
    assert [row["step"] for row in small_runs.rows(run)] == [0]
