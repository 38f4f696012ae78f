"""Where spans, monitors and `emit` hand their events over: a hole that `configure()` fills and `shutdown()` empties.

It exists so that what users put into their code need not import what delivers it. Reading one attribute of it is all
that an unconfigured process pays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamll.models import NO_TAGS, StreamllEvent

Dispatch = Callable[[StreamllEvent], bool]

Take = Callable[[str, str, str, str, str, int, str, str, str, str, dict[Any, Any], Any, str], bool]
"""From the fields of an event, in their order and without `resource` and `extra`, to whether any sink accepted it. By
position, since naming them would take as long as all the rest of it."""


def _nowhere(*_: object) -> bool:
    return False


class Hub:
    """The process's current way for events.

    Attributes:
        active: False when nothing would be done with an event, so that callers need not even build one.
        dispatch: Takes an event over, which the caller must not change afterwards; True when any sink accepted it.
        take: The same for an event of streamll's own making, which belongs to the present scope, by its fields: ids and
            time as made here, `data` a dict, which may be the user's own, and all else as the user gave it.
    """

    __slots__ = ("active", "dispatch", "take")

    def __init__(self) -> None:
        self.active = False
        self.dispatch: Dispatch = _nowhere
        self.take: Take = _nowhere

    def fill(self, dispatch: Dispatch, take: Take | None = None) -> None:
        """Send events to `dispatch` from now on, and those of our own making to `take`, or built to `dispatch` too."""
        self.dispatch = dispatch
        self.take = take or built_for(dispatch)
        self.active = True

    def empty(self) -> None:
        """Send events nowhere from now on."""
        self.active = False
        self.dispatch = self.take = _nowhere


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
