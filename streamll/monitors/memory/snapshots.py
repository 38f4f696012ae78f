"""Snapshots of a process's memory: the newest, in a ring that does not grow; and what blocks of code changed.

What belongs here: how they are kept. What does not: when they are taken (memory_profiler.py).
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

MIB = 1024 * 1024

_FIELDS = (
    "timestamp",
    "rss",
    "footprint",
    "peak",
    "swap",
    "in_use",
    "retained",
    "blocks",
    "gc_collections",
    "gc_pause_ms",
)


@dataclass(frozen=True)
class Snapshot:
    """What memory was at one moment; sizes in bytes, None for what this platform does not tell.

    Attributes:
        timestamp: When, in nanoseconds since the epoch (to within 0.3 us).
        rss, footprint, peak, swap, in_use, retained, blocks: As in a `Reading` (readings.py).
        gc_collections, gc_pause_ms: Of the garbage collector so far, since the profiler was started.
        label: As given to `take_snapshot`; empty for those that are taken by the clock.
    """

    timestamp: int
    rss: int | None = None
    footprint: int | None = None
    peak: int | None = None
    swap: int | None = None
    in_use: int | None = None
    retained: int | None = None
    blocks: int | None = None
    gc_collections: int | None = None
    gc_pause_ms: float | None = None
    label: str = ""

    @property
    def rss_mb(self) -> float | None:
        """In physical memory, in MiB."""
        return None if self.rss is None else self.rss / MIB

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values."""
        return asdict(self)


class Ring:
    """The newest snapshots, as numbers in memory that is had at once: what watches for growth must not grow.

    One thread adds. Any may read at the same time, without a lock: the place that is written next is never read.

    Args:
        size: Snapshots that are kept.
    """

    def __init__(self, size: int) -> None:
        self._places = size + 1
        self._columns = [array("d", [nan]) * self._places for _ in _FIELDS]
        self._added = 0

    def add(self, *values: float | None) -> None:
        """Add the values of _FIELDS."""
        at = self._added % self._places
        for column, value in zip(self._columns, values, strict=True):
            column[at] = nan if value is None else value
        self._added += 1

    def read(self) -> list[Snapshot]:
        """From the oldest to the newest."""
        added = self._added
        return [self._at(n % self._places) for n in range(max(0, added - self._places + 1), added)]

    def _at(self, place: int) -> Snapshot:
        values = (column[place] for column in self._columns)
        known = {
            name: None if isnan(value) else value if name == "gc_pause_ms" else int(value)
            for name, value in zip(_FIELDS, values, strict=True)
        }
        return Snapshot(**known)  # type: ignore[arg-type]  # the timestamp is never NaN
