"""A run directory belongs to one run at a time: `lock.json` names its host and process, and its heart beats.

    {"host": …, "machine": …, "pid": …, "born": …, "token": …, "time": …}

A bucket has no exclusive create. So a run writes its token, and reads it back later, before it changes anything: of
two that start together the one whose token was overwritten leaves. If one is so slow that it overwrites a token that
has been read back, the other one sees that at its next look, before its next row or checkpoint, and stops. So at most
one run continues, and never do two write for longer than one step.
"""

import json
import os
import pathlib
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any, Self

from absl import logging
from etils import epath

from entropy_rl.record import files
from entropy_rl.runtime import distributed

NAME = "lock.json"
BEAT = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds without a heartbeat after which a run on another machine is dead
_SETTLE = 0.5  # seconds from writing a token to reading it back, at least
_FIELDS: dict[str, Any] = {"host": str, "machine": str, "pid": int, "born": str, "token": str, "time": (int, float)}


class Lock:
    """The lock of a run directory, as a context. Only the first process of a run holds it.

    On this machine a lock is stale as soon as its process has ended. On another machine it is stale after `stale`
    seconds without a heartbeat; a lock that is younger is watched for as long, because a job that was moved to another
    machine starts before its old lock is stale.

    Args:
        workdir: the run directory; made if it does not exist.
        beat: seconds between two heartbeats.
        stale: seconds without one.

    Raises:
        ValueError: On entering: another run is alive in the directory, or the directory is a file.
        OSError: On entering: the directory cannot be written.
    """

    def __init__(self, workdir: epath.Path | str, beat: float = BEAT, stale: float = STALE):
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / NAME
        self._beat_seconds, self._stale = beat, stale
        self._own = _identity()
        self._written = 0.0
        self._held = False
        self._ended = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> Self:
        distributed.outcomes(self._acquire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def confirm(self) -> None:
        """Reads the token back; call it before anything in the directory is changed.

        Raises:
            ValueError: Another run has written its token since.
        """
        distributed.outcomes(self._confirm)

    def check(self) -> None:
        """Call it before every row and checkpoint.

        Raises:
            RuntimeError: Another run has taken the directory over.
        """
        distributed.outcomes(self._check)

    def release(self) -> None:
        """Ends the heartbeat and removes the lock, if it is still this run's. A second call does nothing."""
        self._ended.set()
        if not self._held or not self._writing.acquire(timeout=2):
            return
        try:
            self._held = False
            if _is(_read(self._path), self._own):
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logging.warning("%s could not be removed (%s); it is stale once this process has ended", self._path, error)
        finally:
            self._writing.release()

    def _acquire(self) -> None:
        if not distributed.first():
            return
        files.make_folder(self._workdir, "--workdir")
        self._wait_for_another()
        try:
            self._write()
        except OSError as error:
            raise OSError(f"--workdir={self._workdir} cannot be written: {error.strerror or error}") from error
        self._held, self._written = True, time.monotonic()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _wait_for_another(self) -> None:
        """Returns once no other run holds the lock."""
        began, seen = time.monotonic(), None
        while (held := _read(self._path)) is not None:
            if held["machine"] == self._own["machine"]:
                if _born(held["pid"]) != held["born"]:
                    return  # that process has ended
                self._refuse(held)
            if seen is not None and held != seen:
                self._refuse(held)  # its heart has just beaten
            age = min(max(time.time() - held["time"], 0.0), self._stale)  # clocks may differ
            if time.monotonic() - began >= self._stale - age:
                logging.warning("%s: no heartbeat of %s, taken over", self._path, _who(held))
                return
            if seen is None:
                logging.warning("%s is held by %s; watching its heartbeat", self._path, _who(held))
            seen = held
            time.sleep(min(1.0, self._beat_seconds))

    def _refuse(self, held: dict[str, Any]) -> None:
        raise ValueError(
            f"--workdir={self._workdir} is in use by another run, {_who(held)}; stop that run, or take another "
            f"workdir (if no such run exists, remove {self._path})"
        )

    def _confirm(self) -> None:
        if self._held:
            time.sleep(max(0.0, self._written + _SETTLE - time.monotonic()))
            held = _read(self._path)
            if held is not None and not _is(held, self._own):
                self._refuse(held)

    def _check(self) -> None:
        held = _read(self._path) if self._held else None
        if held is not None and not _is(held, self._own):
            raise RuntimeError(
                f"{self._path}: another run, {_who(held)}, has taken this directory over; this run stops and writes "
                "nothing more"
            )

    def _write(self) -> None:
        text = json.dumps(self._own | {"time": time.time()}) + "\n"
        files.replace(self._path, text, aside=self._own["token"])

    def _beat(self) -> None:
        warned = False
        while not self._ended.wait(self._beat_seconds):
            with self._writing:
                if self._ended.is_set():
                    return
                try:
                    held = _read(self._path)
                    if held is not None and not _is(held, self._own):
                        return  # lost: `check` says so
                    self._write()
                    warned = False
                except OSError as error:  # a full disk or a bucket that is away for a while
                    if not warned:
                        logging.warning("%s: the heartbeat could not be written (%s)", self._path, error)
                    warned = True


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The lock, or None if there is none, or none that a run could have written."""
    try:
        held = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(held, dict) or not all(isinstance(held.get(k), kind) for k, kind in _FIELDS.items()):
        return None
    return held


def _is(held: dict[str, Any] | None, own: dict[str, Any]) -> bool:
    return held is not None and held["token"] == own["token"]


def _who(held: dict[str, Any]) -> str:
    age = max(0.0, time.time() - held["time"])
    return f"process {held['pid']} on {held['host']}, whose last heartbeat was {age:.0f} s ago"


def _identity() -> dict[str, Any]:
    """Names this process. Two processes see each other's ids only on one boot and in one pid namespace."""
    host, pid = socket.gethostname(), os.getpid()
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = host
    return {"host": host, "machine": machine, "pid": pid, "born": _born(pid), "token": uuid.uuid4().hex}


def _born(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; "alive" without /proc; "" if it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
