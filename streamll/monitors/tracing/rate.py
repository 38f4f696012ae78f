"""How often a function may be traced: a hot, tiny one must not hurt the program.

What belongs here: the decision, which has no clock. What does not: how tracing is paused (the engines).
"""

from __future__ import annotations

LONGEST_PAUSE = 60.0
"""Seconds that a function which is hot each time it is looked at is left alone, at most."""


class Rate:
    """Bounds the calls of one function that are traced in a second.

    Beyond the bound, tracing is paused: for a second, and twice as long each time when the function is as hot as that
    in the first second after a pause.

    Args:
        bound: Calls in a second.

    Attributes:
        bound: As given; a new one holds from the next `tick` on.
        paused: Whether no call is to be traced.
        pauses: How often that began.
        calls: How many were let through.
    """

    __slots__ = ("_left", "_length", "_until", "bound", "calls", "paused", "pauses")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.paused = False
        self.pauses = 0
        self.calls = 0
        self._left = bound
        self._length = 1.0
        self._until = 0.0

    def admits(self) -> bool:
        """Whether a call is traced that begins now. Threads that ask at the same moment may get one more each."""
        if self.paused:
            return False
        if self._left <= 0:
            self.paused = True
            self.pauses += 1
            return False
        self._left -= 1
        self.calls += 1
        return True

    def tick(self, now: float) -> bool:
        """Begin another second.

        Args:
            now: Seconds, by a clock that never goes back.

        Returns:
            Whether a pause is over.
        """
        self._left = self.bound
        if not self.paused:
            self._length = 1.0
            return False
        if not self._until:
            self._until = now + self._length
            self._length = min(2 * self._length, LONGEST_PAUSE)
        if now < self._until:
            return False
        self._until = 0.0
        self.paused = False
        return True
