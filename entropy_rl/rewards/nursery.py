"""The process that graders' workers are forked from: it imports the verifiers' libraries once for all workers.

It is a fresh interpreter (a fork of the trainer, with JAX's threads, could deadlock) without the trainer's environment
variables. It evaluates nothing itself: a worker enters the fence (`sandbox`) after the fork, and then serves. The
nursery is the workers' parent, so no other process can get a worker's id until the nursery has waited for the worker.
It ends when the trainer does, and all workers with it.
"""

import atexit
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

START_SECONDS = 120.0  # for a reply, which includes the time to start and to import libraries
_END_SECONDS = 10.0  # for a killed process to end
# A process that evaluates a model's text must not see tokens and passwords in the environment.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")

_current: "Nursery | None" = None
_lock = threading.Lock()


class GradersBroken(RuntimeError):
    """Nothing can be scored: the graders' processes do not start, or no response of a batch could be scored."""


class Spawned(NamedTuple):
    """A new worker.

    Attributes:
        pid: its process id, as the nursery sees it.
        channel: items are written to it, and replies read from it.
        words: the descriptor of a pipe with what the worker writes to stderr; reading does not wait.
    """

    pid: int
    channel: socket.socket
    words: int


class Nursery:
    """One such process. Several threads may call its methods."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        self._lock = threading.Lock()
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        # One thread: the thread pool of a BLAS would be idle, reserves address space, and does not survive a fork.
        # And one more arena for malloc at most, because each reserves 64 MiB.
        environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="2", MPLBACKEND="agg")
        script = Path(__file__).with_name("worker.py")
        self._command = [sys.executable, "-B", "-P", str(script), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )

    def spawn(self, memory_mb: int, cpu_seconds: float, kinds: list[str], once: bool = False) -> Spawned:
        """Starts a new worker.

        Args:
            memory_mb: MiB that it may use beyond what the verifiers' libraries take.
            cpu_seconds: CPU time for one item.
            kinds: the kinds that it can grade.
            once: it serves one item.

        Raises:
            ValueError: If a kind is unknown or its library is missing.
            GradersBroken: If the nursery did not start, or has died.
        """
        request = {"memory_mb": memory_mb, "cpu_seconds": cpu_seconds, "kinds": kinds, "once": once}
        request |= {
            "path": [os.path.abspath(p) for p in sys.path],
            "folder": os.getcwd(),
            "home": os.path.expanduser("~"),
        }
        channel, theirs = socket.socketpair()
        if sys.platform == "linux":  # the worker's first message then comes with its process id in this namespace
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        words, their_words = os.pipe()
        for end in (words, their_words):
            os.set_blocking(
                end, False
            )  # a worker that writes more than a pipe holds must not wait, nor must its reader
        try:
            reply = self._ask(request, [theirs.fileno(), their_words])
            if "failed" in reply:
                raise ValueError(reply["failed"])
        except BaseException:
            channel.close()
            os.close(words)
            raise
        finally:
            theirs.close()
            os.close(their_words)
        return Spawned(reply["pid"], channel, words)

    def end(self, pid: int) -> tuple[int, float] | None:
        """Kills a worker.

        Returns:
            (its exit status as `subprocess` gives it, the seconds of CPU time it used); None if the nursery has died,
            and the worker with it.
        """
        try:
            reply = self._ask({"end": pid})
        except GradersBroken:
            return None
        return reply["status"], reply["cpu_seconds"]

    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        self._control.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is stuck in the kernel, and ends when it can
            self._process.wait(_END_SECONDS)

    def _ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
        """The reply to a request; descriptors go with it."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            try:
                if descriptors:
                    socket.send_fds(self._control, [line[:1]], descriptors)
                    line = line[1:]
                self._control.sendall(line)
                reply = b""
                while not reply.endswith(b"\n"):
                    part = self._control.recv(65536)
                    if not part:
                        raise ConnectionError("it closed its end")
                    reply += part
            except OSError as error:
                self.close()
                raise GradersBroken(
                    f"the graders' nursery did not start or has died ({error}; exit status "
                    f"{self._process.returncode}); run it by hand to see why: {shlex.join(self._command)}"
                ) from error
        return json.loads(reply)


def current() -> Nursery:
    """The nursery of this process; starts one if there is none, or if it has died."""
    global _current
    with _lock:
        if _current is None or not _current.alive():
            _current = Nursery()
        return _current


@atexit.register
def close() -> None:
    """Ends the nursery. Workers that are left end when their pipes close."""
    global _current
    with _lock:
        if _current is not None:
            _current.close()
        _current = None
