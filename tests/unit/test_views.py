"""The summary: what is counted, how exact its quantiles are, and that hostile events cannot spoil it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.models import StreamllEvent
from streamll.views.summary import OTHERS, Summary, summarise


def call(operation: str, ms: float, **data: Any) -> StreamllEvent:
    return StreamllEvent(event_type="span", operation=operation, data={"duration_ns": round(ms * 1e6), **data})


def test_calls_errors_and_events_of_each_operation() -> None:
    summary = summarise(
        [
            call("retrieve", 3),
            call("retrieve", 1),
            call("retrieve", 2, error={"type": "KeyError", "message": "k"}),
            StreamllEvent(event_type="span", operation="retrieve", level="error"),
            StreamllEvent(event_type="cache_miss", operation="retrieve"),
            call("generate", 500),
        ]
    )
    generate, retrieve = summary.operations()  # what took most time comes first
    assert (generate.operation, generate.calls, generate.errors, generate.events) == ("generate", 1, 0, 0)
    assert (retrieve.operation, retrieve.calls, retrieve.errors, retrieve.events) == ("retrieve", 4, 2, 1)
    assert retrieve.total_ms == pytest.approx(6)
    assert retrieve.p50_ms == pytest.approx(2, rel=0.01)
    assert retrieve.max_ms == 3


def test_what_an_event_without_an_operation_is_counted_under() -> None:
    summary = summarise(
        [
            StreamllEvent(event_type="span", module_name="app", method_name="answer"),
            StreamllEvent(event_type="error", method_name="answer"),
            StreamllEvent(event_type="log"),
        ]
    )
    assert [row.operation for row in summary.operations()] == ["app.answer", "answer", "log"]


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300))
def test_quantiles_are_within_one_percent(durations: list[int]) -> None:
    (row,) = summarise(call("x", ns / 1e6) for ns in durations).operations()
    durations.sort()
    for share, found in ((0.5, row.p50_ms), (0.95, row.p95_ms)):
        exact = durations[math.ceil(share * len(durations)) - 1] / 1e6
        assert found == pytest.approx(exact, rel=0.01, abs=1e-6)
    assert row.max_ms == durations[-1] / 1e6


def test_memory_does_not_grow_with_the_number_of_events() -> None:
    summary = Summary(most_operations=10)
    for number in range(5000):
        summary.add(call(f"operation {number}", number))
    rows = summary.operations()
    assert len(rows) == 11
    assert next(row for row in rows if row.operation == OTHERS).calls == 4990
    assert sum(row.calls for row in rows) == 5000


@pytest.mark.parametrize("duration", [None, "1", True, -1, 1.5, 10**40, [], float("nan")])
def test_durations_that_are_none(duration: object) -> None:
    (row,) = summarise([StreamllEvent(event_type="span", operation="x", data={"duration_ns": duration})]).operations()
    assert (row.calls, row.total_ms, row.p50_ms, row.p95_ms, row.max_ms) == (1, 0.0, None, None, None)


def test_extremes() -> None:
    (row,) = summarise([call("x", 0), call("x", 2**62 / 1e6)]).operations()
    assert row.p50_ms == 0
    assert row.p95_ms == pytest.approx(2**62 / 1e6, rel=0.01)


def test_the_table() -> None:
    summary = summarise(
        [call("retrieve", 1.5), call("retrieve", 1.5), call("generate", 2000), StreamllEvent(event_type="log")]
    )
    assert summary.table().splitlines() == [
        "operation  calls  errors  events     p50 ms     p95 ms     max ms   total ms",
        "generate       1       0       0  2,000.000  2,000.000  2,000.000  2,000.000",
        "retrieve       2       0       0      1.500      1.500      1.500      3.000",
        "log            0       0       1          -          -          -          -",
    ]


def test_the_table_is_harmless_to_a_terminal() -> None:
    table = summarise([call("\x1b[2J\u202eevil\n", 1), call("x" * 10_000, 1)]).table()
    assert "\x1b" not in table
    assert "\u202e" not in table
    assert len(table.splitlines()) == 3
    assert max(map(len, table.splitlines())) < 300


def test_an_empty_summary() -> None:
    assert Summary().operations() == []
    assert len(Summary().table().splitlines()) == 1
