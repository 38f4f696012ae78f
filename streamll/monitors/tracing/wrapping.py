"""Automatic tracing by wrapping: what stands in modules and classes is replaced, and put back at the end.

What belongs here: replacing and putting back. What does not: which functions (places.py), and what a wrapped one does
(tracing.py): it is what `streamll.trace` makes of it.

It reaches calls that look the function up where it stands. A copy that another module took before by `from pkg import
f`, or one in a registry, goes on without a span; one that is taken meanwhile is the wrapper, which makes no span any
more once tracing has stopped.
"""

from __future__ import annotations

from time import thread_time_ns
from types import ModuleType
from typing import TYPE_CHECKING, Any

from streamll.monitors.budget import TRACER, budget
from streamll.monitors.tracing.places import Place, dict_of, names_in
from streamll.monitors.tracing.rate import Rate
from streamll.spans import NO_SPAN, Span
from streamll.tracing import Call, CallSpan, wrap

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

MEASURE_EVERY = 64
"""One span of so many is measured, and its cost charged for all of them."""


class MeasuredSpan(CallSpan):
    """A span that charges what it costs, for MEASURE_EVERY of its kind."""

    __slots__ = ("_spent",)

    def __enter__(self) -> Self:
        began = thread_time_ns()
        super().__enter__()
        self._spent = thread_time_ns() - began
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        began = thread_time_ns()
        super().__exit__(exc_type, exc, traceback)
        budget.costs.charge(TRACER, (self._spent + thread_time_ns() - began) * MEASURE_EVERY)


class MeteredCall(Call):
    """What makes the spans of one function, as often as its rate lets it.

    Attributes:
        rate: The bound on how often.
    """

    __slots__ = ("_priority", "paused", "rate")

    def __init__(self, function: Any, rate: Rate, priority: str) -> None:
        super().__init__(function, "", False, False, {})
        self.rate = rate
        self._priority = priority
        self.paused = False

    def span(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Span:
        """The span of one run; one that does nothing when there were too many."""
        rate = self.rate
        if not rate.admits():
            self.paused = True
            return NO_SPAN
        kind = CallSpan if rate.calls % MEASURE_EVERY else MeasuredSpan
        return kind(self).prioritize(self._priority)


class Wrapping:
    """Replaces functions where they stand.

    Args:
        priority: That of the spans.
    """

    def __init__(self, priority: str) -> None:
        self._priority = priority
        self._replaced: dict[tuple[int, str], tuple[Place, Any]] = {}
        self._calls: dict[int, MeteredCall] = {}

    def add(self, place: Place, rate: Rate) -> None:
        """Replace what stands in a place.

        Args:
            place: The place.
            rate: The bound on how often.
        """

        def call_of(function: Any) -> MeteredCall:
            call = MeteredCall(function, rate, self._priority)
            self._calls[id(call)] = call
            return call

        value = place.value
        if type(value) is property:
            parts: list[Any] = [value.fget, value.fset, value.fdel]
            parts = [wrap(each, call_of) if each is not None and _is_one_of(each, place) else each for each in parts]
            replacement: Any = property(parts[0], parts[1], parts[2], value.__doc__)
        else:
            replacement = wrap(value, call_of)
        _put(place, replacement)
        self._replaced[id(place.owner), place.name] = (place, replacement)

    def resume(self) -> None:
        """Trace again what is paused no longer."""
        for call in list(self._calls.values()):
            call.paused = call.rate.paused

    def stop(self) -> int:
        """Put everything back; returns how many places somebody else has changed since, which stay as they are."""
        changed = 0
        for place, replacement in self._replaced.values():
            if _names(place.owner).get(place.name) is replacement:
                _put(place, place.value)
            else:
                changed += 1
        for call in self._calls.values():
            call.paused = True  # for those who have taken a copy
        self._replaced.clear()
        self._calls.clear()
        return changed


def _is_one_of(function: object, place: Place) -> bool:
    return any(function is each for each in place.functions)


def _names(owner: ModuleType | type) -> Any:
    return dict_of(owner) if isinstance(owner, type) else names_in(owner)


def _put(place: Place, value: Any) -> None:
    if isinstance(place.owner, type):
        type.__setattr__(place.owner, place.name, value)  # whatever its metaclass would make of it
    else:
        names_in(place.owner)[place.name] = value
