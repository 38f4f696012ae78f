"""How an event travels as a RabbitMQ message: headers, properties, routing key; and how a reader gets it back.

What belongs here: what a writer and a reader of RabbitMQ share, as pure functions over bytes. What does not: sockets,
channels, confirms (sinks/), or how a delivery reached the reader (consumers/).

Version 1, one message an event:

    body           the event, as it was encoded
    properties     content_type; delivery_mode 2 (persistent); message_id `producer:seq`; timestamp in whole seconds;
                   type = event_type
    headers        event_type, operation, module_name, method_name, level (each only when not empty, cut to 255 bytes);
                   in a dead letter also `reason`

Producer and number are in the message id only: the broker reads the headers of each message, and each costs it a
microsecond. Where a message has headers `producer` and `seq`, they come first.

Many events in one message, which have the same labels and consecutive numbers, and are no dead letters:

    body           the frame (frame.py)
    properties     content_type "application/vnd.streamll.frame"; all others as above, number and time of the first event
    headers        the labels, as above; events: how many there are; producer; seq: the number of the first
"""

from __future__ import annotations

import string
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamll.errors import ConfigurationError, DecodeError
from streamll.models import Record
from streamll.wire import frame
from streamll.wire.entry import WireEntry

LABELS = ("event_type", "operation", "module_name", "method_name", "level")
EMPTY_WORD = "none"
SHORT_LIMIT = 255
"""The longest AMQP short string, in bytes: a routing key, a message id, a type."""
REASON_LIMIT = 1024
"""The longest reason, in bytes. All headers together stay below the smallest frame that AMQP allows, 4,096 bytes."""

_COUNT_HEADER = "events"
_TEMPLATES_KEPT = 1024
_LAST_SECOND = 2**63 - 1

# Frame types and the end of a frame; the class and method numbers of basic.publish; which properties are present.
_METHOD, _HEADER, _BODY, _FRAME_END = 1, 2, 3, b"\xce"
_BASIC, _PUBLISH, _MANDATORY = 60, 40, 1
_PRESENT = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6 | 1 << 5
_PERSISTENT = b"\x02"
_FRAME_START_SIZE, _FRAME_OVERHEAD = 7, 8
_CONTENT_START_SIZE, _TIMESTAMP_SIZE = 12, 8

_pack_frame = struct.Struct(">BHI").pack
_pack_frame_start = struct.Struct(">BH").pack
_pack_content = struct.Struct(">HH").pack
_pack_flags = struct.Struct(">H").pack
_pack_publish = struct.Struct(">HHH").pack
_pack_table_size = struct.Struct(">I").pack
_pack_number = struct.Struct(">q").pack


def clip(text: str, limit: int = SHORT_LIMIT) -> bytes:
    """Encode as UTF-8, cut at a character boundary to at most `limit` bytes; what UTF-8 cannot say becomes `?`."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > limit:
        encoded = encoded[:limit].decode("utf-8", "ignore").encode()
    return encoded


def message_id(producer: str, seq: int) -> str:
    """Name a message so that a reader can drop its doubles."""
    return f"{producer}:{seq}"


class RoutingKey:
    """The template of a routing key: literal text, and labels of the event in braces.

    `{event_type}.{operation}` gives `token.generate`. An empty label becomes `none`, so that a key has the same number
    of words for every event, unless a label has dots of its own (module_name often has): they separate words too. `{{`
    and `}}` stand for braces. The result is cut to 255 bytes, AMQP's limit.

    Args:
        template: The template; the fields are event_type, operation, module_name, method_name and level.

    Raises:
        ConfigurationError: The template has an unknown field, a format of its own, unpaired braces, or a literal text
            that is too long by itself.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        allowed = f"allowed are literal text and {', '.join(f'{{{label}}}' for label in LABELS)}"
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigurationError(f"routing_key={template!r}: {error}; {allowed}") from None
        self._parts: list[tuple[str, str]] = []
        for literal, field, spec, conversion in parts:
            if field is not None and field not in LABELS:
                raise ConfigurationError(f"routing_key={template!r}: unknown field {field!r}; {allowed}")
            if spec or conversion:
                raise ConfigurationError(f"routing_key={template!r}: {field!r} takes no format; {allowed}")
            self._parts.append((literal, field or ""))
        if len("".join(literal for literal, _ in self._parts).encode("utf-8", "replace")) > SHORT_LIMIT:
            raise ConfigurationError(f"routing_key: its literal text is longer than {SHORT_LIMIT} bytes")

    def of(self, record: Record) -> bytes:
        """Return the routing key of an event, as UTF-8 of at most 255 bytes."""
        words = []
        for literal, field in self._parts:
            words.append(literal)
            if field:
                words.append(getattr(record, field) or EMPTY_WORD)
        return clip("".join(words))


@dataclass(frozen=True, slots=True)
class _Template:
    """What all messages with the same labels, and names of the same length, have in common, encoded once.

    Attributes:
        head: From the beginning to where the body's length is.
        middle: From there to where the name is.
        tail: From behind the timestamp to the length of the frame that holds the body.
        pack: Puts a message together, without its body: head, length, middle, name, timestamp, tail, length.
    """

    head: bytes
    middle: bytes
    tail: bytes
    pack: Callable[[bytes, int, bytes, bytes, int, bytes, int], bytes]


class Encoder:
    """Turns records into the AMQP frames that publish them, all `mandatory`: the bytes that a socket takes.

    It does by hand what an AMQP library does for any message, because these messages differ in little: it costs a
    thirtieth, and a whole batch becomes a single write.

    Args:
        producer: The id that, with the sequence number, names each message; at most 200 bytes.
        exchange: Where events go.
        routing_key: The template of their routing key.
        dead_letter_exchange: Where dead letters go, under the same routing key.
        channel: The number of the channel that publishes.
        frame_max: The longest frame that was agreed on with the broker, in bytes; 0 means that there is no limit.
    """

    def __init__(
        self,
        producer: str,
        exchange: str,
        routing_key: RoutingKey,
        dead_letter_exchange: str,
        *,
        channel: int,
        frame_max: int,
    ) -> None:
        self._producer = producer.encode("utf-8", "replace")
        if len(self._producer) > 200:
            raise ValueError("a producer's id has at most 200 bytes")
        self._exchange = clip(exchange)
        self._dead_letter_exchange = clip(dead_letter_exchange)
        self._routing_key = routing_key
        self._channel = channel
        self._body_max = frame_max - _FRAME_OVERHEAD if frame_max else 2**31
        self._templates: dict[tuple[str | int, ...], _Template] = {}

    def encode(self, record: Record, seq: int, dead_letter: str = "") -> Sequence[bytes]:
        """Return the frames that publish an event: joined, they are what the broker reads.

        Args:
            record: The event.
            seq: The producer's number for it.
            dead_letter: Why it is a dead letter; empty when it is none.
        """
        name = b"%b:%d" % (self._producer, seq)
        key = (
            record.event_type,
            record.operation,
            record.module_name,
            record.method_name,
            record.level,
            record.content_type,
            dead_letter,
            len(name),
        )
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _TEMPLATES_KEPT:
                # Somebody puts ids into labels: remembering them all would be a leak.
                self._templates.clear()
            reason = _string_field(b"reason", clip(dead_letter, REASON_LIMIT)) if dead_letter else b""
            exchange = self._dead_letter_exchange if dead_letter else self._exchange
            template = self._templates[key] = self._learn(record, record.content_type, exchange, reason, len(name))
        return self._message(template, name, record.timestamp, record.payload)

    def encode_frame(self, records: Sequence[Record], first: int) -> Sequence[bytes]:
        """Return the frames, in the sense of AMQP, that publish many events in one message.

        Args:
            records: The events; all have the same labels, and their numbers follow each other.
            first: The number of the first.
        """
        record = records[0]
        name = b"%b:%d" % (self._producer, first)
        fields = _number_field(_COUNT_HEADER.encode(), len(records))
        fields += _string_field(b"producer", self._producer) + _number_field(b"seq", first)
        template = self._learn(record, frame.CONTENT_TYPE, self._exchange, fields, len(name))
        return self._message(template, name, record.timestamp, frame.pack([record.payload for record in records]))

    def _message(self, template: _Template, name: bytes, timestamp: int, payload: bytes) -> Sequence[bytes]:
        second = timestamp // 1_000_000_000
        if not 0 <= second <= _LAST_SECOND:
            second = min(max(second, 0), _LAST_SECOND)
        length = len(payload)
        start = template.pack(template.head, length, template.middle, name, second, template.tail, length)
        if 0 < length <= self._body_max:
            return start, payload, _FRAME_END
        return self._in_pieces(start, payload)

    def _in_pieces(self, start: bytes, body: bytes) -> list[bytes]:
        """Divide a body into frames that the broker takes; an empty one needs none."""
        frames = [start[:-_FRAME_START_SIZE]]
        for begin in range(0, len(body), self._body_max):
            piece = body[begin : begin + self._body_max]
            frames += (_pack_frame(_BODY, self._channel, len(piece)), piece, _FRAME_END)
        return frames

    def _learn(self, record: Record, content: str, exchange: bytes, fields: bytes, name_size: int) -> _Template:
        """Encode what all messages have in common whose labels are those of a record.

        Args:
            record: One with these labels.
            content: The content type.
            exchange: Where they go.
            fields: The headers that are no labels, encoded.
            name_size: How long their names are.
        """
        channel = self._channel
        routed = _short(exchange) + _short(self._routing_key.of(record))
        method = _pack_publish(_BASIC, _PUBLISH, 0) + routed + bytes((_MANDATORY,))
        headers = b"".join(
            _string_field(label.encode(), clip(value)) for label in LABELS if (value := getattr(record, label))
        )
        headers += fields
        content_type, kind = _short(clip(content)), _short(clip(record.event_type))
        table = _pack_table_size(len(headers)) + headers
        middle = _pack_flags(_PRESENT) + content_type + table + _PERSISTENT + bytes((name_size,))
        size = _CONTENT_START_SIZE + len(middle) + name_size + _TIMESTAMP_SIZE + len(kind)
        head = _pack_frame(_METHOD, channel, len(method)) + method + _FRAME_END
        head += _pack_frame(_HEADER, channel, size) + _pack_content(_BASIC, 0)
        tail = kind + _FRAME_END + _pack_frame_start(_BODY, channel)
        pack = struct.Struct(f">{len(head)}sQ{len(middle)}s{name_size}sQ{len(tail)}sI").pack
        return _Template(head, middle, tail, pack)


def _short(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _string_field(name: bytes, value: bytes) -> bytes:
    return _short(name) + b"S" + _pack_table_size(len(value)) + value


def _number_field(name: bytes, value: int) -> bytes:
    return _short(name) + b"l" + _pack_number(value)


def decode_messages(body: bytes, headers: Mapping[str, Any] | None, name: str | None) -> Sequence[WireEntry]:
    """Read a delivered message back: its event, or all of its frame.

    Where the headers are gone (shovels and federations may strip them) producer and number come from the message id; a
    message of a stranger, that has neither, is an entry without a producer.

    Args:
        body: The message's body.
        headers: Its headers.
        name: Its message_id.

    Raises:
        DecodeError: There is no body, or its frame is not what it says.
    """
    headers = headers or {}
    if _COUNT_HEADER not in headers:
        return (decode_message(body, headers, name),)
    count = headers[_COUNT_HEADER]
    producer, first = _identity(headers, name)
    payloads = frame.unpack(bytes(body), count if isinstance(count, int) else 0)
    return [WireEntry(payload, producer, first + place if first else 0) for place, payload in enumerate(payloads)]


def decode_message(body: bytes, headers: Mapping[str, Any] | None, name: str | None) -> WireEntry:
    """Read a delivered message that holds one event, as all dead letters do; arguments as for `decode_messages`.

    Raises:
        DecodeError: There is no body, or it is a frame.
    """
    headers = headers or {}
    if _COUNT_HEADER in headers:
        raise DecodeError("the message holds many events (header `events`)")
    if not body:
        raise DecodeError("the message has no body")
    reason = headers.get("reason")
    producer, seq = _identity(headers, name)
    return WireEntry(bytes(body), producer, seq, reason if isinstance(reason, str) else "")


def _identity(headers: Mapping[str, Any], name: str | None) -> tuple[str, int]:
    """Who wrote a message, and the number of its first event; empty and 0 when it does not say."""
    producer, seq = headers.get("producer"), headers.get("seq")
    if not _names_an_entry(producer, seq):
        producer, _, number = (name or "").rpartition(":")
        seq = int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else 0
        if not _names_an_entry(producer, seq):
            return "", 0
    return str(producer), int(seq or 0)


def _names_an_entry(producer: object, seq: object) -> bool:
    return isinstance(producer, str) and producer != "" and isinstance(seq, int) and seq > 0
