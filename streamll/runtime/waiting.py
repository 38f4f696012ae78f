"""Waiting: the entries of a buffer that wait for the worker, by class of priority.

What belongs here: which entry is next, and which gives way first. What does not: the counting of what became of it, or the
lock, under which all of this is called (buffer.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, islice

from streamll.delivery.outcome import Entry
from streamll.models import CRITICAL, DEBUG, NORMAL, Record

RANKS = {DEBUG: 0, NORMAL: 1, CRITICAL: 2}
"""The classes, in the order in which they give way."""

ENTRY_OVERHEAD = 512
"""Bytes counted for an entry beside its payload: its record, labels, number and place in the queue."""

_by_seq: Callable[[Entry], int] = lambda entry: entry.seq  # noqa: E731  # typed, and as short as attrgetter


def size_of(record: Record) -> int:
    """The bytes a record is counted as."""
    return len(record.payload) + ENTRY_OVERHEAD


def total_size(entries: Sequence[Entry]) -> int:
    """The bytes that entries are counted as together."""
    return sum([len(entry.record.payload) for entry in entries]) + len(entries) * ENTRY_OVERHEAD


def rank_of(record: Record) -> int:
    """Return the class of a record; one that is not known is normal."""
    return RANKS.get(record.priority, RANKS[NORMAL])


class Waiting:
    """Entries in the order of their numbers, which can also be had by class.

    Attributes:
        queues: One for each class, each in the order of the numbers.
        count: Entries in all of them.
    """

    def __init__(self) -> None:
        self.queues: tuple[deque[Entry], ...] = tuple(deque() for _ in RANKS)
        self.count = 0

    def __iter__(self) -> Iterator[Entry]:
        for queue in self.queues:
            yield from queue

    def first(self) -> Entry | None:
        """Return the entry with the lowest number."""
        heads = [queue[0] for queue in self.queues if queue]
        return min(heads, key=_by_seq) if heads else None

    def take_first(self) -> Entry:
        """Take the entry with the lowest number; there must be one."""
        queue = min((queue for queue in self.queues if queue), key=lambda queue: queue[0].seq)
        self.count -= 1
        return queue.popleft()

    def take(self, max_events: int, max_bytes: int) -> list[Entry]:
        """Take the entries with the lowest numbers: at most so many, and so many payload bytes, but always one."""
        filled = [queue for queue in self.queues if queue]
        batch: list[Entry] = []
        for queue in filled:
            batch += [queue.popleft() for _ in range(min(max_events, len(queue)))]
        if len(filled) > 1:
            batch.sort(key=_by_seq)
        end = min(len(batch), max_events)
        sizes = [len(entry.record.payload) for entry in batch[:end]]
        if sum(sizes) > max_bytes:
            end = max(1, bisect_right(list(accumulate(sizes)), max_bytes))
        for entry in reversed(batch[end:]):
            self.queues[rank_of(entry.record)].appendleft(entry)
        self.count -= end
        del batch[end:]
        return batch

    def victims(self, rank: int, newest: bool, enough: Callable[[int, int], bool], at_least: int = 1) -> list[Entry]:
        """Return what gives way to an entry of a class, the lowest class first, for `remove` to take it.

        Args:
            rank: The class of the newcomer.
            newest: Whether the newest of lower classes give way; else the oldest, also of its own class.
            enough: From the entries and the bytes given up to whether that is enough.
            at_least: So many give way where there are so many, even if fewer were enough.

        Returns:
            The victims; none when all that might give way is not enough.
        """
        candidates = chain.from_iterable(
            reversed(queue) if newest else queue for queue in self.queues[: rank if newest else rank + 1]
        )
        found = list(islice(candidates, at_least))
        size = total_size(found)
        while not enough(len(found), size):
            entry = next(candidates, None)
            if entry is None:
                return []
            found.append(entry)
            size += size_of(entry.record)
        return found

    def remove(self, victims: list[Entry], newest: bool) -> None:
        """Take out what `victims` has found, asked with the same `newest`: of each class all, before the next has to."""
        left = len(victims)
        for queue in self.queues:
            take = queue.pop if newest else queue.popleft
            n = min(left, len(queue))
            for _ in range(n):
                take()
            left -= n
        self.count -= len(victims)

    def clear(self) -> list[Entry]:
        """Take everything, in the order of the numbers."""
        everything = sorted(self, key=_by_seq)
        for queue in self.queues:
            queue.clear()
        self.count = 0
        return everything

    def forget_after(self, seq: int) -> None:
        """Take out what has a number above that one, and count anew: the call that put it there was interrupted."""
        for queue in self.queues:
            while queue and queue[-1].seq > seq:
                queue.pop()
        self.count = sum(len(queue) for queue in self.queues)
