"""The decorator on generators: what goes in and out of them, and when their span is current."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from streamll.context import current
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.spans import span
from streamll.tracing import trace
from tests.unit.here import event_here

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


class Marker:
    """Something whose life can be watched."""


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


class TestGenerators:
    def test_sent_values_and_the_result_go_through(self, events: list[StreamllEvent]) -> None:
        @trace
        def delegate() -> Generator[int, str, str]:
            return (yield from generator(3))

        running = delegate()
        assert events == []
        assert [next(running), running.send("a"), running.send("b")] == [0, 1, 2]
        with pytest.raises(StopIteration) as stopped:
            running.send("c")
        assert stopped.value.value == "abc"
        inner, outer = events
        assert inner.data["items"] == outer.data["items"] == 3
        assert inner.parent_span_id == outer.span_id
        assert inner.data["duration_ns"] <= outer.data["duration_ns"]

    def test_the_span_is_current_only_while_the_body_runs(self, events: list[StreamllEvent]) -> None:
        @trace
        def steps() -> Iterator[str]:
            yield current().span_id
            with span("inner") as inner:
                yield inner.span_id
                yield current().span_id
            yield current().span_id

        with span("consumer") as consumer:
            running = steps()
            own = next(running)
            assert current().span_id == consumer.span_id
            inner = next(running)
            assert current().span_id == consumer.span_id
            with span("elsewhere") as elsewhere:
                assert next(running) == inner
                assert current().span_id == elsewhere.span_id
            assert next(running) == own
            assert next(running, None) is None
            assert current().span_id == consumer.span_id
        ends = {event.operation.rsplit(".", 1)[-1]: event for event in events}
        assert ends["inner"].parent_span_id == own == ends["steps"].span_id
        assert ends["steps"].parent_span_id == ends["elsewhere"].parent_span_id == consumer.span_id

    def test_interleaved(self, events: list[StreamllEvent]) -> None:
        @trace(capture_args=True)
        def steps(n: int) -> Iterator[StreamllEvent | None]:
            while True:
                with span("step"):
                    yield event_here("here")

        running = [steps(n) for n in range(3)]
        seen = [[next(each) for each in running] for _ in range(4)]
        for each in reversed(running):
            each.close()  # type: ignore[attr-defined]  # it is a generator
        spans = {event.data["arguments"]["n"]: event for event in events if "arguments" in event.data}
        steps_of = {event.span_id: event.parent_span_id for event in events if event.operation == "step"}
        for turn in seen:
            for n, event in enumerate(turn):
                assert event is not None
                assert event.execution_id == spans[n].execution_id
                assert steps_of[event.span_id] == spans[n].span_id
        assert [event.data.get("closed") for event in spans.values()] == [True] * 3
        assert [event.data["items"] for event in spans.values()] == [4] * 3
        assert len({event.execution_id for event in spans.values()}) == 3

    def test_thrown_errors_reach_the_body(self, events: list[StreamllEvent]) -> None:
        caught: list[BaseException] = []

        @trace
        def steps() -> Generator[int, None, str]:
            try:
                yield 1
            except ValueError as error:
                caught.append(error)
            try:
                yield 2
            finally:
                caught.append(KeyError())
            return "unreached"

        running = steps()
        next(running)
        thrown = ValueError("in")
        assert running.throw(thrown) == 2
        assert caught[0] is thrown
        second = OSError("out")
        with pytest.raises(OSError, match="out") as left:
            running.throw(second)
        assert left.value is second
        assert second.__context__ is None
        assert events[0].data["error"]["message"] == "out"
        assert events[0].data["items"] == 2

    def test_closing(self, events: list[StreamllEvent]) -> None:
        closed = []

        @trace
        def steps() -> Generator[int, None, None]:
            try:
                yield 1
            finally:
                closed.append(current().span_id)

        running = steps()
        next(running)
        running.close()
        running = steps()
        next(running)
        del running
        gc.collect()
        unstarted = steps()
        unstarted.close()
        assert closed == [event.span_id for event in events]
        assert [event.data["closed"] for event in events] == [True, True]

    def test_closing_what_will_not_close(self, events: list[StreamllEvent]) -> None:
        @trace
        def stubborn() -> Generator[int, None, None]:
            while True:
                try:
                    yield 1
                except GeneratorExit:
                    if stop:
                        return

        stop: list[int] = []
        running = stubborn()
        next(running)
        with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
            running.close()
        stop.append(1)
        running.close()
        assert len(events) == 1
        assert "closed" not in events[0].data

    def test_a_stop_iteration_in_the_body_is_the_usual_runtime_error(self, events: list[StreamllEvent]) -> None:
        @trace
        def steps() -> Generator[int, None, None]:
            yield 1
            raise StopIteration("wrong")

        running = steps()
        next(running)
        with pytest.raises(RuntimeError, match="generator raised StopIteration"):
            next(running)
        assert events[0].data["error"]["type"] == "RuntimeError"

    def test_consumed_by_one_thread_after_another(self, events: list[StreamllEvent]) -> None:
        @trace
        def steps() -> Iterator[str]:
            with span("inner"):
                for _ in range(4):
                    yield current().span_id
            yield current().span_id

        running = steps()
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            seen = [pool.submit(next, running).result() for pool in (one, other, one, other, one)]
            assert one.submit(next, running, None).result() is None
            assert [pool.submit(lambda: current().span_id).result() for pool in (one, other)] == ["", ""]
        inner, outer = events
        assert seen == [inner.span_id] * 4 + [outer.span_id]

    def test_neither_items_nor_errors_are_kept(self, events: list[StreamllEvent]) -> None:
        @trace
        def steps() -> Generator[Marker, None, None]:
            local = Marker()
            watched.append(weakref.ref(local))
            yield Marker()
            raise ValueError("no")

        def consume(thrown: list[Exception]) -> None:
            running = steps()
            next(running)
            try:
                running.throw(thrown.pop()) if thrown else next(running)
            except ValueError:
                watched.append(weakref.ref(running))

        watched: list[weakref.ref[Any]] = []
        gc.collect()
        gc.disable()
        try:
            running = steps()
            item = next(running)
            watched.append(weakref.ref(item))
            del item
            assert watched.pop()() is None
            del running
            consume([])
            consume([ValueError("in")])
            assert [each() for each in watched] == [None] * 5
        finally:
            gc.enable()

    def test_while_inactive(self, inactive: None) -> None:
        running = generator(2)
        assert [next(running), running.send("a")] == [0, 1]
        with pytest.raises(StopIteration) as stopped:
            running.send("b")
        assert stopped.value.value == "ab"

    def test_generator_based_coroutines_can_be_awaited(self, events: list[StreamllEvent]) -> None:
        @trace("old")
        @types.coroutine
        def wait() -> Generator[None, None, str]:
            yield
            return "done"

        async def main() -> str:
            return await wait()

        assert asyncio.run(main()) == "done"
        assert events[0].operation == "old"


class TestAsyncGenerators:
    def test_the_span_is_current_only_while_the_body_runs(self, events: list[StreamllEvent]) -> None:
        @trace
        async def steps() -> AsyncIterator[str]:
            yield current().span_id
            async with span("inner") as inner:
                await asyncio.sleep(0)
                yield inner.span_id
                yield current().span_id
            yield current().span_id

        async def main() -> list[str]:
            seen = []
            async with span("consumer") as consumer:
                async for span_id in steps():
                    seen.append(span_id)
                    await asyncio.sleep(0)
                    assert current().span_id == consumer.span_id
            return seen

        seen = asyncio.run(main())
        inner, outer, consumer = events
        assert seen == [outer.span_id, inner.span_id, inner.span_id, outer.span_id]
        assert outer.data["items"] == 4
        assert (inner.parent_span_id, outer.parent_span_id) == (outer.span_id, consumer.span_id)

    def test_sent_and_thrown_values_reach_the_body(self, events: list[StreamllEvent]) -> None:
        @trace
        async def echo() -> AsyncGenerator[object, object]:
            received: object = "ready"
            while True:
                try:
                    received = yield received
                except ValueError as error:
                    received = error

        async def main() -> None:
            running = echo()
            assert await running.__anext__() == "ready"
            assert await running.asend(5) == 5
            thrown = ValueError("in")
            assert await running.athrow(thrown) is thrown
            second = KeyError("out")
            with pytest.raises(KeyError) as left:
                await running.athrow(second)
            assert left.value is second
            assert second.__context__ is None
            with pytest.raises(StopAsyncIteration):
                await running.__anext__()

        asyncio.run(main())
        assert events[0].data["error"] == {"type": "KeyError", "message": "'out'"}
        assert events[0].data["items"] == 3

    def test_closed_early_by_hand_or_by_the_loop(self, events: list[StreamllEvent]) -> None:
        closed: list[str] = []

        @trace
        async def steps() -> AsyncGenerator[int, None]:
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                closed.append(current().span_id)

        async def main() -> None:
            async for _ in steps():
                break
            running = steps()
            await running.__anext__()
            await running.aclose()
            unstarted = steps()
            await unstarted.aclose()
            await asyncio.sleep(0)
            gc.collect()

        asyncio.run(main())
        assert len(events) == 2
        assert sorted(closed) == sorted(event.span_id for event in events)
        assert [event.data["closed"] for event in events] == [True, True]

    def test_cancelled_while_it_waits(self, events: list[StreamllEvent]) -> None:
        @trace
        async def steps() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        async def consume() -> None:
            async for _ in steps():
                pass

        async def main() -> None:
            task = asyncio.create_task(consume())
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert events[0].data["cancelled"] is True
        assert events[0].data["items"] == 1

    def test_each_step_in_a_task_of_its_own(self, events: list[StreamllEvent]) -> None:
        @trace
        async def steps() -> AsyncIterator[str]:
            async with span("inner"):
                for _ in range(2):
                    await asyncio.sleep(0)
                    yield current().span_id
            yield current().span_id

        async def main() -> list[str]:
            running = steps()

            async def step() -> str:
                return await running.__anext__()

            seen: list[str] = [await asyncio.create_task(step()) for _ in range(3)]
            with pytest.raises(StopAsyncIteration):
                await running.__anext__()
            return seen

        seen = asyncio.run(main())
        inner, outer = events
        assert seen == [inner.span_id, inner.span_id, outer.span_id]

    def test_a_step_abandoned_in_another_context_changes_nothing_there(self, events: list[StreamllEvent]) -> None:
        @trace
        async def steps() -> AsyncIterator[int]:
            await asyncio.sleep(0)
            yield 1

        step: Any = steps().__anext__()
        copy_context().run(step.send, None)
        with span("elsewhere") as elsewhere:
            with pytest.raises(GeneratorExit):
                step.throw(GeneratorExit())
            assert current().span_id == elsewhere.span_id
        assert events[0].data["closed"] is True

    def test_neither_items_nor_errors_are_kept(self, events: list[StreamllEvent]) -> None:
        @trace
        async def steps() -> AsyncGenerator[Marker, None]:
            local = Marker()
            watched.append(weakref.ref(local))
            yield Marker()
            raise ValueError("no")

        async def consume(thrown: list[Exception]) -> None:
            running = steps()
            item = await running.__anext__()
            watched.append(weakref.ref(item))
            del item
            assert watched.pop()() is None
            try:
                await (running.athrow(thrown.pop()) if thrown else running.__anext__())
            except ValueError:
                watched.append(weakref.ref(running))

        def drive(awaitable: Any) -> None:
            with pytest.raises(StopIteration):
                awaitable.send(None)

        watched: list[weakref.ref[Any]] = []
        gc.collect()
        gc.disable()
        try:
            drive(consume([]))
            drive(consume([ValueError("in")]))
            assert [each() for each in watched] == [None] * 4
        finally:
            gc.enable()

    def test_while_inactive(self, inactive: None) -> None:
        async def main() -> list[int]:
            return [n async for n in async_generator(3)]

        assert asyncio.run(main()) == [0, 1, 2]


def test_deactivated_in_the_middle(events: list[StreamllEvent]) -> None:
    running = generator(3)
    next(running)
    hub.empty()
    running.close()
    assert events == []
