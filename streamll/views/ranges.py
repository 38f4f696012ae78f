"""Whole numbers as ranges: what many numbers that follow each other cost no more than two.

What belongs here: sets of numbers, by their ranges. What does not: what the numbers mean.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """A set of whole numbers, kept as ranges of first and last: in rising order, none touching another.

    Args:
        pairs: First and last number of each range, in any order; they may overlap.
    """

    __slots__ = ("firsts", "lasts")

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        for first, last in sorted(pairs):
            if self.lasts and first <= self.lasts[-1] + 1:
                self.lasts[-1] = max(self.lasts[-1], last)
            else:
                self.firsts.append(first)
                self.lasts.append(last)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self.firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.firsts, self.lasts, strict=True)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self.lasts, number)
        return at < len(self.firsts) and self.firsts[at] <= number

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return sum(self.lasts) - sum(self.firsts) + len(self.firsts)

    def add(self, first: int, last: int) -> None:
        """Take in the numbers from first to last."""
        begin = bisect_left(self.lasts, first - 1)  # the first range that this one overlaps or touches
        end = bisect_right(self.firsts, last + 1)  # and the first one beyond it
        if begin < end:
            first = min(first, self.firsts[begin])
            last = max(last, self.lasts[end - 1])
        self.firsts[begin:end] = [first]
        self.lasts[begin:end] = [last]

    def joined(self, *others: Ranges) -> Ranges:
        """Return what is in this set or in any of the others."""
        return Ranges(pair for each in (self, *others) for pair in each)

    def without(self, other: Ranges) -> Ranges:
        """Return what is in this set and not in the other."""
        left = Ranges()
        at = 0
        for first, last in self:
            while at < len(other) and other.lasts[at] < first:
                at += 1
            while at < len(other) and other.firsts[at] <= last:
                if first < other.firsts[at]:
                    left._append(first, other.firsts[at] - 1)
                first = other.lasts[at] + 1
                if first > last:
                    break  # the other's range may reach into the next one of ours
                at += 1
            if first <= last:
                left._append(first, last)
        return left

    def within(self, other: Ranges) -> Ranges:
        """Return what is in both sets."""
        return self.without(self.without(other))

    def cut_off(self, line: int) -> Ranges:
        """Take out the numbers up to a line, and return them."""
        below = Ranges()
        at = bisect_right(self.lasts, line)
        below.firsts, below.lasts = self.firsts[:at], self.lasts[:at]
        del self.firsts[:at], self.lasts[:at]
        if self.firsts and self.firsts[0] <= line:
            below._append(self.firsts[0], line)
            self.firsts[0] = line + 1
        return below

    def _append(self, first: int, last: int) -> None:
        self.firsts.append(first)
        self.lasts.append(last)
