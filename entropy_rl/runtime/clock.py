"""Where the time of a step goes."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Clock:
    """Seconds spent in named parts of a step, by `with clock("train"): …`.

    >>> clock = Clock()
    >>> with clock("train"):
    ...     pass
    >>> sorted(clock.lap())
    ['total', 'train']
    """

    def __init__(self) -> None:
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._began = time.monotonic()

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the time inside the context to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[part] += time.monotonic() - began

    def lap(self) -> dict[str, float]:
        """The seconds of each part since the last lap, and the "total" that passed; starts the next lap."""
        now = time.monotonic()
        found = {**self._spent, "total": now - self._began}
        self._spent, self._began = defaultdict(float), now
        return found
