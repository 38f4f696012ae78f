"""What the tests of the RabbitMQ transport share: events, a look into the broker, and sending as a worker would."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pika

from streamll.delivery.outcome import BatchOutcome, Entry
from streamll.errors import UnavailableError
from streamll.models import Record
from streamll.sinks.rabbitmq_transport import RabbitMQTransport
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import decode_messages
from tests.fixtures.rabbitmq import RabbitMQServer

PRODUCER = "0123456789abcdef"
LARGEST_MESSAGE = 200_000


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def entry(seq: int, payload: bytes = b"", dead_letter: str = "", **labels: str) -> Entry:
    values: dict[str, Any] = {"event_type": "token", "operation": "generate", "module_name": "app", "level": "info"}
    record = Record(
        payload=payload or b"event %d" % seq,
        content_type="application/msgpack",
        event_id=f"e{seq}",
        method_name="answer",
        execution_id="x",
        timestamp=1_700_000_000_000_000_000,
        created=time.monotonic_ns(),
        **(values | labels),
    )
    return Entry(seq, record, dead_letter)


def entries(first: int, last: int, **values: Any) -> list[Entry]:
    return [entry(seq, **values) for seq in range(first, last + 1)]


MakeTransport = Callable[..., RabbitMQTransport]


class Broker:
    """The broker as its owner sees it: what is in a queue, and what is to be removed after the test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"test-{uuid4().hex[:12]}"

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def messages(self, queue: str = "") -> list[tuple[Any, Any, bytes]]:
        """Take everything out of a queue: method, properties and body of each message."""
        taken: list[tuple[Any, Any, bytes]] = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue or self.name, auto_ack=True)
                if method is None:
                    return taken
                taken.append((method, properties, body))

    def entries(self, queue: str = "") -> list[WireEntry]:
        return [
            found
            for _, properties, body in self.messages(queue)
            for found in decode_messages(body, properties.headers, properties.message_id)
        ]

    def numbers(self, queue: str = "") -> list[int]:
        return [found.seq for found in self.entries(queue)]

    def count(self, queue: str = "") -> int:
        with self.channel() as channel:
            found: int = channel.queue_declare(queue or self.name, passive=True).method.message_count
            return found

    def remove(self) -> None:
        with self.channel() as channel:
            for name in (self.name, f"{self.name}.dead-letter"):
                channel.exchange_delete(name)
                channel.queue_delete(name)


@contextlib.contextmanager
def memory_alarm(server: RabbitMQServer) -> Iterator[Callable[[], object]]:
    """A broker that takes no messages, within the block or until the function that it gives is called."""

    def end() -> object:
        return server.ctl("set_vm_memory_high_watermark", "0.4")

    server.ctl("await_startup")
    server.ctl("set_vm_memory_high_watermark", "0.000001")
    try:
        yield end
    finally:
        end()


class Poor:
    """A user with few permissions on a broker of our own."""

    def __init__(self, server: RabbitMQServer, configure: str, write: str, read: str) -> None:
        self.name = f"user-{uuid4().hex[:8]}"
        server.ctl("await_startup")  # a broker lets clients in a moment before it lets itself be administered
        server.ctl("add_user", self.name, "pw")
        server.ctl("set_permissions", self.name, configure, write, read)
        self.url = f"amqp://{self.name}:pw@127.0.0.1:{server.port}"


def deliver(transport: RabbitMQTransport, batch: list[Entry], patience: float = 60.0) -> list[BatchOutcome]:
    """Send until nothing of the batch is left to send, as a worker would; returns the outcomes."""
    outcomes: list[BatchOutcome] = []
    give_up = soon(patience)
    while batch:
        assert time.monotonic() < give_up, outcomes[-3:]
        if not transport.is_open:
            try:
                transport.open(soon(5))
            except UnavailableError:
                time.sleep(0.1)
                continue
        outcome = transport.send(batch, soon(5))
        outcomes.append(outcome)
        if outcome.failure is None:
            return outcomes
        batch = [one for place, one in enumerate(batch) if place not in outcome.delivered | outcome.rejected.keys()]
        time.sleep(0.02)
    return outcomes
