"""Scores responses in separate processes that can be killed.

A verifier can hang, crash, use up memory or evaluate the text that the model wrote, so it never runs in the trainer.
Each item is limited in CPU time, by a limit that the worker sets on itself and the kernel enforces. A worker that dies
costs only the item it was grading, and that item is tried once more in a fresh worker, so that a busy machine changes
no reward. Workers are forked in milliseconds from a process that has loaded the verifiers' libraries (`nursery`).
"""

import contextlib
import json
import os
import pickle
import select
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from entropy_rl.rewards import nursery
from entropy_rl.rewards.answer import MAX_RESPONSE_CHARS
from entropy_rl.rewards.verify import is_own

Item = tuple[str, str, Any]  # (kind, response, answer)
Reply = tuple[float | None, str | None, str]  # (reward, the cause if there is none, detail)

# With less, a verifier's own libraries run out of memory, and some verifiers treat a MemoryError as a wrong answer.
_LEAST_MEMORY_MB = 512


class Grader:
    """Worker processes that score responses; a context manager.

    Args:
        workers: number of processes, each with an equal share of a batch. They start with the first `grade`.
        cpu_seconds: CPU time for one item.
        memory_mb: address space of one worker, in MiB.
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
            RuntimeError: If no item could be scored: the grader is broken, and the model would learn from its zeros.
                Not raised with `local`.
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
        """Raises RuntimeError: no item was scored.

        Args:
            count: the number of items.
            causes: their causes; None: those of all items so far.
        """
        causes = self.causes if causes is None else causes
        raise RuntimeError(f"0 of {count} scored, by cause {dict(causes)}; the last: {self._detail}")

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
            worker = self._workers[lane]
            if worker is None:
                worker = _Worker(self._memory_mb, self._cpu_seconds, self._wall_seconds, sorted(self._kinds))
                self._workers[lane] = worker
            fault = worker.grade(items[len(replies) :], replies)
            if fault is None:
                break
            worker.kill()
            self._workers[lane] = None
            culprit = len(replies)
            if culprit == tried_twice:
                cause, detail = fault
                replies.append((None, cause, f"{items[culprit][0]}: {detail}"))
            tried_twice = culprit
        return replies


class _Worker:
    """One process and its two pipes."""

    def __init__(self, memory_mb: int, cpu_seconds: float, wall_seconds: float, kinds: list[str]):
        self._cpu_seconds, self._wall_seconds = cpu_seconds, wall_seconds
        self._status: int | None = None
        self._nursery, self._buffer = nursery.current(), b""
        self.pid, inbox, self._outbox = self._nursery.spawn(memory_mb, cpu_seconds, kinds)
        self._inbox = os.fdopen(inbox, "wb")
        if self._read(nursery.START_SECONDS) != "ready":
            self.kill()
            raise RuntimeError(f"a grader's worker did not start (exit status {self._status})")

    def grade(self, items: list[Item], replies: list[Reply]) -> tuple[str, str] | None:
        """Appends a reply for each item, in order.

        Returns:
            None after the last item; otherwise (cause, detail) of the first item without a reply.
        """
        message = pickle.dumps(items)
        try:
            self._inbox.write(len(message).to_bytes(8, "big") + message)
            self._inbox.flush()
        except BrokenPipeError:
            return self._fault(None)
        for kind, _, _ in items:
            reply = self._read(self._wall_seconds)
            if not _is_reply(reply, kind):
                return self._fault(reply)
            replies.append(tuple(reply))
        return None

    def kill(self) -> None:
        """Ends the process and closes the pipes; a second call does nothing."""
        if self._outbox < 0:
            return
        self._status = self._nursery.end(self.pid)
        with contextlib.suppress(BrokenPipeError):  # it had not read everything, which no longer matters
            self._inbox.close()
        os.close(self._outbox)
        self._outbox = -1

    def _fault(self, reply: Any) -> tuple[str, str]:
        self.kill()  # if it has ended already, this changes nothing, not even the exit status
        if reply == "late":
            return "timeout", f"over {self._wall_seconds} s of wall time"
        if self._status == -signal.SIGPROF:
            return "timeout", f"over {self._cpu_seconds} s of CPU time"
        return "died", f"the worker ended with status {self._status}"

    def _read(self, seconds: float) -> Any:
        """The next message; "late" after that many seconds; None if the process ended or the message is not JSON."""
        poll = select.poll()  # not select(): a trainer may have more than 1024 open files
        poll.register(self._outbox, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return "late"
            data = os.read(self._outbox, 65536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError:
            return None


def _is_reply(reply: Any, kind: str) -> bool:
    # Text that a verifier evaluates might write to the pipe: only a reply that a worker could give is accepted.
    if not isinstance(reply, list) or len(reply) != 3:
        return False
    return reply[0] is None or reply[0] in (0.0, 1.0) or (is_own(kind) and isinstance(reply[0], float))
