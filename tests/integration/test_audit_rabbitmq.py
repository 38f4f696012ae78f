"""`streamll audit` on a real RabbitMQ: streams, exchanges, queues that are drained, and queues that are left alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pika
import pytest

from streamll import codec
from streamll.consumers import RabbitMQConsumer
from streamll.models import StreamllEvent
from streamll.sinks.rabbitmq import RabbitMQSink
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.fixtures.waiting import wait_until
from tests.integration.audits import EVENT, Following, audit, closing, counted, following, gap, outcome

__all__ = ["following"]

pytestmark = [pytest.mark.integration, pytest.mark.rabbitmq]

P = "9f0c2d4e6a8b1c3d"


class Broker:
    """Queues and exchanges that are published to as RabbitMQSink does it; all deleted at the end."""

    def __init__(self, server: RabbitMQEndpoint, connection: pika.BlockingConnection) -> None:
        self.channel = connection.channel()
        self.channel.confirm_delivery()
        self.server = server.url
        self.name = f"streamll-test-{uuid4().hex}"
        self.exchange = ""
        self._queues: list[str] = []

    def queue(self, kind: str = "classic", suffix: str = "") -> str:
        name = f"{self.name}{suffix}"
        self.channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
        self._queues.append(name)
        return f"{self.server}?queue={name}"

    def topic(self) -> str:
        self.exchange = self.name
        self.channel.exchange_declare(self.name, "topic", durable=True)
        return f"{self.server}?exchange={self.name}"

    def add(self, *numbers: int, event: StreamllEvent = EVENT, suffix: str = "", reason: str = "") -> None:
        for number in numbers:
            headers: dict[str, Any] = {"producer": P, "seq": number, **({"reason": reason} if reason else {})}
            properties = pika.BasicProperties(delivery_mode=2, message_id=f"{P}:{number}", headers=headers)
            exchange = "" if suffix else self.exchange
            self.channel.basic_publish(exchange, f"{self.name}{suffix}", codec.encode(event), properties)

    def declare(self, *ranges: tuple[int, int]) -> None:
        self.add(ranges[-1][1], event=gap(*ranges))

    def close(self, last: int) -> None:
        self.add(last + 1, event=closing(last))

    def waiting(self, suffix: str = "") -> int:
        """Messages that wait, and are not delivered to anybody."""
        return int(self.channel.queue_declare(f"{self.name}{suffix}", passive=True).method.message_count)

    def clean_up(self) -> None:
        for name in self._queues:
            self.channel.queue_delete(name)
        if self.exchange:
            self.channel.exchange_delete(self.exchange)


@pytest.fixture
def broker(rabbitmq_server: RabbitMQEndpoint, rabbitmq_connection: pika.BlockingConnection) -> Iterator[Broker]:
    broker = Broker(rabbitmq_server, rabbitmq_connection)
    yield broker
    broker.clean_up()


class TestStreams:
    def test_all_that_there_can_be(self, broker: Broker) -> None:
        url = broker.queue("stream")
        broker.add(1, 2, 4, 3, 3)
        broker.declare((5, 9))
        broker.add(10)
        for _ in range(2):  # and nothing is taken
            found = outcome(url, code=0)
            assert counted(found["producers"][0]) == {"events": 5, "doubles": 1, "out_of_order": 1, "declared": 5}
            assert found["whole"]
        broker.close(12)
        done = audit(url, code=1)
        assert f"{P}: UNDECLARED: 2 numbers missing: 11-12" in done.stdout

    def test_a_beginning_that_is_missing(self, broker: Broker) -> None:
        url = broker.queue("stream")
        broker.add(4, 5)
        assert outcome(url, code=1)["producers"][0]["ranges"] == [[1, 3]]
        found = outcome(url, "--start", "0", code=0)
        assert (found["whole"], found["total"]["events"]) == (False, 1)

    @pytest.mark.parametrize("framing", ["single", "batch"])
    def test_what_a_sink_wrote(self, broker: Broker, framing: str) -> None:
        url = broker.queue("stream")
        with RabbitMQSink(amqp_url=broker.server, exchange="", routing_key=broker.name, framing=framing) as sink:
            assert all(sink.handle_event(EVENT) for _ in range(1000))
        assert counted(outcome(url, code=0)["producers"][0]) == {"events": 1000}

    def test_following(self, broker: Broker, following: Callable[..., Following]) -> None:
        url = broker.queue("stream")
        broker.add(1)
        command = following(url, "--grace", "0.3")
        command.change("producer")
        broker.add(4)
        assert command.change("undeclared")["count"] == 2
        broker.add(2)  # nacked, and sent again later
        assert command.change("found")["count"] == 1
        code, found = command.end(signal.SIGTERM)
        assert (code, found["total"]["undeclared"], command.errors) == (1, 1, [])


class TestQueues:
    @pytest.mark.parametrize("kind", ["classic", "quorum"])
    def test_a_queue_that_others_read_is_left_alone(self, broker: Broker, kind: str) -> None:
        url = broker.queue(kind)
        broker.add(1, 2, 3)
        done = audit(url, code=2)
        assert "is no stream queue" in done.stderr
        assert "--drain" in done.stderr
        assert done.stdout == ""
        assert "streamll_test" not in done.stderr
        assert wait_until(lambda: broker.waiting() == 3)
        with RabbitMQConsumer(url, follow=False) as consumer:
            assert [item.redelivered for item in consumer] == [False] * 3  # it was not even delivered

    @pytest.mark.parametrize("kind", ["classic", "quorum"])
    def test_draining_takes_all(self, broker: Broker, kind: str) -> None:
        url = broker.queue(kind)
        broker.add(*range(1, 501), 500, 502)
        broker.close(502)
        found = outcome(url, "--drain", code=1)
        assert counted(found["producers"][0]) == {"events": 501, "doubles": 1, "undeclared": 1, "gaps": 1}
        assert wait_until(lambda: broker.waiting() == 0)
        assert "nothing to judge" in audit(url, "--drain", code=2).stderr

    def test_draining_that_is_interrupted_says_what_was_taken(
        self, broker: Broker, following: Callable[..., Following]
    ) -> None:
        url = broker.queue()
        broker.add(1, 2, 3)
        command = following(url, "--drain")
        command.change("producer")
        assert wait_until(lambda: broker.waiting() == 0)
        code, found = command.end()
        assert (code, found["total"]["events"]) == (0, 3)

    def test_a_queue_that_goes_away_while_it_is_drained(
        self, broker: Broker, following: Callable[..., Following]
    ) -> None:
        url = broker.queue()
        broker.add(1, 3)
        command = following(f"{url}&retry_bound=0.1", "--drain", "--grace", "0")
        command.until("undeclared")
        broker.channel.queue_delete(broker.name)
        assert command.process.wait(30.0) == 2
        code, found = command.end()
        assert (code, found["status"], found["total"]["events"]) == (2, 1, 2)
        assert "does not exist" in "".join(command.errors)

    def test_a_queue_that_is_not_there(self, broker: Broker) -> None:
        assert "does not exist" in audit(f"{broker.server}?queue={broker.name}", code=2).stderr

    def test_a_wrong_password(self, broker: Broker) -> None:
        done = audit(f"{broker.server.replace('streamll_test', 'wrong-secret')}?queue=x", code=2)
        assert "wrong-secret" not in done.stderr


class TestExchanges:
    def test_from_now_on(self, broker: Broker, following: Callable[..., Following]) -> None:
        url = broker.topic()
        broker.queue()  # somebody's
        broker.channel.queue_bind(broker.name, broker.name, "#")
        command = following(f"{url}&queue={broker.name}", "--grace", "0.3")
        number = 100

        def is_heard() -> bool:
            nonlocal number
            number += 1
            broker.add(number)
            return not command.quiet(0.2)

        assert wait_until(is_heard)
        broker.add(number + 1, number + 3)
        assert command.change("undeclared")["count"] == 1
        broker.add(number + 3)
        assert command.change("double")["count"] == 1
        broker.declare((number + 4, number + 5))
        assert command.change("declared")["count"] == 2
        broker.close(number + 5)
        assert command.change("closed")["producer"] == P
        sent = broker.waiting()
        code, found = command.end()
        assert (code, found["whole"], found["total"]["undeclared"]) == (1, False, 1)
        assert broker.waiting() == sent  # nothing was taken

    def test_what_is_published_while_nobody_listens_is_not_judged(
        self, own_rabbitmq: Callable[..., RabbitMQServer], following: Callable[..., Following]
    ) -> None:
        server = own_rabbitmq()
        connection = server.connection()
        broker = Broker(server, connection)
        command = following(f"{broker.topic()}&retry_bound=0.2", "--grace", "0")
        number = 0

        def is_heard() -> bool:
            nonlocal number, broker
            number += 1
            broker.add(number)
            return not command.quiet(0.2)

        assert wait_until(is_heard)
        connection.close()
        server.restart()
        connection = server.connection()
        again = Broker(server, connection)
        again.name = again.exchange = broker.name
        broker = again
        number += 10  # which nobody heard
        assert wait_until(is_heard)
        connection.close()
        code, found = command.end()
        assert code == 0
        assert found["total"]["unread"] >= 10
        assert found["total"]["undeclared"] == 0


class TestDeadLetters:
    @pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
    def test_are_read_without_taking_any(self, broker: Broker, kind: str) -> None:
        url = broker.queue("stream")
        broker.add(1, 3, 5)
        letters = broker.queue(kind, ".dead-letter")
        broker.add(2, 4, suffix=".dead-letter", reason="too large")
        assert outcome(url, code=1)["total"]["undeclared"] == 2
        found = outcome(url, "--dead-letters", letters, code=0)
        assert found["total"]["dead_letters"] == 2
        assert wait_until(lambda: broker.waiting(".dead-letter") == 2)

    def test_of_a_queue_are_not_held_while_it_goes_on(
        self, broker: Broker, following: Callable[..., Following]
    ) -> None:
        url = broker.queue("stream")
        broker.add(1)
        command = following(url, "--dead-letters", broker.queue("classic", ".dead-letter"))
        assert command.process.wait(30.0) == 2
        code, _ = command.end()
        assert code == 2
        assert "is no stream queue" in "".join(command.errors)
