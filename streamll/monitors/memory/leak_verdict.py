"""Whether a program leaks, and what: from floors of its memory over time (series.py) to a verdict in words.

What belongs here: the decision, which has no clock, thread or chance. What does not: how memory is read, and who is
told.

A leak is called one when its growth is all of these, in one window of time that is long enough:

- a trend that chance does not make: Mann-Kendall, at ALPHA, its variance widened for readings that resemble their
  neighbours (by the lag-1 autocorrelation of what the line leaves over);
- large, by the slope of Theil and Sen: `min_growth` bytes and MIN_SHARE of the memory, and CLEAR times what the line leaves over;
- steady: every quarter of the window adds to it, no two steps make most of it, and it does not slow down to less than half;
- new: memory that the program had before, and gave back, is no leak when it is taken again.

What leaks is told by what grows along: Python's blocks (objects), what the C library's allocator has handed out, or
nothing that it knows of (native), or what it keeps although it is free (allocator retention).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import erfc, isnan, nan, sqrt
from typing import Any, NamedTuple

from streamll.monitors.memory.series import BUCKETS, FOLD, LEVELS, Point, Series

NONE, OBJECTS, NATIVE, RETENTION, CACHE, UNKNOWN = (
    *("none", "objects", "native", "allocator_retention", "bounded_cache", "unknown"),
)
KINDS = (NONE, OBJECTS, NATIVE, RETENTION, CACHE, UNKNOWN)
"""What a verdict may be."""

MIB = 1024 * 1024

MIN_POINTS = 24
"""Fewer points are no series."""

ALPHA = 0.001
"""How often chance alone may draw such a trend, by Mann-Kendall alone; the other conditions make it far rarer."""

Z_95 = 1.959964
MIN_SHARE = 0.02
CLEAR = 4.0
OBVIOUS = 12.0
"""Growth of so many times what the line leaves over is no product of chance. What is left over are then the bends of a
line, such as a leak has that follows the traffic of days and nights, and neighbours resemble each other in any bend."""

QUARTER = 0.1
"""The least that a quarter of the window adds, as a share of what all add."""

SLOWING = 0.5
"""Growth whose last quarter adds less than this share of what the first added fills something up, rather than leaks."""

LASTING = 0.4
"""Kendall's rank correlation with time from which on something is said to rise, however it does: of 24 points of noise,
one series in 300 has it."""

STEPS = 0.6
"""Two steps that make this share of the growth are steps, and no slope."""

KEPT = 0.3
"""Retention is named where so much of the memory is free all the time, also where nothing grows."""

EMPTIED = 0.6
"""... or where blocks never come back to this share of what they were, and the memory has stayed at FULL of it."""

FULL = 0.85
BUFFER = 2048
"""Bytes for each block from which on what grows is more likely what objects hold than the objects."""

UNRELATED = 64 * 1024
"""Bytes for each block from which on the blocks' growth is taken for something else."""

FEW = 1000
"""So many blocks more are no growth of objects: an interpreter has as many at hand."""

SEEN = 3
"""Values, of a third of a window, from which on it is said what they were all the time."""


@dataclass(frozen=True)
class Verdict:
    """What a program's memory does, as far as its readings say.

    Attributes:
        kind: "none"; "objects", "native" or "allocator_retention": what grows, or is kept; "bounded_cache": what grew
            and slows down or has stopped; "unknown": too few readings, or growth of which the kind cannot be told.
        growing: Whether there is a steady growth of new memory, which does not slow down.
        confidence: From 0 to 1: how well a line describes the growth, and how much of it the kind explains; where nothing
            grows, how small the growth is that could have been overlooked.
        slope, slope_low, slope_high: Bytes a second, by Theil and Sen, and the bounds of its interval at 95 %.
        significance: How often chance alone would draw such a trend (two-sided).
        growth: Bytes in the window.
        seconds: How long the window is.
        points: How many points it has.
        explanation: The same in words.
    """

    kind: str = UNKNOWN
    growing: bool = False
    confidence: float = 0.0
    slope: float = 0.0
    slope_low: float = 0.0
    slope_high: float = 0.0
    significance: float = 1.0
    growth: float = 0.0
    seconds: float = 0.0
    points: int = 0
    explanation: str = "Too few readings for a verdict."

    def to_dict(self) -> dict[str, Any]:
        """The same as a dict of plain values."""
        return dict(vars(self))


class Trend(NamedTuple):
    """A line through a series.

    Attributes:
        slope, low, high: Units a second, by Theil and Sen, and the bounds of its interval at 95 %.
        significance: Of Mann and Kendall's test, two-sided.
        tau: Kendall's rank correlation with time: -1 to 1.
        growth: What the line rises from the first point to the last.
        spread: How far the points lie from it: the median, scaled to be a normal distribution's standard deviation.
    """

    slope: float
    low: float
    high: float
    significance: float
    tau: float
    growth: float
    spread: float

    @property
    def rises(self) -> bool:
        """Whether it rises beyond chance."""
        return self.low > 0 and self.significance < ALPHA


def trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line that a third of wild points does not move.

    The slope is the median of the slopes of all pairs (Theil 1950, Sen 1968), its interval Sen's, by ranks; the test is
    Mann's (1945), with Kendall's variance for ties, widened by (1 + r) / (1 - r) for neighbours that correlate by r,
    unless the line is OBVIOUS.

    Args:
        times: Seconds, rising; two at least.
        values: As many.
    """
    count = len(values)
    slopes = []
    score = 0
    for i in range(count - 1):
        t, v = times[i], values[i]
        for j in range(i + 1, count):
            rise = values[j] - v
            score += (rise > 0) - (rise < 0)
            slopes.append(rise / (times[j] - t))
    slopes.sort()
    slope = _middle(slopes)
    left = [value - slope * time for time, value in zip(times, values, strict=True)]
    level = median(left)
    left = [value - level for value in left]
    spread = 1.4826 * median(map(abs, left))
    growth = slope * (times[-1] - times[0])
    variance = _variance(values)
    if abs(growth) < OBVIOUS * spread:
        variance *= _widening(left)
    pairs = len(slopes)
    z = (abs(score) - 1) / sqrt(variance) if variance > 0 and score else 0.0
    reach = Z_95 * sqrt(variance)
    low, high = round((pairs - reach) / 2), round((pairs + reach) / 2)
    return Trend(
        slope,
        slopes[max(0, low)],
        slopes[min(pairs - 1, high)],
        erfc(z / sqrt(2)),
        score / pairs,
        growth,
        spread,
    )


def median(values: Iterable[float]) -> float:
    """The middle of the values, or between the two of them; `statistics` has one, and 20 ms of imports."""
    return _middle(sorted(values))


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _variance(values: Sequence[float]) -> float:
    """Of Kendall's score, where nothing but ties is known of the values."""
    n = len(values)
    ties: dict[float, int] = {}
    for value in values:
        ties[value] = ties.get(value, 0) + 1
    tied = sum(t * (t - 1) * (2 * t + 5) for t in ties.values())
    return (n * (n - 1) * (2 * n + 5) - tied) / 18


def _widening(left: Sequence[float]) -> float:
    """How much more the score varies because neighbours resemble each other."""
    mean = sum(left) / len(left)
    whole = sum((value - mean) ** 2 for value in left)
    if whole <= 0:
        return 1.0
    shared = sum((a - mean) * (b - mean) for a, b in pairwise(left))
    r = min(max(shared / whole, 0.0), 0.95)
    return (1 + r) / (1 - r)


def judge_series(series: Series, *, leak_after: float = 600.0, min_growth: float = 4 * MIB) -> Verdict:
    """Judge a program by the windows of its series: by the longest, unless a shorter one that is long enough shows a
    leak that began late.

    Args:
        series: Its readings, without those of its start.
        leak_after: Seconds that a window must have for full confidence: where there are fewer, its root's share of it.
        min_growth: Bytes: less is no growth.
    """
    verdict = Verdict()
    for level in reversed(range(LEVELS)):
        points = [point for point in series.points(level) if not isnan(point.footprint)]
        if len(points) < (BUCKETS // FOLD if level else MIN_POINTS):
            continue  # the level below shows all that there is, more finely
        seconds = points[-1].seconds - points[0].seconds
        if verdict.points and seconds < leak_after:
            break
        found = judge(points, min_growth=min_growth, before=series.highest_before(level, points[0].seconds))
        if seconds < leak_after:
            found = replace(found, confidence=round(found.confidence * sqrt(seconds / leak_after), 3))
        if found.growing:
            return found
        if not verdict.points:
            verdict = found
    return verdict


class Alarm:
    """Tells when a verdict is to be believed: it has been growth, and confident, for so long, at each look.

    Args:
        patience: Seconds that growth must be found for.
        confidence: The least that counts.
    """

    def __init__(self, patience: float, confidence: float) -> None:
        self.patience = patience
        self.confidence = confidence
        self._since: float | None = None
        self._told = False

    def look(self, verdict: Verdict, now: float) -> bool:
        """Take a verdict in; True once for each time that growth goes on for long enough."""
        if not verdict.growing or verdict.confidence < self.confidence:
            self._since, self._told = None, False
            return False
        if self._since is None:
            self._since = now
        if self._told or now - self._since < self.patience:
            return False
        self._told = True
        return True


def judge(points: Sequence[Point], *, min_growth: float = 4 * MIB, before: float = nan) -> Verdict:
    """Judge one window.

    Args:
        points: From the oldest to the newest, each with a footprint.
        min_growth: Bytes: less is no growth.
        before: The highest floor that the footprint had before the window; NaN when there was none.
    """
    if len(points) < MIN_POINTS:
        return Verdict(points=len(points))
    times, values = [point.seconds for point in points], [point.footprint for point in points]
    line = trend(times, values)
    start, end = median(values[: len(values) // 8]), median(values[-len(values) // 8 :])
    wanted = max(min_growth, MIN_SHARE * start)
    numbers: dict[str, Any] = {
        "slope": line.slope,
        "slope_low": line.low,
        "slope_high": line.high,
        "significance": line.significance,
        "growth": line.growth,
        "seconds": times[-1] - times[0],
        "points": len(points),
    }
    is_new = isnan(before) or end - before >= line.growth / 2
    if line.rises and line.growth >= max(wanted, CLEAR * line.spread) and _is_steady(values) and is_new:
        return _what_grows(points, line, numbers)
    kept = _retention(points, min_growth)
    if kept:
        return Verdict(RETENTION, explanation=kept[1], confidence=kept[0], **numbers)
    if line.tau >= LASTING and end - start >= wanted and not _is_steps(values):
        slowing = _slowing(values)
        grown = [name for name in ("blocks", "in_use") if _rise(points, name) > 0]
        if slowing < SLOWING and grown:
            what = "Python objects" if "blocks" in grown else "memory from malloc"
            words = f"Grew by {_size(end - start)} of {what}, ever more slowly: something fills up to a bound."
            if slowing <= QUARTER:
                words = f"Grew by {_size(end - start)} of {what}, and stopped: something has filled up to its bound."
            return Verdict(CACHE, confidence=round(abs(line.tau) * (1 - slowing), 3), explanation=words, **numbers)
    overlooked = max(line.high, 0.0) * numbers["seconds"]
    confidence = wanted / max(overlooked, wanted)
    words = "Steady: no growth beyond chance."
    if line.rises and line.growth < wanted:
        words = f"Steady: {_size(line.growth)} more in all, which is little."
    elif line.rises and not is_new:
        words = "Grew, but not beyond what it had before."
    elif line.rises:
        words = f"Grew by {_size(end - start)}, but in steps or by fits and starts, not steadily."
    return Verdict(NONE, confidence=round(confidence, 3), explanation=words, **numbers)


def _quarters(values: Sequence[float]) -> list[float]:
    n = len(values)
    return [median(values[n * q // 4 : n * (q + 1) // 4]) for q in range(4)]


def _is_steps(values: Sequence[float]) -> bool:
    """Whether two steps make most of the growth. Medians of groups are looked at, which noise moves less than a step."""
    n = len(values)
    groups = min(16, n // 3)
    levels = [median(values[n * g // groups : n * (g + 1) // groups]) for g in range(groups)]
    rises = sorted(b - a for a, b in pairwise(levels))
    return sum(rises[-2:]) >= STEPS * (levels[-1] - levels[0])


def _slowing(values: Sequence[float]) -> float:
    """What the last quarter adds, as a share of what the first added (or the second, if that was more)."""
    one, two, three, four = _quarters(values)
    most = max(two - one, three - two)
    return max(0.0, (four - three) / most) if most > 0 else 1.0


def _is_steady(values: Sequence[float]) -> bool:
    quarters = _quarters(values)
    whole = quarters[3] - quarters[0]
    each = all(b - a >= QUARTER * whole for a, b in pairwise(quarters))
    return whole > 0 and each and not _is_steps(values) and _slowing(values) >= SLOWING


def _known(points: Sequence[Point], name: str) -> tuple[list[float], list[float]]:
    """Times and values of what is known throughout the window; empty when it is known too rarely."""
    known = [(point.seconds, getattr(point, name)) for point in points if not isnan(getattr(point, name))]
    if len(known) < 8:
        return [], []
    return [seconds for seconds, _ in known], [value for _, value in known]


def _rise(points: Sequence[Point], name: str) -> float:
    """What it rises from the window's first eighth to its last; 0.0 when it does not last, or is not known."""
    times, values = _known(points, name)
    if not values or trend(times, values).tau < LASTING:
        return 0.0
    return max(0.0, median(values[-len(values) // 8 :]) - median(values[: max(1, len(values) // 8)]))


def _what_grows(points: Sequence[Point], line: Trend, numbers: dict[str, Any]) -> Verdict:
    growth, rate = line.growth, f"{_size(line.slope * 60)} a minute ({_size(line.low * 60)} to {_size(line.high * 60)})"
    fit = line.tau * (1 - min(line.spread / growth, 1.0))
    blocks, in_use, retained = (_rise(points, name) for name in ("blocks", "in_use", "retained"))
    each = growth / blocks if blocks else nan
    counted, knows_heap = _known(points, "blocks")[1], bool(_known(points, "in_use")[0])
    if blocks >= FEW and each <= UNRELATED and not _is_steps(counted):
        kind, sure = OBJECTS, 1.0 if each <= BUFFER else 0.8
        words = f"Python objects: {blocks:,.0f} blocks more, {_size(each)} for each."
        if each > BUFFER:
            words += " That is more than objects take: they hold buffers, or native memory goes along with them."
    elif retained >= growth / 2 and in_use < growth / 4:
        kind, sure = RETENTION, min(1.0, retained / growth)
        words = f"the allocator keeps {_size(retained)} more that is free: fragmentation."
    elif counted and knows_heap:
        kind, sure = NATIVE, 1.0 if in_use >= growth / 2 else 0.8
        from_where = "from malloc" if in_use >= growth / 2 else "not from malloc: mapped directly, or arenas half empty"
        words = f"native memory {from_where}; Python's own blocks do not grow along"
        words += ", or are so few that each would have to hold a large buffer." if blocks else "."
    else:
        kind, sure = UNKNOWN, 0.6
        words = "of what kind cannot be told here."
    return Verdict(
        kind,
        growing=True,
        confidence=round(fit * sure, 3),
        explanation=f"Grows by {rate}, steadily: {words}",
        **numbers,
    )


def _retention(points: Sequence[Point], min_growth: float) -> tuple[float, str] | None:
    """Whether much is kept although it is free, all the time of late: how sure that is, and words for it."""
    late = points[-len(points) // 3 :]
    footprint = min(point.footprint for point in late)
    if footprint < min_growth:
        return None
    retained = [point.retained for point in late if not isnan(point.retained)]
    if len(retained) >= SEEN and min(retained) >= max(min_growth, KEPT * footprint):
        share = min(min(retained) / footprint, 1.0)
        words = f"The allocator keeps {_size(min(retained))} that is free, {share:.0%} of the memory: fragmentation, or a peak."
        return round(sqrt(share), 3), words
    blocks = [point.blocks for point in late if not isnan(point.blocks)]
    full = max((point.blocks for point in points if not isnan(point.blocks)), default=0.0)
    if len(blocks) < SEEN or full <= 0:
        return None
    left = max(blocks) / full
    stayed = footprint / max(point.footprint for point in points)
    if left > EMPTIED or stayed < FULL:
        return None
    words = f"Python's blocks went down to {left:.0%}, the memory to {stayed:.0%}: its arenas are kept, partly free."
    return round(1 - left, 3), words


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
