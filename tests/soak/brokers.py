"""The brokers of a soak: a server of its own, the wire to it, how a sink is pointed at it, and how it is read.

What belongs here: what differs between the brokers. What does not: what is done with what is read (reader.py), or to the
server (schedule.py).
"""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar
from uuid import uuid4

import redis

from streamll.consumers import Consumer, RabbitMQConsumer, RedisConsumer
from streamll.testing.proxy import FaultProxy
from tests.chaos.faults import Faults, through
from tests.chaos.on_rabbitmq import RabbitMQFaults, start_rabbitmq
from tests.chaos.on_redis import RedisFaults, start_redis
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer

BACKLOG = 200_000
"""Events that are stored and not read yet, at most: a soak must not fill anything up."""

_READING: dict[str, Any] = {"notes": True, "dedup_window": 0, "timeout": 0.25}
"""Every entry counts, the sinks' own notes and doubles too."""


class Broker:
    """One broker: its server, and a proxy in front of it, which the sink goes through.

    Raises:
        ServerUnavailable: There is none on this machine.

    Attributes:
        once: Whether it may hold nothing twice.
    """

    name: ClassVar[str]
    once: ClassVar[bool]
    faults_kind: ClassVar[type[Faults]]

    def __init__(self) -> None:
        self.place = f"soak-{uuid4().hex}"
        self.server = self.start()
        self.proxy = FaultProxy("127.0.0.1", self.server.port)

    def start(self) -> Any:
        """Start the server."""
        raise NotImplementedError

    def query(self) -> str:
        """What a sink's URL says of the place."""
        raise NotImplementedError

    def events(self) -> Consumer:
        """What reads all events from the first on; to be opened once there are some."""
        raise NotImplementedError

    def dead_letters(self, after: str) -> Consumer:
        """The same of the dead letters, behind a position."""
        raise NotImplementedError

    def forget(self, position: str, dead_letter: str) -> None:
        """Have the broker forget what was read, events and dead letters, before these positions."""

    def sink_url(self, options: str = "") -> str:
        """The URL of a sink that goes through the proxy."""
        more = f"&{options}" if options else ""
        return f"{through(self.proxy, self.server.url)}?name={self.name}&{self.query()}{more}"

    def close(self) -> None:
        """End all of it."""
        self.proxy.close()
        self.server.close()


class OnRedis(Broker):
    """A stream, which is trimmed behind the reader."""

    name = "redis"
    once = True
    faults_kind = RedisFaults
    server: RedisServer

    def start(self) -> RedisServer:
        """See Broker."""
        return start_redis()

    def query(self) -> str:
        """See Broker."""
        return f"stream={self.place}&max_stream_length={2 * BACKLOG}"

    def events(self) -> Consumer:
        """See Broker."""
        return RedisConsumer(self.server.url, self.place, **_READING)

    def dead_letters(self, after: str) -> Consumer:
        """See Broker."""
        options = _READING | {"timeout": 0.0, "start": after or None}
        return RedisConsumer.of_dead_letters(self.server.url, stream=self.place, **options)

    def forget(self, position: str, dead_letter: str) -> None:
        """See Broker: the entries at these positions stay, so that a reader sees that nothing is missing behind them."""
        # Just now it may be frozen, gone, or a replica: the next time will do.
        with contextlib.suppress(redis.RedisError), self.server.client(socket_timeout=1.0) as client:
            for key, before in ((self.place, position), (f"{self.place}:dead-letter", dead_letter)):
                if before:
                    client.xtrim(key, minid=before, approximate=False)


class OnRabbitMQ(Broker):
    """A durable queue; what is acknowledged is gone."""

    name = "rabbitmq"
    once = False
    faults_kind = RabbitMQFaults
    server: RabbitMQServer

    def start(self) -> RabbitMQServer:
        """See Broker."""
        return start_rabbitmq()

    def query(self) -> str:
        """See Broker."""
        return f"exchange={self.place}&queue={self.place}"

    def events(self) -> Consumer:
        """See Broker."""
        return RabbitMQConsumer(self.server.url, queue=self.place, prefetch=5000, **_READING)

    def dead_letters(self, after: str) -> Consumer:
        """See Broker."""
        return RabbitMQConsumer(self.server.url, queue=f"{self.place}.dead-letter", **_READING | {"timeout": 0.0})


WHERE: dict[str, type[Broker]] = {kind.name: kind for kind in (OnRedis, OnRabbitMQ)}
