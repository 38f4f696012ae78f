"""The sketch: its quantiles against exact ones, merging against one sketch of everything, and maps made by strangers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamll.codec import decode, encode
from streamll.models import StreamllEvent
from streamll.sketch import MAX_BUCKETS, QuantileSketch

SHARES = (0.0, 0.001, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

# All magnitudes, and such as lie close together: the quantiles of the one kind are easy, those of the other are not.
anything = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**64), 2**64)
alike = st.floats(0.5, 50) | st.floats(-50, -0.5) | st.just(0) | st.floats(1, 1.1)
numbers = st.lists(anything, max_size=60) | st.lists(alike, max_size=120)
# Of one sign as far apart as can be told apart, whatever the largest is.
near = st.lists(st.floats(1e-8, 1e8) | st.floats(-1e8, -1e-8) | st.just(0.0), max_size=80)


# Each example of these makes several sketches.
fewer = settings(max_examples=settings().max_examples // 2)


def sketch_of(values: list[float], **given: Any) -> QuantileSketch:
    sketch = QuantileSketch(**given)
    for value in values:
        sketch.add(value)
    return sketch


def exactly(values: list[float], q: float) -> float:
    """The quantile by its definition, in exact arithmetic but for the product."""
    return sorted(float(value) for value in values)[min(len(values), max(1, math.ceil(q * len(values)))) - 1]


def places(values: list[float], relative_error: float, most: int) -> Iterator[tuple[set[float], int]]:
    """For each sign: the values that are not too near to zero, beside the largest; and how many lie nearer still."""
    scale = math.log(1 + 2 * relative_error)
    for sign in (1, -1):
        side = {value: math.ceil(math.log(abs(value)) / scale) for value in values if value * sign > 0}
        floor = max(side.values(), default=0) - most + 1
        apart = {value for value, index in side.items() if index > floor}
        yield apart, sum(side.get(value, floor) < floor for value in values)


def without_total(sketch: QuantileSketch) -> dict[str, Any]:
    """All that does not depend on the order of addition."""
    return {name: value for name, value in sketch.to_dict().items() if name != "total"}


def assert_is_that_of(sketch: QuantileSketch, values: list[float]) -> None:
    assert sketch.count == len(values)
    assert sketch.minimum == (min(map(float, values)) if values else None)
    assert sketch.maximum == (max(map(float, values)) if values else None)
    exact_total = sum((Fraction(value) for value in values), Fraction())
    slack = sum((abs(Fraction(value)) for value in values), Fraction()) * Fraction(1, 2**40)
    assert abs(Fraction(sketch.total) - exact_total) <= slack or abs(exact_total) > 1e308
    apart = {0.0}.union(*(found for found, _ in places(values, sketch.relative_error, sketch.max_buckets)))
    for q, found in zip(SHARES, sketch.quantiles(SHARES), strict=True):
        if not values:
            assert found is None
            continue
        exact = exactly(values, q)
        assert found is not None
        if exact in apart:
            # The smallest floats of all are farther apart than 1 %.
            assert abs(Fraction(found) - Fraction(exact)) <= max(
                abs(Fraction(exact)) * Fraction(sketch.relative_error), Fraction(5e-324)
            )
        assert found == sketch.quantile(q)


@given(numbers | near)
@example([1.7976931348623157e308, 5e-324, -5e-324, -1.7976931348623157e308])
@example([1.7976931348623157e308, 1.7976931348623157e308])
@example([1.02**n for n in range(-40, 40)])
def test_quantiles_are_within_the_relative_error(values: list[float]) -> None:
    assert_is_that_of(sketch_of(values), values)


@given(near, st.floats(0.001, 0.5))
def test_the_relative_error_is_what_was_asked_for(values: list[float], relative_error: float) -> None:
    assert_is_that_of(sketch_of(values, relative_error=relative_error, max_buckets=1 << 16), values)


@fewer
@given(st.lists(numbers | near, max_size=5))
def test_merged_sketches_say_what_one_of_everything_says(parts: list[list[float]]) -> None:
    everything = [value for part in parts for value in part]
    merged = QuantileSketch()
    for part in parts:
        other = sketch_of(part)
        before = other.to_dict()
        merged.merge(other)
        assert other.to_dict() == before
    assert_is_that_of(merged, everything)
    assert without_total(merged) == without_total(sketch_of(everything))


small = st.lists(st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3), max_size=60)


@fewer
@given(st.lists(small, min_size=1, max_size=4), st.integers(1, 40), st.randoms(use_true_random=False))
def test_what_is_collapsed_does_not_depend_on_order_reading_or_merging(
    parts: list[list[float]], most: int, random: Any
) -> None:
    everything = [value for part in parts for value in part]
    whole = sketch_of(everything, max_buckets=most)
    merged = QuantileSketch(max_buckets=most)
    for part in parts:
        merged.merge(QuantileSketch.from_dict(sketch_of(part, max_buckets=most).to_dict()))
    random.shuffle(everything)
    shuffled = QuantileSketch(max_buckets=most)
    for value in everything:
        shuffled.add(value)
        if random.random() < 0.2:
            shuffled.quantile(0.5)
    assert without_total(whole) == without_total(merged)
    assert shuffled.to_dict()["counts"] == whole.to_dict()["counts"]
    assert shuffled.collapsed == whole.collapsed == merged.collapsed
    assert whole.collapsed == sum(below for _, below in places(everything, 0.01, most))
    assert len(whole.to_dict()["counts"]) <= most
    assert_is_that_of(whole, everything)


def test_a_sketch_of_fewer_buckets_may_be_merged_with_one_of_more() -> None:
    values = [1.5**n for n in range(100)]
    for first, second in ((10, 2048), (2048, 10)):
        merged = sketch_of(values[::2], max_buckets=first)
        merged.merge(sketch_of(values[1::2], max_buckets=second))
        alone = sketch_of(values, max_buckets=10)
        assert merged.to_dict()["counts"] == alone.to_dict()["counts"]
        assert merged.collapsed == alone.collapsed == 99


def test_merging_with_itself_doubles_it() -> None:
    sketch = sketch_of([1, 2.5, 0, -3, math.nan])
    sketch.merge(sketch)
    twice = sketch_of([1, 2.5, 0, -3, math.nan] * 2)
    assert sketch.to_dict() == twice.to_dict()


@given(st.lists(st.tuples(anything, st.integers(0, 5)), max_size=20))
def test_a_number_that_came_several_times_at_once(counted: list[tuple[float, int]]) -> None:
    sketch = QuantileSketch()
    for value, count in counted:
        sketch.add(value, count)
    one_by_one = sketch_of([value for value, count in counted for _ in range(count)])
    assert without_total(sketch) == without_total(one_by_one)


@given(st.lists(numbers | near | st.lists(st.floats()) | st.lists(st.floats(1e-8, 1e300)), max_size=4))
@example([[1.0, math.nan, 2.0], [1e308, 1e308], [True, 2.0]])
def test_several_numbers_at_once_are_counted_as_each_alone(parts: list[list[float]]) -> None:
    sketch = QuantileSketch()
    for part in parts:
        sketch.extend(part)
    one_by_one = sketch_of([value for part in parts for value in part])
    assert without_total(sketch) == without_total(one_by_one)
    assert sketch.total == pytest.approx(one_by_one.total)


class Size(IntEnum):
    SMALL = 3


class Odd(float):
    def __float__(self) -> float:
        raise AssertionError("its code was called")

    __gt__ = __lt__ = __mul__ = __radd__ = __eq__ = __float__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def test_numbers_of_other_kinds_are_read_without_their_code() -> None:
    sketch = sketch_of([Size.SMALL, Odd(2.0), 10**300])
    assert (sketch.count, sketch.minimum, sketch.maximum) == (3, 2.0, 1e300)


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400, -(10**400), True, None, "1", [], 1j, object()]
)
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_no_finite_number_is_refused_and_counted(value: Any, count: int) -> None:
    sketch = sketch_of([1.0, 2.0])
    sketch.add(value, count)
    assert sketch.refused == count
    assert (sketch.count, sketch.total, sketch.minimum, sketch.maximum) == (2, 3.0, 1.0, 2.0)
    assert QuantileSketch.from_dict(sketch.to_dict()).refused == count


def test_a_total_beyond_all_floats_stays_a_number() -> None:
    sketch = sketch_of([1.7e308, 1.7e308])
    sketch.add(-1.7e308, 2**60)
    sketch.merge(sketch_of([-1.7e308] * 3))
    assert math.isfinite(sketch.total)
    assert json.loads(json.dumps(sketch.to_dict(), allow_nan=False))["count"] == sketch.count


def test_clear_forgets_all_but_what_was_refused() -> None:
    sketch = sketch_of([1, -1, 0, math.nan])
    sketch.clear()
    assert sketch.to_dict() == {**QuantileSketch().to_dict(), "refused": 1}
    sketch.add(5)
    assert sketch.quantile(0.5) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: QuantileSketch(0.0001),
        lambda: QuantileSketch(0.9),
        lambda: QuantileSketch(math.nan),
        lambda: QuantileSketch(max_buckets=0),
        lambda: QuantileSketch(max_buckets=10**9),
        lambda: QuantileSketch().quantile(1.1),
        lambda: QuantileSketch().quantile(-0.1),
        lambda: QuantileSketch().quantile(math.nan),
        lambda: QuantileSketch().add(1, -1),
        lambda: QuantileSketch().add(1, 2**63),
        lambda: QuantileSketch().add(1, 1.5),  # type: ignore[arg-type]
        lambda: QuantileSketch(0.01).merge(QuantileSketch(0.02)),
    ],
)
def test_misuse_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong()


@fewer
@given(numbers | near)
def test_it_comes_back_from_an_event(values: list[float]) -> None:
    sketch = sketch_of(values)
    for content_type in ("application/msgpack", "application/json"):
        event = decode(encode(StreamllEvent(event_type="metric", data={"sketch": sketch.to_dict()}), content_type))
        again = QuantileSketch.from_dict(event.data["sketch"])
        assert again.to_dict() == sketch.to_dict()
        assert again.quantiles(SHARES) == sketch.quantiles(SHARES)


GOOD = sketch_of([1, 2, 3, -5, 0]).to_dict()
FULL = sketch_of([1.02**n * 1.001 for n in range(30)], max_buckets=5).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"relative_error": None},
        {"relative_error": 2},
        {"relative_error": math.nan},
        {"count": 6},
        {"count": "5"},
        {"count": -1},
        {"zeros": -1},
        {"zeros": True},
        {"zeros": 2**63},
        {"refused": "1"},
        {"total": math.inf},
        {"total": 10**400},
        {"total": None},
        {"min": math.nan},
        {"min": 4},
        {"max": -6},
        {"max": 1e300},
        {"min": -5e300},
        {"min": 0},
        {"indexes": None},
        {"indexes": [1, 2]},
        {"indexes": [1, 1, 2]},
        {"indexes": [1, 2, "3"]},
        {"indexes": [1, 2, 2**40]},
        {"indexes": [1, 2, 3.0]},
        {"counts": [1, 1, 0]},
        {"counts": [1, 1, -1]},
        {"counts": [1, 1, 2**70]},
        {"counts": {0: 1}},
        {"collapsed": 2},
        {"collapsed": -1},
        {"negative_collapsed": 7},
    ],
)
def test_a_map_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sketch|relative_error"):
        QuantileSketch.from_dict({**GOOD, **change})


junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from([GOOD, FULL]),
    st.dictionaries(st.sampled_from([*GOOD, "collapsed", "negative_collapsed", "refused"]), junk, max_size=3),
    st.integers(1, 10),
)
def test_a_stranger_s_map_is_a_sketch_or_a_value_error(good: dict[str, Any], change: Any, most: int) -> None:
    try:
        sketch = QuantileSketch.from_dict({**good, **change}, most)
    except ValueError:
        return
    values = sketch.quantiles(SHARES)
    assert values == sorted(values, key=lambda value: value or 0)
    sketch.merge(QuantileSketch(sketch.relative_error))
    sketch.add(1e9)
    assert QuantileSketch.from_dict(sketch.to_dict()).to_dict() == sketch.to_dict()


@pytest.mark.parametrize("data", [None, [], "sketch", 1, {}])
def test_what_is_no_map_of_a_sketch(data: Any) -> None:
    with pytest.raises(ValueError, match=r"sketch|relative_error"):
        QuantileSketch.from_dict(data)


def test_its_size_has_a_bound_that_holds_seventeen_orders_of_magnitude() -> None:
    sketch = sketch_of([10.0 ** (n / 50) for n in range(-10_000, 10_000)])
    assert len(sketch.to_dict()["counts"]) <= MAX_BUCKETS
    assert sketch.collapsed
    nanoseconds = sketch_of([10.0 ** (n / 50) for n in range(17 * 50)])
    assert not nanoseconds.collapsed
