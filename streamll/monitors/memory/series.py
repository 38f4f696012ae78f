"""A program's memory over time, in bounded memory: the last minutes finely, the last weeks coarsely.

What belongs here: how readings are kept and thinned out. What does not: where they come from (readings.py), and
what is concluded from them (leak_verdict.py).

Kept is what memory never fell below. A garbage collector and a program's own coming and going draw a saw over the true
level; what leaks lifts the feet of its teeth. All of it is allocated at once: what watches for growth must not grow.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import isnan, nan
from typing import NamedTuple

BUCKETS = 64
"""So many points each level holds."""

FOLD = 2
"""So many points of one level make one of the next."""

LEVELS = 17
"""With a reading a second, the first holds the last minute, and the last the last 48 days."""


class Point(NamedTuple):
    """The floors of a stretch of time: the least that each was. NaN where nothing is known.

    Attributes:
        seconds: When the stretch ended.
        footprint, in_use, retained, blocks: As in a `Reading`.
    """

    seconds: float
    footprint: float = nan
    in_use: float = nan
    retained: float = nan
    blocks: float = nan


class _Level:
    """A ring of points, and the floors of the next one, which is not whole yet."""

    def __init__(self) -> None:
        self._columns = [array("d", [nan]) * BUCKETS for _ in Point._fields]
        self._floors = array("d", [nan]) * len(Point._fields)
        self._merged = 0
        self.added = 0

    def add(self, point: Sequence[float]) -> None:
        at = self.added % BUCKETS
        for column, value in zip(self._columns, point, strict=True):
            column[at] = value
        self.added += 1

    def merge(self, point: Sequence[float]) -> Sequence[float] | None:
        """Take a point of the finer level in; returns the floors when they are whole."""
        floors = self._floors
        if not self._merged:
            floors[:] = array("d", point)
        else:
            for n, value in enumerate(point):
                if isnan(floors[n]) or value < floors[n]:
                    floors[n] = value
            floors[0] = point[0]
        self._merged = (self._merged + 1) % FOLD
        return None if self._merged else floors

    def points(self) -> list[Point]:
        """From the oldest to the newest."""
        first = max(0, self.added - BUCKETS)
        places = [n % BUCKETS for n in range(first, self.added)]
        return [Point(*[column[at] for column in self._columns]) for at in places]


class Series:
    """Points at LEVELS resolutions, each FOLD times as coarse as the one before. One thread at a time may use it."""

    def __init__(self) -> None:
        self._levels = [_Level() for _ in range(LEVELS)]

    def add(self, point: Point) -> None:
        """Add what a reading says."""
        whole: Sequence[float] | None = point
        for n, level in enumerate(self._levels):
            if n and whole is not None:
                whole = level.merge(whole)
            if whole is None:
                return
            level.add(whole)

    def added(self, level: int) -> int:
        """How many points a level has been given so far."""
        return self._levels[level].added

    def points(self, level: int) -> list[Point]:
        """The points of a level, from the oldest to the newest: BUCKETS at most, each whole."""
        return self._levels[level].points()

    def highest_before(self, level: int, seconds: float) -> float:
        """The highest floor of the footprint that coarser levels know from before a time; NaN when they know none."""
        found = nan
        for coarser in self._levels[level + 1 :]:
            for point in coarser.points():
                if point.seconds <= seconds and not point.footprint <= found:
                    found = found if isnan(point.footprint) else point.footprint
        return found
