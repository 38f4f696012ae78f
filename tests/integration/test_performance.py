"""What watching costs, as figures in the test's report. No speed is asserted, but that nothing hangs."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import streamll
from streamll.monitoring import monitor
from streamll.monitors.agent import agent
from streamll.monitors.event_tracer import EventTracer
from streamll.monitors.metrics import Registry
from streamll.sinks.memory import MemorySink
from streamll.sinks.redis import RedisSink
from tests.fixtures.monitoring import OverheadMeasurer
from tests.fixtures.redis import RedisEndpoint

pytestmark = [pytest.mark.integration, pytest.mark.performance, pytest.mark.usefixtures("nothing_left_behind")]

STATM = Path("/proc/self/statm")

HANGING_NS = 1_000_000
"""A call that should take microseconds and takes so long hangs, whatever else is measured or runs beside it."""


def work() -> None:
    """About 20 ms of what programs do, in steps that are spans."""
    for number in range(40):
        with streamll.span("step", number=number):
            text = "".join(str(n) for n in range(1000))
            hashlib.blake2b(text.encode()).hexdigest()


def test_calls_on_the_hot_path(
    overhead_measurer: OverheadMeasurer,
    performance_thresholds: dict[str, float],
    event_tracer_config: dict[str, Any],
) -> None:
    registry = Registry()
    counter, histogram = registry.counter("calls"), registry.histogram("took")

    def span() -> None:
        with streamll.span("step"):
            pass

    measured = {
        "disabled_span": overhead_measurer.per_call("disabled_span", span),
        "counter": overhead_measurer.per_call("counter", lambda: counter.add(1, route="/x")),
        "histogram": overhead_measurer.per_call("histogram", lambda: histogram.record(0.5, route="/x")),
    }
    streamll.configure([MemorySink(max_events=10)], environ={})
    with EventTracer(event_tracer_config) as tracer:
        measured["span"] = overhead_measurer.per_call("span", span, calls=500)
        measured["event"] = overhead_measurer.per_call("event", lambda: tracer.trace_event("e", {"n": 1}), calls=500)
    # Under a coverage tool each line costs many times what it does, so nothing is judged but that none of them hangs.
    assert set(measured) == {name.removesuffix("_ns") for name in performance_thresholds if name.endswith("_ns")}
    assert max(measured.values()) < HANGING_NS


@pytest.mark.redis
def test_a_program_that_all_tools_watch(
    overhead_measurer: OverheadMeasurer,
    performance_thresholds: dict[str, float],
    redis_server: RedisEndpoint,
    cleanup_stream: str,
    profiler_config: dict[str, Any],
    memory_profiler_config: dict[str, Any],
) -> None:
    streamll.configure([RedisSink(url=redis_server.url, stream_key=cleanup_stream)], environ={})

    def watching() -> AbstractContextManager[object]:
        return monitor(profile=profiler_config, memory=memory_profiler_config, logs=True)

    overhead = overhead_measurer.compare("all_tools", work, watching)
    assert overhead.ratio < 1 + performance_thresholds["slack"]
    assert streamll.flush(30)
    stats = streamll.stats()
    assert stats.balanced
    assert agent.stats().errors == 0
    assert agent.stats().seconds  # what they cost is known


def test_starting_all_tools(
    overhead_measurer: OverheadMeasurer, performance_thresholds: dict[str, float], record_property: Any
) -> None:
    streamll.configure([MemorySink()], environ={})
    with monitor(profile=True, memory=True, logs=True, warnings=True):
        pass  # what they import is imported

    def start_and_stop() -> None:
        with monitor(profile=True, memory=True, logs=True, warnings=True):
            pass

    took = overhead_measurer.per_call("start_and_stop", start_and_stop, calls=3, rounds=2)
    assert took / 1e9 < performance_thresholds["slack"] * performance_thresholds["start_up_s"]


@pytest.mark.skipif(not STATM.exists(), reason="there is no /proc here")
def test_memory_of_all_tools(
    performance_thresholds: dict[str, float], record_property: Any, profiler_config: dict[str, Any]
) -> None:
    def resident_mb() -> float:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    streamll.configure([MemorySink(max_events=1000)], environ={})
    before = resident_mb()
    with monitor(profile=profiler_config, memory=True):
        for _ in range(5):
            work()
        grown = resident_mb() - before
    record_property("rss_grown_mb", round(grown, 1))
    assert grown < performance_thresholds["slack"] * performance_thresholds["rss_mb"]
