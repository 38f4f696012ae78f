"""The warnings that Python shows, as events of type "warning".

What belongs here: that, within a bound on how many. What does not: what is logged (logging_events.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, ClassVar

from streamll.context import current
from streamll.hub import hub
from streamll.monitors.config import read_options
from streamll.monitors.hooks import Hook, Tool
from streamll.monitors.logging_events import HERE
from streamll.monitors.outlet import send
from streamll.monitors.rate import RateBound
from streamll.options import OptionSet, option
from streamll.spans import describe_error
from streamll.tally import Tally


@dataclass(frozen=True)
class WarningsOptions(OptionSet):
    """What `WarningsCapture` can be told."""

    owner: ClassVar[str] = "warnings "

    per_minute: int = option(
        60, "Warnings that become events in a minute, at most; Python shows each place's once, unless told otherwise.",
        at_least=1, at_most=1_000_000,
    )  # fmt: skip


@dataclass(frozen=True)
class WarningsStats:
    """What became of the warnings that were shown.

    Attributes:
        events: So many became events.
        left_out: So many did not, by reason: `rate` (more than `per_minute`), `reentrant` (while its
            thread made an event of another), `twice` (by another tool of this kind), `muted` (on a thread whose events
            are cut off), `refused` (by all sinks), `failed`.
    """

    events: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


class _Shown(Hook):
    def call(self, before: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Show the warning as before; where that is to log it, no second event comes of it."""
        HERE.shown_warnings += 1
        try:
            return before(*args, **kwargs)
        finally:
            HERE.shown_warnings -= 1


_shown = _Shown(warnings, "showwarning")


class WarningsCapture(Tool):
    """Makes an event of each warning that Python shows: event_type "warning".

    Its data has `category`, `message`, `path` and `line`. The warning is then shown as before, also where
    `logging.captureWarnings` has it logged: it becomes one event, not two. Which warnings are shown at all is for the
    filters of `warnings` to say. While it runs, Python's own display of a ResourceWarning leaves out where the object
    was allocated: whoever takes part in showing warnings is not told.

    Args:
        config: Options as a mapping or `WarningsOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """

    def __init__(self, config: Mapping[str, Any] | WarningsOptions | None = None, **options: Any) -> None:
        self.options = read_options(WarningsOptions, config, options)
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget the numbers."""
        self._tally = Tally()
        self._rate = RateBound(self.options.per_minute)

    def stats(self) -> WarningsStats:
        """Return what became of the warnings since the last `reset`."""
        counts = self._tally.read()
        return WarningsStats(counts.pop("events", 0), counts)

    def report(self) -> dict[str, Any]:
        """Return the numbers as a dict."""
        stats = self.stats()
        return {"events": stats.events, "left_out": dict(stats.left_out)}

    def _begin(self) -> None:
        _shown.add(self._see)

    def _end(self) -> None:
        _shown.remove(self._see)

    def _see(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
    ) -> None:
        if hub.active:
            self._tally.add(self._take(message, filename, lineno))

    def _take(self, message: Warning | str, filename: str, lineno: int) -> str:
        if not self.leads:
            return "twice"
        if HERE.busy:
            return "reentrant"
        if current().muted:
            return "muted"
        if not self._rate.allows(monotonic()):
            return "rate"
        HERE.busy = True
        try:
            said = describe_error(message) if isinstance(message, Warning) else {"type": "Warning", "message": message}
            category = said["type"]
            data = {"category": category, "message": said["message"], "path": filename, "line": lineno}
            return "events" if send("warning", data, operation=category, level="warning") else "refused"
        except Exception:  # somebody else has called `showwarning`, with anything
            return "failed"
        finally:
            HERE.busy = False


def capture_warnings(**options: Any) -> WarningsCapture:
    """Make an event of each warning that Python shows, from now on.

    Args:
        **options: As for `WarningsCapture`.

    Returns:
        What undoes it: call its `stop()`, or use it as a context manager.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """
    return WarningsCapture(**options).start()
