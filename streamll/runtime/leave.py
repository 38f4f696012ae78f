"""The interpreter's exit: every sink that still runs is drained, all at the same time, within its exit_timeout."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping
from typing import Protocol

log = logging.getLogger("streamll")


class Stoppable(Protocol):
    """A sink, as its end sees it."""

    @property
    def exit_timeout(self) -> float:
        """Seconds that the exit waits for it."""

    def begin_stop(self, timeout: float) -> None:
        """Start to drain; returns at once, and never raises."""

    def finish_stop(self) -> None:
        """Wait for the drain to end or its time to be over."""

    def say_what_is_lost(self) -> None:
        """Say in one line what could not be delivered, if anything."""


# Not weak references: a sink that nobody holds any more has events to deliver all the same.
_running: set[Stoppable] = set()

_told_multiprocessing = 0  # the process that did it


def stop_at_exit(sink: Stoppable) -> None:
    """Drain this sink at the interpreter's exit, unless it is forgotten before; it lives until then."""
    _running.add(sink)
    _leave_with_multiprocessing()


def forget(sink: Stoppable) -> None:
    """Take back `stop_at_exit`: the sink has been stopped."""
    _running.discard(sink)


def stop_together(timeouts: Mapping[Stoppable, float]) -> None:
    """Stop several sinks at the same time, so that a dead one takes nothing of the others' time.

    Args:
        timeouts: Each sink, and the seconds that its drain may take.
    """
    for sink, timeout in timeouts.items():
        sink.begin_stop(timeout)
    for sink in timeouts:
        sink.finish_stop()


def _leave_with_multiprocessing() -> None:
    """A child that multiprocessing forked runs its finalizers at its end, and then no atexit function: it ends by _exit."""
    global _told_multiprocessing
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _told_multiprocessing == os.getpid():
        return
    from multiprocessing.util import Finalize  # every such child has it already

    Finalize(None, _leave, exitpriority=-1000)  # behind all others, which may emit
    _told_multiprocessing = os.getpid()


@atexit.register
def _leave() -> None:
    sinks = list(_running)
    try:
        stop_together({sink: sink.exit_timeout for sink in sinks})
        for sink in sinks:
            sink.say_what_is_lost()
    except KeyboardInterrupt:  # a second Ctrl-C: whoever presses it wants the end now
        log.warning("interrupted while the last events were being delivered")
