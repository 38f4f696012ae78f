"""The notes that sinks write among their events, read and put into words.

What belongs here: what a note says, and whether it can be believed. What does not: what follows from it (audit.py).

A note may come from anybody who can write into a stream, so it is taken at its word only when it does not contradict
itself: whoever reads it must be able to rely on every number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamll.models import CLOSING, GAP, NOTES, StreamllEvent

_MOST_REASONS = 100
_LONGEST_REASON = 100
_SHOWN_RANGES = 5


@dataclass(frozen=True)
class GapNote:
    """Events that a sink says it accepted and dropped.

    Attributes:
        ranges: First and last number of each hole, in rising order.
        reasons: How many were dropped for which reason.
    """

    ranges: tuple[tuple[int, int], ...]
    reasons: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many events."""
        return sum(self.reasons.values())


def read_gap(event: StreamllEvent) -> GapNote | None:
    """Read a gap note; None when it is none, or says what cannot be."""
    if event.event_type != GAP:
        return None
    count, ranges, reasons = (event.data.get(name) for name in ("count", "ranges", "reasons"))
    if not isinstance(ranges, (list, tuple)) or not isinstance(reasons, dict) or len(reasons) > _MOST_REASONS:
        return None
    pairs: list[tuple[int, int]] = []
    total = before = 0
    for pair in ranges:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            return None
        first, last = pair
        if type(first) is not int or type(last) is not int or not before < first <= last:
            return None
        pairs.append((first, last))
        total += last - first + 1
        before = last
    for reason, number in reasons.items():
        if not isinstance(reason, str) or len(reason) > _LONGEST_REASON or type(number) is not int or number < 1:
            return None
    if not pairs or type(count) is not int or not count == total == sum(reasons.values()):
        return None
    return GapNote(tuple(pairs), dict(reasons))


def read_closing(event: StreamllEvent) -> int | None:
    """Return the last number that a closing record names; None when it is none, or says what cannot be."""
    last = event.data.get("last")
    return last if event.event_type == CLOSING and type(last) is int and last >= 0 else None


def describe(event: StreamllEvent, producer: str = "") -> str | None:
    """Put a note into words; None when it is none, or cannot be believed."""
    if event.event_type not in NOTES:
        return None
    who = f"producer {producer}" if producer else "a producer"
    gap = read_gap(event)
    if gap is not None:
        whose = f" of {who}" if producer else ""
        numbers = f"{gap.count:,} event{'s' if gap.count != 1 else ''}"
        return f"{numbers} lost{whose}: {shown_reasons(gap.reasons)} ({shown_ranges(gap.ranges)})"
    last = read_closing(event)
    if last is not None:
        return f"{who} closed after {last:,} event{'s' if last != 1 else ''}"
    return None


def shown_reasons(reasons: Mapping[str, int]) -> str:
    """Return `overflow 200, expired 3`."""
    return ", ".join(f"{reason} {number:,}" for reason, number in reasons.items())


def shown_ranges(ranges: Iterable[tuple[int, int]], number: int | None = None, most: int = _SHOWN_RANGES) -> str:
    """Return `501-700, 812 and 3 more`.

    Args:
        ranges: The ranges, or only the first of them.
        number: How many there are in all, when not all are given.
        most: How many to show.
    """
    pairs = list(ranges)
    text = ", ".join(f"{first:,}-{last:,}" if first != last else f"{first:,}" for first, last in pairs[:most])
    rest = (len(pairs) if number is None else number) - min(most, len(pairs))
    return f"{text} and {rest:,} more" if rest > 0 else text
