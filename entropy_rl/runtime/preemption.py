"""SIGTERM as a flag: the loop finishes what it is doing, saves, and exits with code 75 (try again)."""

import signal
from types import FrameType
from typing import Self

from entropy_rl.runtime import distributed

EXIT_CODE = 75  # EX_TEMPFAIL: schedulers restart a job that exits with it


class Preemption:
    """A context in which SIGTERM asks the run to stop at the next boundary, instead of killing it."""

    _asked = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    @property
    def requested(self) -> bool:
        """Whether SIGTERM has come to any process of the run; all have to ask together."""
        return distributed.anyone(self._asked)

    def check(self) -> None:
        """Exits with code 75 if SIGTERM has come; call it at points where nothing would be lost.

        Raises:
            SystemExit: If SIGTERM has come.
        """
        if self.requested:
            raise SystemExit(EXIT_CODE)

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
