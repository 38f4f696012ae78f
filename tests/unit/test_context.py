"""Scopes, and the blocks that change them: bind, execution, bind_context."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import weakref
from collections import OrderedDict, UserDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial

import pytest

from streamll.context import ROOT, bind, bind_context, current, execution, mute_this_thread, muted
from streamll.models import StreamllEvent
from streamll.spans import Span, capture_exception, span
from tests.unit.here import event_here

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


def emit(event_type: str = "noted", **data: object) -> StreamllEvent:
    event = event_here(event_type, data)
    assert event is not None
    return event


class Marker:
    """Something whose life can be watched."""


class TestBind:
    def test_puts_attributes_under_the_data_of_what_is_inside(self, events: list[StreamllEvent]) -> None:
        with bind(user=1, tenant="blue"):
            with bind(user=2):
                assert emit(text="hi").data == {"user": 2, "tenant": "blue", "text": "hi"}
                assert emit(user=3).data == {"user": 3, "tenant": "blue"}
            assert emit().data == {"user": 1, "tenant": "blue"}
        assert emit().data == {}
        assert current() is ROOT

    def test_reaches_spans_their_events_and_errors(self, events: list[StreamllEvent]) -> None:
        with bind(user=1), span("work", k=5, user=2) as work:
            work.event("step", n=1)
            capture_exception(ValueError("no"), n=2)
        step, error, ended = events
        assert step.data == {"user": 1, "n": 1}
        assert (error.data["user"], error.data["n"]) == (1, 2)
        assert (ended.data["user"], ended.data["k"]) == (2, 5)

    def test_any_name_is_an_attribute(self, events: list[StreamllEvent]) -> None:
        with bind(self=1, function=2, **{"http.method": "GET"}):
            assert emit().data == {"self": 1, "function": 2, "http.method": "GET"}

    def test_keeps_execution_and_span(self, events: list[StreamllEvent]) -> None:
        with span("work") as work, bind(user=1) as execution_id:
            assert execution_id == work.execution_id
            assert emit().span_id == work.span_id

    def test_what_the_event_is_given_is_not_changed(self, events: list[StreamllEvent]) -> None:
        data = {"text": "hi"}
        with bind(user=1):
            event = event_here("noted", data)
        assert event is not None
        event.data["more"] = True
        assert data == {"text": "hi"}

    def test_does_nothing_while_inactive(self, inactive: None) -> None:
        with bind(user=1):
            assert current() is ROOT

    def test_one_block_may_be_entered_again_and_by_threads_at_once(self, events: list[StreamllEvent]) -> None:
        shared = bind(part="x")
        turn = threading.Barrier(2, timeout=10)
        seen: list[dict[str, object]] = []

        def work() -> None:
            with shared:
                seen.append(emit().data)
                turn.wait()  # the others enter
                turn.wait()
            seen.append(emit().data)
            turn.wait()  # the others are still inside
            turn.wait()

        thread = threading.Thread(target=work)
        thread.start()
        turn.wait()
        with shared, shared:
            turn.wait()
            turn.wait()
            assert emit().data == {"part": "x"}
        turn.wait()
        thread.join()
        assert seen == [{"part": "x"}, {}]
        assert current() is ROOT

    def test_leaving_what_was_not_entered_is_no_error(self, events: list[StreamllEvent]) -> None:
        bind(user=1).__exit__(None, None, None)
        assert current() is ROOT


class TestExecution:
    def test_has_an_id_of_its_own_and_no_parent_outside(self, events: list[StreamllEvent]) -> None:
        with span("outside") as outside, bind(user=1), execution("order-42") as execution_id, span("inside") as inside:
            assert execution_id == "order-42"
            assert (inside.execution_id, outside.execution_id != "order-42") == ("order-42", True)
        assert events[0].parent_span_id == ""
        assert events[0].data["user"] == 1

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_makes_a_trace_id_when_given_none(self, nothing: str | None) -> None:
        with execution(nothing) as first, execution(nothing) as second:
            assert first != second
            assert len(first) == len(second) == 32
            assert int(first, 16)

    def test_spans_side_by_side_share_it(self, events: list[StreamllEvent]) -> None:
        with execution() as execution_id:
            with span("first"):
                pass
            with span("second"):
                pass
        assert [event.execution_id for event in events] == [execution_id] * 2

    def test_works_while_inactive(self, inactive: None) -> None:
        with execution("order-42"):
            assert current().execution_id == "order-42"
        assert current() is ROOT


class TestMuted:
    def test_nothing_is_made_inside(self, events: list[StreamllEvent]) -> None:
        with muted():
            with span("work").announce() as work:
                work.event("step")
                with execution(), bind(a=1):
                    assert event_here("noted") is None
            assert capture_exception(ValueError("no")) is None
        assert events == []
        assert event_here("noted") is not None

    def test_a_muted_thread_stays_so(self, events: list[StreamllEvent]) -> None:
        def work() -> None:
            mute_this_thread()
            with span("work"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert events == []


class TestEventHere:
    def test_data_that_is_no_mapping_is_kept_under_a_name(self) -> None:
        for data in ([1, 2], "text", 5):
            event = event_here("noted", data)
            assert event is not None
            assert event.data == {"data": data}

    def test_only_a_dict_is_asked_for_its_items(self) -> None:
        class Broken(UserDict[str, int]):
            def __iter__(self) -> Iterator[str]:
                raise RuntimeError("no")

        broken = Broken(a=1)
        for data, kept in ((None, {}), (OrderedDict(a=1), {"a": 1}), (broken, {"data": broken})):
            event = event_here("noted", data)
            assert event is not None
            assert list(event.data) == list(kept)
            assert all(event.data[key] is kept[key] for key in kept)

    def test_fields_arrive(self) -> None:
        event = event_here(
            "noted", {"a": 1}, operation="o", level="debug", module_name="m", method_name="f", tags=["t"]
        )
        assert event is not None
        fields = (event.operation, event.level, event.module_name, event.method_name, event.tags)
        assert fields == ("o", "debug", "m", "f", ["t"])
        assert event.timestamp > 1_600_000_000 * 10**9
        assert len(event.event_id) == 32


class TestOrder:
    """Blocks that are not left as they were entered."""

    def test_left_in_the_wrong_order(self, events: list[StreamllEvent]) -> None:
        first, second = Span("first"), Span("second")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert emit().span_id == second.span_id
        second.__exit__(None, None, None)
        assert current() is ROOT
        assert [event.operation for event in events] == ["first", "second"]

    def test_overlapping_for_ever_keeps_nothing_alive(self, events: list[StreamllEvent]) -> None:
        alive: weakref.WeakSet[Marker] = weakref.WeakSet()
        last = execution()
        last.__enter__()
        for _ in range(50):
            following = bind(marker=Marker())
            following.__enter__()
            alive.add(current().attributes["marker"])
            last.__exit__(None, None, None)
            last = following
        assert len(alive) <= 2
        last.__exit__(None, None, None)
        assert current() is ROOT

    def test_left_in_another_thread(self, events: list[StreamllEvent]) -> None:
        with span("outer") as outer:
            moved = span("moved")
            moved.__enter__()
            thread = threading.Thread(target=moved.__exit__, args=(None, None, None))
            thread.start()
            thread.join()
            assert emit().span_id == outer.span_id
            with span("next"):
                pass
        assert current() is ROOT
        assert [event.operation for event in events] == ["moved", "next", "outer"]
        assert events[1].parent_span_id == outer.span_id

    def test_left_in_a_task_that_inherited_it(self, events: list[StreamllEvent]) -> None:
        async def main() -> None:
            with span("outer") as outer:
                moved = span("moved")
                moved.__enter__()

                async def leave() -> None:
                    moved.__exit__(None, None, None)
                    assert emit().span_id == outer.span_id

                await asyncio.create_task(leave())
                assert emit().span_id == outer.span_id
            assert current() is ROOT

        asyncio.run(main())

    def test_the_outer_one_is_left_while_the_inner_one_waits_in_a_generator(self, events: list[StreamllEvent]) -> None:
        def steps() -> Iterator[int]:
            with span("inner"):
                yield 1

        with span("outer"):
            generator = steps()
            next(generator)
        del generator
        assert current() is ROOT
        assert [event.operation for event in events] == ["outer", "inner"]

    def test_a_task_that_outlives_its_span_still_belongs_to_it(self, events: list[StreamllEvent]) -> None:
        async def main() -> tuple[Span, StreamllEvent, StreamllEvent]:
            ended = asyncio.Event()

            async def background() -> tuple[StreamllEvent, StreamllEvent]:
                with span("step"):
                    await ended.wait()
                    inside = emit()
                return inside, emit()

            with span("request") as request:
                task = asyncio.create_task(background())
                await asyncio.sleep(0)
            ended.set()
            return (request, *await task)

        request, inside, after = asyncio.run(main())
        assert inside.execution_id == after.execution_id == request.execution_id
        assert inside.parent_span_id == after.span_id == request.span_id

    def test_blocks_left_in_the_wrong_order(self, events: list[StreamllEvent]) -> None:
        outer, inner = bind(a=1), execution("inner")
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert current().execution_id == "inner"
        inner.__exit__(None, None, None)
        assert current() is ROOT


class TestTasks:
    def test_tasks_inherit_and_do_not_leak(self, events: list[StreamllEvent]) -> None:
        async def child(name: str, turns: int) -> None:
            with span(name), bind(name=name):
                for _ in range(turns):
                    await asyncio.sleep(0)
                    events.append(emit("turn", expected=name))

        async def main() -> Span:
            with span("parent") as parent:
                await asyncio.gather(*(child(f"child{n}", n % 4) for n in range(8)))
                assert emit().span_id == parent.span_id
            return parent

        parent = asyncio.run(main())
        ends = {event.operation: event for event in events if event.event_type == "span"}
        turns = [event for event in events if event.event_type == "turn"]
        assert len(ends) == 9
        assert len(turns) == 12
        for n in range(8):
            assert ends[f"child{n}"].parent_span_id == parent.span_id
        for turn in turns:
            assert turn.data["name"] == turn.data["expected"]
            assert turn.span_id == ends[turn.data["name"]].span_id
            assert turn.execution_id == parent.execution_id
        assert current() is ROOT

    def test_a_chain_of_tasks_keeps_no_scopes_alive(self, events: list[StreamllEvent]) -> None:
        alive: weakref.WeakSet[Marker] = weakref.WeakSet()
        tasks: set[asyncio.Task[None]] = set()

        async def tick(left: int, done: asyncio.Future[None]) -> None:
            marker = Marker()
            alive.add(marker)
            with bind(marker=marker), span("tick"):
                del marker
                if not left:
                    done.set_result(None)
                    return
                task = asyncio.create_task(tick(left - 1, done))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def main() -> int:
            done = asyncio.get_running_loop().create_future()
            await asyncio.create_task(tick(100, done))
            await done
            events.clear()
            gc.collect()
            return len(alive)

        assert asyncio.run(main()) < 10


class TestBindContext:
    def test_carries_the_scope_into_threads(self, events: list[StreamllEvent]) -> None:
        def work(n: int) -> StreamllEvent:
            with span("work", n=n):
                return emit()

        with ThreadPoolExecutor(4) as pool, span("parent") as parent, bind(user=1):
            bound = bind_context(work)
            inside = list(pool.map(bound, range(20)))
            outside = pool.submit(work, 20).result()
        assert {event.parent_span_id for event in inside} == {parent.span_id}
        assert {event.execution_id for event in inside} == {parent.execution_id}
        assert {event.data["user"] for event in inside} == {1}
        assert outside.execution_id != parent.execution_id
        assert outside.data == {}

    def test_calls_may_overlap_and_nest_and_see_nothing_of_each_other(self, events: list[StreamllEvent]) -> None:
        both = threading.Barrier(2, timeout=10)
        mine: ContextVar[int] = ContextVar("mine", default=0)

        def work(n: int, again: bool = True) -> int:
            before = mine.get()
            mine.set(n)
            if again:
                both.wait()
                assert bound(n, again=False) == 7
            assert mine.get() == n
            return before

        mine.set(7)
        bound = bind_context(work)
        mine.set(8)
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(bound, [1, 2])) == [7, 7]
        assert mine.get() == 8

    def test_a_coroutine_function_runs_in_it_step_by_step(self, events: list[StreamllEvent]) -> None:
        mine: ContextVar[int] = ContextVar("mine", default=0)

        async def work(turns: int) -> list[tuple[str, int]]:
            seen = []
            for turn in range(turns):
                seen.append((emit().span_id, mine.get()))
                mine.set(10 * turns + turn)
                await asyncio.sleep(0)
            return seen

        with span("parent") as parent:
            mine.set(1)
            bound = bind_context(work)
            mine.set(2)
        assert inspect.iscoroutinefunction(bound)

        async def main() -> None:
            with span("elsewhere") as elsewhere:
                three, two = await asyncio.gather(bound(3), bound(2))
                assert emit().span_id == elsewhere.span_id
                assert mine.get() == 2
            assert three == [(parent.span_id, n) for n in (1, 30, 31)]
            assert two == [(parent.span_id, n) for n in (1, 20)]

        asyncio.run(main())

    def test_errors_and_cancellation_reach_a_bound_coroutine(self) -> None:
        async def main() -> None:
            started = asyncio.Event()
            caught: list[type[BaseException]] = []

            @bind_context
            async def work() -> str:
                try:
                    started.set()
                    await asyncio.Event().wait()
                except asyncio.CancelledError as error:
                    caught.append(type(error))
                return "ended"

            task = asyncio.create_task(work())
            await started.wait()
            task.cancel()
            assert await task == "ended"
            assert caught == [asyncio.CancelledError]

            @bind_context
            async def fail() -> None:
                await asyncio.sleep(0)
                raise ValueError("no")

            with pytest.raises(ValueError, match="no"):
                await fail()

        asyncio.run(main())

    def test_an_error_keeps_no_frame_alive(self) -> None:
        kept: list[weakref.ref[Marker]] = []

        @bind_context
        async def fail(waits: bool) -> None:
            local = Marker()
            kept.append(weakref.ref(local))
            if waits:
                await asyncio.sleep(0)
            raise ValueError("no")

        def drive(thrown: list[Exception]) -> None:
            running = fail(waits=bool(thrown))
            try:
                running.send(None)
                running.throw(thrown.pop())
            except ValueError:
                pass

        gc.collect()
        gc.disable()
        try:
            drive([])
            drive([ValueError("in")])
            assert [each() for each in kept] == [None, None]
        finally:
            gc.enable()

    def test_keeps_what_the_function_is(self) -> None:
        def work(a: int, b: str = "x") -> None:
            """Does it."""

        bound = bind_context(work)
        assert (bound.__name__, bound.__doc__, bound.__module__) == ("work", "Does it.", __name__)
        assert inspect.signature(bound) == inspect.signature(work)

    def test_takes_any_callable(self, events: list[StreamllEvent]) -> None:
        class Worker:
            async def __call__(self, n: int) -> str:
                await asyncio.sleep(0)
                return emit().span_id

            def method(self) -> str:
                return emit().span_id

        with span("parent") as parent:
            called, method, part = (
                bind_context(Worker()),
                bind_context(Worker().method),
                bind_context(partial(emit, "x")),
            )
        assert asyncio.run(called(1)) == method() == part().span_id == parent.span_id


class TestFork:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_child_has_no_span_and_reports_none_of_its_parents(self, events: list[StreamllEvent]) -> None:
        answers, answer = os.pipe()
        with span("parent") as parent:
            child = os.fork()
            if child == 0:  # pragma: no cover  # it leaves without a word to anybody
                try:
                    apart = current() is ROOT
                    with span("own") as own:
                        pass
                    parent.__exit__(None, None, None)
                    apart &= own.execution_id != parent.execution_id and len(events) == 1 and current() is ROOT
                    os.write(answer, b"apart" if apart else b"mixed up")
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        assert os.read(answers, 100) == b"apart"
        os.close(answers)
        os.close(answer)
        assert [event.operation for event in events] == ["parent"]


def test_a_copied_context_may_be_entered_and_left_anywhere(events: list[StreamllEvent]) -> None:
    context = copy_context()
    inner = span("inner")
    context.run(inner.__enter__)
    assert current() is ROOT
    inner.__exit__(None, None, None)
    assert context.run(current) is ROOT
    assert [event.operation for event in events] == ["inner"]
