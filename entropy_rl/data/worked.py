r"""Worked solutions for the supervised warm-up, in several formats and with deliberate errors.

A model that is taught in several ways, some of them wrong, leaves a choice to reinforcement learning: this choice is
the entropy that the rest of this code observes. All texts end in `\boxed{answer}`.

The three formats for 47 + 85 are

    digits with carries     7+5=12,4+8+1=13 \boxed{132}
    parts by place          120+12=132 \boxed{132}
    counting on             47+80=127+5=132 \boxed{132}
"""

import random
import re

from entropy_rl.data.search import searched
from entropy_rl.data.source import Problem
from entropy_rl.rewards.answer import extract_boxed


def worked_solution(problem: Problem, rng: random.Random, error_rate: float, misread_rate: float = 0.0) -> str:
    r"""A worked solution ending in `\boxed{answer}`.

    The solution of a chain_sum problem has one of three formats, drawn from rng. Each arithmetic step is wrong with
    probability error_rate, by one unit of its place, and the error carries over into the answer. With probability
    misread_rate, the solution reads every minus as a plus: a model that learns from such texts has a choice to make
    wherever there is a minus, and the choice is the same in every problem.

    The solution of a countdown problem is a search, see `data/search.py`, whose steps may be wrong likewise, though not
    the expression in its box. With probability misread_rate, it takes no notice of the target.

    The solution of a gsm_symbolic problem is the entry's own. So is that of a problem from a file with
    `data.settings.solution`, with the answer added if it has no box.

    Args:
        problem: of kind "reasoning_gym:chain_sum", "reasoning_gym:countdown" or "reasoning_gym:gsm_symbolic", or with a
            solution.
        rng: the only source of randomness; the text is a pure function of the arguments and the state of rng.
        error_rate: probability of an error at each step, in [0, 1].
        misread_rate: probability of a solution that misreads, in [0, 1].

    Raises:
        ValueError: If the task has no worked solutions, or a rate is outside [0, 1] or above 0 for a solution that is
            not generated.
    """
    given = ""  # the origin of a solution that is not generated
    if problem.solution:
        given = "a file"
    elif problem.kind == "reasoning_gym:gsm_symbolic":
        given = "gsm_symbolic"
    rates = {"error_rate": error_rate, "misread_rate": misread_rate}
    for key, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"warmup.{key} is {rate}; it is a probability, from 0 to 1")
    for key, rate in rates.items():
        if given and rate:
            raise ValueError(f"warmup.{key} is {rate}, but the solutions of {given} are ready-made; set it to 0")
    if problem.solution:
        return _boxed(problem.solution, problem.answer)
    if problem.kind == "reasoning_gym:chain_sum":
        expression = problem.entry["metadata"]["expression"]
        if misread_rate and rng.random() < misread_rate:
            expression = expression.replace("- ", "+ ")
        return _chain_sum(expression, rng, error_rate)
    if problem.kind == "reasoning_gym:gsm_symbolic":
        return _gsm_symbolic(problem)
    if problem.kind == "reasoning_gym:countdown":
        return _countdown(problem, rng, error_rate, rng.random() < misread_rate)
    raise ValueError(
        f"warmup.updates: {problem.kind} has no worked solutions to learn from; "
        "set it to 0, use chain_sum, countdown, gsm_symbolic or a file with data.settings.solution as data.task, or "
        "name another source in warmup.task"
    )


def _gsm_symbolic(problem: Problem) -> str:
    solution = problem.entry["metadata"].get("answer_cot")
    if not solution:
        raise ValueError(f"warmup.updates: problem {problem.uid} of gsm_symbolic has no worked solution")
    return _boxed(solution, problem.entry["answer"])


def _countdown(problem: Problem, rng: random.Random, error_rate: float, aimless: bool) -> str:
    given = problem.entry["metadata"]
    text = searched(given["numbers"], given["target"], rng, lambda x: _slip(x, rng, error_rate), aimless)
    if text is None:
        raise ValueError(
            f"warmup.updates: problem {problem.uid} of countdown, {given['expression']}, has no solution in whole "
            "numbers; leave '/' out of data.settings.operators"
        )
    return text


def _boxed(solution: str, answer: str) -> str:
    """The solution without GSM8K's marks (`#### 12`, `<<3*4=12>>`), with a box at the end if it has none."""
    if extract_boxed(solution):
        return solution
    steps = re.sub(r"\s*####.*\Z", "", re.sub(r"<<[^<>]*>>", "", solution), flags=re.DOTALL).rstrip()
    return f"{steps}\n\\boxed{{{answer}}}"


def _chain_sum(expression: str, rng: random.Random, error_rate: float) -> str:
    first, *rest = expression.split()
    terms = [int(term) if operator == "+" else -int(term) for operator, term in zip(rest[::2], rest[1::2], strict=True)]
    add = rng.choice((_by_digits, _by_parts, _by_counting))
    total, texts = int(first), []
    for term in terms:
        text, total = add(total, term, rng, error_rate)
        texts.append(text)
    return f"{';'.join(texts)} \\boxed{{{total}}}".lstrip()


def _by_digits(x: int, y: int, rng: random.Random, error_rate: float) -> tuple[str, int]:
    # Column by column on magnitudes, with the larger number on top; the result has its sign.
    large, small = (x, y) if abs(x) >= abs(y) else (y, x)
    subtract = (large < 0) != (small < 0) and small != 0
    width = len(str(abs(large)))
    tops, bottoms = _digits(large, width), _digits(small, width)
    steps, carry, magnitude = [], 0, 0
    for place, (top, bottom) in enumerate(zip(tops, bottoms, strict=True)):
        extra = ("-1" if subtract else "+1") if carry else ""
        if subtract:
            borrow = top - bottom - carry < 0
            top += 10 * borrow
            result = _slip(top - bottom - carry, rng, error_rate, low=0, high=9)
            steps.append(f"{top}-{bottom}{extra}={result}")
            digit, carry = result, int(borrow)
        else:
            result = _slip(top + bottom + carry, rng, error_rate, low=0, high=19)
            steps.append(f"{top}+{bottom}{extra}={result}")
            last = place == width - 1
            digit, carry = (result, 0) if last else (result % 10, result // 10)
        magnitude += digit * 10**place
    return ",".join(steps), -magnitude if large < 0 else magnitude


def _by_parts(x: int, y: int, rng: random.Random, error_rate: float) -> tuple[str, int]:
    width = max(len(str(abs(x))), len(str(abs(y))))
    sign_x, sign_y = (-1 if x < 0 else 1), (-1 if y < 0 else 1)
    parts = []
    for place, (a, b) in enumerate(zip(_digits(x, width), _digits(y, width), strict=True)):
        unit = 10**place
        parts.append(_slip((sign_x * a + sign_y * b) * unit, rng, error_rate, unit))
    if width == 1:
        return str(parts[0]), parts[0]
    total = _slip(sum(parts), rng, error_rate, unit=10 ** rng.randrange(width))
    text = str(parts[-1]) + "".join(f"{part:+d}" for part in reversed(parts[:-1]))
    return f"{text}={total}", total


def _by_counting(x: int, y: int, rng: random.Random, error_rate: float) -> tuple[str, int]:
    width = len(str(abs(y)))
    sign = -1 if y < 0 else 1
    text, total = str(x), x
    moves = [(10**p, sign * d * 10**p) for p, d in enumerate(_digits(y, width)) if d] or [(1, 0)]
    for unit, move in reversed(moves):
        total = _slip(total + move, rng, error_rate, unit)
        text += f"{move:+d}={total}"
    return text, total


def _digits(x: int, width: int) -> list[int]:
    """The digits of |x|, ones first, padded with zeros to the width."""
    return [int(c) for c in reversed(str(abs(x)).zfill(width))]


def _slip(
    value: int,
    rng: random.Random,
    error_rate: float,
    unit: int = 1,
    low: int | None = None,
    high: int | None = None,
) -> int:
    """The value, or with probability error_rate a value that is one unit off and stays within [low, high]."""
    if rng.random() >= error_rate:
        return value
    near = (value - unit, value + unit)
    return rng.choice([v for v in near if (low is None or v >= low) and (high is None or v <= high)])
