"""The reader: takes everything from a broker, checks it on the way, and lets the broker forget it.

What belongs here: reading, and the two accounts that are kept of what was read: by the sink's own numbers (`streamll audit`'s
fold), and by the numbers that the application gave its events, of which the sink knows nothing. What does not: the
verdict (verdict.py).
"""

from __future__ import annotations

import threading
import time

from streamll.consumers import Consumer, Received
from streamll.errors import ConsumerError
from streamll.models import CLOSING
from streamll.ranges import RangeSet
from streamll.views.audit import Audit
from tests.fixtures.waiting import PATIENCE
from tests.soak.brokers import Broker
from tests.soak.report import SinkReport
from tests.soak.verdict import Read

_QUIET = 1.5
"""Seconds without an entry after which nothing more is expected."""
_ROUND = 0.25
"""Seconds after which dead letters are looked for, and what was read is forgotten."""


class Numbers:
    """The numbers that sources gave to their events, as they arrived.

    Attributes:
        sources: Those of each source.
        again: How often one came that was there before.
    """

    def __init__(self) -> None:
        self.sources: dict[str, RangeSet] = {}
        self.again = 0

    def add(self, source: str, n: int) -> None:
        """Take one in."""
        self.again += not self.sources.setdefault(source, RangeSet()).add_one(n)


class Reader(threading.Thread):
    """Reads one broker until it is told to end.

    Attributes:
        audit: By the sink's numbers.
        numbers: By the sources' numbers: events and dead letters.
        arrivals: From emit to here, in microseconds, of the events that `emit` made, since somebody took them away.
        events, dead_letters: Entries that were read, doubles too, notes left out.
        closed: Whether a closing record was read.
        wrong: What is wrong, as far as it shows here.
        heard_at: When the last entry came, in monotonic seconds.
    """

    def __init__(self, broker: Broker) -> None:
        super().__init__(name=f"soak-reader-{broker.name}", daemon=True)
        self.audit = Audit()
        self.audit.whole = True  # it reads from the first entry on
        self.numbers = Numbers()
        self.arrivals: list[int] = []
        self.events = self.dead_letters = 0
        self.closed = False
        self.wrong: list[str] = []
        self.heard_at = time.monotonic()
        self._broker = broker
        self._has_events, self._has_dead_letters = threading.Event(), threading.Event()
        self._end = threading.Event()
        self._slow_until = 0.0
        self._letters: Consumer | None = None
        self._letter_at = ""
        self._letters_fail_since = 0.0

    def expect(self, events: bool, dead_letters: bool) -> None:
        """Say what is there by now: what does not exist cannot be read."""
        if events:
            self._has_events.set()
        if dead_letters:
            self._has_dead_letters.set()

    def be_slow(self, seconds: float) -> None:
        """Read nothing for a while."""
        self._slow_until = time.monotonic() + seconds

    def end(self) -> None:
        """Read no more."""
        self._end.set()
        self._has_events.set()
        self.join(PATIENCE)
        if self.is_alive():
            self.wrong.append("the reader does not end")

    def has_all(self, sink: SinkReport) -> bool:
        """Whether all was read that a stopped sink speaks of, and nothing has come for a while; or never will be."""
        there = self.closed and self.dead_letters >= sink.dead_lettered
        return (there and time.monotonic() - self.heard_at > _QUIET) or not self.is_alive()

    def account(self) -> Read:
        """All that was read, once it has ended."""
        return Read(self._broker.once, self.audit.report(), self.numbers.sources, self.numbers.again)

    def run(self) -> None:
        """The thread."""
        self._has_events.wait()
        try:
            with self._broker.events() as consumer:
                while not self._end.is_set():
                    self._read(consumer)
                    self._read_dead_letters()
                    self._broker.forget(consumer.stats().position, self._letter_at)
                    self._end.wait(self._slow_until - time.monotonic())
        except ConsumerError as error:
            self.wrong.append(f"the reader gave up: {error}")
        except Exception as error:
            self.wrong.append(f"the reader broke: {error!r}")
        finally:
            if self._letters is not None:
                self._letters.close()

    def take(self, item: Received) -> None:
        """Take an entry in."""
        self.heard_at = time.monotonic()
        if item.after_cut:
            self.audit.cut()
        event = item.event
        if event is None:
            self.wrong.append(f"what is at {item.position} is no event: {item.error}")
            self.audit.add_stranger()
        elif item.note:
            self.audit.add_note(item.producer, item.seq, event, item.redelivered)
            self.closed = self.closed or event.event_type == CLOSING
        else:
            self.events += 1
            self.audit.add(item.producer, item.seq, item.redelivered)
            self.numbers.add(event.data["source"], event.data["n"])
            if event.event_type == "token":
                self.arrivals.append(max(0, time.time_ns() - event.timestamp) // 1000)
        item.ack()

    def _read(self, consumer: Consumer) -> None:
        """Take in what comes, for a while."""
        look_at = time.monotonic() + _ROUND
        for item in consumer:
            self.take(item)
            if time.monotonic() >= look_at or self._end.is_set():
                return

    def _read_dead_letters(self) -> None:
        """Take in those that there are."""
        if not self._has_dead_letters.is_set():
            return
        try:
            if self._letters is None:
                self._letters = self._broker.dead_letters(self._letter_at)
            for item in self._letters:
                self._take_dead_letter(item)
            self._letters_fail_since = 0.0
        except ConsumerError:
            # A consumer tries its first connection once, and there may be nobody just now.
            if self._letters is not None:
                self._letters.close()
            self._letters = None
            self._letters_fail_since = self._letters_fail_since or time.monotonic()
            if time.monotonic() - self._letters_fail_since > 2 * PATIENCE:
                raise
            self._end.wait(_ROUND)

    def _take_dead_letter(self, item: Received) -> None:
        self.heard_at = time.monotonic()
        self.dead_letters += 1
        self._letter_at = item.position
        self.audit.add_dead_letter(item.producer, item.seq)
        if item.event is None:
            self.wrong.append(f"the dead letter at {item.position} is no event: {item.error}")
        else:
            self.numbers.add(item.event.data["source"], item.event.data["n"])
        item.ack()
