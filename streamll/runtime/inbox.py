"""Inbox: where records lie that were accepted and have no number yet. Whoever puts one there waits for nobody.

What belongs here: the steps between a thread that emits and the queues, each of which a signal handler or a garbage
collection may come between. What does not: the numbers and the counting, which the buffer does under its lock.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from streamll.models import Record
from streamll.options import KIB
from streamll.runtime.waiting import ENTRY_OVERHEAD

NEVER = 1 << 62

SMALL = 4 * KIB - ENTRY_OVERHEAD
"""The longest payload that comes in by the inbox, where each record is counted as if it had this length."""

MOST = 4096
"""The most that may lie there: they are numbered in one go, during which no other thread runs, for half a millisecond."""

SPARE = 8
"""Places that stay free: so many threads may be between their look at the room and their step into it."""


class Inbox:
    """Records on their way in.

    Attributes:
        records: Anybody may append one while there are fewer than `room`, without any lock.
        moving: Those that have left `records`, and are being numbered.
        room: How many may lie there.
        wake_at: At how many the worker is to be told.
    """

    __slots__ = ("_moved_after", "_wake_total", "moving", "records", "room", "wake_at")

    def __init__(self) -> None:
        self.records: deque[Record] = deque()
        self.moving: list[Record] = []
        self.room = 0
        self.wake_at = self._wake_total = NEVER
        self._moved_after = 0

    def __bool__(self) -> bool:
        return bool(self.records or self.moving)

    def __len__(self) -> int:
        return len(self.records) + len(self.moving)

    def gather(self, after: int) -> list[Record]:
        """Move all that lies there to `moving`, and return that, to be numbered.

        Args:
            after: The number before the first that they will get.
        """
        self._moved_after = after
        n = len(self.records)
        self.room -= n  # first: what leaves makes no room
        # One step, for signal handlers too: at no time is a record in neither place.
        self.moving.extend(islice(iter(self.records.popleft, None), n))
        return self.moving

    def recover(self, accepted: int) -> None:
        """After an interrupt: forget what was moving, if it has its numbers."""
        if accepted > self._moved_after:
            self.moving.clear()

    def tune(self, room: int, waiting: int) -> None:
        """Say how much room there is, when so many wait in the queues."""
        self.room = room
        self.wake_at = self._wake_total - waiting

    def wake_when(self, total: int, waiting: int) -> None:
        """Have the worker told as soon as `total` wait, here and in the queues together, where `waiting` wait now.

        Only the worker says so. Were it those who tell it that put an end to that, one of them could do so late, when
        the worker has asked anew; or be interrupted between that and the telling.
        """
        self._wake_total = total
        self.wake_at = total - waiting
