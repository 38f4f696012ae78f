"""An alert is said once for each crossing, and a rate is one of the whole window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.monitors.memory.alerts import FILLED, RELIEF, Limit, Rate


class TestLimit:
    def test_is_said_once_for_each_crossing(self) -> None:
        limit = Limit(100.0)
        values = [50, 100, 101, 99, 101, 95, 500, None, 90, 101, 89.9, 101, 102]
        assert [value for value in values if limit.crossed(value)] == [101, 101]
        assert not Limit(None).crossed(1e300)

    @given(st.lists(st.floats(0, 200)))
    def test_is_said_again_only_after_relief(self, values: list[float]) -> None:
        limit, above = Limit(100.0), False
        for value in values:
            assert limit.crossed(value) == (value > 100 and not above)
            above = value > 100 or (above and value >= 100 * RELIEF)


class TestRate:
    @given(st.floats(0.001, 10), st.floats(-1e6, 1e6), st.floats(1, 100))
    def test_of_what_grows_evenly_is_how_it_grows(self, interval: float, slope: float, window: float) -> None:
        rate, found = Rate(window), []
        interval = max(interval, window / 200)
        steps = min(int(window / interval) + 20, 500)
        for n in range(steps):
            got = rate.add(1000 + n * interval, 5 + slope * n * interval)
            assert got is None or n * interval >= FILLED * window * 0.99
            found.append(got)
        if interval <= window / 20:
            assert found[-1] == pytest.approx(slope, rel=1e-3, abs=1e-3)

    def test_forgets_what_was_before_the_window(self) -> None:
        rate = Rate(10.0)
        for n in range(100):
            rate.add(float(n), 1000.0 * n)
        assert [rate.add(float(n), 99_000.0) for n in range(100, 120)][-1] == 0.0

    def test_is_not_told_of_two_readings_that_lie_far_apart(self) -> None:
        rate = Rate(10.0)
        assert rate.add(0.0, 0.0) is None
        assert rate.add(100.0, 1000.0) is None
