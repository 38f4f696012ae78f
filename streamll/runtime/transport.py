"""Transport: what the worker needs of a broker. One thread at a time drives it.

A transport is the only code that knows its broker. It decides nothing about retries, order or the circuit: it does one
thing, and says what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streamll.delivery.outcome import BatchOutcome, Entry


class Transport(Protocol):
    """The connection of one sink to its broker.

    All deadlines are instants of `time.monotonic()`, in seconds. All methods but `interrupt` are called by one thread at
    a time; which thread may change between calls.

    Attributes:
        service_interval: Seconds after which an idle connection wants `idle(0)`, for heartbeats; None: never.
    """

    service_interval: float | None

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called; False before `open`, after `close`, and once the connection is known broken."""

    def open(self, deadline: float) -> None:
        """Connect, importing the client library; called again after every failure.

        Raises:
            UnavailableError: The broker could not be reached or cannot serve now.
            FatalError: It refuses for a reason that waiting does not mend.
        """

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        """Deliver a batch in its order, and say what became of each entry; never raises for what the broker does.

        Entries with a `dead_letter` reason go to the dead-letter destination. An answer that has not come by the
        deadline is Failure.UNAVAILABLE, after which the transport is no longer open: a late answer must never be taken
        for that of the next batch.
        """

    def idle(self, seconds: float) -> None:
        """Serve the connection (heartbeats, closing) for at most so many seconds; 0: only what waits already."""

    def close(self, clean: bool) -> None:
        """Give the connection up; never raises, may be called in any state. `clean`: the sink stops with nothing left."""

    def interrupt(self) -> None:
        """End a blocked `open`, `send` or `idle` soon; safe from any thread and in any state, and never raises."""
