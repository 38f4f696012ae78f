"""A batch as what becomes entries of a stream: an entry for each event, or frames of many.

What belongs here: which events go in which entry, and back from an entry to the places of its events in the batch. What
does not: how entries are appended (redis_fence.py), or the bytes of a frame (wire/frame.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamll.delivery.outcome import Entry
from streamll.wire.frame import ALONE, divide, pack
from streamll.wire.redis_append import Items


@dataclass(frozen=True)
class Part:
    """Entries of a stream that follow each other in a batch.

    Attributes:
        items: The entries.
        start: The place in the batch of the first event.
        ends: For each entry, the place in the batch behind its last event.
    """

    items: Items
    start: int
    ends: Sequence[int]

    @property
    def end(self) -> int:
        """The place in the batch behind the last event."""
        return self.ends[-1] if self.ends else self.start

    def places(self, which: int) -> range:
        """The places in the batch of the events of an entry."""
        return range(self.ends[which - 1] if which else self.start, self.ends[which])

    def rejected(self, which: int, why: str) -> Mapping[int, str]:
        """What it means that the server refused an entry: of a frame it is not known which event it refused."""
        places = self.places(which)
        return {places.start: why} if len(places) == 1 else {}

    @property
    def longest(self) -> int:
        """The entry with the most bytes: when some part is too long for the server, this one is."""
        lengths = list(map(len, self.items.payloads))
        return lengths.index(max(lengths))


class Batch:
    """The events of a batch, in the order of their numbers.

    Args:
        entries: The events, at least one.
        framed: Whether many events may share an entry of the stream.
    """

    def __init__(self, entries: Sequence[Entry], framed: bool) -> None:
        # A list for each thing rather than an object for each event: sending is to cost a fraction of a microsecond.
        self.numbers = [entry.seq for entry in entries]
        self._payloads = [entry.record.payload for entry in entries]
        reasons = [entry.dead_letter for entry in entries]
        self._reasons = reasons if any(reasons) else []
        self._framed = framed

    def part(self, start: int) -> Part:
        """Return the entries for all events from a place on."""
        numbers, payloads, reasons = self.numbers[start:], self._payloads[start:], self._reasons[start:]
        if not self._framed:
            return Part(Items(numbers, payloads, reasons), start, range(start + 1, start + len(numbers) + 1))
        kinds = [ALONE if reason else reason for reason in reasons] or None
        frames = divide(numbers, [len(payload) for payload in payloads], kinds)
        counts = [frame.stop - frame.start for frame in frames]
        items = Items(
            numbers=[numbers[frame.start] for frame in frames],
            payloads=[
                pack(payloads[frame]) if count > 1 else payloads[frame.start]
                for frame, count in zip(frames, counts, strict=True)
            ],
            reasons=[reasons[frame.start] for frame in frames] if reasons else [],
            counts=counts,
        )
        return Part(items, start, [start + frame.stop for frame in frames])

    def parts(self, start: int, most: int) -> list[Part]:
        """Return the same in parts of at most so many entries."""
        whole = self.part(start)
        found = []
        for first in range(0, len(whole.items), most):
            begins = whole.ends[first - 1] if first else start
            found.append(Part(whole.items.between(first, first + most), begins, whole.ends[first : first + most]))
        return found
