"""The counters, and the identity that proves them.

    offered  = accepted + sum(refused)
    accepted = delivered + dead_lettered + sum(dropped) + buffered + in_flight + spooled

Each term is counted where the event moves, or where it lies; none is computed from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Balance:
    """One consistent reading of a ledger.

    Attributes:
        offered: Events handed to the sink.
        accepted: Those that it took.
        refused: Those that it did not take, by reason: buffer_full, too_large, stopped, filtered, not_an_event.
        delivered: Those that the broker confirmed.
        dead_lettered: Those that the dead-letter destination confirmed.
        dropped: Those given up, by reason: overflow, expired, rejected, dead_letter_failed, shutdown, and unconfirmed
            (the answer never came: they may have arrived).
        buffered: Those waiting.
        in_flight: Those in the hands of the worker: sent and not yet confirmed, or about to be sent again.
        spooled: Those on disk only.
    """

    offered: int = 0
    accepted: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    delivered: int = 0
    dead_lettered: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    buffered: int = 0
    in_flight: int = 0
    spooled: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every event that was offered is in exactly one counted place."""
        settled = self.delivered + self.dead_lettered + sum(self.dropped.values())
        pending = self.buffered + self.in_flight + self.spooled
        return self.offered == self.accepted + sum(self.refused.values()) and self.accepted == settled + pending


class Ledger:
    """The counters of one sink. It has no lock: whoever owns it counts, and reads, under one."""

    def __init__(self) -> None:
        self.offered = 0
        self.accepted = 0
        self.refused: dict[str, int] = {}
        self.delivered = 0
        self.dead_lettered = 0
        self.dropped: dict[str, int] = {}
        self.in_flight = 0

    def refuse(self, reason: str, n: int = 1) -> None:
        """Count events that were offered and not taken."""
        self.refused[reason] = self.refused.get(reason, 0) + n

    def drop(self, reason: str, n: int = 1) -> None:
        """Count events that were taken and given up."""
        self.dropped[reason] = self.dropped.get(reason, 0) + n

    def read(self, buffered: int, spooled: int = 0) -> Balance:
        """Return a reading, with what lies in the buffer and in the spool counted there."""
        return Balance(
            self.offered,
            self.accepted,
            dict(self.refused),
            self.delivered,
            self.dead_lettered,
            dict(self.dropped),
            buffered,
            self.in_flight,
            spooled,
        )
