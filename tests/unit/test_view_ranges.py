"""Numbers as ranges: they are the set that they say, and none touches another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamll.views.ranges import Ranges

PAIRS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])))


def numbers(ranges: Ranges) -> set[int]:
    """The numbers, once it is sure that the ranges are in order and apart."""
    before = -1
    for first, last in ranges:
        assert before + 1 < first <= last
        before = last
    return {number for first, last in ranges for number in range(first, last + 1)}


def plain(pairs: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in pairs for number in range(first, last + 1)}


@given(PAIRS)
def test_made_at_once_or_one_by_one_they_are_the_same_set(pairs: list[tuple[int, int]]) -> None:
    one_by_one = Ranges()
    for pair in pairs:
        one_by_one.add(*pair)
    assert list(one_by_one) == list(Ranges(pairs))
    assert numbers(one_by_one) == plain(pairs)
    assert one_by_one.total == len(plain(pairs))
    assert all((number in one_by_one) == (number in plain(pairs)) for number in range(70))


@given(PAIRS, PAIRS, PAIRS)
def test_they_combine_as_sets_do(a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]) -> None:
    ours, others, more = Ranges(a), Ranges(b), Ranges(c)
    assert numbers(ours.joined(others, more)) == plain(a) | plain(b) | plain(c)
    assert numbers(ours.without(others)) == plain(a) - plain(b)
    assert numbers(ours.within(others)) == plain(a) & plain(b)
    assert list(ours) == list(Ranges(a))  # nothing of it was changed


@given(PAIRS, st.integers(0, 70))
def test_what_is_cut_off_is_gone(pairs: list[tuple[int, int]], line: int) -> None:
    ranges = Ranges(pairs)
    below = ranges.cut_off(line)
    assert numbers(below) == {number for number in plain(pairs) if number <= line}
    assert numbers(ranges) == {number for number in plain(pairs) if number > line}


def test_the_largest_numbers_cost_no_more() -> None:
    huge = Ranges([(1, 2**70)])
    assert huge.total == 2**70
    assert list(huge.without(Ranges([(5, 5), (2**69, 2**71)]))) == [(1, 4), (6, 2**69 - 1)]


def test_they_are_shown() -> None:
    assert repr(Ranges([(3, 4), (1, 1)])) == "Ranges([(1, 1), (3, 4)])"
    assert len(Ranges([(3, 4), (1, 1)])) == 2
