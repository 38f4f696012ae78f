"""decode, and all that shows what it returns, under bytes that nobody or an enemy wrote: an event or a DecodeError, soon, in
memory that goes by the length of the bytes."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll import codec
from streamll.cli.output import as_json, as_text
from streamll.consumers.received import Received, read_event, read_note
from streamll.errors import DecodeError
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.views.line import HARMFUL, format_event
from streamll.views.notes import describe
from tests.unit.strategies import plain, plain_maps, surrogates

LABELS = st.sampled_from(
    [*codec.LABELS, "v", "timestamp", "data", "tags", "resource", "producer", "seq", "reason", "last"]
)

ONLY_MSGPACK = st.one_of(
    st.binary(max_size=20),
    st.floats(),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    st.builds(msgpack.Timestamp, st.integers(-(2**60), 2**60), st.integers(0, 999_999_999)),
    surrogates.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
VALUES = st.recursive(
    st.one_of(plain, ONLY_MSGPACK),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(LABELS, st.text(max_size=5), st.integers(-(2**63), 2**64 - 1)), inner, max_size=4),
    ),
    max_leaves=8,
)
TYPES = st.sampled_from(["t", GAP, CLOSING, "", 7, None])

events = st.builds(
    StreamllEvent,
    event_type=st.text(min_size=1, max_size=8),
    timestamp=st.integers(-(2**63), 2**63 - 1),
    operation=st.text(max_size=8),
    level=st.text(max_size=8),
    data=plain_maps,
    tags=st.one_of(st.lists(plain, max_size=3), plain_maps),
)
payloads = st.builds(codec.encode, events, st.sampled_from([codec.MSGPACK, codec.JSON]))

TOKENS = st.one_of(
    st.binary(max_size=12),
    st.integers(0, 255).map(lambda byte: bytes([byte])),
    st.sampled_from(
        [
            *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
            *(b"\xc9\xff\xff\xff\xff\x01", b"\xd6\xff", b"\xd7\xff" + b"\xff" * 8, b"\xc7\x0c\xff" + b"\xff" * 12),
            *(b"\xcb\x7f\xf0" + bytes(6), b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7)),
            *(b"\xc1", b"\xa2\xc3\x28", b"\x81", b"\x91" * 2000, b"\x81\xa1x" * 1500, b"[" * 2000, b'{"a":' * 2000),
            *(
                b"NaN",
                b"1e400",
                b"-",
                b"9" * 50,
                b'"\\ud800"',
                b'"\\u0000"',
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b",",
                b"null",
            ),
            *(b'"timestamp":', b'"event_type":"t",', b'"data":{', b"}", b"{", b"\xaaevent_type\xa1t", b"\xa9timestamp"),
        ]
    ),
)


def check(payload: bytes) -> None:
    """See that it is an event that all who show events can show, or refused in words."""
    try:
        event = codec.decode(payload)
    except DecodeError:
        event = None
    found, why = read_event(payload, 1 << 20)
    assert (found is None) == (event is None) == (why != "")
    assert len(why) < 400
    read_note(payload, 1 << 20)
    item = Received(event, why, payload, "p\x1b", 10**19, "1-1")
    for text in (as_text(item, color=False, dated=True), as_json(item)):
        assert not HARMFUL.search(text)
        assert "\n" not in text
    assert isinstance(json.loads(as_json(item)), dict)
    if event is not None:
        assert len(format_event(event, limit=80)) <= 80 + len(" …")
        describe(event, "p")


@given(st.lists(TOKENS, max_size=12).map(b"".join))
def test_any_bytes(payload: bytes) -> None:
    check(payload)


@given(payloads, st.data())
def test_an_event_that_something_has_happened_to(payload: bytes, data: st.DataObject) -> None:
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(changed)))
        end = data.draw(st.integers(at, min(len(changed), at + 40)))
        match data.draw(st.sampled_from(["flip", "cut", "put", "replace", "repeat", "splice"])):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at:]
            case "put":
                changed[at:at] = data.draw(TOKENS)
            case "repeat":
                changed[end:end] = changed[at:end]
            case "splice":
                changed[at:] = payload[at:end] + data.draw(payloads)[at:]
            case _:
                changed[at:end] = data.draw(TOKENS)
    check(bytes(changed))


@given(st.dictionaries(LABELS, st.one_of(VALUES, TYPES), max_size=8), TYPES, st.booleans())
def test_any_map(fields: dict[str, Any], event_type: object, bare: bool) -> None:
    """Of types that MessagePack has and JSON has not, in any place."""
    check(msgpack.packb(fields if bare else {**fields, "event_type": event_type}, unicode_errors="surrogatepass"))


@given(st.lists(st.tuples(LABELS, st.one_of(plain, TYPES)), max_size=8))
def test_keys_that_come_again(pairs: list[tuple[str, Any]]) -> None:
    packed = [msgpack.packb(name) + msgpack.packb(value, unicode_errors="surrogatepass") for name, value in pairs]
    check(bytes([0x80 | len(pairs)]) + b"".join(packed))
    inner = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs)
    check(f"{{{inner}}}".encode("utf-8", "surrogatepass"))


@given(st.text(max_size=60))
def test_any_timestamp(text: str) -> None:
    try:
        assert codec.parse_timestamp(codec.format_timestamp(codec.parse_timestamp(text))) == codec.parse_timestamp(text)
    except DecodeError:
        pass


# What costs most. Each is about so many bytes long:
_SIZE = 200_000


def _claims(head: bytes, pack: str, each: int, levels: int = 1) -> bytes:
    """Containers in containers, each of which says that it has as many items as there are bytes."""
    return ((head + struct.pack(pack, each)) * levels).ljust(_SIZE, b"\xc0")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "lists that claim much": lambda: _claims(b"\xdd", ">I", _SIZE - 6000, 1000),
    "short lists that claim much": lambda: _claims(b"\xdc", ">H", 65535, 1000),
    "maps that claim much": lambda: (b"\xdf" + struct.pack(">I", _SIZE // 2 - 10) + b"\xa1a") * (_SIZE // 7),
    "a list that claims all there is": lambda: _claims(b"\xdd", ">I", 2**32 - 1),
    "bytes that are not there": lambda: b"\xc6\xff\xff\xff\xff".ljust(_SIZE, b"x"),
    "text that is not there": lambda: b"\xdb\xff\xff\xff\xff".ljust(_SIZE, b"x"),
    "empty lists": lambda: b"\x81\xa4data\x81\xa1x\xdd" + struct.pack(">I", _SIZE) + b"\x90" * _SIZE,
    "empty maps": lambda: b"\x81\xa4data\x81\xa1x\xdd" + struct.pack(">I", _SIZE) + b"\x80" * _SIZE,
    "deep lists": lambda: b"\x91" * _SIZE,
    "deep maps": lambda: b"\x81\xa1a" * (_SIZE // 3),
    "deep JSON": lambda: b'{"event_type":"t","data":{"x":' + b"[" * _SIZE,
    "empty lists of JSON": lambda: b'{"event_type":"t","data":{"x":[' + b"[]," * (_SIZE // 3) + b"1]}}",
    "empty maps of JSON": lambda: b'{"event_type":"t","data":{"x":[' + b"{}," * (_SIZE // 3) + b"1]}}",
    "one long number": lambda: b'{"event_type":"t","timestamp":' + b"9" * _SIZE + b"}",
    "long numbers": lambda: b'{"event_type":"t","data":{"x":[' + (b"9" * 4200 + b",") * (_SIZE // 4200) + b"1]}}",
    "a number of many digits": lambda: b'{"event_type":"t","data":{"x":1.' + b"9" * _SIZE + b"}}",
    "blanks": lambda: b" " * _SIZE,
    "blanks before JSON": lambda: b" " * _SIZE + b'{"event_type":"t"}',
    "keys": lambda: b'{"event_type":"t",' + b",".join(b'"%d":0' % n for n in range(_SIZE // 10)) + b"}",
    "escapes": lambda: b'{"event_type":"' + b"\\u0000" * (_SIZE // 6) + b'"}',
    "a label": lambda: b'{"event_type":"' + b"\x7f\xc2\x9b" * (_SIZE // 3) + b'"}',
}

_PER_BYTE = 120
_AT_ONCE = 1024 * 10_000 * 8 + 20_000_000
"""msgpack makes room for so many items at most, on so many levels, before it has seen them."""


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_goes_by_what_is_there(name: str) -> None:
    payload = HOSTILE[name]()
    tracemalloc.start()
    try:
        check(payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    claims = _AT_ONCE if "claim" in name else 1_000_000
    assert peak < claims + _PER_BYTE * len(payload)
