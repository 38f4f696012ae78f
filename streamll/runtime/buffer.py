"""The bounded buffer: where an event is accepted, gets its number, waits, and is counted until its fate is known.

What belongs here: the one lock of a sink, and everything that must be consistent under it: the entries, the ledger, the
sequence. What does not: which entry gives way (waiting.py), what lies on disk (shelf.py), what a batch is
(delivery/batching.py), or sending (worker.py).

Nearly every event comes in without the lock: while there is room for certain, `put` appends it to the inbox, which is one
step that nothing can interrupt. Whoever holds the lock next gives numbers to what lies there, in the order in which it
came. So threads that emit wait neither for each other nor for the worker.

All else takes the lock. Any thread may call `put` at any moment, also one that is inside `put` already: a garbage
collection or a signal handler may run the application's code in the middle of it. So the lock is reentrant, and a call
that finds its own thread inside leaves its record on a side queue, which the call it interrupted accepts right after its
own work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock
from time import monotonic
from typing import TYPE_CHECKING

from streamll.delivery.gaps import Gap, Holes, ranges_of
from streamll.delivery.ledger import Balance, Ledger
from streamll.delivery.machine import EXPIRED, SHUTDOWN, UNCONFIRMED, Settlement
from streamll.delivery.outcome import Entry
from streamll.errors import BufferFullError
from streamll.models import NORMAL, Record
from streamll.options import SinkOptions
from streamll.runtime.inbox import MOST, NEVER, SMALL, SPARE, Inbox
from streamll.runtime.waiters import Waiters
from streamll.runtime.waiting import ENTRY_OVERHEAD, RANKS, Waiting, rank_of, size_of, total_size
from streamll.runtime.wakeup import Wakeup

if TYPE_CHECKING:
    from streamll.runtime.shelf import Shelf

BUFFER_FULL = "buffer_full"
TOO_LARGE = "too_large"
STOPPED = "stopped"
OVERFLOW = "overflow"
SPOOL_FULL = "spool_full"
SPOOL_DAMAGED = "spool_damaged"

GIVES_WAY = 100
"""With `drop_oldest`, one in so many of the events that wait give way at once, the oldest."""

_REFUSE = "refuse"  # beside the strategies: where there is no room, nothing gives way, and nobody waits
_POLL = 0.05  # seconds after which a waiting thread looks again by itself, should a wake-up have gone to another


class Buffer:
    """The events of one sink from acceptance to their fate, and the ledger over them.

    Args:
        options: Bounds and overflow strategy.
        on_evicted: Takes each entry that gave way to a newer one, under the lock; None: nobody wants to know.
        shelf: What lies on disk; None: nothing does.
        holes: Takes the numbers of what is dropped, to be declared; None: gaps are not declared.
    """

    def __init__(
        self,
        options: SinkOptions,
        on_evicted: Callable[[Entry], None] | None = None,
        shelf: Shelf | None = None,
        holes: Holes | None = None,
    ) -> None:
        self.activity = Wakeup()
        """Set when the worker, which waits for it, has something to do."""
        self._options = options
        self._strategy = options.buffer_overflow_strategy
        self._max_events = options.buffer_size
        self._max_bytes = options.buffer_bytes
        self._on_evicted = on_evicted
        self._shelf = shelf
        self._holes = holes
        self._lock = RLock()
        self._inbox = Inbox()
        self._busy = False
        self._side: deque[Record | str] = deque()  # records to accept, and reasons of refusals to count
        self._waiting = Waiting()
        self._ledger = Ledger()
        self._bytes = 0  # buffered and in flight
        self._flying_bytes = 0
        self._floor: int | None = None  # the lowest sequence number in flight
        self._flying: list[Entry] = []  # the batch in flight, and which of it has landed: kept for a shelf only
        self._landed: set[int] = set()
        self._leaving: list[Entry] = []  # what gives way just now
        self._waiters = Waiters(self._lock)
        self._closed = False
        self._sealed = False
        self._reading = Balance()
        self._tune()

    # The application's side

    def put(self, record: Record) -> bool:
        """Accept a record, or refuse it. How long that may take is the overflow strategy's matter.

        Returns:
            Whether it was accepted; of a call that interrupted another of its own thread, True: it is taken over.

        Raises:
            BufferFullError: There is no room, and the strategy is `raise_error`.
        """
        inbox = self._inbox
        records = inbox.records
        if len(records) < inbox.room and record.priority == NORMAL and len(record.payload) <= SMALL:
            try:
                records.append(record)
                if len(records) >= inbox.wake_at:
                    self.activity.set()
            except BaseException:  # out of a signal handler: the worker may not have been told
                self.activity.set()
                raise
            return True
        with self._lock:
            if self._busy:
                self._side.append(record)
                return True
            accepted = self._enter(record, self._strategy)
        return self._put_later(record) if accepted is None else accepted

    def refuse(self, reason: str) -> None:
        """Count an event that the sink did not take, for a reason of its own."""
        with self._lock:
            if self._busy:
                self._side.append(reason)
            else:
                self._enter(None, reason)

    def _enter(self, record: Record | None, how: str, outermost: bool = True) -> bool | None:
        """Accept a record by a strategy, or count a refusal for a reason; then do the same for what came meanwhile.

        The lock is held, and this thread is not inside already.
        """
        try:
            try:
                self._busy = True
                if record is None:
                    return self._refuse(how)
                return self._put(record, how)
            except BaseException:
                self._repair()
                raise
            finally:
                self._busy = False
        finally:
            if outermost and self._side:
                self._enter_side()

    def _enter_side(self) -> None:
        # Nobody is there any more to wait or to be told, so these give way.
        strategy = self._strategy if self._strategy in ("drop_oldest", "drop_newest") else _REFUSE
        while self._side:
            item = self._side.popleft()
            if isinstance(item, str):
                self._enter(None, item, outermost=False)
            else:
                self._enter(item, strategy, outermost=False)

    def _put(self, record: Record, strategy: str) -> bool | None:
        """Accept or refuse, and count it; or return None, uncounted, when there is no room and the caller decides."""
        self._number()  # they came before
        ledger = self._ledger
        if self._closed:
            return self._refuse(STOPPED)
        waiting = self._waiting
        shelf = self._shelf
        size = len(record.payload) + ENTRY_OVERHEAD
        if self._is_full(size) or (shelf is not None and shelf.spooled):
            if size > self._max_bytes:
                return self._refuse(TOO_LARGE)
            if shelf is not None and self._strategy == "spill":
                return self._spill(shelf, record)
            self._make_room(rank_of(record), size, strategy)
            if self._is_full(size):
                return None if strategy in ("block", "raise_error") else self._refuse(BUFFER_FULL)
        seq = ledger.accepted + 1
        entry = Entry(seq, record)
        if shelf is not None and shelf.always:
            shelf.keep(entry)
        waiting.queues[rank_of(record)].append(entry)
        waiting.count += 1
        self._bytes += size
        ledger.accepted = seq
        ledger.offered += 1
        self._tune()
        if self._inbox.wake_at <= 0:
            self.activity.set()
        return True

    def _number(self) -> None:
        """Give numbers to what lies in the inbox. The lock is held, and `_busy` is set."""
        ledger = self._ledger
        moving = self._inbox.gather(ledger.accepted)
        if not moving:
            return
        last = ledger.accepted + len(moving)
        if not self._sealed:
            size = sum([len(record.payload) for record in moving]) + len(moving) * ENTRY_OVERHEAD
            self._waiting.queues[RANKS[NORMAL]].extend(map(Entry, range(ledger.accepted + 1, last + 1), moving))
            self._waiting.count += len(moving)
            self._bytes += size
        ledger.accepted = last
        ledger.offered += len(moving)
        if self._sealed:  # they came while it was sealed
            ledger.drop(SHUTDOWN, len(moving))
        moving.clear()
        self._tune()
        if self._inbox.wake_at <= 0:  # who put the last of them there may look only now, and find it gone
            self.activity.set()

    def _catch_up(self) -> None:
        """Number what lies in the inbox, unless this call interrupts one that is about to. The lock is held."""
        if self._busy or not self._inbox:
            return
        try:
            try:
                self._busy = True
                self._number()
            except BaseException:
                self._repair()
                raise
            finally:
                self._busy = False
        finally:
            if self._side:
                self._enter_side()

    def _tune(self) -> None:
        """Say anew how much may lie in the inbox, and at how much there the worker is to be told."""
        room = 0
        if not self._closed and self._shelf is None:  # what goes to disk does so before `put` returns
            events = self._max_events - self._waiting.count - self._ledger.in_flight
            room = min(events - SPARE, (self._max_bytes - self._bytes) // (SMALL + ENTRY_OVERHEAD) - SPARE, MOST)
        self._inbox.tune(room, self._waiting.count)

    def _is_full(self, size: int) -> bool:
        held = self._waiting.count + self._ledger.in_flight
        return held >= self._max_events or self._bytes + size > self._max_bytes

    def _spill(self, shelf: Shelf, record: Record) -> bool:
        """There is no room in memory, or older events lie on disk only: the next one follows them."""
        ledger = self._ledger
        entry = Entry(ledger.accepted + 1, record)
        if not shelf.has_room(entry) or not shelf.spill(entry):
            return self._refuse(SPOOL_FULL)
        shelf.spooled += 1  # before the number is given out: `recount` relies on it
        ledger.accepted = entry.seq
        ledger.offered += 1
        return True

    def _make_room(self, rank: int, size: int, strategy: str) -> None:
        """Drop what gives way to a newcomer: what is of a lower class, and with `drop_oldest` also of its own.

        The oldest give way many at a time, so that not every newcomer to a full buffer pays for it. With the other
        strategies nothing that was accepted gives way.
        """
        if strategy not in ("drop_oldest", "drop_newest"):
            return
        newest = strategy == "drop_newest"
        held = self._waiting.count + self._ledger.in_flight
        self._leaving = self._waiting.victims(
            rank,
            newest,
            enough=lambda n, freed: held - n < self._max_events and self._bytes - freed + size <= self._max_bytes,
            at_least=1 if newest else max(1, self._waiting.count // GIVES_WAY),
        )
        if not self._leaving:
            return
        self._waiting.remove(self._leaving, newest)
        self._bytes -= total_size(self._leaving)
        self._drop(self._leaving, OVERFLOW)
        if self._on_evicted is not None:
            for entry in self._leaving:
                self._on_evicted(entry)
        self._leaving = []

    def _drop(self, entries: Sequence[Entry], reason: str) -> None:
        """Count entries that waited as dropped."""
        self._ledger.drop(reason, len(entries))
        for first, last in ranges_of(sorted([entry.seq for entry in entries])):
            if self._holes is not None:
                self._holes.add(first, last, reason)
            if self._shelf is not None:
                self._shelf.settle([(first, last)], undeclared=self._holes is not None)

    def _lowest(self) -> int:
        """The lowest number whose fate is not known; beyond all numbers when there is none."""
        first = self._waiting.first()
        lowest = NEVER if first is None else first.seq
        if self._shelf is not None:
            lowest = self._shelf.lowest(lowest)
        return lowest if self._floor is None else min(lowest, self._floor)

    def _refuse(self, reason: str) -> bool:
        self._ledger.refuse(reason)
        self._ledger.offered += 1
        return False

    def _put_later(self, record: Record) -> bool:
        """There was no room: raise, or wait for room as long as `block_timeout` allows."""
        if self._strategy == "raise_error":
            self.refuse(BUFFER_FULL)
            raise BufferFullError(
                f"the buffer is full: {self._max_events} events or {self._max_bytes} bytes wait for the broker; "
                "raise buffer_size, or choose another buffer_overflow_strategy"
            )
        deadline = monotonic() + self._options.block_timeout
        with self._waiters.waiter() as room:
            while True:
                remaining = deadline - monotonic()
                if remaining > 0:
                    room.wait(min(remaining, _POLL))
                with self._lock:
                    if self._busy:  # it interrupted a `put` of this thread: what it waits for cannot come
                        self._side.append(record)
                        return True
                    accepted = self._enter(record, "block" if remaining > 0 else _REFUSE)
                if accepted is not None:
                    return accepted

    def _repair(self) -> None:
        """Ctrl-C, or another exception out of a signal handler, came between two steps of `put`: make the numbers hold.

        The interrupted call never happened, unless its event had its number already. What gave way to it may be
        uncounted, and is counted here; and the worker may not have been told.
        """
        ledger = self._ledger
        self._inbox.recover(ledger.accepted)
        self._waiting.forget_after(ledger.accepted)
        self._bytes = self._flying_bytes + sum(size_of(entry.record) for entry in self._waiting)
        if self._shelf is not None:
            self._shelf.recount(ledger.accepted)
        ledger.offered = ledger.accepted + sum(ledger.refused.values())
        balance = self._read()
        settled = balance.delivered + balance.dead_lettered + sum(balance.dropped.values())
        evicted = ledger.accepted - settled - balance.buffered - balance.in_flight - balance.spooled
        if evicted:
            ledger.drop(OVERFLOW, evicted)
        if self._holes is not None and self._leaving:
            still_here = {entry.seq for entry in self._waiting}
            for entry in self._leaving:
                if entry.seq not in still_here and entry.seq not in self._holes:
                    self._holes.add(entry.seq, entry.seq, OVERFLOW)
        self._leaving = []
        self._tune()
        self.activity.set()

    # What is to be seen

    def read(self) -> Balance:
        """Return the balance, consistent in itself; inside an interrupted `put`, the one before it."""
        with self._lock:
            self._catch_up()
            if not self._busy:
                try:
                    self._busy = True
                    self._reading = self._read()
                finally:
                    self._busy = False
                    self._enter_side()
            return self._reading

    def _read(self) -> Balance:
        return self._ledger.read(self._waiting.count, 0 if self._shelf is None else self._shelf.spooled)

    @property
    def bytes_held(self) -> int:
        """The bytes of what is buffered and in flight, as counted against buffer_bytes."""
        with self._lock:
            self._catch_up()
            return self._bytes

    @property
    def last_seq(self) -> int:
        """The number of the event accepted last; 0 when none was."""
        with self._lock:
            self._catch_up()
            return self._ledger.accepted

    def __len__(self) -> int:
        spooled = 0 if self._shelf is None else self._shelf.spooled
        return len(self._inbox) + self._waiting.count + self._ledger.in_flight + spooled

    @property
    def shelf(self) -> Shelf | None:
        """What lies on disk, if anything may."""
        return self._shelf

    def wait_settled(self, seq: int, timeout: float) -> bool:
        """Wait until the fate of every event up to a number is known; returns whether it is."""
        deadline = monotonic() + timeout
        with self._waiters.waiter() as settled:
            while not self._is_settled(seq):
                remaining = deadline - monotonic()
                if remaining <= 0:
                    return False
                settled.wait(min(remaining, _POLL))
        return True

    def _is_settled(self, seq: int) -> bool:
        with self._lock:
            return self._lowest() > seq

    # The worker's side

    def waiting(self, wake_at: int) -> int:
        """Return how many entries wait; when fewer than `wake_at`, set `activity` whenever so many do, until asked again."""
        with self._lock:
            self._inbox.wake_when(NEVER, 0)  # who asks need not be told
            self._catch_up()
            self._inbox.wake_when(wake_at, self._waiting.count)
            n = self._waiting.count + len(self._inbox)  # after it: who comes later sees at how many to tell
            if self._shelf is not None:
                n += self._shelf.spooled
            if n >= wake_at:
                self._inbox.wake_when(NEVER, 0)
            return n

    def take(self, max_events: int, max_bytes: int) -> list[Entry]:
        """Move the oldest entries in flight: at most so many, and so many payload bytes, but always one.

        Raises:
            OSError: They lie on disk only, and cannot be read now; nothing is lost by it.
        """
        shelf = self._shelf
        with self._lock:
            self._catch_up()
            batch = self._waiting.take(max_events, max_bytes)
            if batch or shelf is None or not shelf.spooled:
                return self._fly(batch)
            accepted = self._ledger.accepted
        batch = shelf.read_ahead(max_events, max_bytes, accepted)
        with self._lock:
            if self._sealed:
                return []
            for first, last in shelf.take(batch):
                self._ledger.drop(SPOOL_DAMAGED, last - first + 1)
                if self._holes is not None and first:
                    self._holes.add(first, last, SPOOL_DAMAGED)
            self._bytes += total_size(batch)
            return self._fly(batch)

    def _fly(self, batch: list[Entry]) -> list[Entry]:
        if batch:
            self._flying_bytes += total_size(batch)
            self._ledger.in_flight += len(batch)
            if self._floor is None:
                self._floor = batch[0].seq
            if self._shelf is not None:
                self._flying = batch
            self._tune()
        return batch

    @property
    def is_sealed(self) -> bool:
        """Whether everything has been given up."""
        return self._sealed

    @property
    def has_gap(self) -> bool:
        """Whether there are dropped events of which `take_gaps` has not told yet."""
        return bool(self._holes)

    def take_gaps(self, batch: list[Entry]) -> list[Gap]:
        """Return what was dropped before the last entry of a batch, or, when it is empty, before what is to come."""
        if not self._holes:
            return []
        with self._lock:
            # Events may have come, and others have given way, since the batch was taken.
            return self._holes.take(batch[-1].seq if batch else self._lowest())

    def expire(self, created_before: int) -> tuple[list[Entry], int | None]:
        """Drop what waits and was created before then, oldest first; when nothing is left, set `activity` at the next.

        Returns:
            The dropped entries, and when the oldest that is left was created; None when none is.
        """
        expired: list[Entry] = []
        with self._lock:
            waiting = self._waiting
            while True:
                self._catch_up()
                while (entry := waiting.first()) is not None and entry.record.created < created_before:
                    expired.append(waiting.take_first())
                    self._bytes -= size_of(entry.record)
                    self._drop([entry], EXPIRED)
                self._inbox.wake_when(1 if entry is None else NEVER, waiting.count)
                if entry is not None or not self._inbox:  # who comes from now on sees when to tell
                    break
            if expired:
                self._tune()
                self._waiters.tell()
            return expired, None if entry is None else entry.record.created

    def settle(self, settlement: Settlement, floor: int | None) -> bool:
        """Count entries in flight whose fate is known now.

        Args:
            settlement: The entries.
            floor: The lowest sequence number still in flight; None when nothing is.

        Returns:
            False when it came too late, because everything has been given up meanwhile.
        """
        stored: list[int] = []
        dropped: list[int] = []
        if self._shelf is not None:
            stored = sorted([entry.seq for entry in (*settlement.delivered, *settlement.dead_lettered)])
            dropped = sorted([entry.seq for entry, _ in settlement.dropped])
        settled, given_up = [*ranges_of(stored), *settlement.declared], ranges_of(dropped)
        with self._lock:
            if self._sealed:
                return False
            ledger = self._ledger
            size = self._flying_bytes
            if settlement.count != ledger.in_flight:
                size = sum(map(total_size, (settlement.delivered, settlement.dead_lettered)))
                size += total_size([entry for entry, _ in settlement.dropped])
            ledger.in_flight -= settlement.count
            ledger.delivered += len(settlement.delivered)
            ledger.dead_lettered += len(settlement.dead_lettered)
            for _, reason in settlement.dropped:
                ledger.drop(reason)
            self._bytes -= size
            self._flying_bytes -= size
            self._floor = floor
            if self._shelf is not None:
                self._landed.update(stored, dropped)
                if floor is None:
                    self._flying = []
                    self._landed.clear()
                self._shelf.settle(settled)
                self._shelf.settle(given_up, undeclared=self._holes is not None)
            self._tune()
            self._waiters.tell()
        self.tidy()
        return True

    def tidy(self) -> None:
        """Let go of files in which everything is settled."""
        if self._shelf is not None:
            with self._lock:
                lowest = self._lowest()
                if not self._closed:  # more may come, and go to disk, before this is done
                    lowest = min(lowest, self._ledger.accepted + 1)
                if self._shelf.is_about_to_release(lowest):
                    self._shelf.restate()
            self._shelf.release(lowest)

    def inherit(self, count: int) -> None:
        """Count what a dead process has left on the shelf as accepted, and accept nothing more."""
        with self._lock:
            self._ledger.offered = self._ledger.accepted = count
            self._closed = True
            self._tune()

    def close(self) -> None:
        """Accept nothing more."""
        with self._lock:
            self._closed = True
            self._tune()

    def give_up(self, in_flight_as: str = UNCONFIRMED) -> list[tuple[Entry, str]]:
        """Drop what waits, and what is in flight without the worker having said its fate: nothing changes after it.

        What can be left on disk for the next process is not dropped, but stays spooled.

        Args:
            in_flight_as: Why what is in flight counts as dropped.

        Returns:
            The entries that were dropped, with the reason; without a shelf, those in flight are not known here.
        """
        with self._lock:
            self._closed = True
            self._tune()
            self._catch_up()
            self._sealed = True
            ledger = self._ledger
            waited = self._waiting.clear()
            aloft: list[Entry] = []
            flying = ledger.in_flight
            if self._shelf is not None:
                aloft = [entry for entry in self._flying if entry.seq not in self._landed]
                lost = {entry.seq for entry in self._shelf.put_away([*aloft, *waited])}
                self._shelf.settle(ranges_of(sorted(lost)), undeclared=self._holes is not None)
                waited = [entry for entry in waited if entry.seq in lost]
                aloft = [entry for entry in aloft if entry.seq in lost]
                flying = len(aloft)
            if waited:
                ledger.drop(SHUTDOWN, len(waited))
            if flying:
                ledger.drop(in_flight_as, flying)
            ledger.in_flight = 0
            self._bytes = self._flying_bytes = 0
            self._floor = None
            self._flying = []
            self._waiters.tell()
        return [(entry, in_flight_as) for entry in aloft] + [(entry, SHUTDOWN) for entry in waited]
