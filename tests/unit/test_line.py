"""An event as a line of text: readable, and harmless to a terminal whatever is in it."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.models import StreamllEvent
from streamll.views.line import format_event, neutral

NOON = 1_700_000_000_123_456_789
LOCAL = datetime.fromtimestamp(NOON // 10**9, timezone.utc).astimezone()
CLOCK = LOCAL.strftime("%H:%M:%S") + ".123"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def make(event_type: str = "token", **fields: Any) -> StreamllEvent:
    return StreamllEvent(**{"event_type": event_type, "timestamp": NOON, **fields})


def test_what_is_empty_is_left_out() -> None:
    assert format_event(make()) == f"{CLOCK} token"


def test_a_full_event() -> None:
    event = make(
        operation="generate",
        level="info",
        data={"text": "Hi there", "n": 3, "ok": True, "none": None, "list": [1, "a"], "word": "plain"},
        tags=["blue", "two words"],
        execution_id=TRACE,
    )
    assert format_event(event) == (
        f'{CLOCK} INFO    token generate text="Hi there" n=3 ok=true none=null list=[1,"a"] word=plain '
        '#blue #"two words" [4bf92f35]'
    )


def test_a_span_shows_its_duration_and_its_error() -> None:
    data = {"k": 5, "duration_ns": 12_345_678, "error": {"type": "ValueError", "message": "no such\nthing"}}
    line = format_event(make("span", operation="retrieve", level="error", data=data))
    assert line == rf"{CLOCK} ERROR   span retrieve k=5 (12.3 ms) ValueError: no such\nthing"


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1500, "1.5 µs"),
        (2_000_000, "2 ms"),
        (61 * 10**9, "61 s"),
        (5 * 10**12, "5,000 s"),
    ],
)
def test_durations(ns: int, shown: str) -> None:
    assert f"({shown})" in format_event(make(data={"duration_ns": ns}))


def test_without_an_operation_the_function_is_named() -> None:
    assert format_event(make(module_name="app.search", method_name="find")) == f"{CLOCK} token app.search.find"


def test_tags_as_a_map() -> None:
    assert format_event(make(tags={"tenant": "blue"})) == f"{CLOCK} token #tenant=blue"


def test_with_the_date() -> None:
    assert format_event(make(), dated=True) == f"{LOCAL:%Y-%m-%d} {CLOCK} token"


@pytest.mark.parametrize("timestamp", [10**30, -(10**30)])
def test_a_time_beyond_the_calendar_is_shown_as_it_is(timestamp: int) -> None:
    assert str(timestamp) in format_event(make(timestamp=timestamp))


def test_colour_adds_nothing_but_colour() -> None:
    event = make(level="warning", operation="x", data={"a": 1}, tags=["t"], execution_id=TRACE)
    coloured = format_event(event, color=True)
    assert "\x1b[33m" in coloured
    assert COLOR.sub("", coloured) == format_event(event)


def test_a_long_line_is_cut() -> None:
    event = make(data={"a": "x" * 500, "b": "y" * 500}, tags=["never-shown"])
    line = format_event(event, limit=600)
    assert len(line) == 600
    assert line.endswith("…")
    assert "never-shown" not in line
    coloured = format_event(event, limit=600, color=True)
    assert COLOR.sub("", coloured) == line
    assert coloured.count("\x1b[0m") == len(COLOR.findall(coloured)) // 2


def test_what_json_does_not_know_is_named() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert format_event(make(data={"deep": deep, "odd": {(1, 2): 3}})) == f"{CLOCK} token deep=<list> odd=<dict>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202egnp.exe", r"abc\u202egnp.exe"),
        ("line\u2028two", r"line\u2028two"),
        ("\ud800", r"\ud800"),
        ("naïve 日本 👍", "naïve 日本 👍"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert neutral(text) == shown


@given(st.text(), st.dictionaries(st.text(), st.text()), st.lists(st.text(), max_size=3))
def test_no_text_of_an_event_reaches_the_terminal_as_a_command(
    text: str, data: dict[str, str], tags: list[str]
) -> None:
    event = make(text or "x", operation=text, level=text, module_name=text, data={**data}, tags=tags, execution_id=text)
    line = format_event(event)
    assert [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")] == []
    assert len(line.splitlines()) == 1


def metric(kind: str, *rows: dict[str, Any], **data: Any) -> str:
    """The line of a metric event, from its operation on."""
    data = {"name": "m", "kind": kind, "unit": "", "temporality": "", "end_ns": 1, "series": list(rows), **data}
    return format_event(make("metric", operation="m", data=data)).removeprefix(f"{CLOCK} metric m ")


def test_a_metric_s_numbers_are_put_into_words() -> None:
    labels = {"route": "/x y", "method": "GET"}
    assert metric("counter", {"labels": labels, "delta": 3, "total": 1200}) == '{route="/x y" method=GET} +3 (1,200)'
    assert metric("counter", {"labels": {}, "delta": 0.5, "total": 2.25}, unit="s", team="a") == "+0.5 (2.25) s team=a"
    assert metric("gauge", {"labels": {}, "value": 5, "min": 5, "max": 5}) == "5"
    assert metric("gauge", {"labels": {"q": "a"}, "value": 5, "min": 2, "max": 9}, unit="MB") == "{q=a} 5 (2 to 9) MB"
    timing = {"labels": {}, "delta": 50, "p50": 24.0, "p95": 47.0665, "p99": 48.968, "sketch": {"counts": [1]}}
    assert metric("histogram", timing, unit="ms") == "50: p50=24 p95=47.07 p99=48.97 ms"
    assert metric("histogram", {"labels": {}, "delta": 0, "p50": None}) == "0"
    assert metric("counter", *({"labels": {"n": n}, "delta": n, "total": n} for n in "12")).startswith("name=m")
    both = [{"labels": {"n": str(n)}, "delta": n, "total": n} for n in (1, 2)]
    assert metric("counter", *both) == "{n=1} +1 (1) {n=2} +2 (2)"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"series": 5},
        {"series": []},
        {"series": [5]},
        {"kind": "counter", "series": [{"labels": {}, "delta": 1}]},
        {"kind": "counter", "series": [{"delta": 1, "total": 1}]},
        {"kind": "counter", "series": [{"labels": {}, "delta": 10**400, "total": float("nan")}]},
        {"kind": "gauge", "series": [{"labels": {}, "value": "5"}]},
        {"kind": "histogram", "series": [{"labels": {}}]},
        {"kind": ["sum"], "series": [{"labels": {}}]},
    ],
)
def test_what_only_calls_itself_a_metric_is_shown_like_any_event(data: dict[str, Any]) -> None:
    shown = format_event(make("metric", data=data))
    assert shown == format_event(make("token", data=data)).replace("token", "metric", 1)


def test_a_metric_cannot_harm_a_terminal() -> None:
    row = {"labels": {"\x1b[2J": "\u202e"}, "delta": 1, "total": 1}
    line = format_event(make("metric", data={"kind": "counter", "unit": "\x1b[31m", "series": [row]}))
    assert "\x1b" not in line
    assert "\u202e" not in line
