"""EventTracer: what it keeps, what it sends, and what it does with what makes no sense."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from streamll.api import emit
from streamll.context import bind, execution, muted
from streamll.errors import BufferFullError, ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors import budget as budgets
from streamll.monitors import event_tracer as module
from streamll.monitors.budget import Allowance
from streamll.monitors.event_tracer import EventTracer
from streamll.monitors.events import recorder
from streamll.monitors.events.options import EventTracerOptions
from streamll.monitors.events.recorder import MEASURE_EVERY
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline
from streamll.privacy import REDACTED, SensitiveKeys
from streamll.spans import span
from tests.unit.hostile import armed, hostile_class
from tests.unit.strategies import anything

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


@pytest.fixture(autouse=True)
def _as_before_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "rules", SensitiveKeys())


@pytest.fixture
def tracer(inactive: None) -> EventTracer:
    """One whose events go nowhere."""
    return EventTracer().start()


class Machine:
    def __init__(self) -> None:
        self.state: Any = "idle"
        self.password = "first"
        self.user_id: int | None = None


class TestEvent:
    def test_is_kept_and_sent_under_one_id(self, events: list[StreamllEvent]) -> None:
        tracer = EventTracer().start()
        with execution("run-1"), bind(user=1), span("outer") as outer:
            event_id = tracer.trace_event("stock", {"left": 3}, operation="count", level="warning", priority="critical")
        sent, (kept,) = events[0], tracer.get_events()
        for event in (sent, kept):
            assert (event.event_type, event.event_id, event.operation, event.level) == (
                "stock",
                event_id,
                "count",
                "warning",
            )
            assert (event.execution_id, event.span_id, event.priority) == ("run-1", outer.span_id, "critical")
            assert event.data == {"user": 1, "left": 3}
        assert kept.timestamp == sent.timestamp
        assert kept["data"] == kept.data
        assert (kept.thread_name, kept.monotonic_ns > 0) == ("MainThread", True)
        assert tracer.stats().not_sent == {}

    def test_is_kept_where_nothing_receives_it(self, tracer: EventTracer) -> None:
        assert tracer.trace_event("a")
        assert [event.event_type for event in tracer.get_events()] == ["a"]
        assert tracer.stats().not_sent == {"inactive": 1}

    def test_later_changes_change_nothing(self, tracer: EventTracer) -> None:
        data = {"a": [1], "b": {"c": 2}}
        tracer.trace_event("x", data)
        data["a"].append(2)  # type: ignore[attr-defined]
        data["b"]["c"] = 3  # type: ignore[index]
        first = tracer.get_events()[0]
        first.data["a"] = "mine"
        assert tracer.get_events()[0].data == {"a": [1], "b": {"c": 2}}

    def test_secrets_are_not_kept(self, tracer: EventTracer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "rules", Pipeline(PipelineOptions(redact_keys="codename", keep_keys="token")).rules)
        tracer.trace_event("login", {"password": "p", "codename": "c", "token": "t", "n": [{"api_key": "k"}]})
        assert tracer.get_events()[0].data == {
            "password": REDACTED,
            "codename": REDACTED,
            "token": "t",
            "n": [{"api_key": REDACTED}],
        }
        assert tracer.stats().redacted == 3
        monkeypatch.setattr(hub, "rules", None)
        tracer.trace_event("login", {"password": "p"})
        assert tracer.get_events()[1].data == {"password": "p"}

    def test_texts_are_looked_at_when_pipelines_do(self, tracer: EventTracer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "rules", Pipeline(PipelineOptions(redact="full", pseudonym_key="k" * 16)).rules)
        machine = Machine()
        tracer.trace_state(machine, "user_id", "state")
        tracer.trace_event("mail", {"text": "to ann@example.org"}, operation="to ann@example.org")
        machine.user_id = 42
        machine.state = "ann@example.org"
        kept = [event.to_dict() for event in tracer.get_events()]
        assert "ann" not in json.dumps([event["data"] for event in kept]) + kept[0]["operation"]
        assert kept[1]["data"]["new"] not in (42, None)
        tracer.stop()

    @settings(max_examples=50)
    @given(anything, anything)
    def test_whatever_is_given_is_kept_in_some_form(self, data: Any, label: Any) -> None:
        tracer = EventTracer().start()
        tracer.trace_event(label, data, operation=label, level=label)
        tracer.trace_event("plain", {"value": data})
        first, second = tracer.get_events()
        assert second.event_type == "plain"
        assert list(second.data) == ["value"]
        json.dumps(first.to_dict())
        assert tracer.stats().errors == 0

    def test_no_code_of_what_is_given_is_called(self, tracer: EventTracer) -> None:
        hostile = hostile_class(object)()
        word = hostile_class(str)("word")
        with armed():
            tracer.trace_event("x", {"value": hostile, "word": word})
            tracer.trace_event(word, hostile, operation=word, level=word, priority=word)
        assert tracer.get_events()[0].data == {"value": "<HostileObject>", "word": "word"}
        assert tracer.stats().stand_ins == 2

    def test_a_long_one_is_cut(self) -> None:
        tracer = EventTracer(event_bytes=1000).start()
        tracer.trace_event("x", {"long": "a" * 100_000, "short": 1})
        event = tracer.get_events()[0]
        assert (event.data["short"], len(event.data["long"]) < 1000) == (1, True)
        assert tracer.stats().cut == 1

    def test_is_none_where_none_is_made(self, tracer: EventTracer) -> None:
        with muted():
            assert tracer.trace_event("a") is None
            with tracer.span("a"):
                pass
        tracer.stop()
        assert tracer.trace_event("a") is tracer.checkpoint("b") is None
        assert tracer.start_span("c") == ""
        with tracer.span("d") as quiet:
            quiet.event("e")
        assert tracer.get_events() == []
        assert tracer.stats().not_made == {"muted": 2, "stopped": 5}

    def test_a_sink_that_refuses_or_raises_is_counted_and_does_not_hurt(self, tracer: EventTracer) -> None:
        def full(_event: StreamllEvent) -> bool:
            raise BufferFullError("full")

        with hub.instead(full):
            assert tracer.trace_event("a")
        with hub.instead(lambda _event: False):
            tracer.trace_event("b")
        assert tracer.stats().not_sent == {"refused": 2}
        assert len(tracer.get_events()) == 2

    def test_debug_events_are_kept_and_not_sent_while_the_budget_has_no_room(
        self, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tracer = EventTracer().start()
        monkeypatch.setattr(budgets.budget, "allowance", Allowance(debug=False))
        tracer.trace_event("a", priority="debug")
        tracer.trace_event("b")
        assert [event.event_type for event in events] == ["b"]
        assert [event.event_type for event in tracer.get_events()] == ["a", "b"]
        assert tracer.stats().not_sent == {"debug": 1}

    def test_what_it_costs_is_charged(self, tracer: EventTracer) -> None:
        before = budgets.budget.costs.read().get(budgets.TRACER, 0)
        for _ in range(2 * MEASURE_EVERY):
            tracer.trace_event("a")
        assert budgets.budget.costs.read()[budgets.TRACER] > before


class TestRetention:
    def test_is_bounded_by_number_and_delivery_has_nothing_to_do_with_it(self, inactive: None) -> None:
        tracer = EventTracer({"buffer_size": 1000, "retain": 1500}).start()
        for n in range(2000):
            tracer.trace_event("n", {"n": n})
        assert [event.data["n"] for event in tracer.get_events()] == list(range(500, 2000))
        stats = tracer.stats()
        assert (stats.events, stats.retained, stats.forgotten) == (2000, 1500, 500)

    def test_is_bounded_by_bytes(self, inactive: None) -> None:
        tracer = EventTracer(retain_bytes=50_000).start()
        for n in range(100):
            tracer.trace_event("n", {"n": n, "text": "x" * 1000})
        stats = tracer.stats()
        assert stats.retained_bytes <= 50_000
        assert 30 < stats.retained < 50
        assert stats.retained + stats.forgotten == 100

    def test_none_at_all(self, events: list[StreamllEvent]) -> None:
        tracer = EventTracer(retain=0).start()
        assert tracer.trace_event("a")
        assert tracer.get_events() == []
        assert len(events) == 1

    def test_events_by_type_time_and_number(self, tracer: EventTracer) -> None:
        for n in range(10):
            tracer.trace_event("even" if n % 2 == 0 else "odd", {"n": n})
        since = tracer.get_events()[4].timestamp
        assert [event.data["n"] for event in tracer.get_events(type="odd")] == [1, 3, 5, 7, 9]
        assert [event.data["n"] for event in tracer.get_events("even", limit=2)] == [6, 8]
        assert {event.timestamp >= since for event in tracer.get_events(since=since)} == {True}
        assert tracer.get_events("none") == tracer.get_events(limit=0) == []
        with pytest.raises(KeyError):
            tracer.get_events()[0]["nothing"]

    def test_reset_forgets_all(self, tracer: EventTracer) -> None:
        open_span = tracer.start_span("a")
        tracer.trace_event("a")
        tracer.reset()
        assert not tracer.end_span(open_span)
        assert (tracer.get_events(), tracer.stats().events, tracer.running) == ([], 0, True)


class TestSpan:
    def test_is_kept_and_sent_with_children_of_both_kinds(self, events: list[StreamllEvent]) -> None:
        tracer = EventTracer().start()
        with tracer.span("outer", a=1) as outer:
            outer.set(b=2)
            outer.event("step", c=3)
            with span("plain") as inner:
                tracer.trace_event("inside")
        step, inside, kept = tracer.get_events()
        assert [event.event_type for event in events] == ["step", "inside", "span", "span"]
        assert events[2].parent_span_id == events[3].span_id == kept.span_id == step.span_id == outer.span_id
        assert inside.span_id == inner.span_id
        assert kept.data == {"a": 1, "b": 2, "duration_ns": events[3].data["duration_ns"]}
        assert kept.event_id == events[3].event_id
        assert kept.monotonic_ns <= step.monotonic_ns <= kept.monotonic_ns + kept.data["duration_ns"]

    def test_an_error_goes_through_and_is_described(self, tracer: EventTracer) -> None:
        with pytest.raises(ZeroDivisionError), tracer.span("divide"):
            raise ZeroDivisionError("no")
        (event,) = tracer.get_events()
        assert (event.level, event.data["error"]) == ("error", {"type": "ZeroDivisionError", "message": "no"})

    def test_announced_and_in_tasks(self, tracer: EventTracer) -> None:
        async def work(name: str) -> None:
            async with tracer.span(name).announce():
                await asyncio.sleep(0)

        async def both() -> None:
            async with tracer.span("outer"):
                await asyncio.gather(work("a"), work("b"))

        asyncio.run(both())
        made = tracer.get_events()
        assert [event.event_type for event in made] == ["span_start", "span_start", "span", "span", "span"]
        assert {event.parent_span_id for event in made[2:4]} == {made[4].span_id}

    def test_by_id(self, tracer: EventTracer) -> None:
        with tracer.span("outer") as outer:
            parent = tracer.start_span("parent", a=1)
            child = tracer.start_span("child", parent_id=parent)
            tracer.trace_event("between")
        assert tracer.end_span(parent, b=2)
        assert tracer.end_span(child, error=ValueError("late"))
        between, _, first, second = tracer.get_events()
        assert between.span_id == outer.span_id
        assert (first.parent_span_id, first.data["a"], first.data["b"]) == (outer.span_id, 1, 2)
        assert (second.parent_span_id, second.level) == (parent, "error")
        assert first.execution_id == second.execution_id == outer.execution_id

    def test_ids_that_are_unknown_or_ended_are_counted_and_do_no_harm(self, tracer: EventTracer) -> None:
        known = tracer.start_span("a")
        assert tracer.end_span(known)
        wrong: list[Any] = [known, "nobody's", "", None, 5, []]
        assert not any(tracer.end_span(each) for each in wrong)
        assert tracer.stats().unknown_spans == 6
        assert len(tracer.get_events("span")) == 1

    def test_too_many_that_never_end_are_given_up_the_oldest_first(self, inactive: None) -> None:
        tracer = EventTracer(open_spans=2).start()
        first, second, third = (tracer.start_span(name) for name in "abc")
        assert [tracer.end_span(one) for one in (first, second)] == [False, True]
        with tracer.span("open at the end"):
            tracer.stop()
        stats = tracer.stats()
        assert (stats.open_spans, stats.abandoned_spans, stats.spans) == (0, 3, 1)
        assert tracer.start().end_span(third) is False


class TestCheckpoint:
    def test_flows(self, tracer: EventTracer) -> None:
        ids = []
        for order in ("1", "2", "3"):
            with execution(order):
                tracer.checkpoint("paid", n=1)
                if order != "2":
                    ids.append(tracer.checkpoint("packed"))
        tracer.checkpoint("sent", flow_id="1")
        answer = tracer.analyze_flow(expected=["paid", "packed", "sent"])
        assert answer["missing"] == {"2": ["packed", "sent"], "3": ["sent"]}
        assert answer["flows"] == 3
        assert tracer.get_events("checkpoint")[0].data["n"] == 1
        assert tracer.analyze_flow("3")["steps"] == 2
        assert tracer.analyze_flow(ids[1])["steps"] == 2
        assert tracer.analyze_flow("unknown")["found"] is False
        assert tracer.analyze_flow(tracer.get_events()[:2])["flows"] == 1

    def test_a_clock_that_is_set_back_makes_no_time_negative(
        self, tracer: EventTracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backwards = iter(range(10**18, 0, -(10**15)))
        monkeypatch.setattr(recorder, "time_ns", backwards.__next__)
        with tracer.span("work"):
            for name in ("a", "b", "c"):
                tracer.checkpoint(name)
        kept = tracer.get_events()
        assert kept[0].timestamp > kept[1].timestamp
        answer = tracer.analyze_flow(expected=["a", "b", "c"])
        assert (answer["missing"], answer["out_of_order"], answer["unfinished"]) == ({}, {}, [])
        assert all(edge["total_ns"] > 0 for edge in answer["edges"])
        tracer.export(tmp_path / "t.json", "chrome")
        entries = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
        assert all(entry.get("ts", 0) >= 0 and entry.get("dur", 0) >= 0 for entry in entries)

    def test_read_back_elsewhere(self, events: list[StreamllEvent]) -> None:
        tracer = EventTracer().start()
        tracer.checkpoint("a", flow_id="f")
        tracer.checkpoint("b", flow_id="f")
        here, there = tracer.analyze_flow(), EventTracer().analyze_flow(events)
        assert here == there
        assert here["edges"][0]["count"] == 1


class TestState:
    def test_changes_are_events(self, tracer: EventTracer) -> None:
        machine, other = Machine(), Machine()
        tracer.trace_state(machine, "state", "password")
        tracer.trace_state(other, "state", label="the other")
        machine.state = "busy"
        machine.state = "busy"
        machine.state = "".join(["bu", "sy"])  # equal, and another object
        machine.password = "second"
        other.state = [1, object()]
        machine.state = 1
        machine.state = True
        del machine.state
        changes = [event.data for event in tracer.get_events("state_change")]
        assert [{key: value for key, value in change.items() if key != "object_id"} for change in changes] == [
            {"object": f"{__name__}.Machine", "attribute": "state", "old": "idle", "new": "busy"},
            {"object": f"{__name__}.Machine", "attribute": "password", "old": REDACTED, "new": REDACTED},
            {"object": "the other", "attribute": "state", "old": "idle", "new": [1, "<object>"]},
            {"object": f"{__name__}.Machine", "attribute": "state", "old": "busy", "new": 1},
            {"object": f"{__name__}.Machine", "attribute": "state", "old": 1, "new": True},
            {"object": f"{__name__}.Machine", "attribute": "state", "old": True},
        ]
        assert len({change["object_id"] for change in changes}) == 2
        tracer.stop()

    def test_no_code_of_the_values_is_called(self, tracer: EventTracer) -> None:
        machine = Machine()
        tracer.trace_state(machine, "state")
        first, second = hostile_class(object)(), hostile_class(str)("word")
        with armed():
            machine.state = first
            machine.state = second
        assert [event.data["new"] for event in tracer.get_events()] == ["<HostileObject>", "word"]
        tracer.stop()

    def test_until_untraced_stopped_or_gone(self, tracer: EventTracer) -> None:
        machine, other = Machine(), Machine()
        tracer.trace_state(machine, "state", "password")
        tracer.trace_state(machine, "state")  # once more is no more
        tracer.trace_state(other, "state")
        assert tracer.stats().watched == 3
        machine.state = 1
        assert tracer.untrace(machine, "state")
        assert not tracer.untrace(machine, "state")
        machine.state = 2
        machine.password = "2"
        del machine
        gc.collect()
        assert tracer.stats().watched == 1
        tracer.stop()
        other.state = 3
        assert [event.operation for event in tracer.get_events()] == ["state", "password"]
        assert tracer.stats().watched == 0
        assert "__setattr__" not in vars(Machine)

    def test_a_tracer_that_is_gone_is_told_nothing(self, inactive: None) -> None:
        machine = Machine()
        tracer = EventTracer().start()
        gone = weakref.ref(tracer)
        tracer.trace_state(machine, "state")
        del tracer
        gc.collect()
        assert gone() is None
        machine.state = 1

    def test_what_cannot_be_traced_says_so(self, tracer: EventTracer, monkeypatch: pytest.MonkeyPatch) -> None:
        for wrong in ([], object(), "text"):
            with pytest.raises(TypeError, match="cannot be traced"):
                tracer.trace_state(wrong, "state")
        with pytest.raises(TypeError, match="which attributes"):
            tracer.trace_state(Machine())
        monkeypatch.setattr(module, "WATCHED_BOUND", 1)
        machine = Machine()
        assert tracer.trace_state(machine, "state", "password") is False
        assert (tracer.stats().watched, tracer.stats().unwatched) == (1, 1)
        tracer.stop()


class TestTool:
    def test_options_in_every_way(self) -> None:
        assert EventTracer({"retain": 5}, retain=6).options.retain == 6
        assert EventTracer(EventTracerOptions(retain=7), open_spans=8).options == EventTracerOptions(
            retain=7, open_spans=8
        )
        with pytest.raises(ConfigurationError, match="event tracer unknown option 'retian'; did you mean retain"):
            EventTracer(retian=5)
        with pytest.raises(ConfigurationError, match="buffer_size=1: must be"):
            EventTracer({"buffer_size": 1})
        with pytest.raises(ConfigurationError, match="event tracer config: must be a dict"):
            EventTracer(5)  # type: ignore[arg-type]

    def test_starts_and_stops_as_often_as_one_likes(self, inactive: None) -> None:
        tracer = EventTracer()
        assert not tracer.running
        with tracer as same:
            assert same.start() is tracer
            tracer.trace_event("a")
        tracer.stop()
        tracer.stop()
        assert len(tracer.get_events()) == 1
        with tracer:
            tracer.trace_event("b")
        assert [event.event_type for event in tracer.get_events()] == ["a", "b"]

    def test_two_at_once_keep_their_own(self, tracer: EventTracer) -> None:
        other, machine = EventTracer().start(), Machine()
        tracer.trace_event("a")
        tracer.trace_state(machine, "state")
        other.trace_state(machine, "state")
        other.trace_event("b")
        machine.state = 1
        assert [event.event_type for event in tracer.get_events()] == ["a", "state_change"]
        assert [event.event_type for event in other.get_events()] == ["b", "state_change"]
        tracer.stop()
        machine.state = 2
        assert len(other.get_events("state_change")) == 2
        other.stop()

    def test_report_and_export(self, tracer: EventTracer, tmp_path: Path) -> None:
        for name in ("a", "b", "a"):
            with tracer.span(name):
                tracer.checkpoint(f"in {name}", flow_id="f")
        report = tracer.report()
        assert json.loads(json.dumps(report)) == report
        assert report["types"] == {"checkpoint": 3, "span": 3}
        assert {row["operation"]: row["count"] for row in report["spans"]} == {"a": 2, "b": 1}
        assert (report["flow"]["steps"], report["stats"]["spans"]) == (3, 3)
        tracer.export(tmp_path / "t.json", "chrome")
        assert len(json.loads((tmp_path / "t.json").read_text())["traceEvents"]) == 8
        tracer.export(str(tmp_path / "t.json"))
        assert len(json.loads((tmp_path / "t.json").read_text())["events"]) == 6
        with pytest.raises(ConfigurationError, match="must be one of json, chrome"):
            tracer.export(tmp_path / "t.json", "svg")

    def test_emit_is_not_kept(self, events: list[StreamllEvent]) -> None:
        tracer = EventTracer().start()
        emit("elsewhere")
        assert tracer.get_events() == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
    def test_a_forked_child_begins_with_nothing(self, tracer: EventTracer) -> None:
        open_span = tracer.start_span("parent's")
        with tracer.span("also the parent's"):
            child = os.fork()
            if child == 0:
                is_new = tracer.get_events() == [] and not tracer.end_span(open_span)
                tracer.trace_event("child's")
                os._exit(0 if is_new and len(tracer.get_events()) == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert tracer.end_span(open_span)
        assert [event.operation for event in tracer.get_events()] == ["also the parent's", "parent's"]
