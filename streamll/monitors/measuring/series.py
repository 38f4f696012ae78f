"""What a metric holds: its series, one for each combination of labels, and how they become rows of an event.

What belongs here: the arithmetic of a series, and what labels and numbers are taken for, as decisions without a thread
or a clock. What does not: who records (instruments.py), and when it is sent (metrics.py).

A series is cut when its numbers are to be sent, and settled when they were accepted. What was cut and not accepted goes
into the next cut: so the deltas that readers get add up to the totals, whatever was refused in between.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from streamll.sketch import QuantileSketch

Number = int | float

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

OVERFLOW = {"streamll.overflow": "true"}
"""The labels of the series that takes what is beyond a bound."""

MOST_LABELS = 32
"""Labels of one series; what has more goes into the overflow series."""

LONGEST_WORD = 200
"""Characters of a label's name or value; what is longer is cut."""

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

LARGEST_AMOUNT = 1 << 63
"""What is added at once to a counter is at most this."""

_MOST_BITS = 1023  # what a float can hold
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1  # what MessagePack can hold as an integer
# Looked up on `type` itself: a metaclass may answer for its classes with code of its own.
_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__


def plain_number(value: Any) -> Number | None:
    """Read a number without any code of its own; None when it is none, not finite, or beyond all floats."""
    kind = type(value)
    numpy_scalar = getattr(sys.modules.get("numpy"), "generic", None)
    if numpy_scalar is not None and issubclass(kind, numpy_scalar) and _module_of(kind) == "numpy":
        value = value.item()
        kind = type(value)
    if issubclass(kind, int):
        number = int.__int__(value)  # a bool too: up or not up
        return number if number.bit_length() <= _MOST_BITS else None
    if kind is Decimal:
        value = float(value)
    elif issubclass(kind, float):
        value = float.__float__(value)
    else:
        return None
    return value if isfinite(value) else None


def word_of(value: Any) -> tuple[str, bool]:
    """Put a label's value into a word, without any code of its own.

    Returns:
        The word; and whether it says all: not when it was cut, or is the name of a type in angle brackets.
    """
    kind = type(value)
    if issubclass(kind, str):
        word = str.__str__(value)
    elif kind is bool:
        word = "true" if value else "false"
    elif value is None:
        word = "none"
    elif issubclass(kind, int) and -LARGEST_AMOUNT <= int.__int__(value) <= LARGEST_AMOUNT:
        word = int.__repr__(int.__int__(value))
    elif issubclass(kind, float):
        word = float.__repr__(value)
    else:
        return f"<{_name_of(kind)[:LONGEST_WORD]}>", False
    return word[:LONGEST_WORD], len(word) <= LONGEST_WORD


class Series(ABC):
    """One combination of a metric's labels.

    Args:
        labels: Words by name.
        now_ns: Nanoseconds since the epoch.

    Attributes:
        labels: As given.
        since_ns: When it began: where totals count from.
        start_ns: Where the present interval began.
        sent_ns: When it was last accepted; 0 before.
    """

    __slots__ = ("labels", "sent_ns", "since_ns", "start_ns")

    def __init__(self, labels: Mapping[str, str], now_ns: int) -> None:
        self.labels = dict(labels)
        self.reset(now_ns)

    def reset(self, now_ns: int) -> None:
        """Begin from zero."""
        self.since_ns = self.start_ns = now_ns
        self.sent_ns = 0

    @abstractmethod
    def cut(self) -> bool:
        """Set aside what was recorded until now, in little time, while nothing is recorded; return whether there is any."""

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Return what was set aside."""

    @abstractmethod
    def read(self) -> dict[str, Any] | None:
        """Return what was recorded since the beginning, while nothing is recorded; None when nothing was."""

    def row(self, now_ns: int) -> dict[str, Any]:
        """Return what was set aside as a row of an event."""
        return {"labels": self.labels, "start_ns": min(self.start_ns, now_ns), **self.numbers()}

    def is_due(self, now_ns: int, heartbeat_ns: int) -> bool:
        """Return whether a series that was sent, and has nothing to say since, is to say so again; else note that."""
        if heartbeat_ns and self.sent_ns and now_ns - self.sent_ns >= heartbeat_ns:
            return True
        self.start_ns = now_ns
        return False

    def settle(self, now_ns: int) -> None:
        """Take note that what was set aside was accepted."""
        self.start_ns = self.sent_ns = now_ns


class CounterSeries(Series):
    """A sum that only grows."""

    __slots__ = ("cut_total", "sent_total", "total")

    def reset(self, now_ns: int) -> None:
        """Begin from zero."""
        super().reset(now_ns)
        self.total: Number = 0
        self.cut_total: Number = 0
        self.sent_total: Number = 0

    def cut(self) -> bool:
        """Set the sum aside; return whether it grew."""
        self.cut_total = self.total
        return self.cut_total != self.sent_total

    def numbers(self) -> dict[str, Any]:
        """Return what was set aside."""
        delta = _encodable(self.cut_total - self.sent_total)
        return {"delta": delta, "total": _encodable(self.cut_total), "since_ns": self.since_ns}

    def read(self) -> dict[str, Any] | None:
        """Return what was recorded since the beginning."""
        if not self.total:
            return None
        return {"labels": self.labels, "total": _encodable(self.total), "since_ns": self.since_ns}

    def settle(self, now_ns: int) -> None:
        """Take note that what was set aside was accepted."""
        super().settle(now_ns)
        self.sent_total = self.cut_total


class GaugeSeries(Series):
    """A value that goes up and down: the last one, and how far it went meanwhile."""

    __slots__ = ("cut_value", "held", "high", "low", "sent_value", "value")

    def reset(self, now_ns: int) -> None:
        """Begin from zero."""
        super().reset(now_ns)
        self.value: Number | None = None
        self.cut_value: Number | None = None
        self.sent_value: Number | None = None
        self.low: Number | None = None
        self.high: Number | None = None
        self.held: tuple[Number, Number] | None = None
        """The lowest and the highest value that were cut and not yet accepted."""

    def set(self, value: Number) -> None:
        """Take a value over."""
        self.value = value
        if self.low is None or self.high is None:
            self.low = self.high = value
        elif value < self.low:
            self.low = value
        elif value > self.high:
            self.high = value

    def add(self, amount: Number) -> bool:
        """Make the value larger or smaller; return whether it is a finite number then."""
        value = (self.value or 0) + amount
        if plain_number(value) is None:
            return False
        self.set(value)
        return True

    def cut(self) -> bool:
        """Set the value aside; return whether it, or how far it went, is news."""
        self.cut_value = self.value
        if self.low is not None and self.high is not None:
            low, high = self.held or (self.low, self.high)
            self.held = min(low, self.low), max(high, self.high)
            self.low = self.high = None
        if self.held == (self.sent_value, self.sent_value):
            self.held = None
        return self.held is not None

    def numbers(self) -> dict[str, Any]:
        """Return what was set aside."""
        low, high = self.held or (self.cut_value, self.cut_value)
        return {"value": _encodable(self.cut_value), "min": _encodable(low), "max": _encodable(high)}

    def read(self) -> dict[str, Any] | None:
        """Return what was recorded since the beginning."""
        if self.value is None:
            return None
        return {"labels": self.labels, "value": _encodable(self.value)}

    def settle(self, now_ns: int) -> None:
        """Take note that what was set aside was accepted."""
        super().settle(now_ns)
        self.sent_value, self.held = self.cut_value, None


class HistogramSeries(Series):
    """Numbers of which their quantiles matter."""

    __slots__ = ("held", "sketch", "whole")

    def reset(self, now_ns: int) -> None:
        """Begin from zero."""
        super().reset(now_ns)
        self.sketch = QuantileSketch()
        """What was recorded since the last cut."""
        self.held = QuantileSketch()
        """What was cut and not yet accepted."""
        self.whole = QuantileSketch()
        """What was accepted."""

    @property
    def refused(self) -> int:
        """How many of the numbers were none."""
        return self.sketch.refused + self.held.refused + self.whole.refused

    def cut(self) -> bool:
        """Set the numbers aside; return whether there are any."""
        if self.held.minimum is None and not self.held.refused:
            self.held, self.sketch = self.sketch, self.held
        elif self.sketch.minimum is not None:
            self.held.merge(self.sketch)
            self.sketch = QuantileSketch()
        return self.held.minimum is not None

    def numbers(self) -> dict[str, Any]:
        """Return what was set aside."""
        quantiles = self.held.quantiles(tuple(QUANTILES.values()))
        return {
            "delta": self.held.count,
            "total": self.whole.count + self.held.count,
            "sum": self.held.total,
            "total_sum": _finite(self.whole.total + self.held.total),
            "since_ns": self.since_ns,
            **dict(zip(QUANTILES, quantiles, strict=True)),
            "sketch": self.held.to_dict(),
        }

    def read(self) -> dict[str, Any] | None:
        """Return what was recorded since the beginning."""
        everything = QuantileSketch()
        for part in (self.whole, self.held, self.sketch):
            everything.merge(part)
        if not everything.count:
            return None
        return {
            "labels": self.labels,
            "total": everything.count,
            "total_sum": everything.total,
            "min": everything.minimum,
            "max": everything.maximum,
            "since_ns": self.since_ns,
            **dict(zip(QUANTILES, everything.quantiles(tuple(QUANTILES.values())), strict=True)),
        }

    def settle(self, now_ns: int) -> None:
        """Take note that what was set aside was accepted."""
        super().settle(now_ns)
        self.whole.merge(self.held)
        self.held.clear()
        self.held.refused = 0


SERIES: dict[str, type[Series]] = {COUNTER: CounterSeries, GAUGE: GaugeSeries, HISTOGRAM: HistogramSeries}


def in_parts(rows: Iterable[tuple[Series, dict[str, Any]]], most: int) -> Iterator[list[tuple[Series, dict[str, Any]]]]:
    """Split rows into parts of about so many encoded bytes each; one row that is larger is a part by itself."""
    part: list[tuple[Series, dict[str, Any]]] = []
    size = 0
    for series, row in rows:
        more = _size_of(row)
        if part and size + more > most:
            yield part
            part, size = [], 0
        part.append((series, row))
        size += more
    if part:
        yield part


def _size_of(row: Mapping[str, Any]) -> int:
    """About how long a row is, encoded: a character is four bytes at most, and a bucket nine with its count."""
    words = sum(len(name) + len(word) for name, word in row["labels"].items())
    return 200 + 4 * words + (300 + 9 * len(row["sketch"]["counts"]) if "sketch" in row else 0)


def _encodable(value: Number | None) -> Number | None:
    if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
        return float(value)
    return value


def _finite(value: float) -> float:
    return min(max(value, -sys.float_info.max), sys.float_info.max)
