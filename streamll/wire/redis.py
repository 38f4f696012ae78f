"""How an event travels through Redis Streams: fields, key names, the fence; and how a reader gets it back.

What belongs here: what a writer and a reader of Redis share, as pure functions. What does not: how entries are appended
(redis_append.py), sockets and replies (sinks/), or how an entry reached the reader (consumers/).

Version 1, one stream entry an event:

    event      the event, as it was encoded
    producer   who accepted it: one id for each sink of each process
    seq        the producer's number for it
    reason     in a dead letter only: why it is one

or many, with consecutive numbers:

    events     a frame of them (frame.py)
    producer   as above
    seq        the number of the first
    count      how many they are

The fence is a key beside the stream, one for each producer: the highest number of that producer that is in the stream.
Whoever appends moves it in the same step and leaves out what is not above it, so a batch that is sent again, or whose
first copy comes late, adds exactly what is missing.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamll.errors import ConfigurationError, DecodeError
from streamll.wire.entry import WireEntry
from streamll.wire.frame import unpack

FIELD_EVENT = b"event"
FIELD_PRODUCER = b"producer"
FIELD_SEQ = b"seq"
FIELD_REASON = b"reason"
FIELD_EVENTS = b"events"
FIELD_COUNT = b"count"

FENCE_TTL = 30 * 24 * 3600.0
"""Seconds that a fence outlives its last batch: longer than what a dead process left on disk waits to be delivered."""
STOPPED_FENCE_TTL = 60.0
"""Seconds that it outlives a clean stop, when nothing is under way: only a copy that a proxy or switch still holds."""

SLOTS = 16_384
"""The hash slots of a Redis Cluster."""

Argument = bytes | str | int


@dataclass(frozen=True)
class Keys:
    """The keys that one producer writes; in a cluster all three are in one slot."""

    stream: bytes
    fence: bytes
    dead_letters: bytes


def hash_slot(key: bytes) -> int:
    """Return the cluster slot of a key: CRC-16 (XMODEM) of its hash tag, or of all of it when it has none."""
    return binascii.crc_hqx(_hash_tag(key) or key, 0) % SLOTS


def _hash_tag(key: bytes) -> bytes:
    """What stands between the first `{` and the first `}` after it; empty when the key has no such part."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed else b""


def keys_for(stream: str, producer: str, dead_letters: str = "", cluster: bool = False) -> Keys:
    """Name the keys of one producer of a stream.

    Args:
        stream: The stream's key.
        producer: The producer's id.
        dead_letters: The dead-letter stream's key; by default the stream's with `:dead-letter` behind it.
        cluster: Whether the keys live in a cluster, where the dead letters too must be in the stream's slot.

    Raises:
        ConfigurationError: When no other key can be in the stream's slot, or the given dead-letter stream is not.
    """
    name = stream.encode("utf-8", "surrogateescape")
    if not name:
        raise ConfigurationError("stream='': a stream needs a key")
    base = name
    if not _hash_tag(name):
        if b"}" in name:
            raise ConfigurationError(
                f"stream={stream!r}: no other key can share its slot in a cluster; leave the `}}` out, or put a part "
                "of the key in braces"
            )
        base = b"{" + name + b"}"
    fence = base + b":fence:" + producer.encode("utf-8", "surrogateescape")
    if not dead_letters:
        return Keys(name, fence, (base if cluster else name) + b":dead-letter")
    other = dead_letters.encode("utf-8", "surrogateescape")
    if other == name:
        raise ConfigurationError(f"dead_letter_stream={dead_letters!r}: must not be the stream itself")
    if cluster and hash_slot(other) != hash_slot(name):
        raise ConfigurationError(
            f"dead_letter_stream={dead_letters!r}: in a cluster it must be in the slot of stream={stream!r}; "
            f"give both the same part in braces, such as {base.decode('utf-8', 'surrogateescape') + ':dead-letter'!r}"
        )
    return Keys(name, fence, other)


def decode_fields(flat: Sequence[bytes]) -> Sequence[WireEntry]:
    """Read a stream entry as the server gives it: names and values in turn; raises as `decode_entries`."""
    # What a sink writes is read without a detour: this is most of what reading an entry costs.
    if len(flat) == 6 and flat[0] == FIELD_EVENT and flat[2] == FIELD_PRODUCER and flat[4] == FIELD_SEQ:
        return (WireEntry(flat[1], _as_text(flat[3]), _as_number(flat[5])),)
    return decode_entries(dict(zip(flat[::2], flat[1::2], strict=False)))


def decode_entries(fields: Mapping[Any, bytes | str]) -> Sequence[WireEntry]:
    """Read the fields of a stream entry, whether the client decoded them or not: its event, or all of its frame.

    Raises:
        DecodeError: When there is no event in it, a number is none, or its frame is not what it says.
    """
    raw = {_as_bytes(name): value for name, value in fields.items()}
    if FIELD_EVENT in raw or FIELD_EVENTS not in raw:
        return (decode_entry(raw),)
    first = _as_number(raw.get(FIELD_SEQ, b""))
    payloads = unpack(_as_bytes(raw[FIELD_EVENTS]), _as_number(raw.get(FIELD_COUNT, b""), FIELD_COUNT))
    producer = _as_text(raw.get(FIELD_PRODUCER, b""))
    return [WireEntry(payload, producer, first + place) for place, payload in enumerate(payloads)]


def decode_entry(fields: Mapping[Any, bytes | str]) -> WireEntry:
    """Read the fields of a stream entry that holds one event, whether the client decoded them or not.

    Raises:
        DecodeError: When there is no event in it, or its number is none.
    """
    raw = {_as_bytes(name): value for name, value in fields.items()}
    payload = raw.get(FIELD_EVENT)
    if payload is None:
        if FIELD_EVENTS in raw:
            raise DecodeError("the entry holds many events (field `events`)")
        raise DecodeError("the entry has no field `event`: streamll did not write it")
    return WireEntry(
        payload=_as_bytes(payload),
        producer=_as_text(raw.get(FIELD_PRODUCER, b"")),
        seq=_as_number(raw.get(FIELD_SEQ, b"0")),
        reason=_as_text(raw.get(FIELD_REASON, b"")),
    )


def _as_bytes(value: bytes | str) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _as_text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _as_number(value: bytes | str, field: bytes = FIELD_SEQ) -> int:
    text = _as_text(value)
    # Longer than any number that is given out; int() itself refuses only thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise DecodeError(f"the field `{field.decode()}` is not a number: {text[:40]!r}")
    return int(text)
