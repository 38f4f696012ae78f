"""Summary: what each operation did, folded from events. How often, how often it failed, and how long it took.

What belongs here: the fold and its table, as pure functions of events. What does not: where the events come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streamll.models import CLOSING, NOTES, StreamllEvent
from streamll.sketch import QuantileSketch
from streamll.views.line import neutral
from streamll.views.notes import read_gap
from streamll.views.table import aligned

OTHERS = "(others)"
"""Where operations are counted beyond the most that are told apart."""

_ERROR_LEVELS = frozenset({"error", "critical"})
_LONGEST_NAME = 200
_LONGEST_DURATION = 2**63


@dataclass(frozen=True)
class OperationSummary:
    """What is known of one operation.

    Attributes:
        operation: Its name; that of the function where the event has no operation, else the event's type.
        calls: Spans that ended.
        errors: Those of them that ended with an error.
        events: Its other events: what was emitted under its name.
        total_ms: The time of all its calls, in milliseconds.
        p50_ms, p95_ms: Quantiles of a call's time, to within 1 %; None without calls.
        max_ms: The longest call; None without calls.
    """

    operation: str
    calls: int
    errors: int
    events: int
    total_ms: float
    p50_ms: float | None
    p95_ms: float | None
    max_ms: float | None


class Summary:
    """A fold over events, in memory that does not grow with their number.

    Args:
        most_operations: Operations told apart; further ones are counted together as `(others)`.

    Attributes:
        lost: Events that sinks said they had dropped.
        closed: Sinks that said that they had ended.
    """

    def __init__(self, most_operations: int = 1000) -> None:
        self._most = most_operations
        self._operations: dict[str, _Operation] = {}
        self.lost = 0
        self.closed = 0

    def add(self, event: StreamllEvent) -> None:
        """Take an event in; a sink's own note is none of an operation's."""
        if event.event_type in NOTES:
            gap = read_gap(event)
            self.lost += gap.count if gap else 0
            self.closed += event.event_type == CLOSING
            return
        name = event.operation or ".".join(part for part in (event.module_name, event.method_name) if part)
        failed = "error" in event.data or event.level in _ERROR_LEVELS
        self.count(name or event.event_type, event.event_type, failed, [event.data.get("duration_ns")])

    def count(self, name: str, event_type: str, failed: bool, durations: Sequence[Any]) -> None:
        """Take in what matters of events that are no notes.

        Args:
            name: The operation's.
            event_type: "span" for calls that ended; anything else are events under the operation's name.
            failed: Whether those calls ended with an error.
            durations: One for each: its nanoseconds; what is no such number is not counted as a time.
        """
        name = name[:_LONGEST_NAME]
        if name not in self._operations and len(self._operations) >= self._most:
            name = OTHERS
        operation = self._operations.setdefault(name, _Operation())
        if event_type == "span":
            operation.call(failed, durations)
        else:
            operation.events += len(durations)

    def operations(self) -> list[OperationSummary]:
        """Return what is known, the operations that took most time first."""
        rows = [operation.read(name) for name, operation in self._operations.items()]
        return sorted(rows, key=lambda row: (-row.total_ms, -row.calls, -row.events, row.operation))

    def table(self) -> str:
        """Return it as a table for people, a line for each operation; no text of an event can harm a terminal."""
        rows = table_of(self.operations())
        if self.lost or self.closed:
            rows.append(f"events lost, as their sinks said: {self.lost:,}; sinks that ended: {self.closed:,}")
        return "\n".join(rows)


def table_of(rows: Iterable[OperationSummary]) -> list[str]:
    """Return a line for each operation, below a heading; no text of an event can harm a terminal."""
    lines: list[tuple[str, ...]] = [
        ("operation", "calls", "errors", "events", "p50 ms", "p95 ms", "max ms", "total ms")
    ]
    for row in rows:
        times = (row.p50_ms, row.p95_ms, row.max_ms, row.total_ms if row.calls else None)
        counts = (f"{row.calls:,}", f"{row.errors:,}", f"{row.events:,}")
        lines.append((neutral(row.operation), *counts, *("-" if ms is None else f"{ms:,.3f}" for ms in times)))
    return aligned(lines)


def summarise(events: Iterable[StreamllEvent]) -> Summary:
    """Fold events into a summary."""
    summary = Summary()
    for event in events:
        summary.add(event)
    return summary


class _Operation:
    """What is counted of one operation."""

    __slots__ = ("calls", "durations", "errors", "events")

    def __init__(self) -> None:
        self.calls = self.errors = self.events = 0
        self.durations = QuantileSketch()

    def call(self, failed: bool, durations: Sequence[Any]) -> None:
        self.calls += len(durations)
        self.errors += len(durations) if failed else 0
        add = self.durations.add
        for duration in durations:
            if type(duration) is int and 0 <= duration < _LONGEST_DURATION:
                add(duration)

    def read(self, name: str) -> OperationSummary:
        p50, p95 = self.durations.quantiles((0.5, 0.95))
        return OperationSummary(
            operation=name,
            calls=self.calls,
            errors=self.errors,
            events=self.events,
            total_ms=self.durations.total / 1e6,
            p50_ms=_ms(p50),
            p95_ms=_ms(p95),
            max_ms=_ms(self.durations.maximum),
        )


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
