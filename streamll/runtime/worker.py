"""Worker: the loop. Take a batch, ask the machine, do it, report back.

What belongs here: the thread of a sink, its waiting, its deadlines, and the driving of the transport. What does not: any
decision about an event; those are the machine's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from random import random
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from streamll.context import mute_this_thread, muted
from streamll.delivery.backoff import delays
from streamll.delivery.batching import batch_limit, byte_limit, next_size
from streamll.delivery.circuit import CircuitBreaker, CircuitState
from streamll.delivery.gaps import Gap
from streamll.delivery.machine import (
    EXPIRED,
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
from streamll.errors import FatalError, UnavailableError
from streamll.models import CLOSING, GAP, Record
from streamll.options import YEAR, SinkOptions
from streamll.runtime.buffer import BUFFER_FULL, OVERFLOW, SPOOL_FULL, Buffer
from streamll.runtime.fork import rest_in_child, whole_import
from streamll.runtime.latency import Histogram
from streamll.runtime.reports import DeliveryReport, Notices, Reports
from streamll.runtime.transport import Transport

if TYPE_CHECKING:
    from streamll.runtime.journal import Journal

log = logging.getLogger("streamll")

IDLE_POLL = 3600.0
"""Seconds that an idle worker sleeps when its transport wants no service."""

_GRACE = 0.25
"""Seconds beyond its deadline that `stop` gives an interrupted worker to report back."""

_LOOK_AFTER_SPOOL = 1.0
"""Seconds between two looks after the files of the spool while the broker cannot be reached."""

_FAREWELL = 0.5
"""Seconds that a clean stop spends on the closing record."""

_AFTER_DEFECT = 1.0
"""Seconds between two attempts when the worker itself failed."""

MakeNote = Callable[[str, Mapping[str, Any]], Record]
"""From a note's event type and its data to the record that says it."""

# What is said once until a batch is delivered, and until the disk is well; everything else is said once and for all.
_UNTIL_DELIVERED = frozenset({"open", "fatal", "defect", "spool reading"})
_UNTIL_MENDED = frozenset({"spool"})


class Worker:
    """Delivers what is in a buffer, on a thread of its own or on that of a caller.

    Args:
        name: The sink's name, for the thread and the log.
        buffer: Where the events come from and are counted.
        options: Sizes, times and strategies.
        transport: Makes the transport; called on the thread that will drive it.
        wait: Makes a tenacity wait strategy, or None for the default.
        on_delivery: Called on the worker's thread with the fate of each event; what it raises is counted and swallowed.
        evicted: Entries that gave way to newer ones and are yet to be reported; filled by the buffer.
        make_note: Makes the sink's own records, which tell readers of gaps and of the end; None: it tells them nothing.
        closes: Whether a clean stop is the end of the producer, and says so.
    """

    def __init__(
        self,
        name: str,
        buffer: Buffer,
        options: SinkOptions,
        transport: Callable[[], Transport],
        wait: Any = None,
        on_delivery: Callable[[DeliveryReport], None] | None = None,
        evicted: deque[Entry] | None = None,
        make_note: MakeNote | None = None,
        closes: bool = True,
    ) -> None:
        self._buffer = buffer
        self._options = options
        self._make_transport = transport
        self._transport: Transport | None = None
        self._notices = Notices(name)
        self._reports = Reports(on_delivery, evicted, self._notices)
        self._make_note = make_note
        self._closes = closes
        self._wait = wait
        self.circuit = CircuitBreaker(
            options.failure_threshold,
            options.recovery_timeout,
            options.recovery_bound,
            enabled=options.circuit_breaker,
        )
        self._machine = Machine(
            self.circuit,
            self._delay,
            random,
            options.delivery_deadline,
            dead_letter=options.dead_letter,
            declare=None if make_note is None else partial(_gap_note, make_note),
        )
        self._delays: Callable[[int], float] | None = None
        self._thread: threading.Thread | None = None
        self._driving = threading.Lock()
        self._closing = threading.Lock()
        self._has_ended = False
        self._flushes: deque[int] = deque()  # the last number of what each caller wants delivered
        self._flush_through = 0
        self._probe = False
        self._sent_through = 0
        self._stop_by: float | None = None
        self._is_inherited = False
        self._unsettled_as = SHUTDOWN  # what is in flight, if the worker does not come back from what it does
        self._served_at = 0.0
        self.latency = Histogram()
        self.batches = 0
        self.failed_batches = 0
        self.lost_after_ack = 0
        self.defects = 0
        self.last_error = ""

    @property
    def name(self) -> str:
        """The sink's name, for the thread and the log."""
        return self._notices.name

    @name.setter
    def name(self, name: str) -> None:
        self._notices.name = name

    @property
    def callback_errors(self) -> int:
        """How often an on_delivery callback raised."""
        return self._reports.errors

    @property
    def retries(self) -> int:
        """How many batches were to be sent again."""
        return self._machine.retries

    @property
    def declared(self) -> int:
        """How many dropped events readers have been told of."""
        return self._machine.declared

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs on this worker's thread."""
        return self._thread is not None and self._thread is threading.current_thread()

    # For other threads

    def start(self) -> bool:
        """Start the thread; returns False where no thread can be started any more (the interpreter shuts down)."""
        thread = threading.Thread(target=self._run, name=f"streamll-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        self._thread = thread
        return True

    def flush(self, timeout: float) -> bool:
        """Deliver what was accepted before this call, without lingering, and with one probe if the circuit is open.

        Returns:
            Whether the fate of all of it is known.
        """
        seq = self.request_flush()
        if self._thread is None:
            self._drive_inline(monotonic() + min(timeout, YEAR))
            timeout = 0
        return self._buffer.wait_settled(seq, timeout)

    def request_flush(self) -> int:
        """Have what was accepted so far delivered at once, without waiting for it; returns the last number of it."""
        seq = self._buffer.last_seq
        self._flushes.append(seq)
        self._probe = True
        self._buffer.activity.set()
        return seq

    def begin_stop(self, timeout: float) -> None:
        """Accept nothing more, and deliver what there is until the deadline; returns at once.

        Called again, it may bring the deadline nearer, but not put it off.
        """
        self._buffer.close()
        stop_by = monotonic() + min(timeout, YEAR)  # a lock waits no longer
        self._stop_by = stop_by if self._stop_by is None else min(stop_by, self._stop_by)
        self._probe = True
        self._buffer.activity.set()

    def finish_stop(self) -> None:
        """Wait for the deadline that `begin_stop` has set, or until all is delivered; then give up the rest."""
        stop_by = self._stop_by if self._stop_by is not None else monotonic()
        if self._thread is None:
            self._drive_inline(stop_by)
        else:
            self._thread.join(max(0.0, stop_by - monotonic()))
            if self._thread.is_alive():
                transport = self._transport
                if transport is not None:
                    transport.interrupt()
                self._buffer.activity.set()
                self._thread.join(_GRACE)
        given_up = self._buffer.give_up(self._unsettled_as)
        self._reports.report_evicted()
        self._reports.report(Settlement(dropped=given_up))
        if self._has_ended or not self.is_alive:  # else it may be reading there
            self._close_shelf()

    def forget_in_child(self) -> None:
        """It is the parent's, and its thread has nothing to do here: if it forked itself, in a callback, or is a greenlet."""
        self._is_inherited = True

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread is not None and self._thread.is_alive()

    # The loop

    def _run(self) -> None:
        mute_this_thread()
        self._drive(None)
        if self._is_inherited:
            rest_in_child()
        self._has_ended = True
        if self._buffer.is_sealed:  # whoever stopped it waits no longer
            self._close_shelf()

    def _close_shelf(self) -> None:
        """Give the journal up, when all is done with it: the later one of this thread and of whoever stops it does so."""
        if self._buffer.shelf is not None and self._closing.acquire(blocking=False):
            self._buffer.shelf.close()

    def _drive_inline(self, until: float) -> None:
        """Work on the caller's thread, where no thread can be started any more."""
        with muted():
            self._drive(until)

    def _drive(self, until: float | None) -> None:
        """Work until the sink is stopped, or until then. One thread at a time."""
        if not self._driving.acquire(timeout=-1 if until is None else max(0.0, until - monotonic())):
            return
        try:
            while not self._is_over(until):
                try:
                    if not self._step(until):
                        break
                except Exception as error:
                    self._defect(error)
                    self._pause(monotonic() + _AFTER_DEFECT, until)
            if self._stop_by is not None and not self._is_inherited:
                clean = not self._has_work() and not self._buffer.is_sealed
                left = self._machine.abandon()
                # With a shelf, `give_up` leaves it on disk.
                self._settle(left if self._buffer.shelf is None else Settlement())
                if clean:
                    self._say_farewell(self._stop_by)
                self._close_transport(clean)
        finally:
            self._driving.release()

    def _is_over(self, until: float | None) -> bool:
        if self._is_inherited:
            return True
        now = monotonic()
        return (self._stop_by is not None and now >= self._stop_by) or (until is not None and now >= until)

    def _step(self, until: float | None) -> bool:
        """Carry out one command; returns False when there is nothing left to do for a caller that waits."""
        if (self._stop_by is not None or until is not None) and not self._has_work():
            return False
        now = monotonic()
        if OVERFLOW not in self._notices:
            self._say_overflow()
        if self._buffer.shelf is not None:
            self._tend_journal(self._buffer.shelf.journal)
        if self._probe:
            self._probe = False
            self._machine.probe_now(now)
        command = self._machine.next(now)
        if isinstance(command, Send):
            self._send(command.entries, until)
        elif isinstance(command, Settle):
            self._settle(command.settlement)
        elif isinstance(command, Wait):
            wake_at = min(command.until, self._expire_waiting(now))
            if self._buffer.shelf is not None:  # events that give way meanwhile are to leave the disk too
                self._buffer.tidy()
                wake_at = min(wake_at, now + _LOOK_AFTER_SPOOL)
            self._pause(wake_at, until)
        elif isinstance(command, Take):
            return self._take(until)
        return True

    def _has_work(self) -> bool:
        return len(self._buffer) > 0 or not self._machine.is_idle or self._buffer.has_gap

    def _take(self, until: float | None) -> bool:
        """Load the next batch, or wait for it: until it is full, its linger is over, or somebody flushes or stops."""
        full = batch_limit(self._options)
        waiting = self._buffer.waiting(1)
        hurry = self._stop_by is not None or until is not None
        if waiting == 0 and not self._buffer.has_gap:
            self._reports.report_evicted()
            self._pause(monotonic() + IDLE_POLL, until)
            return True
        if 0 < waiting < full and not hurry and self._options.flush_interval > 0:
            self._linger(full)
        size = next_size(self._buffer.waiting(0), self._options)
        try:
            batch = self._buffer.take(size, byte_limit(self._options))
        except OSError as error:
            self._notices.say("spool reading", f"the spool cannot be read now, and is tried again: {error.strerror}")
            self._pause(monotonic() + _AFTER_DEFECT, until)
            return True
        self._machine.load(batch, self._buffer.take_gaps(batch))
        self._unsettled_as = SHUTDOWN  # no byte of it has been sent
        return True

    def _expire_waiting(self, now: float) -> float:
        """Give up what expires in the buffer while no batch may be taken; returns when the next one will."""
        deadline = self._options.delivery_deadline
        if deadline is None:
            return inf
        expired, oldest = self._buffer.expire(expired_before(now, deadline))
        self._reports.report(Settlement(dropped=[(entry, EXPIRED) for entry in expired]))
        return inf if oldest is None else oldest / 1e9 + deadline

    def _linger(self, full: int) -> None:
        """Wait for company for the first event; a burst that fills the batch, a flush or a stop ends it."""
        over = monotonic() + self._options.flush_interval
        while self._stop_by is None and not self._is_flushed() and monotonic() < over:
            if self._buffer.waiting(full) >= full:
                return
            self._pause(over, None)

    def _is_flushed(self) -> bool:
        """Whether somebody wants delivered what was not sent yet."""
        while self._flushes:
            self._flush_through = max(self._flush_through, self._flushes.popleft())
        return self._flush_through > self._sent_through

    def _send(self, entries: Sequence[Entry], until: float | None) -> None:
        self._sent_through = max(self._sent_through, entries[-1].seq)
        self.batches += 1
        if self._transport is None:
            with whole_import():
                self._transport = self._make_transport()
        outcome = self._open(self._transport, until) or self._try(self._transport, entries, until)
        self._served_at = now = monotonic()
        state = self.circuit.state
        settlement = self._machine.sent(outcome, now)
        if outcome.lost_after_ack:
            self.lost_after_ack += outcome.lost_after_ack
            self._notices.say("lost", f"the server lost up to {outcome.lost_after_ack} events that it had acknowledged")
        if outcome.failure is None:
            self._notices.end(_UNTIL_DELIVERED, "delivering again")
        else:
            self.failed_batches += 1
            self._note_failure(outcome, state)
        self.latency.add_batch(settlement.delivered, monotonic_ns())
        log.debug("sink %s: %d of %d events delivered", self.name, len(settlement.delivered), len(entries))
        self._settle(settlement)

    def _open(self, transport: Transport, until: float | None) -> BatchOutcome | None:
        """Open the transport at need; returns the outcome for the batch when that fails."""
        if transport.is_open:
            return None
        try:
            transport.close(clean=False)
            transport.open(self._deadline(self._options.connect_timeout, until))
        except UnavailableError as error:
            return BatchOutcome(Failure.UNAVAILABLE, sent=False, error=str(error))
        except FatalError as error:
            return BatchOutcome(Failure.FATAL, sent=False, error=str(error))
        return None

    def _try(self, transport: Transport, entries: Sequence[Entry], until: float | None) -> BatchOutcome:
        self._unsettled_as = UNCONFIRMED
        try:
            return transport.send(entries, self._deadline(self._options.send_timeout, until))
        except Exception as error:  # a transport must not raise; one that does must not end deliveries for good
            self._defect(error)
            return BatchOutcome(Failure.UNAVAILABLE, error=self.last_error)

    def _deadline(self, timeout: float, until: float | None) -> float:
        deadline = monotonic() + timeout
        for bound in (self._stop_by, until):
            if bound is not None:
                deadline = min(deadline, bound)
        return deadline

    def _settle(self, settlement: Settlement) -> None:
        if settlement.count or settlement.declared:
            if not self._buffer.settle(settlement, self._machine.floor):
                if self._buffer.shelf is not None:
                    return  # it was told what became of each when it was given up
                settlement = settlement.as_dropped(self._unsettled_as)  # as which it was counted then
            self._notices.say_losses(settlement)
            self._reports.report(settlement)
        self._reports.report_evicted()

    def _pause(self, wake_at: float, until: float | None) -> None:
        """Sleep until then, serving the transport meanwhile; a stop, a flush or (when idle) an event ends it."""
        while not self._is_over(until):
            now = monotonic()
            pause = wake_at - now
            for bound in (self._stop_by, until):
                if bound is not None:
                    pause = min(pause, bound - now)
            transport = self._transport
            interval = transport.service_interval if transport is not None and transport.is_open else None
            if interval is not None:
                pause = min(pause, self._served_at + interval - now)
            if pause > 0 and self._buffer.activity.wait(pause):
                return
            now = monotonic()
            if interval is not None and transport is not None and now >= self._served_at + interval:
                transport.idle(0.0)
                self._served_at = monotonic()
            if now >= wake_at:
                return

    def _say_farewell(self, stop_by: float) -> None:
        """Tell readers that this was all, if the broker is there to hear it; it is not worth a wait or a retry."""
        last = self._buffer.last_seq
        transport = self._transport
        if self._make_note is None or not self._closes or not last or transport is None or not transport.is_open:
            return
        try:
            note = Entry(last + 1, self._make_note(CLOSING, {"last": last}), note=True)
            outcome = transport.send([note], min(stop_by, monotonic() + _FAREWELL))
        except Exception as error:
            self._defect(error)
        else:
            log.debug("sink %s: closed, %s", self.name, outcome.error or "and said so")

    def _tend_journal(self, journal: Journal) -> None:
        """Make room ahead, so that `emit` need not; and say what is wrong with the disk."""
        trouble = journal.trouble  # before what was refused for its own sake is forgotten
        journal.prepare()
        trouble = journal.trouble or trouble
        if trouble:
            self._notices.say("spool", f"{trouble}; events are kept in memory only until that is mended")
        else:
            self._notices.end(_UNTIL_MENDED, "the spool takes events again")

    def _close_transport(self, clean: bool) -> None:
        transport = self._transport
        if transport is not None:
            transport.close(clean)

    def _delay(self, failures: int) -> float:
        if self._delays is None:
            wait = self._wait
            if wait is None:
                with whole_import():  # where it is first needed: it costs 20 ms
                    from tenacity import wait_random_exponential

                wait = wait_random_exponential(multiplier=self._options.retry_base, max=self._options.retry_bound)
            self._delays = delays(wait)
        return self._delays(failures)

    # What is told

    def _note_failure(self, outcome: BatchOutcome, before: CircuitState) -> None:
        self.last_error = outcome.error
        if outcome.failure is Failure.FATAL:
            self._notices.say("fatal", f"{outcome.error}; events are kept, and it is tried again slowly")
        elif outcome.failure is Failure.UNAVAILABLE and self.circuit.state is CircuitState.OPEN is not before:
            self._notices.say("open", f"the circuit is open: {outcome.error}; events are kept as the buffer allows")
        log.debug("sink %s: batch failed: %s", self.name, outcome.error)

    def _say_overflow(self) -> None:
        balance = self._buffer.read()
        lost = balance.dropped.get(OVERFLOW, 0) + sum(balance.refused.get(why, 0) for why in (BUFFER_FULL, SPOOL_FULL))
        if lost:
            self._notices.say(
                OVERFLOW, f"the buffer is full: {lost} events have been lost so far; further ones are only counted"
            )

    def _defect(self, error: Exception) -> None:
        """Something in the worker itself is wrong: no event is lost for it, and the host does not notice."""
        self.defects += 1
        # Only its kind: the text of an error that nobody foresaw may hold a credential.
        self.last_error = f"internal error: {type(error).__name__}"
        self._notices.say("defect", f"{self.last_error}; please report it")
        log.debug("sink %s: internal error", self.name, exc_info=error)
        self._close_transport(clean=False)


def _gap_note(make_note: MakeNote, gap: Gap) -> Record:
    """Make the record that tells readers which events were dropped."""
    return make_note(GAP, {"count": gap.count, "ranges": gap.ranges, "reasons": gap.reasons})
