"""Where spans, monitors and `emit` hand their events over: a hole that `configure()` fills and `shutdown()` empties.

It exists so that what users put into their code need not import what delivers it. Reading one attribute of it is all
that an unconfigured process pays.
"""

from __future__ import annotations

from collections.abc import Callable

from streamll.models import StreamllEvent

Dispatch = Callable[[StreamllEvent], bool]


def _nowhere(_event: StreamllEvent) -> bool:
    return False


class Hub:
    """The process's current way for events.

    Attributes:
        active: False when nothing would be done with an event, so that callers need not even build one.
        dispatch: Takes an event over, which the caller must not change afterwards; True when any sink accepted it.
    """

    __slots__ = ("active", "dispatch", "take")

    def __init__(self) -> None:
        self.active = False
        self.dispatch: Dispatch = _nowhere
        self.take: Dispatch = _nowhere

    def fill(self, dispatch: Dispatch, take: Dispatch | None = None) -> None:
        """Send events to `dispatch` from now on."""
        self.dispatch = dispatch
        self.take = take or dispatch
        self.active = True

    def empty(self) -> None:
        """Send events nowhere from now on."""
        self.active = False
        self.dispatch = self.take = _nowhere


hub = Hub()
