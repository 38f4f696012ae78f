"""The words that decisions and transports share: an entry, its dead letter, and what became of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from streamll.models import Record


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A record that a sink accepted, under the number that says in which order.

    Attributes:
        seq: The producer's sequence number: 1 for its first accepted event, one more for each after it.
        record: The event as bytes.
        dead_letter: Empty for an event to deliver; else why it goes to the dead-letter destination instead.
        note: Whether it is no event, but the sink's own word about its events (a gap, the closing record): it is sent
            like any other, and counted nowhere.
    """

    seq: int
    record: Record
    dead_letter: str = ""
    note: bool = False


class Failure(Enum):
    """Why a batch was not delivered whole."""

    UNAVAILABLE = "unavailable"
    """The broker could not be reached, or could not serve: try again. Counts towards the circuit."""
    REJECTED = "rejected"
    """The broker refused something in the batch without saying which: halve it until the poison stands alone."""
    FATAL = "fatal"
    """Waiting does not mend it (wrong password, no permission): open the circuit, probe slowly, keep the events."""


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a transport says became of the entries of one batch, by their positions in it.

    With `failure` None every entry was delivered (one with a `dead_letter` reason: stored as dead letter), but those in
    `rejected`. With a failure only the entries in `delivered` are known to be, and all others that are not in `rejected`
    will be sent again.

    A transport whose broker refuses what is at or below a fence must not let a rejected entry be overtaken: it answers
    REJECTED with the entries before the rejected one as `delivered`, and that one alone in `rejected`; the machine then
    sends the dead letter and the entries after it, in their order. Without a fence, `failure` may stay None.

    Attributes:
        failure: Why the batch failed; None when the broker answered for every entry.
        delivered: Positions known to be delivered although the batch failed.
        rejected: Positions of entries that the broker refused for themselves (too large, unroutable), with the reason;
            they are dead-lettered without halving.
        sent: False when it is certain that no byte of the batch reached the broker; True when some may have.
        error: One line that says what went wrong, without credentials.
        lost_after_ack: How many events, at most, the broker has lost after it had acknowledged them.
    """

    failure: Failure | None = None
    delivered: Set[int] = frozenset()
    rejected: Mapping[int, str] = field(default_factory=dict)
    sent: bool = True
    error: str = ""
    lost_after_ack: int = 0
