"""Readers of a stream whose entries are frames of many events: alone, in a group, and the commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.consumers import RedisConsumer
from streamll.models import StreamllEvent
from streamll.sinks.redis import RedisSink
from streamll.wire.frame import pack
from tests.fixtures.redis import RedisEndpoint
from tests.integration.audits import EVENT, counted, environment, outcome

pytestmark = [pytest.mark.integration, pytest.mark.redis]


def add(client: redis.Redis, stream: str, *frames: Iterable[int], producer: str = "p") -> list[str]:
    """Append frames of events with these numbers, as RedisSink does; returns their ids."""
    ids = []
    for numbers in map(list, frames):
        payloads = [codec.encode(StreamllEvent(event_type="t", operation=f"op {number}")) for number in numbers]
        fields: Any = {"events": pack(payloads), "producer": producer, "seq": numbers[0], "count": len(numbers)}
        found: Any = client.xadd(stream, fields)
        ids.append(found.decode())
    return ids


def seqs(consumer: Any) -> list[int]:
    return [item.seq for item in consumer]


def pending(client: redis.Redis, stream: str) -> int:
    found: Any = client.xpending(stream, "g")
    return int(found["pending"])


@pytest.fixture
def filled(redis_server: RedisEndpoint, cleanup_stream: str) -> str:
    """A stream that a sink filled, with many events in an entry."""
    options: dict[str, Any] = {"framing": "batch", "batch_size": 40, "batch_growth": 1}
    with RedisSink(url=redis_server.url, stream_key=cleanup_stream, **options) as sink:
        assert all(sink.handle_event(EVENT) for _ in range(1000))
    return f"{redis_server.url}?stream={cleanup_stream}"


class TestAlone:
    def test_what_a_sink_wrote_is_read_back_event_by_event(
        self, filled: str, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        assert redis_client.xlen(cleanup_stream) < 500
        with RedisConsumer(filled, follow=False, notes=True) as consumer:
            items = list(consumer)
        assert [item.seq for item in items] == list(range(1, 1002))
        assert all(item.event is not None and item.event.event_type == "t" for item in items[:-1])
        assert items[-1].note
        assert (consumer.stats().undecodable, consumer.stats().duplicates) == (0, 0)

    def test_an_end_in_the_middle_of_a_frame_loses_nothing(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 6), range(6, 11), range(11, 16))
        for count, again in ((1, 1), (5, 6), (7, 6), (10, 11), (15, 16)):
            with RedisConsumer(redis_server.url, cleanup_stream) as consumer:
                first = [next(consumer).seq for _ in range(count)]
                position = consumer.stats().position
            assert first == list(range(1, count + 1))
            with RedisConsumer(redis_server.url, cleanup_stream, start=position, follow=False) as consumer:
                assert seqs(consumer) == list(range(again, 16))

    def test_pages_of_few_entries(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, *(range(first, first + 7) for first in range(1, 141, 7)))
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False, page_size=3) as consumer:
            assert seqs(consumer) == list(range(1, 141))

    def test_doubles_of_some_events_of_a_frame_are_dropped(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3], [2, 3, 4], [1, 2, 3, 4])
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3, 4]
            assert consumer.stats().duplicates == 6

    def test_a_damaged_frame_is_one_entry_that_cannot_be_read(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        redis_client.xgroup_create(cleanup_stream, "g", id="0", mkstream=True)
        good = pack([b"a", b"b"])
        damaged: list[Any] = [
            {"events": good[:-1], "producer": "p", "seq": 1, "count": 2},
            {"events": good, "producer": "p", "seq": 1, "count": 3},
            {"events": good, "producer": "p", "seq": "x", "count": 2},
            {"events": b"\xdd\xff\xff\xff\xff", "producer": "p", "seq": 1, "count": 2**32 - 1},
            {"events": b"", "producer": "p", "seq": 1, "count": 0},
        ]
        for fields in damaged:
            redis_client.xadd(cleanup_stream, fields)
        add(redis_client, cleanup_stream, [7, 8])
        for group in ("", "g"):
            with RedisConsumer(redis_server.url, cleanup_stream, group=group, follow=False) as consumer:
                items = list(consumer)
                assert [item.seq for item in items if item.event is not None] == [7, 8]
                assert [bool(item.error) for item in items] == [True] * len(damaged) + [False] * 2
                for item in items:
                    item.ack()
        assert pending(redis_client, cleanup_stream) == 0

    def test_an_event_of_a_frame_that_cannot_be_decoded_is_one(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        whole = codec.encode(EVENT)
        fields: Any = {"events": pack([whole, b"\xc1", whole]), "producer": "p", "seq": 1, "count": 3}
        redis_client.xadd(cleanup_stream, fields)
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            items = list(consumer)
        assert [(item.seq, item.event is None) for item in items] == [(1, False), (2, True), (3, False)]
        assert items[1].payload == b"\xc1"


class TestInAGroup:
    def test_an_entry_is_acknowledged_when_all_of_its_events_are(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3], [4, 5])
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", consumer="c", follow=False) as consumer:
            items = list(consumer)
            for item in (items[2], items[0], items[0], items[3]):
                item.ack()
        assert pending(redis_client, cleanup_stream) == 2
        # Whole frames come back, for whoever ended did not say which events it was done with.
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", consumer="c", follow=False) as consumer:
            items = list(consumer)
            assert [item.seq for item in items] == [1, 2, 3, 4, 5]
            assert all(item.redelivered for item in items)
            for item in items[:3]:
                item.ack()
            items[3].reject()
        assert pending(redis_client, cleanup_stream) == 1
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", consumer="c", follow=False) as consumer:
            assert [event.operation for event in consumer.events()] == ["op 4", "op 5"]
        assert pending(redis_client, cleanup_stream) == 0

    def test_a_frame_of_doubles_is_acknowledged(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3], [2, 3], [3, 4])
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", consumer="c", follow=False) as consumer:
            items = list(consumer)
            assert [item.seq for item in items] == [1, 2, 3, 4]
            items[-1].ack()
        assert pending(redis_client, cleanup_stream) == 1

    def test_a_frame_that_was_partly_acknowledged_when_the_connection_was_lost(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3], [4, 5])
        options: dict[str, Any] = {"group": "g", "consumer": "c", "timeout": 5.0, "retry_base": 0.01}
        with RedisConsumer(redis_server.url, cleanup_stream, **options) as consumer:
            items = [next(consumer) for _ in range(5)]
            items[0].ack()
            redis_client.client_kill_filter(_type="normal", skipme=True)
            add(redis_client, cleanup_stream, [6])
            assert next(consumer).seq == 6  # what we hold is not handed over again
            assert consumer.stats().reconnects == 1
            for item in items[1:]:
                item.ack()
        assert pending(redis_client, cleanup_stream) == 1

    def test_a_frame_that_somebody_left_is_taken_over_whole(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3])
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", consumer="a", follow=False) as consumer:
            next(consumer).ack()
        options: dict[str, Any] = {"group": "g", "consumer": "b", "claim_idle": 0.01, "timeout": 10.0}
        with RedisConsumer(redis_server.url, cleanup_stream, **options) as consumer:
            items = [next(consumer) for _ in range(3)]
            assert [item.seq for item in items] == [1, 2, 3]
            for item in items:
                item.ack()
        assert pending(redis_client, cleanup_stream) == 0


class TestCommands:
    def test_audit_counts_events_and_sees_what_a_lost_frame_costs(
        self, filled: str, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        found = outcome(filled, code=0)
        (row,) = found["producers"]
        assert (counted(row), row["closed"]) == ({"events": 1000}, True)
        entries: Any = redis_client.xrange(cleanup_stream)
        ident, fields = entries[len(entries) // 2]
        redis_client.xdel(cleanup_stream, ident)
        found = outcome(filled, code=1)
        (row,) = found["producers"]
        lost = int(fields.get(b"count", 1))
        assert counted(row) == {"events": 1000 - lost, "gaps": 1, "undeclared": lost}

    def test_tail_shows_each_event(self, filled: str) -> None:
        program = "import sys; from streamll.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", program, "tail", filled, "--from", "beginning", "--no-follow"],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert (done.returncode, done.stderr) == (0, "")
        *lines, last = done.stdout.splitlines()
        assert len(lines) == 1000
        assert all(line.endswith("text=Hi") for line in lines)
        assert "closed after 1,000 events" in last
