"""The model of pipelining: its two costs are found again from what they produce, and the claim is judged by them."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.performance.model import CLAIM, Interval, Model, Point, batches_sentence, fit, sentence

ROUND_TRIPS = (0.0, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
BATCHES = (10, 100, 500, 1000)

costs_alone = st.floats(20e-6, 2e-3)
costs_in_batch = st.floats(0.5e-6, 100e-6)
models = st.builds(Model, costs_alone, costs_in_batch)


def measured(model: Model, noise: float = 0.0) -> list[Point]:
    random = Random(7)
    return [
        Point(rtt, batch, model.speedup(rtt, batch) * (1 + random.uniform(-noise, noise)))
        for rtt in ROUND_TRIPS
        for batch in BATCHES
    ]


class TestFit:
    @given(models)
    def test_both_costs_are_found_again(self, model: Model) -> None:
        found = fit(measured(model))
        assert found.c1 == pytest.approx(model.c1, rel=1e-5)
        assert found.c2 == pytest.approx(model.c2, rel=1e-5)
        assert found.error(measured(model)) == pytest.approx(0, abs=1e-5)

    def test_noise_moves_them_by_no_more_than_itself(self) -> None:
        model = Model(60e-6, 4e-6)
        found = fit(measured(model, noise=0.1))
        assert found.c1 == pytest.approx(model.c1, rel=0.1)
        assert found.c2 == pytest.approx(model.c2, rel=0.1)
        assert 0 < found.error(measured(model, noise=0.1)) < 0.1

    @given(st.lists(st.builds(Point, st.floats(0, 0.01), st.integers(1, 1000), st.floats(0.01, 1e4))))
    def test_whatever_was_measured_costs_are_above_zero(self, points: list[Point]) -> None:
        try:
            found = fit(points)
        except ValueError:
            return  # not every set of points determines them
        assert 0 < found.c1 < 10.01
        assert 0 < found.c2 < 10.01

    @given(models, st.floats(0.8, 1.25), st.sampled_from(range(len(ROUND_TRIPS) * len(BATCHES))))
    def test_one_point_that_is_wrong_does_not_spoil_the_others(self, model: Model, factor: float, which: int) -> None:
        points = measured(model)
        wrong = points[which]
        points[which] = Point(wrong.rtt, wrong.batch, wrong.speedup * factor)
        assert fit(points).error(measured(model)) < 0.05

    @pytest.mark.parametrize(
        "points",
        [
            pytest.param([], id="none"),
            pytest.param([Point(1e-3, 10, 5.0)], id="one"),
            pytest.param([Point(0.0, 10, 5.0), Point(0.0, 100, 5.5)], id="without a network"),
        ],
    )
    def test_too_little_determines_nothing(self, points: list[Point]) -> None:
        with pytest.raises(ValueError, match="do not determine"):
            fit(points)


class TestWhere:
    @given(models, st.integers(1, 5000), st.floats(1.5, 500))
    def test_it_is_true_inside_and_not_outside(self, model: Model, batch: int, claim: float) -> None:
        where = model.where(claim, batch)
        for rtt in (0.0, *(10 ** (power / 4) for power in range(-28, 4))):
            if where is None:
                assert model.speedup(rtt, batch) < claim * (1 + 1e-9)
            elif where.low * 1.001 < rtt < where.high * 0.999:
                assert model.speedup(rtt, batch) >= claim * (1 - 1e-9)
            elif rtt < where.low * 0.999 or rtt > where.high * 1.001:
                assert model.speedup(rtt, batch) < claim * (1 + 1e-9)

    def test_no_batch_is_faster_than_its_size(self) -> None:
        assert Model(60e-6, 4e-6).where(CLAIM, 10) is None
        assert Model(60e-6, 4e-6).where(CLAIM, 82) is None

    def test_where_the_costs_alone_are_enough_a_small_batch_loses_it_on_a_long_way(self) -> None:
        model = Model(1e-3, 1e-5)  # 100x without a network
        where = model.where(50.0, 20)
        assert where is not None
        assert where.low == 0
        assert model.speedup(where.high, 20) == pytest.approx(50)
        assert model.where(50.0, 50) == Interval(0.0, inf)

    @given(models, st.floats(1e-5, 0.1), st.floats(2, 200))
    def test_the_smallest_batch_is_just_enough(self, model: Model, rtt: float, claim: float) -> None:
        batch = model.smallest_batch(claim, rtt)
        if batch == inf:
            assert model.speedup(rtt, 1e12) <= claim * (1 + 1e-6)
        else:
            assert model.speedup(rtt, batch) >= claim * (1 - 1e-6)
            if batch > 1:
                assert model.speedup(rtt, batch * 0.99) < claim

    def test_without_a_network_the_batch_does_not_matter(self) -> None:
        assert Model(1e-3, 1e-6).smallest_batch(82, 0.0) == 1
        assert Model(60e-6, 4e-6).smallest_batch(82, 0.0) == inf


class TestSentence:
    def test_it_says_where_and_where_not(self) -> None:
        said = sentence("a pipeline", Model(60e-6, 11e-6), [10, 100, 500, 1000])
        assert said == (
            "a pipeline: 82x is true nowhere with a batch of 10; from an RTT of 4.7 ms on with a batch of 100; "
            "from an RTT of 1 ms on with a batch of 500; from an RTT of 0.92 ms on with a batch of 1,000 "
            "(fitted: c1 = 60 us, c2 = 11.00 us)."
        )

    def test_it_says_also_that_it_is_always_true_or_only_so_far(self) -> None:
        said = sentence("confirms", Model(1e-3, 1e-6), [1, 50, 100, 1000], what="window")
        assert "up to" in said
        assert "at every RTT, loopback included, with a window of 100 or 1,000" in said

    def test_it_says_which_batch_it_takes(self) -> None:
        said = batches_sentence("a pipeline", Model(60e-6, 11e-6), [0.0, 1e-3, 5e-3])
        assert said == (
            "a pipeline: the batch that 82x takes, by the model: over loopback none is enough, over an RTT of 1 ms at least "
            "519, over an RTT of 5 ms at least 99."
        )
