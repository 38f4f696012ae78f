"""What integration tests share: events, waiting, clients and names of their own on servers that others use too."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import redis

from streamll.models import StreamllEvent
from tests.fixtures.monitoring import (
    all_allowed,
    event_tracer_config,
    memory_profiler_config,
    nothing_left_behind,
    overhead_measurer,
    performance_thresholds,
    profiler_config,
    stress_test_config,
)
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint, connect
from tests.fixtures.waiting import wait_until

__all__ = [
    "IntegrationTestBase",
    "all_allowed",
    "event_tracer_config",
    "is_redis_available",
    "memory_profiler_config",
    "nothing_left_behind",
    "overhead_measurer",
    "performance_thresholds",
    "profiler_config",
    "stress_test_config",
]


class IntegrationTestBase:
    """A base for test classes: makes events, and waits for what must become true."""

    @staticmethod
    def create_test_event(event_type: str = "test", **fields: Any) -> StreamllEvent:
        """An event with every field filled that a reader looks at; `fields` replace them."""
        values: dict[str, Any] = {
            "execution_id": uuid.uuid4().hex,
            "module_name": "tests.integration",
            "method_name": "create_test_event",
            "operation": "test_operation",
            "data": {"message": "hello", "number": 42},
            "tags": ["integration"],
        }
        return StreamllEvent(event_type=event_type, **(values | fields))

    @staticmethod
    def wait_for_condition(condition: Callable[[], object], timeout: float = 10.0, interval: float = 0.02) -> bool:
        """Whether `condition` became true within `timeout` seconds; it is looked at every `interval` seconds."""
        return wait_until(condition, timeout, interval)


def is_redis_available(url: str = "redis://localhost:6379/0") -> bool:
    """Whether a Redis answers a PING there within a second."""
    try:
        with connect(url, socket_connect_timeout=1.0, socket_timeout=1.0) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def redis_client(redis_server: RedisEndpoint) -> Iterator[redis.Redis]:
    """A client of the shared Redis, without retries."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def rabbitmq_connection(rabbitmq_server: RabbitMQEndpoint) -> Iterator[pika.BlockingConnection]:
    """A connection to the shared RabbitMQ. Name what you declare by yourself, and declare it exclusive or delete it."""
    connection = rabbitmq_server.connection()
    yield connection
    if connection.is_open:
        connection.close()


@pytest.fixture
def bound_exchange(rabbitmq_connection: pika.BlockingConnection) -> Iterator[str]:
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


@pytest.fixture
def unique_stream_key() -> str:
    """A stream that no other test, process or run uses. Beside it, `key:*` is yours too."""
    return f"streamll-test:{uuid.uuid4().hex}"


@pytest.fixture
def cleanup_stream(redis_client: redis.Redis, unique_stream_key: str) -> Iterator[str]:
    """`unique_stream_key`, removed after the test with every key that begins with it."""
    yield unique_stream_key
    for key in redis_client.scan_iter(match=f"{unique_stream_key}*", count=1000):
        redis_client.delete(key)
