"""A program with streamll seen from outside: its memory, what it uses while idle, and the jobs that budgets are set for.

What belongs here: figures of a whole process, each of which wants a fresh one. What does not: the cost of single calls
(host.py), though the latency budget is met or missed by them.
"""

from __future__ import annotations

import gc
import os
import resource
import threading
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time, sleep
from typing import Any

import streamll
from tests.fixtures.waiting import wait_until
from tests.performance.calls import EVENT, clock_cost, described
from tests.performance.child import Answer, Work, serve

MB = 1e6
NOT_LOST = {"buffer_overflow_strategy": "block", "block_timeout": 60.0}


def emit() -> None:
    streamll.emit("token", EVENT, operation="generate")


def only_sink() -> Any:
    (sink,) = streamll.stats().sinks.values()
    return sink


def rss() -> float:
    """The MB of memory that the process has now, without what waits to be collected."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    psutil = import_module("psutil")  # which not every environment has
    return float(psutil.Process().memory_info().rss) / MB


def peak_rss() -> float:
    """The MB of memory that the process had at its fullest."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux tells getrusage what the process that started this one had at its fullest
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # bytes on macOS


def processor_seconds() -> float:
    """The processor time that all threads have used. Not `process_time`: on Linux that advances in ticks of up to 4 ms
    while the profiler has the timer of processor time, and so is wrong by a percent or two of a block that is watched."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Program:
    """Such a program.

    Args:
        url: Where its events go.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def _configure(self, **options: Any) -> None:
        streamll.configure(sinks=[self._url], **options)
        emit()
        assert streamll.flush(30)

    def _deaf(self, **options: Any) -> None:
        """Configure it where nothing is delivered: the broker is dead, and that is known."""
        streamll.configure(sinks=[self._url], retry_base=0.01, **options)
        emit()
        assert wait_until(lambda: only_sink().circuit == "open")

    def _finish(self, accepted: int) -> None:
        """See that everything arrived: so many events, and the first of `_configure`."""
        sink = only_sink()
        if not (sink.balanced and sink.delivered == sink.accepted == accepted + 1):
            raise RuntimeError(f"{accepted + 1} events were emitted: {sink}")

    def memory(self, events: int) -> Answer:
        """Hold so many events, and return the process's MB before and then."""
        self._deaf(buffer_size=max(10_000, 2 * events), buffer_bytes=1 << 30)
        before = rss()
        for _ in range(events):
            emit()
        after, sink = rss(), only_sink()
        if sink.buffered + sink.in_flight != events + 1:
            raise RuntimeError(f"{events + 1} events were to be held: {sink}")
        streamll.shutdown(0)
        return {"before": before, "after": after, "held": sink.bytes_held / MB}

    def fullest(self, events: int) -> Answer:
        """Emit more than the default buffer holds while nothing is delivered, and return the process's MB at its peak."""
        self._deaf()
        for _ in range(events):
            emit()
        balanced = only_sink().balanced
        streamll.shutdown(0)
        return {"peak": peak_rss(), "balanced": balanced}

    def generate(self, events: int) -> Answer:
        """Emit so many events while nothing is sent."""
        self._deaf(buffer_size=max(2, 2 * events), buffer_bytes=1 << 30)
        start = perf_counter()
        for _ in range(events):
            emit()
        seconds, sink = perf_counter() - start, only_sink()
        if sink.buffered + sink.in_flight != events + 1:
            raise RuntimeError(f"{events + 1} events were to be held: {sink}")
        streamll.shutdown(0)
        return {"rate": events / seconds}

    def burst(self, events: int, threads: int = 0) -> Answer:
        """Emit so many events (each thread), and flush them: seconds until all are confirmed, and of the flush alone."""
        self._configure()
        start = perf_counter()

        def run() -> None:
            for _ in range(events):
                emit()

        running = [threading.Thread(target=run) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        if not running:
            run()
        emitted = perf_counter()
        assert streamll.flush(60)
        end = perf_counter()
        self._finish(events * max(1, threads))
        streamll.shutdown(30)
        return {"seconds": end - start, "flush": end - emitted}

    def sustain(self, rate: int, seconds: float) -> Answer:
        """Emit so many events a second, each when it is due, and flush the rest: what was confirmed, and how late."""
        self._configure()
        events = int(rate * seconds)
        times = [0] * events
        clock, off = perf_counter_ns, clock_cost(2000)
        start, cpu = perf_counter(), process_time()
        for i in range(events):
            wait = start + i / rate - perf_counter()
            if wait > 0:
                sleep(wait)
            began = clock()
            emit()
            times[i] = clock() - began
        assert streamll.flush(60)
        elapsed, used = perf_counter() - start, process_time() - cpu
        self._finish(events)
        latency = only_sink().latency
        streamll.shutdown(30)
        confirmed = {"p50": latency.p50 * 1e3, "p95": latency.p95 * 1e3, "max": latency.max * 1e3}
        emits = described(times, off, 1e6)
        return {
            "rate": events / elapsed,
            "cpu": used / elapsed * 100,
            "emit": emits,
            "confirmed": confirmed,
            "peak": peak_rss(),
        }

    def grow(self, seconds: float) -> Answer:
        """Emit as fast as it is taken, and return the process's MB after a fifth of the time and at its end."""
        self._configure(**NOT_LOST)
        accepted, early, start = 0, 0.0, perf_counter()
        while (elapsed := perf_counter() - start) < seconds:
            if not early and elapsed > seconds / 5:
                assert streamll.flush(60)
                early = rss()
            for _ in range(1000):
                emit()
            accepted += 1000
        assert streamll.flush(60)
        late = rss()
        self._finish(accepted)
        streamll.shutdown(30)
        return {"early": early, "late": late, "events": accepted}

    def idle(self, seconds: float) -> Answer:
        """Be connected and do nothing, and return the percentage of a processor that this takes."""
        self._configure()
        sleep(0.5)
        start, cpu = perf_counter(), process_time()
        sleep(seconds)
        used = (process_time() - cpu) / (perf_counter() - start) * 100
        self._finish(0)
        streamll.shutdown(30)
        return {"percent": used}


def make(url: str) -> Mapping[str, Work]:
    program = Program(url)
    works = (
        program.memory,
        program.fullest,
        program.generate,
        program.burst,
        program.sustain,
        program.grow,
        program.idle,
    )
    return {work.__name__: work for work in works}


if __name__ == "__main__":
    serve(make)
