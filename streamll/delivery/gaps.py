"""Gaps: the numbers of events that were accepted and then dropped, until a reader can be told of them.

What belongs here: which numbers are to be declared, and when they may be. What does not: the record that says it (the
sink makes it), or how it gets to its place (machine.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_RANGES = 1000
"""Ranges in one gap, at most: a note is to fit in any broker's message."""

LOST_IN_CRASH = "lost_in_crash"
"""The reason for numbers that a dead process had given out, and of whose events nothing is left."""

DROPPED_BEFORE_CRASH = "dropped_before_crash"
"""The reason for numbers of events that a dead process had dropped, and of which it could tell no reader."""


@dataclass(frozen=True)
class Gap:
    """Numbers to be declared in one note.

    Attributes:
        ranges: First and last number of each hole, in order, none touching another.
        reasons: How many numbers were dropped for which reason.
    """

    ranges: tuple[tuple[int, int], ...]
    reasons: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many numbers it declares."""
        return sum(last - first + 1 for first, last in self.ranges)

    @property
    def last(self) -> int:
        """The number that its note takes: it is that of a dropped event, so it is free, and keeps the order."""
        return self.ranges[-1][1]

    def joined(self, other: Gap) -> Gap:
        """Return this gap and another one, with none of its numbers, as one."""
        ranges: list[tuple[int, int]] = []
        for first, last in sorted((*self.ranges, *other.ranges)):
            if ranges and ranges[-1][1] + 1 == first:
                first = ranges.pop()[0]
            ranges.append((first, last))
        return Gap(tuple(ranges), _summed([self.reasons, other.reasons]))


class Holes:
    """Numbers of dropped events that no note has declared yet, as merged ranges.

    There is never more than one range more than there are events around them, so memory is bounded by the buffer. That
    is why these are not a RangeSet for each reason: numbers dropped for two reasons in turn would not merge in either.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._reasons: list[dict[str, int]] = []

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, seq: int) -> bool:
        at = bisect_right(self._firsts, seq) - 1
        return at >= 0 and seq <= self._lasts[at]

    def add(self, first: int, last: int, reason: str) -> None:
        """Note that these numbers were dropped; none of them may have been noted before."""
        firsts, lasts, reasons = self._firsts, self._lasts, self._reasons
        at = bisect_right(firsts, first)
        joins_left = at > 0 and lasts[at - 1] + 1 == first
        joins_right = at < len(firsts) and firsts[at] == last + 1
        if joins_left:
            at -= 1
            lasts[at] = last
            if joins_right:
                lasts[at] = lasts.pop(at + 1)
                del firsts[at + 1]
                for other, n in reasons.pop(at + 1).items():
                    reasons[at][other] = reasons[at].get(other, 0) + n
        elif joins_right:
            firsts[at] = first
        else:
            firsts.insert(at, first)
            lasts.insert(at, last)
            reasons.insert(at, {})
        reasons[at][reason] = reasons[at].get(reason, 0) + last - first + 1

    def take(self, below: int | None = None) -> list[Gap]:
        """Return the holes whose numbers are all below one, to be declared now, in their order.

        Args:
            below: The number; None: all of them.
        """
        n = len(self._firsts) if below is None else bisect_right(self._lasts, below - 1)
        holes = list(zip(self._firsts[:n], self._lasts[:n], strict=True))
        reasons = self._reasons[:n]
        del self._firsts[:n], self._lasts[:n], self._reasons[:n]
        return [
            Gap(tuple(holes[at : at + MOST_RANGES]), _summed(reasons[at : at + MOST_RANGES]))
            for at in range(0, n, MOST_RANGES)
        ]


def gaps_of(dropped: Iterable[tuple[int, str]]) -> list[Gap]:
    """Return the gaps that dropped numbers make, given each with its reason."""
    holes = Holes()
    for seq, reason in dropped:
        holes.add(seq, seq, reason)
    return holes.take()


def _summed(reasons: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in reasons:
        for reason, n in counts.items():
            total[reason] = total.get(reason, 0) + n
    return total


def ranges_of(seqs: Sequence[int]) -> list[tuple[int, int]]:
    """Return numbers in rising order, none of them twice, as ranges of first and last."""
    if not seqs:
        return []
    if seqs[-1] - seqs[0] + 1 == len(seqs):  # nearly always
        return [(seqs[0], seqs[-1])]
    breaks = [at for at in range(1, len(seqs)) if seqs[at] != seqs[at - 1] + 1]
    return [(seqs[start], seqs[end - 1]) for start, end in zip([0, *breaks], [*breaks, len(seqs)], strict=True)]
