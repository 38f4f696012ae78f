"""The form of a RabbitMQ message: what is written is what pika reads, and what a reader gets back."""

from __future__ import annotations

from typing import Any

import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.errors import ConfigurationError, DecodeError
from streamll.models import Record
from streamll.wire import frame
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import (
    LABELS,
    REASON_LIMIT,
    SHORT_LIMIT,
    Encoder,
    RoutingKey,
    clip,
    decode_message,
    decode_messages,
    message_id,
)

any_text = st.text(st.characters(codec=None), max_size=300)


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "payload": b"payload",
        "content_type": "application/msgpack",
        "event_id": "e1",
        "event_type": "token",
        "operation": "generate",
        "module_name": "app.chat",
        "method_name": "answer",
        "level": "info",
        "execution_id": "x1",
        "timestamp": 1_700_000_000_999_999_999,
        "created": 0,
    }
    return Record(**(values | changes))


def encoder(template: str = "{event_type}", **changes: Any) -> Encoder:
    values: dict[str, Any] = {"producer": "p1", "exchange": "app", "dead_letter_exchange": "app.dead-letter"}
    values |= {"channel": 1, "frame_max": 131_072} | changes
    return Encoder(values.pop("producer"), values.pop("exchange"), RoutingKey(template), **values)


class Published:
    """What an AMQP peer reads: decoded by pika, which had no part in writing it."""

    def __init__(self, data: bytes) -> None:
        frames: list[Any] = []
        while data:
            used, frame = pika.frame.decode_frame(data)
            assert used
            assert frame is not None
            frames.append(frame)
            data = data[used:]
        method, header, *bodies = frames
        assert isinstance(method.method, pika.spec.Basic.Publish)
        self.exchange = method.method.exchange
        self.routing_key = method.method.routing_key
        self.mandatory = method.method.mandatory
        self.properties: pika.spec.BasicProperties = header.properties
        self.headers: dict[str, Any] = header.properties.headers or {}
        self.body = b"".join(frame.fragment for frame in bodies)
        self.body_sizes = [len(frame.fragment) for frame in bodies]
        self.channels = {frame.channel_number for frame in frames}
        assert header.body_size == len(self.body)

    def read(self) -> WireEntry:
        return decode_message(self.body, self.headers, self.properties.message_id)


def published(seq: int, record: Record, using: Encoder | None = None, dead_letter: str = "") -> Published:
    return Published(b"".join((using or encoder()).encode(record, seq, dead_letter)))


def test_a_message_has_the_documented_properties_and_headers() -> None:
    message = published(7, record(), encoder("{event_type}.{operation}", channel=3))
    properties = message.properties
    assert (message.exchange, message.routing_key, message.mandatory) == ("app", "token.generate", True)
    assert (properties.content_type, properties.delivery_mode) == ("application/msgpack", 2)
    assert (properties.message_id, properties.timestamp, properties.type) == ("p1:7", 1_700_000_000, "token")
    assert message.headers == {
        "event_type": "token",
        "operation": "generate",
        "module_name": "app.chat",
        "method_name": "answer",
        "level": "info",
    }
    assert message.body == b"payload"
    assert message.channels == {3}


def test_empty_labels_are_left_out() -> None:
    message = published(1, record(operation="", module_name="", method_name="", level=""))
    assert set(message.headers) == {"event_type"}


def test_a_dead_letter_carries_its_reason_to_the_dead_letter_exchange() -> None:
    message = published(9, record(), dead_letter="too large")
    assert (message.exchange, message.routing_key) == ("app.dead-letter", "token")
    assert message.headers["reason"] == "too large"
    assert message.read() == WireEntry(b"payload", "p1", 9, "too large")


def test_one_encoder_tells_the_living_from_the_dead() -> None:
    one = encoder()
    exchanges = [published(1, record(), one, reason).exchange for reason in ("", "bad", "", "worse")]
    assert exchanges == ["app", "app.dead-letter", "app", "app.dead-letter"]


def test_long_bodies_are_cut_into_frames_that_the_broker_takes() -> None:
    payload = bytes(range(256)) * 50
    message = published(1, record(payload=payload), encoder(frame_max=4096))
    assert message.body == payload
    assert message.body_sizes == [4088, 4088, 4088, 536]
    assert published(1, record(payload=payload), encoder(frame_max=0)).body_sizes == [len(payload)]
    assert published(1, record(payload=b"x" * 4088), encoder(frame_max=4096)).body_sizes == [4088]


def test_an_empty_payload_has_no_body_frame() -> None:
    assert published(1, record(payload=b"")).body_sizes == []


@pytest.mark.parametrize(("timestamp", "seconds"), [(-5, 0), (0, 0), (999_999_999, 0), (10**9, 1), (2**100, 2**63 - 1)])
def test_any_timestamp_is_a_whole_second_that_amqp_can_carry(timestamp: int, seconds: int) -> None:
    assert published(1, record(timestamp=timestamp)).properties.timestamp == seconds


def test_many_different_labels_are_not_remembered_for_ever() -> None:
    one = encoder()
    for number in range(3000):
        assert published(number + 1, record(operation=f"job-{number}"), one).headers["operation"] == f"job-{number}"
    assert len(one._templates) <= 1024


def test_a_producer_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="200 bytes"):
        encoder(producer="p" * 201)


@given(
    labels=st.fixed_dictionaries(dict.fromkeys(LABELS, any_text)),
    payload=st.binary(min_size=1, max_size=10_000),
    seq=st.integers(1, 2**63 - 1),
    producer=st.text(st.characters(codec="utf-8"), min_size=1, max_size=50),
    reason=any_text,
    timestamp=st.integers(),
    template=st.sampled_from(["{event_type}", "a.{operation}.{level}", "{module_name}{method_name}", "fixed"]),
    frame_max=st.sampled_from([0, 4096, 131_072]),
)
def test_whatever_is_written_can_be_read(
    labels: dict[str, str],
    payload: bytes,
    seq: int,
    producer: str,
    reason: str,
    timestamp: int,
    template: str,
    frame_max: int,
) -> None:
    event = record(**labels, payload=payload, timestamp=timestamp)
    frames = b"".join(encoder(template, producer=producer, frame_max=frame_max).encode(event, seq, reason))
    message = Published(frames)
    assert message.read() == WireEntry(payload, producer, seq, clip(reason, REASON_LIMIT).decode())
    assert decode_message(message.body, None, message.properties.message_id) == WireEntry(payload, producer, seq, "")
    expected = {label: clip(text).decode() for label, text in labels.items() if text}
    assert {label: message.headers[label] for label in LABELS if label in message.headers} == expected
    assert message.routing_key == RoutingKey(template).of(event).decode()
    used, _method = pika.frame.decode_frame(frames)
    header_size, _header = pika.frame.decode_frame(frames[used:])
    assert used <= 4096
    assert header_size <= 4096  # the smallest frame that a broker may insist on


@given(text=any_text, limit=st.integers(0, 400))
def test_clip_cuts_at_a_character(text: str, limit: int) -> None:
    clipped = clip(text, limit)
    assert len(clipped) <= limit
    assert text.encode("utf-8", "replace").decode().startswith(clipped.decode())
    assert len(clipped) >= min(limit - 3, len(text.encode("utf-8", "replace")))


@pytest.mark.parametrize(
    ("template", "key"),
    [
        ("{event_type}", "token"),
        ("app.{operation}.{level}", "app.generate.info"),
        ("{module_name}.{method_name}", "app.chat.answer"),
        ("plain", "plain"),
        ("", ""),
        ("{{{event_type}}}", "{token}"),
    ],
)
def test_a_routing_key_is_filled_from_the_labels(template: str, key: str) -> None:
    assert RoutingKey(template).of(record()) == key.encode()


def test_an_empty_label_is_a_word_of_its_own() -> None:
    assert RoutingKey("{event_type}.{operation}.{level}").of(record(operation="", level="")) == b"token.none.none"


@given(text=any_text)
def test_a_routing_key_is_never_too_long(text: str) -> None:
    key = RoutingKey("{event_type}.{operation}").of(record(event_type=text, operation=text))
    assert len(key) <= SHORT_LIMIT
    key.decode()


@pytest.mark.parametrize(
    "template",
    ["{operaton}", "{}", "{0}", "{event_type.upper}", "{event_type!r}", "{event_type:>9}", "{event_type", "}"],
)
def test_a_routing_key_that_means_nothing_is_refused_with_what_is_allowed(template: str) -> None:
    with pytest.raises(ConfigurationError, match=r"routing_key=.*\{operation\}"):
        RoutingKey(template)


def test_literal_text_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="255 bytes"):
        RoutingKey("é" * 128 + "{event_type}")


def test_headers_name_an_entry_before_the_message_id_does() -> None:
    assert decode_message(b"x", {"producer": "a", "seq": 3}, "b:4") == WireEntry(b"x", "a", 3, "")


@pytest.mark.parametrize(
    ("headers", "name", "producer", "seq"),
    [
        (None, "p:1:12", "p:1", 12),  # the number is behind the last colon
        ({}, None, "", 0),
        ({"producer": b"\xff", "seq": 3}, "p:4", "p", 4),
        ({"producer": "p", "seq": "3"}, None, "", 0),
        ({"producer": "p", "seq": 0}, "p:0", "", 0),
        ({"seq": 3}, "no-number", "", 0),
        (None, ":5", "", 0),
        (None, "p:²", "", 0),
        (None, "p:" + "9" * 30, "", 0),
    ],
)
def test_a_stranger_is_an_entry_without_a_producer(
    headers: dict[str, Any] | None, name: str | None, producer: str, seq: int
) -> None:
    assert decode_message(b"x", headers, name) == WireEntry(b"x", producer, seq, "")


def test_a_reason_that_is_no_text_is_none() -> None:
    assert decode_message(b"x", {"reason": 5}, None).reason == ""


def test_a_message_without_a_body_cannot_be_an_event() -> None:
    with pytest.raises(DecodeError, match="no body"):
        decode_message(b"", {}, "p:1")
    with pytest.raises(DecodeError, match="no body"):
        decode_messages(b"", {}, "p:1")


# Many events in one message


def framed(first: int, *payloads: bytes, using: Encoder | None = None, **labels: Any) -> Published:
    records = [record(payload=payload, **labels) for payload in payloads]
    return Published(b"".join((using or encoder()).encode_frame(records, first)))


def test_a_frame_has_the_documented_properties_and_headers() -> None:
    message = framed(7, b"one", b"two", using=encoder("{event_type}.{operation}"), level="", method_name="")
    properties = message.properties
    assert (message.exchange, message.routing_key, message.mandatory) == ("app", "token.generate", True)
    assert (properties.content_type, properties.delivery_mode) == (frame.CONTENT_TYPE, 2)
    assert (properties.message_id, properties.timestamp, properties.type) == ("p1:7", 1_700_000_000, "token")
    assert message.headers == {
        "event_type": "token",
        "operation": "generate",
        "module_name": "app.chat",
        "producer": "p1",
        "seq": 7,
        "events": 2,
    }
    assert message.body == frame.pack([b"one", b"two"])


def test_all_events_of_a_frame_come_back_with_their_own_numbers() -> None:
    message = framed(41, b"one", b"two", b"three")
    expected = [WireEntry(b"one", "p1", 41), WireEntry(b"two", "p1", 42), WireEntry(b"three", "p1", 43)]
    assert decode_messages(message.body, message.headers, message.properties.message_id) == expected
    named_by_id = decode_messages(message.body, {"events": 3}, message.properties.message_id)
    assert named_by_id == expected


def test_a_message_of_one_event_is_read_the_same_way() -> None:
    message = published(9, record(), dead_letter="too large")
    assert decode_messages(message.body, message.headers, message.properties.message_id) == (message.read(),)


def test_a_frame_without_a_name_has_events_without_numbers() -> None:
    assert decode_messages(frame.pack([b"a", b"b"]), {"events": 2}, None) == [
        WireEntry(b"a", "", 0),
        WireEntry(b"b", "", 0),
    ]


def test_a_frame_is_no_single_event() -> None:
    message = framed(1, b"one", b"two")
    with pytest.raises(DecodeError, match="many events"):
        message.read()


@pytest.mark.parametrize("count", [1, 3, 0, -2, "2", None, 2.0, 2**63])
def test_a_frame_that_is_not_what_its_headers_say_is_refused(count: object) -> None:
    with pytest.raises(DecodeError):
        decode_messages(frame.pack([b"one", b"two"]), {"events": count}, "p:1")


def test_a_long_frame_is_cut_into_what_the_broker_takes() -> None:
    payloads = [bytes([number]) * 3000 for number in range(5)]
    message = framed(1, *payloads, using=encoder(frame_max=4096))
    assert message.body_sizes == [4088, 4088, 4088, len(message.body) - 3 * 4088]
    found = decode_messages(message.body, message.headers, None)
    assert [entry.payload for entry in found] == payloads


@given(
    body=st.binary(),
    headers=st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
    name=st.text() | st.none(),
)
def test_reading_never_fails_in_another_way(body: bytes, headers: dict[str, Any], name: str | None) -> None:
    try:
        found = decode_messages(body, headers, name)
    except DecodeError:
        return
    assert "events" in headers or [entry.payload for entry in found] == [body]
    assert all((entry.producer == "") == (entry.seq == 0) for entry in found)


def test_message_ids_name_producer_and_number() -> None:
    assert message_id("abc", 12) == "abc:12"
