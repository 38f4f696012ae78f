"""Spans and errors: what turns a piece of the program's run into an event.

What belongs here: the one way in which events take up the scope they are made in, `span`, and `capture_exception`. What
does not: the decorator (tracing.py), spans over streams and automatic ones (monitors), and what becomes of an event once
the hub has it.

Two rules hold for all of it. Nothing is ever raised into the program, and an error that passes through leaves as it
came. And nothing of an error is kept but words: an exception kept is a traceback kept is every frame's locals kept.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Token
from itertools import repeat
from time import perf_counter_ns, time_ns
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from streamll.context import SCOPE, Scope, current, leave
from streamll.hub import hub
from streamll.ids import new_event_id, new_execution_id, new_span_id
from streamll.models import NO_TAGS

if TYPE_CHECKING:
    from typing_extensions import Self

MESSAGE_BOUND = 2000
"""Characters of an error's message that are kept."""

STACK_BOUND = 50
"""Frames of an error's traceback that are kept: those nearest to where it was raised."""

FRAMES_BOUND = 100_000
"""Frames at most that spans are entered in while stacks are sampled; what is entered beyond is told apart by none."""

_GENERATOR = 0x20 | 0x200
"""The flags of the code of a generator and of an asynchronous one (`inspect.CO_GENERATOR`, `CO_ASYNC_GENERATOR`)."""

# The ways in which asyncio and trio end a task, by name, so that neither has to be imported to know them.
_CANCELLATIONS = frozenset({"CancelledError", "Cancelled"})

# Looked up on `type` itself: a metaclass may answer for its classes with code of its own.
_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__

_forks = 0

_event_prefix = new_execution_id()[:16]
"""With a span's id behind it, the id of the event that the span makes: no second number need be drawn."""


def surroundings(data: Any) -> tuple[Scope | None, dict[Any, Any]]:
    """Return what an event made now belongs to, and its data with what is bound there.

    Args:
        data: A dict, which goes over the bound attributes; anything else goes under the key "data".

    Returns:
        The scope, None where events are cut off; and the data, which may be the given dict itself.
    """
    scope = current()
    if type(data) is not dict:
        data = _as_dict(data)
    if scope.attributes:
        data = {**scope.attributes, **data}
    return None if scope.muted else scope, data


def _as_dict(data: Any) -> dict[Any, Any]:
    """A dict or a subclass as a dict, read through the base class: a mapping of another kind would run code of its own."""
    if data is None:
        return {}
    if issubclass(type(data), dict):
        return dict(dict.items(data))
    return {"data": data}


def hand_over(scope: Scope, event_type: str, data: dict[Any, Any], **fields: Any) -> str | None:
    """Give an event to the hub from a place that must not raise.

    The one error to expect is a full buffer whose strategy is `raise_error`: the sink has counted that refusal, and it
    is for `emit` to raise it, not for the end of a span, where it would take the place of the program's own error.

    Returns:
        The event's id; None when no sink accepted it.
    """
    event_id = new_event_id()
    try:
        taken = hub.take(
            event_type,
            event_id,
            scope.execution_id,
            scope.span_id,
            scope.parent_span_id,
            fields.get("timestamp") or time_ns(),
            fields.get("module_name", ""),
            fields.get("method_name", ""),
            fields.get("operation", ""),
            fields.get("level", ""),
            data,
            NO_TAGS,
            fields.get("priority", ""),
        )
    except Exception:  # of which the sink's numbers tell
        return None
    return event_id if taken else None


def describe_error(error: BaseException) -> dict[str, Any]:
    """Put an error into words: its type's qualified name, and its message, bounded."""
    kind = type(error)
    name, module = _qualname_of(kind), _module_of(kind)
    if isinstance(module, str) and module != "builtins":
        name = f"{module}.{name}"
    try:
        message = str(error)
    except Exception:  # the text is made by code of the program's own
        message = f"<{name}.__str__ raised>"
    if len(message) > MESSAGE_BOUND:
        message = message[:MESSAGE_BOUND] + "..."
    return {"type": name, "message": message}


class Span:
    """What `streamll.span` returns: see there.

    Args:
        operation: The name that a person would look for.
        **attributes: Whatever is known at the start, under any name.
    """

    __slots__ = (
        "_announced",
        "_around",
        "_attributes",
        "_began",
        "_forks",
        "_frame",
        "_operation",
        "_priority",
        "_scope",
        "_timestamp",
        "_token",
    )

    _module_name = ""
    _method_name = ""
    _level = "info"

    def __init__(self, operation: str, /, **attributes: Any) -> None:
        self._operation = operation
        self._attributes = attributes
        self._announced = False
        self._priority = ""
        self._scope: Scope | None = None
        self._token: Token[Scope] | None = None
        self._frame = 0

    @property
    def operation(self) -> str:
        """The name it was given."""
        return self._operation

    @property
    def span_id(self) -> str:
        """The span's id: 16 hex digits; empty before the span is entered, and when nothing is recorded."""
        return "" if self._scope is None else self._scope.span_id

    @property
    def execution_id(self) -> str:
        """The id of the execution it belongs to; empty before the span is entered, and when nothing is recorded."""
        return "" if self._scope is None else self._scope.execution_id

    def announce(self) -> Self:
        """Make an event at the start too, of event_type "span_start": `with streamll.span("index").announce():`."""
        self._announced = True
        return self

    def prioritize(self, priority: str) -> Self:
        """Say what gives way first under pressure: "debug" does, "critical" last; "normal" is the default."""
        self._priority = priority
        return self

    def set(self, /, **attributes: Any) -> None:
        """Add or replace attributes; those set after the end are not seen any more."""
        self._attributes.update(attributes)

    def event(self, name: str, /, **data: Any) -> None:
        """Emit an event that belongs to this span, wherever it is called.

        Args:
            name: The event's type.
            **data: What is known about it.
        """
        if not hub.active:
            return
        scope, data = surroundings(data)
        if scope is not None:
            hand_over(self._scope or scope, name, data, operation=self._operation)

    def __call__(self, *_: object) -> NoReturn:
        """Refuse to be a decorator: one span is one stretch of time, and a function may be called again.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a span is no decorator; write @streamll.trace(...)")

    def __enter__(self) -> Self:
        if hub.active and self._token is None:
            outer = SCOPE.get()
            if outer.instead is not None:
                outer = current()
            if not outer.muted:
                self._scope = scope = Scope(
                    outer.execution_id or new_execution_id(),
                    new_span_id(),
                    outer.span_id,
                    outer.attributes,
                    False,
                    outer.trace_flags,
                    outer.trace_state,
                )
                self._forks = _forks
                self._timestamp = time_ns()
                if self._announced:
                    self._announce(scope)
                if hub.frames is not None:
                    self._enter_frame(hub.frames, sys._getframe(1))
                self._began = perf_counter_ns()
                self._token = SCOPE.set(scope)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        token = self._token
        scope = self._scope
        if token is None or scope is None:
            return
        ended = perf_counter_ns()
        self._token = None
        if SCOPE.get() is scope:  # as nearly always: no need to look for more
            try:
                SCOPE.reset(token)
            except ValueError:
                leave(scope, token)
        else:
            leave(scope, token)
        if self._frame:
            self._leave_frame()
        self._end(ended, exc)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _begin(self) -> Scope | None:
        """Begin, and return the scope to run in, which is not made current; None where nothing is recorded."""
        self.__enter__()
        token, self._token = self._token, None
        if token is None:
            return None
        SCOPE.reset(token)
        if self._frame:
            self._leave_frame()
        return self._scope

    def _announce(self, scope: Scope) -> None:
        data = {**scope.attributes, **self._attributes}
        names = {
            "module_name": self._module_name,
            "method_name": self._method_name,
            "operation": self._operation,
        }
        hand_over(scope, "span_start", data, **names, level="info", timestamp=self._timestamp, priority=self._priority)

    def _end(self, ended: int, error: BaseException | None) -> None:
        """Report the span, begun by `_begin`; its scope is not current any more.

        Args:
            ended: When, by `perf_counter_ns`.
            error: What ended it, if anything did.
        """
        scope = self._scope
        if scope is None or not hub.active or self._forks != _forks:
            return  # a fork copies open spans; they are the parent's to report
        try:
            bound = scope.attributes
            data = {**bound, **self._attributes} if bound else self._attributes.copy()
            data["duration_ns"] = ended - self._began
            hub.take(
                "span",
                _event_prefix + scope.span_id,
                scope.execution_id,
                scope.span_id,
                scope.parent_span_id,
                self._timestamp,
                self._module_name,
                self._method_name,
                self._operation,
                self._level if error is None else _outcome(error, data),
                data,
                NO_TAGS,
                self._priority,
            )
        except Exception:  # noqa: S110  # as in `hand_over`, or a stack too full for these calls
            pass

    def _enter_frame(self, frames: dict[int, Any], frame: FrameType | None) -> None:
        """Tell who samples stacks that what runs inside a frame, up to `_leave_frame`, is this span's."""
        frame = _working(frame)
        if frame is not None and len(frames) < FRAMES_BOUND:
            self._frame = key = id(frame)
            self._around = frames.get(key)
            frames[key] = self

    def _leave_frame(self) -> None:
        key, self._frame = self._frame, 0
        frames = hub.frames
        if frames is None or frames.get(key) is not self:
            return  # what was entered later in the same frame is still open, and finds its way out through this one
        around, self._around = self._around, None
        while isinstance(around, Span) and around._frame != key:
            around = around._around
        if around is None:
            frames.pop(key, None)
        else:
            frames[key] = around


class _NoSpan(Span):
    """What `span` returns while nothing is configured to receive events: one object for all, which nothing changes."""

    __slots__ = ()

    def announce(self) -> Self:
        return self

    def prioritize(self, priority: str) -> Self:
        return self

    def set(self, /, **attributes: Any) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


NO_SPAN = _NoSpan("")
# Entering and leaving it takes one call each of what is written in C, at half the price of a function: the first returns
# the span, time and again; the second takes anything, and returns what is false.
setattr(_NoSpan, "__enter__", staticmethod(repeat(NO_SPAN).__next__))  # noqa: B010  # mypy knows these as methods
setattr(_NoSpan, "__exit__", staticmethod("".format))  # noqa: B010  # as above

_new_span: Callable[[type[Span]], Span] = object.__new__


def span(operation: str, /, **attributes: Any) -> Span:
    """A piece of work with a beginning and an end: `with streamll.span("retrieve", k=5) as span:`, or `async with`.

    It makes one event, when it ends: event_type "span", the start as its timestamp, the attributes and `duration_ns`
    (monotonic) as its data. An error that ends the span is described under `error` in the data, makes the level
    "error", and goes on untouched. A cancelled task (`cancelled: true`) or a closed generator (`closed: true`) is not
    an error. What is emitted inside belongs to the span; spans inside are its children, also in asyncio tasks that
    are created inside. A span outside of any execution begins one.

    Once ended it may be entered anew, as a new span. While nothing is configured to receive events, this returns what
    does nothing, and stays so: make a span where it is entered.

    Args:
        operation: The name that a person would look for.
        **attributes: Whatever is known at the start, under any name.
    """
    if not hub.active:
        return NO_SPAN
    # As `Span(operation, **attributes)` would do it, which would copy the attributes once more.
    made = _new_span(Span)
    made._operation = operation
    made._attributes = attributes
    made._announced = False
    made._priority = ""
    made._scope = made._token = None
    made._frame = 0
    return made


_ENTERING = frozenset({"__enter__", "__aenter__", "enter_context", "enter_async_context"})


def _working(frame: FrameType | None) -> FrameType | None:
    """The frame that a span is entered for: not a helper's, which enters it and is gone."""
    while frame is not None:
        outer = frame.f_back
        helps = frame.f_code.co_name in _ENTERING or (
            outer is not None and frame.f_code.co_flags & _GENERATOR and outer.f_code.co_name in _ENTERING
        )
        if not helps:
            break
        frame = outer
    return frame


def _outcome(error: BaseException, data: dict[str, Any]) -> str:
    """Put into a span's data how it ended; returns the level of that."""
    if isinstance(error, GeneratorExit):
        data["closed"] = True
        return "info"
    if not isinstance(error, Exception) and any(kind.__name__ in _CANCELLATIONS for kind in type(error).__mro__):
        data["cancelled"] = True
        return "info"
    data["error"] = describe_error(error)
    return "error"


def capture_exception(error: BaseException | None = None, /, **data: Any) -> str | None:
    """Emit an error as an event: event_type "error", with type, message and stack under `error` in its data.

    Args:
        error: The error; the one that is being handled when None.
        **data: What else is known about it.

    Returns:
        The event's id; None when there is no error, or when no sink accepted the event.

    Example:
        try:
            answer(question)
        except ModelError:
            streamll.capture_exception(question=question)
            raise
    """
    if not hub.active:
        return None
    if error is None:
        error = sys.exc_info()[1]
        if error is None:
            return None
    try:
        stack, module_name, method_name = describe_stack(getattr(error, "__traceback__", None))
        scope, data = surroundings({**data, "error": {**describe_error(error), "stack": stack}})
        if scope is None:
            return None
        return hand_over(scope, "error", data, level="error", module_name=module_name, method_name=method_name)
    except Exception:  # as in `hand_over`, or a stack too full for these calls
        return None


def describe_stack(traceback: TracebackType | None) -> tuple[list[str], str, str]:
    """Put a traceback into words: "file:line in function" for each frame, and the module and function that raised."""
    kept: deque[TracebackType] = deque(maxlen=STACK_BOUND)
    depth = 0
    while traceback is not None:
        kept.append(traceback)
        depth += 1
        traceback = traceback.tb_next
    if not kept:
        return [], "", ""
    stack = [f"({depth - len(kept)} outer frames left out)"] if depth > len(kept) else []
    for entry in kept:
        code = entry.tb_frame.f_code
        stack.append(f"{code.co_filename}:{entry.tb_lineno} in {_name_of(code)}")
    raised_in = kept[-1].tb_frame
    module_name = raised_in.f_globals.get("__name__")
    return stack, module_name if isinstance(module_name, str) else "", _name_of(raised_in.f_code)


def _name_of(code: CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)  # Python 3.11 and later know the qualified name
    return name


def _count_fork() -> None:
    global _forks, _event_prefix
    _forks += 1
    _event_prefix = new_execution_id()[:16]


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_count_fork)
