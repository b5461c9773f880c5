"""Problems of a reasoning-gym task, as a pure function of (seed, step).

reasoning-gym draws item i of a data set with seed s from Random(s + i). Each step therefore gets a range of
2^32 such numbers to itself, and each run's seed a hashed block of them: steps never share a draw.
"""

import dataclasses
import difflib
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# Items are drawn from data sets of this size: some tasks lay out `size` items when they are made.
_CHUNK = 256
# Draws allowed for each problem asked for (times the modulus for held-out ones) before the space is called
# too small. Drawing n distinct of a space of n alone takes about n·log n draws.
_DRAWS_PER_PROBLEM = 50
_STEP_RANGE = 2**32
_ROUND_RANGE = 2**28
MAX_ROUNDS = 15  # that a step may draw again


class Problem(NamedTuple):
    """One question with what its verifier needs.

    Attributes:
        uid: u32 hash of the question's text.
        question: the text put to the model.
        entry: the right answer, or the data set's entry: the `answer` that `rewards.score` takes.
        kind: the `kind` that `rewards.score` takes, such as "reasoning_gym:<task>".
        difficulty: what accuracy is reported by; "" where there is nothing to tell problems apart.
        solution: a worked solution that came with it, or "".
        answer: the right answer as text, to show and to end a worked solution with.
    """

    uid: int
    question: str
    entry: Any
    kind: str
    difficulty: str = ""
    solution: str = ""
    answer: str = ""


class Task:
    """A reasoning-gym task, split for good into training and held-out problems.

    A question is held out when uid % held_out_modulus == 0, which depends on its text alone: a training
    problem can never be a held-out one, however small the space, whatever the seed.

    Args:
        name: a reasoning-gym task, such as "chain_sum" (`data.task`).
        settings: fields of that task's configuration (`data.settings`).
        seed: the run's seed; decides the training problems and not the held-out ones.
        held_out_modulus: one question in this many is held out.

    Raises:
        ValueError: unknown task, unknown setting, or a setting that the task refuses.
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
        self._fault: Callable[[Problem], str | None] = lambda problem: None
        self._dataset(0)  # the task's own checks, before any work

    def train(self, step: int, n: int, round: int = 0, start: int | None = None) -> list[Problem]:
        """n different training problems, a pure function of (seed, step, round). ValueError if there are fewer.

        Args:
            step: from 0.
            n: how many.
            round: above 0: fresh ones for the same step, in the place of groups that teach nothing.
            start: where files go on (see `Stored.train`); nothing to a task.
        """
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        return self._collect(self._block + step * _STEP_RANGE + round * _ROUND_RANGE, n, held_out=False)

    def held_out(self, n: int) -> list[Problem]:
        """The first n different held-out problems, whatever the seed. ValueError if there are fewer."""
        if len(self._held_out) < n:
            self._held_out = self._collect(0, n, held_out=True)
        return self._held_out[:n]

    def withhold(self, questions: frozenset[int]) -> int:
        """Keeps these questions (`question_key`) out of training. Returns 0: nothing is drawn yet."""
        self._withheld |= questions
        return 0

    def fit(self, fault: Callable[[Problem], str | None], bad_rows: str) -> None:
        """With bad_rows "skip", draws another problem where `fault` finds one wrong; else that is an error later."""
        if bad_rows == "skip":
            self._fault, self._held_out = fault, []

    @property
    def digest(self) -> str:
        """What the problems come from: another version may draw others."""
        return f"reasoning-gym {importlib.metadata.version('reasoning-gym')}"

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
                except Exception as error:  # a generator's own limits, such as seeds of 32 bits
                    raise ValueError(f"data.task: {self.name} could not make a problem: {error}") from error
                yield entry

    def _dataset(self, seed: int) -> Any:
        try:
            return self._dataset_class(self._config_class(**self.settings, seed=seed, size=_CHUNK))
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"data.settings: {self.name} refuses {self.settings}: {error}") from error


def _difficulty(entry: dict) -> str:
    """`num_digits=2 num_terms=3`: the parameters of a task's difficulty as they are in this entry."""
    metadata = entry.get("metadata", {})
    levels = metadata.get("difficulty")
    if not isinstance(levels, Mapping):
        return "" if levels is None else str(levels)
    own = {key: metadata.get(key) for key in sorted(levels)}
    return " ".join(f"{key}={value}" for key, value in own.items() if isinstance(value, int | float | str))


def _find_task(name: str) -> tuple[Any, Any]:
    # Imported here: it brings in sympy and matplotlib, seconds that nothing else needs.
    import reasoning_gym  # noqa: F401  (fills the registry)
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)[:5] + ["…"]
        raise ValueError(f"data.task: reasoning-gym has no task {name!r}; near it: {', '.join(near)}")
    return DATASETS[name]


def question_key(question: str) -> int:
    """A hash of the question's words, by which a training problem is known to be an evaluation problem."""
    return hash_text(" ".join(question.split()).casefold(), 8)


def hash_text(text: str, n_bytes: int) -> int:
    """An unsigned number of n_bytes bytes, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=n_bytes).digest()
    return int.from_bytes(digest, "big")
