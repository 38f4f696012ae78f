"""The entries that wait, against a plain list of them."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamll.delivery.outcome import Entry
from streamll.models import CRITICAL, DEBUG, NORMAL
from streamll.runtime.waiting import ENTRY_OVERHEAD, RANKS, Waiting, rank_of, size_of
from tests.unit.deliveries import record

PRIORITIES = st.sampled_from([DEBUG, NORMAL, CRITICAL])


def entry(seq: int, priority: str = NORMAL, size: int = 1) -> Entry:
    return Entry(seq, msgspec.structs.replace(record(b"x" * size), priority=priority))


def put(waiting: Waiting, item: Entry) -> None:
    """As the buffer does."""
    waiting.queues[rank_of(item.record)].append(item)
    waiting.count += 1


def holding(*priorities: str) -> Waiting:
    """Entries 1, 2, 3 ... of these classes."""
    waiting = Waiting()
    for seq, priority in enumerate(priorities, 1):
        put(waiting, entry(seq, priority))
    return waiting


def at_least(n: int) -> Callable[[int, int], bool]:
    """So many must give way, of any size."""
    return lambda count, _: count >= n


class WaitingAgainstAList(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.waiting = Waiting()
        self.seq = 0
        self.held: list[Entry] = []  # in the order of the numbers

    @rule(items=st.lists(st.tuples(PRIORITIES, st.integers(0, 20)), min_size=1, max_size=6))
    def put(self, items: list[tuple[str, int]]) -> None:
        for priority, size in items:
            self.seq += 1
            self.held.append(entry(self.seq, priority, size))
            put(self.waiting, self.held[-1])

    @rule()
    def take_first(self) -> None:
        if self.held:
            assert self.waiting.take_first() == self.held.pop(0)

    @rule(max_events=st.integers(1, 8), max_bytes=st.integers(1, 60))
    def take(self, max_events: int, max_bytes: int) -> None:
        expected: list[Entry] = []
        for item in self.held[:max_events]:
            if expected and sum(len(one.record.payload) for one in (*expected, item)) > max_bytes:
                break
            expected.append(item)
        assert self.waiting.take(max_events, max_bytes) == expected
        del self.held[: len(expected)]

    @rule(
        rank=st.sampled_from(list(RANKS.values())), newest=st.booleans(), n=st.integers(1, 5), size=st.integers(0, 80)
    )
    def give_way(self, rank: int, newest: bool, n: int, size: int) -> None:
        """The lowest class first; within one the oldest or the newest; all that is needed, or nothing."""
        candidates = [item for item in self.held if rank_of(item.record) < rank + (0 if newest else 1)]
        candidates.sort(key=lambda item: (rank_of(item.record), -item.seq if newest else item.seq))
        expected: list[Entry] = []
        while candidates and (len(expected) < n or sum(size_of(one.record) for one in expected) < n * 512 + size):
            expected.append(candidates.pop(0))
        if len(expected) < n or sum(size_of(one.record) for one in expected) < n * 512 + size:
            expected = []
        found = self.waiting.victims(rank, newest, lambda count, freed: count >= n and freed >= n * 512 + size)
        assert found == expected
        self.waiting.remove(found, newest)
        self.held = [item for item in self.held if item not in expected]

    @rule()
    def clear(self) -> None:
        assert self.waiting.clear() == self.held
        self.held = []

    @rule(back=st.integers(0, 3), counted=st.booleans())
    def forget_after(self, back: int, counted: bool) -> None:
        """A call that was interrupted had put something there, and perhaps not counted it yet."""
        if counted:
            self.waiting.count += 1
        self.seq = max(0, self.seq - back)
        self.waiting.forget_after(self.seq)
        self.held = [item for item in self.held if item.seq <= self.seq]

    @invariant()
    def holds_what_the_list_holds(self) -> None:
        assert self.waiting.count == len(self.held)
        assert sorted(self.waiting, key=lambda item: item.seq) == self.held
        assert self.waiting.first() == (self.held[0] if self.held else None)
        for rank, queue in enumerate(self.waiting.queues):
            assert list(queue) == [item for item in self.held if rank_of(item.record) == rank]


TestWaitingAgainstAList = WaitingAgainstAList.TestCase


def test_the_classes_in_the_order_in_which_they_give_way() -> None:
    assert RANKS[DEBUG] < RANKS[NORMAL] < RANKS[CRITICAL]
    assert rank_of(msgspec.structs.replace(record(), priority="whatever")) == RANKS[NORMAL]


def test_an_entry_counts_for_more_than_its_payload() -> None:
    assert size_of(record(b"x" * 100)) == 100 + ENTRY_OVERHEAD


def test_what_was_taken_and_did_not_fit_goes_back_to_its_place() -> None:
    waiting = Waiting()
    for seq, (priority, size) in enumerate([(CRITICAL, 5), (DEBUG, 5), (NORMAL, 5), (DEBUG, 50), (CRITICAL, 5)], 1):
        put(waiting, entry(seq, priority, size))
    assert [item.seq for item in waiting.take(10, 20)] == [1, 2, 3]
    assert [item.seq for item in waiting.take(10, 20)] == [4]
    assert [item.seq for item in waiting.take(10, 20)] == [5]


@pytest.mark.parametrize(
    ("newcomer", "newest", "gone"),
    [
        (DEBUG, False, [2, 4]),
        (NORMAL, False, [2, 4, 1, 3]),
        (CRITICAL, False, [2, 4, 1, 3, 5]),
        (DEBUG, True, []),
        (NORMAL, True, [4, 2]),
        (CRITICAL, True, [4, 2, 3, 1]),
    ],
)
def test_who_gives_way_to_whom(newcomer: str, newest: bool, gone: list[int]) -> None:
    for n in range(1, 7):
        waiting = holding(NORMAL, DEBUG, NORMAL, DEBUG, CRITICAL)
        victims = waiting.victims(RANKS[newcomer], newest, at_least(n))
        assert [item.seq for item in victims] == (gone[:n] if n <= len(gone) else [])
        waiting.remove(victims, newest)
        assert waiting.count == 5 - len(victims)


def test_more_give_way_than_need_to_where_there_are_more() -> None:
    for wanted in range(1, 8):
        waiting = holding(NORMAL, DEBUG, NORMAL, DEBUG, CRITICAL)
        victims = waiting.victims(RANKS[NORMAL], False, at_least(1), wanted)
        assert [item.seq for item in victims] == [2, 4, 1, 3][:wanted]
    assert holding(NORMAL, DEBUG).victims(RANKS[NORMAL], False, at_least(3), 2) == []
