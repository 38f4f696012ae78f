"""Scenarios on a real RabbitMQ, with a durable queue and publisher confirms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pika.exceptions

from streamll.codec import decode
from streamll.sinks.base import Sink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.wire.rabbitmq import decode_messages
from tests.chaos.crashes import Crashes
from tests.chaos.faults import Faults, Rule, through
from tests.chaos.oracle import Found, Place
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.waiting import wait_until


def start_rabbitmq() -> RabbitMQServer:
    """A node that scenarios may hurt.

    Raises:
        ServerUnavailable: There is no RabbitMQ on this machine.
    """
    server = RabbitMQServer()
    server.start()
    server.ctl("await_startup")  # it lets clients in a moment before it lets itself be administered
    return server


class RabbitMQFaults(Faults):
    """What can be done to a RabbitMQ."""

    server: RabbitMQServer

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._alarmed: set[str] = set()

    def on_server(self) -> list[tuple[float, Rule]]:
        """See Faults."""
        return [
            (0.3, self.kill),
            (0.2, self.restart),
            (1.5, self.freeze),
            (0.8, self.alarm),
            (0.5, self.throw_out),
        ]

    def alarm(self) -> str:
        """The broker takes nothing from connections that publish, for want of memory or of disk."""
        what = self.rng.choice(["memory", "disk"])
        self._alarmed.add(what)
        self.server.ctl("eval", f"rabbit_alarm:set_alarm({{{{resource_limit, {what}, node()}}, []}}).")
        done = self.meanwhile()
        self.mend()
        return f"{what}, {done}"

    def throw_out(self) -> str:
        """The broker closes all connections, with a reason."""
        self.server.ctl("close_all_connections", "chaos")
        return "all connections"

    def mend(self) -> None:
        """See Faults."""
        while self._alarmed:
            what = self._alarmed.pop()
            self.server.ctl("eval", f"rabbit_alarm:clear_alarm({{resource_limit, {what}, node()}}).")

    def started(self) -> None:
        """See Faults."""
        self.server.ctl("await_startup")


class RabbitMQScenario(Crashes):
    """One scenario on RabbitMQ: every event at least once, and the first of each in the order of its producer."""

    name: ClassVar[str] = "rabbitmq"
    faults_kind: ClassVar[type[Faults]] = RabbitMQFaults
    rounds: ClassVar[tuple[int, int]] = (3, 10)
    server: RabbitMQServer

    def name_places(self) -> None:
        """See RealScenario."""
        self.exchange = f"chaos-{self.seed}-{uuid4().hex}"

    def make_sink(self, **options: Any) -> Sink:
        """See RealScenario."""
        return RabbitMQSink(through(self.proxy, self.server.url), self.exchange, queue=self.exchange, **options)

    def draw_options(self) -> dict[str, Any]:
        """See RealScenario."""
        drawn = super().draw_options()
        return drawn | {
            "connect_timeout": 2.0,
            "send_timeout": max(0.3, drawn["send_timeout"]),
            "confirm_window": self.rng.choice([10, 100, 1000]),
            "framing": self.rng.choice(["single", "batch"]),
        }

    def look(self) -> Place:
        """See RealScenario: basic_get until there is nothing more, once all connections have ended."""
        ended = wait_until(
            lambda: self.server.ctl("list_connections", "pid").split() in ([], ["pid"]), self.patience, 0.1
        )
        self.wrong.hold(ended, "connections stay")
        with self._channel() as channel:
            dead = self._messages(channel, f"{self.exchange}.dead-letter")
        with self._channel() as channel:
            return Place(self._messages(channel, self.exchange), dead, once=False, fenced=False)

    def clean_up(self) -> None:
        """See RealScenario."""
        super().clean_up()
        with self._channel() as channel:
            for name in (self.exchange, f"{self.exchange}.dead-letter"):
                channel.queue_delete(name)
                channel.exchange_delete(name)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        connection = self.server.connection()
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()

    @staticmethod
    def _messages(channel: Any, queue: str) -> list[Found]:
        found: list[Found] = []
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return found  # nobody ever wrote there
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                return found
            for entry in decode_messages(body, properties.headers, properties.message_id):
                event = decode(entry.payload)
                found.append(Found(entry.producer, entry.seq, event.event_id, event.event_type, event.data))
