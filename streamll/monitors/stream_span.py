"""Spans over streams: `stream` watches any iterable as its items come, such as a language model's tokens.

What belongs here: what stands between a source and its consumer, and the events of single items for those who ask. What
does not: what is measured and how a source is driven (steps.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from streamll.context import SCOPE
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import DEBUG
from streamll.monitors.outlet import send
from streamll.spans import Span
from streamll.steps import Steps, async_generator_function, generator_function

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class _Watched(Steps):
    """The steps of a stream of which every so manieth item makes an event."""

    __slots__ = ("_every",)

    def __init__(self, span: Span, stall: int, every: int) -> None:
        super().__init__(span, stall)
        self._every = every

    def take(self, item: object) -> None:
        super().take(item)
        if self.inside is not None and (self.items - 1) % self._every == 0:
            token = SCOPE.set(self.inside)
            try:
                data = {"item": item, "index": self.items, "waited_ns": self._step}
                send("item", data, operation=self._span.operation, level="debug", priority=DEBUG)
            finally:
                SCOPE.reset(token)


class _Watch:
    """What is to be watched, and the steps once they have begun: what a stream and its generator share."""

    __slots__ = ("every", "span", "stall", "steps")

    def __init__(self, span: Span, every: int, stall: int) -> None:
        self.span = span
        self.every = every
        self.stall = stall
        self.steps: Steps | None = None

    def begin(self) -> Steps:
        self.steps = _Watched(self.span, self.stall, self.every) if self.every else Steps(self.span, self.stall)
        return self.steps


def _begin(source: Any, watch: _Watch) -> tuple[Any, Steps]:
    return source, watch.begin()


_driven = generator_function(_begin, owned=False)
_driven_async = async_generator_function(_begin, owned=False)


class _Watching:
    __slots__ = ("__weakref__", "_run", "_source", "_watch")

    def __init__(self, source: Any, watch: _Watch) -> None:
        self._source = source
        self._watch = watch
        self._run: Any = None

    @property
    def span(self) -> Span:
        """What becomes the event. It begins with the first step."""
        return self._watch.span

    def set(self, /, **attributes: Any) -> None:
        """Add or replace attributes of the span; those set after its end are not seen any more."""
        self._watch.span.set(**attributes)


class Stream(_Watching, Iterator[T], Generic[T]):
    """What `stream` returns for an iterable: its items, once; and what is known of them, in a span."""

    __slots__ = ()

    def __iter__(self) -> Iterator[T]:
        if self._run is None:
            self._source = iter(self._source)
            self._run = _driven(self._source, self._watch) if hub.active else self._source
        run: Iterator[T] = self._run
        return run

    def __next__(self) -> T:
        return next(self.__iter__())

    def send(self, value: Any) -> T:
        """Send a value into a source that is a generator."""
        sent: T = self.__iter__().send(value)  # type: ignore[attr-defined]  # where it has none, that is the answer
        return sent

    def throw(self, *error: Any) -> T:
        """Throw an error into a source that is a generator."""
        item: T = self.__iter__().throw(*error)  # type: ignore[attr-defined]  # as above
        return item

    def close(self) -> None:
        """End the span, and close the source where it can be closed."""
        try:
            close = getattr(self._source, "close", None)
            if close is not None:
                _within(self._watch.steps, close)
        finally:
            if self._run is not None and self._run is not self._source:
                self._run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_Watching, AsyncIterator[T], Generic[T]):
    """What `stream` returns for an asynchronous iterable."""

    __slots__ = ()

    def __aiter__(self) -> AsyncIterator[T]:
        if self._run is None:
            self._source = aiter(self._source)
            self._run = _driven_async(self._source, self._watch) if hub.active else self._source
        run: AsyncIterator[T] = self._run
        return run

    async def __anext__(self) -> T:
        return await anext(self.__aiter__())

    async def asend(self, value: Any) -> T:
        """Send a value into a source that is an asynchronous generator."""
        sent: T = await self.__aiter__().asend(value)  # type: ignore[attr-defined]  # as for `Stream.send`
        return sent

    async def athrow(self, *error: Any) -> T:
        """Throw an error into a source that is an asynchronous generator."""
        item: T = await self.__aiter__().athrow(*error)  # type: ignore[attr-defined]  # as for `Stream.send`
        return item

    async def aclose(self) -> None:
        """End the span, and close the source where it can be closed: by `aclose`, or `close`, awaited if need be."""
        try:
            close = getattr(self._source, "aclose", None) or getattr(self._source, "close", None)
            if close is not None:
                closing = _within(self._watch.steps, close)
                if hasattr(closing, "__await__"):
                    await closing
        finally:
            if self._run is not None and self._run is not self._source:
                await self._run.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _EitherStream(Stream[T], AsyncStream[T]):
    """For a source of both kinds: of the kind that it is first used as."""

    __slots__ = ()


def _within(steps: Steps | None, close: Any) -> Any:
    """Call what belongs to the source's side."""
    if steps is None:
        return close()
    steps.resume()
    try:
        return close()
    finally:
        steps.suspend()


@overload
def stream(
    source: AsyncIterable[T], operation: str, /, *, items: bool | int = ..., stall: float = ..., **attributes: Any
) -> AsyncStream[T]: ...


@overload
def stream(
    source: Iterable[T], operation: str, /, *, items: bool | int = ..., stall: float = ..., **attributes: Any
) -> Stream[T]: ...


def stream(source: Any, operation: str, /, *, items: bool | int = False, stall: float = 1.0, **attributes: Any) -> Any:
    """Watch a stream of items: one span from the first step to the end, with what there is to know about its pace.

    The span's data tells: `items`; `first_item_ns`, the wait for the first; `gap_p50_ns`, `gap_p95_ns` (within 1 %),
    `gap_max_ns` and `gap_max_at`, the waits for each later item; `stalls` and `stalled_at`; `waited_ns`, all that the
    source took, while `duration_ns` has the consumer's time in it too; and `characters` or `bytes`. The source runs
    within the span, its consumer does not. A consumer that stops early (`closed`) and an error in the source (`error`)
    are told as of any span. `streamll.trace` on a generator function records the same.

    Args:
        source: Any iterable or asynchronous iterable; what it is sent, thrown or told to close reaches it. It is closed
            when what this returns is closed, by `close`, `aclose` or a `with` block, and not because that is forgotten.
        operation: The name that a person would look for.
        items: True for an event "item" for each item too, of priority "debug"; a number n for every nth, from the first.
        stall: Seconds that an item must be waited for to count as a stall.
        **attributes: Whatever is known at the start, under any name.

    Returns:
        The same items, once.

    Raises:
        TypeError: The source is not iterable.
        ConfigurationError: `items` or `stall` make no sense.

    Example:
        for token in streamll.stream(client.generate(prompt), "generate", model="small"):
            show(token)
    """
    given: tuple[Any, Any] = items, stall  # whatever an untyped program gives
    if not isinstance(given[0], int) or items < 0:
        raise ConfigurationError("stream: items must be True, False or a whole number")
    if isinstance(given[1], bool) or not isinstance(given[1], (int, float)) or not isfinite(stall) or stall <= 0:
        raise ConfigurationError("stream: stall must be a number of seconds above 0")
    kind = type(source)
    asynchronous = hasattr(kind, "__aiter__")
    synchronous = hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")
    if not asynchronous and not synchronous:
        raise TypeError(f"stream: a {kind.__name__} is not iterable")
    watch = _Watch(Span(operation, **attributes), int(items), int(stall * 1e9))
    if asynchronous and synchronous:
        return _EitherStream(source, watch)
    return AsyncStream(source, watch) if asynchronous else Stream(source, watch)
