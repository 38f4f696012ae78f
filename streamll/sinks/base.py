"""Sink: the part that all destinations share. A sink is a pipeline's end, a buffer, a worker and a transport.

A concrete sink is one file: a transport, its error map, and a short class that says which options it has and how its
transport is made; see docs/writing-a-sink.md.
"""

from __future__ import annotations

# Client libraries import it, and it refuses to be imported once the interpreter has begun to end: an event that is
# emitted only then must find it here.
import concurrent.futures.thread  # noqa: F401
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl

from streamll.codec import CONTENT_TYPES
from streamll.context import muted
from streamll.delivery.gaps import DROPPED_BEFORE_CRASH, LOST_IN_CRASH, Holes
from streamll.delivery.ledger import Balance
from streamll.delivery.lifecycle import Phase, moved
from streamll.delivery.outcome import Entry
from streamll.errors import ConfigurationError, LifecycleError
from streamll.ids import new_producer_id
from streamll.models import Record, StreamllEvent
from streamll.options import MEMORY, EventFilter, OptionSet, SinkOptions, unknown_option
from streamll.pipeline import Pipeline
from streamll.runtime.buffer import Buffer
from streamll.runtime.executor import in_executor
from streamll.runtime.fork import tell_after_fork
from streamll.runtime.leave import forget, stop_at_exit
from streamll.runtime.reports import DeliveryReport
from streamll.runtime.transport import Transport
from streamll.runtime.worker import Worker
from streamll.sinks.stats import SinkStats, by_the_clock

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from streamll.runtime.adoption import Adopter, Lane
    from streamll.runtime.shelf import Shelf
    from streamll.runtime.spool import AdoptedJournal

__all__ = ["DeliveryReport", "EventQueue", "Finding", "OnDelivery", "Sink", "SinkStats", "Transport"]

log = logging.getLogger("streamll")

OnDelivery = Callable[[DeliveryReport], None]

FILTERED = "filtered"
NOT_AN_EVENT = "not_an_event"
_NEW = Phase.NEW  # a member looked up in its class each time costs as much as the rest of `handle_record`


@dataclass(frozen=True)
class Finding:
    """One thing that `streamll check` has to say of a sink's server.

    Attributes:
        level: "ok", "warning" (works, but a promise may not be kept) or "error" (does not work).
        text: What is the case.
        remedy: What to do about it; empty when there is nothing to do.
    """

    level: str
    text: str
    remedy: str = ""


class EventQueue:
    """A view of what a sink still holds, in the manner of `queue.Queue`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def empty(self) -> bool:
        """Whether nothing is buffered, in flight or on disk."""
        return self.qsize() == 0

    def qsize(self) -> int:
        """How many events are buffered, in flight or on disk."""
        balance = self._sink.balance()
        return balance.buffered + balance.in_flight + balance.spooled


class Sink:
    """A destination of events, with a buffer and a worker thread of its own.

    Events may be handed over from any thread. The worker starts with the first one. Used as a context manager, the sink
    is started, and stopped at the end.

    Args:
        destination: Where the events go, for people; it must not hold a credential.
        address: A URL that leads to the same destination, without credentials: by it a process finds in the spool what
            another has left there, and `streamll replay` the way. Default: the destination.
        transport: From the producer's id to a new transport; called on the worker's thread.
        options: The options that every sink has.
        name: The sink's name in stats and logs; default: the class's scheme.
        event_filter: From an event to whether this sink takes it; called on the emitting thread.
        on_delivery: Called on the worker's thread with the fate of each event.
        pipeline: What turns events into records; default: one with default options.
        retry_wait: A wait strategy of tenacity for the time between attempts; default: exponential with full jitter,
            from `retry_base` to `retry_bound`.

    Attributes:
        own_options: The options that only this kind of sink has.
        keeps_notes: Whether its destination keeps the sink's own records, of gaps and of the end, for readers.
        orphan_age: Seconds for which the destination remembers what it has of a producer that died, so that nothing is
            there twice; older events of dead processes are left to `streamll replay`.
        event_queue: What it still holds: `event_queue.empty()` is False while anything is buffered, in flight or on disk.
    """

    own_options: ClassVar[type[OptionSet]] = OptionSet
    scheme: ClassVar[str] = "sink"
    keeps_notes: ClassVar[bool] = True
    orphan_age: ClassVar[float] = inf

    def __init__(
        self,
        *,
        destination: str,
        transport: Callable[[str], Transport],
        options: SinkOptions,
        address: str = "",
        name: str = "",
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
    ) -> None:
        for label, function in (("event_filter", event_filter), ("on_delivery", on_delivery)):
            if function is not None and not callable(function):
                raise ConfigurationError(f"sink option {label}: must be callable, not a {type(function).__name__}")
        self._name = name or self.scheme
        self.destination = destination
        self.address = address or destination
        self.options = options
        self.content_type = CONTENT_TYPES[options.encoding]
        self.event_queue = EventQueue(self)
        self._make_transport = transport
        self._filter = event_filter
        self._on_delivery = on_delivery
        self._pipeline = pipeline
        self._retry_wait = retry_wait
        if options.spools:  # found once: a forked child may have another working directory
            self._spool_dir = find_spool_dir(options.spool_dir, os.environ)
        self._build()
        tell_after_fork(self)

    def _build(self, parent: str = "") -> None:
        """Make what a process has of its own: producer, buffer, worker, lock."""
        self.producer = new_producer_id(parent)
        self._phase = Phase.NEW
        self._clock_offset = time() - monotonic()  # taken once, so that a change has the same time whenever it is read
        # Held for a moment only, and reentrant: a signal handler may stop the sink that it interrupted in the middle.
        self._changing = threading.RLock()
        self._starting = False
        self._filter_errors = 0
        evicted: deque[Entry] | None = deque() if self._on_delivery is not None else None
        self._shelf: Shelf | None = None
        self._adopter: Adopter | None = None
        if self.options.spools:
            self._shelf, self._adopter = self._open_spool()
        self._buffer = Buffer(
            self.options,
            evicted.append if evicted is not None else None,
            self._shelf,
            holes=Holes() if self.keeps_notes else None,
        )
        self._worker = Worker(
            self.name,
            self._buffer,
            self.options,
            partial(self._make_transport, self.producer),
            self._retry_wait,
            self._on_delivery,
            evicted,
            self._make_note if self.keeps_notes else None,
        )

    def _open_spool(self) -> tuple[Shelf, Adopter]:
        """What lies on disk: of this process, and of those that died. It touches no disk yet."""
        from streamll.runtime.adoption import Adopter  # only who keeps events on disk needs all of that
        from streamll.runtime.journal import Identity, Journal
        from streamll.runtime.shelf import Shelf

        options = self.options
        spool_dir = self._spool_dir
        url = self.address if " " not in self.address else ""  # else it is words for people, and leads nowhere
        identity = Identity(self.address, url, self.producer, options.durability)
        journal = Journal(spool_dir, identity, options.segment_bytes, options.spool_bytes, options.sync_interval)
        shelf = Shelf(journal, options.durability != MEMORY)
        return shelf, Adopter(self.name, spool_dir, self.address, self.lane_for, self.orphan_age)

    def lane_for(self, journal: AdoptedJournal) -> Lane:
        """Make the way for the events of a dead process: to this sink's destination, under the dead producer's name.

        Args:
            journal: What is left of it, leased to this process.
        """
        from streamll.runtime.adoption import Lane
        from streamll.runtime.shelf import Shelf

        producer = journal.identity.producer
        holes = Holes() if self.keeps_notes else None
        shelf = Shelf(journal, False, adopted=journal.unsettled)
        if holes is not None:
            for first, last in journal.undeclared:
                holes.add(first, last, DROPPED_BEFORE_CRASH)
            # Of one that only spilled, most events were never on disk.
            missing = journal.missing if journal.identity.durability != MEMORY else []
            for first, last in missing:
                holes.add(first, last, LOST_IN_CRASH)
            shelf.settle([*journal.undeclared, *missing], undeclared=True)
        # When they were emitted is noted by a clock that begins anew with the machine, so none of them is too old.
        options = replace(self.options, delivery_deadline=None)
        buffer = Buffer(options, shelf=shelf, holes=holes)
        buffer.inherit(journal.unsettled)
        worker = Worker(
            f"{self.name}, for {producer}",
            buffer,
            options,
            partial(self._make_transport, producer),
            self._retry_wait,
            make_note=self._make_note if self.keeps_notes else None,
            closes=False,
        )
        return Lane(journal, buffer, worker)

    def _make_note(self, kind: str, data: Mapping[str, Any]) -> Record:
        """Make a record of the sink's own, which tells readers of its events."""
        return self.pipeline.encode_note(StreamllEvent(event_type=kind, data=dict(data)), self.content_type)

    # How a sink is made

    @classmethod
    def split_options(cls, options: Mapping[str, Any]) -> tuple[Any, SinkOptions]:
        """Divide options into this sink's own and those that every sink has, validated.

        Raises:
            ConfigurationError: When a name is unknown or a value is not allowed.
        """
        common = SinkOptions.names()
        own = {name: value for name, value in options.items() if name not in common}
        shared = {name: value for name, value in options.items() if name in common}
        return cls.own_options.from_mapping(own, also=common), SinkOptions.from_mapping(shared)

    @classmethod
    def query_options(cls, query: str) -> dict[str, str]:
        """Read the query of a URL, such as `buffer_size=500&encoding=json`, as options of this sink and its name.

        Raises:
            ConfigurationError: When a name is unknown or given twice.
        """
        allowed = {*cls.own_options.names(), *SinkOptions.names(), "name"}
        found: dict[str, str] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in allowed:
                raise unknown_option(f"{cls.scheme} URL: ", name, allowed)
            if name in found:
                raise ConfigurationError(f"{cls.scheme} URL: the option {name} is given twice")
            found[name] = value
        return found

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from a URL, whose query may hold any of its options.

        Args:
            url: Where the events go.
            options: As for the class itself; they win over those in the URL.

        Raises:
            ConfigurationError: When the URL or an option cannot be used.
        """
        raise NotImplementedError

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say whether the server behind a URL can be reached, and whether what is promised can be kept there."""
        return [Finding("ok", f"{cls.__name__} has nothing to check")]

    # What users call

    @property
    def name(self) -> str:
        """The sink's name in stats and logs."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = self._worker.name = name
        if self._adopter is not None:
            self._adopter.name = name

    @property
    def pipeline(self) -> Pipeline:
        """What turns events into records."""
        if self._pipeline is None:
            self._pipeline = Pipeline()
        return self._pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def start(self) -> None:
        """Start the worker; the first event does it by itself.

        Raises:
            LifecycleError: When the sink was stopped.
        """
        if self._phase in (Phase.DRAINING, Phase.STOPPED):
            raise LifecycleError(f"sink {self.name} was stopped and cannot be started again; make a new one")
        self._ensure_started()

    def handle_event(self, event: StreamllEvent) -> bool:
        """Take an event over: enrich, redact, encode and buffer it. The event itself is not changed.

        Returns:
            Whether it was accepted. False is counted: in `refused`, or in the pipeline's stats.

        Raises:
            BufferFullError: There is no room, and `buffer_overflow_strategy` is `raise_error`.
        """
        if type(event) is not StreamllEvent and not issubclass(type(event), StreamllEvent):
            self._buffer.refuse(NOT_AN_EVENT)  # not typed code, and an error is not worth the host's day
            return False
        try:
            prepared = self.pipeline.prepare(copy(event))
            if prepared is None or not self.wants(prepared):
                return False
            record = self.pipeline.encode(prepared, self.content_type)
        except Exception as error:  # whatever it is, the host is not to be hurt by it
            self.pipeline.note_defect(error)
            return False
        return self.handle_record(record)

    @property
    def is_choosy(self) -> bool:
        """Whether it has an event filter."""
        return self._filter is not None

    def wants(self, event: StreamllEvent) -> bool:
        """Ask the event filter; what it does not want is counted as offered and refused."""
        if self._filter is None:
            return True
        try:
            with muted():  # what it emits or logs would come back here
                wanted = bool(self._filter(event))
        except Exception as error:
            wanted = False
            self._filter_errors += 1
            if self._filter_errors == 1:
                log.warning("sink %s: its event filter raised %s; such events are refused", self.name, type(error))
        if not wanted:
            self._buffer.refuse(FILTERED)
        return wanted

    def handle_record(self, record: Record) -> bool:
        """Take an encoded event over; returns whether it was accepted.

        Raises:
            BufferFullError: There is no room, and `buffer_overflow_strategy` is `raise_error`.
        """
        if self._phase is _NEW:
            self._ensure_started()
        return self._buffer.put(record)

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver what was accepted before this call, without waiting for batches to fill.

        An open circuit is given one probe for it.

        Args:
            timeout: Seconds to wait; default: the option flush_timeout.

        Returns:
            True when everything accepted before is delivered, dead-lettered or dropped; False at the deadline.

        Raises:
            LifecycleError: When called on the sink's own worker thread, which it would wait for.
        """
        if self._worker.is_current_thread:
            raise LifecycleError(
                "flush() was called on the sink's worker thread, such as by on_delivery: it would wait for itself"
            )
        if self._phase is Phase.NEW:
            return True
        return self._worker.flush(self.options.flush_timeout if timeout is None else max(0.0, timeout))

    def request_flush(self) -> None:
        """Start what `flush` waits for, and return at once."""
        if self._phase is not Phase.NEW:
            self._worker.request_flush()

    async def aflush(self, timeout: float | None = None) -> bool:
        """`flush` without blocking the event loop."""
        return await in_executor(partial(self.flush, timeout))

    def stop(self, timeout: float | None = None) -> SinkStats:
        """Accept nothing more, deliver what there is until the deadline, and end the worker. May be called twice.

        What could not be delivered is counted: `dropped["shutdown"]`, or `dropped["unconfirmed"]` for a batch whose
        answer never came, so that it may have arrived.

        Args:
            timeout: Seconds to wait; default: the option stop_timeout.

        Raises:
            LifecycleError: When called on the sink's own worker thread.
        """
        if self._worker.is_current_thread:
            raise LifecycleError("stop() was called on the sink's worker thread: it would wait for itself")
        self.begin_stop(self.options.stop_timeout if timeout is None else max(0.0, timeout))
        self.finish_stop()
        return self.stats()

    async def astop(self, timeout: float | None = None) -> SinkStats:
        """`stop` without blocking the event loop."""
        return await in_executor(partial(self.stop, timeout))

    def stats(self) -> SinkStats:
        """Return the sink's numbers, consistent in themselves."""
        balance = self._buffer.read()
        worker = self._worker
        return SinkStats(
            **balance.__dict__,
            name=self.name,
            destination=self.destination,
            producer=self.producer,
            phase=self._phase.value,
            bytes_held=self._buffer.bytes_held,
            declared=worker.declared,
            **self._spool_stats(),
            batches=worker.batches,
            failed_batches=worker.failed_batches,
            retries=worker.retries,
            circuit=worker.circuit.state.value,
            circuit_history=by_the_clock(worker.circuit.history.copy(), self._clock_offset),
            latency=worker.latency.read(),
            lost_after_ack=worker.lost_after_ack,
            callback_errors=worker.callback_errors + self._filter_errors,
            defects=worker.defects,
            last_error=worker.last_error,
        )

    def _spool_stats(self) -> dict[str, Any]:
        if self._shelf is None or self._adopter is None:
            return {}
        from streamll.runtime.spool import set_aside

        return {
            "set_aside": set_aside.read(),
            "unprotected": self._shelf.unprotected,
            "spool_bytes": self._shelf.journal.numbers().bytes,
            "spool_trouble": self._shelf.journal.trouble,
            "adopted": self._adopter.read(),
        }

    def balance(self) -> Balance:
        """Return the balance alone: cheaper than `stats()`."""
        return self._buffer.read()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.astop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.destination}, {self._phase.value}>"

    # For those who stop several sinks at once

    @property
    def exit_timeout(self) -> float:
        """Seconds that the interpreter's exit waits for this sink."""
        return self.options.exit_timeout

    def begin_stop(self, timeout: float) -> None:
        """Start to drain; returns at once. `finish_stop` waits for it. Begun again, it may end sooner, but not later."""
        with self._changing:
            if self._phase is Phase.NEW:
                self._worker.begin_stop(0)  # which ends it at once, should it be about to start
                self._phase = moved(self._phase, Phase.STOPPED)
            elif self._phase is not Phase.STOPPED:
                self._worker.begin_stop(timeout)
                if self._adopter is not None:
                    self._adopter.begin_stop(timeout)
                if self._phase is Phase.RUNNING:
                    self._phase = moved(self._phase, Phase.DRAINING)

    def finish_stop(self) -> None:
        """Wait until the sink is drained, or its time is over."""
        if self._phase is Phase.DRAINING:
            self._worker.finish_stop()
            if self._adopter is not None:
                self._adopter.finish_stop()
            with self._changing:
                if self._phase is Phase.DRAINING:
                    self._phase = moved(self._phase, Phase.STOPPED)
            forget(self)

    def say_what_is_lost(self) -> None:
        """Say in one line what could not be delivered, if anything."""
        balance = self._buffer.read()
        left = {**balance.dropped, "spooled for the next process": balance.spooled}
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(left.items()) if n)
        if counts:
            log.warning("sink %s: stopped before all of its events were delivered: %s", self.name, counts)

    def after_fork_in_child(self) -> None:
        """Be a new sink in a forked child; what the parent had buffered stays the parent's."""
        stopped = self._phase in (Phase.DRAINING, Phase.STOPPED)
        self._worker.forget_in_child()
        if self._shelf is not None:
            self._shelf.journal.forget_in_child()
        if self._adopter is not None:
            self._adopter.forget_in_child()
        self._build(parent=self.producer)
        if self._pipeline is not None:
            self._pipeline.refresh_process()
        if stopped:
            self.begin_stop(0)

    def _ensure_started(self) -> None:
        # Without waiting: whoever is starting or stopping it right now may be what this call interrupted.
        if self._changing.acquire(blocking=False):
            try:
                if self._phase is Phase.NEW and not self._starting:
                    self._starting = True
                    self._worker.start()
                    if self._adopter is not None:
                        self._adopter.start()
                    self._note_started()
            finally:
                self._changing.release()

    def _note_started(self) -> None:
        if self._phase is Phase.NEW:  # else a signal handler has stopped it meanwhile
            self._phase = moved(self._phase, Phase.RUNNING)
            stop_at_exit(self)


def find_spool_dir(given: str, environ: Mapping[str, str]) -> Path:
    """Return where a spool is, wherever the process goes from here.

    Args:
        given: The option spool_dir; empty: a folder among what the user's programs keep between two runs.
        environ: The environment.

    Raises:
        ConfigurationError: When it is said by means of a home folder, and there is none.
    """
    state = environ.get("XDG_STATE_HOME", "")
    path = Path(given or (state if state.startswith("/") else "~/.local/state") + "/streamll/spool")
    try:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  # Path.resolve would follow the links of now
    except RuntimeError:
        raise ConfigurationError("sink option spool_dir: this user has no home folder; give an absolute path") from None
