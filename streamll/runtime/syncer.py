"""Syncer: the thread that has the disk take what was stored, a bounded time after it was.

What belongs here: when to sync. What does not: how (journal.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamll.context import mute_this_thread
from streamll.runtime.wakeup import Wakeup

_RETRY_AFTER = 1.0
_JOIN = 5.0


class Syncer:
    """Calls `sync` a little after something became due, on a thread of its own that starts with the first.

    Args:
        sync: Does it, and returns whether it succeeded; if not, it is called again a second later.
        interval: Seconds from something due to the call at most, so that what comes meanwhile goes with it.
    """

    def __init__(self, sync: Callable[[], bool], interval: float) -> None:
        self._sync = sync
        self._interval = interval
        self._due = Wakeup()
        self._ended = Wakeup()
        self._is_over = False
        self._last_sync = False
        self._thread: threading.Thread | None = None

    def due(self) -> None:
        """Sync soon; waits for nothing, but for the thread to start at first."""
        self._due.set()
        if self._thread is None and not self._is_over:
            thread = threading.Thread(target=self._run, name="streamll-sync", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread can be started any more: `stop` syncs
                self._is_over = True
                return
            self._thread = thread

    def _run(self) -> None:
        mute_this_thread()
        while True:
            self._due.wait(threading.TIMEOUT_MAX)
            self._ended.wait(self._interval)
            if self._is_over:
                break
            if not self._sync():
                self._due.set()
                self._ended.wait(_RETRY_AFTER)
        if self._last_sync:
            self._sync()

    def stop(self, sync: bool) -> None:
        """End the thread, and wait for it, at most `_JOIN` seconds: a disk that hangs keeps nobody from leaving.

        Args:
            sync: Sync a last time.
        """
        self._last_sync = sync
        self._is_over = True
        self._ended.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join(_JOIN)
        elif sync:
            self._sync()
