"""What a worker tells of its events: a report of each to whoever asked for that, and a line in the log for what is new.

What belongs here: words. What does not: the numbers (the ledger's), or any decision.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns

from streamll.delivery.machine import SHUTDOWN, UNCONFIRMED, Settlement
from streamll.delivery.outcome import Entry
from streamll.runtime.buffer import OVERFLOW

log = logging.getLogger("streamll")

DELIVERED = "delivered"
DEAD_LETTERED = "dead_lettered"
DROPPED = "dropped"


@dataclass(frozen=True)
class DeliveryReport:
    """What became of one event, for `on_delivery` callbacks.

    Attributes:
        event_id: The event.
        seq: Its sequence number in this sink.
        status: "delivered", "dead_lettered" or "dropped".
        reason: Why it was dead-lettered or dropped; empty for a delivered one.
        latency: Seconds from emit until its fate was known.
    """

    event_id: str
    seq: int
    status: str
    reason: str
    latency: float


class Notices:
    """Lines in the log, each said once, until what it says is over if it can be.

    Args:
        name: The sink's, which every line begins with; it may be changed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._said: set[str] = set()

    def __contains__(self, topic: str) -> bool:
        return topic in self._said

    def say(self, topic: str, message: str) -> None:
        """Say something, unless it was said already."""
        if topic not in self._said:
            self._said.add(topic)
            log.warning("sink %s: %s", self.name, message)

    def end(self, topics: frozenset[str], message: str) -> None:
        """Say that these are over, if any of them was said."""
        if self._said & topics:
            self._said -= topics
            log.warning("sink %s: %s", self.name, message)

    def say_losses(self, settlement: Settlement) -> None:
        """Nobody may be looking at the numbers, so the first of each kind is said aloud."""
        for entry in settlement.dead_lettered[:1]:
            self.say(
                "dead letter", f"an event became a dead letter: {entry.dead_letter}; further ones are only counted"
            )
        for _, reason in settlement.dropped[:1]:
            if reason not in (SHUTDOWN, UNCONFIRMED):  # which the end of the program says
                self.say(f"dropped {reason}", f"an event was dropped: {reason}; further ones are only counted")


class Reports:
    """Delivery reports, for a function of the user's; what it raises is counted and swallowed.

    Args:
        callback: The function; None: nobody asked.
        evicted: Entries that gave way to newer ones and are yet to be reported.
        notices: Where it is said that the function raised.

    Attributes:
        errors: How often it raised.
    """

    def __init__(
        self, callback: Callable[[DeliveryReport], None] | None, evicted: deque[Entry] | None, notices: Notices
    ) -> None:
        self.errors = 0
        self._callback = callback
        self._evicted = evicted
        self._notices = notices

    def report(self, settlement: Settlement) -> None:
        """Tell what became of some entries."""
        callback = self._callback
        if callback is None:
            return
        fates = [(entry, DELIVERED, "") for entry in settlement.delivered]
        fates += [(entry, DEAD_LETTERED, entry.dead_letter) for entry in settlement.dead_lettered]
        fates += [(entry, DROPPED, reason) for entry, reason in settlement.dropped]
        now = monotonic_ns()
        for entry, status, reason in fates:
            latency = (now - entry.record.created) / 1e9
            try:
                callback(DeliveryReport(entry.record.event_id, entry.seq, status, reason, latency))
            except Exception as error:
                self.errors += 1
                self._notices.say("callback", f"an on_delivery callback raised {type(error).__name__}; it goes on")

    def report_evicted(self) -> None:
        """Tell of those that gave way meanwhile."""
        if self._evicted:
            evicted = [self._evicted.popleft() for _ in range(len(self._evicted))]
            self.report(Settlement(dropped=[(entry, OVERFLOW) for entry in evicted]))
