"""What users put into their code, as a type checker sees it. It is checked, not run."""

from __future__ import annotations

from collections import UserDict
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from email.message import Message
from typing import Any, TypeVar

from typing_extensions import assert_type

import streamll
from streamll.consumers.received import Received
from streamll.monitors.stream_span import AsyncStream, Stream, stream
from streamll.spans import Span

# a misspelt name is an error, and a module of ours is known

streamll.emitt("x")  # type: ignore[attr-defined]

T = TypeVar("T")


# span


def spans() -> int:
    with streamll.span("retrieve", k=5) as span:
        span.set(found=3)
        span.event("cache_miss", key="a")
        assert_type(span.span_id, str)
        assert_type(span.execution_id, str)
        # An error is never swallowed, so this is the end of the function.
        return 1


async def async_spans() -> int:
    async with streamll.span("retrieve").announce() as span:
        span.set(found=3)
        return 1


def told(span: Span) -> str:
    return span.prioritize("debug").operation


told(streamll.span("retrieve", k=5))
streamll.span()  # type: ignore[call-arg]
streamll.span(5)  # type: ignore[arg-type]


# stream


def streams(tokens: list[str]) -> None:
    items = stream(tokens, "generate", items=10, stall=0.5, model="small")
    assert_type(items, Stream[str])
    for item in items:
        assert_type(item, str)
    items.set(tokens_in=5)


async def async_streams(tokens: AsyncIterator[bytes]) -> None:
    assert_type(stream(tokens, "generate"), AsyncStream[bytes])
    async for item in stream(tokens, "generate"):
        assert_type(item, bytes)


stream(5, "generate")  # type: ignore[call-overload]


# trace


@streamll.trace
def plain(a: int, *, b: str = "") -> bytes:
    return b""


@streamll.trace()
def called(a: T) -> list[T]:
    return [a]


@streamll.trace("answer", model="small")
async def coroutine(a: int) -> str:
    return ""


@streamll.trace(operation="answer", capture_args=True, announce=True, model="small")
def generator(a: int) -> Generator[int, str, bytes]:
    sent = yield a
    return sent.encode()


@streamll.trace
async def async_generator(a: int) -> AsyncIterator[int]:
    yield a


class Service:
    @streamll.trace
    def method(self, a: int) -> int:
        return a

    @streamll.trace
    @classmethod
    def outer_class(cls, a: int) -> int:
        return a

    @classmethod
    @streamll.trace("inner")
    def inner_class(cls, a: int) -> int:
        return a

    @streamll.trace
    @staticmethod
    def outer_static(a: int) -> int:
        return a

    @staticmethod
    @streamll.trace
    def inner_static(a: int) -> int:
        return a


async def traced(service: Service) -> None:
    assert_type(plain(1, b=""), bytes)
    assert_type(called("a"), list[str])
    assert_type(await coroutine(1), str)
    assert_type(generator(1), Generator[int, str, bytes])
    assert_type([each async for each in async_generator(1)], list[int])
    assert_type(service.method(1), int)
    assert_type(Service.outer_class(1), int)
    assert_type(Service.inner_class(1), int)
    assert_type(Service.outer_static(1), int)
    assert_type(Service.inner_static(1), int)


plain("a")  # type: ignore[arg-type]
service_method: Callable[[Service, str], int] = Service.method  # type: ignore[assignment]
streamll.trace(5)  # type: ignore[call-overload]


# blocks


def blocks(
    headers: dict[str, str], environ: dict[str, Any], scope: list[tuple[bytes, bytes]], message: Message
) -> None:
    with streamll.bind(user=1, tenant="blue"):
        pass
    with streamll.execution() as execution_id, streamll.execution("order-42"):
        assert_type(execution_id, str)
    with (
        streamll.extract(headers),
        streamll.extract(environ),
        streamll.extract(scope),
        streamll.extract(message),
        streamll.extract(None) as continued,
    ):
        assert_type(continued, str)


def gone_on(received: Received, event: streamll.StreamllEvent) -> None:
    with streamll.extract(received), streamll.extract(event) as continued:
        assert_type(continued, str)


streamll.execution(5)  # type: ignore[arg-type]
streamll.extract(5)  # type: ignore[arg-type]


# inject


class Headers(UserDict[str, object]):
    pass


assert_type(streamll.inject({}), dict[str, str])
assert_type(streamll.inject({"host": "x"}), dict[str, str])
assert_type(streamll.inject(Headers()), Headers)
streamll.inject([])  # type: ignore[call-overload]


# bind_context


def bound(pool: ThreadPoolExecutor) -> None:
    assert_type(streamll.bind_context(plain)(1, b=""), bytes)
    future = pool.submit(streamll.bind_context(plain), 1)
    assert_type(future, Future[bytes])
    streamll.bind_context(plain)("a")  # type: ignore[arg-type]


async def bound_coroutine(answer: Callable[[int], Awaitable[str]]) -> None:
    assert_type(await streamll.bind_context(answer)(1), str)
    assert_type(await streamll.bind_context(coroutine)(1), str)


# capture_exception


def captured(error: Exception) -> None:
    assert_type(streamll.capture_exception(), str | None)
    streamll.capture_exception(error, error="mine", question="why")
    streamll.capture_exception("oops")  # type: ignore[arg-type]
