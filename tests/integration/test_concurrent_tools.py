"""All tools at once, from many threads and tasks: none waits for another for ever, and none loses a call."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest
import redis

import streamll
from streamll.codec import decode
from streamll.monitoring import monitor
from streamll.monitors.action_profiler import ActionProfiler
from streamll.monitors.agent import agent
from streamll.monitors.event_tracer import EventTracer
from streamll.monitors.memory_profiler import MemoryProfiler
from streamll.monitors.metrics import Metrics, Registry
from streamll.sinks.memory import MemorySink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.redis import RedisSink
from tests.fixtures.interrupts import interrupted
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.redis import RedisEndpoint
from tests.integration.test_rabbitmq_integration import drain
from tests.integration.watched import Shop, metric_totals, read_redis

pytestmark = [pytest.mark.integration, pytest.mark.concurrent, pytest.mark.usefixtures("nothing_left_behind")]


class Tools:
    """Tools with options of a test's, and a shop that they watch."""

    def __init__(self, profiler: dict[str, Any], tracer: dict[str, Any], memory: dict[str, Any]) -> None:
        self.registry = Registry()
        self.profiler = ActionProfiler(profiler)
        self.tracer = EventTracer(tracer)
        self.memory = MemoryProfiler(memory)
        self.metrics = Metrics(registry=self.registry, interval=0.1)
        self.shop = Shop(self.tracer, self.profiler.profile, self.registry)

    def watch(self, sinks: Any) -> Any:
        """Start them all."""
        return monitor(
            sinks, profile=self.profiler, memory=self.memory, events=self.tracer, metrics=self.metrics, logs=True
        )


@pytest.fixture
def tools(
    profiler_config: dict[str, Any], event_tracer_config: dict[str, Any], memory_profiler_config: dict[str, Any]
) -> Tools:
    return Tools(profiler_config, event_tracer_config, memory_profiler_config)


@pytest.mark.redis
@pytest.mark.rabbitmq
@pytest.mark.stress
def test_what_many_threads_and_tasks_do_is_told_once_by_every_tool_to_both_brokers(
    tools: Tools,
    stress_test_config: dict[str, int],
    redis_server: RedisEndpoint,
    redis_client: redis.Redis,
    cleanup_stream: str,
    rabbitmq_server: RabbitMQEndpoint,
    rabbitmq_connection: pika.BlockingConnection,
    bound_exchange: str,
) -> None:
    threads, calls = stress_test_config["threads"], stress_test_config["calls"]
    orders = threads * calls
    to_redis = RedisSink(url=redis_server.url, stream_key=cleanup_stream)
    to_rabbitmq = RabbitMQSink(amqp_url=rabbitmq_server.url, exchange=bound_exchange)
    with tools.watch([to_redis, to_rabbitmq]) as watch:
        tools.shop.in_threads(threads, calls)
    data = tools.profiler.get_profile_data()
    assert data["total_calls"] == orders
    (profile,) = [row for name, row in data["profiles"].items() if name.endswith("_price")]
    assert (profile["calls"], profile["errors"]) == (orders, Shop.refused(orders))
    kept = tools.tracer.get_events("packed_up")
    assert sorted(event.data["number"] for event in kept) == [n for n in range(orders) if n % 14 != 13]
    flows = tools.tracer.analyze_flow(expected=Shop.STEPS)
    assert flows["found"]
    assert tools.memory.get_memory_usage()["peak_mb"] > 0
    operations = {row["operation"]: row for row in watch.report()["operations"]["operations"]}
    assert (operations["handle"]["calls"], operations["handle"]["errors"]) == (orders, Shop.refused(orders))
    assert agent.stats().errors == 0
    stats = streamll.shutdown(30)
    assert stats.balanced
    assert all(sink.delivered == sink.offered for sink in stats.sinks.values()), str(stats)
    events = read_redis(redis_server, cleanup_stream)
    tools.shop.assert_all_told(events, orders)
    assert sum(event.event_type == "log" for event in events) == Shop.refused(orders)
    messages, _ = drain(rabbitmq_connection, bound_exchange)
    # Each sink numbers what it accepts, so what two threads do at the same moment may be in another order there.
    assert sorted(decode(body).event_id for _, body in messages) == sorted(event.event_id for event in events)


def test_many_tasks_do_not_mix_up_what_belongs_to_whom(tools: Tools, stress_test_config: dict[str, int]) -> None:
    tasks = stress_test_config["tasks"]
    sink = MemorySink()
    with tools.watch([sink]):
        tools.shop.in_tasks(tasks)
    streamll.shutdown()
    events = sink.events
    tools.shop.assert_all_told(events, tasks)
    outer = {event.span_id: event for event in events if event.operation == "task"}
    inner = [event for event in events if event.operation == "handle"]
    assert len(outer) == tasks
    assert all(outer[event.parent_span_id].data["number"] == event.data["number"] for event in inner)
    assert len({event.execution_id for event in inner}) == tasks
    assert tools.profiler.get_profile_data()["total_calls"] == tasks


@pytest.mark.stress
def test_a_storm_of_starts_and_stops_loses_no_call_of_what_does_not_stop(
    tools: Tools, stress_test_config: dict[str, int]
) -> None:
    """Threads start, stop, read and reset tools, two of a kind, while others work, and collections and signals come."""
    storms, threads, calls = stress_test_config["storms"], 4, 2 * stress_test_config["calls"]
    sink = MemorySink(buffer_size=200_000)
    streamll.configure([sink], environ={})
    counted = tools.registry.counter("storm")

    def work(number: int) -> None:
        for _ in range(calls):
            counted.add(1, worker=number)
            tools.shop.handle(14)

    def read_in_the_middle() -> None:
        counted.add(0)
        tools.profiler.stats()

    def storm(_: int) -> None:
        others: list[Any] = [ActionProfiler(), EventTracer(), MemoryProfiler(), Metrics(registry=Registry())]
        for _ in range(storms):
            for tool in [*others, tools.profiler, tools.memory, tools.tracer]:
                tool.start()
                tool.start()
                tool.stats()
                tool.report()
                tool.stop()
                tool.stop()
            others[1].reset()
        del others
        gc.collect()

    with ThreadPoolExecutor(threads + 3) as executor, tools.metrics:
        workers = [executor.submit(work, number) for number in range(threads)]
        with interrupted(read_in_the_middle, 0.002):
            for done in [*workers, *(executor.submit(storm, number) for number in range(3))]:
                done.result(60)
    stats = streamll.shutdown()
    assert stats.balanced
    assert agent.stats().errors == 0
    totals = {labels: total for (name, labels), total in metric_totals(sink.events).items() if name == "storm"}
    assert totals == {(str(number),): calls for number in range(threads)}
    assert sum(event.operation == "handle" for event in sink.events) == threads * calls


def test_tools_may_be_started_and_stopped_by_different_threads_and_in_a_loop(tools: Tools) -> None:
    every = (tools.profiler, tools.memory, tools.tracer, tools.metrics)
    for tool in every:
        starter = threading.Thread(target=tool.start)
        starter.start()
        starter.join(30)
        assert tool.running

    async def stop() -> None:
        for tool in every:
            await asyncio.get_running_loop().run_in_executor(None, tool.stop)

    asyncio.run(stop())
    assert not any(tool.running for tool in every)
