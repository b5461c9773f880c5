r"""Verifiers by kind: is the answer of this response right?

The grader's worker processes import this module and must start fast: it imports neither JAX nor transformers, and the
library of a verifier only when that verifier is used.
"""

import contextlib
import functools
import importlib
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from entropy_rl.rewards import gym
from entropy_rl.rewards.answer import extract_answer, extract_boxed
from entropy_rl.rewards.wrappers import plain

REASONING_GYM = "reasoning_gym:"
_ESCAPED = re.compile(r"\\([%$#&_{}])")
OWN_KIND = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function


def judge_response(judge: Callable[[str, Any], float], kind: str, response: str, answer: Any) -> float:
    """The reward of a response, in this process; see `rewards.score`.

    Args:
        judge: the kind's `verifier`.
        kind: the kind.
        response: the model's text.
        answer: the right answer, or the data set's entry.

    Raises:
        ValueError: If the verifier gives no number. Whatever else the verifier raises is not caught.
    """
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
    right = str(answer).strip()
    return given == right or _written(given) == _written(right)


def _written(answer: str) -> str:
    r"""The answer without markup, and without the backslashes that TeX needs: 50\% is 50%."""
    return _ESCAPED.sub(r"\1", unicodedata.normalize("NFC", plain(answer)))


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
        import math_verify  # noqa: F401

        from entropy_rl.rewards import mathematics
    except ImportError as error:
        raise ImportError("rewards of kind 'math' need math-verify: pip install math-verify") from error
    mathematics.judge("\\frac{1}{2}", "0.5")  # the first parse builds the grammar: its cost is no response's
    return mathematics.judge


def _reasoning_gym(task: str) -> Callable[[str, Any], float]:
    points = gym.verifier(task)

    def judge(given: str, entry: Any) -> float:
        if (bare := plain(given)) != given:
            with contextlib.suppress(Exception):  # then the answer is judged as it is
                if points(bare, entry) >= 1.0:
                    return 1.0
        return points(given, entry)

    return judge
