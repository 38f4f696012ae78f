"""Brokers in memory for the scripted transport: each keeps its word, behind a connection that breaks as a seed says.

What belongs here: what a broker takes, refuses and answers, and what it should never be sent. What does not: what is
emitted, and when a sink stops (scripted.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from random import Random

from streamll.codec import decode
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import FatalError, UnavailableError
from streamll.models import NOTES
from streamll.sinks.base import Sink
from streamll.testing.scripted import Answer, Hang, ScriptedTransport
from tests.chaos.oracle import Found

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

    def transport(self) -> ScriptedTransport:
        """A way to it."""
        return ScriptedTransport(then=self.answer, opening=self.opening())

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
