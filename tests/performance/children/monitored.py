"""A program with all tools on, seen from outside: the memory it has, and what it comes to in a long run.

What belongs here: figures of a whole process with tools. What does not: the same of the sinks alone (process.py), or what
tools add to a program's time (overhead.py).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from time import perf_counter, sleep
from typing import Any

import streamll
from streamll.monitors.agent import agent
from tests.performance.calls import EVENT
from tests.performance.child import Answer, Work, serve
from tests.performance.children.process import peak_rss, processor_seconds, rss
from tests.performance.watching import begin

THREADS = 4
"""That work while the process grows, or does not."""

PERIOD = 0.02
"""Seconds from one piece of a thread's work to its next."""


def work(number: int) -> None:
    """A piece of work as programs have it: spans, events, and objects that come and go."""
    with streamll.span("request", number=number):
        kept: list[dict[str, Any]] = []
        for index in range(5):
            kept.append({"index": index, "text": "x" * (number % 200)})
            streamll.emit("token", EVENT, operation="generate")
        with streamll.span("compute"):
            sum(len(str(one)) for one in kept)


class Program:
    """Such a program.

    Args:
        way: How it is watched, of watching.WAYS.
        url: Where its events go.
    """

    def __init__(self, way: str, url: str) -> None:
        self._way, self._url = way, url

    def memory(self, seconds: float) -> Answer:
        """Work for so long, and return the process's MB then, and at its fullest."""
        end = begin(self._way, self._url)
        self._work(seconds)
        after = rss()
        end()
        return {"after": after, "peak": peak_rss()}

    def grow(self, seconds: float) -> Answer:
        """Work steadily from several threads; return MB and allocated blocks after a third of the time and at its end,
        and the share of a processor that it took and that monitoring says it took."""
        end = begin(self._way, self._url)
        self._work(seconds / 3)
        early, early_blocks = rss(), sys.getallocatedblocks()
        start, cpu, spent = perf_counter(), processor_seconds(), _spent()
        pieces = self._work(seconds * 2 / 3)
        lasted = perf_counter() - start
        used, charged = processor_seconds() - cpu, _spent() - spent
        assert streamll.flush(30)
        late, late_blocks = rss(), sys.getallocatedblocks()
        (sink,) = streamll.stats().sinks.values()
        if not sink.balanced or any(sink.dropped.values()) or any(sink.refused.values()):
            raise RuntimeError(f"not all was delivered: {sink}")
        end()
        return {
            "early": early,
            "late": late,
            "early_blocks": early_blocks,
            "late_blocks": late_blocks,
            "pieces": pieces,
            "cpu": used / lasted * 100,
            "charged": charged / lasted * 100,
        }

    def _work(self, seconds: float) -> int:
        """Have all threads work for so long; returns how many pieces they did."""
        until = perf_counter() + seconds
        done = []

        def run() -> None:
            due, pieces = perf_counter(), 0
            while due < until:
                work(pieces)
                pieces += 1
                due += PERIOD
                sleep(max(0.0, due - perf_counter()))
            done.append(pieces)

        threads = [threading.Thread(target=run) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done)


def _spent() -> float:
    return sum(agent.stats().seconds.values())


def make(way: str, url: str = "memory://") -> Mapping[str, Work]:
    program = Program(way, url)
    return {"memory": program.memory, "grow": program.grow}


if __name__ == "__main__":
    serve(make)
