"""A bound on how often something is told: so many in a minute, and no more until the next.

What belongs here: that decision, which has no clock. What does not: the counting of what was left out.
"""

from __future__ import annotations

from math import inf

MINUTE = 60.0


class RateBound:
    """Lets so many through in each minute. Threads that ask at the same moment may get one more than that each.

    Args:
        per_minute: How many.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left = 0
        self._began = -inf

    def allows(self, now: float) -> bool:
        """Whether one more may be told.

        Args:
            now: Seconds, by a clock that never goes back.
        """
        if now - self._began >= MINUTE:
            self._began, self._left = now, self._per_minute
        if self._left <= 0:
            return False
        self._left -= 1
        return True
