"""Which dropped numbers are declared, and when."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamll.delivery.gaps import MOST_RANGES, Gap, Holes, gaps_of, ranges_of

REASONS = st.sampled_from(["overflow", "expired", "rejected"])


def numbers(gap: Gap) -> list[int]:
    return [seq for first, last in gap.ranges for seq in range(first, last + 1)]


def check(gap: Gap) -> None:
    """What must hold of every gap: a note can be made of it."""
    assert gap.ranges
    assert all(first <= last for first, last in gap.ranges)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(gap.ranges))
    assert len(gap.ranges) <= MOST_RANGES
    assert gap.count == len(numbers(gap)) == sum(gap.reasons.values())
    assert gap.last == numbers(gap)[-1]
    assert all(n > 0 for n in gap.reasons.values())


class HolesAgainstASet(RuleBasedStateMachine):
    """Events are accepted, dropped in any order, and declared; a dictionary knows which are to be declared."""

    @initialize()
    def begin(self) -> None:
        self.holes = Holes()
        self.accepted = 0
        self.alive: list[int] = []
        self.dropped: dict[int, str] = {}
        self.told: set[int] = set()

    @rule(n=st.integers(1, 8))
    def accept(self, n: int) -> None:
        self.alive += range(self.accepted + 1, self.accepted + n + 1)
        self.accepted += n

    @rule(data=st.data(), reason=REASONS)
    def drop(self, data: st.DataObject, reason: str) -> None:
        """One event, or a run of them at once, out of the middle or at an end."""
        if not self.alive:
            return
        first, last = data.draw(st.sampled_from(ranges_of(self.alive)))
        first = data.draw(st.integers(first, last))
        last = data.draw(st.integers(first, last))
        self.holes.add(first, last, reason)
        for seq in range(first, last + 1):
            self.alive.remove(seq)
            self.dropped[seq] = reason

    @rule(data=st.data())
    def declare(self, data: st.DataObject) -> None:
        """Before one that is alive, or all there is."""
        below = data.draw(st.sampled_from([None, 1 << 62, *self.alive]))
        gaps = self.holes.take(below)
        for gap in gaps:
            check(gap)
        told = [seq for gap in gaps for seq in numbers(gap)]
        assert told == sorted(seq for seq in self.dropped if below is None or seq < below)
        assert sum((Counter(gap.reasons) for gap in gaps), Counter[str]()) == Counter(self.dropped.pop(s) for s in told)
        assert not self.told & set(told)
        self.told.update(told)

    @invariant()
    def says_whether_there_is_something_to_declare(self) -> None:
        assert bool(self.holes) == bool(self.dropped)

    @invariant()
    def takes_no_more_memory_than_there_are_ranges(self) -> None:
        assert list(zip(self.holes._firsts, self.holes._lasts, strict=True)) == ranges_of(sorted(self.dropped))
        last = max(self.dropped, default=0) + 2
        assert [seq for seq in range(last) if seq in self.holes] == sorted(self.dropped)


TestHolesAgainstASet = HolesAgainstASet.TestCase


def test_holes_that_meet_become_one_whose_reasons_add_up() -> None:
    holes = Holes()
    for first, last, reason in [(1, 2, "overflow"), (6, 9, "expired"), (4, 5, "overflow"), (3, 3, "expired")]:
        holes.add(first, last, reason)
    assert holes.take() == [Gap(((1, 9),), {"overflow": 4, "expired": 5})]
    assert holes.take() == []
    assert not holes


def test_what_lies_behind_an_event_that_waits_is_not_declared_yet() -> None:
    holes = Holes()
    for seq in (2, 4, 6):
        holes.add(seq, seq, "overflow")
    assert holes.take(5) == [Gap(((2, 2), (4, 4)), {"overflow": 2})]
    assert holes.take(5) == []
    assert holes
    assert holes.take(7) == [Gap(((6, 6),), {"overflow": 1})]


def test_more_ranges_than_fit_in_one_note_become_several() -> None:
    gaps = gaps_of((seq, "overflow") for seq in range(2, 2 * (2 * MOST_RANGES + 2), 2))
    assert [len(gap.ranges) for gap in gaps] == [MOST_RANGES, MOST_RANGES, 1]
    for gap in gaps:
        check(gap)
    assert [seq for gap in gaps for seq in numbers(gap)] == list(range(2, 2 * (2 * MOST_RANGES + 2), 2))
    assert [gap.reasons for gap in gaps] == [{"overflow": len(gap.ranges)} for gap in gaps]


@given(st.dictionaries(st.integers(1, 40), REASONS), st.randoms(use_true_random=False))
def test_gaps_of_dropped_numbers(dropped: dict[int, str], dice: Random) -> None:
    items = list(dropped.items())
    dice.shuffle(items)
    gaps = gaps_of(items)
    assert len(gaps) == bool(dropped)
    for gap in gaps:
        check(gap)
        assert numbers(gap) == sorted(dropped)
        assert gap.reasons == Counter(dropped.values())


@given(st.sets(st.integers(0, 60)))
def test_numbers_as_ranges_and_back(seqs: set[int]) -> None:
    ranges = ranges_of(sorted(seqs))
    assert [seq for first, last in ranges for seq in range(first, last + 1)] == sorted(seqs)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))
