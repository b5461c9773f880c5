"""Problems of a file, in an order that any step can be asked for directly: index arithmetic over a shuffle per epoch.

There is no iterator and so no state to save: a resumed run, or one of several processes, asks for the step it needs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from absl import logging

from entropy_rl.data import files
from entropy_rl.data.rows import short_name
from entropy_rl.data.source import MAX_REFILLS, Fault, Problem, Source, check_step, hash_text, question_key


class Stored:
    """The problems of a file or data set, split into training and held-out ones by a hash of the question.

    Args:
        name: a file or a data set (`data.task`); see `files.read` for it and for settings, root and bad_rows.
        settings: fields of `Fields` that differ from the data set's own (`data.settings`).
        seed: the run's; determines the order of training but not which problems are held out.
        held_out_modulus: one question in this many is held out; 0: none, 1: all (a set for evaluation).
        root: a folder with local copies of hub data sets; "": the hub.
        bad_rows: "error" or "skip".

    Raises:
        ValueError: If the modulus is negative, or the file or data set cannot be read.
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
        self.path, self.name = name, short_name(name)
        self.seed, self.held_out_modulus = seed, held_out_modulus
        self.kind = files.fields_of(name, settings).kind
        self._rows = files.read(name, settings, root, bad_rows)
        self._split()

    def train(self, step: int, n: int, refill_round: int = 0, start: int | None = None) -> list[Problem]:
        """n training problems; see `Source.train`. Round 0 gives each problem once per epoch.

        Two epochs can meet in one batch, which may then contain a problem twice. Refill rounds have their own order.
        """
        check_step(step)
        if n > len(self._train):
            raise ValueError(f"data.task={self.path!r} has {len(self._train)} training problems; {n} were asked for")
        if refill_round:
            order, first = self._refill_order, ((step - 1) * MAX_REFILLS + refill_round - 1) * n
        else:
            order, first = self._order, (step - 1) * n if start is None else start
        return [self._train[order[i]] for i in range(first, first + n)]

    def held_out(self, n: int) -> list[Problem]:
        """n held-out problems, or all if there are fewer: the same ones whatever the seed and the file's order.

        Raises:
            ValueError: If no problem is held out.
        """
        if not self._held_out:
            raise ValueError(
                f"data.task={self.path!r} with data.held_out_modulus={self.held_out_modulus} holds out none of its "
                f"{len(self._rows)} problems; lower it, or name evaluation sets in eval.sets"
            )
        return self._held_out[:n]

    def kept_out(self, n: int) -> list[Problem]:
        """All held-out problems, even if fewer are evaluated."""
        return self.held_out(len(self._rows))

    def withhold(self, questions: frozenset[int]) -> int:
        """Removes these questions (`question_key`) from training; returns the number removed."""
        before = len(self._train)
        self._rows = [
            (problem, where)
            for problem, where in self._rows
            if self._is_held_out(problem) or question_key(problem.question) not in questions
        ]
        self._split()
        return before - len(self._train)

    def fit(self, fault: Fault, bad_rows: str) -> None:
        """Checks every problem with `fault`; problems with a fault are bad rows, see `files.BadRows`.

        Raises:
            ValueError: If bad_rows is "error" and there is a fault, or if no problem is left.
        """
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
    def stored(self) -> list[Problem]:
        """All of its problems, the held-out ones too."""
        return [problem for problem, _ in self._rows]

    @property
    def digest(self) -> str:
        """The number of problems and a hash of their contents in order."""
        total = hashlib.blake2b(digest_size=8)
        for p, _ in self._rows:
            total.update(json.dumps([p.question, p.entry, p.kind, p.solution], default=str).encode())
        return f"{len(self._rows)} problems, {total.hexdigest()}"

    @property
    def parts(self) -> Mapping[str, Source]:
        """Itself, by its name."""
        return {self.name: self}

    def _is_held_out(self, problem: Problem) -> bool:
        return self.held_out_modulus > 0 and problem.uid % self.held_out_modulus == 0

    def _split(self) -> None:
        problems = [problem for problem, _ in self._rows]
        self._train = [p for p in problems if not self._is_held_out(p)]
        self._held_out = sorted((p for p in problems if self._is_held_out(p)), key=lambda p: hash_text(p.question, 8))
        self._order = _shuffled(len(self._train), f"train {self.seed}")
        self._refill_order = _shuffled(len(self._train), f"again {self.seed}")


def _shuffled(n: int, seed_text: str) -> Sequence[int]:
    from grain import MapDataset  # imported here because it takes a second or two

    # Grain shuffles epoch e with seed + e. A hash keeps seeds far apart: otherwise run 1 would begin with the second
    # epoch of run 0.
    return MapDataset.source(range(max(1, n))).shuffle(seed=hash_text(seed_text, 4)).repeat()


def report_withheld(name: str, withheld: int) -> None:
    """Logs a warning if training data contained evaluation problems."""
    if withheld:
        logging.warning(
            "%s holds %d problems of the evaluation sets: training leaves them out (a run without these sets did not)",
            name,
            withheld,
        )
