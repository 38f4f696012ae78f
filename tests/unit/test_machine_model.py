"""The machine against brokers that answer anything, and against brokers that keep their word."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamll.delivery.circuit import CircuitBreaker, CircuitState
from streamll.delivery.gaps import Gap, gaps_of
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
)
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.models import Record
from tests.unit.deliveries import entry, record, seqs

SECOND = 1_000_000_000
FAILED = (Failure.UNAVAILABLE, Failure.FATAL)


@st.composite
def outcomes(draw: st.DrawFn, size: int) -> BatchOutcome:
    """Whatever a transport may say of a batch of so many entries, and some of what it should not."""
    failure = draw(st.sampled_from([None, *Failure]))
    positions = st.integers(0, size - 1)
    rejected = draw(st.dictionaries(positions, st.sampled_from(["too large", "unroutable"]), max_size=3))
    delivered = draw(
        st.one_of(st.just(frozenset[int]()), st.integers(0, size).map(range).map(frozenset), st.frozensets(positions))
    )
    return BatchOutcome(
        failure,
        delivered if failure else frozenset(),
        rejected,
        sent=draw(st.booleans()),
        error=draw(st.sampled_from(["", "no"])),
    )


def note_of(gap: Gap) -> Record:
    """A note from which its ranges can be read back."""
    return record(json.dumps(gap.ranges).encode())


def told_by(item: Entry) -> list[int]:
    """The numbers that a note declares."""
    return [seq for first, last in json.loads(item.record.payload) for seq in range(first, last + 1)]


class AnyBroker(RuleBasedStateMachine):
    """Commands carried out in any way, checked against a model that knows each entry's history."""

    @initialize(
        threshold=st.integers(1, 4),
        deadline=st.sampled_from([None, None, 5.0, 100.0]),
        dead_letter=st.booleans(),
        delay=st.sampled_from([0.0, 0.5, 40.0]),
        circuit=st.booleans(),
        declares=st.booleans(),
    )
    def begin(
        self, threshold: int, deadline: float | None, dead_letter: bool, delay: float, circuit: bool, declares: bool
    ) -> None:
        self.now = 1000.0
        self.threshold = threshold
        self.deadline = deadline
        self.dead_letter = dead_letter
        self.circuit = CircuitBreaker(threshold, 30.0, 300.0, enabled=circuit)
        declare = note_of if declares else None
        self.machine = Machine(self.circuit, lambda n: delay * n, lambda: 0.5, deadline, dead_letter, declare)
        self.declares = declares
        self.to_tell: set[int] = set()  # numbers that were dropped, and of which no reader has heard
        self.told = self.untold = 0
        self.next_seq = 1
        self.held: dict[int, Entry] = {}
        self.marked: set[int] = set()
        self.unsure: set[int] = set()
        self.sent: list[Entry] | None = None
        self.wants = True
        self.flushed = False
        self.failures = 0
        self.retries = 0

    @precondition(lambda self: self.wants)
    @rule(
        size=st.integers(0, 40),
        gap=st.integers(1, 3),
        poison=st.sets(st.integers(0, 39), max_size=2),
        age=st.floats(0, 6),
    )
    def load(self, size: int, gap: int, poison: set[int], age: float) -> None:
        batch = []
        holes: list[tuple[int, str]] = []
        for position in range(size):
            step = gap if position % 5 == 0 else 1
            holes += [(seq, "overflow") for seq in range(self.next_seq + 1, self.next_seq + step)]
            self.next_seq += step
            reason = "too large" if position in poison else ""
            batch.append(entry(self.next_seq, created=int((self.now - age) * SECOND), poison=reason))
            if reason:
                self.marked.add(self.next_seq)
        self.held.update({item.seq: item for item in batch})
        if not batch:  # nothing is left to send, but that something was dropped
            holes = [(self.next_seq + n, "overflow") for n in range(1, gap)]
            self.next_seq += gap
        self.machine.load(batch, gaps_of(holes))
        self.to_be_told(seq for seq, _ in holes)
        self.wants = not batch and not self.to_tell

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        before, flushed = self.circuit.state, self.flushed
        self.flushed = False
        command = self.machine.next(self.now)
        if self.sent is not None:  # the answer never came
            self.unsure |= {item.seq for item in self.sent if not item.note}
            self.sent = None
        if isinstance(command, Take):
            assert not self.held
            assert not self.to_tell, "everything that was dropped has been told"
            assert self.machine.is_idle
            self.wants = True
        elif isinstance(command, Wait):
            assert not flushed
            assert command.until > self.now
            assert command.until <= self.now + 300.0 + 40.0 * self.failures
        elif isinstance(command, Settle):
            self.check_given_up(command.settlement)
        else:
            assert before is not CircuitState.OPEN or self.circuit.state is CircuitState.HALF_OPEN
            self.check_sent(command)
            if data.draw(st.sampled_from([True] * 9 + [False]), label="answered"):
                self.answer(command, data.draw(outcomes(len(command.entries)), label="outcome"))

    def check_given_up(self, settlement: Settlement) -> None:
        assert settlement.dropped
        assert not settlement.delivered
        assert not settlement.dead_lettered
        for item, reason in settlement.dropped:
            late = self.deadline is not None and item.record.created / SECOND < self.now - self.deadline + 0.001
            if reason == REJECTED:
                assert not self.dead_letter
                assert item.seq in self.marked
            else:
                assert reason == (UNCONFIRMED if item.seq in self.unsure else EXPIRED)
                assert late
            self.settle(item)
        self.to_be_told(seqs(settlement.dropped))

    def check_sent(self, command: Send) -> None:
        assert command.entries
        assert seqs(command.entries) == sorted(set(seqs(command.entries)))
        events = [item for item in command.entries if not item.note]
        numbers = seqs(events)
        assert numbers == sorted(self.held)[: len(numbers)], "always the first of what is held, in its order"
        if self.circuit.state is CircuitState.HALF_OPEN:
            assert len(command.entries) <= PROBE_SIZE
        for item in command.entries:
            if item.note:
                assert told_by(item)[-1] == item.seq
                assert told_by(item) == sorted(set(told_by(item)))
                assert self.to_tell.issuperset(told_by(item)), "only of what was dropped, and once"
        for item in events:
            assert item.record is self.held[item.seq].record
            assert bool(item.dead_letter) == (item.seq in self.marked)
            assert self.dead_letter or not item.dead_letter
            if self.deadline is not None:
                assert item.record.created / SECOND >= self.now - self.deadline - 0.001
        self.sent = list(command.entries)

    def answer(self, command: Send, outcome: BatchOutcome) -> None:
        self.sent = None
        settlement = self.machine.sent(outcome, self.now)
        delivered: set[int] = set()
        dead: set[int] = set()
        dropped: dict[int, str] = {}
        told: list[int] = []
        unanswered: list[Entry] = []
        for position, item in enumerate(command.entries):
            if position in outcome.rejected:
                self.refuse(item, dropped)
            elif outcome.failure is None or position in outcome.delivered:
                if item.note:
                    told += told_by(item)
                else:
                    (dead if item.dead_letter else delivered).add(item.seq)
            else:
                unanswered.append(item)
                if outcome.failure in FAILED and outcome.sent and not item.note:
                    self.unsure.add(item.seq)
        if outcome.failure is Failure.REJECTED and not outcome.rejected and len(unanswered) == 1:
            self.refuse(unanswered[0], dropped)
        assert set(seqs(settlement.delivered)) == delivered
        assert set(seqs(settlement.dead_lettered)) == dead
        assert {item.seq: reason for item, reason in settlement.dropped} == dropped
        assert settlement.count == len(delivered) + len(dead) + len(dropped)
        assert seqs(settlement.delivered) == sorted(delivered)
        assert [seq for first, last in settlement.declared for seq in range(first, last + 1)] == told
        self.to_tell.difference_update(told)
        self.told += len(told)
        self.to_be_told(dropped)
        for item in [*settlement.delivered, *settlement.dead_lettered, *(item for item, _ in settlement.dropped)]:
            self.settle(item)
        self.failures = self.failures + 1 if outcome.failure in FAILED else 0
        self.retries += outcome.failure in FAILED
        if self.circuit.enabled:
            if outcome.failure is Failure.FATAL or self.failures >= self.threshold:
                assert self.circuit.state is CircuitState.OPEN
            elif outcome.failure is not Failure.UNAVAILABLE:
                assert self.circuit.state is CircuitState.CLOSED

    def refuse(self, item: Entry, dropped: dict[int, str]) -> None:
        """The broker refuses an event, a dead letter or a note for itself."""
        if item.note:
            self.to_tell.difference_update(told_by(item))
            self.untold += len(told_by(item))
        elif item.seq in self.marked:
            dropped[item.seq] = DEAD_LETTER_FAILED
        else:
            self.marked.add(item.seq)

    def to_be_told(self, numbers: Iterable[int]) -> None:
        """Note what was dropped, if readers are told."""
        if self.declares:
            self.to_tell.update(numbers)

    def settle(self, item: Entry) -> None:
        assert item.seq in self.held, "settled twice, or never loaded"
        del self.held[item.seq]

    @rule(seconds=st.sampled_from([0.01, 1.0, 29.0, 31.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def somebody_flushes(self) -> None:
        self.machine.probe_now(self.now)
        self.flushed = True

    @precondition(lambda self: self.held or self.to_tell)
    @rule()
    def stop(self) -> None:
        if self.sent is not None:
            self.unsure |= {item.seq for item in self.sent if not item.note}
            self.sent = None
        settlement = self.machine.abandon()
        assert {item.seq: reason for item, reason in settlement.dropped} == {
            number: UNCONFIRMED if number in self.unsure else SHUTDOWN for number in self.held
        }
        assert settlement.count == len(self.held)
        self.held.clear()
        self.untold += len(self.to_tell)
        self.to_tell.clear()
        assert self.machine.is_idle

    @invariant()
    def floor_is_the_lowest_number_held(self) -> None:
        if hasattr(self, "machine"):
            assert self.machine.floor == min(self.held, default=None)
            assert self.machine.retries == self.retries
            assert (self.machine.declared, self.machine.undeclared) == (self.told, self.untold)


TestAnyBroker = AnyBroker.TestCase


class Broker:
    """A broker that keeps its word, behind a connection that fails as planned: kinds of failures, used up one a batch."""

    def __init__(self, bad: set[int], plan: list[tuple[str, int]]) -> None:
        self.bad = bad
        self.plan = plan
        self.stored: list[int] = []
        self.dead: list[int] = []
        self.batches: list[list[Entry]] = []

    def send(self, batch: Sequence[Entry]) -> BatchOutcome:
        self.batches.append(list(batch))
        if not self.plan:
            return self.take(batch, len(batch))
        kind, n = self.plan.pop()
        if kind == "down":
            return BatchOutcome(Failure.UNAVAILABLE, sent=False)
        if kind == "fatal":
            return BatchOutcome(Failure.FATAL, sent=False, error="wrong password")
        reached = self.take(batch, n)
        if kind == "silent":
            return BatchOutcome(Failure.UNAVAILABLE, error="timed out")
        return BatchOutcome(Failure.UNAVAILABLE, reached.delivered, reached.rejected)

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        """Store the first so many; the outcome is that of an answer that arrives, and names all that is stored."""
        raise NotImplementedError

    def keep(self, item: Entry) -> None:
        (self.dead if item.dead_letter else self.stored).append(item.seq)


class FencedBroker(Broker):
    """Appends what is above its fence, and stops before what it refuses: the atomic append of Redis."""

    fence = 0

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        for position, item in enumerate(batch[:first]):
            if item.seq <= self.fence:
                continue
            if item.seq in self.bad and not item.dead_letter:
                return BatchOutcome(Failure.REJECTED, frozenset(range(position)), {position: "bad"})
            self.keep(item)
            self.fence = item.seq
        return BatchOutcome(delivered=frozenset(range(min(first, len(batch)))))


class ConfirmingBroker(Broker):
    """Answers for each message alone, and stores again what is sent again: the confirms of RabbitMQ."""

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        rejected = {}
        for position, item in enumerate(batch[:first]):
            if item.seq in self.bad and not item.dead_letter:
                rejected[position] = "unroutable"
            else:
                self.keep(item)
        return BatchOutcome(rejected=rejected, delivered=frozenset(range(min(first, len(batch)))) - rejected.keys())


class MuteBroker(Broker):
    """Stores all of a batch or nothing, and does not say which entry it refuses."""

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        if any(item.seq in self.bad and not item.dead_letter for item in batch):
            return BatchOutcome(Failure.REJECTED, error="bad request")
        if first < len(batch):
            return BatchOutcome()
        for item in batch:
            self.keep(item)
        return BatchOutcome(delivered=frozenset(range(len(batch))))


plans = st.lists(st.tuples(st.sampled_from(["down", "fatal", "silent", "partial"]), st.integers(0, 60)), max_size=12)
batch_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4)


def batches_of(sizes: list[int]) -> Iterator[list[Entry]]:
    seq = 0
    for size in sizes:
        yield [entry(seq + n) for n in range(1, size + 1)]
        seq += size


def deliver(machine: Machine, broker: Broker, sizes: list[int], steps: int) -> tuple[list[int], list[int]]:
    """Carry out the machine's commands until everything is settled; returns what was delivered and dead-lettered."""
    now = 0.0
    batches = batches_of(sizes)
    delivered: list[int] = []
    dead: list[int] = []
    for _ in range(steps):
        command = machine.next(now)
        if isinstance(command, Take):
            batch = next(batches, None)
            if batch is None:
                return delivered, dead
            machine.load(batch)
        elif isinstance(command, Wait):
            assert command.until > now
            now = command.until
        elif isinstance(command, Send):
            settlement = machine.sent(broker.send(command.entries), now)
            delivered += seqs(settlement.delivered)
            dead += seqs(settlement.dead_lettered)
            assert not settlement.dropped
        else:
            raise AssertionError(f"nothing is to be given up: {command}")
    raise AssertionError(f"not done after {steps} steps")


def new_machine() -> Machine:
    return Machine(CircuitBreaker(3, 30.0, 300.0), lambda failures: 0.1 * failures, lambda: 0.5)


@given(batch_sizes, st.sets(st.integers(1, 240), max_size=6), plans)
def test_behind_a_fence_everything_is_stored_once_and_in_order(
    sizes: list[int], bad: set[int], plan: list[tuple[str, int]]
) -> None:
    everything = set(range(1, sum(sizes) + 1))
    bad &= everything
    broker = FencedBroker(bad, plan)
    faults = len(plan)
    # A batch, its probes of ten, two more for each refused entry, and a try and a pause for each fault.
    steps = len(sizes) * 2 + sum(sizes) // PROBE_SIZE + 3 * len(bad) + 3 * faults + 2
    delivered, dead = deliver(new_machine(), broker, sizes, steps)
    assert broker.stored == delivered == sorted(everything - bad)
    assert broker.dead == dead == sorted(bad)


@given(batch_sizes, st.sets(st.integers(1, 240), max_size=6), plans)
def test_without_a_fence_everything_is_stored_at_least_once(
    sizes: list[int], bad: set[int], plan: list[tuple[str, int]]
) -> None:
    everything = set(range(1, sum(sizes) + 1))
    bad &= everything
    broker = ConfirmingBroker(bad, plan)
    steps = len(sizes) * 2 + sum(sizes) // PROBE_SIZE + 3 * len(bad) + 3 * len(plan) + 2
    delivered, dead = deliver(new_machine(), broker, sizes, steps)
    assert set(broker.stored) == set(delivered) == everything - bad
    assert set(broker.dead) == set(dead) == bad
    assert len(delivered) + len(dead) == len(everything), "each is settled once, however often it was stored"
    for batch in broker.batches:
        assert seqs(batch) == sorted(seqs(batch))


@given(batch_sizes, st.sets(st.integers(1, 240), max_size=6), plans)
def test_poison_that_is_not_named_is_found_by_halving_and_dead_lettered_alone(
    sizes: list[int], bad: set[int], plan: list[tuple[str, int]]
) -> None:
    everything = set(range(1, sum(sizes) + 1))
    bad &= everything
    broker = MuteBroker(bad, plan)
    halvings = max(sizes).bit_length() + 1
    steps = len(sizes) * 2 + sum(sizes) // PROBE_SIZE + (2 * halvings + 2) * len(bad) + 3 * len(plan) + 2
    delivered, dead = deliver(new_machine(), broker, sizes, steps)
    assert delivered == sorted(everything - bad)
    assert dead == sorted(bad)
    assert set(broker.stored) == everything - bad
    assert set(broker.dead) == bad
    for batch in broker.batches:
        if any(item.dead_letter for item in batch):
            assert len(batch) == 1


@given(batch_sizes, st.sampled_from([FencedBroker, ConfirmingBroker, MuteBroker]))
def test_a_broker_that_recovers_gets_everything_however_long_it_was_away(
    sizes: list[int], kind: Callable[[set[int], list[Any]], Broker]
) -> None:
    broker = kind(set(), [("down", 0)] * 100)
    delivered, _ = deliver(new_machine(), broker, sizes, 2 * 100 + 2 * len(sizes) + sum(sizes) // PROBE_SIZE + 4)
    assert delivered == broker.stored == list(range(1, sum(sizes) + 1))
