r"""Verifiers by kind: is this response's answer right?

Imported by the grader's worker processes, which must start fast: no JAX, no transformers, and each verifier's
library only where it is used.
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
    r"""The reward of one response: 1.0 right, 0.0 wrong, None where it could not be scored.

    Runs in this process with no limit of time or memory, and some verifiers evaluate what the model wrote:
    for responses that nobody has read, use `Grader`.

    Args:
        kind: "math" (the answer must stand in `\boxed{}`, compared by math-verify), "exact" (equal strings),
            "reasoning_gym:<task>" (the task's verifier), "format" (1.0 where there is an answer in a `\boxed{}`,
            right or wrong), or "module:function", a verifier of your own: called with (response, answer), the
            whole text of the response, it returns any finite number, or None where it cannot tell.
        response: the model's text. One with no answer in it (see `extract_answer`) scores 0.0.
        answer: the right answer: a string, or the data set's entry, a dict, for reasoning_gym.

    reasoning-gym's verifiers also give parts of a point, for a well-formed wrong answer (0.01, 0.05), for an
    answer that contains the right one ("34" for "3": 0.5), for a near miss. These are no rewards here: a
    verifiable reward is 1.0 where the verifier gives its full point, else 0.0.

    Raises:
        ValueError: unknown kind. ImportError: its library is not installed; the message says which.
    """
    judge = verifier(kind)
    try:
        return judge_response(judge, kind, response, answer)
    except Exception:
        return None


def judge_response(judge: Callable[[str, Any], float], kind: str, response: str, answer: Any) -> float:
    """`score` with the verifier in hand, which passes on whatever that raises."""
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
    """Whether a kind is a function of the user's own, whose rewards may be any number."""
    return not kind.startswith(REASONING_GYM) and OWN_KIND.fullmatch(kind) is not None


@functools.cache
def verifier(kind: str) -> Callable[[str, Any], float]:
    """The function (given, answer) -> points of a kind, with its library imported. Raises as `score` does."""
    if kind == "format":
        return lambda given, answer: True
    if is_own(kind):
        return _own(kind)
    if kind == "exact":
        return lambda given, answer: given == str(answer).strip()
    if kind == "math":
        return _math()
    if kind.startswith(REASONING_GYM):
        return _reasoning_gym(kind.removeprefix(REASONING_GYM))
    raise ValueError(
        f"unknown kind of reward {kind!r}; there are 'math', 'exact', 'format', "
        "'reasoning_gym:<task>' and 'module:function'"
    )


def _own(kind: str) -> Callable[[str, Any], float]:
    module, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module's own code runs here
        raise ValueError(
            f"reward kind {kind!r} could not be imported ({type(error).__name__}: {error}); it is looked for on the "
            "path that python runs with"
        ) from error
    if not callable(found):
        raise ValueError(f"reward kind {kind!r} is a {type(found).__name__}, not a function")
    return found


def _math() -> Callable[[str, Any], float]:
    try:
        import math_verify
    except ImportError as error:
        raise ImportError("rewards of kind 'math' need math-verify: pip install math-verify") from error

    # Its own limits use SIGALRM, which works on the main thread only; the grader has limits of its own, and
    # the library's warnings that there are none would only alarm.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parse = functools.partial(math_verify.parse, parsing_timeout=None)

    def judge(given: str, answer: Any) -> float:
        right = str(answer)
        boxed = extract_boxed(right)
        gold = parse(f"\\boxed{{{right.strip().strip('$') if boxed is None else boxed}}}")
        if not gold:
            raise ValueError(f"math-verify cannot read the right answer {right!r}")
        return math_verify.verify(gold, parse(f"\\boxed{{{given}}}"), timeout_seconds=None)

    judge("\\frac{1}{2}", "0.5")  # the first parse builds its grammar, a cost that is no response's own
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
