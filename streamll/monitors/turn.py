"""Turn: a lock that its own thread does not wait for.

What belongs here: that lock, for tools whose code a signal handler or a finaliser may enter while it runs. What does
not: what is done under it.
"""

from __future__ import annotations

import threading
from threading import get_ident


class Turn:
    """A lock that a thread which has it already does not get: neither waits for itself nor comes in between."""

    __slots__ = ("_lock", "_owner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0

    def take(self, timeout: float = 0.0) -> bool:
        """Take it; return whether it was to be had within so many seconds."""
        if self._owner == get_ident():
            return False
        taken = self._lock.acquire(timeout=timeout) if timeout else self._lock.acquire(blocking=False)
        if taken:
            self._owner = get_ident()
        return taken

    def give(self) -> None:
        """Give it back."""
        self._owner = 0
        self._lock.release()
