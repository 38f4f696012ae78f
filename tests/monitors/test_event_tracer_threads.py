"""EventTracer from many threads, finalisers and signal handlers at once: nothing lost, nothing twice."""

from __future__ import annotations

import gc
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamll.models import StreamllEvent
from streamll.monitors.event_tracer import EventTracer

pytestmark = pytest.mark.concurrent

THREADS, EACH = 8, 500


def in_threads(work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def run(n: int) -> None:
        together.wait(10)
        try:
            work(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), name=f"worker-{n}") for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def test_every_event_is_kept_once_in_each_threads_order(events: list[StreamllEvent]) -> None:
    tracer = EventTracer().start()

    def work(n: int) -> None:
        for i in range(EACH):
            tracer.trace_event("n", {"thread": n, "i": i})
            if i % 100 == 0:
                assert tracer.get_events("n")  # its own, at least

    in_threads(work)
    kept = tracer.get_events()
    assert len({event.event_id for event in kept}) == THREADS * EACH == len(events)
    for n in range(THREADS):
        mine = [event for event in kept if event.data["thread"] == n]
        assert [event.data["i"] for event in mine] == list(range(EACH))
        assert {event.thread_name for event in mine} == {f"worker-{n}"}
        assert len({event.thread_id for event in mine}) == 1
    stats = tracer.stats()
    assert (stats.events, stats.retained, stats.forgotten, stats.errors) == (len(kept), len(kept), 0, 0)


def test_the_bound_holds_and_what_gave_way_is_counted() -> None:
    tracer = EventTracer(retain=1000).start()

    def work(_: int) -> None:
        for _ in range(EACH):
            tracer.trace_event("n")

    in_threads(work)
    stats = tracer.stats()
    assert (stats.retained, stats.retained + stats.forgotten) == (1000, THREADS * EACH)


def test_a_span_begun_in_one_thread_is_ended_once_whoever_tries() -> None:
    tracer = EventTracer().start()
    ids = [tracer.start_span(str(n)) for n in range(EACH)]
    ended: Counter[str] = Counter()

    def work(_: int) -> None:
        ended.update(span_id for span_id in ids if tracer.end_span(span_id))

    in_threads(work)
    stats = tracer.stats()
    assert stats.spans == EACH == len(tracer.get_events("span"))
    assert (stats.unknown_spans, stats.open_spans) == ((THREADS - 1) * EACH, 0)


def test_changes_of_state_from_all_threads_while_others_trace_and_untrace() -> None:
    class Machine:
        state: Any = None

    tracer = EventTracer().start()
    shared = Machine()
    tracer.trace_state(shared, "state")

    def work(n: int) -> None:
        for i in range(EACH // 5):
            own = Machine()
            tracer.trace_state(own, "state")
            own.state = 0
            shared.state = (n, i)
            if i % 2:
                tracer.untrace(own)

    in_threads(work)
    assert Counter(type(event.data["new"]) for event in tracer.get_events()) == {
        int: THREADS * (EACH // 5),
        list: THREADS * (EACH // 5),
    }
    tracer.stop()
    assert "__setattr__" not in vars(Machine)


def test_a_finaliser_that_traces_in_the_midst_of_it() -> None:
    tracer = EventTracer().start()

    class Node:
        def __init__(self) -> None:
            self.me = self  # only the garbage collector frees it

        def __del__(self) -> None:
            tracer.trace_event("freed")
            tracer.get_events(limit=1)

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for n in range(300):
            Node()
            tracer.trace_event("made", {"n": n, "list": [[] for _ in range(5)]})
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert Counter(event.event_type for event in tracer.get_events()) == {"made": 300, "freed": 300}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")
def test_a_signal_handler_that_traces_in_the_midst_of_it() -> None:
    tracer = EventTracer().start()
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        tracer.trace_event("signal")
        tracer.stats()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        made = 0
        while (handled < 100 or made < 1000) and made < 2_000_000:
            tracer.trace_event("n")
            made += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    stats = tracer.stats()
    assert stats.events == made + handled == stats.retained + stats.forgotten
    assert stats.errors == 0
