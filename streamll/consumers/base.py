"""Consumer: what all ways back have in common. Doubles, reconnecting, acknowledging, sync and async iteration.

What belongs here: everything that is the same for every source. What does not: how one source is connected to and read,
which is a `Source`, one file each.

A source is driven by one thread at a time, a page of entries per step. Synchronous iteration steps in the caller's
thread; asynchronous iteration steps in a thread of its own, so that the event loop never waits for a socket or a disk,
and the entries of a step that was cancelled wait for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streamll.consumers.base_options import ConsumerOptions, ConsumerStats
from streamll.consumers.received import Coming, Received, Sheaf, Ticket
from streamll.consumers.seen import SeenNumbers
from streamll.delivery.backoff import delays
from streamll.errors import ConfigurationError, ConsumerError, FatalError, TransportError
from streamll.models import StreamllEvent

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger("streamll.consumers")

_POLL = 0.25
"""Seconds that one step waits for entries: how soon closing is noticed without breaking a connection for it."""
_ACKS_AT_ONCE = 100
_ACK_INTERVAL = 0.1
_MOST_UNDER_WAY = 100_000

T = TypeVar("T")


class Source(Protocol):
    """What a consumer needs of what it reads from. All but `interrupt` are called by one thread at a time.

    Attributes:
        shown: The source for people: no credentials.
        restarts: How often it had to begin anew without a lost connection.
        cuts, pending_lost: As in ConsumerStats.
        whole: Whether reading began with the first entry that ever was there; False while that is not known.
    """

    shown: str
    restarts: int
    cuts: int
    pending_lost: int
    whole: bool

    def open(self) -> None:
        """Connect, importing the client library, and go on after what was read last; called again after every failure.

        Raises:
            UnavailableError: It cannot be reached now.
            FatalError: Waiting does not mend it.
        """

    def read(self, wait: float) -> Sequence[Received] | None:
        """Return the next entries, waiting at most so many seconds for the first; None at the end of what there is.

        Raises:
            UnavailableError, FatalError: As `open`.
        """

    def acknowledge(self, done: Sequence[Any], rejected: Sequence[Any]) -> None:
        """Tell the server about entries, by their tokens; raises as `read`."""

    def interrupt(self) -> None:
        """End a waiting `open` or `read` soon; safe from any thread, and never raises."""

    def close(self) -> None:
        """Give the connection up; never raises, may be called in any state, and may be followed by `open`."""


class Consumer(Iterator[Received], AsyncIterator[Received]):
    """Reads a source back: `for item in consumer`, `async for item in consumer`, or `consumer.events()`.

    Closed by `close()`, by `await consumer.aclose()`, or as a context manager of either kind. One thread or task at a
    time iterates; `close` and `stats` may be called from any. A lost connection is made again, with growing waits, and
    reading goes on where it was. Iteration ends after `close`, after `timeout`, and at the present end without `follow`.

    Raises while iterating:
        ConsumerError: When the source cannot be reached at first, refuses for good, or was gone for `give_up_after`.
    """

    def __init__(self, source: Source, options: ConsumerOptions) -> None:
        self._source = source
        self._options = options
        self._seen = SeenNumbers(options.dedup_window)
        self._ready: deque[Received] = deque()
        self._under_way: OrderedDict[Hashable, Ticket] = OrderedDict()
        self._under_way_lock = threading.Lock()
        self._settled: deque[tuple[Any, bool]] = deque()
        self._settled_since = 0.0
        self._forgot = False
        self._cuts = 0
        self._driving = threading.Lock()
        self._closed = threading.Event()
        self._ended = False
        self._is_open = False
        self._was_open = False
        self._failures = 0
        self._failing_since = 0.0
        self._delay: Callable[[int], float] | None = None
        self._running: Future[None] | None = None
        self._received = self._undecodable = self._redelivered = self._duplicates = self._notes = self._bytes = 0
        self._reconnects = 0
        self._position = self._last_error = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._source.shown}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Received:
        deadline = self._deadline()
        while True:
            while not self._ready:
                self._step(deadline)
                if self._over(deadline):
                    raise StopIteration
            if self._acks_are_due():
                self._send_acks()
            item = self._hand_over()
            if item is not None:
                return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        deadline = self._deadline()
        while True:
            while not self._ready:
                await self._in_thread(lambda: self._step(deadline))
                if self._over(deadline):
                    raise StopAsyncIteration
            if self._acks_are_due():
                await self._in_thread(self._send_acks)
            item = self._hand_over()
            if item is not None:
                return item

    @property
    def shown(self) -> str:
        """The source for people: no credentials."""
        return self._source.shown

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: closed, or without `follow` at the end. False when only `timeout` ended a loop."""
        return self._closed.is_set() or (self._ended and not self._ready)

    @property
    def whole(self) -> bool:
        """Whether reading began with the first entry that ever was there; False while that is not known."""
        return self._source.whole

    def events(self) -> Events:
        """Iterate, with `for` or `async for`, over the events alone.

        Each is acknowledged when the next one is asked for (so not the one at which a loop is left by `break` or an
        error); what cannot be decoded is counted and rejected.

        Raises:
            ConfigurationError: The consumer decodes none.
        """
        if not self._options.decode:
            raise ConfigurationError(
                "option decode=False: there are no events without decoding; iterate over the consumer"
            )
        return Events(self)

    def stats(self) -> ConsumerStats:
        """What has been counted so far."""
        return ConsumerStats(
            received=self._received,
            undecodable=self._undecodable,
            redelivered=self._redelivered,
            duplicates=self._duplicates,
            notes=self._notes,
            bytes=self._bytes,
            reconnects=self._reconnects + self._source.restarts,
            cuts=self._source.cuts,
            pending_lost=self._source.pending_lost,
            position=self._position,
            last_error=self._last_error,
        )

    def close(self) -> None:
        """Send the acknowledgements that wait and close the connection; ends an iteration in another thread soon.

        Returns within a second or two even while the server does not answer. Safe to call twice, and from any thread.
        """
        self._closed.set()
        if not self._driving.acquire(timeout=2 * _POLL):
            # Whoever is in the middle of a step waits for longer than steps do. It closes the source at its end.
            self._source.interrupt()
            if not self._driving.acquire(timeout=2 * _POLL):
                return
        try:
            self._shut()
        finally:
            self._driving.release()

    async def aclose(self) -> None:
        """`close`, without blocking the event loop."""
        await asyncio.wrap_future(_start_thread(self.close))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _deadline(self) -> float | None:
        return None if self._options.timeout is None else time.monotonic() + self._options.timeout

    def _over(self, deadline: float | None) -> bool:
        return not self._ready and (self.ended or (deadline is not None and time.monotonic() >= deadline))

    def _hand_over(self) -> Received | None:
        """The next item; None for a note that nobody asked for."""
        item = self._ready.popleft()
        self._position = item.position
        if item.event is not None and item.note:
            self._notes += 1
            if not self._options.notes:
                item.ack()
                return None
        self._received += 1
        self._undecodable += item.error != ""
        self._redelivered += item.redelivered
        self._bytes += len(item.payload)
        return item

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Wait for work in a thread; for work whose waiting was cancelled, if there is some, instead."""
        if self._running is None or self._running.done():
            self._running = _start_thread(work)
        await asyncio.wrap_future(self._running)

    def _step(self, deadline: float | None) -> None:
        """Read a page, connecting first at need; waits for a while when there is nothing."""
        with self._driving:
            if self._ended or self._closed.is_set():
                return
            try:
                self._open()
                self._flush()
                page = self._source.read(_until(deadline, _POLL))
            except TransportError as error:
                self._lose(error, deadline)
                return
            finally:
                if self._closed.is_set():
                    self._shut()
            if page is None:
                self._ended = True
            elif not self._closed.is_set():
                if page and self._source.cuts != self._cuts:
                    self._cuts = self._source.cuts
                    page[0].after_cut = True
                for item in page:
                    self._admit(item)

    def _open(self) -> None:
        if self._is_open:
            return
        self._source.open()
        self._is_open = True
        if self._failures:
            logger.info("%s: connected again", self._source.shown)
            self._reconnects += 1
            self._failures = 0
        self._was_open = True

    def _lose(self, error: TransportError, deadline: float | None) -> None:
        """The connection is gone: raise when that is for good, else wait before the next attempt."""
        self._source.close()
        self._is_open = False
        self._last_error = str(error)
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        patience = self._options.give_up_after
        given_up = patience is not None and now - self._failing_since >= patience
        if isinstance(error, FatalError) or not self._was_open or given_up:
            raise ConsumerError(str(error)) from error
        if not self._failures:
            logger.warning("connection lost, trying again: %s", error)
        self._failures += 1
        if self._delay is None:
            from tenacity import wait_random_exponential

            options = self._options
            self._delay = delays(wait_random_exponential(multiplier=options.retry_base, max=options.retry_bound))
        self._closed.wait(_until(deadline, self._delay(self._failures)))

    def _admit(self, item: Received) -> None:
        """Queue an entry, unless it is a double or we hold it already."""
        ticket = item.ticket
        if ticket is None:
            if self._seen.add(item.producer, item.seq):
                self._ready.append(item)
            else:
                self._duplicates += 1
            return
        held = self._held(ticket)
        if held is not None and ticket.coming is Coming.RETURNED:
            # Whoever has the item will acknowledge what is delivered now with it.
            held.tokens += ticket.tokens
            return
        new = self._seen.add(item.producer, item.seq)
        # What was seen, and came back, was acknowledged, and the server has not heard of it; unless we hold it still, or
        # had to forget whether we do.
        due_again = ticket.coming is not Coming.NEW and (held is not None or self._forgot)
        if new or due_again:
            self._hold(ticket)
            self._ready.append(item)
        else:
            self._duplicates += 1
            self._note(ticket, rejected=False)

    def _held(self, ticket: Ticket) -> Ticket | None:
        with self._under_way_lock:
            return None if ticket.identity is None else self._under_way.get(ticket.identity)

    def _hold(self, ticket: Ticket) -> None:
        ticket.settle = self._settle
        if ticket.identity is None:
            return
        with self._under_way_lock:
            self._under_way[ticket.identity] = ticket
            if len(self._under_way) > _MOST_UNDER_WAY:
                # Somebody who never acknowledges must not cost memory without bound.
                self._under_way.popitem(last=False)
                self._forgot = True

    def _settle(self, ticket: Ticket, rejected: bool) -> None:
        if not ticket.settled:
            if ticket.identity is not None:
                with self._under_way_lock:
                    if self._under_way.get(ticket.identity) is ticket:
                        del self._under_way[ticket.identity]
            self._note(ticket, rejected)

    def _note(self, ticket: Ticket, rejected: bool) -> None:
        ticket.settled = True
        if not self._settled:
            self._settled_since = time.monotonic()
        for token in ticket.tokens:
            if not isinstance(token, Sheaf):
                self._settled.append((token, rejected))
                continue
            with self._under_way_lock:
                is_whole = token.settle(rejected)
            if is_whole:
                self._settled.append((token.token, token.rejected))

    def _acks_are_due(self) -> bool:
        waiting = len(self._settled)
        return waiting >= _ACKS_AT_ONCE or (waiting > 0 and time.monotonic() - self._settled_since >= _ACK_INTERVAL)

    def _send_acks(self) -> None:
        with self._driving:
            if not self._closed.is_set() and self._is_open:
                # The next step meets whatever is wrong with the connection again, and deals with it.
                with contextlib.suppress(TransportError):
                    self._flush()

    def _flush(self) -> None:
        told = [self._settled.popleft() for _ in range(len(self._settled))]
        if not told:
            return
        done = [token for token, rejected in told if not rejected]
        try:
            self._source.acknowledge(done, [token for token, rejected in told if rejected])
        except TransportError:
            self._settled.extendleft(reversed(told))
            raise

    def _shut(self) -> None:
        if self._is_open:
            with contextlib.suppress(TransportError):
                self._flush()
        self._is_open = False
        self._ready.clear()
        self._source.close()


class Events(Iterator[StreamllEvent], AsyncIterator[StreamllEvent]):
    """The events of a consumer, each acknowledged when the next one is asked for. Made by `Consumer.events`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._last: Received | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamllEvent:
        while True:
            event = self._take(next(self._settle()))
            if event is not None:
                return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamllEvent:
        while True:
            event = self._take(await anext(self._settle()))
            if event is not None:
                return event

    def _settle(self) -> Consumer:
        if self._last is not None:
            self._last.ack()
            self._last = None
        return self._consumer

    def _take(self, item: Received) -> StreamllEvent | None:
        if item.event is None:
            item.reject()
        else:
            self._last = item
        return item.event


def _until(deadline: float | None, most: float) -> float:
    return most if deadline is None else max(0.0, min(most, deadline - time.monotonic()))


def _start_thread(work: Callable[[], T]) -> Future[T]:
    """Do work in a thread that never keeps the interpreter alive, unlike an executor's."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="streamll-consumer", daemon=True).start()
    return future
