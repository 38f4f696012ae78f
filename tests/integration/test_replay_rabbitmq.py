"""Redriving dead letters of RabbitMQ: to where they belonged, with all that their messages said."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import redis

from streamll import codec
from streamll.errors import FatalError, UnavailableError
from streamll.models import StreamllEvent
from streamll.replay.base import Redrive, Selection, Tally, survey
from streamll.replay.places import place_of
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.fixtures.waiting import wait_until
from tests.sinks.rabbitmq_tools import Broker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration]

PRODUCER = "0123456789abcdef"


@pytest.fixture
def broker(rabbitmq_server: RabbitMQEndpoint) -> Iterator[Broker]:
    """Names of the test's own: an exchange, a queue of the same name bound to it, and its dead letters."""
    made = Broker(rabbitmq_server.url)
    with made.channel() as channel:
        channel.exchange_declare(made.name, "topic", durable=True)
        channel.queue_declare(made.name, durable=True)
        channel.queue_bind(made.name, made.name, "#")
        channel.queue_declare(dead(made), durable=True)
    yield made
    made.remove()


def dead(broker: Broker) -> str:
    return f"{broker.name}.dead-letter"


def url_of(broker: Broker, url: str = "", **options: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in {"exchange": broker.name, **options}.items())
    return f"{url or broker.url}?{query}"


def through(broker: Broker, proxy: FaultProxy) -> str:
    parameters = pika.URLParameters(broker.url)
    credentials = parameters.credentials
    assert isinstance(credentials, pika.PlainCredentials)
    return f"amqp://{credentials.username}:{credentials.password}@{proxy.host}:{proxy.port}/%2F"


def target(broker: Broker) -> tuple[str, int]:
    parameters = pika.URLParameters(broker.url)
    return parameters.host, parameters.port


def payload(seq: int, size: int = 0) -> bytes:
    fields: dict[str, Any] = {"event_id": f"{seq:032x}", "timestamp": 1_700_000_000_000_000_000, "data": {"n": seq}}
    if size:
        fields["tags"] = ["x" * size]
    return codec.encode(StreamllEvent(event_type="token", operation="generate", **fields))


def fill(broker: Broker, first: int, last: int, reason: str = "unroutable", key: str = "token", size: int = 0) -> None:
    """Dead letters as the sink writes them."""
    with broker.channel() as channel:
        channel.confirm_delivery()
        for seq in range(first, last + 1):
            properties = pika.BasicProperties(
                content_type="application/msgpack",
                delivery_mode=2,
                message_id=f"{PRODUCER}:{seq}",
                timestamp=1_700_000_000,
                type="token",
                headers={
                    "event_type": "token",
                    "operation": "generate",
                    "producer": PRODUCER,
                    "seq": seq,
                    "reason": reason,
                },
            )
            # By the dead letters' exchange in reality; it is a fanout, and leaves the routing key as it was.
            exchange = f"{broker.name}.dead-letter"
            channel.exchange_declare(exchange, "fanout", durable=True)
            channel.queue_bind(dead(broker), exchange, "")
            channel.basic_publish(exchange, key, payload(seq, size), properties, mandatory=True)


def redrive(url: str, to: str = "", **selection: Any) -> Tally:
    place = place_of(url)
    destination = place_of(to).destination(place) if to else place.home()
    work = Redrive(place.dead_letters(look=False), destination, Selection(**selection))
    work.run()
    return work.tally


def test_everything_goes_back_as_it_was_and_without_its_reason(broker: Broker) -> None:
    fill(broker, 1, 600, key="some.key")
    tally = redrive(url_of(broker))
    assert (tally.redriven, tally.rejected, tally.left) == (600, 0, 0)
    assert broker.count(dead(broker)) == 0
    messages = broker.messages()
    assert [properties.message_id for _, properties, _ in messages] == [f"{PRODUCER}:{n}" for n in range(1, 601)]
    method, properties, body = messages[0]
    assert (method.exchange, method.routing_key, body) == (broker.name, "some.key", payload(1))
    assert codec.decode(body).data == {"n": 1}
    assert (properties.content_type, properties.delivery_mode) == ("application/msgpack", 2)
    assert (properties.type, properties.timestamp) == ("token", 1_700_000_000)
    assert properties.headers == {"event_type": "token", "operation": "generate"}


def test_what_a_sink_dead_lettered_is_delivered_after_the_fix(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.queue_unbind(broker.name, broker.name, "#")
    with RabbitMQSink(url_of(broker, routing_key="of.{event_type}")) as sink:
        for n in range(20):
            assert sink.handle_event(StreamllEvent(event_type="token", data={"n": n}))
        assert sink.flush(20)
        assert sink.stats().dead_lettered == 20
    assert redrive(url_of(broker)).rejected >= 20  # not mended yet
    with broker.channel() as channel:
        channel.queue_bind(broker.name, broker.name, "of.#")
    assert redrive(url_of(broker)).redriven >= 20
    messages = broker.messages()
    events = [codec.decode(body) for _, _, body in messages]
    assert [event.data["n"] for event in events if event.event_type == "token"] == list(range(20))
    assert {method.routing_key for method, _, _ in messages} >= {"of.token"}
    assert {properties.message_id.rpartition(":")[0] for _, properties, _ in messages} == {sink.producer}


def test_the_queue_itself_may_be_named(broker: Broker) -> None:
    fill(broker, 1, 3)
    assert redrive(f"{broker.url}?queue={dead(broker)}").redriven == 3
    assert broker.numbers() == [1, 2, 3]


def test_what_no_queue_takes_stays_and_is_counted(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.queue_unbind(broker.name, broker.name, "#")
        channel.queue_bind(broker.name, broker.name, "good")
    fill(broker, 1, 5, key="good")
    fill(broker, 6, 8, key="bad")
    fill(broker, 9, 10, key="good")
    tally = redrive(url_of(broker))
    assert (tally.redriven, tally.rejected, tally.left) == (7, 3, 0)
    (reason,) = tally.stayed
    assert "no queue for routing key 'bad'" in reason
    assert broker.numbers() == [1, 2, 3, 4, 5, 9, 10]
    letters = broker.entries(dead(broker))
    assert [(letter.seq, letter.reason) for letter in letters] == [
        (6, "unroutable"),
        (7, "unroutable"),
        (8, "unroutable"),
    ]


def test_more_that_stays_than_is_taken_at_once(broker: Broker) -> None:
    fill(broker, 1, 700, reason="bad luck")
    fill(broker, 701, 705, reason="too large")
    tally = redrive(url_of(broker), reason="TOO large")
    assert (tally.redriven, tally.rejected, tally.left) == (5, 0, 700)
    assert broker.numbers() == [701, 702, 703, 704, 705]
    assert broker.numbers(dead(broker)) == list(range(1, 701))


def test_a_limit_and_a_survey(broker: Broker) -> None:
    fill(broker, 1, 5, reason="a")
    fill(broker, 6, 9, reason="b")
    meant, unusable, others = survey(place_of(url_of(broker)).dead_letters(look=True), Selection(limit=7))
    assert (dict(meant), dict(unusable), others) == ({"a": 5, "b": 2}, {}, 2)
    assert broker.count(dead(broker)) == 9
    tally = redrive(url_of(broker), limit=7)
    assert (tally.redriven, tally.left) == (7, 2)
    assert broker.numbers(dead(broker)) == [8, 9]


def test_strangers_stay_and_what_the_broker_dead_lettered_says_why(broker: Broker) -> None:
    fill(broker, 1, 1)
    with broker.channel() as channel:
        channel.basic_publish("", dead(broker), b"hello")
        death: Any = {"x-death": [{"reason": "rejected", "queue": "app", "count": 1}], "producer": PRODUCER, "seq": 2}
        properties = pika.BasicProperties(headers=death, message_id=f"{PRODUCER}:2")
        channel.basic_publish("", dead(broker), payload(2), properties)
        properties = pika.BasicProperties(headers={"producer": PRODUCER, "seq": 3})
        channel.basic_publish("", dead(broker), b"\xc1 no event", properties)
    meant, unusable, _ = survey(place_of(url_of(broker)).dead_letters(look=True), Selection())
    assert meant["rejected from queue app"] == 1
    assert sum(unusable.values()) == 1
    tally = redrive(url_of(broker))
    assert (tally.redriven, tally.rejected, tally.left) == (2, 2, 0)
    assert broker.numbers() == [1, 2]
    assert {body for _, _, body in broker.messages(dead(broker))} == {b"hello", b"\xc1 no event"}


def test_to_another_exchange_with_a_routing_key_of_its_own(broker: Broker) -> None:
    fill(broker, 1, 3, key="old")
    other = Broker(broker.url)
    try:
        with other.channel() as channel:
            channel.exchange_declare(other.name, "topic", durable=True)
            channel.queue_declare(other.name, durable=True)
            channel.queue_bind(other.name, other.name, "generate.token")
        tally = redrive(url_of(broker), url_of(other, routing_key="{operation}.{event_type}"))
        assert (tally.redriven, tally.left) == (3, 0)
        assert other.numbers() == [1, 2, 3]
    finally:
        other.remove()


def test_a_full_queue_takes_some_and_the_others_stay(broker: Broker) -> None:
    fill(broker, 1, 10)
    with broker.channel() as channel:
        channel.queue_delete(broker.name)
        full = {"x-max-length": 3, "x-overflow": "reject-publish"}
        channel.queue_declare(broker.name, durable=True, arguments=full)
        channel.queue_bind(broker.name, broker.name, "#")
    with pytest.raises(UnavailableError, match="is a queue full"):
        redrive(url_of(broker))
    assert wait_until(lambda: broker.count(broker.name) + broker.count(dead(broker)) == 10)
    assert broker.count(broker.name) >= 3
    assert set(broker.numbers()) | set(broker.numbers(dead(broker))) == set(range(1, 11))


def test_what_another_broker_takes_for_too_large_stays(
    broker: Broker, own_rabbitmq: Callable[..., RabbitMQServer]
) -> None:
    fill(broker, 1, 4)
    fill(broker, 5, 5, size=200_000)
    fill(broker, 6, 9)
    other = Broker(own_rabbitmq(config={"max_message_size": "100000"}).url)
    with other.channel() as channel:
        channel.exchange_declare(other.name, "topic", durable=True)
        channel.queue_declare(other.name, durable=True)
        channel.queue_bind(other.name, other.name, "#")
    tally = redrive(url_of(broker), url_of(other))
    assert (tally.redriven, tally.rejected, tally.left) == (8, 1, 0)
    assert "larger than configured max size" in next(iter(tally.stayed))
    assert set(other.numbers()) == {1, 2, 3, 4, 6, 7, 8, 9}
    assert broker.numbers(dead(broker)) == [5]


def test_a_queue_that_is_deleted_meanwhile(broker: Broker) -> None:
    fill(broker, 1, 600)
    place = place_of(url_of(broker))
    work = Redrive(place.dead_letters(look=False), place.home(), Selection())

    def delete() -> None:
        with broker.channel() as channel:
            channel.queue_delete(dead(broker))

    with pytest.raises(UnavailableError, match="no queue"):
        work.run(on_page=delete)
    assert work.tally.redriven == 250


def test_nothing_there(broker: Broker) -> None:
    with broker.channel() as channel:
        channel.queue_delete(dead(broker))
    tally = redrive(url_of(broker))
    assert (tally.redriven, tally.rejected, tally.left) == (0, 0, 0)


def test_an_exchange_that_does_not_exist(broker: Broker) -> None:
    fill(broker, 1, 3)
    with broker.channel() as channel:
        channel.exchange_delete(broker.name)
    with pytest.raises(FatalError, match="no exchange"):
        redrive(url_of(broker))
    assert wait_until(lambda: broker.count(dead(broker)) == 3)


def test_somebody_else_has_the_rest(broker: Broker) -> None:
    fill(broker, 1, 10)
    place = place_of(url_of(broker))
    source = place.dead_letters(look=False)
    source.open()
    with broker.channel() as channel:
        for _ in range(4):
            channel.basic_get(dead(broker), auto_ack=True)
        began = time.monotonic()
        assert len(source.take()) == 6
        assert time.monotonic() - began < 10
        assert source.take() == []
    source.close()


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize("hurt", ["source", "destination"])
def test_cut_anywhere_and_run_again_loses_nothing(broker: Broker, hurt: str, direction: str) -> None:
    with FaultProxy(*target(broker)) as proxy:
        hurt_url = url_of(broker, through(broker, proxy))
        urls = (hurt_url, url_of(broker)) if hurt == "source" else (url_of(broker), hurt_url)

        def work() -> Redrive:
            return Redrive(place_of(urls[0]).dead_letters(look=False), place_of(urls[1]).home(), Selection())

        fill(broker, 1, 20)
        before = proxy.passed[direction]
        work().run()
        length = proxy.passed[direction] - before
        broker.messages()
        for count in sorted({*range(1, length, max(1, length // 8)), length - 1}):
            fill(broker, 1, 20)
            proxy.cut_after(count, direction)
            # The last of the bytes are a farewell, without which the work is done all the same.
            with pytest.raises(UnavailableError) if count < length // 2 else contextlib.suppress(UnavailableError):
                work().run()
            proxy.heal()
            assert wait_until(lambda: _all_there(broker))
            work().run()
            arrived = broker.numbers()
            assert set(arrived) == set(range(1, 21)), f"cut at {count}"
            assert len(arrived) <= 40
            assert broker.count(dead(broker)) == 0


def _all_there(broker: Broker) -> bool:
    """Whether the broker has noticed the end of the connection, and put back what was not acknowledged."""
    return broker.count(dead(broker)) + broker.count() >= 20


@pytest.mark.redis
def test_to_redis_and_from_redis(
    broker: Broker, redis_client: redis.Redis, cleanup_stream: str, redis_url: str
) -> None:
    fill(broker, 1, 5)
    tally = redrive(url_of(broker), f"{redis_url}?stream={cleanup_stream}")
    assert (tally.redriven, tally.left) == (5, 0)
    assert redis_client.xlen(cleanup_stream) == 5
    for seq in range(1, 6):
        letter: Any = {"event": payload(seq), "producer": PRODUCER, "seq": seq, "reason": "x"}
        redis_client.xadd(f"{cleanup_stream}:dead-letter", letter)
    redis_client.xadd(
        f"{cleanup_stream}:dead-letter", {"event": b"\xc1 no event", "producer": "p", "seq": 1, "reason": "x"}
    )
    redis_client.xadd(
        f"{cleanup_stream}:dead-letter", {"event": payload(6), "producer": "p" * 300, "seq": 1, "reason": "x"}
    )
    redis_client.xadd(
        f"{cleanup_stream}:dead-letter", {"event": payload(7), "producer": "p", "seq": 2**63, "reason": "x"}
    )
    tally = redrive(f"{redis_url}?stream={cleanup_stream}", url_of(broker))
    assert (tally.redriven, tally.rejected, tally.left) == (5, 3, 0)
    method, properties, body = broker.messages()[0]
    assert (method.routing_key, properties.headers["operation"], body) == ("token", "generate", payload(1))


@pytest.fixture
def redis_url(redis_server: Any) -> str:
    url: str = redis_server.url
    return url
