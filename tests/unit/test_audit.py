"""The audit's fold: what is there, double, late, declared or missing; in bounded memory, whatever is thrown at it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.views.audit import Audit, Counts, ProducerAudit
from tests.unit.test_notes import MALFORMED

P = "9f0c2d4e6a8b1c3d"


def gap(*ranges: tuple[int, int], reason: str = "overflow") -> StreamllEvent:
    total = sum(last - first + 1 for first, last in ranges)
    return StreamllEvent(event_type=GAP, data={"count": total, "ranges": ranges, "reasons": {reason: total}})


def closing(last: int) -> StreamllEvent:
    return StreamllEvent(event_type=CLOSING, data={"last": last})


def declare(audit: Audit, *ranges: tuple[int, int], reason: str = "overflow", producer: str = P) -> None:
    audit.add_note(producer, ranges[-1][1], gap(*ranges, reason=reason))


def close(audit: Audit, last: int, producer: str = P) -> None:
    audit.add_note(producer, last + 1, closing(last))


def add(audit: Audit, *numbers: int, producer: str = P) -> None:
    for number in numbers:
        audit.add(producer, number)


def counted(row: ProducerAudit) -> dict[str, int]:
    """What is not zero."""
    return {name: number for name, number in asdict(row.counts).items() if number}


class TestOneProducer:
    def test_nothing_is_wrong(self) -> None:
        audit = Audit()
        add(audit, *range(1, 1001))
        close(audit, 1000)
        row = audit.producer(P)
        assert (row.first, row.last, row.closed) == (1, 1001, True)
        assert counted(row) == {"events": 1000}
        assert len(audit) == 2

    def test_a_gap_that_was_declared(self) -> None:
        audit = Audit()
        add(audit, 1, 2)
        declare(audit, (3, 7))
        add(audit, 8)
        row = audit.producer(P)
        assert counted(row) == {"events": 3, "declared": 5}
        assert row.reasons == {"overflow": 5}

    def test_scattered_holes_are_declared_behind_what_lies_between(self) -> None:
        audit = Audit()
        add(audit, 1, 3, 4, 6)
        assert counted(audit.producer(P))["undeclared"] == 2
        declare(audit, (2, 2), (5, 5), (7, 7), reason="expired")
        add(audit, 8)
        row = audit.producer(P)
        assert counted(row) == {"events": 5, "declared": 3}
        assert row.reasons == {"expired": 3}

    def test_a_gap_that_nobody_declared(self) -> None:
        audit = Audit()
        add(audit, 1, 2, 5, 6, 9)
        row = audit.producer(P)
        assert counted(row) == {"events": 5, "undeclared": 4, "gaps": 2}
        assert row.ranges == ((3, 4), (7, 8))

    def test_part_of_a_hole_is_declared(self) -> None:
        audit = Audit()
        add(audit, 1)
        declare(audit, (3, 5))
        add(audit, 7)
        assert audit.producer(P).ranges == ((2, 2), (6, 6))

    def test_at_the_end(self) -> None:
        audit = Audit()
        add(audit, 1, 2)
        close(audit, 5)
        row = audit.producer(P)
        assert row.ranges == ((3, 5),)
        assert row.closed

    def test_an_end_that_is_not_known(self) -> None:
        audit = Audit()
        add(audit, 1, 2)
        assert not audit.producer(P).closed
        close(audit, 2)
        add(audit, 4)  # something that closed does not go on
        assert not audit.producer(P).closed

    def test_a_producer_that_never_had_an_event(self) -> None:
        audit = Audit()
        close(audit, 0)
        row = audit.producer(P)
        assert (row.first, row.last, row.closed, counted(row)) == (1, 1, True, {})

    def test_doubles(self) -> None:
        audit = Audit()
        add(audit, 1, 2, 3, 2, 3, 4, 4)
        declare(audit, (5, 6))
        declare(audit, (5, 6))
        row = audit.producer(P)
        assert counted(row) == {"events": 4, "doubles": 4, "declared": 2}
        assert row.reasons == {"overflow": 2}

    def test_what_the_broker_delivers_again_is_no_double(self) -> None:
        audit = Audit()
        add(audit, 1, 2)
        audit.add(P, 2, redelivered=True)
        audit.add(P, 3, redelivered=True)
        audit.add_note(P, 4, closing(3))
        audit.add_note(P, 4, closing(3), redelivered=True)
        assert counted(audit.producer(P)) == {"events": 3, "redelivered": 2}

    def test_out_of_order(self) -> None:
        audit = Audit()
        add(audit, 1, 4, 2, 5, 3, 6)
        assert counted(audit.producer(P)) == {"events": 6, "out_of_order": 2}

    def test_a_declared_number_that_is_there_after_all(self) -> None:
        audit = Audit()
        add(audit, 1, 2, 3)
        declare(audit, (2, 5), reason="unconfirmed")
        add(audit, 4, 6)
        assert counted(audit.producer(P)) == {"events": 5, "out_of_order": 1, "declared": 1, "after_all": 3}

    def test_an_event_and_the_note_that_has_its_number(self) -> None:
        audit = Audit()
        add(audit, 1, 2)
        declare(audit, (2, 2), reason="unconfirmed")
        assert counted(audit.producer(P)) == {"events": 2, "after_all": 1}

    def test_a_dead_letter_is_no_loss(self) -> None:
        audit = Audit()
        add(audit, 1, 3, 5)
        audit.add_dead_letter(P, 2)
        audit.add_dead_letter(P, 9)  # of what was not read yet
        row = audit.producer(P)
        assert counted(row) == {"events": 3, "dead_letters": 2, "undeclared": 1, "gaps": 1}
        assert (row.last, row.ranges) == (5, ((4, 4),))

    def test_only_dead_letters(self) -> None:
        audit = Audit()
        audit.whole = True
        audit.add_dead_letter(P, 5)
        row = audit.producer(P)
        assert (row.first, row.last, counted(row)) == (0, 0, {"dead_letters": 1})


class TestBeginning:
    def test_what_was_not_read_is_not_missing(self) -> None:
        audit = Audit()
        add(audit, 1001, 1002)
        row = audit.producer(P)
        assert (row.first, counted(row)) == (1001, {"events": 2})

    def test_what_would_have_been_read_is(self) -> None:
        audit = Audit()
        audit.whole = True
        add(audit, 1001, 1002)
        audit.add_dead_letter(P, 1)
        assert audit.producer(P).ranges == ((2, 1000),)

    def test_after_a_cut_nobody_knows(self) -> None:
        audit = Audit()
        audit.whole = True
        add(audit, 1)
        audit.cut()
        add(audit, 7, producer="new")
        assert counted(audit.producer("new")) == {"events": 1}

    def test_a_gap_before_the_first_event_is_declared(self) -> None:
        audit = Audit()
        declare(audit, (501, 700))
        add(audit, 701)
        assert counted(audit.producer(P)) == {"events": 1, "declared": 200}


class TestCuts:
    def test_what_is_missing_across_a_cut_may_have_gone_unread(self) -> None:
        audit = Audit()
        add(audit, 1, 2, 3)
        audit.cut()
        add(audit, 10, 11)
        assert counted(audit.producer(P)) == {"events": 5, "unread": 6}
        add(audit, 15)
        assert audit.producer(P).ranges == ((12, 14),)

    def test_a_cut_excuses_nothing_when_it_goes_on_as_it_was(self) -> None:
        audit = Audit()
        add(audit, 1, 2, 3)
        audit.cut()
        add(audit, 4, 5, 9)
        assert counted(audit.producer(P)) == {"events": 6, "undeclared": 3, "gaps": 1}

    def test_what_came_after_all_or_was_declared_is_not_unread(self) -> None:
        audit = Audit()
        add(audit, 1)
        audit.cut()
        add(audit, 10, 5)
        declare(audit, (2, 4), (11, 11))
        audit.add_dead_letter(P, 6)
        row = counted(audit.producer(P))
        assert row == {"events": 3, "out_of_order": 1, "declared": 4, "dead_letters": 1, "unread": 3}


class TestNonsense:
    @pytest.mark.parametrize("note", [None, *MALFORMED, closing(-1), closing(7), gap((1, 2**63)), gap((5, 6))])
    def test_a_malformed_note_declares_nothing(self, note: StreamllEvent | None) -> None:
        audit = Audit()
        add(audit, 1)
        audit.add_note(P, 5, note)
        assert counted(audit.producer(P)) == {"events": 1, "malformed": 1, "undeclared": 3, "gaps": 1}

    @pytest.mark.parametrize(("producer", "seq"), [("", 5), (P, 0), (P, -1), ("x" * 257, 1)])
    def test_entries_of_strangers(self, producer: str, seq: int) -> None:
        audit = Audit()
        audit.add(producer, seq)
        audit.add_note(producer, seq, gap((1, 2)))
        audit.add_dead_letter(producer, seq)
        audit.add_stranger()
        report = audit.report()
        assert (report.strangers, report.producers) == (4, ())

    def test_huge_numbers_cost_nothing(self) -> None:
        audit = Audit()
        add(audit, 1, 2**62, 10**19)
        audit.add_note(P, 10**20, gap((2, 2**62 - 1), (10**20, 10**20)))
        assert len(audit) == 6
        assert audit.producer(P).counts.undeclared == 10**20 - 2**62 - 2

    def test_reasons_without_end(self) -> None:
        audit = Audit()
        for number in range(1, 500):
            declare(audit, (number, number), reason=f"reason {number}")
        reasons = audit.producer(P).reasons
        assert len(reasons) == 21
        assert sum(reasons.values()) == 499

    def test_only_the_first_ranges_are_named(self) -> None:
        audit = Audit()
        add(audit, *range(1, 1000, 2))
        row = audit.producer(P)
        assert row.counts.gaps == 499
        assert len(row.ranges) == 100


class TestBounds:
    def test_ranges_become_counts(self) -> None:
        audit = Audit(most_ranges=100)
        add(audit, *range(1, 10_001, 2))
        assert len(audit) <= 100
        row = audit.producer(P)
        assert counted(row) == {"events": 5000, "undeclared": 4999, "gaps": 4999}
        line = audit.settled_to(P)
        assert 9_000 < line < 10_000
        add(audit, 2, 3, 10_000, 10_000)
        after = counted(audit.producer(P))
        assert after == {"events": 5001, "doubles": 1, "late": 2, "undeclared": 4999, "gaps": 4999}

    def test_what_was_declared_is_settled_with_them(self) -> None:
        audit = Audit(most_ranges=20)
        for number in range(1, 3001, 3):
            add(audit, number)
            declare(audit, (number + 1, number + 2))
        audit.add_dead_letter(P, 2)  # which is too late to make a difference, but for being counted
        assert len(audit) <= 20
        assert counted(audit.producer(P)) == {"events": 1000, "declared": 2000, "dead_letters": 1}

    def test_what_is_declared_too_late_stays_undeclared(self) -> None:
        audit = Audit(most_ranges=10)
        add(audit, *range(1, 100, 2))
        line = audit.settled_to(P)
        declare(audit, (2, line + 1))
        row = audit.producer(P).counts
        assert row.declared_late == line - 1
        assert row.undeclared > 0
        audit.add_note(P, 4, gap((4, 4)))
        assert audit.producer(P).counts.declared_late == line
        assert audit.producer(P).counts.late == 1

    def test_whoever_has_most_is_settled_first(self) -> None:
        audit = Audit(most_ranges=100)
        add(audit, 1, 3, 5, producer="quiet")
        add(audit, *range(1, 10_001, 2), producer="loud")
        assert audit.settled_to("quiet") == 0
        add(audit, 2, 4, producer="quiet")
        assert counted(audit.producer("quiet")) == {"events": 5, "out_of_order": 2}

    def test_dead_letters_without_end(self) -> None:
        audit = Audit(most_ranges=50)
        for number in range(2, 2001, 2):
            audit.add_dead_letter(P, number)
        assert len(audit) <= 50
        assert counted(audit.producer(P)) == {"dead_letters": 1000}

    def test_producers_become_counts(self) -> None:
        audit = Audit(most_producers=10)
        for number in range(1000):
            add(audit, 1, 2, 4, producer=f"p{number}")
            close(audit, 4, producer=f"p{number}")
        report = audit.report()
        assert len(report.producers) <= 10
        assert len(report.producers) + report.forgotten == 1000
        assert report.closed == 1000
        assert len(audit.changed()) == len(report.producers)
        assert (report.total.events, report.total.undeclared, report.total.gaps) == (3000, 1000, 1000)
        assert len(audit) <= 30

    def test_those_that_closed_go_first_and_then_the_silent(self) -> None:
        audit = Audit(most_producers=8)
        for name in "abcdefgh":
            add(audit, 1, producer=name)
        close(audit, 1, producer="e")
        add(audit, 1, producer="i")
        assert not audit.knows("e")
        assert audit.knows("a")
        add(audit, 2, producer="a")
        add(audit, 1, producer="j")
        assert audit.knows("a")
        assert not audit.knows("b")

    def test_one_that_comes_back_is_met_anew(self) -> None:
        audit = Audit(most_producers=1)
        audit.whole = True
        add(audit, 1, 2, producer="a")
        add(audit, 1, producer="b")
        add(audit, 7, producer="a")
        report = audit.report()
        assert (report.forgotten, report.total.undeclared, report.producers[0].first) == (2, 0, 7)

    def test_a_million_numbers_cost_what_one_does(self) -> None:
        audit = Audit()
        add(audit, 1)
        before = sys.getsizeof(audit._producers[P].seen._bounds)
        add(audit, *range(2, 1_000_001))
        assert sys.getsizeof(audit._producers[P].seen._bounds) == before
        assert counted(audit.producer(P)) == {"events": 1_000_000}


class TestReport:
    def test_the_sum_over_all(self) -> None:
        audit = Audit()
        add(audit, 1, 3)
        add(audit, 1, 1, producer=f"{P}.0123456789abcdef")
        close(audit, 1, producer=f"{P}.0123456789abcdef")
        audit.add_stranger()
        report = audit.report()
        assert [row.parent for row in report.producers] == ["", P]
        assert report.total == Counts(events=3, doubles=1, undeclared=1, gaps=1)
        assert (report.closed, report.strangers, report.whole, report.forgotten) == (1, 1, False, 0)

    def test_what_changed(self) -> None:
        audit = Audit()
        add(audit, 1, producer="a")
        add(audit, 1, producer="b")
        assert audit.changed() == ["a", "b"]
        add(audit, 2, producer="a")
        add(audit, 3, producer="b")
        assert audit.changed() == ["b"]
        assert list(audit.holes("b")) == [(2, 2)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.sampled_from("ab"), st.integers(1, 40)),
        st.tuples(st.just("dead"), st.sampled_from("ab"), st.integers(1, 40)),
        st.tuples(
            st.just("gap"), st.sampled_from("ab"), st.lists(st.integers(1, 40), min_size=2, max_size=8, unique=True)
        ),
        st.tuples(st.just("close"), st.sampled_from("ab"), st.integers(0, 40)),
    ),
    max_size=60,
)


def play(audit: Audit, steps: list[tuple[Any, ...]]) -> None:
    for kind, producer, what in steps:
        if kind == "event":
            audit.add(producer, what)
        elif kind == "dead":
            audit.add_dead_letter(producer, what)
        elif kind == "close":
            close(audit, what, producer)
        else:
            ends = sorted(what)[: len(what) // 2 * 2]
            declare(audit, *zip(ends[::2], ends[1::2], strict=True), producer=producer)


@given(STEPS, st.booleans())
def test_it_is_what_sets_of_numbers_say(steps: list[tuple[Any, ...]], whole: bool) -> None:
    audit = Audit()
    audit.whole = whole
    play(audit, steps)
    for name in {producer for _, producer, _ in steps}:
        mine = [(kind, what) for kind, producer, what in steps if producer == name]
        events = [what for kind, what in mine if kind == "event"]
        dead = {what for kind, what in mine if kind == "dead"}
        noted: set[int] = set()
        declared: set[int] = set()
        for kind, what in mine:
            if kind == "close":
                noted.add(what + 1)
            elif kind == "gap":
                ends = sorted(what)[: len(what) // 2 * 2]
                if ends[-1] not in noted:  # a note under a number that is taken is a double
                    for first, last in zip(ends[::2], ends[1::2], strict=True):
                        declared |= set(range(first, last + 1))
                noted.add(ends[-1])
        met = {*events, *noted}
        lowest = 1 if whole else min(met, default=1)
        missing = set(range(lowest, max(met, default=0) + 1)) - met - declared - dead
        counts = audit.producer(name).counts
        assert counts.events == len(set(events))
        assert counts.declared == len(declared - set(events) - dead)
        assert counts.after_all == len(declared & set(events))
        assert counts.dead_letters == len(dead)
        assert counts.undeclared == len(missing)
        assert {n for first, last in audit.holes(name) for n in range(first, last + 1)} == missing


@given(STEPS, st.integers(1, 12))
def test_little_memory_never_hides_a_loss(steps: list[tuple[Any, ...]], most: int) -> None:
    exact, small = Audit(), Audit(most_ranges=most)
    exact.whole = small.whole = True  # else what comes late may come from before the beginning
    for step in steps:
        play(exact, [step])
        play(small, [step])
        assert len(small) <= most
        assert len(small) == sum(state.size for state in small._producers.values())
    for row in exact.report().producers:
        counts = small.producer(row.producer).counts
        assert counts.undeclared >= row.counts.undeclared
        assert counts.events <= row.counts.events <= counts.events + counts.late
