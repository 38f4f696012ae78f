"""Metrics and telemetry in a user's code, as a type checker sees it. It is checked, not run."""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

from streamll.monitors.measuring.instruments import BoundCounter, Counter, Gauge, Histogram
from streamll.monitors.metrics import Metrics, Registry, counter, gauge, histogram
from streamll.monitors.telemetry import MetricType, Telemetry
from streamll.sketch import QuantileSketch


def metrics(queue: list[str]) -> None:
    assert_type(counter("requests", unit="1"), Counter)
    counter("requests").add(1, route="/x", status=200)
    counter("requests").inc(route="/x")
    counter("requests").add("1")  # type: ignore[arg-type]
    assert_type(counter("requests").labels(route="/x"), BoundCounter)
    assert_type(gauge("waiting"), Gauge)
    gauge("waiting").watch(lambda: len(queue), queue="mail")
    gauge("waiting").watch(5)  # type: ignore[arg-type]
    assert_type(histogram("took", "s"), Histogram)
    with histogram("took").time(route="/x"):
        pass
    with Metrics({"interval": 5}, registry=Registry({"team": "blue"})) as tool:
        assert_type(tool, Metrics)
        assert_type(tool.counter("requests"), Counter)
        assert_type(tool.report(), dict[str, Any])


def telemetry() -> None:
    told = Telemetry("indexer", "1.0", disabled=True, interval=5)
    assert_type(told.track_event("built", {"documents": 3}), bool)
    told.track_metric("seconds", 0.5, MetricType.HISTOGRAM, {"shard": "a"})
    told.track_metric("seconds", 0.5, "histogram")
    told.track_error(ValueError("x"))
    told.track_log("ready", "warning")
    assert_type(told.flush(timeout=1), bool)
    assert_type(told.get_status(), dict[str, Any])


def sketch(values: list[float]) -> None:
    counted = QuantileSketch(0.02)
    for value in values:
        counted.add(value)
    assert_type(counted.quantile(0.5), float | None)
    counted.merge(QuantileSketch.from_dict(counted.to_dict()))
