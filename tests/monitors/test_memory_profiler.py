"""The memory profiler at work: what it keeps, what it says, and that nobody suffers for it."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest

from streamll.errors import ConfigurationError
from streamll.models import StreamllEvent
from streamll.monitors.agent import agent
from streamll.monitors.budget import MEMORY, Allowance, budget
from streamll.monitors.memory.measurements import NAMES, OTHERS
from streamll.monitors.memory.options import MemoryProfilerOptions
from streamll.monitors.memory_profiler import LABELLED, MemoryProfiler
from streamll.testing import capture
from tests.fixtures.waiting import wait_until

MIB = 1024 * 1024
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is known on Linux alone")


@pytest.fixture(autouse=True)
def room_in_the_budget() -> Iterator[None]:
    """Whatever the tests before have spent."""
    before, agent.target = agent.target, 1.0
    budget.allowance = Allowance()
    yield
    agent.target = before


def of_type(events: list[StreamllEvent], event_type: str, **data: Any) -> list[StreamllEvent]:
    return [
        event
        for event in events
        if event.event_type == event_type and all(event.data.get(name) == value for name, value in data.items())
    ]


class TestReadings:
    @linux
    def test_come_by_the_clock_and_are_kept(self) -> None:
        with MemoryProfiler(interval=0.005, retain=10) as profiler:
            assert len(profiler.snapshots) >= 1
            assert wait_until(lambda: profiler.stats().readings >= 25)
        readings = profiler.stats().readings
        snapshots = profiler.snapshots
        assert len(snapshots) == 10
        assert [one.timestamp for one in snapshots] == sorted(one.timestamp for one in snapshots)
        assert abs(snapshots[-1].timestamp - time.time_ns()) < 30e9
        assert all(one.rss_mb is not None and one.rss_mb > 5 for one in snapshots)
        usage = profiler.get_memory_usage()
        assert usage["peak_mb"] >= usage["current_mb"] > 5
        assert len(usage["snapshots"]) == 10
        assert usage["blocks"] > 10_000
        assert "shares" not in usage
        assert profiler.get_memory_usage(shares=True)["shares"]["pss"] > 0
        assert profiler.stats().readings == readings

    def test_with_a_label_are_kept_beside_them(self) -> None:
        profiler = MemoryProfiler()
        assert profiler.snapshots == []
        profiler.take_snapshot("before")
        kept = [[n] for n in range(20_000)]
        profiler.take_snapshot("after")
        before, after = profiler.snapshots
        assert (before.label, after.label) == ("before", "after")
        assert before.blocks is not None
        assert after.blocks is not None
        assert after.blocks - before.blocks >= 20_000
        assert len(kept) == 20_000
        for n in range(LABELLED + 5):
            profiler.take_snapshot(str(n) * 1000)
        assert len(profiler.snapshots) == LABELLED
        assert len(profiler.snapshots[-1].label) <= 200
        assert profiler.take_snapshot().label == ""

    def test_do_not_grow(self) -> None:
        """What watches Python's blocks must not add to them."""
        profiler = MemoryProfiler(leak_after=1e6)
        now = time.monotonic()
        for n in range(100):
            profiler._look(now + n)
        gc.collect()
        before = sys.getallocatedblocks()
        for n in range(100, 800):
            profiler._look(now + n)
        gc.collect()
        assert sys.getallocatedblocks() - before < 200
        assert profiler.stats().readings == 800

    def test_go_on_a_tenth_as_often_while_monitoring_costs_too_much(self) -> None:
        profiler = MemoryProfiler(interval=0.5)
        assert profiler._look(100.0) == 100.5
        budget.allowance = Allowance(memory=False)
        try:
            assert profiler._look(101.0) == 106.0
        finally:
            budget.allowance = Allowance()

    def test_are_charged(self) -> None:
        before = budget.costs.read().get(MEMORY, 0)
        MemoryProfiler().take_snapshot()
        assert budget.costs.read()[MEMORY] > before


class TestSwitching:
    def test_may_be_done_twice_and_again_and_from_any_thread(self) -> None:
        profiler = MemoryProfiler(interval=0.005)
        callbacks = len(gc.callbacks)
        assert profiler.start() is profiler.start()
        assert len(gc.callbacks) == callbacks + 2
        running = [profiler.running]
        thread = threading.Thread(target=profiler.stop)
        thread.start()
        thread.join()
        profiler.stop()
        assert [*running, profiler.running] == [True, False]
        assert len(gc.callbacks) == callbacks
        readings = profiler.stats().readings
        with profiler:
            assert wait_until(lambda: profiler.stats().readings > readings + 3)
        assert profiler.stats().readings > readings
        profiler.reset()
        assert profiler.stats().readings == 0
        assert profiler.snapshots == []

    def test_two_at_once_do_not_disturb_each_other(self) -> None:
        with MemoryProfiler(interval=0.005) as one, MemoryProfiler(interval=0.005) as other:
            assert wait_until(lambda: min(one.stats().readings, other.stats().readings) > 3)
            one.stop()
            readings = other.stats().readings
            assert wait_until(lambda: other.stats().readings > readings)

    def test_one_that_nobody_holds_any_more_ends(self) -> None:
        profiler = MemoryProfiler(interval=0.005).start()
        callbacks = len(gc.callbacks)
        gone, turns = ref(profiler), profiler._turns
        del profiler
        gc.collect()
        assert wait_until(lambda: gone() is None)
        assert wait_until(lambda: turns not in agent._due)
        assert len(gc.callbacks) == callbacks - 2

    def test_options_may_come_in_any_form(self) -> None:
        assert MemoryProfiler({"interval": "2"}, retain=5).options == MemoryProfilerOptions(interval=2.0, retain=5)
        with pytest.raises(ConfigurationError, match="memory profiler unknown option 'intervall'"):
            MemoryProfiler(intervall=3)
        with pytest.raises(ConfigurationError, match="memory profiler option interval=0"):
            MemoryProfiler({"interval": 0})

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # which is what this test is about
    def test_a_forked_child_begins_anew(self) -> None:
        with MemoryProfiler(interval=0.005) as profiler:
            assert wait_until(lambda: profiler.stats().readings > 20)
            receiving, sending = os.pipe()
            pid = os.fork()
            if pid == 0:
                at_first = profiler.stats().readings
                wait_until(lambda: profiler.stats().readings > at_first + 3, timeout=10)
                os.write(sending, json.dumps([at_first, profiler.stats().readings]).encode())
                os._exit(0)
            os.close(sending)
            at_first, later = json.loads(os.read(receiving, 100))
            os.close(receiving)
            os.waitpid(pid, 0)
        assert at_first < 20
        assert later > at_first + 3


@linux
class TestEvents:
    def test_say_where_memory_stands(self) -> None:
        with capture() as events, MemoryProfiler(interval=0.005, event_interval=0.02) as profiler:
            assert wait_until(lambda: len(of_type(events, "memory")) >= 3)
        said = of_type(events, "memory")[-1]
        assert said.operation == "streamll.memory"
        assert said.data["rss"] > 5 * MIB
        assert said.data["verdict"] in ("unknown", "none")
        assert profiler.stats().events == {"memory": len(of_type(events, "memory"))}

    def test_alert_of_a_threshold_once_for_each_crossing(self) -> None:
        with capture() as events:
            profiler = MemoryProfiler(threshold_mb=1)
            now = time.monotonic()
            for n in range(5):
                profiler._look(now + n)
        (alert,) = of_type(events, "memory_alert")
        assert alert.level == "warning"
        assert alert.data["alert"] == "threshold"
        assert alert.data["rss_mb"] > alert.data["threshold_mb"] == 1

    def test_alert_of_growth_that_is_too_fast(self) -> None:
        with capture() as events, MemoryProfiler(interval=0.005, growth_mb_per_min=200, growth_window=0.2):
            kept = []
            deadline = time.monotonic() + 20
            while not of_type(events, "memory_alert", alert="growth") and time.monotonic() < deadline:
                kept.append(os.urandom(MIB // 4))
                threading.Event().wait(0.005)
        alert = of_type(events, "memory_alert", alert="growth")[0]
        assert alert.data["growth_mb_per_min"] > 200

    def test_alert_of_a_long_pause_of_the_collector(self) -> None:
        many = [[n] for n in range(100_000)]
        with capture() as events, MemoryProfiler(interval=0.005, gc_pause=0.0001) as profiler:
            gc.collect()
            assert wait_until(lambda: of_type(events, "memory_alert", alert="gc_pause", generation=2))
        alert = of_type(events, "memory_alert", alert="gc_pause", generation=2)[0]
        assert alert.data["duration_ns"] > 100_000
        assert alert.data["pauses"] >= 1
        assert profiler.gc.longest_ms >= alert.data["duration_ns"] / 1e6
        assert len(many) == 100_000

    def test_call_a_leak_what_it_is_with_what_came_to_be_more_and_where(self) -> None:
        """The clock is made up, the memory is not."""

        class Leaked:
            def __init__(self, n: int) -> None:
                self.itself = self
                self.text = f"{n:200}"

        kept: list[Leaked] = []
        with capture() as events:
            profiler = MemoryProfiler(
                leak_after=60, warmup=0, trace_allocations=2, gc_pause=None, max_stall=60, event_interval=0
            )
            now = time.monotonic()
            for step in range(120):
                kept.extend(Leaked(n) for n in range(2000))
                profiler._look(now + step)
            assert profiler.verdict.growing, profiler.verdict
        (leak,) = of_type(events, "leak")
        assert leak.level == "warning"
        assert leak.data["kind"] == "objects"
        assert leak.data["confidence"] >= 0.8
        assert "Python objects" in leak.data["explanation"]
        objects = {each["name"]: each["objects"] for each in leak.data["objects"]}
        (name,) = [name for name in objects if name.endswith("Leaked")]
        assert objects[name] >= 2000 * 25
        assert any(__file__ in each["place"] for each in leak.data["allocations"])
        report = json.loads(json.dumps(profiler.report()))
        assert report["verdict"] == "objects"
        assert report["grown"] == leak.data["objects"]
        assert report["stats"]["censuses"] == 2
        assert report["stats"]["windows"] == 1
        assert len(report["history"]) >= 30

    def test_a_census_that_would_take_long_is_not_taken_by_itself(self) -> None:
        profiler = MemoryProfiler(max_stall=0)
        assert profiler._affordable_census() is None
        assert profiler.stats().censuses_refused == 1
        assert profiler.census().objects > 1000


class TestMeasuring:
    def test_tells_what_a_block_changed(self) -> None:
        profiler = MemoryProfiler()
        gc.collect()
        with capture() as events:
            with profiler.measure("load") as measured:
                kept = [[n] for n in range(50_000)]
            with profiler.measure("load"):
                pass
        assert 50_000 <= measured.changes["blocks"] < 160_000  # a list, its items, and a number
        assert len(kept) == 50_000
        row = profiler.report()["measured"]["load"]
        assert row["calls"] == 2
        assert row["blocks"] >= 50_000
        event = of_type(events, "memory")[0]
        assert (event.operation, event.data["blocks_change"]) == ("load", measured.changes["blocks"])

    def test_lets_errors_through_and_bounds_names(self) -> None:
        profiler = MemoryProfiler()
        with pytest.raises(KeyError), profiler.measure("fails"):
            raise KeyError
        for n in range(NAMES + 10):
            with profiler.measure(f"name {n}"):
                pass
        rows = profiler.report()["measured"]
        assert rows["fails"]["calls"] == 1
        assert rows[OTHERS]["calls"] == 11
        assert len(rows) == NAMES + 1
        assert profiler.stats().names_refused == 11
        assert profiler.stats().blocks_measured == NAMES + 11

    def test_loses_no_call_of_any_thread(self) -> None:
        profiler = MemoryProfiler(interval=0.001)

        def work() -> None:
            for _ in range(100):
                with profiler.measure("work"):
                    pass
                profiler.take_snapshot("work")
                profiler.stats()

        with profiler:
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert profiler.report()["measured"]["work"]["calls"] == 400

    def test_of_allocations_on_request(self) -> None:
        profiler, kept, done = MemoryProfiler(), [], threading.Event()

        def allocate() -> None:
            while not done.wait(0.001):
                kept.append(bytearray(5000))

        thread = threading.Thread(target=allocate)
        thread.start()
        try:
            sites = profiler.trace_allocations(0.1)
        finally:
            done.set()
            thread.join()
        assert any(__file__ in site.place and site.size >= 5000 for site in sites)
        assert profiler.stats().windows == 1
