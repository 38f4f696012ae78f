"""Scenarios on a real Redis, which writes all that it confirms to its disk first."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar
from uuid import uuid4

import redis

from streamll.codec import decode
from streamll.sinks.base import Sink
from streamll.sinks.redis import RedisSink
from streamll.wire.redis import decode_entries
from tests.chaos.crashes import Crashes
from tests.chaos.faults import Faults, Rule, through
from tests.chaos.oracle import Found, Place
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import PATIENCE, wait_until


def start_redis() -> RedisServer:
    """A server that loses nothing that it has confirmed when it is killed.

    Raises:
        ServerUnavailable: There is none on this machine.
    """
    server = RedisServer(appendonly="yes", appendfsync="always")
    server.start()
    return server


class RedisFaults(Faults):
    """What can be done to a Redis."""

    def on_server(self) -> list[tuple[float, Rule]]:
        """See Faults."""
        return [
            (0.7, self.kill),
            (0.3, self.restart),
            (1.5, self.freeze),
            (0.5, self.forget_scripts),
            (0.5, self.throw_out),
            (0.7, self.fill_memory),
            (0.5, self.demote),
        ]

    def forget_scripts(self) -> str:
        """SCRIPT FLUSH: the sink must hand its script over again."""
        with self.server.client() as client:
            client.script_flush()
        return "done"

    def throw_out(self) -> str:
        """CLIENT KILL: the server ends the connections."""
        with self.server.client() as client:
            count = client.client_kill_filter(_type="normal", skipme=True)
        return f"{count} connections"

    def fill_memory(self) -> str:
        """A server out of memory refuses writes, and goes on once it has some."""
        with self.server.client() as client:
            client.config_set("maxmemory", "1")
        done = self.meanwhile()
        self.mend()
        return done

    def demote(self) -> str:
        """A primary that became a replica refuses writes, until it is the primary again."""
        with self.server.client() as client:
            client.replicaof("127.0.0.1", "1")  # nobody is there
        done = self.meanwhile()
        self.mend()
        return done

    def mend(self) -> None:
        """See Faults."""
        with self.server.client() as client:
            client.config_set("maxmemory", "0")
            client.replicaof("NO", "ONE")


class RedisScenario(Crashes):
    """One scenario on Redis: every event once, in the order of its producer."""

    name: ClassVar[str] = "redis"
    faults_kind: ClassVar[type[Faults]] = RedisFaults
    server: RedisServer

    def name_places(self) -> None:
        """See RealScenario."""
        self.stream = f"chaos:{self.seed}:{uuid4().hex}"

    def make_sink(self, **options: Any) -> Sink:
        """See RealScenario."""
        return RedisSink(through(self.proxy, self.server.url), self.stream, **options)

    def draw_options(self) -> dict[str, Any]:
        """See RealScenario."""
        ways = {"fence": self.rng.choice(["auto", "auto", "script"]), "framing": self.rng.choice(["single", "batch"])}
        return super().draw_options() | ways

    def look(self) -> Place:
        """See RealScenario: XRANGE, once the server has read everything that anybody sent it."""
        with self.server.client() as client:
            alone = wait_until(lambda: len(client.client_list()) == 1, PATIENCE)
            self.wrong.hold(alone, f"connections stay: {client.client_list()}")
            place = Place(_entries(client, self.stream), _entries(client, f"{self.stream}:dead-letter"))
        lost = self.sink.stats().lost_after_ack
        self.wrong.hold(lost == 0, f"the sink counts {lost} events as lost by a server that loses none")
        return place

    def clean_up(self) -> None:
        """See RealScenario."""
        super().clean_up()
        with self.server.client() as client, contextlib.suppress(redis.ResponseError):
            client.flushall()
            client.bgrewriteaof()  # else a server that starts again replays all scenarios before it serves


def _entries(client: redis.Redis, key: str) -> list[Found]:
    entries: Any = client.xrange(key)
    found = []
    for _, fields in entries:
        for entry in decode_entries(fields):
            event = decode(entry.payload)
            found.append(Found(entry.producer, entry.seq, event.event_id, event.event_type, event.data))
    return found
