"""Many events in one message, on real brokers: what is sent so, what is refused, and what readers make of it."""

from __future__ import annotations

from typing import Any

import pika
import pytest

from streamll import codec
from streamll.consumers import RabbitMQConsumer
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.models import CLOSING, StreamllEvent
from streamll.replay.base import Redrive, Selection
from streamll.replay.places import place_of
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.wire import frame
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.waiting import wait_until
from tests.sinks.rabbitmq_tools import LARGEST_MESSAGE, PRODUCER, Broker, MakeTransport, deliver, entries, entry, soon

MOST = frame.MOST_EVENTS

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration, pytest.mark.timeout(180)]


def event(seq: int) -> Entry:
    """One that a reader can decode."""
    return entry(seq, payload=codec.encode(StreamllEvent(event_type="token", operation="generate", data={"n": seq})))


# What is sent


def test_events_share_messages_and_keep_their_order(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, framing="batch", confirm_window=2)
    last = 2 * MOST + 200
    assert transport.send(entries(1, last), soon(30)) == BatchOutcome()
    assert transport.send([*entries(last + 1, last + 9), *entries(last + 21, last + 29)], soon()) == BatchOutcome()
    messages = broker.messages()
    # The first event on a new connection is to be answered before more are sent.
    assert [properties.message_id for _, properties, _ in messages] == [
        f"{PRODUCER}:{first}" for first in (1, 2, 2 + MOST, 2 + 2 * MOST, last + 1, last + 21)
    ]
    assert {properties.content_type for _, properties, _ in messages[1:]} == {frame.CONTENT_TYPE}


def test_frames_come_back_as_events(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, framing="batch")
    batch = [entry(seq, level="info" if seq % 100 else "error") for seq in range(1, 1001)]
    assert transport.send(batch, soon(30)) == BatchOutcome()
    found = broker.entries()
    assert [(one.producer, one.seq, one.payload) for one in found] == [
        (PRODUCER, one.seq, one.record.payload) for one in batch
    ]


def test_an_unroutable_frame_rejects_all_of_its_events_and_no_other(
    broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, binding_key="token", framing="batch")
    batch = [entry(seq, event_type="lost" if 4 <= seq <= 6 else "token") for seq in range(1, 11)]
    outcome = transport.send(batch, soon())
    assert (outcome.failure, set(outcome.rejected)) == (None, {3, 4, 5})
    assert all("unroutable" in reason for reason in outcome.rejected.values())
    dead = [entry(seq, dead_letter="unroutable") for seq in (4, 5, 6)]
    assert transport.send([*dead, entry(11), entry(12)], soon()) == BatchOutcome()
    assert broker.numbers() == [1, 2, 3, 7, 8, 9, 10, 11, 12]
    letters = broker.entries(f"{broker.name}.dead-letter")
    assert [(one.seq, one.reason) for one in letters] == [(4, "unroutable"), (5, "unroutable"), (6, "unroutable")]


def test_a_frame_that_the_broker_refuses_for_now_is_sent_again_whole(
    broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    with broker.channel() as channel:
        channel.queue_declare(broker.name, durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, framing="batch")
    batch = [entry(seq, level=str((seq - 1) // 10)) for seq in range(1, 101)]
    outcome = transport.send(batch, soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "nack" in outcome.error
    stored = set(broker.numbers())
    assert stored == {batch[place].seq for place in outcome.delivered}
    assert 0 < len(stored) < 100
    left = [one for one in batch if one.seq not in stored]
    assert transport.send(left[:10], soon()) == BatchOutcome()
    assert broker.numbers() == [one.seq for one in left[:10]]


def test_a_broker_that_takes_no_messages_as_long_as_frames_gets_single_ones(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    name = hurt_broker.name
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=name, queue=name, framing="batch")
    batch = [entry(seq, payload=b"x" * (LARGEST_MESSAGE // 3)) for seq in range(1, 10)]
    outcome = transport.send(batch, soon())
    assert (outcome.failure, outcome.rejected) == (Failure.REJECTED, {})
    left = [one for place, one in enumerate(batch) if place not in outcome.delivered]
    assert [out.failure for out in deliver(transport, left)] == [None]
    assert [one.seq for one in hurt_broker.entries()] == list(range(1, 10))
    hurt_broker.remove()


def test_of_a_frame_that_is_too_large_only_the_event_that_is_so_is_poison(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    name = hurt_broker.name
    transport = make_rabbitmq(hurt_rabbitmq.url, exchange=name, queue=name, framing="batch")
    batch = [entry(seq, payload=b"x" * (LARGEST_MESSAGE + 1 if seq == 3 else 100)) for seq in range(1, 8)]
    outcome = transport.send(batch, soon())
    assert outcome.failure is Failure.REJECTED
    assert set(outcome.rejected) == {2}
    left = [one for place, one in enumerate(batch) if place not in outcome.delivered | outcome.rejected.keys()]
    transport.open(soon())
    assert transport.send(left, soon()) == BatchOutcome()
    assert sorted({one.seq for one in hurt_broker.entries()}) == [1, 2, 4, 5, 6, 7]
    hurt_broker.remove()


# What is read


def fill(broker: Broker, make_rabbitmq: MakeTransport, last: int, **options: Any) -> None:
    """Publish events 1 to `last`: the first alone, all others in frames."""
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, framing="batch", **options)
    assert transport.send([event(seq) for seq in range(1, last + 1)], soon(30)) == BatchOutcome()


def test_what_a_sink_frames_a_consumer_reads_back_without_being_told(broker: Broker) -> None:
    sink = RabbitMQSink(broker.url, exchange=broker.name, queue=broker.name, framing="batch")
    for n in range(2000):
        assert sink.handle_event(StreamllEvent(event_type="token", data={"n": n}))
    assert sink.stop(20).delivered == 2000
    assert broker.count() < 50
    url = f"{broker.url}?exchange={broker.name}&framing=batch"  # the sink's own URL serves
    with RabbitMQConsumer(url, broker.name, follow=False, notes=True) as consumer:
        items = []
        for item in consumer:
            items.append(item)
            item.ack()
    assert [item.seq for item in items] == list(range(1, 2002))
    assert {item.producer for item in items} == {sink.producer}
    assert [item.event.data for item in items[:-1] if item.event] == [{"n": n} for n in range(2000)]
    assert items[-1].event is not None
    assert items[-1].event.event_type == CLOSING
    assert broker.count() == 0


def test_a_message_is_acknowledged_when_all_of_its_events_are(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    last = 1 + MOST + 100
    fill(broker, make_rabbitmq, last)  # three messages
    with RabbitMQConsumer(broker.url, broker.name, timeout=20.0) as consumer:
        for item in consumer:
            if item.seq != 77:
                item.ack()
            if item.seq == last - 50:
                break
    with RabbitMQConsumer(broker.url, broker.name, follow=False) as consumer:
        again = {}
        for item in consumer:
            again[item.seq] = item.redelivered
            item.ack()
    assert sorted(again) == list(range(2, last + 1))
    assert again[77]
    assert broker.count() == 0


def test_events_that_were_acknowledged_before_a_cut_are_not_handed_over_again(
    hurt_rabbitmq: RabbitMQServer, hurt_broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    fill(hurt_broker, make_rabbitmq, 401)
    seen = []
    with RabbitMQConsumer(hurt_rabbitmq.url, hurt_broker.name, timeout=60.0) as consumer:
        held = []
        for item in consumer:
            seen.append(item.seq)
            if item.seq % 2:
                item.ack()
            else:
                held.append(item)
            if item.seq == 300:
                hurt_rabbitmq.restart()
            if item.seq == 401:
                break
        for item in held:  # they are of a frame that came again meanwhile, and count for it there
            item.ack()
        more = entries(402, 402)
        assert make_rabbitmq(hurt_rabbitmq.url, exchange=hurt_broker.name).send(more, soon()) == BatchOutcome()
        assert next(consumer).seq == 402
    assert seen == list(range(1, 402))
    assert consumer.stats().reconnects >= 1
    assert wait_until(lambda: hurt_broker.count() == 1)  # the one that was not acknowledged
    hurt_broker.remove()


def test_a_frame_of_which_one_event_is_rejected_goes_where_the_queue_says(
    broker: Broker, make_rabbitmq: MakeTransport
) -> None:
    dead = f"{broker.name}.dead-letter"
    with broker.channel() as channel:
        channel.queue_declare(dead, durable=True)
        rule = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
        channel.queue_declare(broker.name, durable=True, arguments=rule)
    fill(broker, make_rabbitmq, 11)
    with RabbitMQConsumer(broker.url, broker.name, follow=False) as consumer:
        for item in consumer:
            if item.seq == 5:
                item.reject()
            else:
                item.ack()
    assert wait_until(lambda: broker.count(dead) == 1)
    assert broker.count() == 0
    place = place_of(f"{broker.url}?exchange={broker.name}")
    work = Redrive(place.dead_letters(look=False), place.home(), Selection(limit=7))
    work.run()
    assert (work.tally.redriven, work.tally.left) == (7, 3)
    work = Redrive(place.dead_letters(look=False), place.home(), Selection())
    work.run()
    assert (work.tally.redriven, work.tally.left) == (10, 0)  # a message goes when all of its events do
    messages = broker.messages()
    assert [properties.message_id for _, properties, _ in messages] == [
        f"{PRODUCER}:{seq}" for seq in (*range(2, 9), *range(2, 12))
    ]
    assert {properties.content_type for _, properties, _ in messages} == {"application/msgpack"}
    assert [codec.decode(body).data["n"] for _, _, body in messages][:3] == [2, 3, 4]


def test_a_stream_of_frames_is_read_on_from_any_event(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    last = 1 + 2 * MOST + 100
    fill(broker, make_rabbitmq, last, queue_type="stream")  # offsets 0 to 3: one, a full frame, another, 100
    with RabbitMQConsumer(broker.url, broker.name, follow=False) as consumer:
        items = list(consumer)
    assert consumer.whole
    assert consumer.stats().cuts == 0
    assert [item.seq for item in items] == list(range(1, last + 1))
    position = {item.seq: item.position for item in items}
    second, third = 2 + MOST, 2 + 2 * MOST  # where frames begin, besides at 2
    asked = (1, 2, second - 2, second - 1, second, third - 1, last)
    assert [position[seq] for seq in asked] == ["0", "0", "0", "1", "1", "2", "3"]
    for seq, first in ((1, 2), (second - 1, second), (second + 99, second), (third - 1, third)):
        with RabbitMQConsumer(broker.url, broker.name, follow=False, start=position[seq]) as consumer:
            assert [item.seq for item in consumer] == list(range(first, last + 1))


def test_a_stream_that_begins_with_a_frame_is_read_again_from_its_beginning(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.confirm_delivery()
        channel.queue_declare(broker.name, durable=True, arguments={"x-queue-type": "stream"})
        body = frame.pack([event(seq).record.payload for seq in (1, 2, 3)])
        properties = pika.BasicProperties(delivery_mode=2, message_id=f"{PRODUCER}:1", headers={"events": 3})
        channel.basic_publish("", broker.name, body, properties)
    with RabbitMQConsumer(broker.url, broker.name, follow=False) as consumer:
        assert [(item.seq, item.position) for item in consumer] == [(1, "beginning"), (2, "beginning"), (3, "0")]


def test_a_damaged_frame_is_one_entry_that_cannot_be_decoded(broker: Broker) -> None:
    whole = frame.pack([event(seq).record.payload for seq in (1, 2, 3)])
    with broker.channel() as channel:
        channel.queue_declare(broker.name, durable=True)
        for body, count in ((whole[:-1], 3), (whole, 4), (b"\xdd\xff\xff\xff\xff", 2**32 - 1), (whole, 3)):
            properties = pika.BasicProperties(message_id=f"{PRODUCER}:1", headers={"events": count})
            channel.basic_publish("", broker.name, body, properties)
    with RabbitMQConsumer(broker.url, broker.name, follow=False) as consumer:
        items = []
        for item in consumer:
            items.append(item)
            item.ack()
    assert [item.event is None for item in items] == [True, True, True, False, False, False]
    assert [item.seq for item in items[3:]] == [1, 2, 3]
    assert consumer.stats().undecodable == 3
    assert broker.count() == 0


def test_events_of_a_frame_are_watched_by_the_way_of_an_exchange(broker: Broker, make_rabbitmq: MakeTransport) -> None:
    transport = make_rabbitmq(broker.url, exchange=broker.name, queue=broker.name, framing="batch")
    seen: list[int] = []
    with RabbitMQConsumer(broker.url, exchange=broker.name, timeout=2.0) as consumer:
        assert not list(consumer)  # it is subscribed now
        assert transport.send([event(seq) for seq in range(1, 1301)], soon()) == BatchOutcome()
        for item in consumer:
            seen.append(item.seq)
            if item.seq == 1300:
                break
    assert seen == list(range(1, 1301))
