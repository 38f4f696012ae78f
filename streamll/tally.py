"""Counting from any thread, signal handler or finaliser without a lock that could be waited for."""

from __future__ import annotations

from collections import deque
from threading import Lock

_FOLD_AT = 256


class Tally:
    """Counters by name. Adding never waits, and may happen in the middle of another addition.

    `total += n` is not atomic, and a plain lock around it deadlocks when a garbage collection inside comes back here.
    So additions are noted, in one C call, and folded into the totals by whoever gets the lock without waiting.
    """

    def __init__(self) -> None:
        self._noted: deque[tuple[str, int]] = deque()
        self._totals: dict[str, int] = {}
        self._folding = Lock()

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more under `name`."""
        if n:
            self._noted.append((name, n))
            if len(self._noted) >= _FOLD_AT:
                self._fold()

    def read(self) -> dict[str, int]:
        """Return the totals by name; what is being added at this moment may be missing."""
        self._fold()
        return dict(self._totals)

    def _fold(self) -> None:
        if self._folding.acquire(blocking=False):
            try:
                for _ in range(len(self._noted)):
                    name, n = self._noted.popleft()
                    self._totals[name] = self._totals.get(name, 0) + n
            finally:
                self._folding.release()
