"""A profile of a few steps."""

from types import TracebackType
from typing import Self

import jax
from etils import epath


class Profiler:
    """Traces a span of steps into workdir/profile, for XProf, TensorBoard or ui.perfetto.dev. A context manager.

    Args:
        workdir: the run directory.
        first: the first step to trace.
        steps: the number of steps to trace; 0: none.
    """

    def __init__(self, workdir: str, first: int, steps: int):
        self._folder, self._first, self._end = str(epath.Path(workdir) / "profile"), first, first + steps
        self._running = False

    def at(self, step: int) -> None:
        """Starts or stops the trace; call it before each step."""
        if step == self._first < self._end:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif step == self._end:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
