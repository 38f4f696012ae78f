"""The one way in which monitors make events: in the present scope, never raising, and within what the budget allows.

What belongs here: that way, and the count of what did not go. What does not: what the events say.
"""

from __future__ import annotations

from time import time_ns
from typing import Any

from streamll.hub import hub
from streamll.ids import new_event_id
from streamll.models import DEBUG, NO_TAGS
from streamll.monitors.budget import budget
from streamll.spans import surroundings
from streamll.tally import Tally

withheld = Tally()
"""Events that were not made: `debug` (the budget had no room for them) and `refused` (no sink accepted them)."""


def send(
    event_type: str,
    data: dict[str, Any],
    *,
    timestamp: int | None = None,
    operation: str = "",
    level: str = "info",
    priority: str = "",
    module_name: str = "",
    method_name: str = "",
) -> str | None:
    """Make an event that belongs to the present scope; never raises.

    Args:
        event_type: What kind of thing it is.
        data: What is known, by name; the bound attributes are added.
        timestamp: When it happened, in nanoseconds since the epoch; now when None.
        operation, level, priority, module_name, method_name: As in `StreamllEvent`. Events of priority "debug" are left
            out while monitoring costs too much.

    Returns:
        The event's id; None when it was left out, or no sink accepted it.
    """
    if not hub.active:
        return None
    if priority == DEBUG and not budget.allowance.debug:
        withheld.add("debug")
        return None
    try:
        scope, data = surroundings(data)
        if scope is None:
            return None
        event_id = new_event_id()
        taken = hub.take(
            event_type,
            event_id,
            scope.execution_id,
            scope.span_id,
            scope.parent_span_id,
            time_ns() if timestamp is None else timestamp,
            module_name,
            method_name,
            operation,
            level,
            data,
            NO_TAGS,
            priority,
        )
    except Exception:  # a full buffer whose strategy is to raise: the sink has counted it
        taken, event_id = False, ""
    if not taken:
        withheld.add("refused")
        return None
    return event_id
