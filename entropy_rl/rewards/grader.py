"""Scores responses in separate processes that can be killed.

A verifier can hang, crash, use up memory or run code that the model wrote, so it never runs in the trainer. Each item
is limited in CPU time, by a limit that the worker sets on itself and the kernel enforces. A worker that dies costs only
the item it was grading, and that item is tried once more in a fresh worker, so that a busy machine changes no reward.
Workers are forked in milliseconds from a process that has loaded the verifiers' libraries (`nursery`), and confine
themselves (`sandbox`). The verifiers of this package run no code from a text, and their workers serve many items. A
reward function of the user's own may run any, so its worker serves one item: nothing that it does reaches another
reward.
"""

import contextlib
import json
import math
import os
import pickle
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from absl import logging

from entropy_rl.rewards import nursery, sandbox
from entropy_rl.rewards.answer import MAX_RESPONSE_CHARS
from entropy_rl.rewards.nursery import GradersBroken
from entropy_rl.rewards.verify import is_own

Item = tuple[str, str, Any]  # (kind, response, answer)
Reply = tuple[float | None, str | None, str]  # (reward, the cause if there is none, detail)

ENOUGH = 8  # items, none of which can be scored: it is the graders that are broken
_LEAST_MEMORY_MB = 512  # with less, a verifier's own libraries run out of memory
_MOST_REPLY_BYTES = 65536
_CAUSES = ("timeout", "died", "memory", "raised")
_WORDS_CHARS = 300  # of what a worker wrote to stderr before it died

_told: set[str] = set()  # what is missing of the fence and was reported


class Grader:
    """Worker processes that score responses; a context manager.

    Args:
        workers: number of processes, each with an equal share of a batch. They start with the first `grade`.
        cpu_seconds: CPU time for one item.
        memory_mb: MiB of address space that an item may use beyond what the verifiers' libraries take.
        wall_seconds: wall time for one item, which also limits one that waits without using CPU; None: 10 cpu_seconds.

    Attributes:
        causes: number of items that could not be scored, by cause: "timeout", "died", "memory", "raised".

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_seconds: float = 2.0,
        memory_mb: int = 1024,
        wall_seconds: float | None = None,
    ):
        wall_seconds = 10 * cpu_seconds if wall_seconds is None else wall_seconds
        if workers < 1:
            raise ValueError(f"reward.workers is {workers}; grading needs at least 1")
        if not 0 < cpu_seconds <= wall_seconds:
            raise ValueError(f"reward.cpu_seconds is {cpu_seconds}; it must be in (0, {wall_seconds}], the wall time")
        if memory_mb < _LEAST_MEMORY_MB:
            raise ValueError(f"a Grader needs memory_mb >= {_LEAST_MEMORY_MB}, got {memory_mb}")
        self.causes: Counter[str] = Counter()
        self._cpu_seconds, self._wall_seconds, self._memory_mb = cpu_seconds, wall_seconds, memory_mb
        self._detail = ""  # of the last item that could not be scored
        self._kinds: set[str] = set()
        self._workers: list[_Worker | None] = [None] * workers

    def grade(self, items: Sequence[Item], *, local: bool = False) -> list[float | None]:
        """The rewards of (kind, response, answer) items, as from `rewards.score`; None: not scored.

        Args:
            items: a batch, the same on every process: the processes divide the items and exchange the results.
            local: the items are only this process's part of a batch: it grades them all, and exchanges nothing with
                other processes. The caller calls `refuse` if no item of the whole batch was scored.

        Raises:
            GradersBroken: If no item could be scored: the model would learn from its zeros. Not raised with `local`.
                Also if the graders' processes do not start.
            ValueError: If a kind is unknown or its library is missing.
        """
        from entropy_rl.runtime import distributed  # here: it imports JAX, which the workers must not load

        if not items:
            return []
        items = [(kind, response[-MAX_RESPONSE_CHARS - 1 :], answer) for kind, response, answer in items]
        if new := {kind for kind, _, _ in items} - self._kinds:
            self.close()  # a worker imports libraries before it enters the sandbox: a new kind needs new workers
            self._kinds |= new
        replies = self._replies(items) if local else distributed.share(items, self._replies)
        causes = Counter(cause for _, cause, _ in replies if cause)
        self.causes += causes
        self._detail = next((detail for _, cause, detail in reversed(replies) if cause), self._detail)
        if not local and all(reward is None for reward, _, _ in replies):
            self.refuse(len(items), causes)
        return [reward for reward, _, _ in replies]

    def _replies(self, items: list[Item]) -> list[Reply]:
        """The reply to each item, from all workers."""
        lanes = len(self._workers)
        shares = [items[lane::lanes] for lane in range(lanes)]
        if lanes == 1:
            return self._run(0, items)
        replies: list[Any] = [None] * len(items)
        with ThreadPoolExecutor(lanes) as pool:
            for lane, done in enumerate(pool.map(self._run, range(lanes), shares)):
                replies[lane::lanes] = done
        return replies

    def refuse(self, count: int, causes: Counter[str] | None = None) -> NoReturn:
        """Raises GradersBroken, a RuntimeError: no item was scored.

        Args:
            count: the number of items.
            causes: their causes; None: those of all items so far.
        """
        causes = self.causes if causes is None else causes
        raise GradersBroken(f"0 of {count} scored, by cause {dict(causes)}; the last: {self._detail}")

    def close(self) -> None:
        """Ends the workers. A later `grade` starts new ones."""
        for lane, worker in enumerate(self._workers):
            if worker is not None:
                worker.kill()
                self._workers[lane] = None

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, lane: int, items: list[Item]) -> list[Reply]:
        """The reply to each item, from one worker and its successors."""
        replies: list[Reply] = []
        tried_twice = -1
        while len(replies) < len(items):
            fault = self._grade(lane, items[len(replies) :], replies)
            if fault is None:
                continue
            culprit = len(replies)
            if culprit == tried_twice:
                cause, detail = fault
                replies.append((None, cause, f"{items[culprit][0]}: {detail}"))
            tried_twice = culprit
        return replies

    def _grade(self, lane: int, items: list[Item], replies: list[Reply]) -> tuple[str, str] | None:
        """Appends replies to the first items, by one worker; returns the fault of the item after these, if any."""
        if is_own(items[0][0]):
            worker = self._start(once=True)
            try:
                return worker.grade(items[:1], replies)
            finally:
                worker.kill()
        count = next((i for i, (kind, _, _) in enumerate(items) if is_own(kind)), len(items))
        worker = self._workers[lane] = self._workers[lane] or self._start(once=False)
        fault = worker.grade(items[:count], replies)
        if fault is not None or any(cause == "memory" for _, cause, _ in replies[-count:]):
            worker.kill()
            self._workers[lane] = None
        return fault

    def _start(self, once: bool) -> "_Worker":
        return _Worker(self._memory_mb, self._cpu_seconds, self._wall_seconds, sorted(self._kinds), once)


class _Worker:
    """One process, and the socket to it.

    Attributes:
        pid: its process id.
    """

    def __init__(self, memory_mb: int, cpu_seconds: float, wall_seconds: float, kinds: list[str], once: bool):
        self._memory_mb, self._cpu_seconds, self._wall_seconds = memory_mb, cpu_seconds, wall_seconds
        self._once = once
        self._ended: tuple[int, float] | None = None
        self._nursery, self._buffer, self._open = nursery.current(), b"", True
        self._inner_pid, self._channel, self._words = self._nursery.spawn(memory_mb, cpu_seconds, kinds, once)
        self.pid = self._outer_pid()
        ready = self._read(nursery.START_SECONDS)
        if not isinstance(ready, list) or ready[:1] != ["ready"]:
            _, detail = self._fault(ready)
            raise GradersBroken(f"a grader's worker did not start: {detail}")
        _tell(ready[1])

    def grade(self, items: list[Item], replies: list[Reply]) -> tuple[str, str] | None:
        """Appends a reply for each item, in order.

        Returns:
            None after the last item; otherwise (cause, detail) of the first item without a reply. The process has
            ended then.
        """
        message = pickle.dumps(items)
        self._channel.settimeout(self._wall_seconds)
        try:
            self._channel.sendall(len(message).to_bytes(8, "big") + message)
        except TimeoutError:
            return self._fault("late")
        except OSError:
            return self._fault(None)
        for kind, _, _ in items:
            reply = self._read(self._wall_seconds)
            if not _is_reply(reply, kind):
                return self._fault(reply)
            replies.append(tuple(reply))
        return None

    def kill(self) -> None:
        """Ends the process and closes what led to it; a second call does nothing."""
        if self._open:
            self._open = False
            self._ended = self._nursery.end(self._inner_pid)
            self._channel.close()
            os.close(self._words)

    def _fault(self, reply: Any) -> tuple[str, str]:
        last = self._last_words()
        self.kill()  # if it has ended already, this changes nothing, not even the exit status
        if reply == "late":
            return "timeout", f"over {self._wall_seconds} s of wall time"
        status, cpu_seconds = self._ended or (None, 0.0)
        if status == -signal.SIGPROF or (status == -signal.SIGKILL and cpu_seconds >= self._cpu_seconds):
            return "timeout", f"over {self._cpu_seconds} s of CPU time"
        if status == -signal.SIGSYS:
            return "memory", f"asked for too much memory at once ({sandbox.allowed(self._memory_mb)})"
        name = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
        allowed = f" ({sandbox.allowed(self._memory_mb)})" if self._once else ""
        return "died", f"the worker ended with status {status}{name}{last}{allowed}"

    def _last_words(self) -> str:
        try:
            words = os.read(self._words, 65536).decode(errors="replace").strip()
        except BlockingIOError:
            return ""
        return f"; it wrote: {words[-_WORDS_CHARS:]!r}" if words else ""

    def _outer_pid(self) -> int:
        """The worker's process id here, which the kernel adds to its first message.

        The nursery may have a namespace in which it has another one.
        """
        if sys.platform == "linux":
            self._channel.settimeout(nursery.START_SECONDS)
            with contextlib.suppress(OSError):
                self._buffer, extra, _, _ = self._channel.recvmsg(4096, socket.CMSG_SPACE(12))
                for _, kind, data in extra:
                    if kind == socket.SCM_CREDENTIALS:
                        return struct.unpack("3i", data)[0] or self._inner_pid
        return self._inner_pid

    def _read(self, seconds: float) -> Any:
        """The next message; "late" after that many seconds; None if there is none, or no short line of JSON."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer and len(self._buffer) <= _MOST_REPLY_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                return "late"
            self._channel.settimeout(left)
            try:
                data = self._channel.recv(_MOST_REPLY_BYTES)
            except TimeoutError:
                return "late"
            except OSError:
                return None
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None


def _tell(missing: list[str]) -> None:
    """Warns, once per process, of what the fence lacks on this machine."""
    if weak := [name for name in missing if name not in _told]:
        _told.update(weak)
        held = [name for name in ("Landlock", "seccomp") if name not in missing]
        logging.warning(
            "the fence around the graders' processes lacks %s here: the kernel has no such means, or this container "
            "forbids it. %s",
            ", ".join(weak),
            "Landlock and seccomp hold, which confine it as well."
            if len(held) == 2
            else "Code that a reward function runs from a response could do more than compute.",
        )


def _is_reply(reply: Any, kind: str) -> bool:
    # A worker that runs foreign code might write anything: only a reply that a worker could give is accepted.
    if not isinstance(reply, list) or len(reply) != 3 or not isinstance(reply[2], str):
        return False
    score, cause, _ = reply
    if score is None:
        return cause in _CAUSES
    if cause is not None or not isinstance(score, float):
        return False
    return math.isfinite(score) if is_own(kind) else score in (0.0, 1.0)
