"""Sampled events on their way to real sinks: each way that they may take, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamll.api import Route, emit, emit_event
from streamll.context import execution
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline, PipelineStats
from streamll.sampling import ALERT, FAILED, SLOW, TAIL
from streamll.sinks.memory import MemorySink
from streamll.spans import span


def routed(sinks: int = 1, before_send: Any = (), **options: Any) -> tuple[Route, list[MemorySink]]:
    given_options = {"sample_rate": 0.0, "tail_events": 100, **options}
    made = [MemorySink() for _ in range(sinks)]
    return Route(Pipeline(PipelineOptions(**given_options), before_send), made), made


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
