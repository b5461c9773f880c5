"""Several sources as one, with exact shares."""

from collections.abc import Callable, Mapping
from typing import Any

from entropy_rl.data.tasks import Problem


class Mixture:
    """A weighted mixture: of every W = Σ weights problems in a row, exactly `weight` come from each part.

    Which part place i takes depends on i mod W alone, spread out as evenly as it goes, and every part goes on where
    its own share of the places before ended: so a step can be asked for by itself.

    Args:
        parts: name -> (source, weight), weights whole numbers above 0.

    Raises:
        ValueError: no part, or a weight that is no whole number.
    """

    name = "mixture"

    def __init__(self, parts: Mapping[str, tuple[Any, int]]):
        if not parts:
            raise ValueError("data.task='mixture' needs parts in data.mixture: name -> {task, settings, weight}")
        for name, (_, weight) in parts.items():
            if not isinstance(weight, int) or weight < 1:
                raise ValueError(f"data.mixture.{name}.weight={weight!r} must be a whole number above 0")
        self.parts = {name: source for name, (source, _) in parts.items()}
        self._weights = {name: weight for name, (_, weight) in parts.items()}
        self._pattern = _spread(self._weights)

    def train(self, step: int, n: int, round: int = 0, start: int | None = None) -> list[Problem]:
        """n problems of the parts in turn, a pure function of (seed, step, round); see the sources' own."""
        first = max(0, step - 1) * n if start is None else start
        whole, rest = divmod(first, len(self._pattern))
        places = [self._pattern[(first + i) % len(self._pattern)] for i in range(n)]
        taken = {}
        for name, source in self.parts.items():
            if count := places.count(name):
                begin = whole * self._weights[name] + self._pattern[:rest].count(name)
                taken[name] = iter(source.train(step, count, round, begin))
        return [next(taken[name]) for name in places]

    def held_out(self, n: int) -> list[Problem]:
        """Nothing as a whole: its parts hold out."""
        raise ValueError("a mixture holds nothing out: evaluate its parts, or name sets in eval.sets")

    def withhold(self, questions: frozenset[int]) -> int:
        """Takes these questions out of every part's training; how many there were."""
        return sum(source.withhold(questions) for source in self.parts.values())

    def fit(self, fault: Callable[[Problem], str | None], bad_rows: str) -> None:
        """Every part's `fit`."""
        for source in self.parts.values():
            source.fit(fault, bad_rows)

    @property
    def digest(self) -> str:
        """The parts' digests."""
        return "; ".join(f"{name}: {source.digest}" for name, source in self.parts.items())


def _spread(weights: Mapping[str, int]) -> list[str]:
    """One window, every place given to the part that is furthest behind its share."""
    pattern: list[str] = []
    total = sum(weights.values())
    for place in range(1, total + 1):
        pattern.append(max(weights, key=lambda name: weights[name] * place - total * pattern.count(name)))
    return pattern
