"""Ways to get events to a broker and to know that they are there: by hand, with other clients, and streamll's sinks.

What belongs here: one function for each way, which returns when the broker has confirmed all. What does not: what is said
of them, and whether everything arrived (the test asks the broker).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from time import perf_counter, process_time, time_ns
from typing import Any

import msgspec

import streamll
from tests.performance.calls import EVENT
from tests.performance.child import Answer, Work, serve

BATCH = 500

EXECUTION = "4bf92f3577b34da6a3ce929d0e0e4736"

Send = Callable[[int], None]
"""Sends so many events, and returns when the caller is free to go on."""


def events() -> Iterator[dict[str, Any]]:
    """What is sent by hand: the same content as streamll's events, with ids as cheap."""
    for number in itertools.count():
        yield {
            "v": 1,
            "event_id": f"8a4b1c6d{number:024x}",
            "execution_id": EXECUTION,
            "span_id": "00f067aa0ba902b7",
            "timestamp": time_ns(),
            "event_type": "token",
            "operation": "generate",
            "data": EVENT,
            "resource": {"host": "localhost", "pid": 4711},
        }


def payloads() -> Iterator[bytes]:
    pack = msgspec.msgpack.Encoder().encode
    return map(pack, events())


class Way:
    """A way to deliver.

    Attributes:
        send: Sends so many events.
        finish: Waits until what was sent is confirmed; nothing where `send` does that itself.
    """

    def __init__(self, send: Send, finish: Callable[[], object] = lambda: None) -> None:
        self.send = send
        self.finish = finish

    def lap(self, n: int) -> Answer:
        """Deliver so many events: the rate, the CPU an event, and how long each held the caller."""
        start, cpu = perf_counter(), process_time()
        self.send(n)
        free = perf_counter()
        self.finish()
        end, used = perf_counter(), process_time() - cpu
        return {"rate": n / (end - start), "cpu": used / n * 1e6, "held": (free - start) / n * 1e6}


def xadd_each(url: str, to: str) -> Way:
    import redis

    client, source = redis.Redis.from_url(url), payloads()

    def send(n: int) -> None:
        for payload in itertools.islice(source, n):
            client.xadd(to, {"event": payload})

    return Way(send)


def xadd_fields(url: str, to: str) -> Way:
    """Each event in the call that makes it: a field for each of its values, and the stream kept short."""
    import redis

    client, source = redis.Redis.from_url(url), events()

    def send(n: int) -> None:
        for event in itertools.islice(source, n):
            flat: dict[Any, Any] = {
                **event,
                "data": json.dumps(event["data"]),
                "resource": json.dumps(event["resource"]),
            }
            client.xadd(to, flat, maxlen=1_000_000, approximate=True)

    return Way(send)


def xadd_pipelined(url: str, to: str) -> Way:
    import redis

    client, source = redis.Redis.from_url(url), payloads()

    def send(n: int) -> None:
        for start in range(0, n, BATCH):
            pipe = client.pipeline(transaction=False)
            for payload in itertools.islice(source, min(BATCH, n - start)):
                pipe.xadd(to, {"event": payload})
            pipe.execute()

    return Way(send)


def pika_each(url: str, to: str) -> Way:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    persistent, source = pika.BasicProperties(delivery_mode=2), payloads()

    def send(n: int) -> None:
        for payload in itertools.islice(source, n):
            channel.basic_publish("", to, payload, persistent, mandatory=True)

    return Way(send)


def aio_pika_gathered(url: str, to: str) -> Way:
    aio_pika = import_module("aio_pika")  # which not every environment has
    source = payloads()
    loop = asyncio.new_event_loop()

    async def connect() -> Any:
        connection = await aio_pika.connect_robust(url)
        return await connection.channel(publisher_confirms=True)

    channel = loop.run_until_complete(connect())

    async def publish(n: int) -> None:
        exchange = channel.default_exchange
        for start in range(0, n, BATCH):
            batch = itertools.islice(source, min(BATCH, n - start))
            messages = (aio_pika.Message(payload, delivery_mode=aio_pika.DeliveryMode.PERSISTENT) for payload in batch)
            await asyncio.gather(*(exchange.publish(message, to, mandatory=True) for message in messages))

    return Way(lambda n: loop.run_until_complete(publish(n)))


def streamll_sink(url: str, to: str) -> Way:
    """A sink of ours; its URL says where to."""
    streamll.configure(sinks=[url], buffer_size=500_000, buffer_bytes=1 << 30)
    span = streamll.span("request")  # kept: its end would be one event more
    span.__enter__()

    def send(n: int) -> None:
        for _ in range(n):
            streamll.emit("token", EVENT, operation="generate")

    def finish() -> None:
        assert streamll.flush(60)
        (sink,) = streamll.stats().sinks.values()
        if not sink.balanced or sink.delivered != sink.accepted or sink.refused:
            raise RuntimeError(f"not all was delivered: {sink}")

    return Way(send, finish)


WAYS: Mapping[str, Callable[[str, str], Way]] = {
    way.__name__: way for way in (xadd_each, xadd_fields, xadd_pipelined, pika_each, aio_pika_gathered, streamll_sink)
}


def make(way: str, url: str, to: str) -> Mapping[str, Work]:
    return {"lap": WAYS[way](url, to).lap}


if __name__ == "__main__":
    serve(make)
