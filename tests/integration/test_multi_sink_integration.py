"""Several sinks at once: what one does is nothing to the other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pika
import pytest
import redis

import streamll
from streamll.codec import decode
from streamll.sinks.memory import MemorySink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.redis import RedisSink
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.integration.conftest import IntegrationTestBase
from tests.integration.test_rabbitmq_integration import drain
from tests.integration.test_redis_integration import read_apart

pytestmark = [pytest.mark.integration]


class TestMultiSinkIntegration(IntegrationTestBase):
    @pytest.fixture(autouse=True)
    def _shut_down(self) -> Iterator[None]:
        yield
        streamll.shutdown(5)
        streamll.configure(sinks=[], environ={})

    @pytest.mark.redis
    @pytest.mark.rabbitmq
    def test_dual_sink_consistency(
        self,
        redis_server: RedisEndpoint,
        redis_client: redis.Redis,
        cleanup_stream: str,
        rabbitmq_server: RabbitMQEndpoint,
        rabbitmq_connection: pika.BlockingConnection,
    ) -> None:
        """The same events, byte for byte and in the same order, are in both brokers."""
        exchange = f"streamll-test-{uuid.uuid4().hex}"
        channel = rabbitmq_connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_declare(exchange, exclusive=True)
        channel.queue_bind(exchange, exchange, "#")
        to_redis = RedisSink(url=redis_server.url, stream_key=cleanup_stream)
        to_rabbitmq = RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=exchange)
        try:
            streamll.configure(sinks=[to_redis, to_rabbitmq], environ={})
            for n in range(500):
                with streamll.span("answer", n=n):
                    streamll.emit("token", operation="generate", data={"n": n})
            assert streamll.flush(60)
            stats = streamll.shutdown()
            entries, redis_notes = read_apart(redis_client, cleanup_stream)
            messages, rabbitmq_notes = drain(rabbitmq_connection, exchange)
        finally:
            channel.exchange_delete(exchange)
            channel.exchange_delete(f"{exchange}.dead-letter")
            channel.queue_delete(f"{exchange}.dead-letter")
        in_redis = [fields[b"event"] for fields in entries]
        assert len(in_redis) == 1000
        assert in_redis == [body for _, body in messages]
        assert [decode(fields[b"event"]).data for fields in redis_notes] == [{"last": 1000}]
        assert [decode(body).data for _, body in rabbitmq_notes] == [{"last": 1000}]
        assert stats.balanced
        assert {name: sink.delivered for name, sink in stats.sinks.items()} == {"redis": 1000, "rabbitmq": 1000}
        events = [decode(payload) for payload in in_redis]
        token, span = events[0], events[1]
        assert (token.event_type, span.event_type, span.operation) == ("token", "span", "answer")
        assert token.execution_id == span.execution_id
        assert token.span_id == span.span_id

    @pytest.mark.redis
    def test_a_dead_or_frozen_sink_delays_no_other(self, own_redis: Callable[..., RedisServer]) -> None:
        alive, frozen = own_redis(), own_redis()
        sinks = [
            RedisSink(url=alive.url, stream_key="app", name="alive"),
            RedisSink(url=frozen.url, stream_key="app", name="frozen"),
            RedisSink(url="redis://127.0.0.1:1/0", stream_key="app", name="dead"),
        ]
        streamll.configure(sinks=sinks, environ={})
        frozen.freeze()
        start = time.monotonic()
        for n in range(2000):
            assert streamll.emit("tick", data={"n": n})
        assert sinks[0].flush(20)
        assert time.monotonic() - start < 20
        stats = streamll.stats()
        assert stats.sinks["alive"].delivered == 2000
        assert stats.sinks["frozen"].delivered == stats.sinks["dead"].delivered == 0
        assert stats.balanced
        frozen.thaw()
        assert sinks[1].flush(30)
        assert streamll.stats().sinks["frozen"].delivered == 2000
        with frozen.client() as client:
            assert client.xlen("app") == 2000

    def test_an_event_is_encoded_once_for_all_sinks(self) -> None:
        sinks = [MemorySink(name="a"), MemorySink(name="b")]
        streamll.configure(sinks=sinks, environ={})
        streamll.emit("tick")
        assert streamll.flush(5)
        assert sinks[0].records[0].record is sinks[1].records[0].record
