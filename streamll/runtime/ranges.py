"""Sets of numbers as ranges: numbers that follow each other cost one range, however many they are.

What belongs here: arithmetic over inclusive ranges, in bounded memory. What does not: what the numbers mean.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

MOST_RANGES = 100_000
"""Ranges that a set holds when not told otherwise."""


class RangeSet:
    """Whole numbers, kept as ordered, disjoint, inclusive ranges that do not touch.

    Each change is one step: an exception out of a signal handler finds it either done or not begun.

    Args:
        ranges: What is in it at first: inclusive (first, last) pairs.
        limit: Ranges held at most. What would make one more is not taken, and counted in `refused`.
    """

    __slots__ = ("_bounds", "_limit", "refused")

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), limit: int = MOST_RANGES) -> None:
        self._bounds: list[int] = []  # first, last, first, last, ...: never falling
        self._limit = 2 * limit
        self.refused = 0
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Add every number from `first` to `last`, both included; nothing when `last` is below `first`."""
        if last < first:
            return
        bounds = self._bounds
        # All ranges that overlap the new one or touch it become one with it.
        low, high = self._between(first - 1, last + 1)
        if low < high:
            bounds[low:high] = (min(first, bounds[low]), max(last, bounds[high - 1]))
        elif len(bounds) >= self._limit:
            self.refused += 1
        else:
            bounds[low:low] = (first, last)

    def remove(self, first: int, last: int) -> None:
        """Remove every number from `first` to `last`, both included."""
        bounds = self._bounds
        low, high = self._between(first, last)
        if low < high and first <= last:
            left = (bounds[low], first - 1) if bounds[low] < first else ()
            right = (last + 1, bounds[high - 1]) if bounds[high - 1] > last else ()
            bounds[low:high] = left + right

    def _between(self, first: int, last: int) -> tuple[int, int]:
        """The slice of the bounds of all ranges that have a number from `first` to `last`."""
        bounds = self._bounds
        low = bisect_left(bounds, first)
        high = bisect_right(bounds, last)
        return low - low % 2, high + high % 2

    def gaps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges between `first` and `last`, both included, that are not in the set."""
        low, high = self._between(first, last)
        for at in range(low, high, 2):
            if first < self._bounds[at]:
                yield first, self._bounds[at] - 1
            first = self._bounds[at + 1] + 1
        if first <= last:
            yield first, last

    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(last - first + 1 for first, last in self)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._bounds, number)
        return at % 2 == 1 or (at < len(self._bounds) and self._bounds[at] == number)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._bounds[::2], self._bounds[1::2], strict=True)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._bounds) // 2
