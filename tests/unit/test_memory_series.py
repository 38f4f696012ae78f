"""How readings are thinned out: every level holds the floors of its stretches, and all of it stays as large as it was."""

from __future__ import annotations

import sys
from math import isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.monitors.memory.series import BUCKETS, FOLD, LEVELS, Point, Series


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**6), max_size=BUCKETS * FOLD * 3))
def test_every_level_holds_the_floors_of_its_stretches(values: list[int]) -> None:
    series = Series()
    for i, value in enumerate(values):
        series.add(Point(float(i), value, blocks=-value if i % 3 else nan))
    for level in range(LEVELS):
        width = FOLD**level
        whole = [values[i : i + width] for i in range(0, len(values) - width + 1, width)]
        assert series.added(level) == len(whole)
        points = series.points(level)
        assert [point.footprint for point in points] == [min(stretch) for stretch in whole][-BUCKETS:]
        assert [point.seconds for point in points] == [(n + 1) * width - 1 for n in range(len(whole))][-BUCKETS:]
        assert all(isnan(point.retained) for point in points)
        if level:
            assert [point.blocks for point in points] == [
                min(-v for i, v in enumerate(stretch, n * width) if i % 3) for n, stretch in enumerate(whole)
            ][-BUCKETS:]


def test_knows_how_high_it_was_before() -> None:
    series = Series()
    for i in range(BUCKETS * 3):
        series.add(Point(float(i), 500.0 if 16 <= i < 24 else 100.0 + i))
    oldest = series.points(0)[0].seconds
    assert series.highest_before(0, oldest) == 500.0
    assert series.highest_before(0, 15.0) == 112.0
    assert isnan(series.highest_before(0, 2.0))


def test_takes_no_memory_while_it_fills() -> None:
    """What watches Python's blocks must not add to them."""
    series = Series()
    series.add(Point(0.0, 1.0, 2.0, 3.0, 4.0))
    points = [Point(float(i), i * 1e6, i * 3.0, 5.0, 1e5 + i) for i in range(BUCKETS * FOLD)]
    before = sys.getallocatedblocks()
    for point in points:
        series.add(point)
    del point
    assert sys.getallocatedblocks() - before < 20


def test_what_the_coarsest_level_cannot_hold_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamll.monitors.memory.series.LEVELS", 2)
    series = Series()
    for n in range(FOLD * BUCKETS * 3):
        series.add(Point(*[float(n)] * len(Point._fields)))
    assert [len(level.points()) for level in series._levels] == [BUCKETS, BUCKETS]
