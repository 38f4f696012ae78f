"""When memory is worth an alert: a limit that is crossed, and growth that is too fast.

What belongs here: these decisions, which have no clock. What does not: what is read, and how the alert is sent.
"""

from __future__ import annotations

from array import array
from math import inf, nan

RELIEF = 0.9
"""A limit is crossed anew only after the value was below this share of it."""

PLACES = 64
"""So many values of the window are kept."""

FILLED = 0.9
"""A rate is told from this share of its window on."""


class Limit:
    """Tells once when a value rises above a limit, and then not again before it was clearly below.

    Args:
        limit: What must be exceeded; None for never.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = inf if limit is None else limit
        self._crossed = False

    def crossed(self, value: float | None) -> bool:
        """Take a value in; whether this is the moment to say that it is above the limit."""
        if value is None:
            return False
        if value > self.limit:
            self._crossed, said = True, self._crossed
            return not said
        if value < self.limit * RELIEF:
            self._crossed = False
        return False


class Rate:
    """How fast a value has grown over a sliding window of time.

    Args:
        window: Seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._times, self._values = array("d", [-inf]) * PLACES, array("d", [nan]) * PLACES
        self._added = 0

    def add(self, seconds: float, value: float) -> float | None:
        """Take a value in.

        Returns:
            How much the value has grown a second since the window's beginning; None while the window is not filled.
        """
        newest = (self._added - 1) % PLACES
        if seconds - self._times[newest] >= self._window / (PLACES - 2):
            self._times[self._added % PLACES], self._values[self._added % PLACES] = seconds, value
            self._added += 1
        kept = (n % PLACES for n in range(max(0, self._added - PLACES), self._added))
        oldest = next(
            place for place in kept if seconds - self._times[place] <= self._window
        )  # the newest is, at least
        since = seconds - self._times[oldest]
        return (value - self._values[oldest]) / since if since >= FILLED * self._window else None
