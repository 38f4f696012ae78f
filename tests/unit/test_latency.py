"""Latencies as a histogram: how near its quantiles are to the truth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.runtime.latency import _SAMPLED, Histogram, Latencies
from tests.unit.deliveries import entry

SECOND = 1_000_000_000


def histogram_of(latencies: list[int]) -> Histogram:
    """Each in a batch of its own, in nanoseconds."""
    histogram = Histogram()
    for latency in latencies:
        histogram.add_batch([entry(1, created=0)], latency)
    return histogram


def test_knows_nothing_at_first() -> None:
    histogram = Histogram()
    assert histogram.read() == Latencies()
    histogram.add_batch([], SECOND)
    assert histogram.read() == Latencies(None, None, None, None)


@given(st.lists(st.integers(1, 10**13), min_size=1, max_size=200))
def test_quantiles_are_at_most_an_eighth_above_the_truth_and_never_below(latencies: list[int]) -> None:
    read = histogram_of(latencies).read()
    ordered = sorted(latencies)
    for share, found in ((0.5, read.p50), (0.95, read.p95), (0.99, read.p99)):
        assert found is not None
        truth = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
        assert truth <= found * 1e9 * (1 + 1e-9)
        assert found * 1e9 <= max(truth * 1.125, truth + 1) * (1 + 1e-9)
    assert read.max == ordered[-1] / 1e9


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=50))
def test_quantiles_rise(latencies: list[int]) -> None:
    read = histogram_of(latencies).read()
    assert read.p50 is not None
    assert read.p95 is not None
    assert read.p99 is not None
    assert read.max is not None
    assert 0 < read.p50 <= read.p95 <= read.p99 <= read.max


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100, 5000])
def test_a_batch_is_sampled_evenly_and_weighted_and_its_oldest_is_always_looked_at(size: int) -> None:
    histogram = Histogram()
    histogram.add_batch([entry(n, created=n * 1000) for n in range(size)], SECOND)
    read = histogram.read()
    assert read.max == 1.0
    assert read.p50 == pytest.approx(1 - size / 2 * 1e-6, rel=0.125)
    assert len(histogram._counts) <= 2 * _SAMPLED
    assert size <= sum(histogram._counts.values()) <= size * 1.1 + 1


def test_a_large_batch_weighs_more_than_a_small_one() -> None:
    histogram = Histogram()
    histogram.add_batch([entry(n, created=0) for n in range(1000)], SECOND)
    for _ in range(10):
        histogram.add_batch([entry(1, created=0)], 100 * SECOND)
    read = histogram.read()
    assert read.p95 == pytest.approx(1.0, rel=0.125)
    assert read.max == 100.0


def test_an_event_from_the_future_counts_as_no_time_at_all() -> None:
    read = histogram_of([-5, 0]).read()
    assert read.max == 1e-9
    assert read.p50 == 1e-9


def test_its_memory_is_bounded() -> None:
    histogram = Histogram()
    for exponent in range(63):
        for step in range(16):
            histogram.add_batch([entry(1, created=0)], (1 << exponent) * (16 + step) // 16)
    assert len(histogram._counts) <= 63 * 8
