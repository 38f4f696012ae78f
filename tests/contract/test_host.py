"""The places that an application emits from: signal handlers, finalisers, logging handlers, forked children, its end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamll.codec import decode
from streamll.models import StreamllEvent
from streamll.sinks.base import Sink
from tests.contract.conftest import QUICK, BalanceWatch, assert_told, emit, ids_at, make_event, marked
from tests.contract.destinations import Destination, Outage
from tests.fixtures.interrupts import interrupted
from tests.fixtures.waiting import PATIENCE, wait_until

Watch = Callable[[Sink], BalanceWatch]

ROOT = Path(__file__).resolve().parents[2]


def test_emit_from_a_signal_handler(destination: Destination, watch: Watch) -> None:
    sink = destination.sink(batch_size=20, flush_interval=0.001)
    watch(sink)
    ids: list[str] = []
    interruptions = 0

    def from_handler() -> None:
        nonlocal interruptions
        interruptions += 1
        event = make_event()
        ids.append(event.event_id)
        assert sink.handle_event(event)

    with interrupted(from_handler, every=0.0007):
        deadline = time.monotonic() + PATIENCE
        while interruptions < 100 and time.monotonic() < deadline:
            ids += emit(sink, 10)
            sink.stats()
    assert interruptions >= 100
    assert sink.flush(PATIENCE)
    assert Counter(ids_at(destination)) == Counter(ids)
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.dropped, stats.refused) == (len(ids), {}, {})


def test_emit_from_a_finaliser_during_garbage_collection(destination: Destination, watch: Watch) -> None:
    sink = destination.sink(batch_size=20, flush_interval=0.001)
    watch(sink)
    ids: list[str] = []
    cut_off: list[str] = []

    class Emits:
        def __init__(self) -> None:
            self.itself = self  # a cycle, which only the garbage collection finds

        def __del__(self) -> None:
            event = make_event()
            # A collection may happen on the worker's thread too, where nothing becomes an event.
            (ids if sink.handle_event(event) else cut_off).append(event.event_id)

    threshold = gc.get_threshold()
    gc.set_threshold(3)  # a collection at nearly every allocation
    try:
        for _ in range(100):
            Emits()
            ids += emit(sink, 3)
            sink.stats()
    finally:
        gc.set_threshold(*threshold)

    def all_are_gone() -> bool:
        gc.collect()  # it does nothing while another thread is at it
        return len(ids) + len(cut_off) == 400

    assert wait_until(all_are_gone)
    assert sink.flush(PATIENCE)
    assert len(cut_off) == sink.pipeline.stats().muted
    assert Counter(ids_at(destination)) == Counter(ids)
    assert sink.stop(PATIENCE).delivered == len(ids)


class Forward(logging.Handler):
    """Sends every record there is to a sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.NOTSET)
        self.sink = sink
        self.offered: list[str] = []
        self.depth = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.depth += 1
        assert self.depth < 5
        self.offered.append(f"{record.threadName} {record.name}")
        self.sink.handle_event(make_event(logger=record.name, text=record.getMessage()))
        self.depth -= 1


def test_a_logging_handler_may_forward_all_there_is(outage: Outage) -> None:
    sink = outage.destination.sink(**QUICK, name="logs")
    root = logging.getLogger()
    handler = Forward(sink)
    levels = {logger: logger.level for logger in map(logging.getLogger, ("", "streamll", "redis", "pika"))}
    for logger in levels:
        logger.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        for n in range(20):
            logging.getLogger("app").info("working on %s", n)
        assert sink.flush(PATIENCE)
        outage.begin()
        logging.getLogger("app").error("it went away")
        assert wait_until(lambda: sink.stats().failed_batches > 2)
        outage.end()
        assert wait_until(sink.event_queue.empty)
        stats = sink.stop(PATIENCE)
    finally:
        root.removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)
    by_worker = [who for who in handler.offered if who.startswith("streamll-logs ")]
    assert by_worker  # what the client library and we ourselves said of it reached the handler
    assert stats.offered == len(handler.offered) - len(by_worker)  # and went no further
    assert stats.offered >= 21
    assert stats.balanced


def in_child(work: Callable[[], bool]) -> int:
    """Fork, and return the exit status of the child: 0 when the work came out true."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


# Forking a process that has threads is what this is about; Python 3.12 warns of it.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("held", ["idle", "buffered"])
def test_a_forked_child_works_and_the_parent_is_undisturbed(destination: Destination, watch: Watch, held: str) -> None:
    sink = destination.sink(flush_interval=0.01 if held == "idle" else 3600, buffer_size=1000)
    before = emit(sink, 20)
    if held == "idle":
        assert sink.flush(PATIENCE)
    parent = sink.producer
    in_the_child = [make_event(n) for n in range(10)]

    def child() -> bool:
        stats = sink.stats()
        inherited = (stats.offered, stats.phase, sink.producer == parent)
        accepted = [sink.handle_event(event) for event in in_the_child]
        there = sink.stop(PATIENCE)
        return inherited == (0, "new", False) and all(accepted) and there.delivered == 10 and there.balanced

    assert in_child(child) == 0
    after = emit(sink, 20)
    watch(sink)
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, sink.producer) == (40, parent)
    there = destination.stored()
    if destination.shows_numbers:
        assert [s.event_id for s in there if s.producer == parent] == before + after
    from_child = [] if destination.name == "memory" else [event.event_id for event in in_the_child]
    assert Counter(s.event_id for s in there) == Counter([*before, *after, *from_child])
    assert_told(destination, parent, last=40)
    if destination.shows_numbers and destination.name != "memory":
        (other,) = {s.producer for s in destination.everything()} - {parent}
        assert_told(destination, other, last=10)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.concurrent
def test_forks_while_threads_emit(destination: Destination) -> None:
    sink = destination.sink(flush_interval=0.001, batch_size=10, buffer_size=1_000_000)
    ended = threading.Event()
    ids: list[str] = []

    def work() -> None:
        while len(ids) < 5000 and not ended.wait(0.001):
            ids.extend(emit(sink, 1))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        statuses = [in_child(lambda: emit(sink, 3) != [] and sink.stop(PATIENCE).delivered == 3) for _ in range(5)]
    finally:
        ended.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert statuses == [0] * 5
    producer = sink.producer
    assert sink.stop(PATIENCE).delivered == len(ids)
    there = [s.event_id for s in destination.stored() if s.producer == producer or not destination.shows_numbers]
    assert set(ids) <= set(there)
    assert len(there) == len(ids) + (0 if destination.shows_numbers else 15)
    assert_told(destination, producer, last=len(ids))


SCRIPT = """
import sys
from streamll.models import StreamllEvent
from streamll.registry import make_sink

def work(url):
    sink = make_sink(url, flush_interval=3600, exit_timeout=30)
    for n in range(100):
        sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))

work(sys.argv[1])  # and nobody holds the sink any more
"""


@pytest.mark.e2e
@pytest.mark.parametrize("destination", marked(("file", "redis", "rabbitmq")), indirect=True)
def test_a_program_that_ends_delivers_what_it_emitted(destination: Destination) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, destination.url()], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [decode(stored.payload).data["n"] for stored in destination.stored()] == list(range(100))
    (producer,) = {stored.producer for stored in destination.everything()}
    assert_told(destination, producer, last=100)


def test_a_subclass_of_the_event_is_one_too(destination: Destination) -> None:
    class Special(StreamllEvent, kw_only=True):
        pass

    sink = destination.sink()
    event: Any = Special(event_type="test", data={"id": "special"}, event_id="special")
    assert sink.handle_event(event)
    assert sink.stop(PATIENCE).delivered == 1
    assert ids_at(destination) == ["special"]
