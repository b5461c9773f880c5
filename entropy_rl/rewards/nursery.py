"""The process that graders' workers are forked from: the verifiers' libraries are imported once, not once a worker.

It is a fresh interpreter (a fork of the trainer, with JAX's threads in it, could deadlock) without our environment.
It evaluates nothing itself: a worker fences itself in after the fork (`sandbox`), and then serves. The nursery is the
workers' parent, so a process id stays theirs until it has been waited for here. It ends when the trainer does.
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
from typing import Any

START_SECONDS = 120.0
# No token of ours belongs in a process that evaluates a model's text.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT", "TMPDIR")

_current: "Nursery | None" = None
_lock = threading.Lock()


class Nursery:
    """One such process. Its calls may come from several threads."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        self._lock = threading.Lock()
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        # One thread: pools of a BLAS would only wait, each reserves address space, and none survives a fork.
        environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MPLBACKEND="agg")
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
                cwd="/",
            )

    def spawn(self, memory_mb: int, cpu_seconds: float, kinds: list[str]) -> tuple[int, int, int]:
        """(process id, descriptor to write items to, descriptor to read replies from) of a new worker.

        Raises:
            ValueError: a kind that cannot be had. RuntimeError: the nursery did not start, or has died.
        """
        path = [os.path.abspath(p) for p in sys.path]
        request = {"memory_mb": memory_mb, "cpu_seconds": cpu_seconds, "kinds": kinds, "path": path}
        inbox_read, inbox_write = os.pipe()
        outbox_read, outbox_write = os.pipe()
        try:
            reply = self._ask(request, [inbox_read, outbox_write])
        except BaseException:
            os.close(inbox_write)
            os.close(outbox_read)
            raise
        finally:
            os.close(inbox_read)
            os.close(outbox_write)
        if "failed" in reply:
            os.close(inbox_write)
            os.close(outbox_read)
            raise ValueError(reply["failed"])
        return reply["pid"], inbox_write, outbox_read

    def end(self, pid: int) -> int | None:
        """Kills a worker and returns its exit status, as subprocess has it; None where the nursery has died."""
        try:
            return self._ask({"end": pid})["status"]
        except RuntimeError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            return None

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, request: dict[str, Any], descriptors: list[int] | None = None) -> dict[str, Any]:
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
                raise RuntimeError(
                    f"the graders' nursery did not start or has died ({error}; exit status "
                    f"{self._process.returncode}); run it by hand to see why: {shlex.join(self._command)}"
                ) from error
        return json.loads(reply)


def current() -> Nursery:
    """This process's nursery, started where there is none."""
    global _current
    with _lock:
        if _current is None or not _current.alive():
            _current = Nursery()
        return _current


@atexit.register
def close() -> None:
    """Ends the nursery; workers still there end with their pipes."""
    global _current
    with _lock:
        if _current is not None:
            _current.close()
        _current = None
