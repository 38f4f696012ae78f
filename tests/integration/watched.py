"""What tests of all tools together share: where their events go and come back from, and the program that is watched."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import streamll
from streamll.consumers import RedisConsumer
from streamll.models import StreamllEvent
from streamll.monitors.event_tracer import EventTracer
from streamll.monitors.metrics import Registry
from streamll.sketch import QuantileSketch
from tests.fixtures.redis import RedisEndpoint

log = logging.getLogger("shop")


class Shop:
    """A small real program: it checks, prices and packs orders, which it is watched at by every means there is.

    Args:
        tracer: Is told of the steps.
        profiled: Decorates the function that takes the time.
        registry: Where its metrics are.
    """

    STEPS = ("checked", "priced", "packed")

    def __init__(self, tracer: EventTracer, profiled: Callable[[Any], Any], registry: Registry) -> None:
        self.tracer = tracer
        self.orders = registry.counter("orders")
        self.open = registry.gauge("orders.open")
        self.items = registry.histogram("orders.items", unit="1")
        self.price = profiled(self._price)

    @staticmethod
    def _price(order: dict[str, Any]) -> int:
        items: int = order["items"]
        if items == 13:
            raise ValueError("nobody sells thirteen")
        digest = hashlib.blake2b(json.dumps(order).encode()).digest()
        return sum(sorted(digest)) * items

    def handle(self, number: int) -> int | None:
        """Handle one order; every 14th has thirteen items, which is an error that is handled."""
        items = number % 14
        order = {"number": number, "items": items, "api_key": "hunter2"}
        flow = f"order-{number}"
        self.open.add(1)
        self.items.record(items, kind="even" if number % 2 == 0 else "odd")
        try:
            with streamll.span("handle", **order):
                self.tracer.checkpoint("checked", flow)
                price = self.price(order)
                self.tracer.checkpoint("priced", flow)
                self.tracer.trace_event("packed_up", order)
                self.tracer.checkpoint("packed", flow)
        except ValueError:
            self.orders.add(1, outcome="refused")
            log.warning("order %d was refused", number)
            return None
        finally:
            self.open.add(-1)
        self.orders.add(1, outcome="packed")
        return int(price)

    async def handle_soon(self, number: int) -> int | None:
        """The same in a task, which gives way to others in the middle."""
        with streamll.span("task", number=number):
            await asyncio.sleep(0)
            return self.handle(number)

    def in_threads(self, threads: int, calls: int) -> None:
        """Handle orders 0 to threads * calls - 1 in so many threads at once."""
        failures: list[BaseException] = []
        barrier = threading.Barrier(threads)

        def work(first: int) -> None:
            try:
                barrier.wait(30)
                for number in range(first, first + calls):
                    self.handle(number)
            except BaseException as error:  # which the test is to see, wherever it was raised
                failures.append(error)

        running = [threading.Thread(target=work, args=(n * calls,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        assert not any(thread.is_alive() for thread in running), "it hangs"
        assert failures == []

    def in_tasks(self, tasks: int) -> None:
        """Handle orders 0 to tasks - 1 in so many tasks at once."""

        async def everything() -> None:
            await asyncio.gather(*(self.handle_soon(number) for number in range(tasks)))

        asyncio.run(everything())

    @staticmethod
    def refused(orders: int) -> int:
        """How many of orders 0 to orders - 1 are refused."""
        return len(range(13, orders, 14))

    def assert_all_told(self, events: list[StreamllEvent], orders: int) -> None:
        """Fail unless events tell of orders 0 to orders - 1, each once, by every means."""
        refused = self.refused(orders)
        spans = [event for event in events if event.event_type == "span" and event.operation == "handle"]
        assert sorted(event.data["number"] for event in spans) == list(range(orders))
        assert sum("error" in event.data for event in spans) == refused
        assert {event.data["api_key"] for event in spans} == {"[redacted]"}
        steps = Counter(event.operation for event in events if event.event_type == "checkpoint")
        assert steps == {"checked": orders, "priced": orders - refused, "packed": orders - refused}
        packed = [event for event in events if event.event_type == "packed_up"]
        assert len({event.data["number"] for event in packed}) == len(packed) == orders - refused
        by_span = {event.span_id: event.data["number"] for event in spans}
        assert all(by_span[event.span_id] == event.data["number"] for event in packed)
        totals = metric_totals(events)
        assert totals["orders", ("packed",)] == orders - refused
        assert totals.get(("orders", ("refused",)), 0) == refused
        assert totals["orders.items", ("even",)] + totals["orders.items", ("odd",)] == orders
        assert self.sketch(events).maximum == 13
        gauges = [event for event in events if event.operation == "orders.open"]
        assert gauges[-1].data["series"][0]["value"] == 0

    @staticmethod
    def sketch(events: list[StreamllEvent]) -> QuantileSketch:
        """The numbers of items of all orders, merged over intervals and labels."""
        merged = QuantileSketch()
        for event in events:
            if event.operation == "orders.items":
                for row in event.data["series"]:
                    merged.merge(QuantileSketch.from_dict(row["sketch"]))
        return merged


def metric_totals(events: list[StreamllEvent]) -> dict[tuple[str, tuple[str, ...]], int]:
    """The sums of deltas, by the metric's name and its labels' values; each is what its last event says of the total."""
    sums: dict[Any, int] = {}
    totals: dict[Any, int] = {}
    for event in events:
        if event.event_type == "metric" and event.data["kind"] != "gauge":
            for row in event.data["series"]:
                place = event.operation, tuple(row["labels"].values())
                sums[place] = sums.get(place, 0) + row["delta"]
                totals[place] = row["total"]
    assert sums == totals
    return sums


def read_redis(server: RedisEndpoint, stream: str) -> list[StreamllEvent]:
    """What is in a stream, of which nothing may be missing or double."""
    numbers: dict[str, list[int]] = {}
    events: list[StreamllEvent] = []
    with RedisConsumer(server.url, stream, follow=False) as consumer:
        for item in consumer:
            assert item.event is not None
            numbers.setdefault(item.producer, []).append(item.seq)
            events.append(item.event)
    for found in numbers.values():
        assert found == list(range(1, len(found) + 1))
    return events
