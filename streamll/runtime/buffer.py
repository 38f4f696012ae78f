"""The bounded buffer: where an event is accepted, gets its number, waits, and is counted until its fate is known.

What belongs here: the one lock of a sink, and everything that must be consistent under it: the entries, the ledger, the
sequence. What does not: what a batch is (delivery/batching.py), or sending (worker.py).

Any thread may call `put` at any moment, also one that is inside `put` already: a garbage collection or a signal handler
may run the application's code in the middle of it. So the lock is reentrant, and a call that finds its own thread
inside leaves its record on a side queue, which the call it interrupted accepts right after its own work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from time import monotonic

from streamll.delivery.ledger import Balance, Ledger
from streamll.delivery.machine import EXPIRED, SHUTDOWN, UNCONFIRMED, Settlement
from streamll.delivery.outcome import Entry
from streamll.errors import BufferFullError
from streamll.models import Record
from streamll.options import SinkOptions
from streamll.runtime.wakeup import Wakeup

BUFFER_FULL = "buffer_full"
TOO_LARGE = "too_large"
STOPPED = "stopped"
OVERFLOW = "overflow"

ENTRY_OVERHEAD = 512
"""Bytes counted for an entry beside its payload: its record, labels, number and place in the queue."""

_NEVER = 1 << 62
_POLL = 0.05  # seconds after which a waiting thread looks again by itself, should a wake-up have gone to another


def size_of(record: Record) -> int:
    """The bytes a record is counted as."""
    return len(record.payload) + ENTRY_OVERHEAD


class Buffer:
    """The events of one sink from acceptance to their fate, and the ledger over them.

    Args:
        options: Bounds and overflow strategy.
        on_evicted: Takes each entry that gave way to a newer one, under the lock; None: nobody wants to know.
    """

    def __init__(self, options: SinkOptions, on_evicted: Callable[[Entry], None] | None = None) -> None:
        self.activity = Wakeup()
        """Set when the worker, which waits for it, has something to do."""
        self._options = options
        self._strategy = options.buffer_overflow_strategy
        self._max_events = options.buffer_size
        self._max_bytes = options.buffer_bytes
        self._on_evicted = on_evicted
        self._lock = RLock()
        self._busy = False
        self._side: deque[Record | str] = deque()  # records to accept, and reasons of refusals to count
        self._entries: deque[Entry] = deque()
        self._ledger = Ledger()
        self._bytes = 0  # buffered and in flight
        self._flying_bytes = 0
        self._floor: int | None = None  # the lowest sequence number in flight
        self._wake_at = _NEVER  # so many entries waiting set `activity`
        self._waiting: deque[Wakeup] = deque()  # threads that wait for room, or for a flush
        self._closed = False
        self._sealed = False
        self._reading = Balance()

    # The application's side

    def put(self, record: Record) -> bool:
        """Accept a record, or refuse it. How long that may take is the overflow strategy's matter.

        Returns:
            Whether it was accepted; of a call that interrupted another of its own thread, True: it is taken over.

        Raises:
            BufferFullError: There is no room, and the strategy is `raise_error`.
        """
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
        strategy = self._strategy if self._strategy == "drop_oldest" else "drop_newest"
        while self._side:
            item = self._side.popleft()
            if isinstance(item, str):
                self._enter(None, item, outermost=False)
            else:
                self._enter(item, strategy, outermost=False)

    def _put(self, record: Record, strategy: str) -> bool | None:
        """Accept or refuse, and count it; or return None, uncounted, when there is no room and the caller decides."""
        ledger = self._ledger
        if self._closed:
            return self._refuse(STOPPED)
        entries = self._entries
        size = len(record.payload) + ENTRY_OVERHEAD
        if len(entries) + ledger.in_flight >= self._max_events or self._bytes + size > self._max_bytes:
            if size > self._max_bytes:
                return self._refuse(TOO_LARGE)
            if strategy == "drop_oldest" and self._flying_bytes + size <= self._max_bytes:
                self._evict(size)
            if self._is_full(size):
                return None if strategy in ("block", "raise_error") else self._refuse(BUFFER_FULL)
        seq = ledger.accepted + 1
        entries.append(Entry(seq, record))
        self._bytes += size
        ledger.accepted = seq
        ledger.offered += 1
        if len(entries) >= self._wake_at:
            self.activity.set()
            self._wake_at = _NEVER
        return True

    def _is_full(self, size: int) -> bool:
        held = len(self._entries) + self._ledger.in_flight
        return held >= self._max_events or self._bytes + size > self._max_bytes

    def _evict(self, size: int) -> None:
        while self._entries and self._is_full(size):
            entry = self._entries.popleft()
            self._bytes -= size_of(entry.record)
            self._ledger.drop(OVERFLOW)
            if self._on_evicted is not None:
                self._on_evicted(entry)

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
        with self._waiter() as room:
            while True:
                remaining = deadline - monotonic()
                if remaining > 0:
                    room.wait(min(remaining, _POLL))
                with self._lock:
                    if self._busy:  # it interrupted a `put` of this thread: what it waits for cannot come
                        self._side.append(record)
                        return True
                    accepted = self._enter(record, "block" if remaining > 0 else "drop_newest")
                if accepted is not None:
                    return accepted

    @contextmanager
    def _waiter(self) -> Iterator[Wakeup]:
        """A flag that is set whenever something is settled, and forgotten afterwards, settled or not."""
        waiter = Wakeup()
        with self._lock:
            self._waiting.append(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiting.remove(waiter)

    def _repair(self) -> None:
        """Ctrl-C, or another exception out of a signal handler, came between two steps of `put`: make the numbers hold.

        The interrupted call never happened, unless its event had its number already. At most one eviction is
        uncounted, which is counted here; and the worker may not have been told.
        """
        ledger = self._ledger
        if self._entries and self._entries[-1].seq > ledger.accepted:
            self._entries.pop()
        self._bytes = self._flying_bytes + sum(size_of(entry.record) for entry in self._entries)
        ledger.offered = ledger.accepted + sum(ledger.refused.values())
        balance = ledger.read(len(self._entries))
        known = balance.delivered + balance.dead_lettered + sum(balance.dropped.values()) + balance.buffered
        evicted = ledger.accepted - known - balance.in_flight
        if evicted:
            ledger.drop(OVERFLOW, evicted)
        self.activity.set()

    # What is to be seen

    def read(self) -> Balance:
        """Return the balance, consistent in itself; inside an interrupted `put`, the one before it."""
        with self._lock:
            if not self._busy:
                try:
                    self._busy = True
                    self._reading = self._ledger.read(len(self._entries))
                finally:
                    self._busy = False
                    self._enter_side()
            return self._reading

    @property
    def bytes_held(self) -> int:
        """The bytes of what is buffered and in flight, as counted against buffer_bytes."""
        return self._bytes

    @property
    def last_seq(self) -> int:
        """The number of the event accepted last; 0 when none was."""
        return self._ledger.accepted

    def __len__(self) -> int:
        return len(self._entries) + self._ledger.in_flight

    def wait_settled(self, seq: int, timeout: float) -> bool:
        """Wait until the fate of every event up to a number is known; returns whether it is."""
        deadline = monotonic() + timeout
        with self._waiter() as settled:
            while not self._is_settled(seq):
                remaining = deadline - monotonic()
                if remaining <= 0:
                    return False
                settled.wait(min(remaining, _POLL))
        return True

    def _is_settled(self, seq: int) -> bool:
        with self._lock:
            in_flight = self._floor is not None and self._floor <= seq
            return not in_flight and not (self._entries and self._entries[0].seq <= seq)

    # The worker's side

    def waiting(self, wake_at: int) -> int:
        """Return how many entries wait; when fewer than `wake_at`, set `activity` as soon as so many do."""
        with self._lock:
            n = len(self._entries)
            self._wake_at = wake_at if n < wake_at else _NEVER
            return n

    def take(self, max_events: int, max_bytes: int) -> list[Entry]:
        """Move the oldest entries in flight: at most so many, and so many payload bytes, but always one."""
        with self._lock:
            entries = self._entries
            batch = [entries.popleft() for _ in range(min(max_events, len(entries)))]
            if not batch:
                return batch
            sizes = [len(entry.record.payload) for entry in batch]
            total = sum(sizes)
            while total > max_bytes and len(batch) > 1:
                total -= sizes.pop()
                entries.appendleft(batch.pop())
            self._flying_bytes += total + ENTRY_OVERHEAD * len(batch)
            self._ledger.in_flight += len(batch)
            if self._floor is None:
                self._floor = batch[0].seq
            return batch

    def expire(self, created_before: int) -> tuple[list[Entry], int | None]:
        """Drop what waits and was created before then, oldest first; when nothing is left, set `activity` at the next.

        Returns:
            The dropped entries, and when the oldest that is left was created; None when none is.
        """
        expired = []
        with self._lock:
            entries = self._entries
            while entries and entries[0].record.created < created_before:
                entry = entries.popleft()
                expired.append(entry)
                self._bytes -= size_of(entry.record)
                self._ledger.drop(EXPIRED)
            if expired:
                self._tell_waiting()
            if not entries:
                self._wake_at = 1
                return expired, None
            return expired, entries[0].record.created

    def settle(self, settlement: Settlement, floor: int | None) -> bool:
        """Count entries in flight whose fate is known now.

        Args:
            settlement: The entries.
            floor: The lowest sequence number still in flight; None when nothing is.

        Returns:
            False when it came too late, because everything has been given up meanwhile.
        """
        size = sum([size_of(entry.record) for entry in settlement.delivered])
        size += sum([size_of(entry.record) for entry in settlement.dead_lettered])
        size += sum([size_of(entry.record) for entry, _ in settlement.dropped])
        with self._lock:
            if self._sealed:
                return False
            ledger = self._ledger
            ledger.in_flight -= settlement.count
            ledger.delivered += len(settlement.delivered)
            ledger.dead_lettered += len(settlement.dead_lettered)
            for _, reason in settlement.dropped:
                ledger.drop(reason)
            self._bytes -= size
            self._flying_bytes -= size
            self._floor = floor
            self._tell_waiting()
        return True

    def _tell_waiting(self) -> None:
        for waiter in tuple(self._waiting):
            waiter.set()

    def close(self) -> None:
        """Accept nothing more."""
        with self._lock:
            self._closed = True

    def give_up(self, in_flight_as: str = UNCONFIRMED) -> list[Entry]:
        """Drop what waits, and what is in flight without the worker having said its fate: nothing changes after it.

        Args:
            in_flight_as: Why what is in flight counts as dropped.

        Returns:
            The entries that waited.
        """
        with self._lock:
            self._closed = self._sealed = True
            ledger = self._ledger
            waited = list(self._entries)
            self._entries.clear()
            if waited:
                ledger.drop(SHUTDOWN, len(waited))
            if ledger.in_flight:
                ledger.drop(in_flight_as, ledger.in_flight)
            ledger.in_flight = 0
            self._bytes = self._flying_bytes = 0
            self._floor = None
            self._tell_waiting()
        return waited
