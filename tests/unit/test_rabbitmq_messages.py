"""Which events of a batch share a message, and the way back from messages to events."""

from __future__ import annotations

from typing import Any

import pika.frame

from streamll.delivery.outcome import Entry
from streamll.models import Record
from streamll.sinks.rabbitmq_messages import Messages
from streamll.wire import frame
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import Encoder, RoutingKey, decode_messages


def entry(seq: int, dead_letter: str = "", **changes: Any) -> Entry:
    values: dict[str, Any] = {"payload": b"event %d" % seq, "event_type": "token", "operation": "generate"}
    values |= {"module_name": "app", "method_name": "answer", "level": "info"} | changes
    record = Record(
        content_type="application/msgpack", event_id="e", execution_id="x", timestamp=0, created=0, **values
    )
    return Entry(seq, record, dead_letter)


def events_of(messages: Messages) -> list[list[int]]:
    return [messages.events((message,)) for message in range(len(messages))]


def read(messages: Messages) -> list[WireEntry]:
    """What a reader of all the messages finds."""
    encoder = Encoder("p", "app", RoutingKey("{event_type}"), "dead", channel=1, frame_max=0)
    found: list[WireEntry] = []
    for message in range(len(messages)):
        pieces, size = messages.encode(encoder, message)
        data = b"".join(pieces)
        assert 0 < size <= len(data)
        used, _ = pika.frame.decode_frame(data)
        more, header = pika.frame.decode_frame(data[used:])
        _, body = pika.frame.decode_frame(data[used + more :])
        assert isinstance(header, pika.frame.Header)
        assert isinstance(body, pika.frame.Body)
        properties: Any = header.properties
        found += decode_messages(body.fragment, properties.headers, properties.message_id)
    return found


def test_without_framing_each_event_is_a_message() -> None:
    messages = Messages([entry(4), entry(5), entry(7)])
    assert not messages.framed
    assert events_of(messages) == [[0], [1], [2]]
    assert messages.names("p") == {"p:4": 0, "p:5": 1, "p:7": 2}
    assert messages.spread({1: "unroutable"}) == {1: "unroutable"}
    assert [found.seq for found in read(messages)] == [4, 5, 7]


def test_events_that_follow_each_other_share_a_message() -> None:
    batch = [entry(seq) for seq in (4, 5, 6, 9, 10, 12)]
    messages = Messages(batch, framing=True)
    assert messages.framed
    assert events_of(messages) == [[0, 1, 2], [3, 4], [5]]
    assert messages.names("p") == {"p:4": 0, "p:9": 1, "p:12": 2}
    assert messages.events([2, 0]) == [5, 0, 1, 2]
    assert messages.spread({1: "unroutable"}) == {3: "unroutable", 4: "unroutable"}
    assert read(messages) == [WireEntry(one.record.payload, "p", one.seq) for one in batch]


def test_every_label_divides() -> None:
    for label in ("event_type", "operation", "module_name", "method_name", "level"):
        batch = [entry(1), entry(2), entry(3, **{label: "other"}), entry(4, **{label: "other"}), entry(5)]
        assert events_of(Messages(batch, framing=True)) == [[0, 1], [2, 3], [4]]


def test_dead_letters_travel_alone() -> None:
    batch = [entry(1), entry(2), entry(3, "bad"), entry(4, "bad"), entry(5), entry(6)]
    messages = Messages(batch, framing=True)
    assert events_of(messages) == [[0, 1], [2], [3], [4, 5]]
    assert [found.reason for found in read(messages)] == ["", "", "bad", "bad", "", ""]


def test_the_first_message_may_be_asked_to_hold_one_event() -> None:
    batch = [entry(seq) for seq in range(1, 6)]
    assert events_of(Messages(batch, framing=True, first_alone=True)) == [[0], [1, 2, 3, 4]]
    assert events_of(Messages(batch, first_alone=True)) == [[place] for place in range(5)]


def test_a_batch_of_which_no_events_can_share_is_not_framed() -> None:
    assert not Messages([entry(1), entry(3)], framing=True).framed
    assert len(Messages([], framing=True, first_alone=True)) == 0


def test_messages_are_bounded() -> None:
    batch = [entry(seq) for seq in range(1, 2 * frame.MOST_EVENTS + 2)]
    assert [len(events) for events in events_of(Messages(batch, framing=True))] == [*[frame.MOST_EVENTS] * 2, 1]
    long = [entry(seq, payload=b"x" * (frame.MOST_BYTES // 2)) for seq in range(1, 6)]
    assert events_of(Messages(long, framing=True)) == [[0, 1], [2, 3], [4]]
