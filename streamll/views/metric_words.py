"""What a metric event says, in the words of a line: its series, rather than how they are encoded.

What belongs here: reading the rows of such an event, which may come from a stranger. What does not: the line (line.py), or
what rows hold (monitors/measuring/registry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

METRIC = "metric"
"""The type of such events."""

_OURS = frozenset({"name", "kind", "unit", "description", "temporality", "end_ns", "series"})


def describe_metric(data: dict[Any, Any], shown: Callable[[Any], str]) -> list[str] | None:
    """Return a piece of text for each series of a metric event, and for its other data; None when it has no rows.

    Args:
        data: The event's data.
        shown: Turns a label's value into text.

    Of a counter `+3 (12)`: so many more, and so many in all. Of a gauge its value, and how far it went: `5 (2 to 9)`. Of a
    histogram how many, and quantiles: `50: p50=24 p95=47.1 p99=49`. With the unit, where there is one.
    """
    kind, rows, unit = data.get("kind"), data.get("series"), data.get("unit")
    if type(rows) is not list or not rows:
        return None
    ending = f" {unit}" if type(unit) is str and unit not in ("", "1") else ""
    pieces = []
    for row in rows:
        numbers = _numbers(kind, row) if type(row) is dict else None
        labels = row.get("labels") if numbers else None
        if numbers is None or type(labels) is not dict:
            return None
        named = " ".join(f"{name}={shown(value)}" for name, value in labels.items())
        pieces.append(f"{{{named}}} {numbers}{ending}" if named else f"{numbers}{ending}")
    return [*pieces, *(f"{name}={shown(value)}" for name, value in data.items() if name not in _OURS)]


def _numbers(kind: object, row: dict[Any, Any]) -> str | None:
    if kind == "counter":
        delta, total = _number(row.get("delta")), _number(row.get("total"))
        return f"+{delta} ({total})" if delta and total else None
    if kind == "gauge":
        value, low, high = (_number(row.get(name)) for name in ("value", "min", "max"))
        if value is None:
            return None
        return value if low == high or low is None or high is None else f"{value} ({low} to {high})"
    if kind == "histogram":
        count = _number(row.get("delta"))
        return None if count is None else " ".join((f"{count}:", *_quantiles(row))).rstrip(":")
    return None


def _quantiles(row: dict[Any, Any]) -> Iterator[str]:
    for name in ("p50", "p95", "p99"):
        value = _number(row.get(name))
        if value is not None:
            yield f"{name}={value}"


def _number(value: object) -> str | None:
    if type(value) is int:
        return f"{value:,}" if value.bit_length() <= 128 else None
    if type(value) is float and isfinite(value):
        return f"{value:.4g}"
    return None
