"""The notes that a machine leaves where it dropped events, and how they travel."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamll.delivery.circuit import CircuitBreaker, CircuitState
from streamll.delivery.gaps import MOST_RANGES, Gap, gaps_of
from streamll.delivery.machine import (
    DEAD_LETTER_FAILED,
    EXPIRED,
    REJECTED,
    UNCONFIRMED,
    Machine,
    Send,
    Settlement,
    Take,
)
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from tests.unit.deliveries import entries, entry, record, seqs
from tests.unit.test_machine import DOWN, OK, REFUSED, SECOND, SILENT, given_up, reasons, sending, waiting


def noting(
    batch: Sequence[Entry] = (),
    gaps: Sequence[Gap] = (),
    *,
    deadline: float | None = None,
    dead_letter: bool = True,
    threshold: int = 100,
) -> Machine:
    """A machine whose notes have what they declare for a payload, and which holds a batch and what was dropped before."""
    made = Machine(
        CircuitBreaker(threshold),
        float,
        lambda: 0.0,
        deadline,
        dead_letter,
        declare=lambda gap: record(f"{list(gap.ranges)} {dict(gap.reasons)}".encode()),
    )
    made.load(batch, gaps)
    return made


def saying(made: Machine, now: float = 0.0) -> list[int | str]:
    """What it sends now: events by their numbers, dead letters by their negative ones, notes by number and words."""
    command = made.next(now)
    assert isinstance(command, Send)
    assert seqs(command.entries) == sorted(set(seqs(command.entries)))
    return [
        f"{item.seq}: {item.record.payload.decode()}" if item.note else -item.seq if item.dead_letter else item.seq
        for item in command.entries
    ]


OVERFLOWN = [Gap(((3, 5),), {"overflow": 3})]


class TestNotes:
    def test_a_gap_is_told_in_its_place_and_counted_nowhere(self) -> None:
        batch = entries(1, 2, 6)
        made = noting(batch, OVERFLOWN)
        assert saying(made) == [1, 2, "5: [(3, 5)] {'overflow': 3}", 6]
        assert made.sent(OK, 0.0) == Settlement(batch, [], [], declared=[(3, 5)])
        assert (made.declared, made.undeclared) == (3, 0)
        assert made.next(0.0) == Take()

    def test_a_gap_behind_all_events_is_told_alone(self) -> None:
        made = noting([], OVERFLOWN)
        assert (made.is_idle, made.floor) == (False, None)
        assert saying(made) == ["5: [(3, 5)] {'overflow': 3}"]
        settlement = made.sent(OK, 0.0)
        assert (settlement.count, settlement.declared) == (0, [(3, 5)])
        assert (made.is_idle, made.declared) == (True, 3)

    def test_more_than_one_note_can_say_becomes_several(self) -> None:
        holes = range(2, 2 * MOST_RANGES + 4, 2)
        made = noting(entries(1, holes[-1] + 1), gaps_of((seq, "overflow") for seq in holes))
        command = made.next(0.0)
        assert isinstance(command, Send)
        assert [(item.seq, item.note) for item in command.entries] == [
            (1, False),
            (holes[-2], True),
            (holes[-1], True),
            (holes[-1] + 1, False),
        ]
        assert seqs(made.sent(OK, 0.0).delivered) == [1, holes[-1] + 1]
        assert made.declared == MOST_RANGES + 1

    def test_nothing_is_told_where_notes_are_not_kept(self) -> None:
        made = Machine(CircuitBreaker(100), float, lambda: 0.0, 10.0)
        made.load([entry(1), entry(2, created=100 * SECOND)], OVERFLOWN)
        assert given_up(made, 11.0) == {1: EXPIRED}
        assert saying(made, 11.0) == [2]

    def test_what_expires_in_hand_leaves_its_note(self) -> None:
        old, young = 0, 100 * SECOND
        made = noting([entry(n, created=young if n in (2, 5) else old) for n in range(1, 7)], deadline=10.0)
        assert given_up(made, 11.0) == dict.fromkeys([1, 3, 4, 6], EXPIRED)
        assert made.floor == 2
        assert saying(made, 11.0) == [2, 5, "6: [(1, 1), (3, 4), (6, 6)] {'expired': 4}"]
        assert seqs(made.sent(OK, 11.0).delivered) == [2, 5]
        assert made.declared == 4

    def test_a_note_says_which_of_them_may_have_arrived(self) -> None:
        made = noting([entry(1), entry(2)], deadline=10.0)
        sending(made)
        made.sent(BatchOutcome(Failure.UNAVAILABLE, rejected={1: "unroutable"}), 0.0)
        given_up(made, 11.0)
        assert saying(made, 11.0) == ["2: [(1, 2)] {'unconfirmed': 1, 'expired': 1}"]

    def test_each_part_of_a_divided_batch_gets_the_note_of_its_own(self) -> None:
        made = noting([entry(n, created=0 if n in (2, 4) else 100 * SECOND) for n in (1, 2, 3, 4)], deadline=10.0)
        sending(made)
        made.sent(REFUSED, 0.0)
        assert given_up(made, 11.0) == {2: EXPIRED, 4: EXPIRED}
        assert saying(made, 11.0) == [1, "2: [(2, 2)] {'expired': 1}"]
        made.sent(OK, 11.0)
        assert saying(made, 11.0) == [3, "4: [(4, 4)] {'expired': 1}"]
        made.sent(OK, 11.0)
        assert (made.declared, made.is_idle) == (2, True)

    def test_by_choice_a_rejected_event_is_a_gap(self) -> None:
        made = noting([entry(1), entry(2, poison="too large"), entry(3), entry(4)], dead_letter=False)
        assert given_up(made) == {2: REJECTED}
        assert saying(made) == [1, "2: [(2, 2)] {'rejected': 1}", 3, 4]
        made.sent(BatchOutcome(Failure.REJECTED, {0, 1}, {2: "unroutable"}), 0.0)
        assert given_up(made) == {3: REJECTED}
        assert saying(made) == ["3: [(3, 3)] {'rejected': 1}", 4]
        made.sent(OK, 0.0)
        assert made.declared == 2

    @pytest.mark.parametrize("outcome", [BatchOutcome(Failure.REJECTED, rejected={0: "no exchange"}), REFUSED])
    def test_a_dead_letter_that_is_refused_too_is_a_gap(self, outcome: BatchOutcome) -> None:
        made = noting([entry(1, poison="too large")] + (entries(2) if outcome.rejected else []))
        assert saying(made)[0] == -1
        assert reasons(made.sent(outcome, 0.0)) == {1: DEAD_LETTER_FAILED}
        assert saying(made)[0] == "1: [(1, 1)] {'dead_letter_failed': 1}"
        assert saying(made)[1:] == ([2] if outcome.rejected else [])

    def test_a_note_is_sent_again_as_an_event_is_and_told_once(self) -> None:
        made = noting(entries(1, 6), OVERFLOWN)
        first = saying(made)
        made.sent(SILENT, 0.0)
        assert made.declared == 0
        assert saying(made, 1.0) == first
        assert made.sent(BatchOutcome(Failure.UNAVAILABLE, {0, 1}), 1.0).declared == [(3, 5)]
        assert made.declared == 3
        assert saying(made, 10.0) == [6]

    def test_a_note_has_no_age(self) -> None:
        made = noting([entry(1)], OVERFLOWN, deadline=10.0)
        sending(made)
        made.sent(DOWN, 0.0)
        assert waiting(made) == 1.0
        assert given_up(made, 11.0) == {1: EXPIRED}
        assert saying(made, 11.0) == ["5: [(1, 1), (3, 5)] {'expired': 1, 'overflow': 3}"], (
            "side by side: one tells of both"
        )
        made.sent(DOWN, 1e6)
        assert waiting(made, 1e6) == 1e6 + 2
        assert len(saying(made, 1e6 + 2)) == 1

    def test_a_note_that_the_broker_refuses_by_name_is_let_go(self) -> None:
        made = noting(entries(1, 6), OVERFLOWN)
        sending(made)
        settlement = made.sent(BatchOutcome(rejected={1: "unroutable"}), 0.0)
        assert (seqs(settlement.delivered), settlement.count, settlement.declared) == ([1, 6], 2, [])
        assert (made.declared, made.undeclared, made.is_idle) == (0, 3, True)

    def test_so_is_one_that_is_found_by_halving(self) -> None:
        made = noting(entries(1, 6), OVERFLOWN)
        for outcome, expected in ((REFUSED, 3), (REFUSED, 2), (OK, 1), (REFUSED, 1)):
            assert len(saying(made)) == expected
            made.sent(outcome, 0.0)
        assert (made.declared, made.undeclared) == (0, 3)
        assert saying(made) == [6]

    def test_a_note_is_never_a_dead_letter(self) -> None:
        made = noting([entry(1, poison="too large"), entry(6)], OVERFLOWN)
        assert saying(made) == [-1, "5: [(3, 5)] {'overflow': 3}", 6]
        settlement = made.sent(OK, 0.0)
        assert (seqs(settlement.dead_lettered), seqs(settlement.delivered)) == ([1], [6])

    def test_a_note_may_be_the_probe_of_an_open_circuit(self) -> None:
        made = noting([], OVERFLOWN, threshold=1)
        sending(made)
        made.sent(DOWN, 0.0)
        assert waiting(made) == 30.0
        assert len(saying(made, 30.0)) == 1
        made.sent(OK, 30.0)
        assert (made.circuit.state, made.declared) == (CircuitState.CLOSED, 3)

    def test_what_was_not_told_when_the_sink_stops_is_not_dropped_once_more(self) -> None:
        made = noting(entries(1, 6), OVERFLOWN)
        sending(made)
        assert reasons(made.abandon()) == {1: UNCONFIRMED, 6: UNCONFIRMED}
        assert (made.declared, made.undeclared, made.is_idle) == (0, 3, True)
        assert made.abandon().count == 0
        assert made.undeclared == 3
