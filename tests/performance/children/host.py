"""A program that emits: what that costs it, and what it costs those beside it.

What belongs here: laps of emits, spans and of what runs beside them, in one process with one sink at most. What does not:
other libraries (peers.py), or figures of the whole process (process.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter, perf_counter_ns, process_time
from typing import Any

import streamll
from tests.fixtures.waiting import wait_until
from tests.performance.calls import BLOCK, EVENT, blocks, clock_cost, described, each, nothing, time_calls
from tests.performance.child import Answer, Work, serve

ROOM = {"buffer_size": 500_000, "buffer_bytes": 1 << 30}
"""Room for all that a lap emits."""

NEVER_DUE = {"flush_interval": 3600.0, "batch_size": 100_000, "batch_bytes": 1 << 30}
"""A batch that is not full within a lap, so that the worker sleeps."""

SINKS: Mapping[str, Mapping[str, Any]] = {
    "idle": {**ROOM, **NEVER_DUE},
    "full": ROOM,
    "dead": {**ROOM, "retry_base": 0.01},
    "dead_full": {"retry_base": 0.01},
    "frozen": ROOM,
}
"""How the sink is set up so that its worker is in that state; whatever is not named is as it is by default."""


def emit() -> None:
    streamll.emit("token", EVENT, operation="generate")


def span() -> None:
    with streamll.span("retrieve", k=5, cached=False):
        pass


CALLS = {"emit": emit, "span": span}


def only_sink() -> Any:
    (sink,) = streamll.stats().sinks.values()
    return sink


class Host:
    """Such a program.

    Args:
        url: Where its events go; empty: nowhere, and nothing is configured.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def begin(self, state: str) -> Answer:
        """Configure it anew, and wait until its worker is about to be in that state: `freeze` the server now."""
        streamll.configure(sinks=[self._url], **SINKS[state])
        emit()
        if state.startswith("dead"):
            assert wait_until(lambda: only_sink().circuit == "open")
        else:
            assert streamll.flush(30)
        if state == "dead_full":
            for _ in range(only_sink().buffered, 12_000):
                emit()
            assert only_sink().dropped["overflow"]
        return {}

    def measure(self, what: str, n: int, frozen: bool = False) -> Answer:
        """Time so many calls inside of a span."""
        if frozen:
            for _ in range(1000):
                emit()
            assert wait_until(lambda: only_sink().in_flight)
        with streamll.span("request"):
            return time_calls(CALLS[what], n)

    def beside(self, n: int) -> Answer:
        """Time emits inside of a span beside what else a program could do meanwhile: see `in_turn`."""
        with streamll.span("request"):
            return in_turn(n)

    def threads(self, count: int, n: int) -> Answer:
        """Time emits of several threads at once, so many in all."""
        off = clock_cost(2000)
        together = threading.Barrier(count + 1)
        times: list[list[int]] = []

        def run() -> None:
            with streamll.span("request"):
                together.wait()
                times.append(each(emit, n // count))

        running = [threading.Thread(target=run) for _ in range(count)]
        for thread in running:
            thread.start()
        together.wait()
        start, cpu = perf_counter(), process_time()
        for thread in running:
            thread.join()
        seconds, used = perf_counter() - start, process_time() - cpu
        done = n // count * count
        together_all = described([time for own in times for time in own], off)
        return {**together_all, "rate": done / seconds, "cpu": used / done * 1e6}

    def end(self, arrives: bool) -> Answer:
        """Have everything delivered, unless it cannot be, and return whether it was, and what balances."""
        delivered = streamll.flush(60) if arrives else False
        sink = only_sink()
        lost = sum(sink.dropped.values()) + sum(sink.refused.values())
        streamll.shutdown(10 if arrives else 0)
        return {"flushed": delivered, "accepted": sink.accepted, "lost": lost, "balanced": only_sink().balanced}

    def beside_ticker(self, rate: int, seconds: float) -> Answer:
        """Emit at a steady pace from an asyncio program whose ticker notes how much later than due it is woken."""
        late: list[float] = []

        async def tick() -> None:
            due = perf_counter()
            end = due + seconds
            while due < end:
                due += 0.001
                await asyncio.sleep(max(0.0, due - perf_counter()))
                now = perf_counter()
                late.append((now - due) * 1e9)
                due = max(due, now - 0.001)  # the ticks that a stall swallowed are not late once more

        async def produce() -> int:
            return await at_pace(emit, rate, seconds)

        async def both() -> int:
            _, emitted = await asyncio.gather(tick(), produce())
            return emitted

        emitted = asyncio.run(both())
        return {**described(late), "emitted": emitted, "ticks": len(late)}

    def beside_worker(self, rate: int, seconds: float) -> Answer:
        """Emit at a steady pace beside a thread that only computes, and note what it gets done and how it is stalled."""
        over = threading.Event()
        gaps: list[int] = []

        def compute() -> None:
            clock, last = perf_counter_ns, perf_counter_ns()
            while not over.is_set():
                total = 0
                for i in range(1000):
                    total += i
                now = clock()
                gaps.append(now - last)
                last = now

        computing = threading.Thread(target=compute)
        computing.start()
        emitted = asyncio.run(at_pace(emit, rate, seconds))
        over.set()
        computing.join()
        return {**described(gaps), "done": len(gaps) / seconds, "emitted": emitted}


def in_turn(n: int) -> Answer:
    """Time an emit, one bare append, and as many appends as last as long as an emit, in turn in one loop."""
    queue: deque[object] = deque(maxlen=1000)
    append, clock = queue.append, perf_counter_ns
    emits, singles, stretches = [0] * n, [0] * n, [0] * n

    def appends() -> None:
        for _ in range(BLOCK):
            append(EVENT)

    off, empty = clock_cost(2000), median(blocks(nothing, 20_000)) / BLOCK
    an_emit = median(blocks(emit, 20_000)) / BLOCK - empty
    an_append = median(each(appends, 200)) / BLOCK
    as_long = max(1, round(an_emit / an_append))
    for i in range(n):
        start = clock()
        emit()
        emits[i] = clock() - start
        start = clock()
        append(EVENT)
        singles[i] = clock() - start
        start = clock()
        for _ in range(as_long):
            append(EVENT)
        stretches[i] = clock() - start
    timed = {"emit": emits, "append": singles, "stretch": stretches}
    return {"as_long": as_long, **{name: described(times, off) for name, times in timed.items()}}


async def at_pace(call: Callable[[], None], rate: int, seconds: float) -> int:
    """Make so many calls a second: each time it is woken, those that are due."""
    start, made = perf_counter(), 0
    while (now := perf_counter() - start) < seconds:
        for _ in range(int(now * rate) - made):
            call()
            made += 1
        await asyncio.sleep(0.001)
    return made


def make(url: str = "") -> Mapping[str, Work]:
    host = Host(url)
    works = (host.begin, host.measure, host.beside, host.threads, host.end, host.beside_ticker, host.beside_worker)
    return {work.__name__: work for work in works}


if __name__ == "__main__":
    serve(make)
