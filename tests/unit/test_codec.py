"""Events as bytes and back; bytes that are no event raise DecodeError and nothing else, and cost no more than they are."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.codec import (
    _FIELDS,
    CONTENT_TYPES,
    JSON,
    MSGPACK,
    decode,
    encode,
    encode_resource,
    format_timestamp,
    parse_timestamp,
    to_dict,
    to_json,
)
from streamll.errors import DecodeError
from streamll.models import SCHEMA_VERSION, StreamllEvent
from streamll.plain import INT_MAX, INT_MIN
from tests.unit.strategies import plain, plain_maps

content_types = st.sampled_from([MSGPACK, JSON])
labels = st.text(max_size=10)
timestamps = st.integers(INT_MIN, INT_MAX)

events = st.builds(
    StreamllEvent,
    event_type=st.text(min_size=1, max_size=10),
    **dict.fromkeys(
        ("event_id", "execution_id", "span_id", "parent_span_id", "module_name", "method_name", "operation", "level"),
        labels,
    ),
    timestamp=timestamps,
    data=plain_maps,
    tags=st.one_of(st.lists(plain, max_size=3), st.dictionaries(labels, plain, min_size=1, max_size=3)),
    resource=plain_maps,
    extra=st.dictionaries(labels.filter(lambda name: name not in _FIELDS and name != "v"), plain, max_size=3),
)


def packed(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "event_type": "x", **fields}))


def as_json(**fields: Any) -> bytes:
    return json.dumps({"v": 1, "event_type": "x", **fields}).encode()


class TestRoundTrip:
    @given(events, content_types)
    def test_an_event_comes_back_as_it_was(self, event: StreamllEvent, content_type: str) -> None:
        assert decode(encode(event, content_type)) == event

    @given(events, content_types, plain_maps)
    def test_what_is_common_to_all_goes_along_and_the_event_is_left_as_it_was(
        self, event: StreamllEvent, content_type: str, resource: dict[str, Any]
    ) -> None:
        own = event.resource
        payload = encode(event, content_type, encode_resource(resource, content_type))
        assert event.resource is own or event.resource == own == {}
        assert decode(payload).resource == (own or resource)

    @given(events, content_types)
    def test_the_version_is_said_first(self, event: StreamllEvent, content_type: str) -> None:
        payload = encode(event, content_type)
        fields = json.loads(payload) if content_type == JSON else msgpack.unpackb(payload)
        assert next(iter(fields.items())) == ("v", SCHEMA_VERSION)
        assert set(fields) <= {"v", *_FIELDS, *event.extra}

    @given(events)
    def test_both_encodings_say_the_same(self, event: StreamllEvent) -> None:
        assert decode(encode(event, MSGPACK)) == decode(encode(event, JSON))

    def test_what_is_empty_is_left_out(self) -> None:
        event = StreamllEvent(event_type="x", event_id="e", timestamp=0)
        fields = {"v": 1, "event_type": "x", "event_id": "e", "timestamp": 0}
        assert msgpack.unpackb(encode(event)) == fields
        assert json.loads(to_json(event)) == {**fields, "timestamp": "1970-01-01T00:00:00.000000000Z"}
        assert decode(encode(event)) == event

    def test_json_is_one_line_with_a_readable_time(self) -> None:
        event = StreamllEvent(event_type="x", timestamp=1_769_851_800_000_000_001, data={"text": "two\nlines"})
        payload = to_json(event)
        assert b"\n" not in payload
        assert json.loads(payload)["timestamp"] == "2026-01-31T09:30:00.000000001Z"

    def test_what_only_messagepack_has_comes_back_from_it(self) -> None:
        data = {"bytes": b"\x00\xff", "when": datetime(2026, 1, 31, tzinfo=timezone.utc)}
        assert decode(encode(StreamllEvent(event_type="x", data=data))).data == data

    def test_a_value_that_cannot_be_encoded_raises_and_leaves_the_event_as_it_was(self) -> None:
        event = StreamllEvent(event_type="x", data={"a": object()})
        for content_type in CONTENT_TYPES.values():
            with pytest.raises(TypeError):
                encode(event, content_type, encode_resource({"host": "h"}, content_type))
            assert event.resource == {}


class TestOtherVersions:
    @pytest.mark.parametrize("write", [packed, as_json])
    def test_unknown_keys_are_kept_and_written_again(self, write: Callable[..., bytes]) -> None:
        event = decode(write(v=2, links=["a"], deep={"b": {"c": 1}}))
        assert event.extra == {"v": 2, "links": ["a"], "deep": {"b": {"c": 1}}}
        for content_type in CONTENT_TYPES.values():
            assert decode(encode(event, content_type)) == event
        assert to_dict(event)["v"] == 2

    @pytest.mark.parametrize("version", [1, 0, 3, "1.1", None])
    def test_any_version_is_read(self, version: object) -> None:
        event = decode(packed(v=version, operation="op"))
        assert event.operation == "op"
        assert event.extra == ({} if version == 1 else {"v": version})

    def test_an_event_without_a_version_is_read(self) -> None:
        assert decode(b'{"event_type":"x"}') == StreamllEvent(event_type="x", event_id="", timestamp=0)

    def test_extra_keys_cannot_take_the_place_of_fields(self) -> None:
        event = StreamllEvent(
            event_type="x", data={"a": 1}, extra={"event_type": 5, "data": None, "timestamp": "?", "n": 1}
        )
        for content_type in CONTENT_TYPES.values():
            decoded = decode(encode(event, content_type))
            assert (decoded.event_type, decoded.data, decoded.timestamp) == ("x", {"a": 1}, event.timestamp)
            assert decoded.extra == {"n": 1}


class TestNoEvent:
    @given(st.binary(max_size=200))
    def test_random_bytes_are_an_event_or_a_decode_error(self, payload: bytes) -> None:
        decode_or_refuse(payload)

    @given(st.binary(max_size=60))
    def test_random_json_too(self, payload: bytes) -> None:
        decode_or_refuse(b'{"event_type":"x",' + payload)
        decode_or_refuse(b'{"event_type":"x","data":{"a":' + payload + b"}}")

    @given(st.binary(max_size=60), st.integers(0, 15))
    def test_random_maps_too(self, payload: bytes, size: int) -> None:
        decode_or_refuse(bytes([0x80 | size]) + b"\xaaevent_type\xa1x" + payload)
        decode_or_refuse(b"\x82\xaaevent_type\xa1x\xa4data\x81\xa1a" + payload)

    @given(events, content_types, st.data())
    def test_a_damaged_event_too(self, event: StreamllEvent, content_type: str, data: st.DataObject) -> None:
        payload = bytearray(encode(event, content_type))
        for position in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=3)):
            payload[position] = data.draw(st.integers(0, 255))
        decode_or_refuse(bytes(payload[: data.draw(st.integers(0, len(payload)))]))

    @given(st.dictionaries(st.sampled_from(sorted(_FIELDS)), plain, min_size=1))
    def test_fields_of_other_types_too(self, fields: dict[str, Any]) -> None:
        decode_or_refuse(packed(**fields))
        decode_or_refuse(as_json(**fields))

    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (b"", "no event: the payload is empty"),
            (b"{", "no event: bad JSON: "),
            (b'{"event_type":"x"} {}', "no event: bad JSON: "),
            (b'{"event_type":"\xff"}', "no event: bad JSON: "),
            (b'{"a":' * 100_000, "no event: bad JSON: "),
            (b"  [1]", "no event: bad MessagePack: "),
            (b"\x81\xa1a" * 100_000, "no event: bad MessagePack: StackError"),
            (b"\xc1", "no event: bad MessagePack: FormatError"),
            (b"\x81\xaaevent_type", "no event: bad MessagePack: "),
            (b"\x81\xa1a\xa1\xff", "no event: bad MessagePack: "),
            (b"\x81\x90\x01", "no event: bad MessagePack: "),
            (b"\x05", "no event: a map was expected, not a int"),
            (b"\x90", "no event: a map was expected, not a list"),
            (b"\xc0", "no event: a map was expected, not a NoneType"),
            (b"{}", "no event: event_type is missing"),
            (b"\x80", "no event: event_type is missing"),
            (packed(event_type=""), "no event: event_type is missing"),
            (packed(event_type=None), "no event: event_type must be a string, not a NoneType"),
            (packed(event_id=5), "no event: event_id must be a string, not a int"),
            (packed(level=b"x"), "no event: level must be a string, not a bytes"),
            (packed(data=[]), "no event: data must be a map, not a list"),
            (packed(resource="x"), "no event: resource must be a map, not a str"),
            (packed(tags="x"), "no event: tags must be a list or a map, not a str"),
            (packed(timestamp=1.5), "no event: timestamp must be nanoseconds or RFC 3339, not a float"),
            (packed(timestamp=True), "no event: timestamp must be nanoseconds or RFC 3339, not a bool"),
            (packed(timestamp="soon"), "no event: timestamp 'soon' is not RFC 3339"),
            (as_json(timestamp=None), "no event: timestamp must be nanoseconds or RFC 3339, not a NoneType"),
        ],
        ids=range(27),
    )
    def test_the_message_says_what_is_wrong(self, payload: bytes, reason: str) -> None:
        with pytest.raises(DecodeError) as caught:
            decode(payload)
        assert str(caught.value).startswith(reason)
        assert len(str(caught.value)) > len("no event: bad MessagePack: ")
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "payload",
        [
            *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"),
            *(b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff" * 300, b"\xde\xff\xff\xa1a" * 300),
        ],
        ids=["array", "map", "bytes", "string", "extension", "arrays", "maps"],
    )
    def test_a_length_that_is_not_there_is_not_allocated(self, payload: bytes) -> None:
        assert peak_of_decoding(payload) < 1_000_000

    def test_many_such_lengths_in_each_other_neither(self) -> None:
        size = 1 << 20
        arrays = (b"\xdd" + (size - 6000).to_bytes(4, "big")) * 1000
        maps = (b"\xdf" + (size // 2 - 6000).to_bytes(4, "big") + b"\xa1a") * 1000
        for nested in (arrays, maps):
            # Each of the thousand claims about a million items, eight bytes each.
            assert peak_of_decoding(nested + b"\xc0" * (size - len(nested))) < 200_000_000


def decode_or_refuse(payload: bytes) -> None:
    try:
        event = decode(payload)
    except DecodeError:
        return
    assert event.event_type
    assert type(event.timestamp) is int


def peak_of_decoding(payload: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(payload)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestTimestamp:
    @given(timestamps)
    def test_what_is_written_is_read(self, ns: int) -> None:
        assert parse_timestamp(format_timestamp(ns)) == ns

    @given(st.integers(3 * 10**20, 10**39), st.sampled_from([1, -1]))
    def test_what_no_calendar_has_is_written_in_digits(self, ns: int, sign: int) -> None:
        ns *= sign
        assert format_timestamp(ns) == str(ns)
        assert parse_timestamp(str(ns)) == ns

    @given(
        st.datetimes(timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))),
        st.integers(0, 999),
    )
    def test_any_offset_is_taken_off(self, moment: datetime, nanoseconds: int) -> None:
        text = f"{moment.replace(tzinfo=None).isoformat(timespec='microseconds')}{nanoseconds:03d}"
        offset = moment.strftime("%z")
        since = moment.replace(tzinfo=None) - datetime(1970, 1, 1) - (moment.utcoffset() or timedelta())  # noqa: DTZ001
        expected = (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000 + nanoseconds
        assert parse_timestamp(f"{text}{offset[:3]}:{offset[3:5]}") == expected

    @pytest.mark.parametrize(
        ("text", "ns"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:01z", 10**9),
            ("1970-01-01 00:00:00.5+00:00", 5 * 10**8),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T19:00:00-05:00", 0),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("1970-01-01T00:00:00.0000000019Z", 1),
            ("0001-01-01T00:00:00Z", -62_135_596_800 * 10**9),
            ("9999-12-31T23:59:59Z", 253_402_300_799 * 10**9),
            ("-5", -5),
            ("17", 17),
        ],
    )
    def test_of_other_writers_are_read(self, text: str, ns: int) -> None:
        assert parse_timestamp(text) == ns
        assert decode(as_json(timestamp=text)).timestamp == ns

    @pytest.mark.parametrize(
        "text",
        [
            *("", "now", "2026-01-31", "2026-01-31T09:30:00", "2026-02-30T00:00:00Z", "2026-01-31T25:00:00Z"),
            *("2026-01-31T09:30:00.Z", "2026-01-31T09:30Z", "٢٠٢٦-01-31T09:30:00Z", "1.5", "9" * 41, "x" * 1_000_000),
            *("0000-01-01T00:00:00Z", "2026-01-31T09:30:00+1:00", "2026-01-31T09:30:00Z\n", " 5"),
        ],
        ids=lambda text: text[:30],
    )
    def test_what_is_none_is_a_decode_error(self, text: str) -> None:
        with pytest.raises(DecodeError, match="no event: timestamp") as caught:
            parse_timestamp(text)
        assert len(str(caught.value)) < 150

    @given(st.text(max_size=40))
    def test_any_text_is_a_time_or_a_decode_error(self, text: str) -> None:
        decode_timestamp(text)

    @given(st.from_regex(r"\A\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,12})?([Zz]|[+-]\d\d:\d\d)\Z"))
    def test_anything_of_the_shape_too(self, text: str) -> None:
        decode_timestamp(text)


def decode_timestamp(text: str) -> None:
    try:
        assert type(parse_timestamp(text)) is int
    except DecodeError:
        pass


def test_messagepack_written_by_another_library_is_read() -> None:
    written = msgspec.msgpack.encode({"event_type": "x", "data": {"when": datetime(2026, 1, 31, tzinfo=timezone.utc)}})
    assert decode(written).data == {"when": datetime(2026, 1, 31, tzinfo=timezone.utc)}
