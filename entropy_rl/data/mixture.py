"""Several sources as one, with exact shares."""

import math
from collections.abc import Mapping

from entropy_rl.data.source import Fault, Problem, Source, check_step

_MOST = 1_000_000  # sum of the weights: the part of each place is kept


class Mixture:
    """A weighted mixture: of any W = Σ weights consecutive problems, exactly `weight` come from each part.

    The part that fills place i depends only on i mod W, and the parts' places are spread as evenly as possible. Each
    part continues in its own order where its earlier places ended, so any step can be asked for directly.

    Args:
        parts: name -> (source, weight); weights are whole numbers above 0.

    Raises:
        ValueError: If there is no part, a weight is not a whole number above 0, or they add up to more than a million
            after they are divided by what they have in common.
    """

    name, kind = "mixture", ""

    def __init__(self, parts: Mapping[str, tuple[Source, int]]):
        if not parts:
            raise ValueError("data.task='mixture' needs parts in data.mixture: name -> {task, settings, weight}")
        for name, (_, weight) in parts.items():
            if not isinstance(weight, int) or weight < 1:
                raise ValueError(f"data.mixture.{name}.weight={weight!r} must be a whole number above 0")
        self.parts = {name: source for name, (source, _) in parts.items()}
        common = math.gcd(*(weight for _, weight in parts.values()))
        self._weights = {name: weight // common for name, (_, weight) in parts.items()}
        if (total := sum(self._weights.values())) > _MOST:
            raise ValueError(f"data.mixture: the weights add up to {total}, more than {_MOST}; round them")
        self._pattern = _spread(self._weights)

    def train(self, step: int, n: int, refill_round: int = 0, start: int | None = None) -> list[Problem]:
        """n problems from the parts in turn; see `Source.train`."""
        check_step(step)
        first = (step - 1) * n if start is None else start
        whole, rest = divmod(first, len(self._pattern))
        places = [self._pattern[(first + i) % len(self._pattern)] for i in range(n)]
        taken = {}
        for name, source in self.parts.items():
            if count := places.count(name):
                begin = whole * self._weights[name] + self._pattern[:rest].count(name)
                taken[name] = iter(source.train(step, count, refill_round, begin))
        return [next(taken[name]) for name in places]

    @property
    def stored(self) -> list[Problem]:
        """The problems that the parts hold."""
        return [problem for source in self.parts.values() for problem in source.stored]

    def held_out(self, n: int) -> list[Problem]:
        """Raises ValueError: the parts hold problems out, the mixture as a whole does not."""
        raise ValueError("a mixture holds nothing out: evaluate its parts, or name sets in eval.sets")

    def kept_out(self, n: int) -> list[Problem]:
        """Raises ValueError, as `held_out` does."""
        return self.held_out(n)

    def withhold(self, questions: frozenset[int]) -> int:
        """Removes these questions from every part's training; returns the number removed from all parts."""
        return sum(source.withhold(questions) for source in self.parts.values())

    def fit(self, fault: Fault, bad_rows: str) -> None:
        """Calls `fit` of every part."""
        for source in self.parts.values():
            source.fit(fault, bad_rows)

    @property
    def digest(self) -> str:
        """The digests of the parts."""
        return "; ".join(f"{name}: {source.digest}" for name, source in self.parts.items())


def _spread(weights: Mapping[str, int]) -> list[str]:
    """W part names: each place goes to the part that is furthest below its share so far."""
    pattern: list[str] = []
    total = sum(weights.values())
    lag = dict.fromkeys(weights, 0)
    for _ in range(total):
        for name, weight in weights.items():
            lag[name] += weight
        pattern.append(max(lag, key=lag.__getitem__))
        lag[pattern[-1]] -= total
    return pattern
