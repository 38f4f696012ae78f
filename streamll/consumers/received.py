"""What a consumer hands over, decoded or not, and what it takes to acknowledge it.

What belongs here: one entry. What does not: where entries come from, and which of them are handed over (base.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from streamll import codec
from streamll.errors import DecodeError
from streamll.models import NOTES, StreamllEvent

LONGEST_NOTE = 1_048_576
"""Bytes of a note, at most, where only notes are decoded: what a sink writes is shorter."""

_NOTE_NAMES = tuple(name.encode() for name in sorted(NOTES))
_WHERE_THE_TYPE_IS = 64


class Coming(Enum):
    """How an entry that is to be acknowledged came."""

    NEW = "new"
    """For the first time."""
    RETURNED = "returned"
    """Again, because a connection was lost and the source does not know what had arrived."""
    EXPIRED = "expired"
    """Again, because whoever had it, perhaps we, did not acknowledge it for too long."""


class Sheaf:
    """Stands as token in the tickets of all events of one entry: the source hears of it when the last of them is settled.

    Attributes:
        token: The source's own name for the entry.
        left: How many of its events are not settled yet.
        rejected: Whether any of them was rejected, and so the entry is.
    """

    __slots__ = ("left", "rejected", "token")

    def __init__(self, token: Any, count: int) -> None:
        self.token = token
        self.left = count
        self.rejected = False

    def settle(self, rejected: bool) -> bool:
        """Take note of one event; returns whether it was the last."""
        self.left -= 1
        self.rejected = self.rejected or rejected
        return self.left == 0


class Ticket:
    """What a source needs to acknowledge an entry; shared by the item and by what remembers that it is under way.

    Attributes:
        tokens: The source's own names for it: a Redis entry id, a session with a delivery tag; a Sheaf where the entry
            holds other events too. It has several when it came again while it was under way.
        identity: What the entry is known by when it comes again; None when that could not be told.
        coming: How it came.
        settle: What hears of `ack` and `reject`; set by the consumer.
        settled: Whether it was acknowledged or rejected.
    """

    __slots__ = ("coming", "identity", "settle", "settled", "tokens")

    def __init__(self, token: Any, identity: Hashable | None, coming: Coming = Coming.NEW) -> None:
        self.tokens = [token]
        self.identity = identity
        self.coming = coming
        self.settle: Callable[[Ticket, bool], None] | None = None
        self.settled = False


@dataclass(slots=True, eq=False)
class Received:
    """One entry of a source, whether it could be decoded or not.

    Attributes:
        event: The event; None when the entry could not be decoded, or was not to be (the option `decode`).
        error: Why it could not be decoded; empty when it was.
        payload: The event's bytes as they came; for an entry that is none of ours, as much of it as can be shown.
        producer: Who accepted the event: one id for each sink of each process; empty when the entry does not say.
        seq: The producer's number for it; 0 when the entry does not say.
        position: Where it is: a Redis entry id, a stream queue's offset, `offset@file` for a line of a file. Given as
            `start`, reading goes on after it: for events in a frame, before the last of it, with all of the frame. A queue without positions has its delivery tag here, which only names it.
        dead_letter: In a dead letter: why it is one.
        after_cut: Whether entries may have gone unread between the one before and this one; see ConsumerStats.cuts.
        ticket: For the consumer's use.
    """

    event: StreamllEvent | None
    error: str
    payload: bytes
    producer: str
    seq: int
    position: str
    dead_letter: str = ""
    ticket: Ticket | None = field(default=None, repr=False)
    after_cut: bool = False

    @property
    def note(self) -> bool:
        """Whether it is no event of the program, but the sink's own word: a gap that it declares, or its end."""
        return self.event is not None and self.event.event_type in NOTES

    @property
    def redelivered(self) -> bool:
        """Whether it had been delivered before, to this consumer or another, without being acknowledged."""
        return self.ticket is not None and self.ticket.coming is not Coming.NEW

    def ack(self) -> None:
        """Say that it is done with. The source hears of it when a later item is asked for, or at close; of an entry that
        holds many events, when all of them are.

        Needed with a Redis consumer group and with a RabbitMQ queue; without effect elsewhere, and when repeated.
        """
        self._settle(rejected=False)

    def reject(self) -> None:
        """Say that it will never be done with: RabbitMQ dead-letters it where the queue says so, and else drops it.

        Redis takes it off the group's pending list and keeps it in the stream. Without effect elsewhere.
        """
        self._settle(rejected=True)

    def _settle(self, rejected: bool) -> None:
        if self.ticket is not None and self.ticket.settle is not None:
            self.ticket.settle(self.ticket, rejected)


def read_note(payload: bytes, limit: int) -> tuple[StreamllEvent | None, str]:
    """As `read_event`, but decode a note only; anything else is neither an event nor an error."""
    if not any(name in payload for name in _NOTE_NAMES):
        return None, ""
    if len(payload) > LONGEST_NOTE:
        # A long event may speak of notes; what begins like one is one.
        begins_like_one = any(name in payload[:_WHERE_THE_TYPE_IS] for name in _NOTE_NAMES)
        return None, f"a note of {len(payload):,} bytes: none is that long" if begins_like_one else ""
    event, error = read_event(payload, limit)
    return (event, "") if event is not None and event.event_type in NOTES else (None, error)


def read_event(payload: bytes, limit: int) -> tuple[StreamllEvent | None, str]:
    """Decode an event, or say why that cannot be done."""
    if len(payload) > limit:
        return None, f"no event: {len(payload):,} bytes are more than max_event_bytes={limit:,}"
    try:
        return codec.decode(payload), ""
    except DecodeError as error:
        return None, str(error)
