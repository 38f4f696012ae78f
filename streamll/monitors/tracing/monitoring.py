"""Automatic tracing by `sys.monitoring`, from Python 3.12 on: code objects tell when they start and end.

What belongs here: the tool id, the events, and the spans of the calls that are under way. What does not: which
functions (places.py). Generators are not traced here but wrapped: between two steps a span is not current, and not
every way in which a generator ends is told.

Nothing is told of code that is not wanted, but for one thing: that an exception leaves a function can be had for all
functions or for none. That costs a tenth of a microsecond for each frame that an exception leaves.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

from streamll.hub import hub
from streamll.monitors.tracing.rate import Rate
from streamll.monitors.tracing.wrapping import MEASURE_EVERY, MeasuredSpan
from streamll.spans import Span
from streamll.tracing import CallSpan

TOOL_NAME = "streamll"

TOOL_IDS = (3, 4)
"""Those that Python has not set aside for debuggers, coverage, profilers and optimisers."""

STRAYS_BOUND = 1000
"""While a paused function has calls under way, it tells of the end of each call. After so many of calls that are not
traced, those under way are given up, so that it is silent."""


class _Watched:
    """One function that is traced: its code, and what its spans say."""

    __slots__ = ("code", "heard", "method_name", "module_name", "operation", "rate", "strays")

    def __init__(self, code: CodeType, module: str, name: str, rate: Rate) -> None:
        self.code = code
        self.rate = rate
        self.heard = 0  # the events that it tells of
        self.strays = 0
        self.module_name = module
        self.method_name = self.operation = name


class _CallSpan(CallSpan):
    """The span of a call that is told of from within it."""

    __slots__ = ()

    def _enter_frame(self, frames: dict[int, Any], frame: FrameType | None) -> None:
        super()._enter_frame(frames, None if frame is None else frame.f_back)


class _MeasuredCallSpan(MeasuredSpan):
    __slots__ = ()

    def _enter_frame(self, frames: dict[int, Any], frame: FrameType | None) -> None:
        outer = None if frame is None else frame.f_back
        super()._enter_frame(frames, None if outer is None else outer.f_back)


class Monitoring:
    """Has functions tell of their calls.

    Args:
        priority: That of the spans.

    Attributes:
        unfinished: Calls whose span was ended before they were.
    """

    def __init__(self, priority: str) -> None:
        self.unfinished = 0
        self._priority = priority
        self._watched: dict[int, _Watched] = {}
        self._open: dict[int, tuple[_Watched, Span]] = {}
        self._tool: int | None = None
        self._api: Any = getattr(sys, "monitoring", None)

    def start(self) -> bool:
        """Begin; returns whether that can be done here: on Python 3.12 or later, with a tool id free."""
        api = self._api
        if api is None:
            return False
        for tool in TOOL_IDS:
            try:
                api.use_tool_id(tool, TOOL_NAME)
            except ValueError:
                continue
            self._tool = tool
            events = api.events
            api.register_callback(tool, events.PY_START, self._started)
            api.register_callback(tool, events.PY_RETURN, self._returned)
            api.register_callback(tool, events.PY_UNWIND, self._unwound)
            self._both = events.PY_START | events.PY_RETURN
            return True
        return False

    def __contains__(self, code: CodeType) -> bool:
        """Whether a function's code is watched already."""
        return id(code) in self._watched

    def __len__(self) -> int:
        """How many codes are watched."""
        return len(self._watched)

    def add(self, code: CodeType, module: str, name: str, rate: Rate) -> None:
        """Trace a function.

        Args:
            code: Its code.
            module, name: What its spans name: its module, and its qualified name there.
            rate: The bound on how often.
        """
        if not self._watched:
            self._api.set_events(self._tool, self._api.events.PY_UNWIND)
        self._watched[id(code)] = watched = _Watched(code, module, name, rate)
        self._listen(watched, self._both)

    def resume(self) -> None:
        """Trace again what is paused no longer."""
        for watched in list(self._watched.values()):
            if not watched.rate.paused and watched.heard != self._both:
                watched.strays = 0
                self._listen(watched, self._both)

    def stop(self) -> None:
        """End it; the spans of calls that are under way end now."""
        api, tool = self._api, self._tool
        if tool is None:
            return
        self._tool = None
        api.set_events(tool, api.events.NO_EVENTS)
        for watched in self._watched.values():
            api.set_local_events(tool, watched.code, api.events.NO_EVENTS)
        for event in (api.events.PY_START, api.events.PY_RETURN, api.events.PY_UNWIND):
            api.register_callback(tool, event, None)
        api.free_tool_id(tool)
        self._watched.clear()
        self._give_up(None)

    def _listen(self, watched: _Watched, events: int) -> None:
        watched.heard = events
        if self._tool is not None:
            self._api.set_local_events(self._tool, watched.code, events)

    def _started(self, code: CodeType, _: int) -> None:
        """A function begins. What is called here tells of nothing, and raises nothing into the function."""
        watched = self._watched.get(id(code))
        if watched is None or not hub.active:
            return
        try:
            rate = watched.rate
            if not rate.admits():
                self._pause(watched)
                return
            span = (_CallSpan if rate.calls % MEASURE_EVERY else _MeasuredCallSpan)(watched)
            span._priority = self._priority
            span.__enter__()
            if span._token is not None:
                self._open[id(sys._getframe(1))] = (watched, span)
                if self._tool is None:  # it was stopped meanwhile
                    self._give_up(watched)
        except Exception:  # noqa: S110  # a stack too full for these calls
            pass

    def _returned(self, code: CodeType, _: int, __: object) -> None:
        self._ended(code, id(sys._getframe(1)), None)

    def _unwound(self, code: CodeType, _: int, error: BaseException) -> None:
        if id(code) in self._watched:
            self._ended(code, id(sys._getframe(1)), error)

    def _ended(self, code: CodeType, frame: int, error: BaseException | None) -> None:
        try:
            watched, span = self._open.pop(frame, _NOTHING)
            if span is not None and watched is not None and watched.code is code:
                span.__exit__(None if error is None else type(error), error, None)
                return
            stray = self._watched.get(id(code))
            if stray is not None and stray.rate.paused:
                stray.strays += 1
                if stray.strays == 1 or stray.strays > STRAYS_BOUND:
                    self._pause(stray)
        except Exception:  # noqa: S110  # as above
            pass

    def _pause(self, watched: _Watched) -> None:
        """Be silent about a function; about its ends only, while any of its calls is under way."""
        if watched.strays > STRAYS_BOUND:
            self._give_up(watched)
        under_way = any(each is watched for each, _ in list(self._open.values()))
        self._listen(watched, self._api.events.PY_RETURN if under_way else self._api.events.NO_EVENTS)

    def _give_up(self, watched: _Watched | None) -> None:
        """End the spans of the calls of a function, or of all, that are under way."""
        for frame, (whose, span) in list(self._open.items()):
            if (watched is None or whose is watched) and self._open.pop(frame, None) is not None:
                self.unfinished += 1
                span.set(unfinished=True)
                span.__exit__(None, None, None)


_NOTHING: tuple[None, None] = (None, None)
