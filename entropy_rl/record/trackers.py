"""Other programs that a run's numbers are sent to, if `log.trackers` asks for them; each is imported where it is used.

A tracker never stops a run: if it fails, it is left out from then on, with one warning. A resumed run continues the
same run there, whose name is in trackers.json.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from absl import logging
from etils import epath

from entropy_rl.record import files

PROJECT = "entropy_rl"


class Tracker(Protocol):
    """What a run needs of a tracker."""

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step, those that were measured."""

    def close(self) -> None:
        """Sends what is left; the run has ended or is to be resumed later."""


class Place(NamedTuple):
    """Where a tracker finds the run.

    Attributes:
        workdir: the run directory.
        name: of the run, the same when it is resumed, and no other run's.
        step: of the last row that the record holds; −1 without one.
        config: the configuration as nested dicts.
    """

    workdir: epath.Path
    name: str
    step: int
    config: Mapping[str, Any]


class _TensorBoard:
    def __init__(self, place: Place):
        from tensorboardX import SummaryWriter

        # what an interrupted run wrote after the checkpoint is hidden; without the suffix, a file that was begun in the
        # same second would be overwritten
        begin, folder = place.step + 1, str(place.workdir / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=begin, filename_suffix=f".{os.getpid()}.{begin}")

    def row(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, place: Place):
        import wandb

        settings = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "dir": str(place.workdir)}
        self._run = wandb.init(**settings, id=place.name, name=place.name, resume="allow", config=dict(place.config))

    def row(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, place: Place):
        import trackio

        self._run = trackio.init(project=PROJECT, name=place.name, resume="allow", config=dict(place.config))

    def row(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


# name -> (how it is opened, the module that it needs, the package that has it)
TRACKERS: dict[str, tuple[Callable[[Place], Tracker], str, str]] = {
    "tensorboard": (_TensorBoard, "tensorboardX", "tensorboardX"),
    "trackio": (_Trackio, "trackio", "trackio"),
    "wandb": (_Wandb, "wandb", "wandb"),
}


def check(names: Iterable[str]) -> None:
    """Refuses trackers that do not exist or are not installed, before any work.

    Raises:
        ValueError: Names the tracker, and the package to install.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"log.trackers={name!r} is no tracker; choose among {', '.join(TRACKERS)}")
        _, module, package = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"log.trackers: {name} needs {package}: pip install {package}, or leave it out")


def run_name(workdir: epath.Path, new: bool) -> str:
    """The run's name for trackers: that of the directory and a few random letters, kept in trackers.json.

    Args:
        workdir: the run directory.
        new: the run starts from nothing, so it takes a name that no run had.
    """
    path = workdir / "trackers.json"
    if not new and path.exists():
        found = json.loads(path.read_text())
        if isinstance(found, dict) and isinstance(found.get("name"), str):
            return found["name"]
    name = f"{workdir.name}-{uuid.uuid4().hex[:8]}"
    files.replace(path, json.dumps({"name": name}) + "\n")
    return name


class Trackers:
    """The trackers of a run, without those that have failed.

    Args:
        names: of `TRACKERS`.
        workdir: the run directory.
        step: of the last row that the record holds; −1: the run starts from nothing.
        config: the configuration as nested dicts.
    """

    def __init__(self, names: Sequence[str], workdir: epath.Path, step: int, config: Mapping[str, Any]):
        self._open: dict[str, Tracker] = {}
        if names:
            self._guarded("trackers.json", self._begin, names, workdir, step, config)

    def _begin(self, names: Sequence[str], workdir: epath.Path, step: int, config: Mapping[str, Any]) -> None:
        place = Place(workdir, run_name(workdir, new=step < 0), step, config)
        for name in names:
            self._guarded(name, self._add, name, place)

    def _add(self, name: str, place: Place) -> None:
        self._open[name] = TRACKERS[name][0](place)

    def row(self, row: Mapping[str, Any]) -> None:
        """Sends a row, as `RunLog.write` returned it, without what was not measured."""
        values = {k: float(v) for k, v in row.items() if v is not None and k not in ("step", "time")}
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.row, row["step"], values)

    def close(self) -> None:
        """Closes all of them."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)
        self._open.clear()

    def _guarded(self, name: str, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except Exception as error:  # whatever a tracker raises, the run goes on
            self._open.pop(name, None)
            logging.warning("log.trackers: %s failed and is left out (%s: %s)", name, type(error).__name__, error)
