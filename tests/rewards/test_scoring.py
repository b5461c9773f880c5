"""Scoring from a notebook: in processes with limits, which are kept for the next call and end with the interpreter."""

import os
import subprocess
import sys

import pytest

from entropy_rl.rewards import score, score_all, scoring


def test_many_responses_at_once_and_one():
    responses = ["\\boxed{0.5}", "\\boxed{2}", "none", "\\boxed{1/2}"]
    assert score_all("math", responses, ["1/2"] * 4) == [1.0, 0.0, 0.0, 1.0]
    assert [score("math", response, "1/2") for response in responses] == [1.0, 0.0, 0.0, 1.0]
    assert score_all("math", [], []) == []


def test_an_answer_for_each_response():
    for answers in ("1/2", ["1/2"] * 2, {"answer": "3"}):
        with pytest.raises(ValueError, match="needs an answer for each response: 1 responses"):
            score_all("math", ["\\boxed{0.5}"], answers)


def test_a_verifier_that_never_returns_costs_its_time_limit_alone(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(
        "def wait(response, answer):\n    while response == 'forever':\n        pass\n    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score_all("endless:wait", ["a", "forever", "b"], [None] * 3) == [1.0, None, 1.0]


def test_it_runs_in_another_process_which_is_kept():
    pids = set()
    for _ in range(3):
        assert score("exact", "a", "a") == 1.0
        pids |= {worker.pid for worker in scoring._grader._workers if worker is not None}
    assert len(pids) == 1 and os.getpid() not in pids


def test_closing_ends_the_processes_and_the_next_call_starts_new_ones():
    score("exact", "a", "a")
    pids = [worker.pid for worker in scoring._grader._workers if worker is not None]
    scoring.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError, match="No such process"):
            os.kill(pid, 0)
    assert pids and score("exact", "a", "a") == 1.0


def test_a_script_that_scores_ends_quietly():
    code = "from entropy_rl import rewards; print(rewards.score('exact', 'a', 'a'))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "1.0", "")
