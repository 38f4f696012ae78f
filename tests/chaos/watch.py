"""Watch: a thread that reads the balance of a sink all the time, while everything else happens to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streamll.delivery.ledger import Balance
from streamll.sinks.base import Sink
from tests.fixtures.waiting import PATIENCE


class Watch:
    """Reads the balance of one sink after the other; see `watching`.

    Args:
        every: Seconds between two looks.
    """

    def __init__(self, every: float = 0.0005) -> None:
        self._every = every
        self._sink: Sink | None = None
        self._changed = threading.Condition()
        self._wrong: list[str] = []
        self._ended = False
        self._last = Balance()
        self.reads = 0

    def look_at(self, sink: Sink | None) -> list[str]:
        """Turn to another sink, or to none; returns what was wrong with the one before it."""
        with self._changed:
            self._sink = sink
            self._last = Balance()
            wrong, self._wrong = self._wrong, []
            self._changed.notify()
        return wrong

    def run(self) -> None:
        """The thread."""
        while not self._ended:
            with self._changed:
                if self._sink is None:
                    self._changed.wait(1.0)
                else:
                    self._read(self._sink)
                    self._changed.wait(self._every)

    def end(self) -> None:
        """Let the thread end."""
        self._ended = True
        self.look_at(None)

    def _read(self, sink: Sink) -> None:
        now, last = sink.balance(), self._last
        self.reads += 1
        if not now.balanced and len(self._wrong) < 3:
            self._wrong.append(f"read from another thread, the balance does not hold: {now}")
        rising = ("offered", "accepted", "delivered", "dead_lettered")
        back = [name for name in rising if getattr(now, name) < getattr(last, name)]
        back += [reason for reason in last.dropped if now.dropped.get(reason, 0) < last.dropped[reason]]
        if back and len(self._wrong) < 3:
            self._wrong.append(f"counted less than before: {back}: {last}, {now}")
        self._last = now


@contextmanager
def watching(*options: float) -> Iterator[Watch]:
    """A watch, for the block; the options are its arguments."""
    watch = Watch(*options)
    thread = threading.Thread(target=watch.run, name="balance-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join(PATIENCE)
