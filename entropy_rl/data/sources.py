"""The sources of a run's problems: training, warm-up and evaluation, built from the configuration."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from entropy_rl.data.files import is_stored
from entropy_rl.data.mixture import Mixture
from entropy_rl.data.source import MAX_REFILLS, Fault, Problem, Source, question_key
from entropy_rl.data.stored import Stored, report_withheld
from entropy_rl.data.tasks import Task

_TASK_MODULUS = 10  # of a task if data.held_out_modulus is 0, which only a file can have


class Sources:
    """The sources of a configuration.

    No training problem has a question of an evaluation set. A task or file that is split is split by a hash of the
    question; the questions of other sets are looked up, removed from training and reported.

    Args:
        seed: the run's (`seed`).
        data: the config section `data`.
        warmup: the config section `warmup`.
        evaluation: the config section `eval`.
        refills: refill rounds per step (`rollout.refills`).

    Attributes:
        train: the source that RL trains on.
        warmup: the source that the warm-up learns from; if `warmup.task` is "", this is `train` itself for a task or a
            mixture, and the same file read again for a file.
        evals: name -> problems, those of `eval/<name>/accuracy`; filled by `fit`, {} if there is nothing to evaluate.

    Raises:
        ValueError: If a source cannot be opened; names the key, or the file and line.
    """

    def __init__(self, seed: int, data: ConfigDict, warmup: ConfigDict, evaluation: ConfigDict, refills: int):
        if refills > MAX_REFILLS:
            raise ValueError(f"rollout.refills={refills} must be at most {MAX_REFILLS}")
        mixed = data.mixture.to_dict()
        _check_settings(data, warmup)
        self._seed, self._data = seed, data
        alone = {"task": data.task, "settings": data.settings.to_dict()}
        parts = {f"data.mixture.{name}": part for name, part in mixed.items()} or {"data": alone}
        opened = {key: self._open(part, key) for key, part in parts.items()}
        self.train: Source = opened.get("data") or Mixture(
            {name: (opened[f"data.mixture.{name}"], part.get("weight", 1)) for name, part in mixed.items()}
        )
        self.warmup: Source = self.train
        if warmup.task:
            self.warmup = self._open({"task": warmup.task, "settings": warmup.settings.to_dict()}, "warmup")
        elif warmup.updates and is_stored(data.task):
            self.warmup = self._open(alone, "data")  # the same file; `fit` keeps its rows with a worked solution
        trained = [(parts[key], source) for key, source in opened.items()]
        self._held_out = self._evaluation_sources(evaluation.sets.to_dict(), trained)
        self._every, self._sets, self._n = evaluation.every, len(evaluation.sets), evaluation.problems
        self.evals: dict[str, list[Problem]] = {}

    def fit(self, fault: Fault, warmup_fault: Fault, bad_rows: str) -> None:
        """Checks every problem of every file before anything compiles, and fixes the evaluation problems.

        Args:
            fault: returns the reason why a problem cannot be used (its prompt is too long), or None.
            warmup_fault: the same for a problem of the warm-up, if that has its own source.
            bad_rows: "error" or "skip" (`data.bad_rows`).

        Raises:
            ValueError: If a problem has a fault and bad_rows is "error", or a source has too few problems left.
        """
        self.train.fit(fault, bad_rows)
        if self.warmup is not self.train:
            self.warmup.fit(warmup_fault, bad_rows)
        if not (self._every or self._sets):  # named sets are kept out of training even if they are never evaluated
            return
        known = set()
        for name, source in self._held_out.items():
            source.fit(fault, bad_rows)
            self.evals[name] = source.held_out(self._n)
            known |= {question_key(p.question) for p in source.kept_out(self._n)}
        for source in {id(s): s for s in (self.train, self.warmup)}.values():
            report_withheld(source.name, source.withhold(frozenset(known)))

    def stored(self, training: bool = True) -> list[Problem]:
        """The problems of all files and data sets, except those that only the warm-up reads: it grades nothing.

        Args:
            training: False: only those that are evaluated.
        """
        return [problem for source in self._graded(training) for problem in source.stored]

    def kinds(self, training: bool = True) -> list[str]:
        """The kinds of verifiers that grade the problems of these sources, procedural ones included."""
        return sorted({source.kind for source in self._graded(training)})

    def _graded(self, training: bool) -> list[Source]:
        """The sources whose problems are graded, each once; the parts of a mixture instead of it."""
        used = [*(self.train.parts.values() if training else ()), *self._held_out.values()]
        return list({id(source): source for source in used}.values())

    def digests(self) -> dict[str, str]:
        """Name of a source -> its digest: a run that resumes compares these with those that it started with."""
        found = {"train": self.train.digest}
        if self.warmup is not self.train:
            found["warmup"] = self.warmup.digest
        return found | {f"eval/{name}": source.digest for name, source in self._held_out.items()}

    def _evaluation_sources(
        self, sets: Mapping[str, Mapping[str, Any]], trained: list[tuple[Mapping[str, Any], Source]]
    ) -> dict[str, Source]:
        """The sets of `eval.sets`; if there are none, the training source itself, or each part of a mixture.

        A set with the same task and settings as a source that is trained on is that source's held-out part; any other
        file is used whole.
        """
        if wrong := [name for name in sets if "/" in name]:
            raise ValueError(
                f"eval.sets names {wrong}: a name is part of eval/<name>/accuracy and must not contain '/'"
            )
        if not sets:
            return dict(self.train.parts)
        found: dict[str, Source] = {}
        for name, part in sets.items():
            same = [source for other, source in trained if _task_and_settings(other) == _task_and_settings(part)]
            found[name] = same[0] if same else self._open(part, f"eval.sets.{name}", evaluation=True)
        return found

    def _open(self, part: Mapping[str, Any], key: str, evaluation: bool = False) -> Source:
        """The source that {task, settings} describes; errors name the config key."""
        known = {"task", "settings"} | ({"weight"} if key.startswith("data.mixture") else set())
        if unknown := sorted(part.keys() - known):
            raise ValueError(f"{key} has {unknown}; it may have {sorted(known)}")
        if "task" not in part:
            raise ValueError(f"{key}.task is missing: a reasoning-gym task, a file or a data set")
        name, settings, modulus = part["task"], part.get("settings", {}), self._data.held_out_modulus
        try:
            if is_stored(name):
                root, bad_rows = self._data.root, self._data.bad_rows
                return Stored(name, settings, self._seed, 1 if evaluation else modulus, root, bad_rows)
            return Task(name, settings, self._seed, modulus or _TASK_MODULUS)
        except ValueError as error:
            if key == "data":
                raise
            raise ValueError(f"{key}: {error}") from error


def _check_settings(data: ConfigDict, warmup: ConfigDict) -> None:
    """Raises ValueError for settings that contradict one another or have no effect."""
    if bool(len(data.mixture)) != (data.task == "mixture"):
        raise ValueError(
            f"data.task={data.task!r} with {len(data.mixture)} parts in data.mixture: a mixture needs both"
        )
    if len(data.mixture) and len(data.settings):
        raise ValueError("data.settings with data.task='mixture' has no effect: each part has its own settings")
    if len(warmup.settings) and not warmup.task:
        raise ValueError("warmup.settings without warmup.task has no effect: the warm-up uses data.settings")


def _task_and_settings(part: Mapping[str, Any]) -> tuple[Any, Any]:
    return part.get("task"), part.get("settings", {})
