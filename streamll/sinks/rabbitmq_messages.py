"""Which events of a batch travel in which message: each in one of its own, or many in a frame.

What belongs here: the division of a batch into messages, and the way back from messages to events, by position. What
does not: the bytes (wire/rabbitmq.py), the broker's answers (rabbitmq_confirms.py), or when a message is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from streamll.delivery.outcome import Entry
from streamll.wire import frame
from streamll.wire.rabbitmq import Encoder, message_id


class Messages:
    """The messages of one batch, in its order.

    Args:
        batch: The events.
        framing: Whether many events may share a message: those whose labels are equal and whose numbers follow each
            other. Dead letters travel alone.
        first_alone: Whether the first message holds one event whatever follows.

    Attributes:
        framed: Whether any message holds more than one event.
    """

    def __init__(self, batch: Sequence[Entry], *, framing: bool = False, first_alone: bool = False) -> None:
        self._batch = batch
        # Without frames the messages have the positions of the events.
        self._parts = _divide(batch, first_alone) if framing else None
        self.framed = self._parts is not None and len(self._parts) < len(batch)

    def __len__(self) -> int:
        return len(self._batch) if self._parts is None else len(self._parts)

    def encode(self, encoder: Encoder, message: int) -> tuple[Sequence[bytes], int]:
        """Return what publishes a message, and about how many bytes that is."""
        if self._parts is not None:
            entries = self._batch[self._parts[message]]
            if len(entries) > 1:
                pieces = encoder.encode_frame([entry.record for entry in entries], entries[0].seq)
                return pieces, sum([len(piece) for piece in pieces])
            entry = entries[0]
        else:
            entry = self._batch[message]
        return encoder.encode(entry.record, entry.seq, entry.dead_letter), len(entry.record.payload)

    def names(self, producer: str) -> dict[str, int]:
        """The messages by their ids."""
        batch = self._batch
        firsts = range(len(batch)) if self._parts is None else [part.start for part in self._parts]
        return {message_id(producer, batch[first].seq): message for message, first in enumerate(firsts)}

    def events(self, messages: Iterable[int]) -> list[int]:
        """The positions in the batch of the events of some messages."""
        parts = self._parts
        if parts is None:
            return list(messages)
        return [place for message in messages for place in range(parts[message].start, parts[message].stop)]

    def spread(self, reasons: Mapping[int, str]) -> dict[int, str]:
        """Turn reasons by message into reasons by event."""
        return {place: reason for message, reason in reasons.items() for place in self.events((message,))}


def _divide(batch: Sequence[Entry], first_alone: bool) -> list[slice]:
    kinds: list[object] = [
        frame.ALONE
        if entry.dead_letter
        else (
            (record := entry.record).event_type,
            record.operation,
            record.module_name,
            record.method_name,
            record.level,
        )
        for entry in batch
    ]
    if first_alone and kinds:
        kinds[0] = frame.ALONE
    return frame.divide([entry.seq for entry in batch], [len(entry.record.payload) for entry in batch], kinds)
