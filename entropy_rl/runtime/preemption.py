"""SIGTERM and Ctrl-C: the run stops where nothing is lost, saves, and exits with code 75 (try again) or 130.

A signal only leaves a mark. The code looks at it (`Stop.look`) where the state of the last finished step is still in
memory: between updates of the warm-up, chunks of decoding, batches of an evaluation, while it waits for graders. What
has begun is abandoned there, because a run is a pure function of (config, step).

A compilation can keep the main thread for minutes, in which Python handles no signal. So a thread waits for signals
too: if nothing would be lost that is not on disk, it ends the process. It is the command's alone; in a notebook or a
test, `loop.run` raises `Stopped` and never ends the process.

This module imports nothing but the standard library: `train.py` sets the handlers before it imports JAX.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from types import FrameType
from typing import Any, TypeVar

EXIT_CODE = 75  # EX_TEMPFAIL: schedulers restart a job that exits with it
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports a command that Ctrl-C ended

T = TypeVar("T")
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_GRACE = 1.0  # seconds that the main thread has to leave by itself, if nothing would be lost
_LEAVING = 10.0  # the same once everything is saved: processes end together
_BOUNCE = 0.3  # seconds: a terminal's Ctrl-C may reach a process twice, by its group and by its launcher


class Stopped(SystemExit):
    """The run was asked to stop; what has a boundary is to be saved. Its code is the exit code."""


class Stop:
    """Whether the run was asked to stop, and the words for where it stopped and what is saved."""

    def __init__(self) -> None:
        self._depth = 0
        self._reset()

    def _reset(self) -> None:
        self._signal = 0
        self._agreed, self._told = False, False
        self._free_at = 0.0  # monotonic time from which the process may be ended; infinite while work is not saved
        self._doing, self._lost, self._saved = "start-up", "", "nothing is lost"
        self._last: list[Callable[[], None]] = []

    def install(self) -> None:
        """Sets the handlers for the rest of the process, with the thread that may end it."""
        self._set(ends=True)

    @contextlib.contextmanager
    def handled(self) -> Iterator["Stop"]:
        """A context in which the two signals ask the run to stop; the handlers are those of `install`, or its own."""
        own = self._depth == 0 and threading.current_thread() is threading.main_thread()
        restore = self._set(ends=False) if own else None
        try:
            yield self
        finally:
            if restore:
                restore()
                self._reset()

    def agree(self, several: bool) -> None:
        """From now on several processes stop together or not at all, so none may end by itself."""
        self._agreed = several
        if several:
            self._free_at = float("inf")

    @property
    def requested(self) -> bool:
        """Whether a signal has come, to any process of the run; all have to ask together."""
        if self._agreed:
            from entropy_rl.runtime import distributed  # here: it imports JAX

            self._signal = max(distributed.collect(int(self._signal)))
        return self._signal != 0

    def look(self) -> None:
        """Leaves if a signal has come; called where the last finished step is in memory or on disk.

        Raises:
            Stopped: A signal has come.
        """
        if self.requested:
            raise Stopped(self._code())

    def look_alone(self) -> None:
        """`look`, if this process runs alone: called in waits, which several processes do not enter together.

        Raises:
            Stopped: A signal has come.
        """
        if not self._agreed:
            self.look()

    def wait(self, future: "Future[T]") -> T:
        """The result of a future; the run may be stopped while it waits.

        Raises:
            Stopped: A signal has come.
        """
        while wait_for([future], timeout=0.2).not_done:
            self.look_alone()
        self.look_alone()  # what came first counts: a signal may have ended the graders too
        return future.result()

    def now(self, doing: str, lost: str = "") -> None:
        """Sets the words for what is being done ("step 12's rollout") and for what a stop would lose of it."""
        self._doing, self._lost = doing, lost

    def unsaved(self) -> None:
        """From now on the process holds work that is not on disk."""
        self._free_at = float("inf")

    def saved(self, what: str) -> None:
        """Everything that has a boundary is on disk: `what`, as in "step 11 is saved"."""
        self._saved = what
        if not self._agreed:
            self._free_at = time.monotonic() + _GRACE

    def at_end(self, call: Callable[[], None]) -> None:
        """A call to be made before the process is ended from outside the main thread."""
        self._last.append(call)

    def leave(self, speaks: bool = True) -> None:
        """Everything is saved and the run leaves; prints the one line about it, once."""
        self._free_at = time.monotonic() + (_LEAVING if self._agreed else _GRACE)
        if speaks and not self._told:
            self._told = True
            _say(self._line(self._signal))

    def _code(self) -> int:
        return INTERRUPTED if self._signal == signal.SIGINT else EXIT_CODE

    def _line(self, signum: int) -> str:
        parts = [f"{_NAMES[signal.Signals(signum)]}: stopped in {self._doing}", self._saved, self._lost]
        return "; ".join(filter(None, [*parts, "the same command continues"]))

    def _set(self, ends: bool) -> Callable[[], None]:
        """Sets handlers and thread; returns what undoes it."""
        pressed = 0

        def handle(signum: int, frame: FrameType | None) -> None:
            nonlocal pressed
            self._signal = self._signal or signum
            pressed += signum == signal.SIGINT
            if pressed > 1 and not ends:
                raise KeyboardInterrupt

        read, write = os.pipe()
        os.set_blocking(write, False)
        # whoever ignores a signal, as a shell's background jobs ignore Ctrl-C, continues to
        before = {s: signal.signal(s, handle) for s in _NAMES if signal.getsignal(s) is not signal.SIG_IGN}
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._depth += 1
        threading.Thread(target=self._watch, args=(read, ends), name="signals", daemon=True).start()

        def restore() -> None:
            self._depth -= 1
            signal.set_wakeup_fd(wakeup)
            for s, handler in before.items():
                signal.signal(s, handler)
            os.close(write)  # ends the thread

        return restore

    def _watch(self, read: int, ends: bool) -> None:
        """The thread: reads the signals' numbers, which Python's C code writes even if the main thread is busy."""
        signum, since, warned = 0, 0.0, False
        while True:
            if select.select([read], [], [], 0.2 if signum else None)[0]:
                if not (numbers := os.read(read, 64)):
                    os.close(read)
                    return
                for number in numbers:
                    late = time.monotonic() > since + _BOUNCE
                    if ends and number == signum == signal.SIGINT and late:
                        self._end(INTERRUPTED, f"Ctrl-C again: ended in {self._doing}, and nothing more is saved")
                    if number in _NAMES and not signum:
                        signum, since = number, time.monotonic()
            elif time.monotonic() > since + _GRACE:
                if ends and time.monotonic() > self._free_at:
                    self._end(INTERRUPTED if signum == signal.SIGINT else EXIT_CODE, self._line(signum))
                if not warned and not self._told and self._free_at == float("inf"):
                    warned = True
                    again = "; another Ctrl-C ends it at once, unsaved" if signum == signal.SIGINT else ""
                    _say(f"{_NAMES[signal.Signals(signum)]}: in {self._doing}, will save as soon as it can{again}")

    def _end(self, code: int, line: str) -> None:
        if not self._told:
            _say(line)
        for call in self._last:
            with contextlib.suppress(Exception):
                call()
        os._exit(code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


STOP = Stop()  # signals are the process's, so there is one
look: Callable[[], None] = STOP.look
wait: Callable[["Future[Any]"], Any] = STOP.wait
