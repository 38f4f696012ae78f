"""The end of the process: every sink that still runs is drained, all at the same time, within its exit_timeout.

What belongs here: who is drained, who has a last word before or after that, and the ends that Python tells us of: the
interpreter's, and that of a child of multiprocessing. What does not: signals (signals.py), or how one sink is drained
(worker.py).
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from streamll.runtime.fork import tell_after_fork
from streamll.runtime.hosts import settle_in

log = logging.getLogger("streamll")


class Stoppable(Protocol):
    """A sink, as its end sees it."""

    @property
    def exit_timeout(self) -> float:
        """Seconds that the exit waits for it."""

    def request_flush(self) -> None:
        """Have what it holds delivered at once; returns at once, and never raises."""

    def begin_stop(self, timeout: float) -> None:
        """Start to drain; returns at once, and never raises."""

    def finish_stop(self) -> None:
        """Wait for the drain to end or its time to be over."""

    def say_what_is_lost(self) -> None:
        """Say in one line what could not be delivered, if anything."""


# Not weak references: a sink that nobody holds any more has events to deliver all the same.
_running: set[Stoppable] = set()

# The processes that did it.
_told_multiprocessing = 0
_settled_in = 0


def stop_at_exit(sink: Stoppable) -> None:
    """Drain this sink at the interpreter's exit, unless it is forgotten before; it lives until then."""
    global _settled_in
    _running.add(sink)
    if _settled_in != os.getpid():
        _settled_in = os.getpid()
        settle_in(_leaving.leave)
    _leave_with_multiprocessing()


def forget(sink: Stoppable) -> None:
    """Take back `stop_at_exit`: the sink has been stopped."""
    _running.discard(sink)


def running() -> list[Stoppable]:
    """The sinks that would be drained now."""
    return list(_running)


# In the order in which they were given, each once.
_first: dict[Callable[[], None], None] = {}
_last: dict[Callable[[], None], None] = {}


def call_at_leave(function: Callable[[], None], *, drained: bool = False) -> None:
    """Call a function at the end of this process, and of those forked from it, each time that its sinks are drained.

    Args:
        function: Called without arguments; what it raises is logged. Called again at a second end, if there is one.
        drained: False: before the sinks are drained, so that what it emits still goes out. True: afterwards.
    """
    (_last if drained else _first)[function] = None
    _leave_with_multiprocessing()


def do_not_call_at_leave(function: Callable[[], None]) -> None:
    """Take back `call_at_leave`."""
    _first.pop(function, None)
    _last.pop(function, None)


def has_work() -> bool:
    """Whether there is anything to do at the end of the process."""
    return bool(_running or _first or _last)


def _call(functions: Mapping[Callable[[], None], None]) -> None:
    for function in list(functions):
        try:
            function()
        except Exception:  # what is buffered must be delivered all the same
            log.warning("what was to be done at the end of the process failed", exc_info=True)


def stop_together(timeouts: Mapping[Stoppable, float]) -> None:
    """Stop several sinks at the same time, so that a dead one takes nothing of the others' time.

    Args:
        timeouts: Each sink, and the seconds that its drain may take.
    """
    for sink, timeout in timeouts.items():
        sink.begin_stop(timeout)
    for sink in timeouts:
        sink.finish_stop()


class _Leaving:
    """The draining of all sinks: one thread does it at a time, and there may be more to do when it is done."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Whoever was leaving is not in the child, whose own end may be the first that there is anything to do at."""
        self._lock = threading.RLock()
        self._thread = 0
        self._then: deque[Callable[[], None]] = deque()
        if has_work() and not _told_multiprocessing:
            _leave_with_multiprocessing()

    def leave(self) -> None:
        """Drain all sinks, say what is lost, and do what was asked for afterwards."""
        with self._lock:
            self._thread = threading.get_ident()
            try:
                _call(_first)
                sinks = running()
                stop_together({sink: sink.exit_timeout for sink in sinks})
                for sink in sinks:
                    sink.say_what_is_lost()
                _call(_last)
            except KeyboardInterrupt:  # a second Ctrl-C: whoever presses it wants the end now
                log.warning("interrupted while the last events were being delivered")
            finally:
                self._thread = 0
            while self._then:
                self._then.popleft()()

    def leave_elsewhere(self, then: Callable[[], None]) -> None:
        """The same on another thread, where there can be one, and then `then`; returns at once there."""
        self._then.append(then)
        if self._thread == threading.get_ident():
            return  # this interrupts `leave`, which goes on
        try:
            _thread.start_new_thread(self.leave, ())  # threading's own way takes locks and waits, which signals may not
        except RuntimeError:  # the interpreter is ending, or there are too many threads
            self.leave()


_leaving = _Leaving()
leave_elsewhere = _leaving.leave_elsewhere
atexit.register(_leaving.leave)


def _leave_with_multiprocessing() -> None:
    """A child of multiprocessing, however it was started, runs its finalizers at its end, and no atexit function."""
    global _told_multiprocessing
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is None or _told_multiprocessing == os.getpid():
        return
    _told_multiprocessing = os.getpid()
    # It forgets the finalizers of its parent, and those made while a spawned child imports the main module.
    multiprocessing.register_after_fork(_leaving, _leave_with_child)
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        _leave_with_child(_leaving)


def _leave_with_child(leaving: _Leaving) -> None:
    global _told_multiprocessing
    _told_multiprocessing = os.getpid()
    # Behind all others, which may emit.
    sys.modules["multiprocessing.util"].Finalize(None, leaving.leave, exitpriority=-1000)
