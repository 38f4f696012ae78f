"""A scenario on a scripted transport: a seed decides what is emitted, what a broker in memory answers, and how it ends.

The broker keeps what it takes, so that in the end the oracle can compare what the sink says with what really got there.
Nothing here sleeps: every wait of the sink is set to nothing or next to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from streamll.codec import decode
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import FatalError, UnavailableError
from streamll.models import NOTES, PRIORITIES, StreamllEvent
from streamll.options import PipelineOptions, SinkOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import DeliveryReport, Sink
from streamll.testing.scripted import Answer, Hang, ScriptedSink, ScriptedTransport
from tests.chaos.oracle import Found, Place, Verdict, Witness, failure, judge
from tests.chaos.watch import Watch
from tests.fixtures.waiting import PATIENCE, wait_until

FAULTS = ("down", "silent", "partial", "fatal", "raise", "hang")


class Broker:
    """A broker in memory that keeps its word, behind a connection that breaks as the seed says.

    Attributes:
        stored, dead: What it has taken, in its order.
        wrong: What no broker should ever be sent.
        errors: Times that it raised instead of answering.
        faults: How often something is yet to go wrong, at most.
        stubborn: Whether what hangs cannot be ended.
        hang_next: Whether the next step is sure to hang.
    """

    def __init__(self, rng: Random, batch_limit: int) -> None:
        self.stored: list[Found] = []
        self.dead: list[Found] = []
        self.wrong: list[str] = []
        self.errors = 0
        self.faults = rng.choice([0, 2, 5, 12, 30])
        self.stubborn = rng.random() < 0.01
        self.hang_next = self.calmed = False
        self.hangs: list[Hang] = []
        self.sink: Sink | None = None
        self._rng = rng
        self._rate = rng.choice([0.2, 0.5, 0.9])
        self._limit = batch_limit
        self._records: dict[int, tuple[bytes, bool]] = {}
        self._inside = threading.Lock()

    once = True
    ordered = True
    fenced = False

    def calm(self) -> None:
        """Break no more."""
        self.calmed = True
        self.faults = 0
        for hang in self.hangs:
            hang.release()

    def opening(self) -> Iterator[Exception | Hang | None]:
        """What each attempt to connect meets."""
        while True:
            fault = self._fault(("refused", "denied", "hang"), 0.4)
            if fault == "refused":
                yield UnavailableError("nobody there")
            elif fault == "denied":
                yield FatalError("wrong password")
            else:
                yield Hang() if fault else None

    def answer(self, batch: Sequence[Entry]) -> Answer:
        """Take a batch, or part of it, and say so, or not."""
        if not self._inside.acquire(blocking=False):
            self.wrong.append("two threads drive the transport")
            return BatchOutcome(Failure.UNAVAILABLE)
        try:
            self._look_at(batch)
            return self._answer(batch)
        finally:
            self._inside.release()

    def _fault(self, among: Sequence[str], share: float = 1.0) -> str:
        if self.hang_next and "hang" in among:
            self.hang_next = False
            return "hang"
        if self.faults > 0 and self._rng.random() < self._rate * share:
            self.faults -= 1
            return self._rng.choice(among)
        return ""

    def _answer(self, batch: Sequence[Entry]) -> Answer:
        fault = self._fault(FAULTS)
        reached = self._rng.randint(0, len(batch))
        if not fault:
            return self.take(batch, len(batch))
        if fault == "down":
            return BatchOutcome(Failure.UNAVAILABLE, sent=False, error="down")
        if fault == "fatal":
            return BatchOutcome(Failure.FATAL, sent=False, error="no permission")
        if fault == "hang" and self._rng.random() < 0.5:
            reached = len(batch)
        known = self.take(batch, reached)
        if fault == "raise":
            self.errors += 1
            return RuntimeError("a defect of the transport")
        if fault == "hang":
            whole = reached == len(batch) and known.failure is None
            hang = Hang(then=known if whole else BatchOutcome(Failure.UNAVAILABLE), stubborn=self.stubborn)
            self.hangs.append(hang)
            if self.calmed:
                hang.release()
            return hang
        if fault == "partial":
            return BatchOutcome(Failure.UNAVAILABLE, known.delivered, known.rejected, error="cut")
        return BatchOutcome(Failure.UNAVAILABLE, error="no answer")

    def _look_at(self, batch: Sequence[Entry]) -> None:
        """What is true of every batch, whatever became of those before it."""
        sink = self.sink
        if sink is not None and not sink.balance().balanced:
            self.wrong.append(f"the balance does not hold while a batch is sent: {sink.balance()}")
        seqs = [entry.seq for entry in batch]
        events = [entry for entry in batch if not entry.note]
        if not batch or seqs != sorted(set(seqs)):
            self.wrong.append(f"a batch out of order: {seqs}")
        if len(events) > self._limit:
            self.wrong.append(f"a batch of {len(events)} events, though {self._limit} are allowed")
        for entry in batch:
            what = entry.record.payload, entry.note
            if self._records.setdefault(entry.seq, what) != what and not entry.note:
                self.wrong.append(f"number {entry.seq} stands for two things")
            self._records[entry.seq] = what
            if entry.note != (entry.record.event_type in NOTES):
                self.wrong.append(f"number {entry.seq} is a note that does not say so, or the other way round")
            if entry.note and entry.dead_letter:
                self.wrong.append(f"the note {entry.seq} is sent as a dead letter")

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        """Take the first so many; the outcome is that of an answer that arrives, and names all that is stored."""
        raise NotImplementedError

    def refuses(self, entry: Entry) -> bool:
        """Whether it refuses an entry for itself."""
        if entry.dead_letter:
            return entry.record.operation == "hopeless"
        return entry.record.operation in ("bad", "hopeless")

    def keep(self, entry: Entry) -> None:
        """Store an entry."""
        event = decode(entry.record.payload)
        producer = self.sink.producer if self.sink is not None else ""
        found = Found(producer, entry.seq, event.event_id, event.event_type, event.data if entry.note else {})
        (self.dead if entry.dead_letter else self.stored).append(found)


class FencedBroker(Broker):
    """Appends what is above its fence, and stops before what it refuses: as the Redis sink's server does."""

    fenced = True
    fence = 0

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        """See Broker."""
        there = {found.seq for found in (*self.stored, *self.dead)}
        for position, entry in enumerate(batch[:first]):
            if entry.seq <= self.fence:
                if entry.seq not in there:
                    self.wrong.append(f"{entry.seq} comes after {self.fence}: a fence would lose it")
                continue
            if self.refuses(entry):
                return BatchOutcome(Failure.REJECTED, frozenset(range(position)), {position: "bad"})
            self.keep(entry)
            self.fence = entry.seq
        return self.all_or(first, batch)

    @staticmethod
    def all_or(first: int, batch: Sequence[Entry]) -> BatchOutcome:
        """What is known when so many got in."""
        if first == len(batch):
            return BatchOutcome()
        return BatchOutcome(Failure.UNAVAILABLE, frozenset(range(first)), error="cut")


class ConfirmingBroker(Broker):
    """Answers for each message alone, and stores again what is sent again: as RabbitMQ does."""

    once = False
    ordered = False

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        """See Broker."""
        nacked = set(range(first, len(batch)))
        if self.faults > 0 and self._rng.random() < 0.2:
            nacked |= {position for position in range(first) if self._rng.random() < 0.3}
        rejected = {}
        delivered = set()
        for position, entry in enumerate(batch):
            if position in nacked:
                continue
            if self.refuses(entry):
                rejected[position] = "unroutable"
            else:
                self.keep(entry)
                delivered.add(position)
        failure = Failure.UNAVAILABLE if nacked else None
        return BatchOutcome(failure, frozenset(delivered), rejected, error="nacked" if nacked else "")


class MuteBroker(Broker):
    """Stores all of a batch or nothing of it, once, and does not say which entry it refuses."""

    def take(self, batch: Sequence[Entry], first: int) -> BatchOutcome:
        """See Broker."""
        there = {(found.seq, dead) for dead, kind in enumerate((self.stored, self.dead)) for found in kind}
        if any(self.refuses(entry) for entry in batch):
            return BatchOutcome(Failure.REJECTED, error="bad request")
        if first < len(batch):
            return BatchOutcome(Failure.UNAVAILABLE, error="cut")
        for entry in batch:
            if (entry.seq, int(bool(entry.dead_letter))) not in there:
                self.keep(entry)
        return BatchOutcome()


def draw_options(rng: Random) -> dict[str, Any]:
    """Options of a sink that waits for nothing, and decides as the seed says."""
    often = rng.random() < 0.6
    return {
        "buffer_size": rng.choice([2, 3, 5, 10, 50, 1000]),
        "buffer_bytes": rng.choice([64 << 20, 64 << 20, 64 << 20, 4096, 20_000]),
        "buffer_overflow_strategy": rng.choice(["drop_oldest", "drop_oldest", "drop_newest", "block", "raise_error"]),
        "block_timeout": rng.choice([0.0, 0.0005]),
        "batch_size": rng.choice([1, 2, 5, 20, 100]),
        "batch_bytes": rng.choice([1 << 20, 1 << 20, 1000, 1]),
        "batch_growth": rng.choice([1, 3, 10]),
        "flush_interval": rng.choice([0.0, 0.0005, 3600.0]),
        "delivery_deadline": rng.choice([None, None, None, None, 1e-9, 0.001, 0.005, 3600.0]),
        "retry_base": 0.0,
        "retry_bound": 0.0,
        "circuit_breaker": rng.random() < 0.85,
        "failure_threshold": rng.randint(1, 4),
        "recovery_timeout": 1e-4 if often else 3600.0,
        "recovery_bound": 2e-4 if often else 3600.0,
        "connect_timeout": 0.001,
        "send_timeout": rng.choice([0.001, 0.003]),
        "dead_letter": rng.random() < 0.8,
        "encoding": rng.choice(["msgpack", "msgpack", "json"]),
    }


class Scenario:
    """One scenario. `run` returns what is wrong.

    Attributes:
        history: What was done, for people.
    """

    def __init__(self, seed: int, watch: Watch | None = None) -> None:
        self.seed = seed
        self.history: list[str] = []
        self.witness = Witness()
        self._watch = watch
        self._rng = rng = Random(seed)
        self.options = draw_options(rng)
        checked = SinkOptions.from_mapping(self.options)
        limit = max(1, min(checked.batch_size * checked.batch_growth, checked.buffer_size // 2))
        kind = rng.choice([FencedBroker, FencedBroker, ConfirmingBroker, MuteBroker])
        # What the broker draws happens on the worker's thread: with dice of its own the plan is the same every time.
        self.broker: Broker = kind(Random(rng.random()), limit)
        self.transport = ScriptedTransport(then=self.broker.answer, opening=self.broker.opening())
        self.sink = ScriptedSink(
            self.transport,
            name=f"chaos-{seed}",
            on_delivery=self._told if rng.random() < 0.9 else self._told_and_raises,
            event_filter=lambda event: event.event_type != "unwanted",
            pipeline=Pipeline(PipelineOptions(max_event_bytes=2048, oversize="dead_letter")),
            **self.options,
        )
        self.broker.sink = self.sink
        self._emitted = 0
        self._wrong = Verdict()

    def _told(self, report: DeliveryReport) -> None:
        self.witness.reports.append(report)
        balance = self.sink.balance()
        if not balance.balanced:
            self._wrong.append(f"the balance does not hold in a callback: {balance}")

    def _told_and_raises(self, report: DeliveryReport) -> None:
        self._told(report)
        raise KeyError(report.seq)

    def run(self) -> Verdict:
        """Do all of it."""
        if self._watch is not None:
            self._watch.look_at(self.sink)
        steps = (self.emit, self.emit, self.burst, self.burst, self.many_threads, self.flush, self.release, self.pester)
        for _ in range(self._rng.randint(3, 20)):
            self._rng.choice(steps)()
            self._check_balance()
        calm = self.end()
        if self._watch is not None:
            self._wrong += self._watch.look_at(None)
        return self.verdict(calm)

    def event(self, rng: Random) -> StreamllEvent:
        """An event as the dice make it."""
        self._emitted += 1
        operation = rng.choices(["", "bad", "hopeless"], [20, 1, 0.5])[0]
        size = rng.choices([0, 200, 1500, 3000, 40_000], [10, 3, 1, 0.3, 0.03])[0]
        kind = "unwanted" if rng.random() < 0.02 else "test"
        event = StreamllEvent(event_type=kind, operation=operation, priority=rng.choice(["", *PRIORITIES]))
        event.data = {"n": self._emitted, "fill": "x" * size}
        return event

    def note(self, what: str) -> None:
        """Remember what was done."""
        self.history.append(what)

    def emit(self) -> None:
        """One event."""
        accepted = self.witness.offer(self.sink, self.event(self._rng))
        self.note(f"emit: {accepted}")

    def burst(self) -> None:
        """Many, one after the other."""
        count = self._rng.choice([5, 15, 60])
        accepted = sum(self.witness.offer(self.sink, self.event(self._rng)) for _ in range(count))
        self.note(f"burst of {count}: {accepted} accepted")

    def many_threads(self) -> None:
        """Some threads at the same time."""
        plans = [
            [self.event(self._rng) for _ in range(self._rng.randint(1, 15))] for _ in range(self._rng.randint(2, 3))
        ]
        witnesses = [Witness() for _ in plans]

        def work(witness: Witness, events: list[StreamllEvent]) -> None:
            for event in events:
                witness.offer(self.sink, event)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(witnesses, plans, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        for one in witnesses:
            self.witness.add(one)
        self.note(f"{len(threads)} threads: {sum(len(one.accepted) for one in witnesses)} accepted")

    def flush(self) -> None:
        """Wait a little for what was accepted."""
        timeout = self._rng.choice([0.0, 0.0, 0.002, 0.005])
        before = self.sink.stats()
        flushed = self.sink.flush(timeout)
        after = self.sink.stats()
        if flushed:
            settled = after.delivered + after.dead_lettered + sum(after.dropped.values())
            self._wrong.hold(
                settled + after.spooled >= before.accepted,
                f"flush said that all {before.accepted} were settled, and {settled} are",
            )
        self.note(f"flush({timeout}): {flushed}")

    def release(self) -> None:
        """Let what hangs go on."""
        for hang in self.broker.hangs:
            hang.release()
        self.note("released what hangs")

    def pester(self) -> None:
        """Calls that must not disturb: a start, a probe, something that is no event."""
        nothing: Any = "not an event"
        self.witness.offered += 1
        self.witness.refused += 1
        self._wrong.hold(self.sink.handle_event(nothing) is False, "what is no event was accepted")
        self.sink.start()
        self.sink.request_flush()
        self.note("pestered")

    def end(self) -> bool:
        """Stop it in one of several ways; returns whether it had all the time it needed."""
        way = self._rng.choice(["calm", "calm", "calm", "now", "now", "soon", "twice"])
        if self.broker.stubborn:
            self.hang_now()
            way = "now"
        calm = way == "calm"
        if calm:
            self.broker.calm()
        timeout = PATIENCE if calm else 0.002 if way == "soon" else 0.0
        if way == "twice":
            other = threading.Thread(target=self.sink.stop, args=(0.001,))
            other.start()
            self.sink.stop(0.0)
            other.join(PATIENCE)
        stats = self.sink.stop(timeout)
        self._wrong.hold(stats.phase == "stopped", f"after stop it is {stats.phase}")
        self._wrong.hold(not self.witness.offer(self.sink, StreamllEvent(event_type="late")), "accepted after stop")
        self.note(f"stop ({way})")
        self.broker.calm()
        name = f"streamll-chaos-{self.seed}"
        over = wait_until(lambda: name not in {thread.name for thread in threading.enumerate()}, interval=0.0002)
        self._wrong.hold(over, "the worker does not end")
        return calm

    def hang_now(self) -> None:
        """Have a batch under way whose answer does not come in time."""
        hanging = len(self.broker.hangs)
        self.broker.faults = 0
        for hang in self.broker.hangs:
            hang.release()
        self.broker.hang_next = True
        self.emit()
        self.sink.request_flush()
        wait_until(lambda: len(self.broker.hangs) > hanging or self.sink.event_queue.empty(), 0.05, 0.0002)
        self.note(f"a batch hangs: {len(self.broker.hangs) > hanging}")

    def verdict(self, calm: bool) -> Verdict:
        """What is wrong in the end."""
        broker = self.broker
        stats = self.sink.stats()
        place = Place(broker.stored, broker.dead, broker.once, broker.ordered, broker.fenced)
        if calm:
            self._wrong.hold("shutdown" not in stats.dropped, f"there was time, and: {stats.dropped}")
        early = [
            report.seq
            for report in self.witness.reports
            if report.reason == "expired" and report.latency < (self.options["delivery_deadline"] or 0.0)
        ]
        self._wrong.hold(not early, f"expired too early: {early}")
        verdict = judge(self.witness, stats, place, defects=broker.errors)
        return Verdict([*self._wrong, *broker.wrong, *verdict])

    def _check_balance(self) -> None:
        balance = self.sink.balance()
        self._wrong.hold(balance.balanced, f"after {self.history[-1]}: the balance does not hold: {balance}")


def run(seed: int, watch: Watch | None = None) -> str:
    """Run one scenario; returns one line about it.

    Raises:
        AssertionError: Something is wrong; it says what, and how to see it again.
    """
    scenario = Scenario(seed, watch)
    logging.getLogger("streamll").setLevel(logging.CRITICAL)  # a sink says what goes wrong, and here all does
    try:
        verdict = scenario.run()
    finally:
        logging.getLogger("streamll").setLevel(logging.NOTSET)
    if verdict:
        raise AssertionError(failure("scripted", seed, verdict, scenario.options, scenario.history, scenario.sink))
    return str(scenario.sink.stats())
