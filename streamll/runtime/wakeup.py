"""Wakeup: a flag to wait for, which any thread, signal handler or finaliser may set without ever waiting itself."""

from __future__ import annotations

import _thread


class Wakeup:
    """A binary semaphore for one thread that waits. `threading.Event` takes a lock to set it, which deadlocks when a
    garbage collection inside sets it again; releasing a raw lock is one C call.

    The lock is made by the first wait: where gevent or eventlet have put their own locks and threads in the place of
    Python's since this was made, a greenlet that waited for one of Python's would stop all others too.
    """

    __slots__ = ("_is_set", "_lock")

    def __init__(self) -> None:
        self._is_set = False
        self._lock: _thread.LockType | None = None

    def set(self) -> None:
        """Wake the one that waits, or let the next wait return at once."""
        self._is_set = True
        if self._lock is not None and self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:  # somebody else was faster
                pass

    def wait(self, timeout: float) -> bool:
        """Wait to be set, and reset it; at most `timeout` seconds. Returns whether it was set."""
        if self._lock is None:
            self._lock = _thread.allocate_lock()
            self._lock.acquire()
        if self._is_set:
            timeout = 0
        woken = self._lock.acquire(timeout=timeout) if timeout > 0 else self._lock.acquire(blocking=False)
        woken, self._is_set = woken or self._is_set, False
        return woken
