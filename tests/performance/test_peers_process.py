"""What a call costs in this process: streamll beside OpenTelemetry, logging, structlog, loguru and Sentry."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest

from tests.performance.child import Children
from tests.performance.measuring import Race
from tests.performance.results import Aim, Findings

LABELS = {
    "append": "deque.append",
    "emit": "streamll.emit",
    "span": "streamll.span",
    "opentelemetry": "OpenTelemetry SDK span, BatchSpanProcessor",
    "queue_logging": "logging, QueueHandler",
    "structlog": "structlog, JSON to a file",
    "loguru": "loguru, enqueue=True, JSON to a file",
    "sentry": "sentry-sdk span",
}
NOTES = {
    "append": "the bare minimum: keeps a reference; no id, no time, no encoding, and it goes nowhere",
    "emit": "ids, time, span, redaction by key, encoding to MessagePack and a bounded buffer; what is lost is counted; with "
    "durability=memory a crash loses what was not delivered yet",
    "span": "the same, for a start and an end",
    "opentelemetry": "ids, times, attributes; not encoded (an exporter does that in its thread; here it only counts); full "
    "(2,048 by default, 1,000,000 here) it drops the oldest, with a line in the log; a crash loses what waits",
    "queue_logging": "time, level and place in the code; no ids; formatted to a line of text before it is queued; the queue "
    "has no bound; a crash loses what waits",
    "structlog": "written and flushed before it returns, so it outlives the process; the caller does the I/O, and waits for "
    "a slow disk",
    "loguru": "pickled into a pipe that a thread reads; when the pipe is full the caller waits; a crash loses what waits",
    "sentry": "ids, times, data; kept until its transaction ends, which the caller then serializes (one for 500 spans: in "
    "the CPU figure and in the maximum); beyond 1,000 spans in a transaction it drops them; here nothing is sent",
}
NEEDED = {
    "opentelemetry-sdk": "opentelemetry.sdk",
    "structlog": "structlog",
    "loguru": "loguru",
    "sentry-sdk": "sentry_sdk",
}


def is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def test_one_call(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    missing = [name for name, module in NEEDED.items() if not is_here(module)]
    if missing:
        pytest.skip(f"not installed, since it comes with the extra `performance`: {', '.join(missing)}")
    findings.about("peers", "One call in this process")
    homes = {name: children.start("peers", name=name) for name in LABELS}
    n, rounds = (300, 2) if quick else (3_000, 7)
    laps = race({name: partial(homes[name], "lap", n=n) for name in LABELS}, rounds, subject="emit")
    for name, own in laps.items():
        assert own[-1].value["arrived"] == own[-1].value["made"], name
    figures = {name: [lap.value for lap in own] for name, own in laps.items()}
    medians = {name: [lap["median"] for lap in own] for name, own in figures.items()}
    otel = ("OpenTelemetry span", medians["opentelemetry"])
    for name, label in LABELS.items():
        aim = Aim(at_most=round(1 / 15, 4), of_ratio=True) if name == "emit" else None
        to = None if name == "opentelemetry" else otel
        findings.row(f"{label}: the caller's time, median", medians[name], "us", to=to, aim=aim, note=NOTES[name])
    for name, label in LABELS.items():
        findings.row(f"{label}: p99", [lap["p99"] for lap in figures[name]], "us")
    for name, label in LABELS.items():
        to = (
            None
            if name == "opentelemetry"
            else ("OpenTelemetry span", [lap["cpu"] for lap in figures["opentelemetry"]])
        )
        findings.row(f"{label}: CPU an event, all threads", [lap["cpu"] for lap in figures[name]], "us", to=to)
    findings.say(
        "Every one gets the same three keys of data, in a process of its own; each lap counts what arrived at its far end. "
        "Behind streamll and OpenTelemetry stands a sink that only counts."
    )
    findings.series["peers"] = {LABELS[name]: own for name, own in medians.items()}
