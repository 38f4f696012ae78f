"""From an event to the broker's confirmation: by hand, with other clients, and with streamll's sinks, on the same server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest

from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.sinks.redis_options import RedisOptions
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import wait_until
from tests.performance.child import Answer, Child, Children
from tests.performance.measuring import Race
from tests.performance.results import Findings


@dataclass(frozen=True)
class Way:
    """A way to deliver.

    Attributes:
        label: What it is called in the report.
        note: What it does and does not guarantee.
        way: The function of children/delivery.py.
        n: Events in a lap.
        query: What a sink's URL says besides where to.
    """

    label: str
    note: str
    way: str
    n: int
    query: str = ""


IN_MEMORY = "what waits is in memory, bounded and counted: a crash loses it, unless durability=process is chosen"

REDIS = {
    "xadd_each": Way(
        "redis-py, one XADD after the other",
        "each is answered before the next; the caller waits for every round trip; redis-py (from version 6 on) repeats by "
        "itself what it got no answer to, which may store it twice; while Redis is away each call fails, and its event is the "
        "caller's problem",
        "xadd_each",
        2_000,
    ),
    "xadd_fields": Way(
        "a blocking XADD in each emitting call, a field a value",
        "as above, and in the middle of the program's own work: a Redis that does not answer stops the program",
        "xadd_fields",
        2_000,
    ),
    "xadd_pipelined": Way(
        "redis-py's pipeline, batches of 500",
        "in order; a batch that got no answer may be stored or not, in part too, and repeating it, as redis-py does by itself "
        "from version 6 on, stores that twice; the caller waits for the round trip of each batch, and is to collect them",
        "xadd_pipelined",
        20_000,
    ),
    "sink": Way(
        "streamll, RedisSink, one entry an event",
        f"in order, repeated until answered, and stored once as long as Redis keeps the fence; the caller never waits; {IN_MEMORY}",
        "streamll_sink",
        20_000,
    ),
    "framed": Way(
        "streamll, RedisSink, framing=batch",
        "the same promises with many events in one entry, which streamll's readers unpack; trimming counts entries",
        "streamll_sink",
        20_000,
        "&framing=batch",
    ),
}

RABBITMQ = {
    "pika_each": Way(
        "pika, a confirm for each message",
        "persistent, mandatory, confirmed; the caller waits for each; while the broker is away each call fails, and its "
        "event is the caller's problem; a confirm that was lost means sending it twice",
        "pika_each",
        500,
    ),
    "aio_pika": Way(
        "aio-pika, 500 at a time, confirms awaited",
        "persistent, mandatory, confirmed; in asyncio only; it connects again by itself, but what failed meanwhile is the "
        "caller's problem; a confirm that was lost means sending it twice",
        "aio_pika_gathered",
        2_000,
    ),
    "sink": Way(
        "streamll, RabbitMQSink, one message an event",
        "persistent, mandatory, confirmed, repeated until it is: at least once, with a message_id by which a reader knows "
        f"doubles; the caller never waits; {IN_MEMORY}",
        "streamll_sink",
        10_000,
    ),
    "framed": Way(
        "streamll, RabbitMQSink, framing=batch",
        "the same promises with many events in one message, which streamll's readers unpack",
        "streamll_sink",
        10_000,
        "&framing=batch",
    ),
}


def compare(
    race: Race,
    findings: Findings,
    ways: Mapping[str, Way],
    first: str,
    start: Callable[[str, Way], Child],
    arrived: Callable[[str, Way], int],
    quick: bool,
) -> None:
    """Deliver in all ways in turn; after each lap the broker is asked how many events it has, and emptied."""
    homes = {name: start(name, way) for name, way in ways.items()}

    def lap(name: str, n: int) -> Answer:
        answer = homes[name]("lap", n=n)
        assert arrived(name, ways[name]) == n, ways[name].label
        return answer

    counts = {name: way.n // 10 if quick else way.n for name, way in ways.items()}
    laps = race({name: partial(lap, name, counts[name]) for name in ways}, 2 if quick else 5, subject="sink")
    figures = {name: [lap.value for lap in own] for name, own in laps.items()}
    for figure, unit, label in (
        ("rate", "events/s", "until all are confirmed"),
        ("cpu", "us", "client CPU an event"),
        ("held", "us", "an event holds the caller"),
    ):
        base = [lap[figure] for lap in figures[first]]
        for name, way in ways.items():
            to = None if name == first else (ways[first].label, base)
            note = way.note if figure == "rate" else ""
            findings.row(f"{way.label}: {label}", [lap[figure] for lap in figures[name]], unit, to=to, note=note)
    shown = ", ".join(f"{ways[name].label}: {n:,}" for name, n in counts.items())
    findings.say(f"Events in a lap: {shown}. After each lap the broker was asked, and had them all.")
    findings.series["delivery"] = {ways[name].label: [lap["rate"] for lap in own] for name, own in figures.items()}


@pytest.mark.redis
def test_redis(race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool) -> None:
    findings.about("peers", "Delivered to Redis, on loopback")
    framing = "framing" in RedisOptions.names()
    ways = {name: way for name, way in REDIS.items() if framing or name != "framed"}

    def start(name: str, way: Way) -> Child:
        url = redis_here.url if way.way != "streamll_sink" else f"{redis_here.url}?stream={name}{way.query}"
        return children.start("delivery", way=way.way, url=url, to=name)

    with redis_here.client() as client:

        def arrived(name: str, way: Way) -> int:
            count = int(client.xlen(name))
            if way.query:
                entries: Any = client.xrange(name)
                count = sum(int(fields.get(b"count", 1)) for _, fields in entries)
            client.xtrim(name, maxlen=0, approximate=False)
            return count

        compare(race, findings, ways, "xadd_each", start, arrived, quick)


@pytest.mark.rabbitmq
def test_rabbitmq(
    race: Race, findings: Findings, rabbitmq_here: RabbitMQServer, children: Children, quick: bool
) -> None:
    if find_spec("aio_pika") is None:
        pytest.skip("not installed, since it comes with the extra `performance`: aio-pika")
    findings.about("peers", "Delivered to RabbitMQ, persistent, to a durable classic queue, on loopback")
    framing = "framing" in RabbitMQOptions.names()
    ways = {name: way for name, way in RABBITMQ.items() if framing or name != "framed"}
    connection = rabbitmq_here.connection()
    channel: Any = connection.channel()
    for name in ways:
        channel.queue_declare(name, durable=True)

    def start(name: str, way: Way) -> Child:
        sink = f"{rabbitmq_here.url}?exchange=&queue={name}{way.query}"
        url = sink if way.way == "streamll_sink" else rabbitmq_here.url
        return children.start("delivery", way=way.way, url=url, to=name)

    def waiting(name: str) -> int:
        return int(channel.queue_declare(name, passive=True).method.message_count)

    def arrived(name: str, way: Way) -> int:
        if not way.query:
            # What is confirmed is in the queue, but for the numbers that a queue under load tells of itself.
            wait_until(lambda: waiting(name) >= (way.n // 10 if quick else way.n), timeout=5.0)
            return int(channel.queue_purge(name).method.message_count)
        count = 0
        while (message := channel.basic_get(name, auto_ack=True))[0] is not None:
            headers: Any = message[1].headers or {}
            count += int(headers.get("events", 1))
        return count

    compare(race, findings, ways, "pika_each", start, arrived, quick)
    connection.close()
