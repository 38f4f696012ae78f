"""How long the garbage collector stops the program: every collection's time, taken without a line of Python.

What belongs here: taking the times, and adding them up. What does not: who is told (memory_profiler.py).

A callback of the collector that is written in Python hurts its host. A signal that comes during a collection is handled
by the first line of Python after it, which is that callback's; and what the handler raises there (KeyboardInterrupt, a
time limit) is printed and lost, since the collector has nobody to raise it to. So what is registered here are functions
of the standard library that are written in C, put together such that they note what is needed: `setattr` on objects
whose attributes "start" and "stop", which are the phases' names, are properties that other such functions set.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import is_, itemgetter, sub
from threading import Lock
from time import perf_counter_ns, time_ns
from typing import Any, ClassVar, NamedTuple
from weakref import finalize

from streamll.sketch import QuantileSketch

NOTED_BOUND = 2048
"""Collections noted between two looks; of more, the oldest are forgotten, and counted as missed."""

QUANTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}

_TRIALS = 200


class Pause(NamedTuple):
    """One collection.

    Attributes:
        timestamp: When it ended, in nanoseconds since the epoch.
        duration_ns: How long the program stood still, with what other callbacks took meanwhile.
        generation: 0 is the youngest.
        collected, uncollectable: Objects.
    """

    timestamp: int
    duration_ns: int
    generation: int
    collected: int
    uncollectable: int


@dataclass(frozen=True)
class GcStats:
    """What the collector has taken since the watch began.

    Attributes:
        collections: How many there were.
        missed: Of these, those whose time is not known.
        total_ms, longest_ms: Of those that are known.
        collected, uncollectable: Objects.
        by_generation: `collections`, `total_ms` and `longest_ms` of each.
        quantiles: `p50_ms`, `p95_ms` and `p99_ms` of all, to within 1 %; None without any.
    """

    collections: int = 0
    missed: int = 0
    total_ms: float = 0.0
    longest_ms: float = 0.0
    collected: int = 0
    uncollectable: int = 0
    by_generation: dict[int, dict[str, float]] = field(default_factory=dict)
    quantiles: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(QUANTILES))


class _Notes(deque[Any]):
    """What was noted: for each collection when it began, when it ended, and what the collector says of it.

    Setting `stop` appends; setting `start` does nothing.
    """

    start: ClassVar[Any] = property(None, is_)  # type: ignore[arg-type]  # what a setter returns is not looked at
    stop: ClassVar[Any] = property(None, deque.append)


class _Times(map):  # type: ignore[type-arg]  # not generic before Python 3.14
    """Setting either attribute takes the next item of this iterator, which is to append the time to the notes."""

    start: ClassVar[Any] = property(None, next)
    stop: ClassVar[Any] = property(None, next)


Callback = Callable[[str, dict[str, int]], None]

_Known = tuple[list[int], list[int], list[dict[str, int]]]
"""Of collections, in order: how long each took, when it ended, both in nanoseconds, and what the collector says of it. No list
of tuples, since as many objects as there may be would make the collector do more, which the program waits for."""

_OF_PAUSE = itemgetter("generation", "collected", "uncollectable")

_REGULAR = [{int}, {int}, {dict}]
"""The types of notes: every third from the first on, from the second, from the third."""


def _callbacks(notes: _Notes) -> tuple[Callback, Callback]:
    """What note a collection: the times of both its ends, then what the collector says of it. They refer to the notes alone."""
    times = _Times(notes.append, iter(perf_counter_ns, None))
    return partial(setattr, times), partial(setattr, notes)


def _register(callbacks: tuple[Callback, Callback]) -> None:
    gc.callbacks.extend(callbacks)


def _unregister(callbacks: tuple[Callback, Callback]) -> None:
    """By identity: others' callbacks may compare by code of their own."""
    for callback in callbacks:
        for n, registered in enumerate(gc.callbacks):
            if registered is callback:
                del gc.callbacks[n]
                break


def cost_ns() -> float:
    """Measure what noting a collection adds to it, in nanoseconds: it cannot be measured while it happens."""
    callbacks = _callbacks(_Notes(maxlen=3))
    said = {"generation": 0, "collected": 0, "uncollectable": 0}
    best = float("inf")
    for _ in range(_TRIALS):
        began = perf_counter_ns()
        for phase in ("start", "stop"):
            for callback in callbacks:
                callback(phase, said)
        best = min(best, perf_counter_ns() - began)
    return best


class GcWatch:
    """Adds up the collector's pauses between `start` and `stop`; once it is gone, nothing of it stays registered.

    Where the collector has no callbacks (PyPy), it sees nothing. Its methods may be called from any thread, and never wait.
    """

    def __init__(self) -> None:
        self._notes = _Notes(maxlen=3 * NOTED_BOUND)
        self._callbacks = _callbacks(self._notes)
        self._finalizer: Any = None
        self.clear()

    @property
    def running(self) -> bool:
        """Whether pauses are noted."""
        return self._finalizer is not None and self._finalizer.alive

    def start(self) -> None:
        """Note pauses from now on; those from before stay counted."""
        if not self.running and hasattr(gc, "callbacks"):
            self._notes.clear()
            self._began = self._ended = 0
            self._from = _count() - self._found - self._missed
            _register(self._callbacks)
            self._finalizer = finalize(self, _unregister, self._callbacks)
            self._finalizer.atexit = False

    def stop(self) -> None:
        """Note no more."""
        if self._finalizer is not None:
            self._finalizer()

    def clear(self) -> None:
        """Forget all pauses; in a forked child, those of its parent."""
        self._notes.clear()
        self._began = self._ended = 0  # of the collection whose notes are being read
        self._taking = Lock()
        self._sketch = QuantileSketch()
        self._stats = GcStats()
        self._found = self._missed = self._collected = self._uncollectable = 0
        self._rows: dict[int, dict[str, float]] = {}
        self._from = _count()

    def take(self, longer_ns: int = -1) -> list[Pause]:
        """Add up what was noted since the last call.

        Args:
            longer_ns: Which pauses are wanted: those that took more nanoseconds than this.

        Returns:
            These, in order; empty when another thread does it at this moment.
        """
        taking = self._taking  # `clear` puts another in its place
        if not taking.acquire(blocking=False):
            return []
        try:
            happened = _count() - self._from if self.running else None
            times, ends, said = known = self._read()
            self._add(known)
            missed = self._missed if happened is None else max(0, happened - self._found)
            if times or missed != self._missed:
                self._missed = missed
                self._stats = self._sum_up()
            wall = time_ns() - perf_counter_ns()
            return [
                Pause(wall + ends[n], took, *_OF_PAUSE(said[n])) for n, took in enumerate(times) if took > longer_ns
            ]
        finally:
            taking.release()

    def _read(self) -> _Known:
        """Those of which both times and the rest are known. Thousands in a second are usual with asyncio, and the program
        waits while they are read: where all is as it should be, little is done for each."""
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        starts, ends, said = notes[0::3], notes[1::3], notes[2::3]
        amid = self._began or self._ended or len(notes) % 3
        if amid or [set(map(type, each)) for each in (starts, ends, said)] != _REGULAR:
            return self._sort_out(notes)
        return list(map(sub, ends, starts)), ends, said

    def _sort_out(self, notes: list[Any]) -> _Known:
        """The same for notes that begin or end amid a collection's."""
        times: list[int] = []
        ends: list[int] = []
        said: list[dict[str, int]] = []
        for note in notes:
            if type(note) is int:
                self._began, self._ended = self._ended, note
            else:
                if self._began:  # else the first of a collection's notes was forgotten, or it began before the watch
                    times.append(self._ended - self._began)
                    ends.append(self._ended)
                    said.append(note)
                self._began = self._ended = 0
        return times, ends, said

    def _add(self, known: _Known) -> None:
        times, _, said = known
        self._found += len(times)
        self._sketch.extend([took / 1e6 for took in times])
        self._collected += sum([each["collected"] for each in said])
        self._uncollectable += sum([each["uncollectable"] for each in said])
        generations = [each["generation"] for each in said]
        for generation in set(generations):
            taken = [took for took, each in zip(times, generations, strict=True) if each == generation]
            row = self._rows.setdefault(generation, {"collections": 0, "total_ms": 0.0, "longest_ms": 0.0})
            row["collections"] += len(taken)
            row["total_ms"] += sum(taken) / 1e6
            row["longest_ms"] = max(row["longest_ms"], max(taken) / 1e6)

    def stats(self) -> GcStats:
        """Return what was taken so far; never waits."""
        return self._stats

    def _sum_up(self) -> GcStats:
        quantiles = self._sketch.quantiles(list(QUANTILES.values()))
        return GcStats(
            collections=self._found + self._missed,
            missed=self._missed,
            total_ms=self._sketch.total,
            longest_ms=self._sketch.maximum or 0.0,
            collected=self._collected,
            uncollectable=self._uncollectable,
            by_generation={generation: dict(row) for generation, row in sorted(self._rows.items())},
            quantiles=dict(zip(QUANTILES, quantiles, strict=True)),
        )


def _count() -> int:
    if not hasattr(gc, "callbacks"):
        return 0
    return sum(each["collections"] for each in gc.get_stats())
