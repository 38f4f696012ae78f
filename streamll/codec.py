"""Events as bytes and back: MessagePack, or JSON on request, version 1.

What belongs here: the two encodings and their reading. What does not: making values encodable (values.py).

Writing is msgspec's (it is the hot path). Reading MessagePack is msgpack's: bytes from a broker may be hostile, and
msgpack documents that it bounds every length they claim by the bytes that are really there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from streamll.errors import DecodeError
from streamll.models import SCHEMA_VERSION, StreamllEvent

MSGPACK = "application/msgpack"
JSON = "application/json"
CONTENT_TYPES = {"msgpack": MSGPACK, "json": JSON}

LABELS = (
    "event_type",
    "event_id",
    "execution_id",
    "span_id",
    "parent_span_id",
    "module_name",
    "method_name",
    "operation",
    "level",
    "priority",
)
"""The fields of an event that are strings."""
_FIELDS = frozenset({*LABELS, "timestamp", "data", "tags", "resource"})
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)

_encode_msgpack = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode


def encode(event: StreamllEvent, content_type: str = MSGPACK, resource: msgspec.Raw | None = None) -> bytes:
    """Encode an event whose values are all of encodable types.

    Args:
        event: The event; its `resource` is not changed.
        content_type: `MSGPACK` or `JSON`.
        resource: Encoded beforehand by `encode_resource`; used when the event names none itself.

    Raises:
        TypeError, ValueError, OverflowError, RecursionError: When a value cannot be encoded.
    """
    if content_type == MSGPACK and not event.extra:
        if resource is None or event.resource:
            return _encode_msgpack(event)
        event.resource = resource  # type: ignore[assignment]  # the bytes of such a map, for the length of this call
        try:
            return _encode_msgpack(event)
        finally:
            event.resource = {}
    fields = to_dict(event)
    if resource is not None and not event.resource:
        fields["resource"] = resource
    if content_type == MSGPACK:
        return _encode_msgpack(fields)
    fields["timestamp"] = format_timestamp(event.timestamp)
    return _encode_json(fields)


def encode_resource(resource: dict[str, Any], content_type: str) -> msgspec.Raw:
    """Encode what every event of a process has in common once, to be copied into each."""
    return msgspec.Raw(_encode_msgpack(resource) if content_type == MSGPACK else _encode_json(resource))


def to_dict(event: StreamllEvent) -> dict[str, Any]:
    """Return an event as the map that is encoded: `v` first, empty fields left out, keys of newer versions last."""
    fields: dict[str, Any] = {"v": SCHEMA_VERSION, "event_type": event.event_type, "event_id": event.event_id}
    for name in ("execution_id", "span_id", "parent_span_id"):
        fields[name] = getattr(event, name)
    fields["timestamp"] = event.timestamp
    for name in ("module_name", "method_name", "operation", "level", "data", "tags", "resource", "priority"):
        fields[name] = getattr(event, name)
    kept = {name: value for name, value in fields.items() if value or name in ("v", "event_type", "timestamp")}
    return {**kept, **{name: value for name, value in event.extra.items() if name not in _FIELDS}}


def to_json(event: StreamllEvent) -> bytes:
    """Return an event as one line of JSON, with its timestamp in RFC 3339."""
    return encode(event, JSON)


ENCODE: Mapping[str, Callable[[StreamllEvent], bytes]] = {MSGPACK: _encode_msgpack, JSON: to_json}
"""By content type, what encodes an event without `extra` whose `resource` is there: the shortest way."""


def decode(payload: bytes) -> StreamllEvent:
    """Read an event from MessagePack or JSON; which of them is told by the first byte.

    Raises:
        DecodeError: When the bytes are neither, or no event.
    """
    if not payload:
        raise DecodeError("no event: the payload is empty")
    fields = _read_json(payload) if payload.lstrip()[:1] == b"{" else _read_msgpack(payload)
    if not isinstance(fields, dict):
        raise DecodeError(f"no event: a map was expected, not a {type(fields).__name__}")
    return _to_event(fields)


def _read_json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"no event: bad JSON: {error}") from None


def _read_msgpack(payload: bytes) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(payload, timestamp=3, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise DecodeError(f"no event: bad MessagePack: {str(error) or type(error).__name__}") from None


def _to_event(fields: dict[Any, Any]) -> StreamllEvent:
    known: dict[str, Any] = {}
    for name in LABELS:
        value = fields.get(name, "")
        if not isinstance(value, str):
            raise DecodeError(f"no event: {name} must be a string, not a {type(value).__name__}")
        known[name] = value
    if not known["event_type"]:
        raise DecodeError("no event: event_type is missing")
    known["timestamp"] = _to_timestamp(fields.get("timestamp", 0))
    for name in ("data", "resource"):
        known[name] = value = fields.get(name, {})
        if not isinstance(value, dict):
            raise DecodeError(f"no event: {name} must be a map, not a {type(value).__name__}")
    known["tags"] = value = fields.get("tags", [])
    if not isinstance(value, (list, dict)):
        raise DecodeError(f"no event: tags must be a list or a map, not a {type(value).__name__}")
    known["extra"] = {
        name: value
        for name, value in fields.items()
        if name not in _FIELDS and not (name == "v" and value == SCHEMA_VERSION)
    }
    return StreamllEvent(**known)


def _to_timestamp(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return parse_timestamp(value)
    raise DecodeError(f"no event: timestamp must be nanoseconds or RFC 3339, not a {type(value).__name__}")


def format_timestamp(ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 in UTC, with nine digits: `2026-01-31T09:30:00.000000001Z`."""
    seconds, rest = divmod(ns, 1_000_000_000)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return str(ns)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}.{rest:09d}Z"


def parse_timestamp(text: str) -> int:
    """Read RFC 3339, or a number of nanoseconds in digits, as nanoseconds since the epoch.

    Raises:
        DecodeError: When it is neither.
    """
    if re.fullmatch(r"-?[0-9]{1,40}", text):
        return int(text)
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise DecodeError(f"no event: timestamp {text[:40]!r} is not RFC 3339")
    *parts, fraction, sign, hours, minutes = match.groups()
    try:
        moment = datetime(*map(int, parts), tzinfo=timezone.utc)  # type: ignore[misc,arg-type]  # six numbers
    except ValueError as error:
        raise DecodeError(f"no event: timestamp {text[:40]!r}: {error}") from None
    if sign:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        seconds = int((moment - _EPOCH).total_seconds()) - int(offset.total_seconds()) * (1 if sign == "+" else -1)
    else:
        seconds = int((moment - _EPOCH).total_seconds())
    return seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
