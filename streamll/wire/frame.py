"""Frames: many events in one entry or message, for brokers that charge by the entry.

What belongs here: the bytes of a frame, and which events may share one; pure functions. What does not: where a broker
keeps the frame, the number of its first event and their count (redis.py, rabbitmq.py).

A frame is a MessagePack array of byte strings, each an event as it was encoded, whichever encoding that is. Its events
have consecutive numbers of one producer, so the number of the first and their count name them all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from streamll.errors import DecodeError

CONTENT_TYPE = "application/vnd.streamll.frame"
"""What a frame is called where a message says what it holds."""

MOST_EVENTS = 250
"""Events in a frame: what a reader takes, acknowledges and gets again as one.

Of what single events of 300 bytes cost it, a Redis 7.0 spent a third with 10 in a frame, a sixth with 100, a seventh with
250 and hardly less with 500 to 2,500 (2 shared cores).
"""

MOST_BYTES = 256 * 1024
"""Bytes of the events in a frame: a quarter of the least that Redis can be told to refuse, and a sixtieth of what
RabbitMQ 4 does."""

ALONE = None
"""The kind of an event that shares a frame with no other."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode

_FEW, _ARRAY16, _ARRAY32 = 0x90, 0xDC, 0xDD
_SHORTEST_EVENT = 2  # bytes: its own header, and its length


def pack(payloads: Sequence[bytes]) -> bytes:
    """Return the frame of some events.

    Args:
        payloads: The events, as they were encoded, in the order of their numbers.
    """
    return _encode(list(payloads))


def unpack(frame: bytes, count: int) -> list[bytes]:
    """Return the events of a frame, still encoded.

    Args:
        frame: The frame; it may come from anywhere. No memory is taken for what it claims, only for what is in it.
        count: How many events its envelope says it has.

    Raises:
        DecodeError: When it is no frame, or not one of so many events.
    """
    head = frame[0] if frame else 0
    if head & 0xF0 == _FEW:
        claimed = head & 0x0F
    elif head == _ARRAY16:
        claimed = int.from_bytes(frame[1:3], "big")
    elif head == _ARRAY32:
        claimed = int.from_bytes(frame[1:5], "big")
    else:
        raise DecodeError("the frame of many events is none: it does not begin with an array")
    if claimed != count or not count:
        raise DecodeError(f"the frame holds {claimed:,} events where its envelope says {count:,}"[:200])
    if claimed * _SHORTEST_EVENT > len(frame):  # before the decoder makes a list of that length
        raise DecodeError(f"the frame claims {claimed:,} events in {len(frame):,} bytes")
    try:
        return _decode(frame)
    except msgspec.DecodeError as error:
        raise DecodeError(f"the frame cannot be read: {error}") from None


def divide(numbers: Sequence[int], sizes: Sequence[int], kinds: Sequence[object] | None = None) -> list[slice]:
    """Divide a batch into what goes in one entry each: frames, and events that stand alone.

    Args:
        numbers: The events' numbers, rising.
        sizes: How many bytes each event has.
        kinds: Only events whose kinds are equal share a frame, and none of the kind `ALONE`; not given: all are equal.

    Returns:
        The places of the events in the batch, in their order and without a hole.
    """
    parts: list[slice] = []
    for start, end in pairwise(_borders(numbers, kinds)):
        ends = list(accumulate(sizes[start:end]))  # where each event of the run ends, in bytes from the run's start
        at, begun = 0, 0
        while at < len(ends):
            fits = min(bisect_right(ends, begun + MOST_BYTES), at + MOST_EVENTS)
            stop = max(at + 1, fits)
            parts.append(slice(start + at, start + stop))
            at, begun = stop, ends[stop - 1]
    return parts


def _borders(numbers: Sequence[int], kinds: Sequence[object] | None) -> list[int]:
    """Where runs of events begin that may share frames; and, last, where the batch ends."""
    count = len(numbers)
    if kinds is None and (not count or numbers[-1] - numbers[0] == count - 1):
        return [0, count]  # as almost always
    borders = [0]
    for place in range(1, count):
        follows = numbers[place] == numbers[place - 1] + 1
        alike = kinds is None or (kinds[place] is not ALONE and kinds[place] == kinds[place - 1])
        if not (follows and alike):
            borders.append(place)
    borders.append(count)
    return borders
