"""The heartbeat of an event loop: how late it is, when that makes the loop blocked, and what was seen meanwhile.

What belongs here: that decision and its bookkeeping, without a clock, a thread or a loop. What does not: who beats, who
looks, and how a stack is read (loop_watch.py, stack.py).

The loop itself beats, `interval` after the last beat, and whoever looks from another thread sees when a beat is
overdue. A loop is late by at most as long as it was kept from its beat, and by at least that less one interval.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from streamll.context import Scope

WAITING_BEATS = 4096
"""Beats that wait to be counted: three minutes of them, by default."""

WAITING_BLOCKS = 64
MAX_FRAMES = 16
"""Different frames and tasks that are counted while a loop is blocked."""


class Blocked(NamedTuple):
    """A stretch of time in which the loop did not get to its beat, in seconds.

    Attributes:
        due: When the beat was due.
        came: When it came.
    """

    due: float
    came: float


class Pulse:
    """One loop's beats. `beat` is for the loop's thread alone, all else for the one that looks.

    Args:
        interval: Seconds between two beats.
        threshold: Seconds by which a beat is late when the loop is blocked.

    Attributes:
        lags: Seconds by which beats were late, to be taken out by whoever counts them.
        blocks: The blocks that are over, to be taken out likewise.
        beats: How many beats there were.
    """

    def __init__(self, interval: float, threshold: float) -> None:
        self._interval = interval
        self._threshold = threshold
        self._due: float | None = None
        self.lags: deque[float] = deque(maxlen=WAITING_BEATS)
        self.blocks: deque[Blocked] = deque(maxlen=WAITING_BLOCKS)
        self.beats = 0

    def beat(self, now: float) -> None:
        """The loop has come to its beat. One that nobody expected is not late: the first after a pause."""
        due, self._due = self._due, now + self._interval
        self.beats += 1
        if due is not None:
            lag = max(0.0, now - due)
            self.lags.append(lag)
            if lag >= self._threshold:
                self.blocks.append(Blocked(due, now))

    def expect(self, now: float) -> None:
        """The loop, which has not beaten yet, was asked for its first beat: from now on it is overdue."""
        self._due = now

    def pause(self) -> None:
        """The loop does not run: nothing is due."""
        self._due = None

    def look(self, now: float) -> Blocked | None:
        """Return what may become a block: a beat that is overdue by half the threshold or more, so that one that lasts
        just as long as the threshold was seen, too."""
        due = self._due
        if due is None or now < due + self._threshold / 2:
            return None
        return Blocked(due, now)

    def look_next(self, now: float) -> float:
        """Return when to look again: when the next beat would be overdue by half the threshold, and where it is already,
        after another interval. As long as the loop beats, that is less often than it does."""
        due = self._due
        overdue = due + self._threshold / 2 if due is not None else now
        return overdue if overdue > now else now + self._interval

    def is_due(self, when: float) -> bool:
        """Whether the next beat is still the one that was due then."""
        return self._due == when


class Seen(NamedTuple):
    """What a blocked loop's thread was doing, in words.

    Attributes:
        frame: The innermost frame: "file:line in function".
        stack: The frames, outermost first, from where the loop called the program.
        module_name, method_name: The innermost frame of the program's own: not of the standard library, nor of an
            installed package, where there is such a one.
        operation: What the loop had called: the task's coroutine, or the callback.
        task: The task's name; empty outside of any.
        scope: Where the task is in the program: its execution and span, where Python can tell (3.12 and later).
    """

    frame: str
    stack: list[str]
    module_name: str
    method_name: str
    operation: str
    task: str
    scope: Scope | None


class Notes:
    """What was seen during one block.

    Args:
        due: When the beat was due.

    Attributes:
        due: As given.
        first: What was seen first; None while nothing was.
        samples: How often somebody looked and saw something.
        frames: The innermost frames seen, and how often each was; of at most MAX_FRAMES.
        tasks: The tasks seen, likewise.
        told: Whether it was told while it went on.
    """

    def __init__(self, due: float) -> None:
        self.due = due
        self.first: Seen | None = None
        self.samples = 0
        self.frames: dict[str, int] = {}
        self.tasks: dict[str, int] = {}
        self.told = False

    def add(self, seen: Seen) -> None:
        """Note what was seen at one look."""
        self.first = self.first or seen
        self.samples += 1
        _count(self.frames, seen.frame)
        if seen.task:
            _count(self.tasks, seen.task)


def _count(counts: dict[str, int], name: str) -> None:
    if name in counts or len(counts) < MAX_FRAMES:
        counts[name] = counts.get(name, 0) + 1
