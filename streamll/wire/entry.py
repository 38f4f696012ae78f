"""What a reader finds in one entry or message, whichever broker it came from."""

from __future__ import annotations

import msgspec


class WireEntry(msgspec.Struct, frozen=True):
    """An event, still encoded, in its envelope.

    Attributes:
        payload: The event's bytes.
        producer: Who accepted it; empty when the envelope does not say.
        seq: The producer's number for it; 0 when the envelope does not say.
        reason: In a dead letter: why it is one.
    """

    payload: bytes
    producer: str
    seq: int
    reason: str = ""
