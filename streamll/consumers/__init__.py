"""The way back: events read from Redis, RabbitMQ and files, with `for` or `async for`.

    with consumer_for("redis://localhost:6379/0?stream=app-events") as consumer:
        for event in consumer.events():
            print(event.operation)

What belongs here: the public names. What does not: any client library, which is imported when a consumer first connects.
"""

from __future__ import annotations

from typing import Any

from streamll.consumers.base import Consumer, Events
from streamll.consumers.base_options import ConsumerOptions, ConsumerStats
from streamll.consumers.file import FileConsumer
from streamll.consumers.rabbitmq import RabbitMQConsumer
from streamll.consumers.received import Received
from streamll.consumers.redis import RedisConsumer
from streamll.errors import ConfigurationError

__all__ = [
    "Consumer",
    "ConsumerOptions",
    "ConsumerStats",
    "Events",
    "FileConsumer",
    "RabbitMQConsumer",
    "Received",
    "RedisConsumer",
    "consumer_for",
]

_BY_SCHEME: dict[str, type[FileConsumer] | type[RabbitMQConsumer] | type[RedisConsumer]] = {
    "file": FileConsumer,
    "amqp": RabbitMQConsumer,
    "amqps": RabbitMQConsumer,
    "redis": RedisConsumer,
    "rediss": RedisConsumer,
    "unix": RedisConsumer,
    "redis+cluster": RedisConsumer,
    "rediss+cluster": RedisConsumer,
    "redis+sentinel": RedisConsumer,
    "rediss+sentinel": RedisConsumer,
}


def consumer_for(url: str, **options: Any) -> Consumer:
    """Return the consumer for a URL; a sink's URL serves to read back what it wrote.

    Args:
        url: `redis://...?stream=`, `amqp://...?queue=` or `?exchange=`, `file:///path`, and what else RedisConsumer,
            RabbitMQConsumer and FileConsumer read.
        options: Those of the consumer; they win over the URL's.

    Raises:
        ConfigurationError: When nothing can be read from such a URL, or an option cannot be used.
    """
    scheme = url.partition(":")[0].lower()
    kind = _BY_SCHEME.get(scheme)
    if kind is None:
        raise ConfigurationError(f"url scheme {scheme!r}: events can be read from {', '.join(_BY_SCHEME)}")
    return kind(url, **options)
