"""What the standard library's logging says, as events of type "log".

What belongs here: the two ways in which a record becomes an event: a handler to configure like any other, and a capture
that changes no configuration. What does not: warnings (warning_events.py), and errors that nobody logs (uncaught.py).

Logging about logging has no end, so a record is left out, and counted, when it is made while its thread makes an event
of another one; when it comes from streamll's own loggers; and on threads whose events are cut off, where a sink's
worker and the client libraries under it log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import thread_time_ns
from typing import Any, ClassVar
from weakref import ref

from streamll.context import current
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import DEBUG
from streamll.monitors.budget import TRACER, budget
from streamll.monitors.config import read_options
from streamll.monitors.hooks import Hook, Tool
from streamll.monitors.outlet import send
from streamll.options import OptionSet, option
from streamll.spans import describe_error, describe_stack
from streamll.tally import Tally

_PLAIN = vars(logging.LogRecord("", 0, "", 0, "", (), None))
_STANDARD = frozenset(_PLAIN) | {"message", "asctime", "taskName"}
"""The attributes of a record that are not `extra`: its own, and those that a formatter adds."""

_WORDS = (
    (logging.CRITICAL, "critical"),
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
)
_LEVEL_NAMES = frozenset({"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"})

_MEASURED = 32
"""The cost of one record of so many is measured."""

_WARNINGS_LOGGER = "py.warnings"


class _Here(threading.local):
    """What this thread is doing."""

    busy = False
    """Making an event of a record or a warning."""
    told: ref[logging.LogRecord] | None = None
    """The last record that became an event: where two of us see it, it becomes one only."""
    shown_warnings = 0
    """So many warnings, which are events already, are being shown the host's way, which may be to log them."""


HERE = _Here()


def level_word(number: int) -> str:
    """Return the level of an event for that of a record, which may lie between the usual ones."""
    for least, word in _WORDS:
        if number >= least:
            return word
    return "debug"


def _name_of(record: logging.LogRecord) -> str:
    return record.name if type(record.name) is str else ""  # one that was made of a dict may have none


@dataclass(frozen=True)
class LoggingOptions(OptionSet):
    """What `LoggingCapture` can be told."""

    owner: ClassVar[str] = "logging "

    level: str = option("INFO", "Records below it become no events: a name that logging knows, or a number.")
    logger: str = option("", "Only what this logger and those below it handle; empty: what any does.")
    max_message: int = option(4000, "Characters of a message that are kept.", at_least=1, at_most=1_000_000)
    max_extra: int = option(32, "Attributes given as `extra` that are kept.", at_least=0, at_most=1000)

    def check(self) -> None:
        """Refuse a level that logging does not know."""
        if type(self.number) is not int:
            raise ConfigurationError(f"logging option level={self.level!r}: must be the name of a level, or a number")

    @property
    def number(self) -> int:
        """The level as logging counts it; no number when there is no such level."""
        if self.level.isdecimal():
            return int(self.level)
        found: int = logging.getLevelName(self.level)
        return found if type(found) is int else logging.getLevelName(self.level.upper())


@dataclass(frozen=True)
class LoggingStats:
    """What became of the records that were seen.

    Attributes:
        events: So many became events.
        left_out: So many did not, by reason: `reentrant` (made while an event was made), `own` (of streamll's loggers),
            `muted` (on a thread whose events are cut off), `twice` (an event already, by another handler or as a
            warning), `filtered` (by the handler's own filters), `refused` (by the budget or all sinks), `failed`.
        unformatted: Events whose message could not be put together: it stands there without its arguments.
        cut: Messages, stacks and sets of extra attributes that were shortened.
    """

    events: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    unformatted: int = 0
    cut: int = 0


_REASONS = ("reentrant", "own", "muted", "twice", "filtered", "refused", "failed")


class _Reader:
    """Makes events of records, within bounds."""

    def __init__(self, max_message: int, max_extra: int) -> None:
        self._max_message = max_message
        self._max_extra = max_extra
        self._seen = 0
        self.tally = Tally()

    def take(self, record: logging.LogRecord) -> None:
        """Make an event of one record, or count why not; never raises."""
        if hub.active:
            self.tally.add(self._take(record))

    def _take(self, record: logging.LogRecord) -> str:
        here = HERE
        if here.busy:
            return "reentrant"
        try:
            name = _name_of(record)
            if name == "streamll" or name.startswith("streamll."):
                return "own"
            if here.told is not None and here.told() is record:
                return "twice"
            if here.shown_warnings and name == _WARNINGS_LOGGER:
                return "twice"
            if current().muted:
                return "muted"
            self._seen += 1
            began = 0 if self._seen % _MEASURED else thread_time_ns()
            here.busy = True
            try:
                taken = self._send(record, name)
            finally:
                here.busy = False
            if began:
                budget.costs.charge(TRACER, (thread_time_ns() - began) * _MEASURED)
            if not taken:
                return "refused"
            here.told = ref(record)
            return "events"
        except Exception:  # a record that came from elsewhere, or whose attributes somebody replaced
            return "failed"

    def _send(self, record: logging.LogRecord, name: str) -> bool:
        level = level_word(record.levelno)
        data: dict[str, Any] = {"message": self._message(record), "path": record.pathname, "line": record.lineno}
        if type(record.msg) is str and type(record.args) in (tuple, dict) and record.args:
            data["template"] = self._cut(record.msg)
        data["thread"] = record.threadName
        if task := getattr(record, "taskName", None):
            data["task"] = task
        if type(record.levelname) is str and record.levelname not in _LEVEL_NAMES:
            data["level_name"] = record.levelname
        if record.exc_info or record.exc_text:
            self._put_error(record, data)
        if type(record.stack_info) is str:
            data["stack"] = self._cut(record.stack_info)
        if len(record.__dict__) > len(_PLAIN):
            self._put_extra(record, data)
        return bool(
            send(
                "log",
                data,
                timestamp=int(record.created * 1e9),
                operation=name,
                level=level,
                priority=DEBUG if level == "debug" else "",
                module_name=name,
                method_name=record.funcName or "",
            )
        )

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return self._cut(record.getMessage())
        except Exception:  # arguments that do not fit, or whose own code failed
            self.tally.add("unformatted")
            return self._cut(record.msg) if type(record.msg) is str else f"<{type(record.msg).__name__}>"

    def _put_error(self, record: logging.LogRecord, data: dict[str, Any]) -> None:
        found: Any = record.exc_info
        if type(found) is tuple and len(found) == 3 and isinstance(found[1], BaseException):
            stack, _, _ = describe_stack(found[2])
            data["error"] = {**describe_error(found[1]), "stack": stack}
        elif type(record.exc_text) is str:  # it came from elsewhere, as text
            data["error"] = {"message": self._cut(record.exc_text)}

    def _put_extra(self, record: logging.LogRecord, data: dict[str, Any]) -> None:
        found = list(record.__dict__.items())
        extra = [(key, value) for key, value in found if type(key) is str and key not in _STANDARD]
        if len(extra) > self._max_extra:
            self.tally.add("cut")
        if extra:
            data["extra"] = dict(extra[: self._max_extra])

    def _cut(self, text: str) -> str:
        if len(text) <= self._max_message:
            return text
        self.tally.add("cut")
        return text[: self._max_message] + "..."

    def stats(self) -> LoggingStats:
        """Return what became of the records."""
        counts = self.tally.read()
        return LoggingStats(
            events=counts.get("events", 0),
            left_out={reason: counts[reason] for reason in _REASONS if reason in counts},
            unformatted=counts.get("unformatted", 0),
            cut=counts.get("cut", 0),
        )


class LoggingHandler(logging.Handler):
    """A handler that makes an event of each record: event_type "log".

    Its `operation` and `module_name` are the logger's name, its `method_name` the function; its data has `message`,
    `path`, `line`, `thread`, `task`, `template` (the message before its arguments), `error` (type, message and stack of
    the exception) and `extra`, as far as there are any. Messages are formatted only where an event comes of them, and as
    logging does it; formatters are not asked. Records of level DEBUG have the priority "debug".

    It has no lock, never waits and never raises, whatever a record's arguments do.

    For `logging.config`, or `logger.addHandler(...)`. A root logger with a handler is left alone by
    `logging.basicConfig`, and prints nothing by itself: where the program's logging is not configured, `capture_logging`
    hears as much and changes nothing.

    Args:
        level: Records below it become no events.
        max_message: Characters of a message that are kept.
        max_extra: Attributes given as `extra` that are kept.

    Raises:
        ConfigurationError: When a bound is not allowed.
    """

    def __init__(self, level: int | str = logging.NOTSET, *, max_message: int = 4000, max_extra: int = 32) -> None:
        super().__init__(level)
        options = LoggingOptions(max_message=max_message, max_extra=max_extra)
        self._reader = _Reader(options.max_message, options.max_extra)

    def createLock(self) -> None:  # noqa: N802  # logging's name
        """Have none: nothing here needs one, and a record that is made inside another could wait for it."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Make an event of a record that the handler's filters, if it has any, let pass."""
        try:
            passed: Any = self.filter(record)
        except Exception:  # it may have been there to keep something secret
            passed = False
        if not passed:
            self._reader.tally.add("filtered")
            return False
        self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Make an event of a record."""
        self._reader.take(record)

    def stats(self) -> LoggingStats:
        """Return what became of the records."""
        return self._reader.stats()


CALLS = Hook(logging.Logger, "callHandlers")
"""Where a logger hands a record to the handlers, after its level and filters have let it pass."""


class LoggingCapture(Tool):
    """Makes an event of each record that the program's loggers handle, and changes nothing of their configuration.

    It has no handler: one on the root logger would keep `logging.basicConfig` from working, and a program without any
    from having its warnings printed. So it sees also what loggers that do not propagate handle. A logger's own level
    decides first: what that leaves out is no record.

    The events are those of `LoggingHandler`.

    Args:
        config: Options as a mapping or `LoggingOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """

    def __init__(self, config: Mapping[str, Any] | LoggingOptions | None = None, **options: Any) -> None:
        self.options = read_options(LoggingOptions, config, options)
        self._level = self.options.number
        self._below = f"{self.options.logger}."
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget the numbers."""
        self._reader = _Reader(self.options.max_message, self.options.max_extra)

    def stats(self) -> LoggingStats:
        """Return what became of the records since the last `reset`."""
        return self._reader.stats()

    def report(self) -> dict[str, Any]:
        """Return the numbers as a dict."""
        stats = self.stats()
        left_out = dict(stats.left_out)
        return {"events": stats.events, "left_out": left_out, "unformatted": stats.unformatted, "cut": stats.cut}

    def _begin(self) -> None:
        CALLS.add(self._see)

    def _end(self) -> None:
        CALLS.remove(self._see)

    def _see(self, _logger: logging.Logger, record: logging.LogRecord) -> None:
        try:
            wanted = self.options.logger
            if record.levelno < self._level:
                return
            if wanted and not f"{_name_of(record)}.".startswith(self._below):
                return
        except Exception:  # as in `_Reader`
            self._reader.tally.add("failed")
        else:
            self._reader.take(record)


def capture_logging(level: int | str = "INFO", logger: str | None = None, **options: Any) -> LoggingCapture:
    """Make an event of each record that the program logs, from now on.

    Args:
        level: Records below it become no events: a number, or a name that logging knows.
        logger: Only what this logger and those below it handle; None: what any does.
        **options: As for `LoggingCapture`.

    Returns:
        What undoes it: call its `stop()`, or use it as a context manager.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.

    Example:
        streamll.configure(sinks=["redis://localhost:6379/0"])
        streamll.capture_logging("WARNING")
    """
    return LoggingCapture(level=str(level), logger=logger or "", **options).start()
