"""How an event lies in a file: a line of JSON, with `producer` and `seq` among the event's own keys.

    {"v":1,"event_type":"token",...,"producer":"9f0c...","seq":1}

A dead letter has `reason` too. One whose bytes are no JSON object is a line of `producer`, `seq`, `reason` and
`payload_base64`. Ours come last, so that they win over an event's own keys of the same name.
"""

from __future__ import annotations

from base64 import b64encode

import msgspec

PRODUCER, SEQ, REASON, PAYLOAD_BASE64 = "producer", "seq", "reason", "payload_base64"

DEAD_LETTER_SUFFIX = ".dead-letter.jsonl"
"""What the name of the file of dead letters has behind that of the file of events."""

_encode = msgspec.json.Encoder().encode


def event_line(payload: bytes, producer: str, seq: int) -> bytes:
    """Return an event as a line.

    Args:
        payload: The event as a JSON object, without line ends.
        producer: The id of who accepted it.
        seq: The producer's number for it.
    """
    return b'%s,"producer":%s,"seq":%d}\n' % (payload[:-1], _encode(producer), seq)


def dead_letter_line(payload: bytes, producer: str, seq: int, reason: str) -> bytes:
    """Return a dead letter as a line, which holds the bytes that were rejected, whatever they are."""
    reason = reason.encode("utf-8", "backslashreplace").decode()
    if is_object(payload):
        return b'%s,"producer":%s,"seq":%d,"reason":%s}\n' % (payload[:-1], _encode(producer), seq, _encode(reason))
    opaque = {PRODUCER: producer, SEQ: seq, REASON: reason, PAYLOAD_BASE64: b64encode(payload).decode()}
    return _encode(opaque) + b"\n"


def is_object(payload: bytes) -> bool:
    """Whether bytes are a JSON object, not empty, on one line and with nothing around it."""
    if payload[:1] != b"{" or payload[-1:] != b"}" or b"\n" in payload:
        return False
    try:
        return bool(msgspec.json.decode(payload, type=dict[str, msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
