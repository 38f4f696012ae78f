"""Sets of numbers as ranges: numbers that follow each other cost one range, however many they are.

What belongs here: sets of whole numbers, by their ranges. What does not: what the numbers mean.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain


class RangeSet:
    """Whole numbers, kept as ordered, disjoint, inclusive ranges that do not touch.

    Each change is one step: an exception out of a signal handler finds it either done or not begun. As a sequence it is
    one of ranges: iterating, indexing and `len` are about them; `in` and `count` are about numbers.

    Args:
        ranges: What is in it at first: inclusive (first, last) pairs, in any order; they may overlap.
        limit: Ranges that `add` makes at most. What would make one more is not taken, and counted in `refused`.
            None: as many as there are.
    """

    __slots__ = ("_bounds", "_limit", "refused")

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), limit: int | None = None) -> None:
        self._bounds: list[int] = []  # first, last, first, last, ...: never falling
        self._limit = sys.maxsize if limit is None else 2 * limit
        self.refused = 0
        for first, last in sorted(ranges):
            self.add(first, last)

    def follow(self, number: int) -> bool:
        """Add a number if it is the next above the highest, quickly; return whether it is."""
        bounds = self._bounds
        if bounds and number == bounds[-1] + 1:
            bounds[-1] = number
            return True
        return False

    def add_one(self, number: int) -> bool:
        """Add a number; return whether it was not there."""
        bounds = self._bounds
        at = bisect_left(bounds, number)
        if at % 2 or (at < len(bounds) and bounds[at] == number):
            return False
        joins_left = at > 0 and bounds[at - 1] == number - 1
        joins_right = at < len(bounds) and bounds[at] == number + 1
        if joins_left and joins_right:
            del bounds[at - 1 : at + 1]
        elif joins_left:
            bounds[at - 1] = number
        elif joins_right:
            bounds[at] = number
        elif len(bounds) >= self._limit:
            self.refused += 1
        else:
            bounds[at:at] = (number, number)
        return True

    def add(self, first: int, last: int) -> None:
        """Add every number from `first` to `last`, both included; nothing when `last` is below `first`."""
        if last < first:
            return
        bounds = self._bounds
        if bounds and first > bounds[-1] + 1:
            low = high = len(bounds)
        else:
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

    def cut_off(self, line: int) -> RangeSet:
        """Remove every number up to `line`, itself included, and return them."""
        bounds = self._bounds
        end = bisect_right(bounds, line)
        within = end % 2  # the line goes through a range: 1, else 0
        below = RangeSet()
        below._bounds = bounds[:end] + [line] * within
        bounds[:end] = [line + 1] * within
        return below

    def _between(self, first: int, last: int) -> tuple[int, int]:
        """The slice of the bounds of all ranges that have a number from `first` to `last`."""
        bounds = self._bounds
        low = bisect_left(bounds, first)
        high = bisect_right(bounds, last)
        return low - low % 2, high + high % 2

    def joined(self, *others: RangeSet) -> RangeSet:
        """Return what is in this set or in any of the others, without a limit."""
        return RangeSet(chain(self, *others))

    def without(self, other: RangeSet) -> RangeSet:
        """Return what is in this set and not in the other, without a limit."""
        left = RangeSet()
        theirs = other._bounds
        at = other._between(*self[0])[0] if self else 0
        for first, last in self:
            while at < len(theirs) and theirs[at] <= last:
                if first < theirs[at]:
                    left._bounds += (first, theirs[at] - 1)
                first = max(first, theirs[at + 1] + 1)
                if first > last:
                    break  # that range may reach into the next one of ours
                at += 2
            if first <= last:
                left._bounds += (first, last)
        return left

    def within(self, other: RangeSet) -> RangeSet:
        """Return what is in both sets, without a limit."""
        return self.without(self.without(other))

    @property
    def last(self) -> int | None:
        """The highest number; None when there is none."""
        return self._bounds[-1] if self._bounds else None

    def count(self) -> int:
        """How many numbers are in the set."""
        return sum(self._bounds[1::2]) - sum(self._bounds[::2]) + len(self)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._bounds, number)
        return at % 2 == 1 or (at < len(self._bounds) and self._bounds[at] == number)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._bounds[::2], self._bounds[1::2], strict=True)

    def __getitem__(self, at: int) -> tuple[int, int]:
        """The range at a place in their order."""
        return self._bounds[2 * at], self._bounds[2 * at + 1]

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._bounds) // 2

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
