"""Machine: given what just happened to this batch, what is the next command?

It holds one batch at a time, as groups of entries in their order, and decides about retries, halving, dead letters,
expiry and the circuit. The worker carries its commands out and reports back. Nothing here waits or knows the time.

What it drops leaves a note in its place, which tells readers of the gap. A note goes the way of an entry, and is counted
nowhere: its number is that of an event that was counted when it was dropped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from streamll.delivery.batching import halves
from streamll.delivery.circuit import CircuitBreaker, CircuitState
from streamll.delivery.gaps import MOST_RANGES, Gap, gaps_of
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.models import Record

PROBE_SIZE = 10
"""Events in the one small batch that a half-open circuit lets through."""

EXPIRED = "expired"
REJECTED = "rejected"
DEAD_LETTER_FAILED = "dead_letter_failed"
SHUTDOWN = "shutdown"
UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True)
class Settlement:
    """Entries whose fate is known from now on; each leaves the machine with it.

    Attributes:
        delivered: Stored by the broker.
        dead_lettered: Stored in the dead-letter destination.
        dropped: Given up, with the reason.
        declared: Ranges of numbers that were settled before, as dropped: now readers have been told.
    """

    delivered: Sequence[Entry] = ()
    dead_lettered: Sequence[Entry] = ()
    dropped: Sequence[tuple[Entry, str]] = ()
    declared: Sequence[tuple[int, int]] = ()

    @property
    def count(self) -> int:
        """How many entries it settles."""
        return len(self.delivered) + len(self.dead_lettered) + len(self.dropped)

    def as_dropped(self, reason: str) -> Settlement:
        """Return the same entries, all of them given up for one reason."""
        given_up = [entry for entry, _ in self.dropped]
        return Settlement(dropped=[(entry, reason) for entry in (*self.delivered, *self.dead_lettered, *given_up)])


@dataclass(frozen=True)
class Take:
    """Take a new batch from the buffer and load it, or wait for events when there are none."""


@dataclass(frozen=True)
class Wait:
    """Do nothing until then, unless the sink is stopped or flushed."""

    until: float


@dataclass(frozen=True)
class Send:
    """Send these entries, in this order, as one batch; then report the outcome to `sent`."""

    entries: Sequence[Entry]


@dataclass(frozen=True)
class Settle:
    """Count these entries, and come back."""

    settlement: Settlement = field(default_factory=Settlement)


Command = Take | Wait | Send | Settle


def expired_before(now: float, delivery_deadline: float) -> int:
    """Return the `Record.created` before which events have expired by now."""
    return int((now - delivery_deadline) * 1e9)


class Machine:
    """The decisions about one sink's batch.

    Args:
        circuit: The circuit that failures open.
        delay: From the number of failures in a row to the seconds to wait before the next attempt.
        jitter: Draws a random number from 0 to 1.
        delivery_deadline: Seconds after which an event is given up; None: never.
        dead_letter: Whether rejected entries go to the dead-letter destination; else they are dropped.
        declare: From a gap to the record that tells readers of it; None: gaps are not declared.

    Attributes:
        retries: How many times a batch, or a part of one, was sent again after the broker was not available.
        declared: Dropped events that readers have been told of.
        undeclared: Those of which the broker did not take the note.
    """

    def __init__(
        self,
        circuit: CircuitBreaker,
        delay: Callable[[int], float],
        jitter: Callable[[], float],
        delivery_deadline: float | None = None,
        dead_letter: bool = True,
        declare: Callable[[Gap], Record] | None = None,
    ) -> None:
        self.circuit = circuit
        self.retries = 0
        self.declared = 0
        self.undeclared = 0
        self._delay = delay
        self._jitter = jitter
        self._deadline = delivery_deadline
        self._dead_letter = dead_letter
        self._declare = declare
        self._groups: deque[list[Entry]] = deque()
        self._failures = 0
        self._not_before = 0.0
        self._sending = False  # the first group is on its way, and nobody knows yet what became of it
        self._unsure: set[int] = set()  # held entries that an earlier attempt may have left at the broker
        self._holds_dead_letters = False
        self._notes: dict[int, Gap] = {}  # what the note under this number declares

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, not even a note."""
        return not self._groups

    @property
    def floor(self) -> int | None:
        """The lowest sequence number of an event that is held; None when none is."""
        return min((entry.seq for entry in self._first_events()), default=None)

    def load(self, batch: Sequence[Entry], gaps: Sequence[Gap] = ()) -> None:
        """Take charge of a batch, whose entries are in the order of their sequence numbers.

        Args:
            batch: The entries.
            gaps: What was dropped before the last of them, or, when there are none, since the last batch.
        """
        if not self._groups:
            self._unsure.clear()
            self._holds_dead_letters = False
        group = [self._mark(e, e.record.poison) if e.record.poison else e for e in batch]
        self._insert_notes(group, gaps)
        if group:
            self._groups.append(group)

    def next(self, now: float) -> Command:
        """Return what to do now.

        Args:
            now: The present time in monotonic seconds, the clock of `Record.created`.
        """
        self._note_missing_answer()
        expired = self._expire(now)
        if expired:
            return Settle(Settlement(dropped=expired))
        refused = self._drop_marked()
        if refused:
            return Settle(Settlement(dropped=refused))
        if not self.circuit.allows(now):
            return Wait(min(self.circuit.retry_at, self._next_expiry()))
        if now < self._not_before:
            return Wait(min(self._not_before, self._next_expiry()))
        if not self._groups:
            return Take()
        group = self._groups[0]
        if self.circuit.state is CircuitState.HALF_OPEN and len(group) > PROBE_SIZE:
            self._groups[0] = group[PROBE_SIZE:]
            self._groups.appendleft(group[:PROBE_SIZE])
        self._sending = True
        return Send(self._groups[0])

    def sent(self, outcome: BatchOutcome, now: float) -> Settlement:
        """Report what became of the entries of the last `Send`; returns those whose fate is known now."""
        failed = outcome.failure is Failure.UNAVAILABLE or outcome.failure is Failure.FATAL
        if failed:
            self._failed(outcome, now)  # before anything moves: the delay may be a user's function, and raise
        else:
            self._succeeded(now)
        self._sending = False
        group = self._groups.popleft()
        if outcome.failure is None and not outcome.rejected and not self._holds_dead_letters and not self._notes:
            return Settlement(delivered=group)
        delivered: list[Entry] = []
        dead_lettered: list[Entry] = []
        dropped: list[tuple[Entry, str]] = []
        declared: list[tuple[int, int]] = []
        left: list[Entry] = []
        for position, entry in enumerate(group):
            reason = outcome.rejected.get(position)
            if reason is not None:
                self._reject(entry, reason, left, dropped)
            elif outcome.failure is None or position in outcome.delivered:
                if entry.note:
                    gap = self._notes.pop(entry.seq)
                    self.declared += gap.count
                    declared += gap.ranges
                else:
                    (dead_lettered if entry.dead_letter else delivered).append(entry)
            else:
                left.append(entry)
                if failed and outcome.sent:
                    self._unsure.add(entry.seq)
        if outcome.failure is Failure.REJECTED and not outcome.rejected and left:
            if len(left) == 1:
                poison = left.pop()
                self._reject(poison, outcome.error or "rejected by the broker", left, dropped)
            else:
                left, rest = halves(left)
                self._groups.appendleft(rest)
        if left:
            self._groups.appendleft(left)
        return Settlement(delivered, dead_lettered, dropped, declared)

    def probe_now(self, now: float) -> None:
        """Try at once instead of waiting for the circuit or the backoff: somebody waits for the result."""
        self.circuit.allow_probe(now)
        self._not_before = 0.0

    def abandon(self) -> Settlement:
        """Give up everything held, because the sink stops: what may have been sent is `unconfirmed`."""
        self._note_missing_answer()
        dropped = [
            (entry, UNCONFIRMED if entry.seq in self._unsure else SHUTDOWN)
            for group in self._groups
            for entry in group
            if not entry.note
        ]
        self._groups.clear()
        self.undeclared += sum(gap.count for gap in self._notes.values())
        self._notes.clear()
        return Settlement(dropped=dropped)

    def _succeeded(self, now: float) -> None:
        self._failures = 0
        self._not_before = 0.0
        self.circuit.record_success(now)

    def _failed(self, outcome: BatchOutcome, now: float) -> None:
        self.retries += 1
        self._failures += 1
        if outcome.failure is Failure.FATAL:
            self.circuit.trip(now, outcome.error, self._jitter())
        else:
            self.circuit.record_failure(now, outcome.error, self._jitter())
        self._not_before = now + self._delay(self._failures)

    def _note_missing_answer(self) -> None:
        """What was sent without an outcome being reported may be at the broker."""
        if self._sending:
            self._unsure.update(entry.seq for entry in self._groups[0])
            self._sending = False

    def _reject(self, entry: Entry, reason: str, left: list[Entry], dropped: list[tuple[Entry, str]]) -> None:
        """A rejected event becomes a dead letter, in its place; a rejected dead letter is given up, for a note."""
        if entry.note:
            self.undeclared += self._notes.pop(entry.seq).count
        elif entry.dead_letter:
            dropped.append((entry, DEAD_LETTER_FAILED))
            self._insert_notes(left, gaps_of([(entry.seq, DEAD_LETTER_FAILED)]))
        else:
            left.append(self._mark(entry, reason))

    def _drop_marked(self) -> list[tuple[Entry, str]]:
        """Without a dead-letter destination, what was to go there is dropped."""
        if self._dead_letter or not self._holds_dead_letters:
            return []
        return self._remove(lambda entry: bool(entry.dead_letter), lambda entry: REJECTED)

    def _expire(self, now: float) -> list[tuple[Entry, str]]:
        if self._deadline is None:
            return []
        limit = expired_before(now, self._deadline)
        return self._remove(
            lambda entry: entry.record.created < limit,
            lambda entry: UNCONFIRMED if entry.seq in self._unsure else EXPIRED,
        )

    def _next_expiry(self) -> float:
        if self._deadline is None:
            return inf
        return min((entry.record.created / 1e9 for entry in self._first_events()), default=inf) + self._deadline

    def _first_events(self) -> Iterator[Entry]:
        """The first event of each group, notes left out."""
        for group in self._groups:
            yield from islice((entry for entry in group if not entry.note), 1)

    def _remove(self, which: Callable[[Entry], bool], why: Callable[[Entry], str]) -> list[tuple[Entry, str]]:
        """Drop events, for notes in each group that had any."""
        removed: list[tuple[Entry, str]] = []
        groups = list(self._groups)
        self._groups.clear()
        for group in groups:
            gone = [(entry, why(entry)) for entry in group if not entry.note and which(entry)]
            if gone:
                removed += gone
                group = [entry for entry in group if entry.note or not which(entry)]
                self._insert_notes(group, gaps_of((entry.seq, reason) for entry, reason in gone))
            if group:
                self._groups.append(group)
        return removed

    def _insert_notes(self, group: list[Entry], gaps: Sequence[Gap]) -> None:
        """Put the notes of gaps into their places among the entries of a group."""
        if self._declare is None:
            return
        for gap in gaps:
            at = bisect_left(group, gap.last, key=lambda entry: entry.seq)
            if at < len(group) and self._may_grow(group[at], gap):
                gap = gap.joined(self._notes.pop(group.pop(at).seq))
            if at > 0 and self._may_grow(group[at - 1], gap):
                at -= 1
                gap = gap.joined(self._notes.pop(group.pop(at).seq))
            group.insert(at, Entry(gap.last, self._declare(gap), note=True))
            self._notes[gap.last] = gap

    def _may_grow(self, neighbour: Entry, gap: Gap) -> bool:
        """Whether what stands beside a gap is a note, which may tell of it too: unless it may be at the broker already."""
        if not neighbour.note or neighbour.seq in self._unsure:
            return False
        return len(self._notes[neighbour.seq].ranges) + len(gap.ranges) <= MOST_RANGES

    def _mark(self, entry: Entry, reason: str) -> Entry:
        self._holds_dead_letters = True
        return Entry(entry.seq, entry.record, reason)
