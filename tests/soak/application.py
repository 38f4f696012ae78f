"""An application that embeds streamll as a user would: threads and an event loop that emit at a steady pace.

What belongs here: the host, in a process of its own, and its reports. What does not: whoever starts it (host.py). It
imports as little as an application would, since its memory is what is measured.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from contextlib import ExitStack
from itertools import chain
from time import perf_counter_ns

import streamll
from streamll.api import sinks
from tests.chaos.watch import Watch, watching
from tests.soak.buckets import Buckets
from tests.soak.report import Order, Report, SinkReport, read_order, to_line

THREADS = 3
EVENTS_A_ROUND = 5
_TICK = 0.01
_BACKLOG = 1.0
"""Seconds of load that a source which was held up makes good at most: it is to be steady, not a flood."""
_LONG_EVERY, _LONG = 100, 10_000
"""One round in so many has an event of so many bytes, which is too long, and becomes a dead letter."""
_LOOK_EVERY = 0.02
PRIORITIES = ("", "", "", "critical", "debug")


class Source:
    """One that emits: each of its events has the next number, from 0 on.

    Attributes:
        name: The source's.
        emitted: How many events it has emitted; the next one's number.
        times: What single calls of `emit` took, in nanoseconds, since somebody took them away.
    """

    def __init__(self, name: str, rate: float) -> None:
        self.name = name
        self.emitted = 0
        self.times: list[int] = []
        self._rounds = 0
        self._rate = rate / EVENTS_A_ROUND
        self._began = time.monotonic()

    def due(self) -> int:
        """How many rounds are due now."""
        due = int((time.monotonic() - self._began) * self._rate) - self._rounds
        most = max(1, int(_BACKLOG * self._rate))
        if due > most:
            self._began += (due - most) / self._rate
        return min(due, most)

    def work(self) -> None:
        """One round: a span, a few events inside it, and a traced function that sometimes fails."""
        self._rounds += 1
        with streamll.span("round", source=self.name, n=self._next()).prioritize(PRIORITIES[self._rounds % 5]):
            self._say_three()
            with streamll.bind(source=self.name, n=self._next()):
                try:
                    step(self._rounds)
                except ArithmeticError:
                    pass

    async def work_async(self) -> None:
        """The same in an event loop."""
        self._rounds += 1
        async with streamll.span("round", source=self.name, n=self._next()):
            self._say_three()
            with streamll.bind(source=self.name, n=self._next()):
                await step_async()

    def _next(self) -> int:
        self.emitted += 1
        return self.emitted - 1

    def _say_three(self) -> None:
        for place in range(EVENTS_A_ROUND - 2):
            long = place == 0 and self._rounds % _LONG_EVERY == 0
            data = {"source": self.name, "n": self._next(), "text": "x" * (_LONG if long else 30 + 40 * place)}
            began = perf_counter_ns()
            streamll.emit("token", data, operation="generate", priority=PRIORITIES[(self._rounds + place) % 5])
            self.times.append(perf_counter_ns() - began)


@streamll.trace("step")
def step(number: int) -> int:
    """A bit of work, which fails now and then: its span says so."""
    if number % 50 == 0:
        raise ArithmeticError("now and then it fails")
    return sum(range(20))


@streamll.trace("step")
async def step_async() -> None:
    """A bit of work in an event loop."""
    await asyncio.sleep(0)


def run_thread(source: Source, end: threading.Event) -> None:
    """Emit in a thread."""
    while not end.wait(_TICK):
        for _ in range(source.due()):
            source.work()


async def run_task(source: Source, end: threading.Event) -> None:
    """Emit in a task."""
    while not end.is_set():
        await asyncio.sleep(_TICK)
        for _ in range(source.due()):
            await source.work_async()


async def run_tasks(tasks: list[Source], end: threading.Event) -> None:
    """Emit in tasks of one loop."""
    await asyncio.gather(*(run_task(source, end) for source in tasks))


def wait_for_end(over: threading.Event) -> None:
    """Wait until the standard input ends: whoever started this wants the end, or has come to one."""
    sys.stdin.buffer.read()
    over.set()


def report(sources: list[Source], wrong: list[str], last: bool = False) -> None:
    """Tell how things are."""
    times = Buckets()
    for source in sources:
        taken, source.times = source.times, []
        times.add(taken)
    numbers = {name: SinkReport.of(stats) for name, stats in streamll.stats().sinks.items()}
    emitted = {source.name: source.emitted for source in sources}
    line = to_line(Report(emitted, dict(times.counts), numbers, wrong, last))
    while line:
        line = line[os.write(1, line) :]


def run(order: Order) -> None:
    """Emit until the standard input ends, then deliver what is left."""
    streamll.configure(order.sinks, **order.options)
    share = order.rate / (THREADS + 2)
    threaded = [Source(f"thread-{place}", share) for place in range(THREADS)]
    tasks = [Source(f"task-{place}", share) for place in range(2)]
    sources = [*threaded, *tasks]
    end, over = threading.Event(), threading.Event()
    workers = [threading.Thread(target=run_thread, args=(source, end)) for source in threaded]
    workers.append(threading.Thread(target=lambda: asyncio.run(run_tasks(tasks, end))))
    threading.Thread(target=wait_for_end, args=(over,), daemon=True).start()
    with ExitStack() as watches:
        looking: list[Watch] = []
        for sink in sinks():
            looking.append(watches.enter_context(watching(_LOOK_EVERY)))
            looking[-1].look_at(sink)
        for worker in workers:
            worker.start()
        while not over.wait(order.every):
            report(sources, [])
        end.set()
        for worker in workers:
            worker.join()
        flushed = streamll.flush(order.patience)
        streamll.shutdown(order.patience)
        wrong = list(chain.from_iterable(watch.look_at(None) for watch in looking))
    wrong += [] if flushed else [f"flush({order.patience}) failed, though all was well"]
    report(sources, wrong, last=True)


def main() -> None:
    """Run in a process of its own: the first line of the standard input is the order."""
    # What goes wrong with the brokers is told by the numbers; the clients say it at length.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.getLogger("streamll").setLevel(logging.CRITICAL)
    run(read_order(sys.stdin.buffer.readline()))


if __name__ == "__main__":
    main()
