"""Metrics in a process that does other things: threads, signals, finalisers, intervals, forks and ends."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streamll.consumers.file import FileConsumer
from streamll.models import StreamllEvent
from streamll.monitors.agent import agent
from streamll.monitors.metrics import Metrics, Registry
from streamll.monitors.turn import Turn
from tests.fixtures.interrupts import interrupted
from tests.fixtures.waiting import wait_until

LABELS = [{}, {"route": "/a"}, {"route": "/b", "method": "GET"}]


def total(events: list[StreamllEvent], name: str, what: str = "delta") -> float:
    """The sum of what the events say of one metric."""
    return float(sum(row[what] for event in events if event.operation == name for row in event.data["series"]))


@pytest.mark.concurrent
def test_many_threads_with_finalisers_and_signals_lose_nothing(events: list[StreamllEvent]) -> None:
    """While metrics are sent all the time, and garbage collections and signals come in between and record too."""
    registry = Registry()
    counts, level, took = registry.counter("counts"), registry.gauge("level"), registry.histogram("took")
    bound = counts.labels(route="bound")
    threads, rounds = 6, 1200
    finalised = handled = 0

    class Leaves:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            nonlocal finalised
            finalised += 1
            registry.counter("finalised").add(1, route="/a")
            counts.add(0, route="/finalised")

    def work(number: int) -> None:
        for n in range(rounds):
            counts.add(1, **LABELS[n % 3])
            bound.inc()
            level.add(1 if n % 2 else -1)
            took.record(n, **LABELS[n % 3])
            Leaves()

    def handler() -> None:
        nonlocal handled
        handled += 1
        registry.counter("handled").add()
        counts.add(0, route="/handled")
        if handled % 5 == 0:
            registry.emit()

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        with ThreadPoolExecutor(threads) as executor, interrupted(handler, 0.001):
            work_done = [executor.submit(work, number) for number in range(threads)]
            while not all(done.done() for done in work_done):
                registry.emit()
    finally:
        gc.set_threshold(*before)
    for done in work_done:
        done.result()
    gc.collect()
    registry.emit()
    everything = threads * rounds
    assert handled
    assert total(events, "counts") == 2 * everything
    assert total(events, "took") == everything
    assert total(events, "took", "sum") == threads * sum(range(rounds))
    assert total(events, "handled") == handled
    assert total(events, "finalised") == finalised == everything
    (value,) = [row["value"] for event in events if event.operation == "level" for row in event.data["series"]][-1:]
    assert value == 0
    assert "lost" not in registry.tally.read()


def test_are_sent_at_intervals_and_at_the_end(events: list[StreamllEvent]) -> None:
    registry = Registry()
    counts = registry.counter("counts")
    counts.add(3)
    metrics = Metrics(registry=registry, interval=0.1)
    states = [metrics.running]
    with metrics:
        states.append(metrics.running)
        assert metrics.start() is metrics
        assert wait_until(lambda: total(events, "counts") == 3)
        counts.add(4)
        assert wait_until(lambda: total(events, "counts") == 7)
        assert metrics.stats().events >= 2
        counts.add(5)
    assert [*states, metrics.running] == [False, True, False]
    assert total(events, "counts") == 12
    counts.add(1)
    metrics.stop()
    assert total(events, "counts") == 12
    with metrics:
        assert wait_until(lambda: total(events, "counts") == 13)
    assert {event.data["series"][0]["value"] for event in events if event.operation == "streamll.overhead"}
    assert agent.stats().seconds["metrics"] > 0


def test_two_tools_of_one_registry_send_each_change_once(events: list[StreamllEvent]) -> None:
    registry = Registry()
    counts = registry.counter("counts")
    with Metrics(registry=registry, interval=0.1), Metrics(registry=registry, interval=0.1):
        for n in range(3):
            counts.add(n + 1)
            expected = (n + 1) * (n + 2) / 2
            assert wait_until(lambda expected=expected: total(events, "counts") == expected)  # type: ignore[misc]
    assert total(events, "counts") == 6


def test_what_recording_costs_the_host_is_charged() -> None:
    registry = Registry()
    with Metrics(registry=registry):
        before = agent.stats().seconds.get("metrics", 0)
        for _ in range(512):
            registry.histogram("took").record(1)
        assert agent.stats().seconds["metrics"] > before


def test_a_turn_is_its_thread_s_alone_and_not_taken_twice() -> None:
    turn = Turn()
    assert turn.take()
    assert not turn.take()
    assert not turn.take(10)  # which would be for ever
    taken: list[bool] = []
    thread = threading.Thread(target=lambda: taken.extend([turn.take(), turn.take(0.001)]))
    thread.start()
    thread.join()
    turn.give()
    assert taken == [False, False]
    assert turn.take(0.001)


def run(program: str, folder: Path) -> list[StreamllEvent]:
    """The metric events that a program leaves in a file, which its code names `path`."""
    path, script = folder / "events.jsonl", folder / "program.py"
    script.write_text(f"path = {str(path)!r}\n{program}")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script)],
        env=environ,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with FileConsumer(str(path), follow=False) as consumer:
        return [received.event for received in consumer if received.event is not None]


@pytest.mark.e2e
def test_the_last_interval_is_not_lost_at_the_end_of_a_program_nor_at_a_shutdown(tmp_path: Path) -> None:
    program = """
import streamll, sys
from streamll.monitors.metrics import Metrics, counter
counter("requests").add(1, route="/x")
streamll.configure([f"file://{path}"])
counter("requests").add(2, route="/x")
streamll.flush()
counter("requests").add(4, route="/x")
streamll.shutdown()
counter("requests").add(8, route="/x")
streamll.configure([f"file://{path}"])
Metrics(interval=1000).start()
counter("requests").add(16, route="/x")
"""
    found = [event for event in run(program, tmp_path) if event.operation == "requests"]
    assert [row["delta"] for event in found for row in event.data["series"]] == [3, 4, 24]
    assert found[-1].data["series"][0]["total"] == 31


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.e2e
def test_a_forked_child_begins_from_zero(tmp_path: Path) -> None:
    program = """
import os, streamll
from streamll.monitors.metrics import Metrics, counter, gauge
streamll.configure([f"file://{path}"])
metrics = Metrics(interval=1000).start()
bound = counter("requests").labels(route="/x")
bound.add(100)
gauge("level").set(5)
child = os.fork()
if not child:
    bound.add(1)
    assert metrics.stats().recorded == 0
    streamll.shutdown()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
bound.add(10)
"""
    found = [event for event in run(program, tmp_path) if event.operation == "requests"]
    totals = sorted((row["delta"], row["total"]) for event in found for row in event.data["series"])
    assert totals == [(1, 1), (110, 110)]


@pytest.mark.e2e
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_of_multiprocessing_that_only_counts_says_so_at_its_end(method: str, tmp_path: Path) -> None:
    """It ends without the functions of atexit, and no sink of its own has been started until then."""
    program = f"""
import multiprocessing, streamll
def work(n):
    if {method!r} != "fork":
        streamll.configure([f"file://{{path}}"])
    streamll.counter("made").add(n, by=str(n))
if __name__ == "__main__":
    streamll.configure([f"file://{{path}}"])
    streamll.counter("made").add(100, by="parent")
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(n,)) for n in (1, 2)]
    for child in children: child.start()
    for child in children: child.join(60)
"""
    made = [row["delta"] for event in run(program, tmp_path) for row in event.data["series"]]
    assert sorted(made) == [1, 2, 100]


def test_importing_and_recording_start_no_thread_and_import_nothing_heavy() -> None:
    program = """
import sys, threading
before = set(sys.modules)
from streamll.monitors.metrics import counter
counter("requests").add(1, route="/x")
import json
print(json.dumps([threading.active_count(), sorted(set(sys.modules) - before)]))
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environ)
    threads, loaded = json.loads(done.stdout)
    assert threads == 1
    assert not {"asyncio", "hashlib", "concurrent.futures", "streamll.api", "socket", "tracemalloc"} & set(loaded)
