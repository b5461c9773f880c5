r"""Is a right answer one that responses can be graded with? Found out before work, by grading it against itself."""

import math
import re
from collections.abc import Sequence
from typing import Any

from entropy_rl.rewards.grader import Grader
from entropy_rl.rewards.verify import REASONING_GYM, is_own

# What an empty cell or a division by zero becomes on its way through pandas or str().
_NO_ANSWER = re.compile(r"\s*(?:nan|<na>|nat|[+-]?inf(?:inity)?|)\s*", re.IGNORECASE)
_SHOWN = 60  # characters of an answer in a message


def gold_problem(answer: Any, kind: str) -> str | None:
    """The reason why an answer cannot be a right answer, as far as it shows without a verifier; None if there is none.

    >>> gold_problem(float("nan"), "math")
    'the answer is nan, not a finite number'
    >>> gold_problem("42", "math")

    Args:
        answer: as it is in the data: a text or a number, or for reasoning_gym the data set's entry.
        kind: the verifier, as in `rewards.score`. "format" and functions of the user's own take any answer.
    """
    if kind == "format" or is_own(kind):
        return None
    if kind.startswith(REASONING_GYM):
        return (
            None if isinstance(answer, dict) else f"the answer is a {type(answer).__name__}, not an entry of the task"
        )
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        return f"the answer is {_shown(answer)}, a {type(answer).__name__}; it must be a text or a number"
    if isinstance(answer, float) and not math.isfinite(answer):
        return f"the answer is {answer!r}, not a finite number"
    if _NO_ANSWER.fullmatch(str(answer)):
        return f"the answer is {answer!r}: there is none"
    return None


def gold_problems(grader: Grader, golds: Sequence[tuple[Any, str]]) -> list[str | None]:
    """The reason why each right answer cannot be used, or None: `gold_problem`, and it must score 1 against itself.

    Args:
        grader: grades them, within its limits: an answer that takes too long to compare with itself is refused.
        golds: (answer, kind) pairs. Of an entry of reasoning_gym whose own answer is no text nothing is graded.

    Raises:
        ValueError: If a kind is unknown or its library is missing.
    """
    problems = [gold_problem(answer, kind) for answer, kind in golds]
    asked = {
        i: (kind, f"\\boxed{{{text}}}" if kind == "math" else f"<answer>{text}</answer>", answer)
        for i, (answer, kind) in enumerate(golds)
        if problems[i] is None and (text := _own_text(answer, kind)) is not None
    }
    for i, reward in zip(asked, grader.grade(list(asked.values()), local=True)):
        kind, _, answer = asked[i]
        text = _shown(answer["answer"] if isinstance(answer, dict) else answer)
        if reward is None:
            problems[i] = f"the verifier of kind {kind!r} cannot read the answer {text}, or cannot finish computing it"
        elif reward < 1.0:
            problems[i] = f"the answer {text} scores {reward:g} against itself by the verifier of kind {kind!r}"
    return problems


def _own_text(answer: Any, kind: str) -> str | None:
    """The answer as a response gives it; None if nothing can be graded."""
    if kind == "format" or is_own(kind):
        return None
    if isinstance(answer, dict):
        text = answer.get("answer")
        return text if isinstance(text, str) else None
    return str(answer)


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
