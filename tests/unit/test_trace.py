"""The decorator, on everything that can be called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from typing import Any

import pytest

from streamll.context import current, execution
from streamll.models import StreamllEvent
from streamll.spans import span
from streamll.tracing import trace

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


@trace
def plain(a: int, b: int = 2, *more: int, c: int = 3) -> int:
    """Add."""
    assert current().span_id
    return a + b + c + sum(more)


@trace("adder", model="small")
async def coroutine(a: int) -> int:
    await asyncio.sleep(0)
    assert current().span_id
    return a


@trace
def generator(count: int) -> Generator[int, str, str]:
    told = ""
    for n in range(count):
        told += yield n
    return told


@trace
async def async_generator(count: int) -> AsyncGenerator[int, str]:
    for n in range(count):
        await asyncio.sleep(0)
        yield n


@trace
def fail(error: BaseException) -> None:
    raise error


class Service:
    @trace
    def method(self, a: int) -> int:
        return a

    @trace
    @classmethod
    def outer_class(cls, a: int) -> tuple[type, int]:
        return cls, a

    @classmethod
    @trace
    def inner_class(cls, a: int) -> tuple[type, int]:
        return cls, a

    @trace("static")
    @staticmethod
    def outer_static(a: int) -> int:
        return a

    @staticmethod
    @trace()
    def inner_static(a: int) -> int:
        return a


class TestFunctions:
    def test_a_call_is_a_span(self, events: list[StreamllEvent]) -> None:
        assert plain(1, 2, 3, c=4) == 10
        (event,) = events
        assert (event.event_type, event.level) == ("span", "info")
        assert (event.module_name, event.method_name, event.operation) == (__name__, "plain", "plain")
        assert list(event.data) == ["duration_ns"]
        assert event.data["duration_ns"] > 0
        assert current().span_id == ""

    def test_calls_nest(self, events: list[StreamllEvent]) -> None:
        @trace
        def outer() -> int:
            return plain(1)

        with execution() as execution_id:
            outer()
        inner, around = events
        assert inner.parent_span_id == around.span_id
        assert inner.execution_id == around.execution_id == execution_id
        assert around.method_name == "TestFunctions.test_calls_nest.<locals>.outer"

    def test_an_error_goes_on_as_it_was(self, events: list[StreamllEvent]) -> None:
        raised = ValueError("no")
        with pytest.raises(ValueError, match="no") as caught:
            fail(raised)
        assert caught.value is raised
        assert raised.__context__ is None
        frames = [frame.name for frame in traceback.extract_tb(raised.__traceback__)]
        assert frames == ["test_an_error_goes_on_as_it_was", "wrapper", "fail"]
        assert events[0].data["error"] == {"type": "ValueError", "message": "no"}
        assert events[0].level == "error"

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_those_that_end_the_program_go_on_too(self, events: list[StreamllEvent], kind: type[BaseException]) -> None:
        with pytest.raises(kind):
            fail(kind())
        assert events[0].data["error"]["type"] == kind.__name__

    def test_operation_and_attributes(self, events: list[StreamllEvent]) -> None:
        trace("first", a=1)(lambda: None)()
        trace(operation="second", a=2, self=3, target=4)(lambda: None)()
        trace(lambda: None, operation="third")()
        assert [event.operation for event in events] == ["first", "second", "third"]
        del events[1].data["duration_ns"]
        assert events[1].data == {"a": 2, "self": 3, "target": 4}

    def test_attributes_of_one_run_are_not_seen_in_the_next(self, events: list[StreamllEvent]) -> None:
        @trace("x", capture_args=True, a=1)
        def traced(n: int) -> None: ...

        traced(1)
        traced(2)
        assert [event.data["arguments"] for event in events] == [{"n": 1}, {"n": 2}]

    def test_may_announce_its_start(self, events: list[StreamllEvent]) -> None:
        trace(announce=True)(len)("abc")
        assert [event.event_type for event in events] == ["span_start", "span"]
        assert [(event.module_name, event.method_name) for event in events] == [("builtins", "len")] * 2

    def test_does_nothing_while_inactive(self, inactive: None) -> None:
        @trace
        def ask() -> str:
            return current().span_id

        @trace
        async def answer() -> str:
            return current().span_id

        assert ask() == ""
        assert asyncio.run(answer()) == ""


class TestArguments:
    def test_by_name_without_self(self, events: list[StreamllEvent]) -> None:
        class Service:
            @trace(capture_args=True)
            def method(self, a: int, b: int = 2, *more: int, c: int = 3, **rest: int) -> None: ...

            @trace(capture_args=True)
            @classmethod
            def made(cls, a: int) -> None: ...

        Service().method(1, 5, 6, 7, c=8, d=9)
        Service().method(a=1)
        Service.made(1)
        arguments = [event.data["arguments"] for event in events]
        assert arguments == [{"a": 1, "b": 5, "*": (6, 7), "c": 8, "d": 9}, {"a": 1}, {"a": 1}]

    def test_a_call_with_wrong_arguments_fails_as_it_would(self, events: list[StreamllEvent]) -> None:
        class Service:
            @trace(capture_args=True)
            def method(self) -> None: ...

        method: Any = Service.method
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'self'"):
            method()

    def test_of_what_has_no_signature(self, events: list[StreamllEvent]) -> None:
        trace(capture_args=True)(max)(1, 2)
        assert events[0].data["arguments"] == {"*": (1, 2)}


class TestMethods:
    @pytest.mark.parametrize("owner", [Service, Service()])
    def test_class_and_static_methods_in_either_order(self, events: list[StreamllEvent], owner: Any) -> None:
        assert owner.outer_class(1) == owner.inner_class(1) == (Service, 1)
        assert owner.outer_static(1) == owner.inner_static(1) == 1
        names = [event.method_name for event in events]
        assert names == [f"Service.{name}" for name in ("outer_class", "inner_class", "outer_static", "inner_static")]
        assert events[2].operation == "static"

    def test_methods(self, events: list[StreamllEvent]) -> None:
        service = Service()
        assert service.method(1) == 1
        assert Service.method(service, 2) == 2
        bound = trace(service.method)
        assert bound(3) == 3
        assert {event.method_name for event in events} == {"Service.method"}

    def test_a_class_method_belongs_to_the_class_it_is_called_on(self, events: list[StreamllEvent]) -> None:
        class Special(Service):
            pass

        assert Special.outer_class(1) == (Special, 1)


class TestCallables:
    def test_objects(self, events: list[StreamllEvent]) -> None:
        class Adder:
            def __init__(self) -> None:
                self.base = 1

            def __call__(self, a: int) -> int:
                return self.base + a

        class AsyncAdder:
            async def __call__(self, a: int) -> int:
                return a

        class Counter:
            def __call__(self, count: int) -> Iterator[int]:
                yield from range(count)

        assert trace(Adder())(1) == 2
        adder = trace(AsyncAdder())
        assert inspect.iscoroutinefunction(adder)
        assert asyncio.run(adder(3)) == 3
        assert list(trace(Counter())(3)) == [0, 1, 2]
        names = [event.method_name.rsplit(".", 1)[1] for event in events]
        assert names == ["Adder", "AsyncAdder", "Counter"]
        assert events[2].data["items"] == 3

    def test_partials(self, events: list[StreamllEvent]) -> None:
        async def answer(a: int, b: int) -> int:
            return a + b

        part = functools.partial(functools.partial(answer, 1), b=2)
        assert asyncio.run(trace(part)()) == 3
        assert events[0].method_name.endswith("answer")

    def test_what_counts_calls_still_does(self, events: list[StreamllEvent]) -> None:
        @functools.lru_cache
        def cached(a: int) -> int:
            return a

        traced = trace(cached)
        assert traced(1) == traced(1) == 1
        assert cached.cache_info().hits == 1
        assert len(events) == 2

    @pytest.mark.parametrize("target", [Service, 5, None, property(lambda self: 1)])
    def test_nothing_else(self, target: Any) -> None:
        with pytest.raises(TypeError, match="decorates functions and methods, not"):
            trace(operation="x")(target)

    def test_a_function_that_returns_an_awaitable_is_left_as_it_is(self, events: list[StreamllEvent]) -> None:
        async def answer() -> int:
            return 42

        def ask() -> Awaitable[int]:
            return answer()

        async def main() -> None:
            awaitable = trace(ask)()
            assert inspect.iscoroutine(awaitable)
            assert len(events) == 1
            assert await awaitable == 42

        assert not inspect.iscoroutinefunction(trace(ask))
        asyncio.run(main())

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="before 3.12 nothing can be marked")
    def test_a_function_marked_as_a_coroutine_function_is_awaited(self, events: list[StreamllEvent]) -> None:
        async def answer() -> str:
            return current().span_id

        def ask() -> Awaitable[str]:
            return answer()

        mark: Any = getattr(inspect, "markcoroutinefunction")  # noqa: B009  # mypy looks through the eyes of 3.10
        traced = trace(mark(ask))
        assert inspect.iscoroutinefunction(traced)
        assert asyncio.run(traced()) == events[0].span_id


class TestWhatItIs:
    @pytest.mark.parametrize(
        ("function", "kind"),
        [
            (plain, inspect.isfunction),
            (coroutine, inspect.iscoroutinefunction),
            (generator, inspect.isgeneratorfunction),
            (async_generator, inspect.isasyncgenfunction),
        ],
    )
    def test_the_kind_stays(self, function: Any, kind: Callable[[object], bool]) -> None:
        assert kind(function)
        kinds = [inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction]
        assert [each(function) for each in kinds] == [each(function.__wrapped__) for each in kinds]

    def test_name_doc_and_signature_stay(self) -> None:
        assert (plain.__name__, plain.__qualname__, plain.__doc__) == ("plain", "plain", "Add.")
        assert str(inspect.signature(plain)) == "(a: 'int', b: 'int' = 2, *more: 'int', c: 'int' = 3) -> 'int'"
        assert pickle.loads(pickle.dumps(plain)) is plain


class TestCoroutines:
    def test_the_span_lasts_until_it_is_done(self, events: list[StreamllEvent]) -> None:
        assert asyncio.run(coroutine(5)) == 5
        (event,) = events
        assert (event.operation, event.method_name, event.data["model"]) == ("adder", "coroutine", "small")

    def test_many_at_once(self, events: list[StreamllEvent]) -> None:
        @trace("leaf", capture_args=True)
        async def leaf(n: int, depth: int) -> str:
            for _ in range(depth):
                await asyncio.sleep(0)
            return current().span_id

        @trace("node", capture_args=True)
        async def node(n: int) -> tuple[str, list[str]]:
            leaves = await asyncio.gather(*(leaf(n, depth) for depth in range(3)))
            return current().span_id, leaves

        async def main() -> list[tuple[str, list[str]]]:
            with span("root"):
                return await asyncio.gather(*(node(n) for n in range(5)))

        nodes = asyncio.run(main())
        by_id = {event.span_id: event for event in events}
        assert len(by_id) == 5 + 15 + 1
        for n, (node_id, leaves) in enumerate(nodes):
            assert by_id[node_id].data["arguments"] == {"n": n}
            for depth, leaf_id in enumerate(leaves):
                assert by_id[leaf_id].parent_span_id == node_id
                assert by_id[leaf_id].data["arguments"] == {"n": n, "depth": depth}

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with 3.11")
    def test_a_failing_task_group(self, events: list[StreamllEvent]) -> None:
        @trace
        async def waits() -> None:
            await asyncio.Event().wait()

        @trace
        async def fails() -> None:
            await asyncio.sleep(0)
            raise ValueError("no")

        @trace("group")
        async def main() -> None:
            async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined,unused-ignore]  # 3.11 and later
                for _ in range(2):
                    group.create_task(waits())
                group.create_task(fails())

        with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
            asyncio.run(main())
        ends = {event.operation.rsplit(".", 1)[-1]: event for event in events}
        assert len(events) == 4
        assert ends["waits"].data["cancelled"] is True
        assert ends["fails"].data["error"]["message"] == "no"
        assert ends["group"].data["error"]["type"].endswith("ExceptionGroup")
        assert ends["waits"].parent_span_id == ends["fails"].parent_span_id == ends["group"].span_id

    def test_closed_before_its_end(self, events: list[StreamllEvent]) -> None:
        @trace
        async def waits() -> None:
            await asyncio.sleep(0)

        running = waits()
        running.send(None)
        running.close()
        assert events[0].data["closed"] is True
        assert events[0].level == "info"

    def test_driven_by_hand_out_of_order(self, events: list[StreamllEvent]) -> None:
        first, second = coroutine(1), coroutine(2)
        first.send(None)
        second.send(None)
        for running in (first, second):
            with pytest.raises(StopIteration):
                running.send(None)
        assert current().span_id == ""
        assert len(events) == 2
