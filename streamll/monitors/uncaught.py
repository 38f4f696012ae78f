"""Errors that nobody caught, as events of type "error": the main program's, threads', finalisers', and asyncio's.

What belongs here: seeing them where Python hands them to its hooks. What does not: errors that end a span (spans.py),
or that the program logs (logging_events.py). The host's hooks run as before, and print what they printed before.

asyncio's are those that reach a loop's exception handler: of callbacks, and of tasks whose result nobody asked for. Its
own handler logs them, whatever the kind of loop, so they are seen there; a loop with a handler of the program's is seen
by `watch_loop`. asyncio is never imported for that.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from time import monotonic
from types import BuiltinFunctionType, FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from streamll.context import current
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import CRITICAL
from streamll.monitors.config import read_options
from streamll.monitors.hooks import Hook, Tool
from streamll.monitors.logging_events import CALLS, HERE
from streamll.monitors.outlet import send
from streamll.monitors.rate import RateBound
from streamll.options import OptionSet, option
from streamll.spans import describe_error, describe_stack
from streamll.tally import Tally

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

MAIN, THREAD, UNRAISABLE, LOOP = KINDS = ("main", "thread", "unraisable", "loop")

_MESSAGE_BOUND = 500

_main = Hook(sys, "excepthook")
_threads = Hook(threading, "excepthook")
_unraisable = Hook(sys, "unraisablehook")


@dataclass(frozen=True)
class UncaughtOptions(OptionSet):
    """What `UncaughtCapture` can be told."""

    owner: ClassVar[str] = "uncaught "

    per_minute: int = option(
        600,
        "Errors that become events in a minute, at most; the one that ends the program always does.",
        at_least=1,
        at_most=1_000_000,
    )


@dataclass(frozen=True)
class UncaughtStats:
    """What became of the errors that nobody caught.

    Attributes:
        events: So many became events, by kind: `main`, `thread`, `unraisable`, `loop`.
        left_out: So many did not, by reason: `asked` (the program was asked to end: KeyboardInterrupt, SystemExit),
            `rate` (more than `per_minute`), `reentrant` (while its thread made an event of another), `twice` (by
            another tool of this kind), `muted` (on a thread whose events are cut off), `refused` (by all sinks),
            `failed`.
    """

    events: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


class UncaughtCapture(Tool):
    """Makes an event of each error that nobody caught: event_type "error".

    Its data has `error` (type, message, stack), `uncaught` (where: "main", "thread", "unraisable" or "loop"), `thread`,
    and a `message` where Python or asyncio has one. (asyncio's: unless the program has silenced the logger "asyncio".) The level is "error"; of the main program's it is "critical", and so
    is the priority: it is delivered with all else at the interpreter's exit.

    Args:
        config: Options as a mapping or `UncaughtOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """

    def __init__(self, config: Mapping[str, Any] | UncaughtOptions | None = None, **options: Any) -> None:
        self.options = read_options(UncaughtOptions, config, options)
        super().__init__()
        self._handlers: list[_Handler] = []
        self.reset()

    def reset(self) -> None:
        """Forget the numbers."""
        self._tally = Tally()
        self._rate = RateBound(self.options.per_minute)

    def stats(self) -> UncaughtStats:
        """Return what became of the errors since the last `reset`."""
        counts = self._tally.read()
        events = {kind: counts.pop(kind) for kind in KINDS if kind in counts}
        return UncaughtStats(events, counts)

    def report(self) -> dict[str, Any]:
        """Return the numbers as a dict."""
        return asdict(self.stats())

    def watch_loop(self, loop: AbstractEventLoop | None = None) -> None:
        """See also what reaches the exception handler that the program has given to a loop; `start` does so by itself
        where it is called in a running loop.

        Call it after `loop.set_exception_handler`. A loop without a handler of its own is seen anyway.

        Args:
            loop: The loop; the running one when None.

        Raises:
            ConfigurationError: When none is given and none runs.
        """
        loop = loop or running_loop()
        if loop is None:
            raise ConfigurationError("watch_loop() without a loop works only where one runs")
        before: Any = loop.get_exception_handler()
        if before is not None and not isinstance(before, _Handler):
            handler = _Handler(self, loop, before)
            self._handlers = [*(one for one in self._handlers if one.loop() is not None), handler]
            loop.set_exception_handler(handler)

    def _begin(self) -> None:
        _main.add(self._see_main)
        _threads.add(self._see_thread)
        _unraisable.add(self._see_unraisable)
        CALLS.add(self._see_record)
        if running_loop() is not None:
            self.watch_loop()

    def _end(self) -> None:
        _main.remove(self._see_main)
        _threads.remove(self._see_thread)
        _unraisable.remove(self._see_unraisable)
        CALLS.remove(self._see_record)
        handlers, self._handlers = self._handlers, []
        for handler in handlers:
            handler.remove()

    def _see_main(self, _: Any, error: Any, traceback: Any) -> None:
        self.take(MAIN, error, traceback)

    def _see_thread(self, args: Any) -> None:
        self.take(THREAD, args.exc_value, args.exc_traceback)

    def _see_unraisable(self, args: Any) -> None:
        said = args.err_msg or "Exception ignored in"
        self.take(UNRAISABLE, args.exc_value, args.exc_traceback, f"{said}: {_words(args.object)}")

    def _see_record(self, _logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.name == "asyncio" and record.exc_info and record.levelno >= logging.ERROR:
            _kind, error, traceback = record.exc_info
            message = record.msg.partition("\n")[0] if type(record.msg) is str else ""
            self.take(LOOP, error, traceback, message)

    def take(self, kind: str, error: Any, traceback: TracebackType | None, message: str = "") -> None:
        """Make an event of one error, or count why not; never raises."""
        if hub.active and isinstance(error, BaseException):
            self._tally.add(self._take(kind, error, traceback, message))

    def _take(self, kind: str, error: BaseException, traceback: TracebackType | None, message: str) -> str:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return "asked"
        if not self.leads:
            return "twice"
        if HERE.busy:
            return "reentrant"
        if current().muted:
            return "muted"
        if kind != MAIN and not self._rate.allows(monotonic()):
            return "rate"
        HERE.busy = True
        try:
            stack, module_name, method_name = describe_stack(traceback)
            data = {"error": {**describe_error(error), "stack": stack}, "uncaught": kind}
            data["thread"] = threading.current_thread().name
            if message:
                data["message"] = message[:_MESSAGE_BOUND]
            sent = send(
                "error",
                data,
                level="critical" if kind == MAIN else "error",
                priority=CRITICAL if kind == MAIN else "",
                module_name=module_name,
                method_name=method_name,
            )
            return kind if sent else "refused"
        except Exception:  # the interpreter is being taken down around us
            return "failed"
        finally:
            HERE.busy = False


class _Handler:
    """A loop's exception handler of the program's, seen by us; it holds neither the loop nor the tool."""

    def __init__(self, tool: UncaughtCapture, loop: AbstractEventLoop, before: Callable[..., object]) -> None:
        self._tool = ref(tool)
        self.loop = ref(loop)
        self._before = before
        self._removed = False

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> object:
        tool = self._tool()
        if tool is not None and not self._removed:
            error = context.get("exception")
            message = context.get("message")
            traceback = error.__traceback__ if isinstance(error, BaseException) else None
            tool.take(LOOP, error, traceback, message if type(message) is str else "")
        return self._before(loop, context)

    def remove(self) -> None:
        """Put back what was there before; if something else is there now, do nothing but call what was there before."""
        self._removed = True
        loop = self.loop()
        if loop is not None and loop.get_exception_handler() is self:
            loop.set_exception_handler(self._before)


def running_loop() -> AbstractEventLoop | None:
    """Return the loop that runs here, without importing asyncio for that."""
    asyncio = sys.modules.get("asyncio")
    found: AbstractEventLoop | None = None
    if asyncio is not None:
        try:
            found = asyncio.get_running_loop()
        except (RuntimeError, AttributeError):  # none runs, or asyncio is only being imported
            pass
    return found


def _words(thing: object) -> str:
    """What an error was ignored in, without any code of it."""
    if type(thing) is MethodType:
        thing = thing.__func__
    if type(thing) is FunctionType or type(thing) is BuiltinFunctionType:
        return thing.__qualname__
    return f"<{type(thing).__name__}>"


def capture_uncaught(**options: Any) -> UncaughtCapture:
    """Make an event of each error that nobody caught, from now on.

    Args:
        **options: As for `UncaughtCapture`.

    Returns:
        What undoes it: call its `stop()`, or use it as a context manager.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """
    return UncaughtCapture(**options).start()
