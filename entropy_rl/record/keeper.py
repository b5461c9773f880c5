"""The newest boundary of a run: a state that it can be resumed from, and whether that is on disk."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from entropy_rl.record.checkpoint import Checkpoints
from entropy_rl.record.lock import Lock
from entropy_rl.runtime import distributed
from entropy_rl.runtime.preemption import Stop, Stopped

State = TypeVar("State")


class Keeper(Generic[State]):
    """Saves the states that a run reaches, when it is told to and when the run is stopped.

    Args:
        checkpoints: where.
        meta: goes into every checkpoint.
        lock: the run directory's; it is checked before every save.
        stop: is told what is on disk.
        name: the words for a state, with {} in place of its number: "step {}".
    """

    def __init__(self, checkpoints: Checkpoints, meta: Mapping[str, Any], lock: Lock, stop: Stop, name: str):
        self._checkpoints, self._meta, self._lock, self._stop, self._name = checkpoints, meta, lock, stop, name
        self._held: tuple[int, State, dict[str, Any]] | None = None

    def found(self, step: int) -> None:
        """The run resumes from a checkpoint."""
        self._stop.saved(f"{self._name.format(step)} is saved")

    def reached(self, step: int, state: State, **more: Any) -> None:
        """The run has reached a boundary, and could be resumed from this state.

        Args:
            step: the number of the state.
            state: must not be donated before `spent` is called.
            **more: JSON that a resumed run needs besides.
        """
        self._held = step, state, more
        self._stop.unsaved()

    def spent(self) -> None:
        """The state that was reached is about to be donated."""
        self._held = None

    def save(self) -> None:
        """Saves the state that was reached last, unless it is on disk already.

        Raises:
            RuntimeError: Another run has taken the directory over.
            OSError: It could not be written.
        """
        if self._held is None:
            return
        step, state, more = self._held
        self._lock.check()
        self._checkpoints.save(step, state, {**self._meta, **more})
        self._held = None
        self.found(step)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """A context that saves what was reached, if the run is stopped in it."""
        try:
            yield
        except Stopped:
            self.save()
            self._stop.leave(speaks=distributed.first())
            raise
