"""Wakeup: a flag to wait for, which any thread, signal handler or finaliser may set without ever waiting itself."""

from __future__ import annotations

from _thread import allocate_lock


class Wakeup:
    """A binary semaphore. `threading.Event` takes a lock to set it, which deadlocks when a garbage collection inside
    sets it again; releasing a raw lock is one C call.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the one that waits, or let the next wait return at once."""
        try:
            self._lock.release()
        except RuntimeError:  # it is set already
            pass

    def wait(self, timeout: float) -> bool:
        """Wait to be set, and reset it; at most `timeout` seconds. Returns whether it was set."""
        return self._lock.acquire(timeout=timeout) if timeout > 0 else self._lock.acquire(blocking=False)
