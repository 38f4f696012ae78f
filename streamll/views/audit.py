"""Audit: which events of which producers are there, double, late or missing, and which of the missing were declared.

What belongs here: the fold over numbers, in bounded memory. What does not: where entries come from, and how the outcome
is shown (audit_text.py) or followed (audit_watch.py).

A producer numbers the events that it accepts from 1 on, without leaving any out. So every number between the first and
the last one that were met must be accounted for, in one of these ways:

    there          an event, or a note of the sink that took the number of an event that it dropped
    declared       a note says that it was accepted and dropped
    dead letter    it is among the dead letters
    unread         it may have gone before it was read: the reading has a hole here
    undeclared     none of these: a loss that nobody owned up to

A closing record has the number behind the last event, so that what is missing at the end is found too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice

from streamll.ids import parent_of
from streamll.models import CLOSING, StreamllEvent
from streamll.ranges import RangeSet
from streamll.views.notes import read_closing, read_gap

MOST_RANGES = 500_000
MOST_PRODUCERS = 10_000

_LONGEST_PRODUCER = 256
_MOST_REASONS = 20
_OTHER_REASONS = "(others)"
_SHOWN_GAPS = 100
_SETTLED_AT_ONCE = 8
"""One part in so many of what is remembered is settled at once: doing it for every number would cost too much."""


@dataclass(frozen=True)
class Counts:
    """What is counted of a producer, or of several.

    Attributes:
        events: Events that are there, doubles not counted.
        doubles: Entries whose number was there before.
        redelivered: Such entries that the broker says it delivered again: they need not be there twice.
        out_of_order: Events that came behind one with a higher number.
        late: Entries whose number had been settled already, so that they may be doubles or late.
        declared: Numbers that were declared lost, and are not there.
        declared_late: Numbers that were declared when they had been settled already; they count as undeclared.
        after_all: Numbers that were declared lost, and are there.
        dead_letters: Events among the dead letters.
        unread: Numbers that may have gone before they were read.
        undeclared: Numbers that are missing, and nothing says why.
        gaps: In how many ranges these are.
        malformed: Notes that cannot be read, or contradict themselves; nothing that they declare counts.
    """

    events: int = 0
    doubles: int = 0
    redelivered: int = 0
    out_of_order: int = 0
    late: int = 0
    declared: int = 0
    declared_late: int = 0
    after_all: int = 0
    dead_letters: int = 0
    unread: int = 0
    undeclared: int = 0
    gaps: int = 0
    malformed: int = 0

    def plus(self, *others: Counts) -> Counts:
        """Return the sum."""
        return Counts(**{one.name: sum(getattr(each, one.name) for each in (self, *others)) for one in fields(Counts)})


@dataclass(frozen=True)
class ProducerAudit:
    """What is known of one producer.

    Attributes:
        producer: Its id.
        parent: The producer that it was forked from; empty when it was not.
        first, last: The lowest and the highest number that were met; 0 when only dead letters were.
        closed: Whether its closing record is there and nothing came behind it: then its end is known.
        counts: What was counted.
        reasons: Of what was declared: how many for which reason, as the notes say.
        ranges: The first undeclared ranges that are not settled yet, at most 100.
    """

    producer: str
    parent: str
    first: int
    last: int
    closed: bool
    counts: Counts
    reasons: dict[str, int]
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class AuditReport:
    """The outcome.

    Attributes:
        producers: One by one, in the order in which they were met.
        forgotten: How many more there were, which were set aside to bound memory.
        closed: How many of all had closed.
        total: The sum over all, those set aside too.
        strangers: Entries without a producer and number.
        whole: Whether reading began with the first entry that ever was there. Then a producer's first numbers count as
            missing when they are not there; else what it wrote before simply was not read.
    """

    producers: tuple[ProducerAudit, ...]
    forgotten: int
    closed: int
    total: Counts
    strangers: int
    whole: bool


class Audit:
    """The fold. Each entry of a source is added once, in the order in which it was read.

    Args:
        most_ranges: Ranges of numbers remembered, over all producers. Beyond it the lowest ones of those who have most
            are settled: they become counts, and what still comes below that line cannot be told from a double.
        most_producers: Producers told apart. Beyond it those that closed, then those that were silent, become counts; should
            one come back, it is met anew.
    """

    def __init__(self, most_ranges: int = MOST_RANGES, most_producers: int = MOST_PRODUCERS) -> None:
        self.whole = False
        """Whether reading began with the first entry that ever was there; to be set when it is known."""
        self._most_ranges = most_ranges
        self._most_producers = most_producers
        self._producers: dict[str, _Producer] = {}
        self._changed: dict[str, None] = {}
        self._size = 0
        self._cuts = 0
        self._strangers = 0
        self._forgotten = 0
        self._forgotten_closed = 0
        self._forgotten_counts = Counts()

    def __len__(self) -> int:
        """The ranges remembered."""
        return self._size

    def add(self, producer: str, seq: int, redelivered: bool = False) -> None:
        """Take an event in.

        Args:
            producer: Its producer; empty when the entry does not say.
            seq: Its number; 0 when the entry does not say.
            redelivered: Whether the broker says that it was delivered before.
        """
        state = self._producers.get(producer)
        if state is not None and seq == state.expected:
            state.expected = seq + 1
            state.events += 1
            return
        if seq < 1 or not producer or len(producer) > _LONGEST_PRODUCER:
            self._strangers += 1
            return
        state = state or self._meet(producer)
        before = self._begin(producer, state)
        if seq <= state.line:
            state.late += 1
        elif state.seen.add_one(seq):
            state.events += 1
            state.place(seq, self._cuts)
        else:
            state.count_again(redelivered)
        self._end(state, before)

    def add_note(self, producer: str, seq: int, note: StreamllEvent | None, redelivered: bool = False) -> None:
        """Take a note in; its number is accounted for, whatever it says.

        Args:
            producer, seq, redelivered: As in `add`.
            note: The note; None when it cannot be read.
        """
        if seq < 1 or not producer or len(producer) > _LONGEST_PRODUCER:
            self._strangers += 1
            return
        state = self._producers.get(producer) or self._meet(producer)
        before = self._begin(producer, state)
        if seq in state.notes:
            state.count_again(redelivered)
        elif seq <= state.line:
            state.late += 1
            state.declared_late += state.declare(seq, note)
        else:
            if seq not in state.seen:
                state.place(seq, self._cuts)
            state.notes.add_one(seq)
            state.declared_late += state.declare(seq, note)
        self._end(state, before)

    def add_dead_letter(self, producer: str, seq: int) -> None:
        """Take in an event that is among the dead letters, where it was met."""
        if seq < 1 or not producer or len(producer) > _LONGEST_PRODUCER:
            self._strangers += 1
            return
        state = self._producers.get(producer) or self._meet(producer)
        before = self._begin(producer, state)
        if seq <= state.line:
            state.settled = state.settled.plus(Counts(dead_letters=1))
        else:
            state.dead.add_one(seq)
        self._end(state, before)

    def add_stranger(self) -> None:
        """Take in an entry that nobody knows the producer of."""
        self._strangers += 1

    def cut(self) -> None:
        """Say that entries may have gone unread between what was added before and what will be."""
        self._cuts += 1
        for state in self._producers.values():
            state.catch_up()
            state.expected = 0

    def changed(self) -> list[str]:
        """Return the producers of which anything but the next event came since this was asked last."""
        names = list(self._changed)
        self._changed.clear()
        return names

    def holes(self, producer: str) -> RangeSet:
        """Return the numbers of a producer that are missing, and nothing says why; without what is settled."""
        state = self._producers[producer]
        state.catch_up()
        return state.holes(self.whole)

    def settled_to(self, producer: str) -> int:
        """Return the number of a producer up to which all are settled; 0 when none is."""
        return self._producers[producer].line

    def knows(self, producer: str) -> bool:
        """Return whether a producer is remembered."""
        return producer in self._producers

    def producer(self, name: str) -> ProducerAudit:
        """Return what is known of one producer, which is remembered."""
        return self._producers[name].report(name, self.whole)

    def report(self) -> AuditReport:
        """Return the outcome so far."""
        rows = tuple(state.report(name, self.whole) for name, state in self._producers.items())
        return AuditReport(
            producers=rows,
            forgotten=self._forgotten,
            closed=self._forgotten_closed + sum(row.closed for row in rows),
            total=self._forgotten_counts.plus(*(row.counts for row in rows)),
            strangers=self._strangers,
            whole=self.whole,
        )

    def _meet(self, name: str) -> _Producer:
        if len(self._producers) >= self._most_producers:
            self._forget()
        # One whose beginning we may have missed, or forgotten, may begin anywhere.
        state = self._producers[name] = _Producer(self._cuts, sure=not (self._cuts or self._forgotten))
        return state

    def _begin(self, name: str, state: _Producer) -> int:
        self._changed[name] = None
        state.catch_up()
        return state.size

    def _end(self, state: _Producer, before: int) -> None:
        state.expect()
        self._size += state.size - before
        if self._size > self._most_ranges:
            self._settle()

    def _settle(self) -> None:
        """Settle the lower half of whoever has most, until enough is free again."""
        enough = self._most_ranges - self._most_ranges // _SETTLED_AT_ONCE
        while self._size > enough:
            for state in sorted(self._producers.values(), key=lambda state: -state.size):
                if self._size <= enough or not state.size:
                    break
                state.catch_up()
                self._size -= state.settle(self.whole)
                state.expect()

    def _forget(self) -> None:
        """Turn some producers into counts: those that closed, then those of whom nothing was heard, then the oldest."""
        order: list[tuple[int, str]] = []
        for name, state in self._producers.items():
            state.catch_up()
            busy = state.activity()
            order.append((0 if 0 < state.closing == state.top else 1 if busy == state.mark else 2, name))
            state.mark = busy
        order.sort(key=lambda each: each[0])
        for _, name in order[: max(1, len(order) // _SETTLED_AT_ONCE)]:
            state = self._producers.pop(name)
            self._changed.pop(name, None)
            report = state.report(name, self.whole)
            self._size -= state.size
            self._forgotten += 1
            self._forgotten_closed += report.closed
            self._forgotten_counts = self._forgotten_counts.plus(report.counts)


@dataclass(slots=True)
class _Producer:
    """The numbers of one producer.

    While events come one after the other, only `expected` and `events` move; `catch_up` brings all else up to that.
    """

    cuts: int
    """The cuts of the reading that were before what was met last."""
    sure: bool
    """Whether it was met where its beginning cannot have been missed, if anybody's cannot."""
    expected: int = 0
    """The number that makes the last range of `seen` longer; 0 when none can without a closer look."""
    first: int = 0
    top: int = 0
    line: int = 0
    """The numbers up to here are settled."""
    settled: Counts = field(default_factory=Counts)
    """What became of them."""
    closing: int = 0
    events: int = 0
    doubles: int = 0
    redelivered: int = 0
    out_of_order: int = 0
    late: int = 0
    declared_late: int = 0
    malformed: int = 0
    mark: int = -1
    """Its activity when producers were forgotten last."""
    reasons: dict[str, int] = field(default_factory=dict)
    seen: RangeSet = field(default_factory=RangeSet)
    notes: RangeSet = field(default_factory=RangeSet)
    declared: RangeSet = field(default_factory=RangeSet)
    dead: RangeSet = field(default_factory=RangeSet)
    unread: RangeSet = field(default_factory=RangeSet)

    @property
    def size(self) -> int:
        """The ranges remembered."""
        return len(self.seen) + len(self.notes) + len(self.declared) + len(self.dead) + len(self.unread)

    def catch_up(self) -> None:
        if self.expected > self.top + 1:
            self.seen.add(self.top, self.expected - 1)
            self.top = self.expected - 1

    def expect(self) -> None:
        self.expected = self.top + 1 if self.seen.last == self.top else 0

    def place(self, seq: int, cuts: int) -> None:
        """Note in which order a number came that was not there."""
        if seq < self.top:
            self.out_of_order += 1
        elif self.cuts != cuts and 0 < self.top < seq - 1:
            self.unread.add(self.top + 1, seq - 1)
        self.cuts = cuts
        self.first = min(self.first or seq, seq)
        self.top = max(self.top, seq)

    def count_again(self, redelivered: bool) -> None:
        if redelivered:
            self.redelivered += 1
        else:
            self.doubles += 1

    def declare(self, seq: int, note: StreamllEvent | None) -> int:
        """Take in what a note says; return how many of the numbers that it declares are settled already."""
        if note is not None and note.event_type == CLOSING and read_closing(note) == seq - 1:
            self.closing = max(self.closing, seq)
            return 0
        gap = read_gap(note) if note is not None else None
        if gap is None or gap.ranges[-1][1] != seq:
            self.malformed += 1
            return 0
        for reason, number in gap.reasons.items():
            if reason not in self.reasons and len(self.reasons) >= _MOST_REASONS:
                reason = _OTHER_REASONS
            self.reasons[reason] = self.reasons.get(reason, 0) + number
        too_late = 0
        for first, last in gap.ranges:
            if first <= self.line:
                too_late += min(last, self.line) - first + 1
                first = self.line + 1
            if first <= last:
                self.declared.add(first, last)
        return too_late

    def holes(self, whole: bool) -> RangeSet:
        """The undeclared numbers above the line."""
        return self._missing(self.top, whole)

    def settle(self, whole: bool) -> int:
        """Turn the lower half of the ranges into counts; return how many ranges that frees."""
        before = self.size
        largest = max(self._sets, key=len)
        line = min(largest[len(largest) // 2][1], self.top)
        holes = self._missing(line, whole)
        self.settled = self._settled_with([numbers.cut_off(line) for numbers in self._sets], holes)
        self.line = max(self.line, line)
        if self.size == before:
            # Dead letters ahead of all else that was read. What is forgotten of them will look as if nobody owned up.
            too_many = self.dead.cut_off(self.dead[len(self.dead) // 2][1])
            self.settled = replace(self.settled, dead_letters=self.settled.dead_letters + too_many.count())
        return before - self.size

    def report(self, name: str, whole: bool) -> ProducerAudit:
        """What is known, without changing it."""
        self.catch_up()
        holes = self.holes(whole)
        counts = self._settled_with(self._sets, holes)
        return ProducerAudit(
            producer=name,
            parent=parent_of(name),
            first=self.first,
            last=self.top,
            closed=0 < self.closing == self.top,
            counts=replace(
                counts,
                events=self.events,
                doubles=self.doubles,
                redelivered=self.redelivered,
                out_of_order=self.out_of_order,
                late=self.late,
                declared_late=self.declared_late,
                malformed=self.malformed,
            ),
            reasons=dict(self.reasons),
            ranges=tuple(islice(holes, _SHOWN_GAPS)),
        )

    def activity(self) -> int:
        """A number that changes with whatever comes."""
        return self.events + self.doubles + self.redelivered + self.late + len(self.notes)

    @property
    def _sets(self) -> tuple[RangeSet, RangeSet, RangeSet, RangeSet, RangeSet]:
        return self.seen, self.notes, self.declared, self.dead, self.unread

    def _missing(self, top: int, whole: bool) -> RangeSet:
        lowest = max(1 if whole and self.sure else self.first, self.line + 1)
        expected = RangeSet([(lowest, top)] if self.first > 0 else [])
        return expected.without(RangeSet().joined(*self._sets))

    def _settled_with(self, sets: Sequence[RangeSet], holes: RangeSet) -> Counts:
        """What is settled, and what these numbers come to beside it."""
        seen, notes, declared, dead, unread = sets
        return self.settled.plus(
            Counts(
                declared=declared.without(seen).without(dead).count(),
                after_all=declared.within(seen).count(),
                dead_letters=dead.count(),
                unread=unread.without(seen.joined(notes, declared, dead)).count(),
                undeclared=holes.count(),
                gaps=len(holes),
            )
        )
