"""How long calls take, each by itself: the clock and the loop are timed in the same way and taken off.

What belongs here: timing of calls, and words for what came of it. What does not: what is called.

A lap times `nothing()`, then the call, so many times each, with two readings of the clock around each call. The median of
the first is what the clock, the loop and calling a function cost; it is taken off every time of the second. Then both once
more in blocks between two readings, where the clock's cost and resolution matter 1/100 as much: the median block's share
of one call. Garbage is collected as it always is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter_ns
from typing import Any

EVENT = {"text": "Hi", "index": 7, "cached": False}
"""The data of a small event."""

BLOCK = 100

Call = Callable[[], Any]


def nothing() -> None:
    """What is timed to know what timing costs."""


def each(call: Call, n: int) -> list[int]:
    """The nanoseconds of each of so many calls, the clock's included."""
    clock = perf_counter_ns
    times = [0] * n
    for i in range(n):
        start = clock()
        call()
        times[i] = clock() - start
    return times


def blocks(call: Call, n: int) -> list[int]:
    """The nanoseconds of each block of calls, for so many calls in all."""
    clock = perf_counter_ns
    times = []
    for _ in range(max(1, n // BLOCK)):
        start = clock()
        for _ in range(BLOCK):
            call()
        times.append(clock() - start)
    return times


def at(share: float, ordered: Sequence[float]) -> float:
    """What so large a share of ordered figures stays below."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def described(times: Sequence[float], off: float = 0.0, unit: float = 1e3) -> dict[str, float]:
    """The median, p99, p99.9, maximum and mean of nanoseconds.

    Args:
        times: Nanoseconds.
        off: What to take off each.
        unit: Nanoseconds of the unit of the answer: 1e3 gives microseconds.
    """
    ordered = sorted((time - off) / unit for time in times)
    quantiles = {"median": at(0.5, ordered), "p95": at(0.95, ordered), "p99": at(0.99, ordered)}
    return {**quantiles, "p999": at(0.999, ordered), "max": ordered[-1], "mean": sum(ordered) / len(ordered)}


def clock_cost(n: int) -> float:
    """The nanoseconds that the clock, the loop and calling a function take."""
    return median(each(nothing, n))


def time_calls(call: Call, n: int) -> dict[str, float]:
    """Describe so many calls in microseconds; `block` is the median block's share of one call."""
    off = clock_cost(n)
    singly = described(each(call, n), off)
    empty = median(blocks(nothing, n))
    return {**singly, "block": (median(blocks(call, n)) - empty) / BLOCK / 1e3}
