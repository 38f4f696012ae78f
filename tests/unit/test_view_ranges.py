"""Sets of numbers as ranges, against sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamll.runtime.ranges import RangeSet

ranges = st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1] - 1))
changes = st.lists(st.tuples(st.sampled_from(["add", "remove"]), ranges), max_size=30)


def whole(first: int, last: int) -> set[int]:
    return set(range(first, last + 1))


@given(changes, ranges)
def test_it_holds_what_a_set_of_numbers_would(
    steps: list[tuple[str, tuple[int, int]]], window: tuple[int, int]
) -> None:
    held, model = RangeSet(), set[int]()
    for step, (first, last) in steps:
        if step == "add":
            held.add(first, last)
            model |= whole(first, last)
        else:
            held.remove(first, last)
            model -= whole(first, last)
    assert set().union(*(whole(*pair) for pair in held)) == model
    assert held.count() == len(model)
    assert [number in held for number in range(50)] == [number in model for number in range(50)]
    pairs = list(held)
    assert len(held) == len(pairs)
    assert all(first <= last for first, last in pairs)
    assert all(one[1] + 1 < other[0] for one, other in zip(pairs, pairs[1:], strict=False))  # as few as can be
    assert set().union(*(whole(*gap) for gap in held.gaps(*window))) == whole(*window) - model
    assert list(RangeSet(pairs)) == pairs


def test_numbers_may_be_as_far_apart_as_they_like() -> None:
    held = RangeSet([(1, 1 << 62)])
    held.remove(5, (1 << 62) - 5)
    assert list(held.gaps(1, 1 << 62)) == [(5, (1 << 62) - 5)]
    assert held.count() == 9


def test_it_is_bounded() -> None:
    held = RangeSet([(1, 1), (3, 3)], limit=2)
    held.add(5, 5)
    assert list(held) == [(1, 1), (3, 3)]
    assert held.refused == 1
    held.add(2, 2)  # joins what there is
    held.add(5, 5)
    assert list(held) == [(1, 3), (5, 5)]
