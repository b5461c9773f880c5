"""Problems of a file in an order that any step can be asked for: index arithmetic over a shuffle for each epoch.

There is no iterator and so no state of one: a resumed run, or one of several processes, asks for its step.
"""

from collections.abc import Callable, Mapping, Sequence

from absl import logging

from entropy_rl.data import files
from entropy_rl.data.tasks import MAX_ROUNDS, Problem, hash_text, question_key


class Stored:
    """The problems of a file or data set, split into training and held-out ones by a hash of the question.

    Args:
        name: as `data.task`; see `files.read` for it and for `settings`, `root` and `bad_rows`.
        seed: of the run; decides the order of training and not what is held out.
        held_out_modulus: one question in this many is held out; 0: none, 1: all (a set for evaluation).
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, str],
        seed: int,
        held_out_modulus: int = 10,
        root: str = "",
        bad_rows: str = "error",
    ):
        if held_out_modulus < 0:
            raise ValueError(f"data.held_out_modulus={held_out_modulus} must be 0 (none) or above")
        self.path, self.name = name, name.rstrip("/").rpartition("/")[2].removesuffix(".jsonl").removesuffix(".parquet")
        self.seed, self.held_out_modulus = seed, held_out_modulus
        self._rows = files.read(name, settings, root, bad_rows)
        self._split()

    def train(self, step: int, n: int, round: int = 0, start: int | None = None) -> list[Problem]:
        """n training problems, a pure function of (seed, step, round); each once an epoch where round is 0.

        Two epochs can meet in one batch, and a problem then be in it twice.

        Args:
            step: from 1.
            n: how many.
            round: above 0: fresh ones for the same step, from an order of their own.
            start: the place in the order of round 0 where this step begins; None: (step − 1)·n.

        Raises:
            ValueError: there are fewer than n.
        """
        if step < 1:
            raise ValueError(f"step is {step}; the steps of a file count from 1")
        if n > len(self._train):
            raise ValueError(f"data.task={self.path!r} has {len(self._train)} training problems; {n} were asked for")
        if round:
            order, start = self._again, ((step - 1) * MAX_ROUNDS + round - 1) * n
        else:
            order, start = self._order, (step - 1) * n if start is None else start
        return [self._train[order[i]] for i in range(start, start + n)]

    def held_out(self, n: int) -> list[Problem]:
        """n held-out problems, all where there are fewer: the same ones whatever the seed and the file's order."""
        if not self._held_out:
            raise ValueError(
                f"data.task={self.path!r} with data.held_out_modulus={self.held_out_modulus} holds out none of its "
                f"{len(self._rows)} problems; lower it, or name evaluation sets in eval.sets"
            )
        return self._held_out[:n]

    def withhold(self, questions: frozenset[int]) -> int:
        """Takes these questions (`question_key`) out of training and returns how many there were."""
        before = len(self._train)
        kept = [(p, w) for p, w in self._rows if self._is_held_out(p) or question_key(p.question) not in questions]
        self._rows = kept
        self._split()
        return before - len(self._train)

    def fit(self, fault: Callable[[Problem], str | None], bad_rows: str) -> None:
        """Looks at every problem with `fault`, which says what is wrong or None; see `files.BadRows`."""
        bad, kept = files.BadRows(self.path, bad_rows), []
        for problem, where in self._rows:
            why = fault(problem)
            if why is None:
                kept.append((problem, where))
            else:
                bad.add(where, why)
        bad.settle()
        if not kept:
            raise ValueError(f"data.task={self.path!r}: none of its {len(self._rows)} problems can be used")
        self._rows = kept
        self._split()

    @property
    def digest(self) -> str:
        """A hash of all problems in their order."""
        return files.digest([problem for problem, _ in self._rows])

    def _is_held_out(self, problem: Problem) -> bool:
        return self.held_out_modulus > 0 and problem.uid % self.held_out_modulus == 0

    def _split(self) -> None:
        problems = [problem for problem, _ in self._rows]
        self._train = [p for p in problems if not self._is_held_out(p)]
        self._held_out = sorted((p for p in problems if self._is_held_out(p)), key=lambda p: hash_text(p.question, 8))
        self._order, self._again = (_shuffled(len(self._train), f"{what} {self.seed}") for what in ("train", "again"))


def _shuffled(n: int, what: str) -> Sequence[int]:
    from grain import MapDataset  # here: it takes a second or two to import

    # Grain shuffles epoch e with seed + e: seeds far apart, or run 1 would begin with the second epoch of run 0.
    return MapDataset.source(range(max(1, n))).shuffle(seed=hash_text(what, 4)).repeat()


def report_withheld(name: str, withheld: int) -> None:
    """Says so where evaluation problems were found in training data."""
    if withheld:
        logging.warning(
            "%s holds %d problems of the evaluation sets: training leaves them out (a run without these sets did not)",
            name,
            withheld,
        )
