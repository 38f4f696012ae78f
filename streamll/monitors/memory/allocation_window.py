"""Which lines of the program allocate what stays: the standard library's tracemalloc, switched on for a short while.

What belongs here: the window, and its bounds. What does not: when it is worth it (memory_profiler.py).

It is nothing for always: each allocation costs several times as much meanwhile, on all threads. And ending it while a
thread allocates without holding the GIL could crash the process before CPython 3.12.9 and 3.13.2
(https://github.com/python/cpython/issues/128679). So somebody must have asked for it.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

MEMORY_BOUND = 8 * 1024 * 1024
"""Bytes that the records of allocations may take, 100,000 of them or so; then the window ends early."""

LOOK_EVERY = 0.05
"""Seconds between two looks at that."""

SITES = 20
"""Lines that are kept: those that allocated most."""


class Site(NamedTuple):
    """A line of the program.

    Attributes:
        place: "file:line".
        blocks: What it allocated in the window, and was still there at its end.
        size: Bytes of all of them.
    """

    place: str
    blocks: int
    size: int


class AllocationWindow:
    """One window; a program that traces by itself is left alone. For one thread at a time.

    Args:
        seconds: How long it lasts.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = 0.0
        self._ours = False

    def begin(self, now: float) -> bool:
        """Begin, at a time by whatever clock; False when somebody else traces already."""
        import tracemalloc

        if tracemalloc.is_tracing():
            return False
        tracemalloc.start(1)
        self._ours = True
        self._ends = now + self.seconds
        return True

    def poll(self, now: float) -> list[Site] | None:
        """End it if it is time for that.

        Returns:
            Where what was allocated in the window, and stayed, was allocated: most bytes first; None before the end.
        """
        import tracemalloc

        if not self._ours:
            return []
        if now < self._ends and tracemalloc.get_tracemalloc_memory() < MEMORY_BOUND:
            return None
        snapshot = tracemalloc.take_snapshot() if tracemalloc.is_tracing() else None
        self.cancel()
        if snapshot is None:  # somebody else has ended it
            return []
        sites = [
            Site(f"{one.traceback[0].filename}:{one.traceback[0].lineno}", one.count, one.size)
            for one in snapshot.statistics("lineno")[: 2 * SITES]
            if one.traceback[0].filename not in (__file__, tracemalloc.__file__)
        ]
        return sites[:SITES]

    def cancel(self) -> None:
        """End it without looking at what it saw, if it was begun here."""
        if self._ours:
            self._ours = False
            sys.modules["tracemalloc"].stop()
