"""The tools together in one process: their options, their lives, and what they say to each other and to a reader."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest

import streamll
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.monitoring import monitor
from streamll.monitors.action_profiler import ActionProfiler
from streamll.monitors.agent import agent
from streamll.monitors.event_tracer import EventTracer
from streamll.monitors.memory_profiler import MemoryProfiler
from streamll.monitors.metrics import Metrics, Registry
from streamll.monitors.telemetry import MetricType, Telemetry
from streamll.sinks.memory import MemorySink
from streamll.sinks.redis import RedisSink
from tests.fixtures.redis import RedisEndpoint
from tests.fixtures.waiting import wait_until
from tests.integration.watched import Shop, read_redis

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left_behind")]


@pytest.fixture
def kinds(
    profiler_config: dict[str, Any], event_tracer_config: dict[str, Any], memory_profiler_config: dict[str, Any]
) -> dict[Any, dict[str, Any]]:
    """Every tool, and options for it."""
    return {
        ActionProfiler: profiler_config,
        EventTracer: event_tracer_config,
        MemoryProfiler: memory_profiler_config,
        Metrics: {"interval": 0.5},
    }


class TestEveryTool:
    def test_is_told_its_options_in_any_way(self, kinds: dict[Any, dict[str, Any]]) -> None:
        for kind, options in kinds.items():
            told = [kind(options), kind(**options), kind(kind(options).options), kind({}, **options)]
            assert all(tool.options == told[0].options for tool in told)
            assert kind().options == kind(None).options == kind({}).options
            with pytest.raises(ConfigurationError, match="did you mean"):
                kind({f"{next(iter(options))}x": 1})
            with pytest.raises(ConfigurationError, match="config"):
                kind(5)

    def test_starts_and_stops_as_often_as_one_likes(self, kinds: dict[Any, dict[str, Any]]) -> None:
        for kind, options in kinds.items():
            tool = kind(options)
            states = [tool.running]
            tool.stop()
            for _ in range(2):
                assert tool.start() is tool
                tool.start()
                states.append(tool.running)
                tool.stop()
                tool.stop()
                states.append(tool.running)
            with tool as entered:
                assert entered is tool
                states.append(tool.running)
            states.append(tool.running)
            assert states == [False, True, False, True, False, True, False]
            assert json.loads(json.dumps(tool.report())) is not None
            tool.reset()

    def test_that_nobody_holds_any_more_harms_nobody(self, kinds: dict[Any, dict[str, Any]]) -> None:
        streamll.configure([MemorySink()], environ={})
        gone = []
        for kind, options in kinds.items():
            tool = kind(options)
            tool.start()
            gone.append(weakref.ref(tool))
            del tool
        gc.collect()
        with streamll.span("after"):
            pass
        assert streamll.flush(10)
        assert streamll.stats().balanced
        for reference in gone:
            tool = reference()
            if tool is not None:  # what is started may live on
                tool.stop()
        assert agent.stats().errors == 0


@pytest.mark.redis
def test_what_all_tools_say_comes_back_from_a_real_broker(
    kinds: dict[Any, dict[str, Any]], redis_server: RedisEndpoint, cleanup_stream: str
) -> None:
    registry = Registry()
    profiler, tracer = ActionProfiler(kinds[ActionProfiler]), EventTracer(kinds[EventTracer])
    shop = Shop(tracer, profiler.profile, registry)
    sink = RedisSink(url=redis_server.url, stream_key=cleanup_stream)
    with monitor(
        [sink],
        profile=profiler,
        events=tracer,
        memory=kinds[MemoryProfiler],
        metrics=Metrics(registry=registry, interval=0.2),
    ) as watch:
        telemetry = Telemetry("shop", "1.0", environ={})
        for number in range(100):
            shop.handle(number)
        telemetry.track_metric("telemetered", 100, MetricType.COUNTER)
        memory: Any = watch.tools["memory"]
        assert wait_until(lambda: len(memory.snapshots) > 2)
        early = json.loads(json.dumps(watch.report()))
        assert telemetry.flush(30)
        telemetry.disable()
    late = json.loads(json.dumps(watch.report()))
    stats = streamll.shutdown(30)
    assert stats.balanced
    events = read_redis(redis_server, cleanup_stream)
    shop.assert_all_told(events, 100)
    told = [event for event in events if event.operation == "telemetered"]
    assert [event.data["telemetry"]["project"] for event in told] == ["shop"]
    assert set(early) == set(late)
    assert {"operations", "profiler", "memory", "metrics", "events", "monitoring"} <= set(late)
    names = {metric["name"] for metric in late["metrics"]["metrics"]}
    assert {"orders", "orders.open", "orders.items"} <= names
    assert set(watch.tools) <= set(stats.monitoring)
    assert late["monitoring"]["errors"] == 0
    assert profiler.get_profile_data()["total_calls"] == 100


def test_tools_watch_also_where_no_event_goes(kinds: dict[Any, dict[str, Any]]) -> None:
    """Without a sink, their reports are what there is."""
    registry = Registry()
    profiler, tracer = ActionProfiler(kinds[ActionProfiler]), EventTracer(kinds[EventTracer])
    shop = Shop(tracer, profiler.profile, registry)
    with monitor(profile=profiler, events=tracer, metrics=Metrics(registry=registry)) as watch:
        for number in range(30):
            shop.handle(number)
    report = watch.report()
    assert profiler.get_profile_data()["total_calls"] == 30
    assert len(tracer.get_events("packed_up")) == 28
    orders = next(metric for metric in report["metrics"]["metrics"] if metric["name"] == "orders")
    assert {row["labels"]["outcome"]: row["total"] for row in orders["series"]} == {"packed": 28, "refused": 2}
    assert not hub.active


def test_a_sink_that_takes_nothing_costs_the_tools_nothing_but_the_events() -> None:
    """Metrics say later what they could not say at once; who counts at home counts on."""
    registry = Registry()
    accept = False
    events = []

    def dispatch(event: Any) -> bool:
        if accept:
            events.append(event)
        return accept

    with hub.instead(dispatch), Metrics(registry=registry, interval=1000) as metrics, EventTracer() as tracer:
        for _ in range(3):
            registry.counter("orders").add(1)
            tracer.trace_event("packed")
            metrics.flush()
        accept = True
        metrics.flush()
    assert [row["delta"] for event in events if event.operation == "orders" for row in event.data["series"]] == [3]
    assert len(tracer.get_events("packed")) == 3
    assert tracer.stats().not_sent["refused"] == 3
