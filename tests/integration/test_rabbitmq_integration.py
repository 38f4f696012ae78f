"""RabbitMQSink against a real RabbitMQ, as an application uses it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pika
import pytest

from streamll.codec import decode
from streamll.models import CLOSING, NOTES
from streamll.sinks.rabbitmq import RabbitMQSink
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.integration.conftest import IntegrationTestBase

pytestmark = [pytest.mark.integration, pytest.mark.rabbitmq]


Message = tuple[pika.BasicProperties, bytes]


def drain(connection: pika.BlockingConnection, queue: str) -> tuple[list[Message], list[Message]]:
    """All events in a queue, acknowledged; and the notes that sinks left among them."""
    channel = connection.channel()
    events: list[Message] = []
    notes: list[Message] = []
    while True:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            channel.close()
            return events, notes
        assert properties is not None
        assert body is not None
        (notes if properties.type in NOTES else events).append((properties, body))


class TestRabbitMQIntegration(IntegrationTestBase):
    @pytest.fixture
    def exchange(self, rabbitmq_connection: pika.BlockingConnection) -> Iterator[str]:
        """An exchange with a queue of the same name bound to it, removed after the test."""
        name = f"streamll-test-{uuid.uuid4().hex}"
        channel = rabbitmq_connection.channel()
        channel.exchange_declare(name, "topic", durable=True)
        channel.queue_declare(name, exclusive=True)
        channel.queue_bind(name, name, "#")
        yield name
        channel.exchange_delete(name)
        channel.exchange_delete(f"{name}.dead-letter")
        channel.queue_delete(f"{name}.dead-letter")

    def test_rabbitmq_basic_event_flow(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection, exchange: str
    ) -> None:
        events = [self.create_test_event(operation=f"op{n % 3}", data={"n": n}) for n in range(300)]
        sink = RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=exchange, routing_key="app.{operation}")
        sink.start()
        assert all(sink.handle_event(event) for event in events)
        assert sink.flush(30)
        stats = sink.stop()
        messages, ((closing, last_word),) = drain(rabbitmq_connection, exchange)
        assert [decode(body).event_id for _, body in messages] == [event.event_id for event in events]
        properties, body = messages[0]
        assert properties.message_id == f"{stats.producer}:1"
        assert properties.delivery_mode == 2
        assert properties.type == "test"
        assert properties.content_type == "application/msgpack"
        assert decode(body).data == {"n": 0}
        assert (closing.message_id, closing.type) == (f"{stats.producer}:301", CLOSING)
        assert (decode(last_word).event_type, decode(last_word).data) == (CLOSING, {"last": 300})
        assert stats.balanced
        assert stats.delivered == stats.accepted == 300

    def test_rabbitmq_works_without_a_routing_key(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection, exchange: str
    ) -> None:
        with RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=exchange) as sink:
            assert sink.handle_event(self.create_test_event())
        assert [len(part) for part in drain(rabbitmq_connection, exchange)] == [1, 1]

    @pytest.mark.concurrent
    def test_rabbitmq_worker_thread_stability(
        self, rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection, exchange: str
    ) -> None:
        """Ten threads emit while one flushes all the time: one worker, alive to the end, and every event arrives once."""
        sink = RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=exchange, flush_interval=0.01)
        sink.start()
        ids: list[list[str]] = [[] for _ in range(10)]
        done = threading.Event()
        unbalanced = []

        def emit(mine: list[str]) -> None:
            for n in range(100):
                event = self.create_test_event(data={"n": n})
                mine.append(event.event_id)
                assert sink.handle_event(event)

        def watch() -> None:
            while not done.is_set():
                sink.flush(0.05)
                stats = sink.stats()
                if not stats.balanced:
                    unbalanced.append(stats)

        threads = [threading.Thread(target=emit, args=(mine,)) for mine in ids]
        watcher = threading.Thread(target=watch)
        watcher.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workers = [thread for thread in threading.enumerate() if thread.name.startswith("streamll-rabbitmq")]
        assert len(workers) == 1
        assert workers[0].daemon
        assert sink.flush(60)
        done.set()
        watcher.join()
        stats = sink.stop()
        assert not workers[0].is_alive()
        assert unbalanced == []
        assert (stats.delivered, stats.defects, stats.balanced) == (1000, 0, True)
        messages, notes = drain(rabbitmq_connection, exchange)
        assert [decode(body).data for _, body in notes] == [{"last": 1000}]
        received = [decode(body).event_id for _, body in messages]
        assert sorted(received) == sorted(event_id for mine in ids for event_id in mine)
        for mine in ids:  # each thread's own order is kept
            assert [event_id for event_id in received if event_id in set(mine)] == mine

    @pytest.mark.timeout(180)
    def test_rabbitmq_circuit_breaker_integration(self, own_rabbitmq: Callable[..., RabbitMQServer]) -> None:
        """The broker dies: the circuit opens, nothing is lost; it comes back: the circuit closes, everything arrives."""
        server = own_rabbitmq()
        sink = RabbitMQSink(
            amqp_url=server.url,
            exchange="app",
            queue="app",
            failure_threshold=2,
            recovery_timeout=0.5,
            retry_base=0.01,
            connect_timeout=5,
        )
        sink.handle_event(self.create_test_event())
        assert sink.flush(30)
        assert sink.stats().circuit == "closed"
        server.kill()
        events = [self.create_test_event(data={"n": n}) for n in range(50)]
        for event in events:
            assert sink.handle_event(event)
        assert self.wait_for_condition(lambda: sink.stats().circuit == "open", timeout=30)
        assert sink.stats().balanced
        assert not sink.event_queue.empty()
        server.restart()
        assert self.wait_for_condition(sink.event_queue.empty, timeout=60)
        stats = sink.stop()
        assert stats.circuit == "closed"
        assert stats.balanced
        assert stats.delivered == 51
        states = [change.state.value for change in stats.circuit_history]
        assert states[0] == "open"
        assert states[-1] == "closed"
        with server.connection() as connection:
            messages, notes = drain(connection, "app")
        received = [decode(body).event_id for _, body in messages]
        # At least once: what the broker had taken without being able to say so is there twice.
        assert set(received) >= {event.event_id for event in events}
        assert [decode(body).data for _, body in notes] == [{"last": 51}]
