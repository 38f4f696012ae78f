"""Waiters: the threads that wait for something to be settled, for room or for a flush."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from streamll.runtime.wakeup import Wakeup


class Waiters:
    """Flags of threads that wait; changed under a lock that is not held while they do.

    Args:
        lock: The lock.
    """

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._flags: deque[Wakeup] = deque()

    def __len__(self) -> int:
        return len(self._flags)

    @contextmanager
    def waiter(self) -> Iterator[Wakeup]:
        """A flag that is set whenever something is settled, and forgotten afterwards, settled or not."""
        flag = Wakeup()
        with self._lock:
            self._flags.append(flag)
        try:
            yield flag
        finally:
            with self._lock:
                self._flags.remove(flag)

    def tell(self) -> None:
        """Something was settled. The lock is held."""
        for flag in tuple(self._flags):
            flag.set()
