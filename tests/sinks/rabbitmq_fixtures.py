"""Fixtures of the tests of the RabbitMQ transport."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from streamll.brokers.rabbitmq_url import read_url
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.rabbitmq_transport import RabbitMQTransport
from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.sinks.rabbitmq_tools import LARGEST_MESSAGE, PRODUCER, Broker, MakeTransport, soon


@pytest.fixture
def make_rabbitmq() -> Iterator[MakeTransport]:
    """Transports by URL and options, open unless told otherwise; closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(url: str, *, opened: bool = True, **options: Any) -> RabbitMQTransport:
            read = read_url(url, RabbitMQOptions.names())
            transport = RabbitMQTransport(read, RabbitMQOptions(**(read.options | options)), PRODUCER)
            stack.callback(transport.close, clean=False)
            if opened:
                transport.open(soon())
            return transport

        yield make


@pytest.fixture
def broker(rabbitmq_server: RabbitMQEndpoint) -> Iterator[Broker]:
    """The shared RabbitMQ, with names of the test's own, removed after it."""
    broker = Broker(rabbitmq_server.url)
    yield broker
    broker.remove()


@pytest.fixture(scope="session")
def rabbitmq_to_hurt() -> Iterator[RabbitMQServer]:
    try:
        server = RabbitMQServer(config={"max_message_size": str(LARGEST_MESSAGE)})
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def hurt_rabbitmq(rabbitmq_to_hurt: RabbitMQServer) -> Iterator[RabbitMQServer]:
    """A broker of these tests' own, which a test may hurt; it is well again for the next one."""
    rabbitmq_to_hurt.start()
    yield rabbitmq_to_hurt
    with contextlib.suppress(ServerUnavailable):
        rabbitmq_to_hurt.thaw()
    rabbitmq_to_hurt.start()


@pytest.fixture
def hurt_broker(hurt_rabbitmq: RabbitMQServer) -> Broker:
    """A look into it."""
    return Broker(hurt_rabbitmq.url)
