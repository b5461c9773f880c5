"""Where a response of a bed decides something: the tokens whose entropy claim 7 compares with all others'.

A  the place where the two readings of the first minus part, as long as the response is right up to there
B  the first number and the operator of every step
D  no place is known; tokens are put into three groups instead
"""

import itertools
import random
import re
from collections.abc import Iterator, Sequence

import numpy as np

from entropy_rl.data import Problem
from entropy_rl.data.worked import worked_solution

STEP = re.compile(r"(?:^|(?<=[,;]))(?:-?\d+|\(-?\d+\))[-+*/]")  # of a search: its first number and its operator
GROUPS = ("digits and signs", "continued words", "other tokens")


class _Format(random.Random):
    """A source of randomness that always takes the same one of a sum's three formats."""

    def __init__(self, number: int):
        super().__init__(0)
        self.number = number

    def choice(self, options: Sequence) -> object:
        return options[self.number % len(options)]


def readings(problem: Problem) -> Iterator[tuple[str, str]]:
    """The worked sum without errors as it is and as it is misread, in each of the three formats."""
    for number in range(3):
        yield tuple(worked_solution(problem, _Format(number), 0.0, misread_rate=rate) for rate in (0.0, 1.0))


def of_two_readings(problem: Problem, text: str) -> set[int]:
    """The characters of a response at which a sum's two readings part."""
    found = set()
    for right, wrong in readings(problem):
        parts = next((i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), None)
        if parts is not None and text[:parts] == right[:parts]:
            found.add(parts)
    return {i for i in found if i < len(text)}


def of_search(problem: Problem, text: str) -> set[int]:
    """The characters of the first number and the operator of every step of a search."""
    del problem
    steps = text.partition("\\boxed")[0]
    return {i for found in STEP.finditer(steps) for i in range(*found.span())}


BEDS = {"chain_sum": of_two_readings, "countdown": of_search}


def tokens_at(characters: set[int], pieces: Sequence[str]) -> np.ndarray:
    """bool[T]: the tokens that have one of these characters of the text that the pieces make."""
    ends = list(itertools.accumulate(map(len, pieces)))
    return np.array([any(i in characters for i in range(end - len(p), end)) for p, end in zip(pieces, ends)], bool)


def group_of(piece: str, before: str) -> str:
    """Which of `GROUPS` a token is in, by its text and that of the token before it."""
    if re.fullmatch(r"\s*[-\d+*/=.,;:(){}\\]+\s*", piece):
        return GROUPS[0]
    return GROUPS[1] if piece[:1].isalpha() and before[-1:].isalpha() else GROUPS[2]
