"""RedisSink against a real Redis, as an application uses it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from streamll.codec import decode
from streamll.consumers import RedisConsumer
from streamll.models import NOTES
from streamll.sinks.redis import RedisSink
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.integration.conftest import IntegrationTestBase, is_redis_available

pytestmark = [pytest.mark.integration, pytest.mark.redis]


Fields = dict[bytes, bytes]


def read_apart(client: redis.Redis, stream: str) -> tuple[list[Fields], list[Fields]]:
    """The fields of every event of a stream, in its order; and of the notes that sinks left among them."""
    entries: Any = client.xrange(stream)
    events: list[Fields] = []
    notes: list[Fields] = []
    for _, fields in entries:
        (notes if decode(fields[b"event"]).event_type in NOTES else events).append(fields)
    return events, notes


class TestRedisIntegration(IntegrationTestBase):
    def test_redis_is_available(self, redis_server: RedisEndpoint) -> None:
        assert is_redis_available(redis_server.url)

    def test_redis_basic_event_flow(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        events = [self.create_test_event(data={"n": n}, tags={"team": "blue"}) for n in range(1200)]
        sink = RedisSink(url=redis_server.url, stream_key=cleanup_stream)
        sink.start()
        assert all(sink.handle_event(event) for event in events)
        assert sink.flush()
        assert sink.event_queue.empty()
        stats = sink.stop()
        entries, (closing,) = read_apart(redis_client, cleanup_stream)
        assert [decode(fields[b"event"]).event_id for fields in entries] == [event.event_id for event in events]
        assert [int(fields[b"seq"]) for fields in entries] == list(range(1, 1201))
        assert int(closing[b"seq"]) == 1201
        assert {fields[b"producer"].decode() for fields in (*entries, closing)} == {stats.producer}
        first = decode(entries[0][b"event"])
        assert (first.data, first.tags, first.module_name) == ({"n": 0}, {"team": "blue"}, "tests.integration")
        assert stats.balanced
        assert stats.delivered == stats.accepted == stats.offered == 1200
        assert stats.latency.p50 is not None

    def test_redis_reader_returns_what_was_emitted(self, redis_server: RedisEndpoint, cleanup_stream: str) -> None:
        events = [self.create_test_event(data={"n": n}) for n in range(50)]
        with RedisSink(url=redis_server.url, stream_key=cleanup_stream) as sink:
            for event in events:
                sink.handle_event(event)
        with RedisConsumer(f"{redis_server.url}?stream={cleanup_stream}", start="beginning", follow=False) as consumer:
            read = list(consumer.events())
        assert [(event.event_id, event.data) for event in read] == [(event.event_id, event.data) for event in events]

    @pytest.mark.performance
    def test_pipeline_performance_benchmark(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        """Pipelined writes against one XADD an event, interleaved in one run; that it is faster is for the benchmarks."""
        events = [self.create_test_event(data={"n": n}) for n in range(2000)]
        payload = b"x" * 300
        one_by_one = pipelined = 0.0
        for part in range(4):
            some = events[part * 500 : (part + 1) * 500]
            start = time.perf_counter()
            for _ in some:
                redis_client.xadd(f"{cleanup_stream}:single", {"event": payload})
            one_by_one += time.perf_counter() - start
            with RedisSink(url=redis_server.url, stream_key=cleanup_stream, flush_interval=0) as sink:
                start = time.perf_counter()
                for event in some:
                    sink.handle_event(event)
                assert sink.flush(60)
                pipelined += time.perf_counter() - start
                assert sink.stats().delivered == 500
        assert redis_client.xlen(f"{cleanup_stream}:single") == 2000
        entries, closings = read_apart(redis_client, cleanup_stream)
        assert [decode(fields[b"event"]).event_id for fields in entries] == [event.event_id for event in events]
        assert [decode(fields[b"event"]).data for fields in closings] == [{"last": 500}] * 4
        print(f"one by one {2000 / one_by_one:,.0f}/s, sink {2000 / pipelined:,.0f}/s: {one_by_one / pipelined:.1f}x")

    def test_redis_circuit_breaker_integration(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(appendonly="yes")
        sink = RedisSink(
            url=server.url,
            stream_key="app",
            failure_threshold=2,
            recovery_timeout=0.3,
            retry_base=0.01,
            connect_timeout=1,
        )
        sink.handle_event(self.create_test_event())
        assert sink.flush(10)
        server.kill()
        events = [self.create_test_event(data={"n": n}) for n in range(20)]
        for event in events:
            assert sink.handle_event(event)
        assert self.wait_for_condition(lambda: sink.stats().circuit == "open")
        assert sink.stats().balanced
        server.restart()
        assert self.wait_for_condition(sink.event_queue.empty, timeout=30)
        stats = sink.stop()
        assert stats.circuit == "closed"
        assert [change.state.value for change in stats.circuit_history][:1] == ["open"]
        assert stats.delivered == 21
        with server.client() as client:
            entries, (closing,) = read_apart(client, "app")
        assert [decode(fields[b"event"]).event_id for fields in entries][1:] == [event.event_id for event in events]
        assert decode(closing[b"event"]).data == {"last": 21}
