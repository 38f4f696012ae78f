"""Metrics: what is recorded where, what their events say, and what is bounded, refused and counted."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamll
from streamll.context import SCOPE, muted
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors.measuring import registry as metric_registry
from streamll.monitors.measuring.instruments import FOLD_AT, MOST_NOTED
from streamll.monitors.measuring.registry import MetricsOptions, Registry
from streamll.monitors.measuring.series import MOST_LABELS, OVERFLOW
from streamll.monitors.metrics import Metrics
from streamll.sketch import QuantileSketch
from tests.unit.here import the_same_hub_afterwards
from tests.unit.hostile import armed, hostile_class

Rows = dict[tuple[tuple[str, str], ...], dict[str, Any]]


def rows_of(events: list[StreamllEvent], name: str) -> Rows:
    """The rows of one metric, by labels; each combination at most once."""
    rows = [row for event in events if event.data["name"] == name for row in event.data["series"]]
    found = {tuple(sorted(row["labels"].items())): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def registry() -> Registry:
    return Registry()


class TestEvents:
    def test_one_for_each_metric_with_the_series_that_changed(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        requests = registry.counter("requests", "1", "What came in.")
        waiting, took = registry.gauge("waiting"), registry.histogram("took", unit="s")
        registry.counter("untouched").labels(route="/x")
        requests.add()
        requests.add(2, route="/x", method="GET")
        requests.inc(3, method="GET", route="/x")
        waiting.set(5)
        waiting.set(2)
        waiting.add(1.5)
        took.record(0.25, route="/x")
        registry.emit()
        assert [(event.event_type, event.operation) for event in events] == [
            ("metric", "requests"),
            ("metric", "waiting"),
            ("metric", "took"),
        ]
        first, second, third = (event.data for event in events)
        identity = ("name", "kind", "unit", "temporality")
        assert [first[name] for name in identity] == ["requests", "counter", "1", "delta+cumulative"]
        assert [second[name] for name in identity] == ["waiting", "gauge", "", "last"]
        assert [third[name] for name in identity] == ["took", "histogram", "s", "delta+cumulative"]
        assert first["description"] == "What came in."
        assert "description" not in second
        assert all(event.data["end_ns"] == event.timestamp for event in events)
        rows = rows_of(events, "requests")
        assert {labels: (row["delta"], row["total"]) for labels, row in rows.items()} == {
            (): (1, 1),
            (("method", "GET"), ("route", "/x")): (5, 5),
        }
        (value,) = second["series"]
        assert (value["value"], value["min"], value["max"]) == (3.5, 2, 5)
        (timing,) = third["series"]
        assert (timing["delta"], timing["p50"]) == (1, 0.25)
        assert QuantileSketch.from_dict(timing["sketch"]).quantile(0.99) == 0.25
        assert all(row["start_ns"] <= first["end_ns"] for row in rows.values())

    def test_intervals_follow_each_other_and_what_did_not_change_is_left_out(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        counts = registry.counter("counts")
        counts.add(1, a="1")
        counts.add(1, a="2")
        registry.emit()
        registry.emit()
        assert len(events) == 1
        counts.add(4, a="2")
        registry.emit()
        (row,) = events[1].data["series"]
        assert (row["labels"], row["delta"], row["total"]) == ({"a": "2"}, 4, 5)
        assert events[0].data["end_ns"] <= row["start_ns"] <= events[1].data["end_ns"]
        assert row["since_ns"] <= events[0].data["end_ns"]

    def test_what_no_sink_accepts_comes_with_the_next(self, registry: Registry) -> None:
        counts, took, level = registry.counter("counts"), registry.histogram("took"), registry.gauge("level")
        seen: list[StreamllEvent] = []
        accept = False

        def dispatch(event: StreamllEvent) -> bool:
            if accept:
                seen.append(event)
            return accept

        counts.add(1)
        registry.emit()  # nothing is configured
        with the_same_hub_afterwards():
            hub.fill(dispatch)
            for n in range(1, 4):
                counts.add(1)
                took.record(n)
                level.set(n)
                accept = n == 3
                registry.emit()
        assert rows_of(seen, "counts")[()]["delta"] == 4
        assert rows_of(seen, "took")[()]["sketch"]["count"] == 3
        assert [rows_of(seen, "level")[()][name] for name in ("value", "min", "max")] == [3, 1, 3]
        assert registry.tally.read() == {"events": 3, "events_refused": 6}

    def test_belong_to_no_span_and_are_cut_off_where_events_are(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        registry.counter("counts").add()
        with muted():
            registry.emit()
        assert not events
        with streamll.execution(), streamll.bind(user=42), streamll.span("work"):
            before = SCOPE.get()
            registry.emit()
            assert SCOPE.get() is before
        (event,) = [event for event in events if event.event_type == "metric"]
        assert (event.execution_id, event.span_id) == ("", "")
        assert "user" not in event.data

    def test_with_many_series_are_several(self, registry: Registry, events: list[StreamllEvent]) -> None:
        registry.options = MetricsOptions(event_bytes=4096, max_series=500)
        counts = registry.counter("counts")
        for n in range(300):
            counts.add(n + 1, n=n)
        registry.emit()
        assert len(events) > 10
        assert all(len(json.dumps(event.data)) < 6000 for event in events)
        assert {labels: row["delta"] for labels, row in rows_of(events, "counts").items()} == {
            (("n", str(n)),): n + 1 for n in range(300)
        }

    def test_labels_are_redacted_like_all_data(self, registry: Registry) -> None:
        registry.counter("logins").add(1, password="hunter2")
        with streamll.testing.capture() as captured:
            registry.emit()
        assert captured[0].data["series"][0]["labels"] == {"password": "[redacted]"}

    def test_have_the_registry_s_attributes(self, events: list[StreamllEvent]) -> None:
        registry = Registry({"team": "blue", "name": "not this"})
        registry.counter("counts").add()
        registry.emit()
        assert (events[0].data["team"], events[0].data["name"]) == ("blue", "counts")

    def test_come_again_as_a_heartbeat(self, registry: Registry, events: list[StreamllEvent]) -> None:
        registry.options = MetricsOptions(heartbeat=0.000_000_001)
        registry.counter("counts").add(7)
        registry.emit()
        registry.emit(heartbeat=True)
        assert [(row["delta"], row["total"]) for event in events for row in event.data["series"]] == [(7, 7), (0, 7)]

    def test_nothing_comes_of_emitting_in_the_midst_of_it(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        """As a signal handler does, or what a gauge watches."""

        def again() -> int:
            registry.emit()
            registry.reset()
            return len(registry.read())

        registry.gauge("again").watch(again)
        registry.counter("counts").add()
        registry.emit()
        assert rows_of(events, "again")[()]["value"] == 0
        assert rows_of(events, "counts")[()]["delta"] == 1


steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.none() | st.sampled_from("xyz"))
    | st.sampled_from(["emit", "refuse", "bound"]),
    max_size=60,
)


@given(steps)
def test_what_readers_get_adds_up(steps: list[Any]) -> None:
    registry = Registry()
    expected: dict[tuple[str, str | None], int] = {}
    got: dict[tuple[str, str | None], int] = {}
    accepted, bound = True, False

    def dispatch(event: StreamllEvent) -> bool:
        for row in event.data["series"] if accepted else ():
            place = event.operation, row["labels"].get("label")
            got[place] = got.get(place, 0) + row["delta"]
            assert row["total"] == got[place]
        return accepted

    with hub.instead(dispatch):
        for step in [*steps, "emit"]:
            if step == "bound":
                bound = not bound
            elif type(step) is str:
                accepted = step == "emit"
                registry.emit()
            else:
                name, amount, label = step
                counter = registry.counter(name)
                labels = {} if label is None else {"label": label}
                if bound:
                    counter.labels(**labels).add(amount)
                else:
                    counter.add(amount, **labels)
                expected[name, label] = expected.get((name, label), 0) + amount
    assert got == {place: total for place, total in expected.items() if total}


class TestLabels:
    def test_of_any_value_are_words(self, registry: Registry, events: list[StreamllEvent]) -> None:
        counts = registry.counter("counts")
        counts.add(1, status=404)
        counts.add(1, status="404")
        counts.add(1, ok=True)
        counts.add(1, thing=object())
        counts.add(1, thing=object())
        registry.emit()
        assert {labels: row["delta"] for labels, row in rows_of(events, "counts").items()} == {
            (("status", "404"),): 2,
            (("ok", "true"),): 1,
            (("thing", "<object>"),): 2,
        }
        assert registry.tally.read()["labels_cut"] == 2

    def test_run_no_code_of_a_user_s_object(self, registry: Registry, events: list[StreamllEvent]) -> None:
        foreign, text, number = hostile_class(object)(), hostile_class(str)("t"), hostile_class(float)(2.5)
        counts, level, took = registry.counter("c"), registry.gauge("g"), registry.histogram("h")
        with armed():
            for record in (counts.add, level.set, level.add, took.record):
                record(number, text=text, foreign=foreign)
                record(foreign, text=text)
                record(1, text=text)
            counts.labels(text=text).add(number)
            registry.emit()
        assert rows_of(events, "c")[("foreign", "<HostileObject>"), ("text", "t")]["total"] == 2.5
        assert registry.tally.read()["refused"] == 4

    def test_beyond_the_bound_are_counted_together(
        self, registry: Registry, events: list[StreamllEvent], caplog: pytest.LogCaptureFixture
    ) -> None:
        registry.options = MetricsOptions(max_series=10)
        counts = registry.counter("counts")
        for _ in range(2):
            for n in range(100):
                counts.add(1, n=str(n))
        counts.add(5)
        with caplog.at_level(logging.WARNING, "streamll"):
            registry.emit()
            counts.add(1, n="new")
            registry.emit()
        totals = {labels: row["delta"] for labels, row in rows_of(events[:1], "counts").items()}
        assert totals.pop(tuple(OVERFLOW.items())) == 180
        assert totals.pop(()) == 5
        assert totals == {(("n", str(n)),): 2 for n in range(10)}
        assert registry.tally.read()["overflowed"] == 181
        assert [record.message for record in caplog.records] == [
            "metric counts has too many combinations of labels: further ones are counted together"
        ]

    def test_of_all_metrics_together_are_bounded_too(self, registry: Registry) -> None:
        registry.options = MetricsOptions(max_total_series=10)
        for n in range(30):
            registry.counter(f"counts{n % 3}").add(1, n=n)
        assert registry.series == 13
        assert registry.tally.read()["overflowed"] == 20

    def test_that_are_too_many_for_one_series(self, registry: Registry, events: list[StreamllEvent]) -> None:
        registry.counter("counts").add(1, **{f"label{n}": "x" for n in range(MOST_LABELS + 1)})
        registry.emit()
        assert list(rows_of(events, "counts")) == [tuple(OVERFLOW.items())]

    def test_of_any_name_do_not_meet_arguments(self, registry: Registry, events: list[StreamllEvent]) -> None:
        registry.counter("counts").add(1, amount="a", value="v", self="s", name="n")
        registry.emit()
        assert list(rows_of(events, "counts")) == [(("amount", "a"), ("name", "n"), ("self", "s"), ("value", "v"))]

    def test_none_are_the_metric_itself(self, registry: Registry, events: list[StreamllEvent]) -> None:
        counts = registry.counter("counts")
        counts.labels().add(2)
        counts.add(1)
        registry.emit()
        assert rows_of(events, "counts")[()]["total"] == 3


class TestRecording:
    def test_of_what_a_metric_cannot_take_is_refused_and_counted(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        metrics = Metrics(registry=registry)
        counts, level, took = registry.counter("c"), registry.gauge("g"), registry.histogram("h")
        wrong: list[Any] = [math.nan, math.inf, -math.inf, "1", None, 10**400]
        for value in [*wrong, -1, -0.5]:
            counts.add(value)
            counts.labels(a="b").add(value)
        for value in wrong:
            level.set(value)
            level.add(value)
            level.labels(a="b").set(value)
            level.labels(a="b").add(value)
            took.record(value)
            took.labels(a="b").record(value)
        metrics.flush()
        assert not events
        assert metrics.stats().refused == 2 * 8 + 4 * 6 + 2 * 6
        level.set(1.7e308)
        level.add(1.7e308)
        metrics.flush()
        assert rows_of(events, "g")[()]["value"] == 1.7e308
        assert metrics.stats().refused == 2 * 8 + 4 * 6 + 2 * 6 + 1

    def test_is_added_up_before_there_is_too_much_of_it(self, registry: Registry) -> None:
        counts, level, took = registry.counter("c"), registry.gauge("g"), registry.histogram("h")
        records: list[tuple[Any, Callable[[], None]]] = [
            (counts, counts.add),
            (counts, counts.labels(a="b").inc),
            (level, lambda: level.inc(1)),
            (level, lambda: level.labels(a="b").inc(1)),
            (took, lambda: took.record(1)),
            (took, lambda: took.labels(a="b").record(1)),
        ]
        for instrument, record in records:
            before = instrument.recorded
            for _ in range(FOLD_AT - 1):
                record()
            assert instrument.recorded == before
            record()
            assert instrument.recorded == before + FOLD_AT
        assert Metrics(registry=registry).stats().recorded == 6 * FOLD_AT

    def test_waits_for_nobody_and_what_finds_no_room_is_counted(self, registry: Registry) -> None:
        counts = registry.counter("counts")
        assert counts._folding.take()  # as another thread that adds up, and has not had the processor since
        for _ in range(MOST_NOTED + 10):
            counts.add()
        registry.reset()
        assert counts.read() == []
        assert len(counts._noted) == MOST_NOTED - 1
        counts._folding.give()
        (row,) = counts.read()
        lost = registry.tally.read()["lost"]
        assert (row["total"], lost) == (MOST_NOTED - 1, 11)

    def test_what_is_thrown_away_meanwhile_is_no_error(self, registry: Registry) -> None:
        counts = registry.counter("counts")
        assert counts._folding.take()

        class Emptied(deque[Any]):
            """Says that there is more than there is."""

            def __len__(self) -> int:
                return 3

        counts._noted = Emptied([(counts._plain, 5)])
        counts._fold()
        counts._folding.give()
        counts._noted = deque()
        assert counts.read()[0]["total"] == 5

    def test_times_a_block_also_one_that_fails(self, registry: Registry, events: list[StreamllEvent]) -> None:
        took = registry.histogram("took", "s")

        def fail() -> None:
            with took.time(route="/x"):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with took.labels(route="/x").time():
            pass
        registry.emit()
        row = rows_of(events, "took")[("route", "/x"),]
        assert row["delta"] == 2
        assert 0 < row["sum"] < 60


class TestWatching:
    def test_asks_when_metrics_are_sent_until_told_not_to(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        values: Iterator[Any] = iter([3, None, 4])
        level = registry.gauge("level")
        level.watch(lambda: next(values), pool="a")
        for _ in range(3):
            registry.emit()
        level.watch(None, pool="a")
        registry.emit()
        assert [event.data["series"][0]["value"] for event in events] == [3, 4]
        assert next(values, "none left") == "none left"

    def test_survives_what_it_asks(self, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
        level = registry.gauge("level")
        level.watch(lambda: 1 / 0)
        level.watch(lambda: "many", pool="b")
        with streamll.testing.capture(), caplog.at_level(logging.WARNING, "streamll"):
            registry.emit()
            registry.emit()
        assert registry.tally.read() == {"failed": 2, "refused": 2}
        assert [record.message for record in caplog.records] == ["what gauge level watches raised an error"]

    def test_is_of_functions(self, registry: Registry) -> None:
        with pytest.raises(TypeError):
            registry.gauge("level").watch(3)  # type: ignore[arg-type]


class TestRegistry:
    def test_has_one_metric_of_a_name(self, registry: Registry) -> None:
        assert registry.counter("a") is registry.counter("a", "other unit")
        with pytest.raises(ConfigurationError, match="metric a is a counter, and cannot be a gauge too"):
            registry.gauge("a")

    @pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", 3, None])
    def test_refuses_what_is_no_name(self, registry: Registry, name: Any) -> None:
        with pytest.raises(ConfigurationError, match="a metric's name"):
            registry.counter(name)

    @pytest.mark.parametrize("wrong", [{"unit": 3}, {"description": None}])
    def test_refuses_what_is_no_unit_or_description(self, registry: Registry, wrong: Any) -> None:
        with pytest.raises(ConfigurationError, match="metric a: "):
            registry.counter("a", **wrong)

    def test_has_a_bound_beyond_which_metrics_are_one(
        self, registry: Registry, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metric_registry, "MOST_METRICS", 5)
        for n in range(20):
            registry.counter(f"counts{n}").add()
            registry.histogram(f"took{n}").record(n)
        registry.emit()
        assert rows_of(events, "streamll.others.counter")[()]["total"] == 17
        assert rows_of(events, "streamll.others.histogram")[()]["total"] == 18
        assert registry.tally.read()["metrics_left_out"] == 35

    def test_reset_begins_from_zero_and_keeps_what_users_hold(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        counts = registry.counter("counts")
        bound = counts.labels(a="b")
        bound.add(3)
        registry.emit()
        bound.add(5)
        registry.reset()
        bound.add(1)
        registry.emit()
        first, second = (event.data["series"][0] for event in events)
        assert (second["delta"], second["total"]) == (1, 1)
        assert second["since_ns"] >= first["since_ns"]

    def test_in_a_forked_child_begins_from_zero(self, registry: Registry, events: list[StreamllEvent]) -> None:
        """What had been recorded there, and a lock that another thread held, are the parent's."""
        counts = registry.counter("counts")
        bound = counts.labels(a="b")
        bound.add(3)
        assert counts._folding.take()
        assert registry._emitting.take()
        registry.after_fork_in_child()
        bound.add(1)
        registry.emit()
        assert rows_of(events, "counts")[("a", "b"),]["total"] == 1
        assert counts.recorded == 1


class TestReport:
    def test_is_json_and_tells_everything_since_the_beginning(
        self, registry: Registry, events: list[StreamllEvent]
    ) -> None:
        metrics = Metrics(registry=registry)
        registry.counter("untouched")
        counts, took = registry.counter("counts"), registry.histogram("took")
        for n in range(1, 101):
            counts.add(n, parity="even" if n % 2 == 0 else "odd")
            took.record(n)
            if n % 30 == 0:
                metrics.flush()
        registry.gauge("level").set(3)
        report = json.loads(json.dumps(metrics.report()))
        by_name = {metric["name"]: metric["series"] for metric in report["metrics"]}
        assert set(by_name) == {"counts", "took", "level"}
        assert {row["labels"]["parity"]: row["total"] for row in by_name["counts"]} == {"even": 2550, "odd": 2500}
        (row,) = by_name["took"]
        assert (row["total"], row["total_sum"], row["max"]) == (100, 5050, 100)
        assert row["p95"] == pytest.approx(95, rel=0.01)
        assert by_name["level"][0]["value"] == 3
        metrics.reset()
        assert metrics.report() == {"metrics": []}


@pytest.mark.parametrize("config", [{"interval": 0}, {"max_series": 0}, {"intervall": 1}, {"heartbeat": -1}, 5])
def test_options_that_cannot_be(config: Any) -> None:
    with pytest.raises(ConfigurationError, match="metrics "):
        Metrics(config)


def test_options_may_be_a_mapping_an_object_or_keywords() -> None:
    for metrics in (
        Metrics({"interval": 2}),
        Metrics(MetricsOptions(interval=2)),
        Metrics(interval=2),
        Metrics({"interval": 9}, interval=2),
    ):
        assert metrics.options.interval == 2
