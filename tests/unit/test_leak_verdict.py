"""The leak verdict on series whose truth is known: what grows is found and named, and what does not is left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.monitors.memory import leak_verdict
from streamll.monitors.memory.leak_verdict import (
    CACHE,
    KINDS,
    MIB,
    NATIVE,
    NONE,
    OBJECTS,
    RETENTION,
    UNKNOWN,
    Alarm,
    Verdict,
    judge,
    judge_series,
    trend,
)
from streamll.monitors.memory.series import BUCKETS, Point, Series

BASE = 300.0 * MIB
LEVEL = {"in_use": 100.0 * MIB, "retained": 5.0 * MIB, "blocks": 1e6}

Shape = Callable[[int, Random], float]


def window(shape: Shape, seed: int = 0, *, n: int = BUCKETS, **along: float) -> list[Point]:
    """Points a second apart: a footprint of BASE and what the shape adds, and its share of that in what grows along."""
    random = Random(seed)
    points = []
    for i in range(n):
        added = shape(i, random)
        rest = {name: level + along.get(name, 0.0) * added for name, level in LEVEL.items()}
        points.append(Point(float(i), BASE + added, **rest))
    return points


def noise(size: float) -> Shape:
    return lambda i, random: random.gauss(0, size * MIB)


def leak(a_second: float, noisy: float = 0.0) -> Shape:
    return lambda i, random: (a_second * i + random.gauss(0, noisy)) * MIB


def wandering(memory: float, size: float) -> Shape:
    """Noise whose neighbours correlate by `memory` (AR(1))."""
    state = [0.0]

    def shape(i: int, random: Random) -> float:
        state[0] = memory * state[0] + random.gauss(0, size * math.sqrt(1 - memory**2))
        return state[0] * MIB

    return shape


def ratchet(size: float) -> Shape:
    """The most that noise has been so far: a heap that never gives back."""
    state = [0.0]

    def shape(i: int, random: Random) -> float:
        state[0] = max(state[0], random.gauss(0, size * MIB))
        return state[0]

    return shape


def saw(period: float, height: float) -> Shape:
    return lambda i, random: (i % period / period * height + random.gauss(0, 0.5)) * MIB


def filling(share: float, height: float) -> Shape:
    """Rises evenly for a share of the window, then stays."""
    return lambda i, random: min(i / (share * BUCKETS), 1.0) * height * MIB


class TestKinds:
    def test_blocks_that_grow_along_are_objects(self) -> None:
        verdict = judge(window(leak(1.0, 1.0), blocks=1 / 64, in_use=0.1))
        assert (verdict.kind, verdict.growing) == (OBJECTS, True)
        assert verdict.confidence > 0.9
        assert verdict.slope_low <= MIB <= verdict.slope_high
        assert verdict.growth == pytest.approx(63 * MIB, rel=0.05)
        assert "Python objects" in verdict.explanation

    def test_objects_that_hold_much_are_objects_with_less_confidence(self) -> None:
        verdict = judge(window(leak(1.0), blocks=30 / MIB, in_use=1.0))
        assert verdict.kind == OBJECTS
        assert verdict.confidence < judge(window(leak(1.0), blocks=1 / 64)).confidence
        assert "buffers" in verdict.explanation

    def test_what_malloc_gave_and_python_does_not_count_is_native(self) -> None:
        verdict = judge(window(leak(1.0, 1.0), in_use=1.0))
        assert (verdict.kind, verdict.growing) == (NATIVE, True)
        assert "from malloc" in verdict.explanation

    def test_few_blocks_beside_much_memory_are_something_else(self) -> None:
        for many in (3 / MIB, 12 / MIB):
            verdict = judge(window(leak(1.0), blocks=many, in_use=1.0))
            assert verdict.kind == NATIVE
            assert "large buffer" in verdict.explanation

    def test_what_nobody_counts_is_native_too_with_less_confidence(self) -> None:
        verdict = judge(window(leak(1.0)))
        assert (verdict.kind, verdict.growing) == (NATIVE, True)
        assert "mapped directly" in verdict.explanation
        assert verdict.confidence < judge(window(leak(1.0), in_use=1.0)).confidence

    def test_free_memory_that_the_allocator_keeps_ever_more_of_is_retention(self) -> None:
        verdict = judge(window(leak(1.0, 0.5), retained=0.9))
        assert (verdict.kind, verdict.growing) == (RETENTION, True)

    def test_much_free_memory_is_retention_though_nothing_grows(self) -> None:
        points = [Point(float(i), BASE, blocks=1e6, in_use=1e8, retained=BASE * 0.6) for i in range(BUCKETS)]
        verdict = judge(points)
        assert (verdict.kind, verdict.growing) == (RETENTION, False)
        assert verdict.confidence > 0.7

    def test_blocks_that_went_while_the_memory_stayed_are_retention(self) -> None:
        points = [Point(float(i), BASE, blocks=1e6 if i < 20 else 5e4) for i in range(BUCKETS)]
        assert judge(points).kind == RETENTION
        coming_and_going = [Point(float(i), BASE, blocks=1e6 if i % 5 == 0 else 5e4) for i in range(BUCKETS)]
        assert judge(coming_and_going).kind == NONE

    @pytest.mark.parametrize("share", [0.3, 0.4, 0.5, 0.6])
    def test_what_filled_up_is_a_bounded_cache(self, share: float) -> None:
        verdict = judge(window(filling(share, 80), blocks=1 / 64))
        assert (verdict.kind, verdict.growing) == (CACHE, False)
        assert "stopped" in verdict.explanation

    def test_what_fills_ever_more_slowly_is_a_bounded_cache(self) -> None:
        verdict = judge(window(lambda i, _: 100 * MIB * (1 - math.exp(-2.5 * i / BUCKETS)), blocks=1 / 64))
        assert (verdict.kind, verdict.growing) == (CACHE, False)
        assert "ever more slowly" in verdict.explanation

    def test_where_the_heap_is_not_known_growth_without_blocks_has_no_name(self) -> None:
        points = [Point(point.seconds, point.footprint, blocks=1e6) for point in window(leak(1.0))]
        verdict = judge(points)
        assert (verdict.kind, verdict.growing) == (UNKNOWN, True)
        assert "cannot be told" in verdict.explanation

    def test_heap_readings_may_be_rare(self) -> None:
        points = [
            point if point.seconds % 6 == 0 else point._replace(in_use=math.nan, retained=math.nan)
            for point in window(leak(1.0), in_use=1.0)
        ]
        assert judge(points).kind == NATIVE

    def test_too_few_readings_are_no_verdict(self) -> None:
        for n in (0, 1, 5, 23):
            assert judge(window(leak(1.0), n=n)) == Verdict(points=n)
        assert judge_series(Series()) == Verdict()

    def test_is_plain_values_in_a_dict(self) -> None:
        import json

        found = judge(window(leak(1.0))).to_dict()
        assert json.loads(json.dumps(found)) == found


class TestNoAlarm:
    """How often a steady program is said to grow, in simulated windows; none of these may alarm by itself alone."""

    @pytest.mark.parametrize(
        ("name", "make", "allowed"),
        [
            ("constant", lambda: lambda i, random: 0.0, 0),
            ("noise", lambda: noise(2), 0),
            ("much noise", lambda: noise(40), 0),
            ("wandering", lambda: wandering(0.5, 20), 0),
            ("wandering slowly", lambda: wandering(0.9, 20), 3),
            ("a ratchet", lambda: ratchet(20), 3),
            ("short teeth", lambda: saw(7, 60), 0),
            ("long teeth", lambda: saw(24.7, 60), 0),
            ("a slow fall", lambda: leak(-0.5, 1), 0),
            ("a trickle", lambda: leak(0.05), 0),
        ],
    )
    def test_of_steady_programs(self, name: str, make: Callable[[], Shape], allowed: int) -> None:
        found = [judge(window(make(), seed, blocks=1 / 64)).growing for seed in range(200)]
        assert sum(found) <= allowed, name

    @settings(max_examples=100)
    @given(st.integers(8, BUCKETS - 8), st.floats(5, 200), st.integers(0, 9))
    def test_of_a_step_wherever_it_is(self, at: int, height: float, seed: int) -> None:
        assert not judge(window(lambda i, random: (height * (i > at) + random.gauss(0, 0.3)) * MIB, seed)).growing

    @pytest.mark.parametrize("seed", range(20))
    def test_of_two_steps(self, seed: int) -> None:
        at = sorted(Random(seed).sample(range(8, 56), 2))
        verdict = judge(window(lambda i, _: 20 * MIB * sum(i > place for place in at)))
        assert not verdict.growing
        assert "in steps" in verdict.explanation or "no growth" in verdict.explanation

    def test_of_growth_over_ground_that_the_program_had_before(self) -> None:
        points = window(leak(1.0, 1.0), blocks=1 / 64)
        assert judge(points, before=BASE).growing
        verdict = judge(points, before=BASE + 60 * MIB)
        assert not verdict.growing
        assert "before" in verdict.explanation


class TestAlarm:
    @pytest.mark.parametrize("noisy", [0.0, 1.0, 4.0])
    def test_a_leak_is_found_nearly_always(self, noisy: float) -> None:
        found = [judge(window(leak(0.5, noisy), seed, blocks=1 / 64)) for seed in range(50)]
        assert sum(verdict.growing and verdict.kind == OBJECTS for verdict in found) >= 45

    def test_a_bend_does_not_hide_a_leak(self) -> None:
        """What a line leaves over of a bent one resembles its neighbours as what wanders does."""
        verdict = judge(window(lambda i, _: (i * 0.3 + (i > 26) * 0.5) * MIB, blocks=1 / 64, n=30))
        assert (verdict.kind, verdict.growing) == (OBJECTS, True)

    def test_a_leak_that_follows_the_traffic_of_days_and_nights_is_found(self) -> None:
        days = 3
        verdict = judge(
            window(lambda i, _: (i - 64 / days / math.tau * math.sin(i * math.tau * days / 64)) * MIB, in_use=1.0)
        )
        assert (verdict.kind, verdict.growing) == (NATIVE, True)

    def test_a_leak_under_a_saw_is_found(self) -> None:
        teeth = saw(4, 8)
        verdict = judge(window(lambda i, random: i * MIB + teeth(i, random), blocks=1 / 64))
        assert (verdict.kind, verdict.growing) == (OBJECTS, True)

    def test_is_given_once_after_patience(self) -> None:
        grows, calm = Verdict(OBJECTS, growing=True, confidence=0.9), Verdict(NONE)
        doubtful = Verdict(OBJECTS, growing=True, confidence=0.7)
        alarm = Alarm(patience=10.0, confidence=0.8)
        looks = [(0, grows), (5, grows), (10, grows), (15, grows), (20, doubtful), (25, grows), (36, grows), (40, calm)]
        assert [alarm.look(verdict, float(now)) for now, verdict in looks] == [
            *(False, False, True, False),
            *(False, False, True, False),
        ]


class TestSeries:
    def test_judges_the_whole_and_finds_what_began_late(self) -> None:
        series, random = Series(), Random(1)
        for i in range(12_000):
            late = max(0, i - 8_000) * 0.05
            footprint = BASE + (late + random.gauss(0, 3)) * MIB
            series.add(Point(i * 0.5, footprint, 1e8, 1e6, 1e6 + late * 5000))
        verdict = judge_series(series, leak_after=600)
        assert (verdict.kind, verdict.growing) == (OBJECTS, True)
        assert verdict.seconds < 2100
        assert verdict.slope == pytest.approx(0.1 * MIB, rel=0.2)

    def test_says_less_surely_what_it_has_seen_for_a_short_time_only(self) -> None:
        series = Series()
        for i in range(48):
            series.add(Point(i * 0.5, BASE + i * MIB, 1e8, 1e6, 1e6 + i * 5000))
        verdict = judge_series(series, leak_after=600)
        assert (verdict.kind, verdict.growing) == (OBJECTS, True)
        assert 0 < verdict.confidence < 0.3

    def test_a_tooth_longer_than_the_window_alarms_on_its_first_rise_alone(self) -> None:
        series, found = Series(), []
        for i in range(9_000):
            tooth = i % 3000 / 3000 * 100
            series.add(Point(i * 0.5, BASE + tooth * MIB, 1e8, 1e6, 1e6 + tooth * 5000))
            if i % 100 == 99:
                found.append((i, judge_series(series, leak_after=300).growing))
        assert any(growing for i, growing in found if i < 3000)
        assert not any(growing for i, growing in found if i >= 4000)


class TestTrend:
    @given(st.floats(-1e6, 1e6), st.floats(-1e9, 1e9), st.integers(2, 40))
    def test_of_a_line_is_the_line(self, slope: float, start: float, n: int) -> None:
        line = trend([float(i) for i in range(n)], [start + slope * i for i in range(n)])
        close = pytest.approx(slope, rel=1e-6, abs=1e-6)
        assert line.slope == close
        assert line.low == close
        assert line.high == close
        assert line.growth == pytest.approx(slope * (n - 1), rel=1e-6, abs=1e-5)

    @settings(max_examples=50)
    @given(st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=30))
    def test_mirrored_is_the_mirror_image(self, values: list[int]) -> None:
        times = [float(i) for i in range(len(values))]
        up, down = trend(times, values), trend(times, [-value for value in values])
        assert up.slope == pytest.approx(-down.slope)
        assert up.tau == pytest.approx(-down.tau)
        assert up.significance == pytest.approx(down.significance)
        assert up.low <= up.slope <= up.high
        assert 0 <= up.significance <= 1

    def test_is_not_moved_by_a_quarter_of_wild_points(self) -> None:
        values = [2.0 * i + (1e6 if i % 4 == 0 else 0) for i in range(60)]
        assert trend([float(i) for i in range(60)], values).slope == pytest.approx(2.0)

    def test_agrees_with_a_published_example(self) -> None:
        """Sen's own numbers are not to be had; these follow from the definitions by hand: 1, 3, 2, 5 over 0..3."""
        line = trend([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 5.0])
        assert line.slope == pytest.approx((4 / 3 + 1) / 2)  # of 2, 1/2, 4/3, -1, 1, 3
        assert line.tau == pytest.approx(4 / 6)

    def test_is_chance_as_often_as_it_says_for_noise(self) -> None:
        times = [float(i) for i in range(32)]
        rising = 0
        for seed in range(400):
            random = Random(seed)
            rising += trend(times, [random.gauss(0, 1) for _ in times]).significance < 0.05
        assert rising <= 400 * 0.05 * 1.6


floats = st.floats(0, 1e13) | st.just(math.nan)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1e13), floats, floats, floats), max_size=BUCKETS))
def test_whatever_is_read_the_verdict_is_one(rows: list[tuple[float, float, float, float]]) -> None:
    series = Series()
    for i, row in enumerate(rows):
        series.add(Point(float(i), *row))
    verdict = judge_series(series, leak_after=10)
    assert verdict.kind in KINDS
    assert 0 <= verdict.confidence <= 1
    assert verdict.explanation


def test_small_things_are_right_at_their_ends() -> None:
    assert leak_verdict._widening([2.0, 2.0, 2.0]) == 1.0
    assert leak_verdict._size(5 * 1024**3) == "5.0 GiB"
    assert leak_verdict._size(-3) == "-3 bytes"
    small = [Point(*[1.0] * len(Point._fields))] * 9
    assert leak_verdict._retention(small, min_growth=100.0) is None
    unknown = [Point(*[math.nan] * len(Point._fields))._replace(footprint=200.0)] * 9
    assert leak_verdict._retention(unknown, min_growth=100.0) is None
