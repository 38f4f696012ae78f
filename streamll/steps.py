"""A span over what runs in steps: generators and iterators, synchronous and asynchronous.

What belongs here: making a span current for each step and only then, what a stream of items is measured by, and the loops
that drive a source step by step and leave it in all else what it was. What does not: who wants that (tracing.py for
decorated generators, monitors/stream_span.py for any iterable).

What happens between two steps is the consumer's: neither its time nor its events are the source's. So a span's
`duration_ns` is `waited_ns`, which the source took, and what the consumer took.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Token
from math import ceil
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from streamll.context import SCOPE, Scope
from streamll.hub import hub
from streamll.sketch import QuantileSketch
from streamll.spans import Span

if TYPE_CHECKING:
    from typing_extensions import Self

STALL = 1_000_000_000
"""Nanoseconds that an item other than the first must be waited for, to be told of as a stall."""

STALLS_BOUND = 20
"""Positions of stalls that are kept; all stalls are counted."""

PENDING_BOUND = 512
"""Gaps that are kept one by one; beyond, they are in the sketch."""

_SKETCH_ERROR = 0.005
_ALIKE = 1.004
"""Gaps that differ by less are put into the sketch as one number, so that the error is less than 1 % in all."""


class Steps:
    """The run of a source: makes the span's scope current for each step, and reports the span with its figures.

    The figures, in the span's data: `items`, how many came; `waited_ns`, what the source took in all, its end included;
    `first_item_ns`, what it took until the first; and of the gaps, which are what each later item was waited for:
    `gap_p50_ns` and `gap_p95_ns` (within 1 %), `gap_max_ns`, and `gap_max_at`, the item (the first is 1) before which
    that was; `stalls`, how many were `stall` or longer, and `stalled_at`, before which items (at most STALLS_BOUND).
    `characters` and `bytes` add up the items that are `str` or `bytes`.

    Args:
        span: What to begin and to report; None where nothing is to be recorded.
        stall: Nanoseconds.

    Attributes:
        items: How many came so far.
        inside: The scope that the next step runs in; None where nothing is recorded.
    """

    __slots__ = (
        "_asked",
        "_bytes",
        "_characters",
        "_first",
        "_gaps",
        "_longest",
        "_longest_at",
        "_sketch",
        "_span",
        "_stall",
        "_stalled_at",
        "_stalls",
        "_step",
        "_token",
        "_waited",
        "inside",
        "items",
    )

    def __init__(self, span: Span | None, stall: int = STALL) -> None:
        self.items = 0
        self.inside: Scope | None = None
        self._token: Token[Scope] | None = None
        if span is None:
            return
        self._span = span
        self._stall = stall
        self._asked = self._step = self._waited = self._first = self._longest = self._longest_at = 0
        self._characters = self._bytes = self._stalls = 0
        self._stalled_at: list[int] = []
        self._gaps = array("q")
        self._sketch: QuantileSketch | None = None
        self.inside = span._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.inside is not None:
            ended = perf_counter_ns()
            try:
                self._span.set(**self._figures())
            except Exception:  # noqa: S110  # a stack too full for these calls: the program's own error goes on
                pass
            self.inside = None
            self._span._end(ended, error)

    def resume(self) -> None:
        """Before a step: go on in the scope that the last one left off in, such as within a block of the body's own."""
        if self.inside is not None:
            if hub.frames is not None:
                self._span._enter_frame(hub.frames, sys._getframe(1))
            self._token = SCOPE.set(self.inside)
            self._asked = perf_counter_ns()

    def suspend(self) -> None:
        """After a step: put the consumer's scope back."""
        token, self._token = self._token, None
        if token is None:
            return
        self._step = step = perf_counter_ns() - self._asked
        self._waited += step
        if self._span._frame:
            self._span._leave_frame()
        inside = SCOPE.get()
        try:
            SCOPE.reset(token)
        except ValueError:
            return  # an abandoned step is being closed, in the context of whoever collects the garbage
        self.inside = inside

    def take(self, item: object) -> None:
        """Take note of what the last step gave."""
        self.items = at = self.items + 1
        if self.inside is None:
            return
        step = self._step
        if at == 1:
            self._first = self._waited
        else:
            self._gaps.append(step)
            if len(self._gaps) >= PENDING_BOUND:
                self._fold()
            if step > self._longest:
                self._longest, self._longest_at = step, at
            if step >= self._stall:
                self._stalls += 1
                if self._stalls <= STALLS_BOUND:
                    self._stalled_at.append(at)
        if type(item) is str:
            self._characters += len(item)
        elif type(item) is bytes:
            self._bytes += len(item)

    def _fold(self) -> None:
        """Move the gaps into the sketch: those that are alike at once, which takes a third of the time."""
        gaps = sorted(self._gaps)
        del self._gaps[:]
        if self._sketch is None:
            self._sketch = QuantileSketch(_SKETCH_ERROR)
        start = 0
        while start < len(gaps):
            end = bisect_right(gaps, gaps[start] * _ALIKE, start)
            self._sketch.add(gaps[start], end - start)
            start = end

    def _figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {"items": self.items, "waited_ns": self._waited}
        if self.items:
            found["first_item_ns"] = self._first
        if self.items > 1:
            found["gap_p50_ns"], found["gap_p95_ns"] = self._quantile(0.5), self._quantile(0.95)
            found["gap_max_ns"], found["gap_max_at"] = self._longest, self._longest_at
        if self._stalls:
            found["stalls"], found["stalled_at"] = self._stalls, self._stalled_at
        if self._characters:
            found["characters"] = self._characters
        if self._bytes:
            found["bytes"] = self._bytes
        return found

    def _quantile(self, q: float) -> int:
        if self._sketch is None:
            return sorted(self._gaps)[ceil(q * len(self._gaps)) - 1]
        if self._gaps:
            self._fold()
        return round(self._sketch.quantile(q) or 0)


def generator_function(begin: Callable[..., tuple[Any, Steps]], owned: bool = True) -> Callable[..., Any]:
    """Return a generator function that drives a source step by step: sends, throws and closes it as it is itself.

    Args:
        begin: From the call's arguments to the source, an iterator or generator, and its steps.
        owned: Whether the source is nobody else's. One that is somebody else's is not closed when the generator is.
    """

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        source, steps = begin(*args, **kwargs)
        step = None if isinstance(source, Generator) else source.__next__  # what has a `send` may be a connection
        sent: Any = None
        thrown: BaseException | None = None
        with steps:
            while True:
                steps.resume()
                try:
                    item = [step() if step else source.send(sent) if thrown is None else source.throw(thrown)]
                except StopIteration as stop:
                    return stop.value
                finally:
                    sent = thrown = None  # an error that leaves here would hold this frame, and this frame the error
                    steps.suspend()
                steps.take(item[0])
                try:
                    sent = yield item.pop()  # so that it is the consumer's alone
                except GeneratorExit as error:
                    if not owned:
                        raise
                    thrown = error
                except BaseException as error:
                    if step:
                        raise  # an iterator has no way to hear of it
                    thrown = error

    return wrapper


def async_generator_function(begin: Callable[..., tuple[Any, Steps]], owned: bool = True) -> Callable[..., Any]:
    """The same for asynchronous sources."""

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        source, steps = begin(*args, **kwargs)
        step = None if isinstance(source, AsyncGenerator) else source.__anext__
        sent: Any = None
        thrown: BaseException | None = None
        with steps:
            while True:
                steps.resume()
                try:
                    item = [await (step() if step else source.asend(sent) if thrown is None else source.athrow(thrown))]
                except StopAsyncIteration:
                    return
                finally:
                    sent = thrown = None
                    steps.suspend()
                steps.take(item[0])
                try:
                    sent = yield item.pop()
                except GeneratorExit as error:
                    if not owned:
                        raise
                    thrown = error
                except BaseException as error:
                    if step:
                        raise
                    thrown = error

    return wrapper
