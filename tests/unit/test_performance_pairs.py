"""The order of pairs and the bootstrap, by which the overhead of monitoring is measured."""

from __future__ import annotations

from collections import Counter
from random import Random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.performance.pairs import Interval, bootstrap, in_turn, middle, worst


class TestTheOrder:
    @given(st.dictionaries(st.text(max_size=3), st.integers(0, 12), max_size=4), st.integers())
    def test_each_arm_has_its_pairs_and_is_first_in_half_of_them(self, pairs: dict[str, int], seed: int) -> None:
        turns = in_turn(pairs, seed)
        assert Counter(turn.arm for turn in turns) == Counter(pairs)
        for arm, count in pairs.items():
            first = sum(turn.plain_first for turn in turns if turn.arm == arm)
            assert first in (count // 2, count - count // 2)
        assert all(0 <= turn.phase < 1 for turn in turns)
        assert in_turn(pairs, seed) == turns

    def test_it_is_drawn(self) -> None:
        orders = [in_turn({"a": 4, "b": 4}, seed) for seed in range(8)]
        assert len({tuple(order) for order in orders}) > 4
        # Of an odd number of pairs it is drawn which order comes once more.
        assert {in_turn({"a": 1}, seed)[0].plain_first for seed in range(8)} == {True, False}


class TestTheBootstrap:
    @settings(max_examples=25)
    @given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), min_size=1, max_size=4), st.integers())
    def test_an_interval_holds_its_figure_and_lies_within_what_was_measured(
        self, groups: list[list[float]], seed: int
    ) -> None:
        for figure in (middle, worst):
            found = bootstrap(groups, figure, seed, resamples=60)
            lowest, highest = min(map(min, groups)), max(map(max, groups))
            assert lowest <= found.low <= found.high <= highest
            assert lowest <= found.figure <= highest
            assert bootstrap(groups, figure, seed, resamples=60) == found

    def test_what_never_varies_is_sure(self) -> None:
        assert bootstrap([[2.0] * 5, [3.0] * 2], middle) == Interval(2.5, 2.5, 2.5)
        assert bootstrap([[2.0] * 5, [3.0] * 2], worst) == Interval(3.0, 3.0, 3.0)

    def test_an_interval_holds_the_truth_about_as_often_as_it_says(self) -> None:
        random = Random(7)
        held = 0
        for number in range(200):
            sample = [random.gauss(1.0, 0.1) for _ in range(20)]
            found = bootstrap([sample], middle, seed=number, resamples=200)
            assert found.figure == median(sample)
            held += found.low <= 1.0 <= found.high
        assert 180 <= held <= 200

    @pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
    def test_of_nothing_there_is_no_figure(self, groups: list[list[float]]) -> None:
        with pytest.raises(ValueError, match="nothing was measured"):
            bootstrap(groups, middle)
