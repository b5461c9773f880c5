r"""Verifiers by kind: is the answer of this response right?

The grader's worker processes import this module and must start fast: it imports neither JAX nor transformers, and the
library of a verifier only when that verifier is used.
"""

import difflib
import functools
import importlib
import logging
import math
import re
from collections.abc import Callable
from typing import Any

from entropy_rl.rewards.answer import extract_answer, extract_boxed

REASONING_GYM = "reasoning_gym:"
OWN_KIND = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function


def score(kind: str, response: str, answer: Any) -> float | None:
    r"""The reward of one response: 1.0 if it is right, 0.0 if it is wrong, None if it could not be scored.

    It runs in this process without a limit on time or memory, and some verifiers evaluate the text that the model
    wrote: use `Grader` for responses that nobody has read.

    The verifiers of reasoning-gym also give fractions of a point, for a well-formed wrong answer (0.01, 0.05), for an
    answer that contains the right one ("34" for "3": 0.5) and for a near miss. Here these are not rewards: the reward
    is 1.0 if the verifier gives its full point, and 0.0 otherwise.

    >>> score("exact", r"so it is \boxed{Paris}", "Paris")
    1.0

    Args:
        kind: the verifier. "math": the answer must be in a `\boxed{}`, and math-verify compares it. "exact": equal
            strings. "reasoning_gym:<task>": the task's own verifier. "format": 1.0 if there is an answer in a
            `\boxed{}`, right or wrong. "module:function": your own verifier, which is called with (response, answer),
            where response is the whole text, and returns any finite number, or None if it cannot judge.
        response: the model's text. Without an answer (see `extract_answer`) it scores 0.0.
        answer: the right answer, a string; for reasoning_gym the data set's entry, a dict.

    Raises:
        ValueError: If the kind is unknown.
        ImportError: If its library is not installed; the message names it.
    """
    judge = verifier(kind)
    try:
        return judge_response(judge, kind, response, answer)
    except Exception:
        return None


def judge_response(judge: Callable[[str, Any], float], kind: str, response: str, answer: Any) -> float:
    """`score` with a given verifier; does not catch the errors that the verifier raises."""
    if is_own(kind):
        value = judge(response, answer)
        if value is None or not math.isfinite(value):
            raise ValueError(f"{kind} gave {value!r}")
        return float(value)
    if kind == "format":
        return 1.0 if extract_boxed(response) else 0.0
    given = extract_boxed(response) if kind == "math" else extract_answer(response)
    if not given:
        return 0.0
    value = float(judge(given, answer))
    if math.isnan(value):
        raise ValueError("the verifier gave NaN")
    return 1.0 if value >= 1.0 else 0.0


def is_own(kind: str) -> bool:
    """Whether a kind is the user's own function, whose rewards may be any finite number."""
    return not kind.startswith(REASONING_GYM) and OWN_KIND.fullmatch(kind) is not None


@functools.cache
def verifier(kind: str) -> Callable[[str, Any], float]:
    """The function (given, answer) -> points of a kind, with its library imported.

    Raises:
        ValueError: If the kind is unknown.
        ImportError: If its library is not installed.
    """
    if kind == "format":
        return _any_answer
    if is_own(kind):
        return _own(kind)
    if kind == "exact":
        return _same_text
    if kind == "math":
        return _math()
    if kind.startswith(REASONING_GYM):
        return _reasoning_gym(kind.removeprefix(REASONING_GYM))
    raise ValueError(
        f"unknown kind of reward {kind!r}; the kinds are 'math', 'exact', 'format', "
        "'reasoning_gym:<task>' and 'module:function'"
    )


def _any_answer(given: str, answer: Any) -> float:
    return True


def _same_text(given: str, answer: Any) -> float:
    return given == str(answer).strip()


def _own(kind: str) -> Callable[[str, Any], float]:
    module, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module's own code runs here
        raise ValueError(
            f"reward kind {kind!r} could not be imported ({type(error).__name__}: {error}); it is looked up on "
            "Python's module path (sys.path)"
        ) from error
    if not callable(found):
        raise ValueError(f"reward kind {kind!r} is a {type(found).__name__}, not a function")
    return found


def _math() -> Callable[[str, Any], float]:
    try:
        import math_verify
    except ImportError as error:
        raise ImportError("rewards of kind 'math' need math-verify: pip install math-verify") from error

    # The library's limits use SIGALRM, which works only on the main thread; the grader has its own limits, so the
    # library's warnings that they are turned off would only alarm.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parse = functools.partial(math_verify.parse, parsing_timeout=None)

    def judge(given: str, answer: Any) -> float:
        right = str(answer)
        boxed = extract_boxed(right)
        gold = parse(f"\\boxed{{{right.strip().strip('$') if boxed is None else boxed}}}")
        if not gold:
            raise ValueError(f"math-verify cannot read the right answer {right!r}")
        return math_verify.verify(gold, parse(f"\\boxed{{{given}}}"), timeout_seconds=None)

    judge("\\frac{1}{2}", "0.5")  # the first parse builds the grammar, whose cost must not count against a response
    return judge


def _reasoning_gym(task: str) -> Callable[[str, Any], float]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(f"rewards of kind 'reasoning_gym:{task}' need it: pip install reasoning-gym") from error
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = ", ".join(difflib.get_close_matches(task, DATASETS, n=3)) or "none"
        raise ValueError(f"reward kind 'reasoning_gym:{task}': reasoning-gym has no such task; near it: {near}")
    return reasoning_gym.get_score_answer_fn(task)
