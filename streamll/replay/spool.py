"""What dead processes left in a spool, delivered to where it was going, under their names and numbers.

What belongs here: one orphan after another, and when to give up. What does not: which folders are orphans, and their
reading (runtime/spool.py), or how events are delivered (the lane that a sink makes for them, as a running one does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from streamll.delivery.circuit import CircuitState
from streamll.errors import ConfigurationError
from streamll.options import YEAR
from streamll.registry import make_sink
from streamll.runtime.adoption import Adoption
from streamll.runtime.journal import Identity
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from streamll.sinks.base import Sink

_LOOK_AGAIN = 0.005
_PATIENCE = 30.0
"""Seconds without an event being delivered after which an orphan is given up, where no circuit says so before."""


@dataclass(frozen=True)
class Delivery:
    """What became of an orphan's events.

    Attributes:
        numbers: Those of its ledger, at the end.
        trouble: Why some are left; empty when none are, or when it was told to stop.
    """

    numbers: Adoption
    trouble: str

    @property
    def left(self) -> int:
        """Events that are in the spool still."""
        return self.numbers.spooled + self.numbers.buffered + self.numbers.in_flight


def open_orphans(spool_dir: Path) -> Iterator[tuple[Path, AdoptedJournal | None]]:
    """Give the folders of a spool, oldest first, each with its journal, leased to this process.

    None instead of a journal: a living process has it, or it cannot be read, which is said on the log. A journal that the
    caller has not closed, or handed on, is closed with what is in it kept.
    """
    for folder in orphans(spool_dir):
        journal = adopt(folder)
        if journal is None and not folder.exists():
            continue  # its process, or another one, has done with it just now
        try:
            yield folder, journal
        finally:
            if journal is not None:
                journal.close(keep=True)


class Sinks:
    """Finds the sink that an orphan's events belong to.

    Args:
        to: The URL of a sink for all of them; empty: the one that each was going to.
        known: URLs of sinks, with credentials: an orphan's own URL has none.
    """

    def __init__(self, to: str = "", known: Iterable[str] = ()) -> None:
        self._to = _usable(make_sink(to)) if to else None
        self._known = {} if to else {sink.address: sink for sink in map(make_sink, known)}

    def of(self, identity: Identity) -> Sink:
        """Return the sink for an orphan, which is not started.

        Raises:
            ConfigurationError: There is none that could be used.
        """
        if self._to is not None:
            return self._to
        sink = self._known.get(identity.destination)
        if sink is None:
            try:
                sink = self._known[identity.destination] = make_sink(identity.url)
            except ConfigurationError as error:
                raise ConfigurationError(f"its destination cannot be used: {error}; --to names one") from None
        return _usable(sink)


def _usable(sink: Sink) -> Sink:
    if sink.scheme == "memory":
        raise ConfigurationError("memory:// would end with this command; --to names a sink that lasts")
    return sink


def deliver(
    journal: AdoptedJournal,
    sink: Sink,
    stop: Callable[[], bool] = lambda: False,
    on_wait: Callable[[int], None] = lambda delivered: None,
) -> Delivery:
    """Deliver what is left of a dead process; what could not be delivered stays in the spool.

    Args:
        journal: It, leased to this process; given up at the end.
        sink: Where to.
        stop: Asked all the time whether to end after the batch under way.
        on_wait: Told all the time how many events are delivered.
    """
    lane = sink.lane_for(journal)
    worker = lane.worker
    worker.start()
    worker.begin_stop(YEAR)  # as soon as nothing is left
    settled, moved_at = -1, monotonic()
    trouble = ""
    while worker.is_alive and not stop():
        numbers = lane.buffer.read()
        now = monotonic()
        count = numbers.delivered + numbers.dead_lettered + sum(numbers.dropped.values())
        if count != settled:
            settled, moved_at = count, now
        if worker.circuit.state is CircuitState.OPEN or now - moved_at > _PATIENCE:
            trouble = worker.last_error or "no answer"
            break
        on_wait(numbers.delivered)
        sleep(_LOOK_AGAIN)
    worker.begin_stop(0)
    end = monotonic() + sink.options.send_timeout
    while worker.is_alive and monotonic() < end:  # an answer that is on its way spares a double
        sleep(_LOOK_AGAIN)
    worker.finish_stop()
    return Delivery(lane.read(), trouble)
