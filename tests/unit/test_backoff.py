"""The delay before attempt n, by strategies of tenacity."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from streamll.delivery.backoff import delays

DEFAULT = tenacity.wait_random_exponential(multiplier=0.1, max=30)


@given(st.integers(1, 10**6))
def test_full_jitter_stays_between_nothing_and_the_formula(failures: int) -> None:
    bound = 30.0 if failures > 20 else min(30.0, 0.1 * 2 ** (failures - 1))
    assert 0.0 <= delays(DEFAULT)(failures) <= bound


def test_full_jitter_uses_the_whole_width() -> None:
    delay = delays(DEFAULT)
    before = random.getstate()
    random.seed(1)
    try:
        drawn = [delay(20) for _ in range(1000)]
    finally:
        random.setstate(before)
    assert min(drawn) < 3.0
    assert max(drawn) > 27.0
    assert 13.0 < sum(drawn) / len(drawn) < 17.0


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (tenacity.wait_fixed(2), [2.0, 2.0, 2.0]),
        (tenacity.wait_none(), [0.0, 0.0, 0.0]),
        (tenacity.wait_incrementing(start=1, increment=2), [1.0, 3.0, 5.0]),
        (tenacity.wait_exponential(multiplier=1, max=3), [1.0, 2.0, 3.0]),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(5)), [1.0, 5.0, 5.0]),
        (tenacity.wait_fixed(1) + tenacity.wait_fixed(2), [3.0, 3.0, 3.0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_strategy_of_tenacity_will_do(wait: Any, expected: list[float]) -> None:
    delay = delays(wait)
    assert [delay(failures) for failures in (1, 2, 3)] == expected


def test_attempts_may_come_in_any_order() -> None:
    delay = delays(tenacity.wait_exponential(multiplier=1, max=1000))
    assert [delay(n) for n in (5, 1, 3)] == [16.0, 1.0, 4.0]


@pytest.mark.parametrize("odd", [-1.0, -math.inf, math.nan])
def test_a_delay_is_never_in_the_past(odd: float) -> None:
    assert delays(lambda _state: odd)(1) == 0.0
