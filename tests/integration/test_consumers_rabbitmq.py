"""RabbitMQConsumer on a real RabbitMQ: queues, streams, exchanges, doubles, lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from streamll import codec
from streamll.consumers import Consumer, RabbitMQConsumer, rabbitmq_subscription
from streamll.consumers import rabbitmq as rabbitmq_consumer
from streamll.errors import ConsumerError
from streamll.models import CLOSING, StreamllEvent
from streamll.sinks.rabbitmq import RabbitMQSink
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.integration.conftest import IntegrationTestBase

pytestmark = [pytest.mark.integration, pytest.mark.rabbitmq]

wait_for_condition = IntegrationTestBase.wait_for_condition


class Broker:
    """A channel with names of its own on it, all deleted at the end."""

    def __init__(self, connection: pika.BlockingConnection) -> None:
        self.channel: BlockingChannel = connection.channel()
        self.name = f"streamll-test-{uuid4().hex}"
        self._queues: list[str] = []
        self._exchanges: list[str] = []

    def queue(self, suffix: str = "", **arguments: Any) -> str:
        name = f"{self.name}{suffix}"
        named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        self.channel.queue_declare(name, durable=True, arguments=named)
        self._queues.append(name)
        return name

    def exchange(self, kind: Any = "topic") -> str:
        self.channel.exchange_declare(self.name, kind, durable=True)
        self._exchanges.append(self.name)
        return self.name

    def put(self, queue: str, numbers: Iterable[int], producer: str = "p", exchange: str = "") -> None:
        """Publish events as RabbitMQSink does."""
        for seq in numbers:
            event = StreamllEvent(event_type="t", operation=f"op {seq}")
            properties = pika.BasicProperties(
                delivery_mode=2, message_id=f"{producer}:{seq}", headers={"producer": producer, "seq": seq}
            )
            self.channel.basic_publish(exchange, queue, codec.encode(event), properties)

    def waiting(self, queue: str) -> int:
        """Messages that wait in a queue and are not delivered to anybody."""
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def clean_up(self) -> None:
        for queue in self._queues:
            self.channel.queue_delete(queue)
        for exchange in self._exchanges:
            self.channel.exchange_delete(exchange)


@pytest.fixture
def connect() -> Iterator[Callable[[RabbitMQEndpoint], Broker]]:
    """Connect to a server of the test's own."""
    with contextlib.ExitStack() as connections:

        def to(server: RabbitMQEndpoint) -> Broker:
            connection = server.connection()
            connections.callback(close, connection)
            return Broker(connection)

        yield to


def close(connection: pika.BlockingConnection) -> None:
    with contextlib.suppress(pika.exceptions.AMQPError):
        connection.close()


@pytest.fixture
def broker(rabbitmq_connection: pika.BlockingConnection) -> Iterator[Broker]:
    """The shared RabbitMQ."""
    broker = Broker(rabbitmq_connection)
    yield broker
    if rabbitmq_connection.is_open and broker.channel.is_open:
        broker.clean_up()


def is_up(server: RabbitMQEndpoint, queue: str) -> bool:
    """Whether a queue can be used; some take longer to come up than their broker."""
    connection = server.connection()
    try:
        connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    finally:
        close(connection)
    return True


def work_off(consumer: Consumer, most: int = 1_000_000) -> list[int]:
    """Acknowledge everything, up to so many."""
    read = []
    for item in consumer:
        read.append(item.seq)
        item.ack()
        if len(read) == most:
            break
    return read


class TestQueues(IntegrationTestBase):
    def test_what_a_sink_published_is_read_back(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        events = [self.create_test_event(data={"n": n}) for n in range(1200)]
        with RabbitMQSink(amqp_url=rabbitmq_server.url, exchange="", routing_key=queue) as sink:
            assert all(sink.handle_event(event) for event in events)
            assert sink.flush()
            producer = sink.stats().producer
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            items = []
            for item in consumer:
                items.append(item)
                item.ack()
        assert [item.seq for item in items] == list(range(1, 1201))
        assert {item.producer for item in items} == {producer}
        for item, event in zip(items, events, strict=True):
            assert item.event is not None
            item.event.resource = {}
            assert item.event == event
        assert broker.waiting(queue) == 0

    def test_what_is_not_acknowledged_comes_again(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, range(1, 101))
        with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=20.0) as consumer:
            for item in consumer:
                if item.seq % 2:
                    item.ack()
                if item.seq == 50:
                    break
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            items = {}
            for item in consumer:
                items[item.seq] = item.redelivered
                item.ack()
        assert sorted(items) == [*range(2, 51, 2), *range(51, 101)]
        assert items[2]
        assert broker.waiting(queue) == 0

    def test_no_more_than_the_prefetch_is_under_way(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, range(1, 101))
        with RabbitMQConsumer(rabbitmq_server.url, queue, prefetch=10, timeout=1.0) as consumer:
            assert len(list(consumer)) == 10  # none of which is acknowledged
            assert wait_for_condition(lambda: broker.waiting(queue) == 90)

    def test_doubles_are_dropped_and_acknowledged(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, [1, 2, 2, 1, 3])
        with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=1.0) as consumer:
            assert work_off(consumer) == [1, 2, 3]
            assert consumer.stats().duplicates == 2
        assert broker.waiting(queue) == 0

    def test_a_message_that_pretends_to_come_from_a_stream(
        self, rabbitmq_server: RabbitMQEndpoint, broker: Broker
    ) -> None:
        queue = broker.queue()
        broker.put(queue, [1, 2])
        broker.channel.basic_publish("", queue, b"\xc1", pika.BasicProperties(headers={"x-stream-offset": 7}))
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            assert [item.position for item in consumer] == ["1", "2", "3"]
        assert wait_for_condition(lambda: broker.waiting(queue) == 3)  # none of them was acknowledged

    def test_doubles_that_come_again_do_not_use_up_the_prefetch(
        self, rabbitmq_server: RabbitMQEndpoint, broker: Broker
    ) -> None:
        queue = broker.queue()
        broker.put(queue, [*range(1, 21), *range(1, 21), 21])
        with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=0.5, dedup_window=0) as consumer:
            assert len(list(consumer)) == 41  # and nothing is acknowledged
        with RabbitMQConsumer(rabbitmq_server.url, queue, prefetch=40, timeout=2.0) as consumer:
            assert sorted(work_off(consumer)) == list(range(1, 22))
        assert wait_for_condition(lambda: broker.waiting(queue) == 0)

    def test_what_is_no_event_is_handed_over(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        strange: list[tuple[bytes, Any]] = [
            (b"\xc1", None),
            (b"", {"producer": "p", "seq": 1}),
            (b"many", {"events": 3}),
        ]
        for body, headers in strange:
            broker.channel.basic_publish("", queue, body, pika.BasicProperties(headers=headers))
        broker.put(queue, [9])
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            items = []
            for item in consumer:
                items.append(item)
                item.ack()
        assert [item.event is None for item in items] == [True, True, True, False]
        assert all(item.error for item in items[:3])
        assert consumer.stats().undecodable == 3
        assert broker.waiting(queue) == 0

    def test_what_is_rejected_goes_where_the_queue_says(
        self, rabbitmq_server: RabbitMQEndpoint, broker: Broker
    ) -> None:
        dead = broker.queue("-dead")
        queue = broker.queue(dead_letter_exchange="", dead_letter_routing_key=dead)
        broker.channel.basic_publish("", queue, b"\xc1")
        broker.put(queue, [1])
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            assert [event.operation for event in consumer.events()] == ["op 1"]
        assert wait_for_condition(lambda: broker.waiting(dead) == 1)
        assert broker.waiting(queue) == 0

    def test_dead_letters_say_why(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        headers: Any = {"producer": "p", "seq": 1, "reason": "unroutable"}
        payload = codec.encode(StreamllEvent(event_type="t"))
        broker.channel.basic_publish("", queue, payload, pika.BasicProperties(headers=headers))
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            assert [item.dead_letter for item in consumer] == ["unroutable"]

    def test_a_quorum_queue(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue(queue_type="quorum")
        broker.put(queue, range(1, 301))
        with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=20.0) as consumer:
            assert work_off(consumer, 300) == list(range(1, 301))
        assert wait_for_condition(lambda: broker.waiting(queue) == 0)

    def test_several_consumers_of_one_queue(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, range(1, 401))
        with (
            RabbitMQConsumer(rabbitmq_server.url, queue, prefetch=5, timeout=1.5) as first,
            RabbitMQConsumer(rabbitmq_server.url, queue, prefetch=5, timeout=1.5) as second,
        ):
            read: list[list[int]] = [[], []]
            readers = [
                threading.Thread(target=lambda at=at, one=one: read[at].extend(work_off(one)))
                for at, one in enumerate((first, second))
            ]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join(30.0)
        assert sorted(read[0] + read[1]) == list(range(1, 401))

    def test_a_queue_that_is_deleted(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, [1])
        with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=20.0, retry_bound=0.1) as consumer:
            assert next(consumer).seq == 1
            broker.channel.queue_delete(queue)
            with pytest.raises(ConsumerError, match="does not exist"):
                next(consumer)
            assert "the queue was deleted" in consumer.stats().last_error or "exist" in consumer.stats().last_error


class TestStreams(IntegrationTestBase):
    def test_start_positions(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue(queue_type="stream")
        broker.put(queue, range(1, 301))

        def read(start: str | None) -> list[int]:
            with RabbitMQConsumer(rabbitmq_server.url, queue, start=start, follow=False) as consumer:
                items = list(consumer)
                assert [item.position for item in items] == [str(item.seq - 1) for item in items]
                return [item.seq for item in items]

        assert read(None) == read("beginning") == list(range(1, 301))  # twice: reading takes nothing away
        assert read("297") == [299, 300]
        assert read("end") == []

    def test_from_the_end_on(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue(queue_type="stream")
        broker.put(queue, range(1, 11))
        with RabbitMQConsumer(rabbitmq_server.url, queue, start="end", timeout=1.0) as consumer:
            assert list(consumer) == []
            broker.put(queue, range(11, 14))
            assert [item.seq for item in consumer] == [11, 12, 13]

    def test_more_than_the_prefetch(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue(queue_type="stream")
        broker.put(queue, range(1, 301))
        with RabbitMQConsumer(rabbitmq_server.url, queue, prefetch=10, follow=False) as consumer:
            assert [item.seq for item in consumer] == list(range(1, 301))


class TestExchanges(IntegrationTestBase):
    def test_watching_takes_nothing_from_anybody(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        exchange, queue = broker.exchange(), broker.queue()
        broker.channel.queue_bind(queue, exchange, "#")
        with RabbitMQConsumer(rabbitmq_server.url, exchange=exchange, timeout=0.5) as consumer:
            assert list(consumer) == []
            broker.put("token.generate", range(1, 301), exchange=exchange)
            items = list(consumer)
            for item in items:
                item.ack()  # without effect
        assert [item.seq for item in items] == list(range(1, 301))
        assert broker.waiting(queue) == 300

    def test_being_too_slow_for_an_exchange_is_said(
        self,
        rabbitmq_server: RabbitMQEndpoint,
        broker: Broker,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(rabbitmq_subscription, "_TAIL_LIMITS", {"x-max-length": 100})
        monkeypatch.setattr(rabbitmq_consumer, "_LOOK_BEHIND", 0.1)
        exchange = broker.exchange()
        with RabbitMQConsumer(rabbitmq_server.url, exchange=exchange, timeout=0.5, prefetch=10) as consumer:
            assert list(consumer) == []
            broker.put("token", range(1, 81), exchange=exchange)  # and nobody reads
            assert wait_for_condition(lambda: "beyond 100 the oldest go" in caplog.text, timeout=20.0)
            assert [item.seq for item in consumer] == list(range(1, 81))
        assert caplog.text.count("messages wait for us") == 1

    def test_notes_are_left_out_and_do_not_stay_in_the_queue(
        self, rabbitmq_server: RabbitMQEndpoint, broker: Broker
    ) -> None:
        queue = broker.queue()
        note = codec.encode(StreamllEvent(event_type=CLOSING, data={"last": 1}))
        broker.put(queue, [1])
        broker.channel.basic_publish("", queue, note, pika.BasicProperties(message_id="p:2"))
        with RabbitMQConsumer(rabbitmq_server.url, queue, follow=False) as consumer:
            assert work_off(consumer) == [1]
            assert consumer.stats().notes == 1
        assert broker.waiting(queue) == 0

    def test_a_binding_key(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        exchange = broker.exchange()
        url = f"{rabbitmq_server.url}?exchange={exchange}&binding_key=token.%23"
        with RabbitMQConsumer(url, timeout=0.5) as consumer:
            assert list(consumer) == []
            broker.put("span.retrieve", [1], exchange=exchange)
            broker.put("token.generate", [2], exchange=exchange)
            assert [item.seq for item in consumer] == [2]

    def test_an_exchange_that_is_not_there(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        with (
            RabbitMQConsumer(rabbitmq_server.url, exchange=broker.name) as consumer,
            pytest.raises(ConsumerError, match=f"exchange {broker.name}: does not exist"),
        ):
            next(consumer)


class TestConnections(IntegrationTestBase):
    def test_nobody_there(self) -> None:
        with (
            RabbitMQConsumer("amqp://user:secret@127.0.0.1:1/") as consumer,
            pytest.raises(ConsumerError, match=r"127\.0\.0\.1:1") as caught,
        ):
            next(consumer)
        assert "secret" not in str(caught.value)

    def test_a_wrong_password(self, rabbitmq_server: RabbitMQEndpoint) -> None:
        url = rabbitmq_server.url.replace("streamll_test", "wrong-secret")
        with RabbitMQConsumer(url) as consumer, pytest.raises(ConsumerError) as caught:
            next(consumer)
        assert "wrong-secret" not in str(caught.value)
        assert "ACCESS_REFUSED" in str(caught.value)

    def test_a_connection_that_the_broker_closes(
        self, own_rabbitmq: Callable[..., RabbitMQServer], connect: Callable[[RabbitMQEndpoint], Broker]
    ) -> None:
        server = own_rabbitmq()
        broker = connect(server)
        queue = broker.queue()
        broker.put(queue, range(1, 101))
        with RabbitMQConsumer(server.url, queue, prefetch=10, timeout=30.0, retry_bound=0.2) as consumer:
            read = []
            for item in consumer:
                read.append(item.seq)
                if item.seq == 30:
                    server.ctl("close_all_connections", "test")
                    assert wait_for_condition(lambda: consumer._source._session.failure)  # type: ignore[attr-defined]
                item.ack()
                if len(read) == 100:
                    break
            stats = consumer.stats()
        assert read == list(range(1, 101))  # what we held came again, and was acknowledged without being handed over
        assert stats.reconnects == 1
        assert "test" in stats.last_error
        broker = connect(server)
        assert broker.waiting(queue) == 0

    def test_a_restarted_broker(
        self, own_rabbitmq: Callable[..., RabbitMQServer], connect: Callable[[RabbitMQEndpoint], Broker]
    ) -> None:
        server = own_rabbitmq()
        broker = connect(server)
        queue, stream = broker.queue(), broker.queue("-stream", queue_type="stream")
        for one in (queue, stream):
            broker.put(one, range(1, 101))
        options: dict[str, Any] = {"timeout": 40.0, "retry_bound": 0.5}
        with (
            RabbitMQConsumer(server.url, queue, **options) as from_queue,
            RabbitMQConsumer(server.url, stream, **options) as from_stream,
        ):
            assert work_off(from_queue, 50) == list(range(1, 51))
            assert work_off(from_stream, 50) == list(range(1, 51))
            server.restart()
            assert work_off(from_queue, 50) == list(range(51, 101))
            assert work_off(from_stream, 50) == list(range(51, 101))
            for one in (queue, stream):
                assert wait_for_condition(lambda one=one: is_up(server, one))  # type: ignore[misc]
                connect(server).put(one, [101])
            assert work_off(from_queue, 1) == work_off(from_stream, 1) == [101]
            assert from_queue.stats().reconnects == from_stream.stats().reconnects == 1

    def test_a_slow_reader_keeps_its_connection(
        self, own_rabbitmq: Callable[..., RabbitMQServer], connect: Callable[[RabbitMQEndpoint], Broker]
    ) -> None:
        server = own_rabbitmq(config={"heartbeat": "1"})
        broker = connect(server)
        queue = broker.queue()
        broker.put(queue, [1, 2])
        with RabbitMQConsumer(server.url, queue, timeout=10.0) as consumer:
            item = next(consumer)
            time.sleep(4.0)  # a broker gives up after two heartbeats that do not come
            item.ack()
            assert next(consumer).seq == 2
            assert consumer.stats().reconnects == 0

    def test_closing_does_not_wait_for_a_frozen_broker(
        self, own_rabbitmq: Callable[..., RabbitMQServer], connect: Callable[[RabbitMQEndpoint], Broker]
    ) -> None:
        server = own_rabbitmq()
        queue = connect(server).queue()
        consumer = RabbitMQConsumer(server.url, queue, timeout=0.2)
        assert list(consumer) == []
        server.freeze()
        began = time.monotonic()
        consumer.close()
        assert time.monotonic() - began < 4.0
        server.thaw()


class TestAsync(IntegrationTestBase):
    def test_reading_while_the_loop_does_other_things(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()
        broker.put(queue, range(1, 601))

        async def main() -> tuple[list[str], int]:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            other = asyncio.ensure_future(tick())
            async with RabbitMQConsumer(rabbitmq_server.url, queue, timeout=0.5) as consumer:
                operations = [event.operation async for event in consumer.events()]
            other.cancel()
            return operations, ticks

        operations, ticks = asyncio.run(main())
        assert operations == [f"op {seq}" for seq in range(1, 601)]
        assert ticks >= 10
        assert broker.waiting(queue) == 0

    def test_cancelling(self, rabbitmq_server: RabbitMQEndpoint, broker: Broker) -> None:
        queue = broker.queue()

        async def main() -> float:
            async with RabbitMQConsumer(rabbitmq_server.url, queue) as consumer:
                waiting = asyncio.ensure_future(anext(consumer))
                await asyncio.sleep(0.5)
                began = time.monotonic()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            return time.monotonic() - began

        assert asyncio.run(main()) < 3.0
