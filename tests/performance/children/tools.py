"""What a call of a tool takes in its caller, and of a peer's: one call for each process.

What belongs here: the calls, set up as in a program that uses them. What does not: what a whole program pays
(overhead.py), or spans and events of others (peers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import repeat
from time import process_time
from typing import Any

import streamll
from streamll.hub import hub
from tests.performance.calls import EVENT, nothing, time_calls
from tests.performance.child import Answer, Work, serve
from tests.performance.children.peers import CountingSink

Call = Callable[[], object]

TWELVE: Mapping[str, Any] = {
    "operation_name": "retrieve",
    "question": "Which of the papers that we have read say something of the tides, and what do they say of them?",
    "model": "a-model-2026-01",
    "temperature": 0.7,
    "token_count": 1024,
    "cached": False,
    "path": "/v1/answers/20260102/papers",
    "request_id": "8a4b1c6d-0f3e-4c59-9a51-7d2f1e6b9c04",
    "region": "eu-west-1",
    "attempt": 2,
    "duration_ms": 12.75,
    "version": "4.18.2",
}
"""Twelve attributes of a usual kind, with nothing in them that is to be redacted."""

ONE: Mapping[str, Any] = {
    **TWELVE,
    "question": "Which of them says something of the tides? Write to jane.doe@example.com",
}
"""The same, with one e-mail address."""

FIVE: Mapping[str, Any] = {
    **{name: value for name, value in TWELVE.items() if name != "attempt"},
    "question": "Write to jane.doe@example.com, or call +44 20 7123 4567, and charge 4111 1111 1111 1111",
    "authorization": "Bearer 5f2b",
    "version": "postgres://app:hunter2@db.example.com/app",
}
"""As many, with an e-mail address, numbers of a telephone and of a card, a key and a URL that must go."""

ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {"none": TWELVE, "one": ONE, "five": FIVE}
HOW: Mapping[str, object] = {"off": False, "keys": True, "full": "full"}


def root_span() -> Call:
    """A span whose event goes nowhere: all that is done before it would be delivered."""
    hub.fill(lambda event: True, lambda a, b, c, d, e, f, g, h, i, j, k, m, n: True)  # a tuple of them takes time too
    return disabled_span()


def span() -> Call:
    """The same, inside of a span, as nearly all are."""
    call = root_span()
    streamll.span("request").__enter__()
    return call


def watched_span() -> Call:
    """The same, while all tools watch."""
    streamll.monitor(profile=True, memory=True)
    return span()


def disabled_span() -> Call:
    def call() -> None:
        with streamll.span("retrieve", k=5, cached=False):
            pass

    return call


def disabled_span_bare() -> Call:
    def call() -> None:
        with streamll.span("retrieve"):
            pass

    return call


def _redacting(redact: object, attributes: Mapping[str, Any]) -> Call:
    streamll.configure(sinks=[CountingSink()], redact=redact)
    data = dict(attributes)

    def call() -> None:
        streamll.emit("answered", data)

    return call


def trace_event() -> Call:
    streamll.configure(sinks=[CountingSink()])
    tracer = streamll.EventTracer().start()
    return lambda: tracer.trace_event("token", EVENT)


def _function() -> None:
    pass


def _call_it() -> None:
    _function()  # looked up at each call, since it may have been replaced


def function() -> Call:
    return _function


def profiled() -> Call:
    streamll.configure(sinks=[CountingSink()])
    profiler = streamll.ActionProfiler().start()
    call: Call = profiler.profile(_function)
    return call


def traced() -> Call:
    root_span()
    return streamll.trace(_function)


def called() -> Call:
    return _call_it


def auto_traced() -> Call:
    """A call that automatic tracing makes a span of; by itself it would leave alone what is called so often."""
    root_span()
    streamll.AutoTracer(patterns=f"{__name__}:_function", max_rate=1_000_000).start()
    return _call_it


def auto_traced_too_often() -> Call:
    """The same beyond the rate up to which functions are traced, as all is that is called so often."""
    root_span()
    streamll.AutoTracer(patterns=f"{__name__}:_function").start()
    return _call_it


def stream_item() -> Call:
    """An item of a stream that is watched."""
    root_span()
    return iter(streamll.stream(repeat("token"), "generate")).__next__


def stream_item_bare() -> Call:
    return iter(repeat("token")).__next__


def _metrics() -> Any:
    streamll.configure(sinks=[CountingSink()])
    return import_module("streamll.monitors.metrics").Metrics().start()


def counter() -> Call:
    made = _metrics().counter("requests")
    return lambda: made.add(1)


def counter_labels() -> Call:
    made = _metrics().counter("requests")
    return lambda: made.add(1, method="GET", status=200)


def histogram() -> Call:
    made = _metrics().histogram("seconds")
    return lambda: made.record(0.0123)


def prometheus_counter() -> Call:
    made = import_module("prometheus_client").Counter("requests", "Requests.")
    return lambda: made.inc(1)


def prometheus_counter_labels() -> Call:
    made = import_module("prometheus_client").Counter("requests", "Requests.", ["method", "status"])
    return lambda: made.labels(method="GET", status=200).inc(1)


def prometheus_histogram() -> Call:
    made = import_module("prometheus_client").Histogram("seconds", "Seconds.")
    return lambda: made.observe(0.0123)


def _meter() -> Any:
    sdk, export = import_module("opentelemetry.sdk.metrics"), import_module("opentelemetry.sdk.metrics.export")
    return sdk.MeterProvider([export.InMemoryMetricReader()]).get_meter("benchmark")


def otel_counter() -> Call:
    made = _meter().create_counter("requests")
    return lambda: made.add(1)


def otel_counter_labels() -> Call:
    made = _meter().create_counter("requests")
    return lambda: made.add(1, {"method": "GET", "status": 200})


def otel_histogram() -> Call:
    made = _meter().create_histogram("seconds")
    return lambda: made.record(0.0123)


CALLS: Mapping[str, Callable[[], Call]] = {
    made.__name__: made
    for made in (
        span, root_span, watched_span, disabled_span, disabled_span_bare, trace_event, function, profiled,
        traced, called, auto_traced, auto_traced_too_often, stream_item, stream_item_bare,
        counter, counter_labels, histogram,
        prometheus_counter, prometheus_counter_labels, prometheus_histogram,
        otel_counter, otel_counter_labels, otel_histogram,
    )
} | {
    f"redact_{how}_{what}": partial(_redacting, redact, attributes)
    for how, redact in HOW.items()
    for what, attributes in ATTRIBUTES.items()
}  # fmt: skip


def _cpu(call: Call, n: int) -> float:
    """The microseconds of processor time of one call, all threads together, what is put off included; so many at least."""
    n = max(n, 5_000)  # what is put off has its price also when it is for few
    start = process_time()
    for _ in range(n):
        call()
    streamll.flush(30)
    return (process_time() - start) / n * 1e6


def make(call: str) -> Mapping[str, Work]:
    made = CALLS[call]()

    def lap(n: int, all_of_it: bool = False) -> Answer:
        timed = time_calls(made, n)
        streamll.flush(30)  # what waits behind a call is not to come beside the next one's
        return {**timed, "cpu": _cpu(made, n) - _cpu(nothing, n)} if all_of_it else {**timed}

    return {"lap": lap}


if __name__ == "__main__":
    serve(make)
