"""Sending events through a sink as a user does, with a clock before and after; and the event that everybody sends.

What belongs here: what the curve and the limit share, whatever the broker. What does not: how others send
(sending_redis.py, sending_rabbitmq.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

import streamll
from streamll.models import Record, StreamllEvent
from streamll.pipeline import Pipeline
from tests.performance.calls import EVENT

EVENT_TYPE, OPERATION = "token", "generate"

PATIENCE = 60.0
"""Seconds until something that does not arrive counts as lost."""


@dataclass
class Sent:
    """What sending so many events took.

    Attributes:
        n: How many.
        seconds: From before the first until all were confirmed.
        cpu: Seconds of this process's processor time meanwhile, all threads together.
    """

    n: int
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.n / self.seconds

    @property
    def cpu_each(self) -> float:
        """Microseconds of processor time an event."""
        return self.cpu / self.n * 1e6


@contextmanager
def clocked(n: int) -> Iterator[Sent]:
    """Time what is done inside, which sends so many events."""
    sent = Sent(n)
    cpu, start = process_time(), perf_counter()
    yield sent
    sent.seconds, sent.cpu = perf_counter() - start, process_time() - cpu


def record() -> Record:
    """The event as a sink has it: its bytes are what everybody else sends too."""
    return Pipeline().encode(StreamllEvent(event_type=EVENT_TYPE, operation=OPERATION, data=EVENT))


def with_query(url: str, **options: object) -> str:
    """Add options to a URL."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{query}"


def through_sink(url: str, n: int, **options: Any) -> Sent:
    """Emit so many events into a sink that is connected already, and wait until all are confirmed.

    The sink waits for room where others would drop, so that every event is one that was paid for.

    Args:
        url: The sink's.
        n: How many events.
        options: What the sink is told besides.

    Raises:
        RuntimeError: Not all of them were delivered.
    """
    given = {"buffer_size": 100_000, "buffer_overflow_strategy": "block", "block_timeout": PATIENCE, **options}
    streamll.configure(sinks=[url], **given)
    try:
        emit = streamll.emit
        emit("warm_up")
        streamll.flush(PATIENCE)
        with clocked(n) as sent:
            for _ in range(n):
                emit(EVENT_TYPE, operation=OPERATION, data=EVENT)
            flushed = streamll.flush(PATIENCE)
        (stats,) = streamll.stats().sinks.values()
    finally:
        streamll.shutdown(PATIENCE)
    if not flushed or stats.delivered != n + 1 or not stats.balanced:
        raise RuntimeError(f"{stats.delivered} of {n} events and a warm-up were delivered: {stats}")
    return sent
