"""Adoption: what dead processes have left in the spool is delivered, under their names and numbers.

What belongs here: when to look, and one orphan after another. What does not: which folders are orphans (spool.py), or how
an event is delivered (worker.py): an orphan gets a buffer, a worker and a connection of its own, so that it delays nobody.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from streamll.context import mute_this_thread
from streamll.delivery.ledger import Balance
from streamll.options import YEAR
from streamll.runtime.buffer import Buffer
from streamll.runtime.fork import rest_in_child
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from streamll.runtime.wakeup import Wakeup
from streamll.runtime.worker import Worker

log = logging.getLogger("streamll")

LOOK_AGAIN = 30.0
"""Seconds between two looks for orphans."""

_REMEMBERED = 100


@dataclass(frozen=True)
class Adoption(Balance):
    """What became of the events of one dead producer, in a ledger of its own.

    Attributes:
        producer: Its id.
        damaged: Places on disk that could not be read.
    """

    producer: str = ""
    damaged: int = 0


@dataclass(frozen=True)
class Lane:
    """The way of one orphan's events."""

    journal: AdoptedJournal
    buffer: Buffer
    worker: Worker

    def run(self, timeout: float) -> Adoption:
        """Deliver them until the deadline, or until none is left; what is left stays in the spool.

        Args:
            timeout: Seconds.
        """
        self.worker.start()  # where no thread can be started any more, `finish_stop` does the work
        self.worker.begin_stop(timeout)
        self.worker.finish_stop()
        return self.read()

    def read(self) -> Adoption:
        """Return its numbers."""
        balance = self.buffer.read()
        journal = self.journal
        return Adoption(**balance.__dict__, producer=journal.identity.producer, damaged=journal.numbers().damaged)


class Adopter:
    """Looks for orphans of one destination, and has them delivered, one after another.

    Args:
        name: The sink's name.
        spool_dir: The spool.
        destination: Whose orphans.
        make_lane: Makes the way of one orphan's events.
        max_age: Seconds since its last change after which an orphan is left alone: the broker may have forgotten what
            it has of it.
    """

    def __init__(
        self,
        name: str,
        spool_dir: Path,
        destination: str,
        make_lane: Callable[[AdoptedJournal], Lane],
        max_age: float,
    ) -> None:
        self.name = name
        self._spool_dir = spool_dir
        self._destination = destination
        self._make_lane = make_lane
        self._max_age = max_age
        self._wake = Wakeup()
        self._stop_by: float | None = None
        self._is_inherited = False
        self._lane: Lane | None = None
        self._seen: deque[Lane | Adoption] = deque(maxlen=_REMEMBERED)  # only the last one may be under way
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to look, on a thread of its own; where no thread can be started, the next process does."""
        thread = threading.Thread(target=self._run, name=f"streamll-adopt-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return
        self._thread = thread

    def begin_stop(self, timeout: float) -> None:
        """Look no further, and deliver until the deadline; the rest stays in the spool. Returns at once."""
        stop_by = monotonic() + min(timeout, YEAR)
        self._stop_by = stop_by if self._stop_by is None else min(stop_by, self._stop_by)
        self._wake.set()
        lane = self._lane
        if lane is not None:
            lane.worker.begin_stop(timeout)

    def finish_stop(self) -> None:
        """Wait for the deadline, or until the orphan that is being delivered is done."""
        lane = self._lane
        if lane is not None:
            lane.worker.finish_stop()
        thread = self._thread
        if thread is not None and self._stop_by is not None:
            thread.join(max(0.0, self._stop_by - monotonic()))

    def read(self) -> tuple[Adoption, ...]:
        """Return the numbers of the last orphans, the present one last."""
        return tuple(seen.read() if isinstance(seen, Lane) else seen for seen in tuple(self._seen))

    def forget_in_child(self) -> None:
        """In a forked child: the orphan is the parent's."""
        self._is_inherited = True
        self._stop_by = 0.0
        lane = self._lane
        if lane is not None:
            lane.worker.forget_in_child()
            lane.journal.forget_in_child()

    def _is_stopping(self) -> bool:
        return self._stop_by is not None

    def _run(self) -> None:
        mute_this_thread()
        while not self._is_stopping():
            try:
                for folder in orphans(self._spool_dir, self._destination):
                    if not self._is_stopping():
                        self._try_to_adopt(folder)
            except Exception as error:
                self._defect("look for events in the spool", error)
            self._wake.wait(LOOK_AGAIN)
        if self._is_inherited:
            rest_in_child()

    def _try_to_adopt(self, folder: Path) -> None:
        try:
            self._adopt(folder)
        except Exception as error:  # whatever is wrong with it: there are others
            self._defect(f"deliver what is in {folder}", error)

    def _defect(self, what: str, error: Exception) -> None:
        """Something in here is wrong: the events stay where they are, and the host does not notice."""
        if what not in self._said:
            self._said.add(what)
            log.warning("sink %s: cannot %s: %s; please report it", self.name, what, type(error).__name__)
        log.debug("sink %s: cannot %s", self.name, what, exc_info=error)

    def _adopt(self, folder: Path) -> None:
        journal = adopt(folder)
        if journal is None:  # its process lives
            return
        try:
            lane = None if self._is_too_old(journal, folder) else self._make_lane(journal)
        except BaseException:
            journal.close(keep=True)
            raise
        if lane is None:
            journal.close(keep=True)
            return
        if journal.unsettled:
            log.warning("sink %s: %d events of a process that died are delivered", self.name, journal.unsettled)
        self._lane = lane
        self._seen.append(lane)
        try:
            stop_by = self._stop_by
            if stop_by is not None:  # it came in between
                lane.worker.begin_stop(max(0.0, stop_by - monotonic()))
            lane.run(YEAR)
        finally:
            self._seen[-1] = lane.read()
            self._lane = None

    def _is_too_old(self, journal: AdoptedJournal, folder: Path) -> bool:
        if journal.age <= self._max_age:
            return False
        if str(folder) not in self._said:
            self._said.add(str(folder))
            log.warning(
                "sink %s: %s is older than the broker's memory of it, so it is left there; `streamll replay` delivers it",
                self.name,
                folder,
            )
        return True
