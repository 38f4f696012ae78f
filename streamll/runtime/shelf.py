"""Shelf: what of one buffer's events lies on disk, and which of them lie nowhere else.

What belongs here: when an event goes to the journal, and what is counted as spooled. What does not: files (journal.py).
All of it is called under the buffer's lock, but for what only the worker calls: `read_ahead` and `release`.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamll.delivery.outcome import Entry
from streamll.ranges import RangeSet
from streamll.runtime.journal import Journal
from streamll.runtime.waiting import RANKS, rank_of

_ROOM = {RANKS["debug"]: 0.8, RANKS["normal"]: 0.95, RANKS["critical"]: 1.0}
"""How full the spool may be for an event of each class to be taken: the higher ones keep room for themselves."""


class Shelf:
    """The journal of one producer, as its buffer uses it.

    Args:
        journal: Where events are kept.
        always: Whether every event is in it, not only those for which there was no room.
        adopted: Events that a dead process has left in it, all of which lie there only; None: it is this process's own.

    Attributes:
        spooled: Events that lie on disk only.
        unprotected: Events that were to be on disk and are in memory only, because the disk did not take them.
    """

    def __init__(self, journal: Journal, always: bool, adopted: int | None = None) -> None:
        self.journal = journal
        self.always = always
        self.spooled = adopted or 0
        self.unprotected = 0
        self._adopted = adopted is not None
        self._undeclared = RangeSet()  # numbers of what was dropped, until readers are told
        self._first = 0  # the lowest number that lies on disk only
        self._bare = RangeSet()  # numbers that are to be on disk and are not

    def keep(self, entry: Entry) -> None:
        """Have an entry on disk too, which stays in memory; where the disk does not take it, that is counted."""
        if not self.journal.append(entry):
            self._bare.add_one(entry.seq)
            self.unprotected += 1

    def has_room(self, entry: Entry) -> bool:
        """Whether the spool has room for the class of this entry."""
        return self.journal.fill < _ROOM[rank_of(entry.record)]

    def spill(self, entry: Entry) -> bool:
        """Put an entry on disk only; returns whether the disk took it. The caller counts it as spooled."""
        if not self.journal.append(entry):
            return False
        if not self.spooled:
            self._first = entry.seq
            self.journal.seek(entry.seq)
        return True

    def recount(self, accepted: int) -> None:
        """Count anew what is spooled, after a call that spilled was interrupted: everything from the first one on."""
        if self.spooled:
            self.spooled = accepted - self._first + 1
        self.journal.take_back(accepted)

    def read_ahead(self, max_events: int, max_bytes: int, accepted: int) -> list[Entry]:
        """Read the next entries that lie on disk only; `take` then counts them. Needs no lock.

        Args:
            max_events, max_bytes: As for `Journal.read`.
            accepted: The last number that was given out. What lies behind it may belong to a call that is interrupted, and
                never happens.
        """
        return self.journal.read(max_events, max_bytes, None if self._adopted else accepted)

    def take(self, batch: Sequence[Entry]) -> list[tuple[int, int]]:
        """Count entries that `read_ahead` has returned as spooled no longer.

        Returns:
            The numbers of entries before and among them that the disk has lost; all the rest of the spool when the batch
            is empty. Of an adopted journal they are not known, so their range starts at 0.
        """
        if not batch:
            lost = [(0, self.spooled - 1)] if self._adopted else [(self._first, self._first + self.spooled - 1)]
            self.spooled = 0
            return lost
        if self._adopted:
            self.spooled -= len(batch)
            self._first = batch[-1].seq + 1
            return []
        lost = []
        for entry in batch:
            if entry.seq > self._first:
                lost.append((self._first, entry.seq - 1))
            self.spooled -= entry.seq - self._first + 1
            self._first = entry.seq + 1
        return lost

    def settle(self, ranges: Sequence[tuple[int, int]], undeclared: bool = False) -> None:
        """Note that the fate of these numbers is known: nobody delivers them again.

        Args:
            ranges: First and last of each range.
            undeclared: Whether they were dropped, and readers are yet to be told. Settled once more, they have been.
        """
        self.journal.settle(ranges, undeclared)
        if undeclared or self._undeclared:
            change = self._undeclared.add if undeclared else self._undeclared.remove
            for first, last in ranges:
                change(first, last)
        if self._bare:
            for first, last in ranges:
                self._bare.remove(first, last)

    def lowest(self, floor: int) -> int:
        """The lowest number whose fate is not known, given that of those in memory."""
        return min(floor, self._first) if self.spooled else floor

    def is_about_to_release(self, floor: int) -> bool:
        """Whether `release` would let go of files in which something stands that readers are yet to be told."""
        return bool(self._undeclared) and self.journal.is_about_to_release(floor)

    def release(self, floor: int) -> None:
        """Let go of files that hold nothing of this number or above it."""
        self.journal.release(floor)

    def restate(self) -> None:
        """Note again what readers are yet to be told: the files in which it stood may be gone."""
        self.journal.settle(list(self._undeclared), undeclared=True)

    def put_away(self, entries: Sequence[Entry]) -> list[Entry]:
        """Leave entries that were in memory to the next process, at the end of this one.

        Returns:
            Those that are not on disk; all others are counted as spooled.
        """
        if not entries:
            return []
        if self.always or self._adopted:
            lost = [entry for entry in entries if entry.seq in self._bare]
        else:
            lost = [] if self.journal.put_first(entries) else list(entries)
        self.spooled += len(entries) - len(lost)
        return lost

    def close(self) -> None:
        """Give the journal up; what is spooled, and what readers are yet to be told, stays for the next process."""
        self.journal.close(keep=self.spooled > 0 or bool(self._undeclared))
