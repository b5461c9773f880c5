"""What a run shows while it is made: a line per step, a panel in a terminal, alarms, and trackers."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from entropy_rl.record.alarms import Watch
from entropy_rl.record.lines import line_of
from entropy_rl.record.metrics import RunLog
from entropy_rl.record.panel import Panel, View, fits
from entropy_rl.record.trackers import Trackers
from entropy_rl.runtime import distributed


class Show:
    """Shows the rows of a run as they are written; the first process alone does.

    A context: at its end the terminal is as it was, and the trackers have everything. What is shown cannot end the run:
    a panel or a tracker that fails is left out, with a warning.

    Args:
        c: the configuration.
        workdir: the run directory.
    """

    def __init__(self, c: ConfigDict, workdir: str):
        self._c, self._workdir, self._speaks = c, epath.Path(workdir), distributed.first()
        self._log: RunLog | None = None
        self._watch, self._starts, self._began = Watch(), 0, (0, 0.0)
        self._panel: Panel | None = None
        self._trackers: Trackers | None = None

    def follow(self, log: RunLog) -> None:
        """The record is open: the alarms of the rows that it holds have been named before."""
        self._log, self._watch = log, Watch(log.history())
        if self._speaks:
            self._panel = Panel() if fits(sys.stderr) else None
            self._trackers = Trackers(self._c.log.trackers, self._workdir, log.last_step, self._c.to_dict())

    def starts(self, step: int) -> None:
        """Training starts after `step`."""
        self._starts, self._began = step, (step, time.monotonic())

    def row(self, row: Mapping[str, Any]) -> None:
        """Shows a row, as `RunLog.write` returned it."""
        if not self._speaks:
            return
        (first, began), steps, step, now = self._began, self._c.train.steps, row["step"], time.monotonic()
        left = (now - began) / (step - first) * (steps - step) if began and step > first else None
        if began and step == self._starts + 1:  # the first step compiles: it says little about the others
            self._began = (step, now)
        logging.info("%s", line_of(row, steps, left))
        for alarm in self._watch.see(row):
            (logging.warning if alarm.begins else logging.info)("step %d: %s", step, alarm.text)
        self._draw(steps, left)
        if self._trackers is not None:
            self._trackers.row(row)

    def _draw(self, steps: int, left: float | None) -> None:
        if self._panel is None or self._log is None or not (rows := self._log.history()):
            return
        try:
            self._panel.show(View(rows, steps, left, tuple(self._watch.active.values()), self._log.last_sample))
        except Exception as error:  # a terminal that is gone, or that cannot show it
            self._close_panel()
            logging.warning("the panel failed and is left out (%s: %s)", type(error).__name__, error)

    def _close_panel(self) -> None:
        panel, self._panel = self._panel, None
        try:
            if panel is not None:
                panel.close()
        except Exception:  # the terminal is gone, and with it what there was to restore
            pass

    def __enter__(self) -> "Show":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_panel()
        if self._trackers is not None:
            self._trackers.close()
