"""Who gives way in a full buffer, and that each of them is declared, in time and once. No threads here."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamll.delivery.gaps import Gap, Holes
from streamll.delivery.machine import Settlement
from streamll.delivery.outcome import Entry
from streamll.errors import BufferFullError
from streamll.models import CRITICAL, DEBUG, NORMAL
from streamll.options import SinkOptions
from streamll.runtime.buffer import Buffer
from tests.unit.deliveries import record, seqs

ALL = 10**9
CLASSES = {"c": CRITICAL, "n": NORMAL, "d": DEBUG}


class Held:
    """A buffer of so many events, and who had to leave it."""

    def __init__(self, strategy: str = "drop_oldest", events: int = 4) -> None:
        options = SinkOptions(buffer_size=events, buffer_overflow_strategy=strategy, block_timeout=0.0)
        self.evicted: list[Entry] = []
        self.buffer = Buffer(options, self.evicted.append, holes=Holes())

    def put(self, letter: str, created: int = 0) -> bool:
        """Put an event of a class: c, n or d."""
        return self.buffer.put(msgspec.structs.replace(record(created=created), priority=CLASSES[letter]))

    def gone_for(self, letter: str) -> list[int] | None:
        """Put an event of a class; returns who gave way to it, or None when it was refused."""
        before = len(self.evicted)
        return seqs(self.evicted[before:]) if self.put(letter) else None


def fill(held: Held, letters: str) -> None:
    for letter in letters:
        assert held.put(letter)


def told(gaps: list[Gap]) -> list[int]:
    return [seq for gap in gaps for first, last in gap.ranges for seq in range(first, last + 1)]


class TestPressure:
    def test_drop_oldest_sheds_debug_first_and_critical_last(self) -> None:
        held = Held("drop_oldest")
        fill(held, "cdnd")
        # What it holds:                                       1c 2d 3n 4d
        assert [held.gone_for("n") for _ in range(3)] == [[2], [4], [3]]  # 1c 5n 6n 7n
        assert held.gone_for("d") is None  # it would have to go first itself
        assert [held.gone_for("c") for _ in range(4)] == [[5], [6], [7], [1]]  # 8c 9c 10c 11c
        assert held.gone_for("n") is None
        assert held.buffer.read().dropped == {"overflow": 7}
        assert held.buffer.read().refused == {"buffer_full": 2}
        assert told(held.buffer.take_gaps(held.buffer.take(ALL, ALL))) == [1, 2, 3, 4, 5, 6, 7]

    def test_drop_newest_sheds_only_what_is_of_a_lower_class(self) -> None:
        held = Held("drop_newest")
        fill(held, "dnnd")
        assert held.gone_for("d") is None
        assert [held.gone_for("n") for _ in range(3)] == [[4], [1], None]  # 2n 3n 5n 6n
        assert [held.gone_for("c") for _ in range(5)] == [[6], [5], [3], [2], None]
        assert held.buffer.read().dropped == {"overflow": 6}
        batch = held.buffer.take(ALL, ALL)
        assert seqs(batch) == [7, 8, 9, 10]
        assert told(held.buffer.take_gaps(batch)) == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("strategy", ["block", "raise_error"])
    def test_the_other_strategies_shed_nothing_that_was_accepted(self, strategy: str) -> None:
        held = Held(strategy)
        fill(held, "dndn")
        for letter in "cnd":
            try:
                assert not held.put(letter)
            except BufferFullError:
                assert strategy == "raise_error"
        assert seqs(held.buffer.take(ALL, ALL)) == [1, 2, 3, 4]
        assert held.buffer.read().refused == {"buffer_full": 3}
        assert not held.buffer.has_gap

    def test_what_is_in_flight_gives_way_to_nobody(self) -> None:
        held = Held("drop_oldest", events=4)
        fill(held, "dddd")
        assert seqs(held.buffer.take(3, ALL)) == [1, 2, 3]
        assert held.gone_for("c") == [4]
        assert held.gone_for("n") is None

    def test_the_class_of_an_event_does_not_change_its_place(self) -> None:
        held = Held(events=10)
        fill(held, "dcnncdcdn")
        assert [seqs(held.buffer.take(4, ALL)) for _ in range(3)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]


class TestGaps:
    def test_what_was_dropped_behind_a_batch_is_told_with_the_next(self) -> None:
        held = Held(events=4)
        fill(held, "cdcd")
        batch = held.buffer.take(1, ALL)
        fill(held, "cc")  # 2 and 4 go
        assert held.buffer.take_gaps(batch) == []
        assert held.buffer.has_gap
        batch = held.buffer.take(1, ALL)
        assert (seqs(batch), told(held.buffer.take_gaps(batch))) == ([3], [2])
        batch = held.buffer.take(1, ALL)
        assert (seqs(batch), told(held.buffer.take_gaps(batch))) == ([5], [4])
        assert not held.buffer.has_gap

    def test_a_note_is_never_above_an_event_that_came_since_an_empty_batch_was_taken(self) -> None:
        held = Held(events=4)
        fill(held, "n")
        held.buffer.expire(ALL)
        assert held.buffer.take(ALL, ALL) == []
        fill(held, "cnnnnn")  # 3 and 4 go, and 2 waits
        assert told(held.buffer.take_gaps([])) == [1]
        batch = held.buffer.take(ALL, ALL)
        assert (seqs(batch), told(held.buffer.take_gaps(batch))) == ([2, 5, 6, 7], [3, 4])

    def test_what_expires_is_told_with_its_reason(self) -> None:
        held = Held(events=4)
        fill(held, "nnnnn")
        held.buffer.expire(ALL)
        (gap,) = held.buffer.take_gaps([])
        assert (gap.ranges, gap.reasons) == (((1, 5),), {"overflow": 1, "expired": 4})

    def test_what_is_given_up_in_the_end_is_told_to_nobody(self) -> None:
        held = Held(events=4)
        fill(held, "nn")
        held.buffer.give_up()
        assert not held.buffer.has_gap


class GapsAgainstSets(RuleBasedStateMachine):
    """A worker takes and settles, as it does; sets know what waits, and what was dropped and not declared."""

    @initialize(strategy=st.sampled_from(["drop_oldest", "drop_newest"]), events=st.integers(2, 8))
    def begin(self, strategy: str, events: int) -> None:
        self.held = Held(strategy, events)
        self.clock = 0
        self.created: dict[int, int] = {}  # of what waits
        self.undeclared: set[int] = set()
        self.flying: list[Entry] = []
        self.handed_on = 0  # the highest number that the transport has had, of an event or of a note

    def arrive(self, letters: str) -> None:
        for letter in letters:
            self.clock += 1
            before = len(self.held.evicted)
            if self.held.put(letter, self.clock):
                self.created[self.held.buffer.last_seq] = self.clock
            for entry in self.held.evicted[before:]:
                del self.created[entry.seq]
                self.undeclared.add(entry.seq)

    @rule(letters=st.text("cnd", min_size=1, max_size=6))
    def put(self, letters: str) -> None:
        self.arrive(letters)

    @rule(age=st.integers(0, 6))
    def expire(self, age: int) -> None:
        expired, _ = self.held.buffer.expire(self.clock - age)
        # The oldest of each class is asked only while it is the oldest of all.
        assert seqs(expired) == [seq for seq in sorted(self.created) if self.created[seq] < self.clock - age]
        for entry in expired:
            del self.created[entry.seq]
            self.undeclared.add(entry.seq)

    @rule(limit=st.integers(1, 5), meanwhile=st.text("cnd", max_size=8))
    def take(self, limit: int, meanwhile: str) -> None:
        """A batch, and what is to be told with it; events may come in between."""
        if self.flying:
            return
        batch = self.held.buffer.take(limit, ALL)
        assert seqs(batch) == sorted(self.created)[: len(batch)]
        for entry in batch:
            del self.created[entry.seq]
        self.arrive(meanwhile)
        gaps = self.held.buffer.take_gaps(batch)
        numbers = told(gaps)
        below = batch[-1].seq if batch else min(self.created, default=ALL)
        assert numbers == sorted(seq for seq in self.undeclared if seq < below)
        self.undeclared -= set(numbers)
        sent = sorted([*seqs(batch), *(gap.last for gap in gaps)])
        assert all(self.handed_on < seq for seq in (*sent, *numbers))
        self.handed_on = max([self.handed_on, *sent])
        assert all(self.handed_on < seq for seq in self.created)
        self.flying = batch

    @rule()
    def settle(self) -> None:
        if self.flying:
            assert self.held.buffer.settle(Settlement(delivered=self.flying), None)
            self.flying = []

    @invariant()
    def adds_up(self) -> None:
        balance = self.held.buffer.read()
        assert balance.balanced
        assert (balance.buffered, balance.in_flight) == (len(self.created), len(self.flying))
        assert self.held.buffer.has_gap == bool(self.undeclared)


TestGapsAgainstSets = GapsAgainstSets.TestCase
