"""Series of metrics: what labels and numbers are taken for, and that what readers get adds up whatever was refused."""

from __future__ import annotations

import math
import sys
import types
from decimal import Decimal
from enum import Enum, IntEnum
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.monitors.measuring.series import (
    LONGEST_WORD,
    SERIES,
    CounterSeries,
    GaugeSeries,
    HistogramSeries,
    in_parts,
    plain_number,
    word_of,
)
from streamll.sketch import QuantileSketch
from tests.unit.hostile import armed, hostile_class

SECOND = 1_000_000_000


class Color(Enum):
    RED = "red"


class Size(IntEnum):
    SMALL = 3


@pytest.mark.parametrize(
    ("value", "word", "says_all"),
    [
        ("/answer", "/answer", True),
        ("", "", True),
        (True, "true", True),
        (False, "false", True),
        (None, "none", True),
        (404, "404", True),
        (HTTPStatus.NOT_FOUND, "404", True),
        (-1.5, "-1.5", True),
        (2**64, "<int>", False),
        (Color.RED, "<Color>", False),
        (b"raw", "<bytes>", False),
        ("x" * 500, "x" * LONGEST_WORD, False),
    ],
)
def test_values_of_labels_become_words(value: Any, word: str, says_all: bool) -> None:
    assert word_of(value) == (word, says_all)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1),
        (-2.5, -2.5),
        (True, 1),
        (Size.SMALL, 3),
        (Decimal("1.5"), 1.5),
        (10**300, 10**300),
        (10**400, None),
        (Decimal("1e400"), None),
        (math.inf, None),
        (math.nan, None),
        ("1", None),
        (None, None),
        (object(), None),
    ],
)
def test_what_is_taken_for_a_number(value: Any, number: float | None) -> None:
    found = plain_number(value)
    assert found == number
    assert type(found) in (int, float, type(None))


def test_no_code_of_a_user_s_object_is_called() -> None:
    foreign, text, whole, real = (
        hostile_class(object)(),
        hostile_class(str)("red"),
        hostile_class(int)(7),
        hostile_class(float)(2.5),
    )
    with armed():
        words = [word_of(value)[0] for value in (foreign, text, whole, real)]
        numbers = [plain_number(value) for value in (foreign, text, whole, real)]
    assert words == ["<HostileObject>", "red", "7", "2.5"]
    assert numbers == [None, None, 7, 2.5]


def test_numpy_s_scalars_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = types.ModuleType("numpy")

    class Generic:
        def item(self) -> object:
            return {"int64": 7, "float32": 0.5, "longdouble": self}[type(self).__name__]

    numpy.generic = Generic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    scalars = [type(name, (Generic,), {"__module__": "numpy"})() for name in ("int64", "float32", "longdouble")]
    mine = type("int64", (Generic,), {"__module__": "mine"})()
    assert [plain_number(scalar) for scalar in [*scalars, mine]] == [7, 0.5, None, None]


def test_real_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    values = [numpy.int32(7), numpy.float32(0.5), numpy.float64("nan"), numpy.bool_(True), numpy.complex64(1)]
    assert [plain_number(value) for value in values] == [7, 0.5, None, 1, None]


values = st.integers(-5, 5) | st.integers(-(10**30), 10**30) | st.floats(-1e6, 1e6)
# Recordings, and the ends of intervals: whether what was sent then was accepted.
accepted = st.booleans()


def encoded(value: Any) -> float | None:
    """A number as an event may have it."""
    return float(value) if type(value) is int and not -(2**63) <= value < 2**64 else value


@given(st.lists(st.integers(0, 2**63) | accepted, max_size=30))
def test_a_counter_s_deltas_add_up_to_its_total(steps: list[int | bool]) -> None:
    series = CounterSeries({"route": "/x"}, SECOND)
    now, total, read, since = SECOND, 0, 0, SECOND
    for step in steps:
        now += SECOND
        if type(step) is int:
            series.total += step
            total += step
            continue
        assert series.cut() == (total != read)
        if total == read:
            assert not series.is_due(now, 0)
            since = now
            continue
        row = series.row(now)
        assert row["labels"] == {"route": "/x"}
        assert (row["start_ns"], row["since_ns"]) == (since, SECOND)
        assert [row["total"], row["delta"]] == [encoded(total), encoded(total - read)]
        if step:
            series.settle(now)
            read, since = total, now
    assert (series.read() or {"total": 0})["total"] == encoded(total)


@given(st.lists(values.map(lambda value: (value, False)) | st.tuples(values, st.just(True)) | accepted, max_size=30))
def test_a_gauge_tells_its_last_value_and_how_far_it_went(steps: list[Any]) -> None:
    series = GaugeSeries({}, SECOND)
    assert not series.cut()
    seen: list[float] = []
    value: float | None = None
    told: float | None = None
    for step in steps:
        if type(step) is tuple:
            amount, adding = step
            if adding:
                assert series.add(amount)
                value = (value or 0) + amount
            else:
                series.set(amount)
                value = amount
            seen.append(value)
            continue
        news = any(one != told for one in seen)
        assert series.cut() == news
        if news:
            row = series.row(SECOND)
            assert [row["value"], row["min"], row["max"]] == [encoded(value), encoded(min(seen)), encoded(max(seen))]
        if not news or step:
            seen = []
        if news and step:
            series.settle(SECOND)
            told = value
    assert (series.read() or {"value": None})["value"] == encoded(value)


def test_a_gauge_that_would_be_no_number_stays_as_it_is() -> None:
    series = GaugeSeries({}, SECOND)
    series.set(1.7e308)
    assert not series.add(1.7e308)
    assert series.value == 1.7e308


def without_total(sketch: QuantileSketch) -> dict[str, Any]:
    """All that does not depend on the order of addition."""
    return {name: value for name, value in sketch.to_dict().items() if name != "total"}


@given(st.lists(values | st.just(math.nan) | accepted, max_size=40))
def test_a_histogram_s_sketches_merge_to_that_of_everything(steps: list[Any]) -> None:
    series = HistogramSeries({}, SECOND)
    everything, read = QuantileSketch(), QuantileSketch()
    for step in [*steps, True]:
        if type(step) is not bool:
            series.sketch.add(step)
            everything.add(step)
            continue
        news = everything.count != read.count
        assert series.cut() == news
        if not news:
            continue
        row = series.row(SECOND)
        sketch = QuantileSketch.from_dict(row["sketch"])
        assert (row["delta"], row["total"]) == (sketch.count, everything.count)
        assert row["delta"] + read.count == everything.count
        assert row["sum"] == sketch.total
        assert [row["p50"], row["p95"], row["p99"]] == sketch.quantiles((0.5, 0.95, 0.99))
        if step:
            series.settle(SECOND)
            read.merge(sketch)
    assert {**without_total(read), "refused": 0} == {**without_total(everything), "refused": 0}
    assert series.refused == everything.refused
    whole = series.read()
    if everything.count:
        assert whole is not None
        assert (whole["total"], whole["min"], whole["p95"]) == (
            everything.count,
            everything.minimum,
            everything.quantile(0.95),
        )
    else:
        assert whole is None


@pytest.mark.parametrize("kind", SERIES)
def test_a_heartbeat_is_for_what_was_sent_and_has_not_changed(kind: str) -> None:
    series: Any = SERIES[kind]({}, SECOND)
    assert not series.is_due(100 * SECOND, 10 * SECOND)
    if kind == "counter":
        series.total = 5
    elif kind == "gauge":
        series.set(5)
    else:
        series.sketch.add(5)
    assert series.cut()
    first = series.row(100 * SECOND)
    series.settle(100 * SECOND)
    assert not series.cut()
    assert not series.is_due(109 * SECOND, 10 * SECOND)
    assert series.is_due(110 * SECOND, 10 * SECOND)
    assert not series.is_due(110 * SECOND, 0)
    again = series.row(110 * SECOND)
    assert again["start_ns"] == 110 * SECOND
    assert again.get("delta", 0) == 0
    assert again.get("total") == first.get("total")
    assert again.get("value") == first.get("value")
    series.reset(120 * SECOND)
    assert not series.cut()
    assert series.read() is None


def test_a_clock_that_was_set_back_makes_no_interval_that_ends_before_it_begins() -> None:
    series = CounterSeries({}, 50 * SECOND)
    series.total = 1
    series.cut()
    assert series.row(20 * SECOND)["start_ns"] == 20 * SECOND


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(300, 5000))
def test_rows_are_split_into_parts_in_their_order(sizes: list[int], most: int) -> None:
    series = CounterSeries({}, SECOND)
    rows: list[Any] = [(series, {"labels": {"n": "x" * size}}) for size in sizes]
    if len(sizes) % 2:
        rows.append((series, {"labels": {}, "sketch": {"counts": [1] * 100}}))
    parts = list(in_parts(iter(rows), most))
    assert [row for part in parts for row in part] == rows
    assert all(parts)
    for part in parts:
        assert len(part) == 1 or sum(200 + 4 * len(row["labels"].get("n", "")) for _, row in part) <= most
