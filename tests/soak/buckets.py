"""Buckets: durations counted by their order of magnitude, so that a long run costs no more memory than a short one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

_STEPS = 4
"""Bits behind the first one that are kept: a bucket is at most a sixteenth wider than its lower end."""


class Buckets:
    """Whole numbers from 0 on, each counted in the bucket that it falls into.

    Args:
        counts: How many there are by the lower end of their bucket, as `counts` has it.
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts = Counter(counts or {})

    def add(self, numbers: Iterable[int]) -> None:
        """Count some numbers."""
        for number in numbers:
            shift = max(0, number.bit_length() - 1 - _STEPS)
            self.counts[number >> shift << shift] += 1

    def join(self, counts: Mapping[int, int]) -> None:
        """Count what others have counted."""
        self.counts.update(counts)

    def quantile(self, share: float) -> int | None:
        """The upper end of the bucket in which so many of all (0 to 1) are reached; None when there are none."""
        left = share * self.counts.total()
        for low, count in sorted(self.counts.items()):
            left -= count
            if left <= 0:
                return low + (1 << max(0, low.bit_length() - 1 - _STEPS)) - 1
        return None
