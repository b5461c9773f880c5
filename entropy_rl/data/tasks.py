"""Problems of a reasoning-gym task, as a pure function of (seed, step).

reasoning-gym draws item i of a data set with seed s from Random(s + i). Each step therefore has its own range of 2^32
such numbers, and each run's seed has its own hashed block of ranges: no two steps share a draw.
"""

import dataclasses
import difflib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from entropy_rl.data.source import Fault, Problem, Source, check_step, hash_text, question_key

# Items are drawn from data sets of this size: some tasks lay out `size` items when they are created.
_CHUNK = 256
# Draws allowed per requested problem (times the modulus for held-out ones) before the space is called too small.
# Drawing n distinct problems from a space of exactly n takes about n·log n draws.
_DRAWS_PER_PROBLEM = 50
_STEP_RANGE = 2**32
_ROUND_RANGE = 2**28


class Task:
    """A reasoning-gym task, with a fixed split into training and held-out problems.

    A question is held out if uid % held_out_modulus == 0, which depends only on its text: a training problem can never
    be a held-out one, however small the space and whatever the seed.

    Args:
        name: a reasoning-gym task, such as "chain_sum" (`data.task`).
        settings: fields of that task's configuration (`data.settings`).
        seed: the run's seed; determines the training problems but not the held-out ones.
        held_out_modulus: one question in this many is held out.

    Raises:
        ValueError: If the task or a setting is unknown, or the task refuses a setting.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], seed: int, held_out_modulus: int = 10):
        self._dataset_class, self._config_class = _find_task(name)
        legal = sorted({f.name for f in dataclasses.fields(self._config_class)} - {"seed", "size"})
        for key in settings:
            if key not in legal:
                raise ValueError(f"data.settings.{key}: {name} has no such setting; it has {', '.join(legal)}")
        if held_out_modulus < 2:
            raise ValueError(f"held_out_modulus is {held_out_modulus}; 2 or more leaves something to train on")
        self.name, self.kind, self.seed = name, f"reasoning_gym:{name}", seed
        self.settings, self.held_out_modulus = dict(settings), held_out_modulus
        self._block = hash_text(f"train {seed}", 8) << 64
        self._held_out: list[Problem] = []
        self._withheld: frozenset[int] = frozenset()
        self._fault: Fault = _no_fault
        self._dataset(0)  # runs the task's own checks before any work

    def train(self, step: int, n: int, refill_round: int = 0, start: int | None = None) -> list[Problem]:
        """n different training problems; see `Source.train`. Ignores `start`: a task has no order."""
        check_step(step)
        return self._collect(self._block + step * _STEP_RANGE + refill_round * _ROUND_RANGE, n, held_out=False)

    def held_out(self, n: int) -> list[Problem]:
        """The first n different held-out problems, whatever the seed.

        Raises:
            ValueError: If there are fewer.
        """
        if len(self._held_out) < n:
            self._held_out = self._collect(0, n, held_out=True)
        return self._held_out[:n]

    def kept_out(self, n: int) -> list[Problem]:
        """The first n held-out problems: an evaluation of n uses no others."""
        return self.held_out(n)

    def withhold(self, questions: frozenset[int]) -> int:
        """Keeps these questions (`question_key`) out of training. Returns 0: none has been drawn so far."""
        self._withheld |= questions
        return 0

    def fit(self, fault: Fault, bad_rows: str) -> None:
        """With bad_rows "skip", draws another problem in place of one with a fault; otherwise it fails when used."""
        if bad_rows == "skip":
            self._fault, self._held_out = fault, []

    @property
    def stored(self) -> list[Problem]:
        """None: its problems and their answers are made by reasoning-gym."""
        return []

    @property
    def digest(self) -> str:
        """The version of reasoning-gym: another one may draw other problems."""
        return f"reasoning-gym {importlib.metadata.version('reasoning-gym')}"

    @property
    def parts(self) -> Mapping[str, Source]:
        """Itself, by its name."""
        return {self.name: self}

    def _collect(self, first: int, n: int, held_out: bool) -> list[Problem]:
        limit = (n + 10) * _DRAWS_PER_PROBLEM * (self.held_out_modulus if held_out else 1)
        found: dict[str, Problem] = {}
        for drawn, entry in enumerate(self._entries(first)):
            if len(found) == n:
                return list(found.values())
            if drawn == limit:
                break
            question = entry["question"]
            uid = hash_text(question, 4)
            if (uid % self.held_out_modulus == 0) != held_out:
                continue
            if self._withheld and not held_out and question_key(question) in self._withheld:
                continue
            problem = Problem(uid, question, entry, self.kind, _difficulty(entry), "", str(entry.get("answer", "")))
            if self._fault(problem) is None:
                found[question] = problem
        which = "held-out" if held_out else "training"
        raise ValueError(
            f"data.settings: {self.name} with {self.settings} gave only {len(found)} different {which} "
            f"problems in {limit} draws, and {n} were asked for; widen the settings or ask for fewer"
        )

    def _entries(self, first: int) -> Iterator[dict]:
        for start in range(first, first + _STEP_RANGE, _CHUNK):
            dataset = self._dataset(start)
            for i in range(_CHUNK):
                try:
                    entry = dataset[i]
                except Exception as error:  # the generator's own limits, such as 32-bit seeds
                    raise ValueError(f"data.task: {self.name} could not make a problem: {error}") from error
                yield entry

    def _dataset(self, seed: int) -> Any:
        try:
            return self._dataset_class(self._config_class(**self.settings, seed=seed, size=_CHUNK))
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"data.settings: {self.name} refuses {self.settings}: {error}") from error


def _no_fault(problem: Problem) -> None:
    return None


def _difficulty(entry: Mapping[str, Any]) -> str:
    """The values of the parameters of difficulty in this entry, such as `num_digits=2 num_terms=3`; "" if none."""
    metadata = entry.get("metadata", {})
    levels = metadata.get("difficulty")
    if not isinstance(levels, Mapping):
        return "" if levels is None else str(levels)
    own = {key: metadata.get(key) for key in sorted(levels)}
    return " ".join(f"{key}={value}" for key, value in own.items() if isinstance(value, int | float | str))


def _find_task(name: str) -> tuple[Any, Any]:
    # Imported here: it imports sympy and matplotlib, which takes seconds and which nothing else needs.
    import reasoning_gym  # noqa: F401  (fills DATASETS)
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)[:5] + ["…"]
        raise ValueError(f"data.task: reasoning-gym has no task {name!r}; near it: {', '.join(near)}")
    return DATASETS[name]
