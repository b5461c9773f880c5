"""The record of a run: config.json, metrics.jsonl and samples.jsonl in its working directory.

metrics.jsonl has one JSON object per line and one line per step. Each value is a Python number with every digit that a
float32 or float64 needs, so the rows of two runs can be compared bit for bit. A value that was not measured, or that is
NaN or infinite, is null: the file holds nothing but standard JSON.
"""

import fnmatch
import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from entropy_rl import config as config_lib
from entropy_rl.record import files, jsonl
from entropy_rl.record.rollouts import FOLDER
from entropy_rl.record.word_table import EVAL_PATTERN
from entropy_rl.record.words import METRIC_KEYS
from entropy_rl.runtime import distributed

# Patterns of the keys that may change when a run is resumed, without making it another run.
FREE_KEYS = ("train.steps", "checkpoint.*", "eval.every", "measure.every", "log.*", "rollout.server*")


class RunLog:
    """Writes the record of one run. Only the first process writes.

    Attributes:
        last_step: the step of the newest row, −1 without one.
        last_sample: the response that was written last; None before the first.
    """

    def __init__(self, workdir: epath.Path | str, resume_step: int | None):
        """Opens the record, whenever the run is started or resumed.

        Args:
            workdir: the run directory, made if it does not exist.
            resume_step: the step of the checkpoint that the run resumes from. The rows of later steps, and a last line
                torn by a kill, are dropped from both files: the run will write them again. None: the run starts from
                nothing, and a record that is there is moved into the folder `before-1`, `before-2`, ….

        Raises:
            ValueError: A line is not a row; names it. Nothing was changed then.
        """
        self._workdir = epath.Path(workdir)
        files.make_folder(self._workdir, "--workdir")
        self._metrics = self._workdir / "metrics.jsonl"
        self._samples = self._workdir / "samples.jsonl"
        self._writes, self.last_step, self._rows = distributed.first(), -1, list[dict[str, Any]]()
        self.last_sample: dict[str, Any] | None = None
        if not self._writes:
            return
        if resume_step is None:
            set_aside(self._workdir)
            return
        known = rows(self._metrics) if jsonl.exists(self._metrics) else []
        self.last_step = jsonl.drop_after(self._metrics, resume_step)
        jsonl.drop_after(self._samples, resume_step)
        self._rows = [row for _, row in known if row["step"] <= resume_step]

    def write(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Appends the row of one step to metrics.jsonl.

        Args:
            row: numbers, bools, None or arrays without dimensions, by key. "step" is an int above the last one
                written.

        Returns:
            The row as written: METRIC_KEYS in their order, null if absent, except that "time" is then the present; then
            all other keys.

        Raises:
            ValueError: If a value or the step is wrong; the message names the key.
        """
        values = {key: _number(key, value) for key, value in _on_host(row).items()}
        step = values.get("step")
        if type(step) is not int or step <= self.last_step:
            raise ValueError(f"{self._metrics}: step is {step!r}, expected an int above {self.last_step}")
        values.setdefault("time", time.time())
        ordered: dict[str, Any] = {}
        for key in METRIC_KEYS:
            if key == EVAL_PATTERN:
                ordered |= {k: v for k, v in values.items() if k.startswith("eval/")}
            else:
                ordered[key] = values.get(key)
        ordered |= values
        if self._writes:
            lost = self._rows and not jsonl.exists(self._metrics)
            if lost:
                logging.warning("%s was removed under the run: its %d rows are written again", *self._known())
            jsonl.append(self._metrics, [*self._rows, ordered] if lost else [ordered])
            self._rows.append(ordered)
        self.last_step = step
        return ordered

    def _known(self) -> tuple[epath.Path, int]:
        return self._metrics, len(self._rows)

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends one object per response to samples.jsonl: JSON values and arrays.

        Raises:
            ValueError: If an object has no "step", an int.
        """
        plain = [_plain(_on_host(row)) for row in rows]
        if any(type(row.get("step")) is not int for row in plain):
            raise ValueError(f"{self._samples}: every sample needs its step, an int")
        if self._writes:
            jsonl.append(self._samples, plain)
        if plain:
            self.last_sample = plain[-1]

    def config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, unless it is up to date: the configuration as nested dicts (`ConfigDict.to_dict()`)."""
        path, text = self._workdir / "config.json", json.dumps(config, indent=2) + "\n"
        if self._writes and (not path.exists() or path.read_text() != text):
            files.replace(path, text)

    def history(self) -> list[dict[str, Any]]:
        """The rows of the steps so far, without step 0; none if this process does not write them."""
        return [row for row in self._rows if row["step"]]


def rows(path: epath.Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of metrics.jsonl, each with its place (file and line).

    Raises:
        ValueError: A line is not a row as `RunLog.write` writes it; names it.
    """
    found = jsonl.numbered(path)
    for place, row in found:
        jsonl.step_of(place, row)
        for key, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{place}: {key} is {value!r}, expected a number or null; put it back as it was")
        need(place, row, ("reward/mean", "entropy/mean"))
    return found


def need(place: str, row: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Checks that a row has some keys, whose values may be null.

    Raises:
        ValueError: It lacks one; names its place.
    """
    if missing := [key for key in keys if key not in row]:
        raise ValueError(f"{place}: no {', '.join(missing)}; put the line back as it was, or remove it")


def set_aside(workdir: epath.Path | str) -> epath.Path | None:
    """Moves a run's rows, recorded rollouts and configuration into the first free folder of `before-1`, `before-2`, ….

    On a disk, the Hugging Face folders of the run move there too.

    Returns:
        The folder, or None if there are no rows.
    """
    workdir = epath.Path(workdir)
    names = ("metrics.jsonl", "samples.jsonl")
    found = [
        part
        for path in (workdir / name for name in names)
        if jsonl.exists(path)
        for part in (jsonl.parts(path) if files.in_bucket(path) else [path])
    ]
    if not any(part.stat().length for part in found):
        return None
    folder = next(f for n in itertools.count(1) if not (f := workdir / f"before-{n}").exists())
    folder.mkdir(parents=True)
    if (config := workdir / "config.json").exists():
        found.append(config)
    if (recorded := workdir / FOLDER).exists():  # first: if a kill comes between, the rows still tell of it
        (folder / FOLDER).mkdir()
        for path in sorted(recorded.iterdir()):
            files.move(path, folder / FOLDER / path.name)
    if not files.in_bucket(workdir) and (models := workdir / "hf").exists():
        found.append(models)
    for path in found:
        files.move(path, folder / path.name)
    logging.warning("%s: the run starts afresh; the record that was there is now in %s", workdir, folder)
    return folder


def refuse_lost_checkpoints(workdir: epath.Path | str, force: bool = False) -> None:
    """Call it if a run directory has no checkpoint: its rows may show that there was one.

    A run that was killed before its first checkpoint starts afresh, and loses nothing.

    Args:
        workdir: the run directory.
        force: start afresh in any case; the old record is set aside.

    Raises:
        ValueError: A row is later than the first checkpoint must have been, and `force` is not set.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    last = max((row["step"] for _, row in rows(path)), default=-1) if jsonl.exists(path) else -1
    try:
        config = read_config(workdir)
        # the state after a warm-up, or the first of keep_every, is saved before row 0 is written; without these the
        # first save follows its step's row
        saved_first = config["warmup"]["updates"] or config["checkpoint"].get("keep_every", 0)
        saved_before = 0 if saved_first else config["checkpoint"]["every"] + 1
    except (FileNotFoundError, KeyError, TypeError):
        saved_before = 1
    if last >= saved_before and not force:
        raise ValueError(
            f"{path} has rows up to step {last}, but {path.parent / 'checkpoints'} holds no checkpoint any more. "
            "Put the checkpoints back to resume, or take another workdir; --force starts afresh, and moves the old "
            "record into a folder before-1"
        )


def read_config(workdir: epath.Path | str) -> dict[str, Any]:
    """The run's config.json.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not a JSON object; names it.
    """
    path = epath.Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); put it back, or start in another workdir") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a JSON {type(config).__name__}, expected an object; put it back")
    return config


def check_config(
    workdir: epath.Path | str,
    config: Mapping[str, Any],
    *,
    free: Sequence[str] = FREE_KEYS,
    force: bool = False,
) -> list[str]:
    """Compares a configuration with the one that a run was started with.

    Args:
        workdir: the run directory. If it has no config.json, there is nothing to compare. A field that its config.json
            lacks has its default there.
        config: the configuration as nested dicts.
        free: patterns (fnmatch) of the dotted keys that may differ; not train.steps if optim.schedule falls over it.
        force: return the differences instead of raising an error.

    Returns:
        The differences in the keys that are not free, one line each.

    Raises:
        ValueError: If config.json is not JSON, or if there are differences, which the message lists, without `force`.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        return []
    now, why = _flat(json.loads(json.dumps(config))), {}
    if now.get("optim.schedule", "constant") != "constant":
        free = [key for key in free if key != "train.steps"]
        why = {"train.steps": f" (optim.schedule={now['optim.schedule']!r} falls over its updates)"}
    default = _flat(json.loads(json.dumps(config_lib.default().to_dict())))
    # a run of an earlier version lacks the newer fields, and did what their defaults mean
    before = {key: default[key] for key in now.keys() & default.keys()} | _flat(read_config(workdir))
    absent = "(absent)"
    differences = [
        f"{key}: {before.get(key, absent)!r} in the run, {now.get(key, absent)!r} now{why.get(key, '')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, absent) != now.get(key, absent) and not _is_free(key, free)
    ]
    if differences and not force:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{path}: the run was started with another configuration:\n  {listed}\n"
            "Continue with the old values, start in another workdir, or force the change"
        )
    return differences


def config_hash(config: Mapping[str, Any], free: Sequence[str] = FREE_KEYS) -> str:
    """SHA-256, in hex, of the keys that are not free: equal if `check_config` finds no difference."""
    flat = {k: v for k, v in _flat(json.loads(json.dumps(config))).items() if not _is_free(k, free)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def _on_host(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in its own order, with all arrays fetched in one call (device_get of a dict would sort the keys)."""
    return dict(zip(row, jax.device_get(list(row.values())), strict=True))


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON's own types, with NaN and infinity as None: as it will be read from the file."""
    return {key: _plain(value) for key, value in _on_host(row).items()}


def _number(key: str, value: Any) -> float | int | bool | None:
    plain = _plain(value)
    if plain is not None and not isinstance(plain, (bool, int, float)):
        raise ValueError(f"metric {key!r}: got {type(plain).__name__}, expected one number or None")
    return plain


def _plain(value: Any) -> Any:
    """Arrays on the host, NumPy scalars and containers of them as JSON's own types; NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in free)
