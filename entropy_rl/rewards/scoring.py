"""Scores responses from a notebook or a script, in a grader's processes that are kept for the next call."""

import atexit
import os
import threading
from collections.abc import Sequence
from typing import Any

from entropy_rl.rewards.grader import Grader

_WORKERS = min(4, os.cpu_count() or 1)  # started as they are needed: one response needs one

_lock = threading.Lock()
_grader: Grader | None = None


def score(kind: str, response: str, answer: Any) -> float | None:
    r"""The reward of one response: 1.0 if it is right, 0.0 if it is wrong, None if it could not be scored.

    Some texts keep a verifier busy forever (9**9**9**9), and a function of your own may run code from one. So it is
    graded in a separate process with a `Grader`'s limits (2 s of CPU time, 1 GiB), as in training. The first call
    takes a second or two, later ones milliseconds; `score_all` scores many responses at once.

    The verifiers of reasoning-gym also give fractions of a point, for a well-formed wrong answer (0.01, 0.05), for an
    answer that contains the right one ("34" for "3": 0.5) and for a near miss. Here these are not rewards: the reward
    is 1.0 if the verifier gives its full point, and 0.0 otherwise.

    >>> score("exact", r"so it is \boxed{Paris}", "Paris")
    1.0

    Args:
        kind: the verifier. "math": the answer must be in a `\boxed{}`, and is compared by its meaning. "exact": equal
            strings, but for markup around them. "reasoning_gym:<task>": the task's own verifier. "format": 1.0 if there
            is an answer in a `\boxed{}`, right or wrong. "module:function": your own verifier, which is called with
            (response, answer), where response is the whole text, and returns any finite number, or None if it cannot
            judge. It is imported from Python's module path: a function defined in a notebook's cell is not there.
        response: the model's text. Without an answer (see `extract_answer`) it scores 0.0.
        answer: the right answer, a string; for reasoning_gym the data set's entry, a dict.

    Raises:
        ValueError: If the kind is unknown, or its library is not installed; the message names it.
    """
    return score_all(kind, [response], [answer])[0]


def score_all(kind: str, responses: Sequence[str], answers: Sequence[Any]) -> list[float | None]:
    r"""The rewards of several responses, as from `score`.

    >>> score_all("math", [r"\boxed{0.5}", r"\boxed{2}"], ["1/2", "1/2"])
    [1.0, 0.0]

    Args:
        kind: the verifier.
        responses: the model's texts.
        answers: the right answer of each response, in the same order.

    Raises:
        ValueError: If there are not as many answers as responses, or as in `score`.
    """
    global _grader
    if isinstance(answers, (str, dict)) or len(answers) != len(responses):
        count = "one" if isinstance(answers, (str, dict)) else len(answers)
        raise ValueError(f"score_all needs an answer for each response: {len(responses)} responses, answers: {count}")
    with _lock:  # a grader's workers serve one batch at a time
        if _grader is None:
            _grader = Grader(_WORKERS)
        items = [(kind, response, answer) for response, answer in zip(responses, answers)]
        try:
            return _grader.grade(items, local=True)
        except ValueError:  # its workers were asked for a kind that there is not, and would be again
            _grader.close()
            _grader = None
            raise


@atexit.register
def close() -> None:
    """Ends the processes; the next call starts new ones."""
    global _grader
    with _lock:
        if _grader is not None:
            _grader.close()
        _grader = None
