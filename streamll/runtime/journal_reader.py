"""Reading a journal back while it is written, or after its writer died: in order, one segment in memory at a time.

What belongs here: the place up to which a journal was read. What does not: the bytes (segment.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress

from streamll.delivery.outcome import Entry
from streamll.ranges import RangeSet
from streamll.runtime.lease import Folder
from streamll.runtime.segment import HEADER_BYTES, Damage, EntryReader
from streamll.runtime.segment_file import SegmentFile


class JournalReader:
    """A cursor over the segments of a journal. For one thread at a time, which need not be the writer's.

    Args:
        settled: Numbers that are not wanted; None: all are.
    """

    def __init__(self, settled: RangeSet | None = None) -> None:
        self._entries = EntryReader(settled)
        self._segment: SegmentFile | None = None
        self._at = 0  # up to where that segment was loaded
        self._loaded: Iterator[Entry] = iter(())
        self._next: Entry | None = None  # read, and not returned yet

    @property
    def damage(self) -> Damage:
        """What could not be read."""
        return self._entries.damage

    @property
    def undecodable(self) -> int:
        """How many entries are whole, but no entries of this version."""
        return self._entries.undecodable

    def seek(self, seq: int) -> None:
        """Go on at a number, or at the next one above it."""
        if seq != self._position():
            self._entries.restart(seq)
            self._segment = None
            self._loaded = iter(())
            self._next = None

    def _position(self) -> int:
        return self._next.seq if self._next is not None else self._entries.cursor

    def read(
        self, folder: Folder, segments: Collection[SegmentFile], max_events: int, max_bytes: int, through: int | None
    ) -> list[Entry]:
        """The next entries; see `Journal.read`. Raises OSError where a file is there and cannot be read."""
        batch: list[Entry] = []
        size = 0
        while len(batch) < max_events:
            entry = self._next
            if entry is None:
                try:
                    entry = self._next = self._advance(folder, segments, through)
                except OSError:
                    if batch:
                        break  # whoever asks again hears of it
                    raise
            if entry is None or (through is not None and entry.seq > through):
                break
            size += len(entry.record.payload)
            if batch and size > max_bytes:
                break
            batch.append(entry)
            self._next = None
        return batch

    def _advance(self, folder: Folder, segments: Collection[SegmentFile], through: int | None) -> Entry | None:
        while True:
            for entry in self._loaded:
                return entry
            if not self._load(folder, tuple(segments)):
                held = self._entries.held
                if held is None or (through is not None and held.seq > through):
                    return None  # another copy of it may follow
                return self._entries.rest()

    def _load(self, folder: Folder, segments: tuple[SegmentFile, ...]) -> bool:
        """Load what was written behind what was read; returns whether there was anything."""
        current = self._segment
        behind = segments
        if current is not None:
            if self._load_from(folder, current, self._at):
                return True
            # It may have become longer just before it was retired, so a retired one is looked at once more.
            at = segments.index(current) if current in segments else -1
            behind = segments[at + 1 :] if at >= 0 else tuple(s for s in segments if s.name > current.name)
        for segment in behind:
            if segment.last and segment.last < self._entries.cursor:
                continue
            if self._load_from(folder, segment, HEADER_BYTES):
                return True
        return False

    def _load_from(self, folder: Folder, segment: SegmentFile, start: int) -> bool:
        end = segment.end
        if start >= end:
            return False
        data = b""
        with suppress(FileNotFoundError):  # any other error means: not now
            data = read_bytes(folder, segment.name, start, end)
        if len(data) < end - start:
            self.damage.add(end - start - len(data))
        self._segment, self._at = segment, end
        self._loaded = self._entries.entries(data, 0, segment.salt)
        return True


def read_bytes(folder: Folder, name: str, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`, fewer when it is shorter; raises OSError.

    Not by a mapping: somebody who cuts the file short would kill this process.
    """
    descriptor = folder.open(name, os.O_RDONLY)
    try:
        end = min(end, os.fstat(descriptor).st_size)
        pieces = []
        while start < end and (piece := os.pread(descriptor, end - start, start)):
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(descriptor)
