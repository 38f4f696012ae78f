"""Sampled events on their way to real sinks: each way that they may take, and what is counted."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

import pytest

from streamll.api import Route, configure, emit, emit_event, shutdown, stats
from streamll.context import execution
from streamll.errors import BufferFullError
from streamll.hub import hub
from streamll.models import Record, StreamllEvent
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline, PipelineStats
from streamll.propagation import inject
from streamll.sampling import ALERT, FAILED, SLOW, TAIL
from streamll.sinks.memory import MemorySink
from streamll.spans import span


def routed(
    sinks: int = 1, before_send: Any = (), sink: MemorySink | None = None, **options: Any
) -> tuple[Route, list[MemorySink]]:
    given_options = {"sample_rate": 0.0, "tail_events": 100, **options}
    made = [sink] if sink is not None else [MemorySink() for _ in range(sinks)]
    route = Route(Pipeline(PipelineOptions(**given_options), before_send), made)
    for each in made:
        each.pipeline = route.pipeline  # as `configure` does
    return route, made


def arrived(sink: MemorySink) -> list[StreamllEvent]:
    assert sink.flush()
    return list(sink.events)


def seen(sink: MemorySink) -> list[tuple[str, str]]:
    return [(event.event_type, event.operation) for event in arrived(sink)]


Shape = Callable[..., tuple[Route, list[MemorySink]]]


@pytest.fixture(params=["straight", "two sinks", "before_send"])
def shape(request: pytest.FixtureRequest) -> Shape:
    """Each way that an event may take to the sinks."""

    def make(**options: Any) -> tuple[Route, list[MemorySink]]:
        if request.param == "two sinks":
            return routed(2, **options)
        return routed(before_send=[lambda event: event] if request.param == "before_send" else (), **options)

    return make


class TestRoute:
    def test_a_failure_sends_what_was_before_it_in_order_and_once(self, shape: Shape) -> None:
        route, sinks = shape()
        with hub.instead(route.dispatch, route.take):
            for n in range(5):
                with span(f"before {n}", n=n, password="p"):
                    pass
            assert seen(sinks[0]) == []
            with pytest.raises(ValueError, match="no"), execution(), span("outer"), span("inner"):
                raise ValueError("no")
            with span("after"):
                pass
            emit("bad", operation="again", level="error")
        for sink in sinks:
            # The span around the failed one fails, too: it opens an empty window.
            assert seen(sink) == [
                *[("span", f"before {n}") for n in range(5)],
                (TAIL, ""),
                ("span", "inner"),
                ("span", "outer"),
                ("span", "after"),
                (TAIL, ""),
                ("bad", "again"),
            ]
            word, failed = arrived(sink)[5], arrived(sink)[6]
            assert word.data["trigger"] == failed.event_id
            assert (word.data["reason"], word.data["events"], word.data["seconds"] >= 0) == (FAILED, 5, True)
            assert word.execution_id == failed.execution_id
            assert arrived(sink)[0].data["password"] == "[redacted]"
            assert sink.stats().balanced
            assert sink.stats().offered == len(arrived(sink))
        stats = route.pipeline.stats()
        assert (stats.sampled_out, stats.tail_captured, stats.tail_expired, stats.tail_held) == (6, 6, 0, 0)
        assert stats.redacted == 5

    def test_a_slow_span_and_an_alert_send_it_too(self, shape: Shape) -> None:
        route, sinks = shape(tail_slow=1e-9)
        with hub.instead(route.dispatch, route.take):
            emit("a")
            with span("slow"):
                pass
            emit("b")
            emit("memory_alert")
        assert [event.data["reason"] for event in arrived(sinks[0]) if event.event_type == TAIL] == [SLOW, ALERT]

    def test_bounds_and_numbers(self, shape: Shape) -> None:
        route, sinks = shape(tail_events=10)
        with hub.instead(route.dispatch, route.take):
            for n in range(500):
                emit("n", {"n": n})
            stats = route.pipeline.stats()
            assert stats.sampled_out == stats.tail_expired + stats.tail_held == 500
            assert stats.tail_held == 10
            emit("bad", level="error")
        assert [event.data["n"] for event in arrived(sinks[0]) if event.event_type == "n"] == list(range(490, 500))
        route.pipeline.refresh_process()
        assert route.pipeline.stats() == PipelineStats()

    def test_without_a_window_what_is_left_out_is_gone(self, shape: Shape) -> None:
        route, sinks = shape(tail_events=0)
        with hub.instead(route.dispatch, route.take):
            assert not emit("a")
            assert emit("bad", level="error")
            assert emit("metric", {"value": 1})
            assert not emit_event(StreamllEvent("b"))
        assert seen(sinks[0]) == [("bad", ""), ("metric", "")]
        stats = route.pipeline.stats()
        assert (stats.sampled_out, stats.tail_captured, stats.tail_expired, stats.tail_held) == (2, 0, 0, 0)

    def test_events_from_elsewhere_and_ours_share_one_window(self, shape: Shape) -> None:
        route, sinks = shape()
        with hub.instead(route.dispatch, route.take):
            emit("a")
            emit_event(StreamllEvent("b"))
            emit("c")
            emit_event(StreamllEvent("bad", level="error"))
        assert [kind for kind, _ in seen(sinks[0])] == ["a", "b", "c", TAIL, "bad"]

    def test_what_a_sink_refuses_stays_and_hurts_nobody(self) -> None:
        route, (sink,) = routed()
        with hub.instead(route.dispatch, route.take):
            for _ in range(3):
                emit("a")
            sink.stop()
            assert not emit("bad", level="error")
        assert route.pipeline.stats().internal_errors == 0
        assert route.pipeline.stats().tail_held == 2

    def test_all_is_kept_on_the_shortest_way_unless_something_is_to_be_left_out(self) -> None:
        pipeline = Pipeline(PipelineOptions(tail_events=100, tail_slow=1))
        assert pipeline.sampling is None
        assert Route(pipeline, [MemorySink()]).take.__name__ == "take"

    def test_the_oldest_kept_goes_on_as_encoded(self) -> None:
        """Nothing of the application is in the window: the event is bytes by then."""
        route, (sink,) = routed()
        data = {"list": [1]}
        with hub.instead(route.dispatch, route.take):
            emit("a", data)
            data["list"].append(2)
            emit("bad", level="error")
        assert arrived(sink)[0].data == {"list": [1]}


class TestFromAllSides:
    def test_threads_lose_nothing_and_send_nothing_twice(self) -> None:
        threads, each = 6, 300
        route, (sink,) = routed(sample_rate=0.3, tail_events=50)

        def work(n: int) -> None:
            for i in range(each):
                with execution():
                    emit("n", {"n": n, "i": i})
                    if i % 50 == 49:
                        emit("bad", {"n": n, "i": i}, level="error")

        with hub.instead(route.dispatch, route.take):
            workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(30)
        events = arrived(sink)
        stats = route.pipeline.stats()
        plain = [(event.data["n"], event.data["i"]) for event in events if event.event_type == "n"]
        assert len(set(plain)) == len(plain)
        assert stats.sampled_out == stats.tail_captured + stats.tail_expired + stats.tail_held
        assert len(plain) == threads * each - stats.sampled_out + stats.tail_captured
        assert sum(event.event_type == "bad" for event in events) == threads * (each // 50)
        assert sum(event.data["events"] for event in events if event.event_type == TAIL) == stats.tail_captured
        assert stats.tail_captured > 0
        assert stats.tail_held <= 50
        assert sink.stats().balanced
        assert sink.stats().offered == len(events)

    def test_a_finaliser_in_the_midst_of_it_has_events_too(self) -> None:
        route, (sink,) = routed(tail_events=10_000)

        class Node:
            def __init__(self) -> None:
                self.me = self  # only the garbage collector frees it

            def __del__(self) -> None:
                emit("freed")
                emit("freed, and bad", level="error")

        before = gc.get_threshold()
        with hub.instead(route.dispatch, route.take):
            gc.set_threshold(1, 1, 1)
            try:
                for n in range(200):
                    Node()
                    emit("made", {"n": n, "list": [[] for _ in range(5)]})
            finally:
                gc.set_threshold(*before)
            gc.collect()
            emit("bad", level="error")
        kinds = Counter(event.event_type for event in arrived(sink))
        assert (kinds["made"], kinds["freed"], kinds["freed, and bad"]) == (200, 200, 200)
        assert route.pipeline.stats().tail_held == 0

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_child_sends_nothing_of_what_its_parent_held(self) -> None:
        route, (sink,) = routed()
        with hub.instead(route.dispatch, route.take):
            emit("parent's")
            child = os.fork()
            if child == 0:
                emit("child's")
                emit("bad", level="error")
                mine = [event.event_type for event in sink.events] if sink.flush() else []
                os._exit(0 if mine == ["child's", TAIL, "bad"] else 1)
            assert os.waitpid(child, 0)[1] == 0
            emit("bad", level="error")
        assert [kind for kind, _ in seen(sink)] == ["parent's", TAIL, "bad"]

    def test_what_waits_in_the_window_is_not_late(self, shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
        """A deadline and the latency begin where an event is offered."""
        route, (sink, *_) = shape()
        created: list[int] = []
        take_over = sink.handle_record

        def watched(record: Record) -> bool:
            created.append(record.created)
            return take_over(record)

        monkeypatch.setattr(sink, "handle_record", watched)
        route = Route(route.pipeline, route.sinks)
        with hub.instead(route.dispatch, route.take):
            emit("old")
            before = monotonic_ns()
            emit("bad", level="error")
        assert len(created) == 3
        assert min(created) >= before

    def test_a_full_buffer_that_raises_does_so_for_what_went_wrong_alone(self) -> None:
        route, (sink,) = routed(
            sink=MemorySink(buffer_size=2, buffer_overflow_strategy="raise_error", flush_interval=60)
        )
        with hub.instead(route.dispatch, route.take):
            for _ in range(5):
                emit("a")
            with pytest.raises(BufferFullError):
                emit("bad", level="error")
        assert route.pipeline.stats().tail_held > 0
        assert sink.stats().balanced


def test_the_usual_way_to_turn_it_on() -> None:
    sink = MemorySink()
    configure([sink], sample_rate=0.0, tail_events=10, environ={"STREAMLL_TAIL_SECONDS": "5"})
    try:
        with execution():
            emit("a")
            assert inject({})["traceparent"].endswith("-00")
            emit("bad", level="critical")
            assert inject({})["traceparent"].endswith("-01")
        assert [kind for kind, _ in seen(sink)] == ["a", TAIL, "bad"]
        assert stats().pipeline.tail_captured == 1
        assert stats().balanced
        configure([sink])
        assert hub.is_sampled is None
    finally:
        shutdown()
