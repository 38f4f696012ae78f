"""What the application tells of itself, as it goes over the pipe.

What belongs here: the form of it, for both ends. What does not: what is measured (application.py), or concluded (verdict.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import msgspec

from streamll.delivery.ledger import Balance

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamll.sinks.base import SinkStats


@dataclass(frozen=True)
class Order:
    """What the application is to do.

    Attributes:
        sinks: The URLs.
        options: What else `streamll.configure` is told.
        rate: Events a second, all sources together.
        every: Seconds between two reports.
        patience: Seconds for the last delivery of all.
    """

    sinks: list[str]
    options: dict[str, Any]
    rate: float
    every: float
    patience: float


@dataclass(frozen=True)
class SinkReport(Balance):
    """The numbers of one sink; the names are those of SinkStats."""

    producer: str = ""
    circuit: str = ""
    bytes_held: int = 0
    retries: int = 0
    lost_after_ack: int = 0
    callback_errors: int = 0
    defects: int = 0
    last_error: str = ""

    @classmethod
    def of(cls, stats: SinkStats) -> Self:
        """Take them from a sink's stats."""
        return cls(**{one.name: getattr(stats, one.name) for one in fields(cls)})

    @property
    def held(self) -> int:
        """Events in memory."""
        return self.buffered + self.in_flight

    @property
    def settled(self) -> int:
        """Accepted events whose fate is known."""
        return self.delivered + self.dead_lettered + sum(self.dropped.values())

    @property
    def lost(self) -> int:
        """Accepted events that were dropped, for whatever reason."""
        return sum(self.dropped.values())


@dataclass(frozen=True)
class Report:
    """The application's numbers.

    Attributes:
        emitted: How many events each source has emitted, spans among them.
        emit: Durations of `streamll.emit` since the report before, in nanoseconds, as Buckets count them.
        sinks: Each sink's numbers.
        wrong: What was wrong with them between two reports, as far as is known.
        last: Whether all is over: the sinks are stopped.
    """

    emitted: dict[str, int] = field(default_factory=dict)
    emit: dict[int, int] = field(default_factory=dict)
    sinks: dict[str, SinkReport] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    last: bool = False


def to_line(word: Order | Report) -> bytes:
    """Write one down."""
    return msgspec.json.encode(word) + b"\n"


def read_order(line: bytes) -> Order:
    """Read an order."""
    return msgspec.json.decode(line, type=Order)


def read_report(line: bytes) -> Report:
    """Read a report."""
    return msgspec.json.decode(line, type=Report)
