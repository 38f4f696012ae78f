"""new -> running -> draining -> stopped: which way a sink may go."""

from __future__ import annotations

from enum import Enum

from streamll.errors import LifecycleError


class Phase(str, Enum):
    """Where a sink stands. `DRAINING` accepts nothing more, and sends what it has."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.RUNNING, Phase.STOPPED}),
    Phase.RUNNING: frozenset({Phase.DRAINING}),
    Phase.DRAINING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}


def moved(present: Phase, to: Phase) -> Phase:
    """Return the phase `to`.

    Raises:
        LifecycleError: When there is no way from the present phase to that one.
    """
    if to not in TRANSITIONS[present]:
        raise LifecycleError(f"the sink is {present.value} and cannot become {to.value}; make a new sink instead")
    return to
