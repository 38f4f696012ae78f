"""The telemetry of a project: what each call makes, what is refused, and that an opt-out is obeyed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

import streamll
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors.telemetry import MetricType, Telemetry
from streamll.sinks.memory import MemorySink
from tests.unit.hostile import armed, hostile_class

IDENTITY = {"project": "indexer", "version": "1.4.0"}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry("indexer", "1.4.0", environ={}, interval=1000)
    yield made
    made.disable()


def test_each_call_makes_its_event(telemetry: Telemetry, events: list[StreamllEvent]) -> None:
    assert telemetry.track_event("index_built", {"documents": 12})
    assert telemetry.track_metric("lookups", 2, MetricType.COUNTER, {"shard": "a"})
    assert telemetry.track_metric("lookups", 3, attrs={"shard": "a"})
    assert telemetry.track_metric("open", 7, MetricType.GAUGE)
    assert telemetry.track_metric("seconds", 0.5, "histogram")
    nothing: dict[str, int] = {}
    with pytest.raises(KeyError) as caught:
        nothing["missing"]
    assert telemetry.track_error(caught.value, {"shard": "a"})
    assert telemetry.track_error("no exception")
    assert telemetry.track_log("ready", "WARNING", {"port": 80})
    assert telemetry.track_log("what is", "loud")
    assert telemetry.flush()
    # A flush has the process's own metrics sent too, if there are any.
    own = [event for event in events if event.data.get("telemetry") == IDENTITY]
    built, error_event, said, ready, loud, lookups, opened, seconds = own
    assert (built.event_type, built.data["documents"]) == ("index_built", 12)
    assert (lookups.event_type, lookups.operation) == ("metric", "lookups")
    assert [(row["labels"], row["total"]) for row in lookups.data["series"]] == [({"shard": "a"}, 5)]
    assert opened.data["series"][0]["value"] == 7
    assert seconds.data["series"][0]["p95"] == 0.5
    assert (error_event.event_type, error_event.level, error_event.data["shard"]) == ("error", "error", "a")
    assert error_event.data["error"]["type"] == "KeyError"
    assert error_event.data["error"]["stack"]
    assert (said.event_type, said.data["error"]["message"]) == ("error", "no exception")
    assert (ready.event_type, ready.level, ready.data["message"], ready.data["port"]) == ("log", "warning", "ready", 80)
    assert loud.level == "info"
    status = json.loads(json.dumps(telemetry.get_status()))
    assert status["tracked"] == {"events": 1, "metrics": 4, "errors": 2, "logs": 2}
    assert status["refused"] == {}
    assert (status["project_name"], status["version"], status["enabled"]) == ("indexer", "1.4.0", True)
    assert status["metrics"]["events"] == 3


def test_what_cannot_be_is_refused_and_counted_and_never_raised(
    telemetry: Telemetry, events: list[StreamllEvent]
) -> None:
    wrong: Any = 5
    assert not telemetry.track_event(wrong)
    assert not telemetry.track_event("")
    assert not telemetry.track_event("streamll.gap")
    assert telemetry.track_metric("lookups", 1)
    assert not telemetry.track_metric("lookups", 1, MetricType.GAUGE)
    assert not telemetry.track_metric("lookups", 1, "sum")
    assert not telemetry.track_metric(wrong, 1)
    assert not telemetry.track_metric("lookups", math.nan)
    assert not telemetry.track_metric("lookups", -1)
    labels: Any = {5: "five", "a b": 1}
    assert telemetry.track_metric("lookups", 1, attrs=labels)
    telemetry.flush()
    status = telemetry.get_status()
    assert status["refused"] == {"name": 5, "metric_type": 1, "value": 2}
    assert [row["labels"] for row in events[0].data["series"]] == [{}, {"a b": "1"}]


def test_runs_no_code_of_what_it_is_given(telemetry: Telemetry, events: list[StreamllEvent]) -> None:
    foreign, text, mapping = hostile_class(object)(), hostile_class(str)("text"), hostile_class(dict)(a=1)
    with armed():
        assert telemetry.track_event("odd", mapping)
        assert telemetry.track_event("odd", foreign)
        assert telemetry.track_metric("odd", 1, attrs={"a": foreign, "b": text})
        assert telemetry.track_log(text, foreign)
        assert telemetry.track_log(foreign)
        assert telemetry.track_error(foreign)
        telemetry.flush()
    assert [event.data.get("message") for event in events[2:4]] == ["text", "<HostileObject>"]
    assert events[0].data["a"] == 1


@pytest.mark.parametrize(
    ("environ", "by"),
    [
        ({"DO_NOT_TRACK": "1"}, "DO_NOT_TRACK"),
        ({"DO_NOT_TRACK": "true", "STREAMLL_ENABLED": "1"}, "DO_NOT_TRACK"),
        ({"STREAMLL_ENABLED": "0"}, "STREAMLL_ENABLED"),
        ({"STREAMLL_ENABLED": " Off "}, "STREAMLL_ENABLED"),
    ],
)
def test_who_runs_the_program_has_the_last_word(environ: dict[str, str], by: str, events: list[StreamllEvent]) -> None:
    telemetry = Telemetry("indexer", "1.4.0", environ=environ)
    assert not telemetry.enable()
    assert not any(
        (
            telemetry.track_event("a"),
            telemetry.track_metric("a", 1),
            telemetry.track_error("a"),
            telemetry.track_log("a"),
        )
    )
    assert telemetry.flush()
    assert not events
    status = telemetry.get_status()
    assert (status["enabled"], status["opted_out_by"]) == (False, by)
    assert set(status["tracked"].values()) == {0}


@pytest.mark.parametrize("environ", [{}, {"DO_NOT_TRACK": "0"}, {"DO_NOT_TRACK": ""}, {"STREAMLL_ENABLED": "1"}])
def test_without_an_opt_out_it_is_enabled_and_disabled_by_the_code(
    environ: dict[str, str], events: list[StreamllEvent]
) -> None:
    telemetry = Telemetry("indexer", "1.4.0", True, environ=environ)
    assert not telemetry.enabled
    assert not telemetry.track_event("a")
    assert telemetry.enable()
    assert telemetry.track_event("b")
    telemetry.track_metric("counted", 1)
    telemetry.disable()
    telemetry.track_event("c")
    assert telemetry.flush()
    assert [event.event_type for event in events] == ["b"]  # what was counted and not sent is forgotten
    telemetry.enable()
    telemetry.track_metric("counted", 2)
    telemetry.flush()
    assert events[-1].data["series"][0]["total"] == 2
    telemetry.disable()


def test_a_flush_reaches_the_sinks() -> None:
    sink = MemorySink()
    telemetry = Telemetry("indexer", "1.4.0", environ={}, interval=1000)
    assert not telemetry.track_event("too early")
    streamll.configure([sink], environ={})
    try:
        telemetry.track_event("a", {"api_key": "hunter2"})
        telemetry.track_metric("counted", 1, attrs={"password": "hunter2"})
        assert telemetry.flush(10)
        first, second = (event for event in sink.events if event.data.get("telemetry") == IDENTITY)
        assert first.data["api_key"] == "[redacted]"
        assert second.data["series"][0]["labels"] == {"password": "[redacted]"}
        assert telemetry.get_status()["configured"]
        assert telemetry.get_status()["refused"] == {"no_sink": 1}
        assert sink.stats().balanced
    finally:
        telemetry.disable()
        streamll.shutdown()
    assert not hub.active


@pytest.mark.parametrize("wrong", [("", "1"), ("a", ""), (None, "1"), ("a", 1), ("a" * 201, "1")])
def test_a_project_has_a_name_and_a_version(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="telemetry "):
        Telemetry(*wrong)


def test_options_of_metrics_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="metrics "):
        Telemetry("indexer", "1", interval=0)
