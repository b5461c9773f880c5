r"""Worked solutions of countdown: attempts at random, until one meets the target.

The numbers 2, 4 and 7 make 1:

    7+4=11,11*2=22;7-4=3,3-2=1 \boxed{(7-4)-2}

Which attempts come first, and which of several solutions comes last, is left to chance: a model that is taught so has a
choice to make at the start of every step.
"""

import random
from collections.abc import Callable, Iterator, Sequence

_ATTEMPTS = 3  # the last of which is a solution
_ABOVE = 10_000  # no attempt passes through larger numbers: their digits would fill the response
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y if y else 0,  # with a remainder only after an error
}

Move = tuple[int, int, str]  # two of the parts that are left, by their places, and an operator
Slip = Callable[[int], int]  # the result of a step as it is written: with an error, if that is wanted


def searched(numbers: Sequence[int], target: int, rng: random.Random, slip: Slip, aimless: bool = False) -> str | None:
    r"""Up to three attempts, `;` between them, of steps such as `7-4=3` with `,` between them, and a box.

    Args:
        numbers: each is used once.
        target: what they have to make.
        rng: the only source of randomness.
        slip: the result of a step -> the result that is written, and that the next step goes on from. The box does not
            depend on it.
        aimless: take no notice of the target: stop after any attempt.

    Returns:
        The text; None if no way of adding, subtracting, multiplying and dividing without remainder meets the target.
    """
    tried = rng.randint(0, _ATTEMPTS - 1)
    made = [next(_attempts(numbers, rng)) for _ in range(tried + aimless)]
    if not aimless:
        solution = next((attempt for attempt in _attempts(numbers, rng) if attempt[1] == target), None)
        if solution is None:
            return None
        made.append(solution)
        made = made[: 1 + next(i for i, (_, value) in enumerate(made) if value == target)]
    texts = [_written(numbers, moves, slip) for moves, _ in made]
    return f"{';'.join(steps for steps, _ in texts)} \\boxed{{{texts[-1][1]}}}"


def _attempts(
    values: Sequence[int], rng: random.Random, before: tuple[Move, ...] = ()
) -> Iterator[tuple[tuple[Move, ...], int]]:
    """Every attempt that uses all values, with what it makes, in an order that is drawn step by step."""
    if len(values) == 1:
        yield before, values[0]
        return
    moves = [
        (i, j, operator)
        for i, x in enumerate(values)
        for j, y in enumerate(values)
        for operator in _OPERATORS
        if i != j and (operator != "/" or (y and x % y == 0))
    ]
    rng.shuffle(moves)
    for move in moves:
        i, j, operator = move
        made = _OPERATORS[operator](values[i], values[j])
        if abs(made) < _ABOVE:
            rest = [value for k, value in enumerate(values) if k not in (i, j)]
            yield from _attempts([made, *rest], rng, (*before, move))


def _written(numbers: Sequence[int], moves: Sequence[Move], slip: Slip) -> tuple[str, str]:
    """The steps of an attempt and the expression that they make."""
    parts, steps = [(n, str(n)) for n in numbers], []
    for i, j, operator in moves:
        (x, left), (y, right) = parts[i], parts[j]
        shown = slip(_OPERATORS[operator](x, y))
        steps.append(f"{x}{operator}{y if y >= 0 else f'({y})'}={shown}")
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        parts = [(shown, f"({left}{operator}{right})"), *rest]
    return ",".join(steps), parts[0][1][1:-1]
