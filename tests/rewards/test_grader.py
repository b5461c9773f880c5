r"""The grader's processes against responses that hang and crash. What code may try in the fence: `test_fence`.

No fault is mocked: the verifier `foreign_code:value` runs the response, that of prime_factorization raises on words.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import reasoning_gym

import entropy_rl.rewards
from entropy_rl.rewards import Grader, GradersBroken, nursery, score

WAIT_SECONDS = 60  # the longest wait for a process to act or to end: a test must fail, not hang

OWN = "foreign_code:value"
GYM = "reasoning_gym:string_insertion"
RAISES = "reasoning_gym:prime_factorization"
ENTRY = reasoning_gym.create_dataset("string_insertion", seed=0, size=1)[0]
FACTORS = reasoning_gym.create_dataset("prime_factorization", seed=0, size=1)[0]
RIGHT = (GYM, f"\\boxed{{{ENTRY['answer']}}}", ENTRY)
WRONG = (GYM, "\\boxed{-}", ENTRY)


def text(code):
    return (OWN, code, None)


@pytest.fixture(scope="module")
def grader():
    with Grader(cpu_seconds=0.5, wall_seconds=4.0) as grader:
        yield grader


@pytest.fixture(autouse=True)
def forget_causes(request):
    if "grader" in request.fixturenames:
        request.getfixturevalue("grader").causes.clear()


def test_agrees_with_score_in_order_whatever_the_number_of_workers():
    dataset = reasoning_gym.create_dataset("chain_sum", seed=0, size=41)
    items = [("reasoning_gym:chain_sum", f"\\boxed{{{e['answer'] if i % 3 else 0}}}", e) for i, e in enumerate(dataset)]
    items[7:9] = [("exact", "a", "a"), ("exact", "b", "a")]
    expected = [score(*item) for item in items]
    assert 0 < sum(expected) < len(expected)
    for workers in (1, 3):
        with Grader(workers) as grader:
            assert grader.grade(items) == expected
            assert grader.grade(items[:2]) == expected[:2]
            assert grader.grade([]) == []
            assert not grader.causes


@pytest.mark.parametrize(
    "code, cause",
    [
        ("[0 for _ in iter(int, 1)]", "timeout"),  # row 20: while True
        ("__import__('os')._exit(0)", "died"),  # row 21
        ("exit()", "raised"),
    ],
)
def test_one_bad_response_costs_only_itself(grader, code, cause):
    assert grader.grade([RIGHT, text(code), RIGHT, WRONG]) == [1.0, None, 1.0, 0.0]
    assert grader.causes == {cause: 1}


@pytest.mark.parametrize(
    "code, detail",
    [
        # The first is in C, where no Python signal handler would run; the second uses no CPU time.
        ("9**9**9**9", r"over 0\.5 s of CPU time"),
        ("__import__('threading').Event().wait()", r"over 4\.0 s of wall time"),
        ("__import__('os')._exit(5)", "ended with status 5"),
    ],
)
def test_the_error_says_why_nothing_was_scored(grader, code, detail):
    with pytest.raises(RuntimeError, match=rf"0 of 1 scored.*{OWN}: .*{detail}"):
        grader.grade([text(code)])


def test_two_culprits_in_a_row(grader):
    bad = text("__import__('os')._exit(1)")
    assert grader.grade([bad, bad, RIGHT, bad]) == [None, None, 1.0, None]
    assert grader.causes == {"died": 3}


def test_a_death_that_does_not_repeat_costs_nothing(grader):
    # Killed from outside, as by a machine that is short of memory: the retry in a fresh worker gives the reward.
    grader.grade([RIGHT])
    os.kill(grader._workers[0].pid, 9)
    assert grader.grade([RIGHT, WRONG]) == [1.0, 0.0]
    assert not grader.causes


def test_a_worker_that_reads_nothing_delays_a_batch_by_no_more_than_its_wall_time():
    """A stopped process: the socket to it fills up, and writing waits."""
    with Grader(cpu_seconds=0.5, wall_seconds=1.0) as grader:
        grader.grade([RIGHT])
        os.kill(grader._workers[0].pid, signal.SIGSTOP)
        long = [(GYM, f"{i}" * 60_000, ENTRY) for i in range(50)]  # 4 MB, where a socket holds 0.2 MB
        assert grader.grade([RIGHT, *long]) == [1.0] + [0.0] * 50


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 200_000,
        "(" * 300 + ")" * 300,
        "[" * 300 + "]" * 300,
        "9^9^9",
        "\x00",
        "\ud800",
        "x" * 10_000_000,
        "{" * 9999,
    ],
    ids=["200k digits", "parentheses", "brackets", "powers", "NUL", "surrogate", "10 MB", "braces"],
)
@pytest.mark.parametrize("task", ["chain_sum", "string_insertion", "polynomial_multiplication"])
def test_hostile_answers(grader, answer, task):
    entry = reasoning_gym.create_dataset(task, seed=0, size=1)[0]
    rewards = grader.grade([(f"reasoning_gym:{task}", f"\\boxed{{{answer}}}", entry), RIGHT])
    assert rewards[0] in (0.0, None) and rewards[1] == 1.0


def test_the_output_of_a_verifier_is_not_a_reward(grader):
    printed = text("print('[1.0, null, \"\"]', flush=True) or 0")
    assert grader.grade([printed, WRONG, RIGHT]) == [0.0, 0.0, 1.0]


def test_nothing_scored_stops_the_run(grader):
    with pytest.raises(GradersBroken, match=r"0 of 3 scored, by cause \{'raised': 3\}; the last: .*ValueError"):
        grader.grade([(RAISES, "\\boxed{two}", FACTORS)] * 3)
    assert grader.causes == {"raised": 3}


def test_errors():
    with pytest.raises(ValueError, match="unknown kind of reward 'maths'"):
        Grader().grade([("maths", "3", "3")])
    with pytest.raises(ValueError, match="near it: chain_sum"):
        Grader().grade([("reasoning_gym:chainsum", "3", {})])
    with pytest.raises(ValueError, match=r"reward\.workers is 0"):
        Grader(0)
    with pytest.raises(ValueError, match=r"reward\.cpu_seconds is 30\.0; .* \(0, 20\.0\]"):
        Grader(cpu_seconds=30.0, wall_seconds=20.0)
    with pytest.raises(ValueError, match="memory_mb >= 512, got 8"):
        Grader(memory_mb=8)


def test_a_nursery_that_does_not_start_is_an_error_and_the_next_one_starts(monkeypatch):
    nursery.close()
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with pytest.raises(GradersBroken, match=r"nursery did not start .* exit status 1\).*/bin/false"):
            Grader().grade([("exact", "3", "3")])
    with Grader() as grader:
        assert grader.grade([("exact", "3", "3")]) == [1.0]


def test_a_nursery_that_dies_costs_nothing(grader):
    assert grader.grade([RIGHT]) == [1.0]
    killed = nursery.current()  # asked for once: after the kill it would be a fresh one, which does not end
    os.kill(killed._process.pid, 9)
    killed._process.wait(WAIT_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # it ends with the nursery
        os.kill(grader._workers[0].pid, 9)
    assert grader.grade([RIGHT, WRONG]) == [1.0, 0.0]
    assert not grader.causes


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    """Any finite number is a reward; a response for which it raises, or returns None, is not scored."""
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(response, answer):\n    return -len(response) / answer if response else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Grader() as grader:
        rewards = grader.grade([("my_rewards:brevity", text, n) for text, n in (("abc", 2), ("", 2), ("abc", 0))])
        assert rewards == [-1.5, None, None]
        assert grader.causes == {"raised": 2}
        assert grader.grade([("format", "so \\boxed{7}", None), ("format", "so 7", None)]) == [1.0, 0.0]
        with pytest.raises(ValueError, match=r"'my_rewards:clarity' could not be imported \(AttributeError"):
            grader.grade([("my_rewards:clarity", "abc", 2)])


def test_close_ends_the_workers():
    with Grader(2) as grader:
        grader.grade([("exact", "a", "a")] * 2)
        pids = [worker.pid for worker in grader._workers]
    for pid in pids:
        with pytest.raises(ProcessLookupError, match="No such process"):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_no_process_is_left_when_the_trainer_is_killed(tmp_path):
    """A worker that waits without using CPU, and the nursery: both end with a trainer that had no time to end them."""
    code = (
        "import threading, time, test_grader as t\n"
        "grader = t.Grader(cpu_seconds=1, wall_seconds=100)\n"
        "grader.grade([t.RIGHT])\n"
        "print(grader._workers[0].pid, t.nursery.current()._process.pid, flush=True)\n"
        "grader.grade([t.text(\"__import__('threading').Event().wait()\")])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        started, _, _ = select.select([trainer.stdout], [], [], WAIT_SECONDS)
        pids = [int(pid) for pid in trainer.stdout.readline().split()] if started else []
        time.sleep(0.5)  # the worker most likely has the item by then; otherwise this test shows less
    finally:
        trainer.kill()
        trainer.wait(WAIT_SECONDS)
        trainer.stdout.close()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not left


def running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_workers_import_neither_jax_nor_transformers():
    worker = Path(entropy_rl.rewards.__file__).with_name("worker.py")
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['w', '1024', '1', 'exact,{GYM}']\n"
        f"runpy.run_path({str(worker)!r})['_bare_package']()\n"
        "from entropy_rl.rewards.verify import verifier\n"
        f"verifier({GYM!r})\n"
        "print([m for m in ('jax', 'flax', 'transformers', 'torch') if m in sys.modules])\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS)
    assert out.stdout.strip() == "[]"


def test_the_nursery_starts_before_it_knows_where_libraries_are():
    """They may be on the trainer's PYTHONPATH alone, which it is told with the first request; -S: no site-packages."""
    worker = Path(entropy_rl.rewards.__file__).with_name("worker.py")
    code = (
        f"import runpy, sys; runpy.run_path({str(worker)!r})['_bare_package']()\n"
        "from entropy_rl.rewards import sandbox\n"
        "from entropy_rl.rewards.verify import verifier\n"
        "print(verifier('exact')('a', 'a'))\n"
    )
    command = [sys.executable, "-S", "-P", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT_SECONDS, env={})
    assert out.stdout.strip() == "True"
