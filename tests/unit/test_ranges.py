"""Sets of numbers as ranges, against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.ranges import RangeSet

RANGE = st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1] - 1))
RANGES = st.lists(RANGE, max_size=20)
CHANGES = st.lists(st.tuples(st.sampled_from(["add", "remove", "add_one", "follow", "cut_off"]), RANGE), max_size=30)


def whole(*ranges: tuple[int, int]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def numbers(held: RangeSet) -> set[int]:
    """The numbers, once it is sure that the ranges are in order, and as few as can be."""
    pairs = list(held)
    assert all(first <= last for first, last in pairs)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(pairs))
    return whole(*pairs)


@given(CHANGES)
def test_it_holds_what_a_set_of_numbers_would(steps: list[tuple[str, tuple[int, int]]]) -> None:
    held, model = RangeSet(), set[int]()
    for step, (first, last) in steps:
        if step == "add":
            held.add(first, last)
            model |= whole((first, last))
        elif step == "remove":
            held.remove(first, last)
            model -= whole((first, last))
        elif step == "add_one":
            assert held.add_one(first) == (first not in model)
            model.add(first)
        elif step == "follow":
            follows = bool(model) and first == max(model) + 1
            assert held.follow(first) == follows
            model |= {first} if follows else set()
        else:
            below = {number for number in model if number <= last}
            assert numbers(held.cut_off(last)) == below
            model -= below
        assert numbers(held) == model
        assert held.last == max(model, default=None)
    assert held.count() == len(model)
    assert [number in held for number in range(60)] == [number in model for number in range(60)]
    assert [held[at] for at in range(len(held))] == list(held)


@given(RANGES, RANGES, RANGES)
def test_sets_combine_as_sets_of_numbers_do(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]
) -> None:
    ours, others, more = RangeSet(a), RangeSet(b), RangeSet(c)
    assert numbers(ours) == whole(*a)
    assert numbers(ours.joined(others, more)) == whole(*a) | whole(*b) | whole(*c)
    assert numbers(ours.without(others)) == whole(*a) - whole(*b)
    assert numbers(ours.within(others)) == whole(*a) & whole(*b)
    assert (list(ours), list(others)) == (list(RangeSet(a)), list(RangeSet(b)))  # neither was changed


def test_what_was_made_of_a_set_does_not_change_with_it() -> None:
    held = RangeSet([(1, 3), (5, 9)])
    made = [RangeSet(held), held.joined(), held.without(RangeSet()), held.within(held)]
    held.add(4, 4)
    assert [list(each) for each in made] == [[(1, 3), (5, 9)]] * 4


def test_numbers_may_be_as_far_apart_as_they_like() -> None:
    held = RangeSet([(1, 2**70)])
    assert held.count() == 2**70
    assert list(held.without(RangeSet([(5, 5), (2**69, 2**71)]))) == [(1, 4), (6, 2**69 - 1)]
    held.remove(5, 2**70 - 5)
    assert list(held) == [(1, 4), (2**70 - 4, 2**70)]
    assert held.count() == 9


def test_it_is_bounded() -> None:
    held = RangeSet([(1, 1), (3, 3)], limit=2)
    held.add(5, 6)
    held.add_one(5)
    assert list(held) == [(1, 1), (3, 3)]
    assert held.refused == 2
    held.add(2, 2)  # joins what there is
    held.add_one(5)
    held.add_one(4)
    held.add_one(7)
    held.follow(8)
    assert list(held) == [(1, 5), (7, 8)]
    assert held.refused == 2
    assert RangeSet([(1, 1), (3, 3), (5, 5)], limit=2).refused == 1


def test_it_shows_its_ranges() -> None:
    held = RangeSet([(3, 4), (1, 1)])
    assert repr(held) == "RangeSet([(1, 1), (3, 4)])"
    assert (held[0], held[-1]) == ((1, 1), (3, 4))
    with pytest.raises(IndexError):
        held[2]
