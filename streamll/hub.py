"""Where spans, monitors and `emit` hand their events over: a hole that `configure()` fills and `shutdown()` empties.

It exists so that what users put into their code need not import what delivers it. Reading one attribute of it is all
that an unconfigured process pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from streamll.models import NO_TAGS, StreamllEvent
from streamll.privacy.keys import SensitiveKeys

Dispatch = Callable[[StreamllEvent], bool]

Take = Callable[[str, str, str, str, str, int, str, str, str, str, dict[Any, Any], Any, str], bool]
"""From the fields of an event, in their order and without `resource` and `extra`, to whether any sink accepted it. By
position, since naming them would take as long as all the rest of it."""


Tap = Callable[[str, str, str, str, str, dict[Any, Any]], None]
"""Sees every event that comes by: event_type, operation, module_name, method_name, level, data. It is called on the hot
path: it keeps none of the data and takes no lock; what it raises is left out."""

Flush = Callable[[float | None], bool]
"""From the seconds that it may take, None for what is configured, to whether everything is where it belongs."""


def _nowhere(*_: object) -> bool:
    return False


def _nothing_to_flush(_timeout: float | None) -> bool:
    return True


class Hub:
    """The process's current way for events.

    Attributes:
        active: False when nothing would be done with an event, so that callers need not even build one.
        dispatch: Takes an event over, which the caller must not change afterwards; True when any sink accepted it.
        take: The same for an event of streamll's own making, which belongs to the present scope, by its fields: ids and
            time as made here, `data` a dict, which may be the user's own, and all else as the user gave it.
        frames: The spans and profiled actions that frames are within, by the frame's `id`, for as long as they are: an
            object with `operation`. None unless somebody samples stacks: he puts a dict there.
        flush: Delivers what was emitted before, as `streamll.flush` does; there is nothing to deliver before that exists.
        holders: Who holds back what is to become events, such as what was counted since the last one; in order. Called
            without arguments, each emits it.
        is_sampled: Whether an execution's events are sent, by its id and the W3C flags that came with it; None where all
            are.
        rules: What is redacted, also of what a monitor keeps to itself or writes to a file; None when nothing is.
        sources: Numbers to be shown in `stats().monitoring`: what returns them, by name.
    """

    __slots__ = (
        "_dispatch",
        "_take",
        "_tap",
        "active",
        "dispatch",
        "flush",
        "frames",
        "holders",
        "is_sampled",
        "rules",
        "sources",
        "take",
    )

    def __init__(self) -> None:
        self.frames: dict[int, Any] | None = None
        self.flush: Flush = _nothing_to_flush
        self.holders: dict[Callable[[], None], None] = {}
        self.rules: SensitiveKeys | None = SensitiveKeys()
        self.is_sampled: Callable[[str, str], bool] | None = None
        self.sources: dict[str, Callable[[], Any]] = {}
        self._tap: Tap | None = None
        self.empty()

    def fill(self, dispatch: Dispatch, take: Take | None = None) -> None:
        """Send events to `dispatch` from now on, and those of our own making to `take`, or built to `dispatch` too."""
        self._dispatch: Dispatch | None = dispatch
        self._take: Take | None = take or built_for(dispatch)
        self._connect()

    def empty(self) -> None:
        """Send events nowhere from now on."""
        self._dispatch = self._take = None
        self._connect()

    @contextmanager
    def instead(self, dispatch: Dispatch, take: Take | None = None) -> Iterator[None]:
        """Send events elsewhere during a block, and afterwards where they went before."""
        before = self._dispatch, self._take
        self.fill(dispatch, take)
        try:
            yield
        finally:
            self._dispatch, self._take = before
            self._connect()

    def give_out(self) -> None:
        """Have everything emitted that somebody holds back: before a flush, and before the sinks are drained."""
        for holder in list(self.holders):
            with suppress(Exception):  # each counts and says what it could not do
                holder()

    def tap(self, tap: Tap | None) -> None:
        """Show every event to one function from now on, also where it goes nowhere; or to none any more."""
        self._tap = tap
        self._connect()

    def _connect(self) -> None:
        dispatch, take = self._dispatch or _nowhere, self._take or _nowhere
        if self._tap is not None:
            dispatch, take = _tapped(self._tap, dispatch, take)
        self.dispatch, self.take = dispatch, take
        self.active = self._dispatch is not None or self._tap is not None


def _tapped(tap: Tap, dispatch: Dispatch, take: Take) -> tuple[Dispatch, Take]:
    """Both ways, with a function that sees what goes them."""

    def tapped_dispatch(event: StreamllEvent) -> bool:
        try:
            tap(event.event_type, event.operation, event.module_name, event.method_name, event.level, event.data)
        except Exception:  # noqa: S110  # labels may be anything; the event goes its way all the same
            pass
        return dispatch(event)

    def tapped_take(
        event_type: str,
        event_id: str,
        execution_id: str,
        span_id: str,
        parent_span_id: str,
        timestamp: int,
        module_name: str,
        method_name: str,
        operation: str,
        level: str,
        data: dict[Any, Any],
        tags: Any,
        priority: str,
    ) -> bool:
        try:
            tap(event_type, operation, module_name, method_name, level, data)
        except Exception:  # noqa: S110  # as above
            pass
        return take(
            event_type,
            event_id,
            execution_id,
            span_id,
            parent_span_id,
            timestamp,
            module_name,
            method_name,
            operation,
            level,
            data,
            tags,
            priority,
        )

    return tapped_dispatch, tapped_take


def built_for(dispatch: Dispatch) -> Take:
    """Return what builds an event for one who may look at it, keep it and change it."""

    def take(
        event_type: str,
        event_id: str,
        execution_id: str,
        span_id: str,
        parent_span_id: str,
        timestamp: int,
        module_name: str,
        method_name: str,
        operation: str,
        level: str,
        data: dict[Any, Any],
        tags: Any,
        priority: str,
    ) -> bool:
        return dispatch(
            StreamllEvent(
                event_type=event_type,
                event_id=event_id,
                execution_id=execution_id,
                span_id=span_id,
                parent_span_id=parent_span_id,
                timestamp=timestamp,
                module_name=module_name,
                method_name=method_name,
                operation=operation,
                level=level,
                data={**data},
                tags=[] if tags is NO_TAGS else tags,
                priority=priority,
            )
        )

    return take


hub = Hub()
