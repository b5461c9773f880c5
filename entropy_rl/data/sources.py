"""Where a run's problems come from: training, warm-up and evaluation, built from the configuration.

A source has `train(step, n, round, start)`, `held_out(n)`, `withhold`, `fit`, `digest` and a `name`: a reasoning-gym
`Task`, a `Stored` file or data set, or a `Mixture` of these (which holds nothing out as a whole: its parts do).
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from entropy_rl.data.files import is_stored
from entropy_rl.data.mixture import Mixture
from entropy_rl.data.stored import Stored, report_withheld
from entropy_rl.data.tasks import MAX_ROUNDS, Problem, Task, question_key

Source = Task | Stored | Mixture

_TASK_MODULUS = 10  # of a task where data.held_out_modulus is 0, which is for files


class Sources:
    """The sources of a configuration.

    A question of an evaluation set is in no training problem: those of tasks and files that are split are told apart
    by a hash, those of other sets are looked up, taken out of training and reported.

    Args:
        c: the whole configuration; reads `seed`, `data`, `warmup` and `eval`.

    Attributes:
        train: what RL trains on.
        warmup: what the warm-up learns from; a task's or mixture's `train` itself where `warmup.task` is "".
        evals: name -> problems, those of `eval/<name>/accuracy`; {} where there is nothing to evaluate.

    Raises:
        ValueError: a source that cannot be had; names the key, or the file and line.
    """

    def __init__(self, c: Any):
        data = c.data
        if c.rollout.refills > MAX_ROUNDS:
            raise ValueError(f"rollout.refills={c.rollout.refills} must be at most {MAX_ROUNDS}")
        mixed = data.mixture.to_dict()
        if bool(mixed) != (data.task == "mixture"):
            raise ValueError(f"data.task={data.task!r} with {len(mixed)} parts in data.mixture: a mixture needs both")
        if mixed and len(data.settings):
            raise ValueError(
                "data.settings with data.task='mixture' is read by nothing: each part has its own settings"
            )
        if len(c.warmup.settings) and not c.warmup.task:
            raise ValueError("warmup.settings without warmup.task is read by nothing; the warm-up takes data.settings")
        alone = {"task": data.task, "settings": data.settings.to_dict()}
        parts = {f"data.mixture.{name}": part for name, part in mixed.items()} or {"data": alone}
        opened = {key: _open(c, part, key) for key, part in parts.items()}
        self.train: Source = opened.get("data") or Mixture(
            {name: (opened[f"data.mixture.{name}"], part.get("weight", 1)) for name, part in mixed.items()}
        )
        self.warmup: Source = self.train
        if c.warmup.task:
            self.warmup = _open(c, {"task": c.warmup.task, "settings": c.warmup.settings.to_dict()}, "warmup")
        elif c.warmup.updates and isinstance(self.train, Stored):
            self.warmup = _open(c, alone, "data")  # of the same file, the rows that have a worked solution
        self._held_out = _evaluation_sources(c, self.train, [(parts[key], source) for key, source in opened.items()])
        self._every, self._sets, self._n = c.eval.every, len(c.eval.sets), c.eval.problems
        self.evals: dict[str, list[Problem]] = {}

    def fit(self, fault: Callable[[Problem], str | None], warmup_fault: Callable, bad_rows: str) -> None:
        """Looks at every problem of every file, before anything compiles, and fixes the evaluation problems.

        Args:
            fault: what is wrong with a problem, or None: its prompt is too long.
            warmup_fault: the same for one of the warm-up, where that has a source of its own.
            bad_rows: "error" or "skip".
        """
        self.train.fit(fault, bad_rows)
        if self.warmup is not self.train:
            self.warmup.fit(warmup_fault, bad_rows)
        if not (self._every or self._sets):  # sets of their own are kept out of training, looked at or not
            return
        known = set()
        for name, source in self._held_out.items():
            source.fit(fault, bad_rows)
            self.evals[name] = source.held_out(self._n)
            kept_out = source.held_out(sys.maxsize) if isinstance(source, Stored) else self.evals[name]
            known |= {question_key(p.question) for p in kept_out}
        for source in {id(s): s for s in (self.train, self.warmup)}.values():
            report_withheld(source.name, source.withhold(frozenset(known)))

    def digests(self) -> dict[str, str]:
        """What tells whether a run that goes on has the data that it started with."""
        found = {"train": self.train.digest}
        if self.warmup is not self.train:
            found["warmup"] = self.warmup.digest
        return found | {f"eval/{name}": source.digest for name, source in self._held_out.items()}


def _evaluation_sources(c: Any, train: Source, trained: list[tuple[Mapping, Source]]) -> dict[str, Source]:
    """The sets of `eval.sets`; where there are none, the training source itself, or each part of a mixture.

    A set that is trained on, with the same settings, is what that source holds out; a file of its own is used whole.
    """
    sets = c.eval.sets.to_dict()
    if wrong := [name for name in sets if "/" in name]:
        raise ValueError(f"eval.sets names {wrong}: a name goes into eval/<name>/accuracy and has no '/' in it")
    if not sets:
        return dict(train.parts) if isinstance(train, Mixture) else {train.name: train}
    what = lambda part: (part.get("task"), part.get("settings", {}))
    return {
        name: next((s for t, s in trained if what(t) == what(part)), None)
        or _open(c, part, f"eval.sets.{name}", evaluation=True)
        for name, part in sets.items()
    }


def _open(c: Any, part: Mapping[str, Any], key: str, evaluation: bool = False) -> Source:
    known = {"task", "settings"} | ({"weight"} if key.startswith("data.mixture") else set())
    if unknown := sorted(part.keys() - known):
        raise ValueError(f"{key} has {unknown}; it may have {sorted(known)}")
    if "task" not in part:
        raise ValueError(f"{key}.task is missing: a reasoning-gym task, a file or a data set")
    name, settings, modulus = part["task"], part.get("settings", {}), c.data.held_out_modulus
    try:
        if is_stored(name):
            return Stored(name, settings, c.seed, 1 if evaluation else modulus, c.data.root, c.data.bad_rows)
        return Task(name, settings, c.seed, modulus or _TASK_MODULUS)
    except ValueError as error:
        if key == "data":
            raise
        raise ValueError(f"{key}: {error}") from error


def share(problems: list, process: int, processes: int) -> list:
    """The rows of a batch that are one process's, in order; the shares of all processes make the batch.

    Raises ValueError where the batch cannot be cut into equal shares.
    """
    size, rest = divmod(len(problems), processes)
    if rest:
        raise ValueError(f"{len(problems)} prompts cannot be shared by {processes} processes equally")
    return problems[process * size : (process + 1) * size]
