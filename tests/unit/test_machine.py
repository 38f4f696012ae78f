"""The machine, decision by decision. Its notes are in test_machine_notes.py; test_machine_model.py has it against brokers
that answer anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamll.delivery.circuit import CircuitBreaker, CircuitState
from streamll.delivery.machine import (
    DEAD_LETTER_FAILED,
    EXPIRED,
    PROBE_SIZE,
    REJECTED,
    SHUTDOWN,
    UNCONFIRMED,
    Machine,
    Send,
    Settle,
    Settlement,
    Take,
    Wait,
    expired_before,
)
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from tests.unit.deliveries import entries, entry, seqs

OK = BatchOutcome()
DOWN = BatchOutcome(Failure.UNAVAILABLE, sent=False, error="refused")
SILENT = BatchOutcome(Failure.UNAVAILABLE, error="timed out")
REFUSED = BatchOutcome(Failure.REJECTED, error="bad request")
SECOND = 1_000_000_000


def machine(
    batch: Sequence[Entry] = (), *, deadline: float | None = None, dead_letter: bool = True, threshold: int = 100
) -> Machine:
    """One that waits 1, 2, 3 ... seconds after failures in a row, and holds a batch."""
    made = Machine(CircuitBreaker(threshold), float, lambda: 0.0, deadline, dead_letter)
    made.load(batch)
    return made


def sending(made: Machine, now: float = 0.0) -> list[int]:
    """The numbers that it sends now."""
    command = made.next(now)
    assert isinstance(command, Send)
    return seqs(command.entries)


def waiting(made: Machine, now: float = 0.0) -> float:
    command = made.next(now)
    assert isinstance(command, Wait)
    return command.until


def given_up(made: Machine, now: float = 0.0) -> dict[int, str]:
    command = made.next(now)
    assert isinstance(command, Settle)
    return reasons(command.settlement)


def reasons(settlement: Settlement) -> dict[int, str]:
    return {item.seq: reason for item, reason in settlement.dropped}


class TestBatch:
    def test_asks_for_a_batch_when_it_holds_none(self) -> None:
        made = machine()
        for _ in range(2):
            assert made.next(0.0) == Take()
            made.load([])
        assert made.floor is None

    def test_sends_the_batch_and_settles_it(self) -> None:
        batch = entries(3, 4, 7)
        made = machine(batch)
        assert (made.floor, made.next(0.0)) == (3, Send(batch))
        assert made.sent(OK, 0.0) == Settlement(delivered=batch)
        assert (made.floor, made.next(0.0)) == (None, Take())

    def test_a_batch_that_comes_while_another_is_held_waits_for_its_turn(self) -> None:
        made = machine(entries(1))
        sending(made)
        made.sent(SILENT, 0.0)
        made.load(entries(2))
        assert made.floor == 1
        assert sending(made, 1.0) == [1]
        made.sent(OK, 1.0)
        assert sending(made, 1.0) == [2]

    def test_a_settlement_counts_what_it_settles(self) -> None:
        one, two, three = entries(1, 2, 3)
        assert Settlement([one], [two], [(three, "x")]).count == 3
        assert Settlement().count == 0

    def test_a_settlement_may_become_one_of_drops_alone(self) -> None:
        one, two, three = entries(1, 2, 3)
        settlement = Settlement([one], [two], [(three, "x")]).as_dropped("late")
        assert settlement == Settlement(dropped=[(one, "late"), (two, "late"), (three, "late")])


class TestUnavailable:
    def test_the_same_batch_is_sent_again_after_a_delay(self) -> None:
        made = machine(entries(1, 2))
        for failures in (1, 2, 3):
            assert sending(made, 10.0 * failures) == [1, 2]
            assert made.sent(SILENT, 10.0 * failures).count == 0
            assert waiting(made, 10.0 * failures) == 10.0 * failures + failures
        assert made.retries == 3

    def test_a_success_ends_the_delays(self) -> None:
        made = machine(entries(1))
        for now in (0.0, 10.0):
            sending(made, now)
            made.sent(DOWN, now)
        sending(made, 20.0)
        made.sent(OK, 20.0)
        made.load(entries(2))
        assert sending(made, 20.0) == [2]
        made.sent(DOWN, 20.0)
        assert waiting(made, 20.0) == 21.0

    def test_what_is_known_to_be_delivered_is_not_sent_again(self) -> None:
        made = machine(entries(1, 2, 3, 4))
        sending(made)
        settlement = made.sent(BatchOutcome(Failure.UNAVAILABLE, frozenset({0, 2})), 0.0)
        assert seqs(settlement.delivered) == [1, 3]
        assert made.floor == 2
        assert sending(made, 1.0) == [2, 4]

    def test_a_batch_that_is_known_to_be_delivered_whole_is_done(self) -> None:
        made = machine(entries(1, 2))
        sending(made)
        assert made.sent(BatchOutcome(Failure.UNAVAILABLE, frozenset({0, 1})), 0.0).count == 2
        assert made.next(1.0) == Take()

    def test_somebody_who_waits_ends_the_delay(self) -> None:
        made = machine(entries(1))
        sending(made)
        made.sent(DOWN, 0.0)
        made.probe_now(0.5)
        assert sending(made, 0.5) == [1]

    def test_a_delay_that_cannot_be_computed_loses_nothing(self) -> None:
        def broken(_failures: int) -> float:
            raise ZeroDivisionError

        made = Machine(CircuitBreaker(2), broken, lambda: 0.0)
        made.load(entries(1, 2))
        for _ in range(2):
            assert sending(made) == [1, 2]
            with pytest.raises(ZeroDivisionError):
                made.sent(SILENT, 0.0)
        assert made.circuit.state is CircuitState.OPEN
        assert reasons(made.abandon()) == {1: UNCONFIRMED, 2: UNCONFIRMED}


class TestFatal:
    def test_opens_the_circuit_at_once_and_keeps_the_events(self) -> None:
        made = machine(entries(1, 2))
        sending(made)
        assert made.sent(BatchOutcome(Failure.FATAL, sent=False, error="wrong password"), 0.0).count == 0
        assert made.circuit.state is CircuitState.OPEN
        assert made.circuit.history[-1].reason == "wrong password"
        assert waiting(made) == 30.0
        assert sending(made, 30.0) == [1, 2]


class TestRejected:
    def test_without_a_name_the_batch_is_halved_until_the_poison_stands_alone(self) -> None:
        batch = entries(1, 2, 3, 4, 5)
        made = machine(batch)
        assert sending(made) == [1, 2, 3, 4, 5]
        made.sent(REFUSED, 0.0)
        assert sending(made) == [1, 2, 3]
        assert seqs(made.sent(OK, 0.0).delivered) == [1, 2, 3]
        assert sending(made) == [4, 5]
        made.sent(REFUSED, 0.0)
        assert sending(made) == [4]
        made.sent(REFUSED, 0.0)
        assert made.next(0.0) == Send([Entry(4, batch[3].record, "bad request")])
        assert seqs(made.sent(OK, 0.0).dead_lettered) == [4]
        assert sending(made) == [5]
        assert seqs(made.sent(OK, 0.0).delivered) == [5]
        assert made.next(0.0) == Take()

    def test_a_refusal_is_an_answer_so_there_is_no_delay_and_no_failure(self) -> None:
        made = machine(entries(1, 2), threshold=1)
        sending(made)
        made.sent(REFUSED, 0.0)
        assert made.circuit.state is CircuitState.CLOSED
        assert made.retries == 0
        assert sending(made) == [1]

    def test_a_refusal_without_words_has_a_reason_all_the_same(self) -> None:
        made = machine(entries(1))
        sending(made)
        made.sent(BatchOutcome(Failure.REJECTED), 0.0)
        command = made.next(0.0)
        assert isinstance(command, Send)
        assert command.entries[0].dead_letter == "rejected by the broker"

    def test_what_was_delivered_before_the_refusal_is_not_sent_again(self) -> None:
        made = machine(entries(1, 2, 3, 4))
        sending(made)
        assert seqs(made.sent(BatchOutcome(Failure.REJECTED, frozenset({0, 1})), 0.0).delivered) == [1, 2]
        assert sending(made) == [3]

    def test_with_a_name_it_becomes_a_dead_letter_in_its_place_without_halving(self) -> None:
        made = machine(entries(1, 2, 3, 4))
        sending(made)
        outcome = BatchOutcome(Failure.REJECTED, frozenset({0}), {1: "too large"})
        assert seqs(made.sent(outcome, 0.0).delivered) == [1]
        command = made.next(0.0)
        assert isinstance(command, Send)
        assert [(item.seq, item.dead_letter) for item in command.entries] == [(2, "too large"), (3, ""), (4, "")]
        settlement = made.sent(OK, 0.0)
        assert (seqs(settlement.delivered), seqs(settlement.dead_lettered)) == ([3, 4], [2])

    def test_of_a_batch_that_was_answered_whole_only_the_refused_are_sent_again(self) -> None:
        made = machine(entries(1, 2, 3))
        sending(made)
        settlement = made.sent(BatchOutcome(rejected={1: "unroutable"}), 0.0)
        assert seqs(settlement.delivered) == [1, 3]
        assert sending(made) == [2]
        assert seqs(made.sent(OK, 0.0).dead_lettered) == [2]

    def test_a_dead_letter_that_is_refused_too_is_given_up(self) -> None:
        made = machine(entries(1, 2))
        sending(made)
        made.sent(BatchOutcome(rejected={0: "unroutable", 1: "unroutable"}), 0.0)
        sending(made)
        settlement = made.sent(BatchOutcome(rejected={0: "no such exchange"}), 0.0)
        assert reasons(settlement) == {1: DEAD_LETTER_FAILED}
        assert seqs(settlement.dead_lettered) == [2]
        assert made.next(0.0) == Take()

    def test_so_is_one_that_is_refused_without_a_name(self) -> None:
        made = machine([entry(1, poison="too large")])
        sending(made)
        assert reasons(made.sent(REFUSED, 0.0)) == {1: DEAD_LETTER_FAILED}

    def test_an_event_that_came_as_poison_goes_straight_to_the_dead_letters(self) -> None:
        made = machine([entry(1), entry(2, poison="too large"), entry(3)])
        command = made.next(0.0)
        assert isinstance(command, Send)
        assert [item.dead_letter for item in command.entries] == ["", "too large", ""]
        settlement = made.sent(OK, 0.0)
        assert (seqs(settlement.delivered), seqs(settlement.dead_lettered)) == ([1, 3], [2])

    def test_by_choice_rejected_events_are_dropped(self) -> None:
        made = machine([entry(1), entry(2, poison="too large"), entry(3)], dead_letter=False)
        assert given_up(made) == {2: REJECTED}
        assert sending(made) == [1, 3]
        made.sent(BatchOutcome(rejected={1: "unroutable"}), 0.0)
        assert given_up(made) == {3: REJECTED}
        assert made.next(0.0) == Take()


class TestCircuit:
    def test_opens_after_the_threshold_and_probes_with_a_small_batch(self) -> None:
        made = machine(entries(*range(1, 26)), threshold=2)
        for now in (0.0, 10.0):
            assert len(sending(made, now)) == 25
            made.sent(DOWN, now)
        assert waiting(made, 10.0) == 40.0
        assert sending(made, 40.0) == list(range(1, PROBE_SIZE + 1))
        made.sent(DOWN, 40.0)
        assert waiting(made, 50.0) == 100.0
        assert len(sending(made, 100.0)) == PROBE_SIZE
        made.sent(OK, 100.0)
        assert sending(made, 100.0) == list(range(PROBE_SIZE + 1, 26))
        assert made.circuit.state is CircuitState.CLOSED

    def test_a_batch_that_is_taken_for_the_probe_is_small_too(self) -> None:
        made = machine(threshold=1)
        made.circuit.record_failure(0.0)
        assert waiting(made, 29.0) == 30.0
        assert made.next(30.0) == Take()
        made.load(entries(*range(1, 100)))
        assert len(sending(made, 30.0)) == PROBE_SIZE

    def test_somebody_who_waits_gets_a_probe_at_once(self) -> None:
        made = machine(entries(1), threshold=1)
        sending(made)
        made.sent(DOWN, 0.0)
        made.probe_now(0.1)
        assert sending(made, 0.1) == [1]

    def test_a_refusal_closes_it_for_the_broker_is_there(self) -> None:
        made = machine(entries(1, 2), threshold=1)
        sending(made)
        made.sent(DOWN, 0.0)
        sending(made, 30.0)
        made.sent(REFUSED, 30.0)
        assert made.circuit.state is CircuitState.CLOSED


class TestDeadline:
    def test_what_is_too_old_is_given_up_before_it_is_sent(self) -> None:
        made = machine([entry(1, created=0), entry(2, created=5 * SECOND)], deadline=10.0)
        assert sending(made, 10.0) == [1, 2]
        made.sent(DOWN, 10.0)
        assert given_up(made, 10.001) == {1: EXPIRED}
        assert made.floor == 2
        assert sending(made, 11.0) == [2]

    def test_also_while_the_circuit_is_open(self) -> None:
        made = machine([entry(1)], deadline=10.0, threshold=1)
        sending(made)
        made.sent(DOWN, 0.0)
        assert given_up(made, 11.0) == {1: EXPIRED}
        assert waiting(made, 11.0) == 30.0

    def test_what_may_have_arrived_is_said_to_be_unconfirmed(self) -> None:
        made = machine([entry(1), entry(2)], deadline=10.0)
        sending(made)
        made.sent(BatchOutcome(Failure.UNAVAILABLE, rejected={1: "unroutable"}), 0.0)
        assert given_up(made, 11.0) == {1: UNCONFIRMED, 2: EXPIRED}
        assert made.next(11.0) == Take()

    def test_without_one_nothing_is_ever_too_old(self) -> None:
        assert sending(machine(entries(1)), 1e9) == [1]

    def test_is_the_age_of_the_record(self) -> None:
        assert expired_before(100.0, 10.0) == 90 * SECOND


class TestAbandon:
    def test_what_was_never_sent_is_given_up_for_the_shutdown(self) -> None:
        made = machine(entries(1, 2))
        assert reasons(made.abandon()) == {1: SHUTDOWN, 2: SHUTDOWN}
        assert made.floor is None
        assert made.abandon().count == 0

    def test_so_is_what_certainly_did_not_reach_the_broker(self) -> None:
        made = machine(entries(1, 2))
        sending(made)
        made.sent(DOWN, 0.0)
        assert reasons(made.abandon()) == {1: SHUTDOWN, 2: SHUTDOWN}

    def test_what_was_sent_without_an_answer_may_have_arrived(self) -> None:
        made = machine(entries(1, 2))
        sending(made)
        assert reasons(made.abandon()) == {1: UNCONFIRMED, 2: UNCONFIRMED}

    def test_also_when_later_attempts_did_not_reach_the_broker(self) -> None:
        made = machine(entries(1, 2))
        for outcome in (SILENT, DOWN, DOWN):
            made.probe_now(0.0)
            sending(made)
            made.sent(outcome, 0.0)
        assert reasons(made.abandon()) == {1: UNCONFIRMED, 2: UNCONFIRMED}

    def test_what_the_broker_refused_did_not_arrive(self) -> None:
        for outcome in (REFUSED, BatchOutcome(rejected={0: "unroutable", 1: "unroutable"})):
            made = machine(entries(1, 2))
            sending(made)
            made.sent(outcome, 0.0)
            assert reasons(made.abandon()) == {1: SHUTDOWN, 2: SHUTDOWN}

    def test_of_a_probe_only_what_was_in_it(self) -> None:
        made = machine(entries(*range(1, 21)), threshold=1)
        sending(made)
        made.sent(DOWN, 0.0)
        sending(made, 30.0)
        made.sent(SILENT, 30.0)
        assert reasons(made.abandon()) == {seq: UNCONFIRMED if seq <= PROBE_SIZE else SHUTDOWN for seq in range(1, 21)}

    def test_a_dead_letter_that_may_have_arrived_is_unconfirmed(self) -> None:
        made = machine([entry(1, poison="too large"), entry(2)])
        sending(made)
        made.sent(SILENT, 0.0)
        assert reasons(made.abandon()) == {1: UNCONFIRMED, 2: UNCONFIRMED}

    def test_what_one_batch_left_open_says_nothing_of_the_next(self) -> None:
        made = machine(entries(1))
        sending(made)
        made.sent(SILENT, 0.0)
        made.probe_now(0.0)
        sending(made)
        made.sent(OK, 0.0)
        made.load(entries(2))
        assert reasons(made.abandon()) == {2: SHUTDOWN}
