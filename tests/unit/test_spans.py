"""Spans, and errors as events."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import traceback
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import time_ns
from typing import Any

import pytest

from streamll.context import ROOT, SCOPE, current, execution
from streamll.errors import BufferFullError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.spans import FRAMES_BOUND, MESSAGE_BOUND, STACK_BOUND, Span, capture_exception, span
from tests.unit.here import event_here

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


class Marker:
    """Something whose life can be watched."""


class BrokenError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class TestEvent:
    def test_is_one_at_the_end_with_the_start_as_its_time(self, events: list[StreamllEvent]) -> None:
        before = time_ns()
        with span("retrieve", k=5) as retrieve:
            inside = time_ns()
            assert events == []
            retrieve.set(found=3, k=6)
        (event,) = events
        assert (event.event_type, event.operation, event.level) == ("span", "retrieve", "info")
        assert before <= event.timestamp <= inside
        assert 0 < event.data.pop("duration_ns") <= time_ns() - before
        assert event.data == {"k": 6, "found": 3}
        assert (event.span_id, event.execution_id) == (retrieve.span_id, retrieve.execution_id)
        assert event.parent_span_id == ""

    def test_a_root_span_begins_an_execution_which_those_inside_share(self, events: list[StreamllEvent]) -> None:
        with span("outer") as outer:
            with span("inner") as inner:
                pass
            with span("sibling") as sibling:
                pass
        with span("apart") as apart:
            pass
        first, second, third, _ = events
        assert len(outer.execution_id) == 32
        assert outer.execution_id == inner.execution_id == sibling.execution_id != apart.execution_id
        assert first.parent_span_id == second.parent_span_id == third.span_id == outer.span_id
        assert len({outer.span_id, inner.span_id, sibling.span_id, apart.span_id}) == 4

    def test_a_given_execution_is_used(self, events: list[StreamllEvent]) -> None:
        with execution("order-42"), span("work"):
            pass
        assert events[0].execution_id == "order-42"

    def test_any_name_is_an_attribute(self, events: list[StreamllEvent]) -> None:
        with span("work", self=1, operation=2, name=3, exc=4) as work:
            work.set(self=5, attributes=6)
            work.event("step", self=7, name=8)
        assert events[0].data == {"self": 7, "name": 8}
        del events[1].data["duration_ns"]
        assert events[1].data == {"self": 5, "operation": 2, "name": 3, "exc": 4, "attributes": 6}

    def test_the_measured_duration_wins_over_an_attribute(self, events: list[StreamllEvent]) -> None:
        with span("work", duration_ns=-1):
            pass
        assert events[0].data["duration_ns"] > 0

    def test_may_announce_its_start(self, events: list[StreamllEvent]) -> None:
        with span("index", files=3).announce() as index:
            index.set(files=4)
        start, end = events
        assert (start.event_type, start.level, start.data) == ("span_start", "info", {"files": 3})
        assert (start.span_id, start.timestamp, start.operation) == (end.span_id, end.timestamp, "index")
        assert start.event_id != end.event_id
        assert end.event_type == "span"

    def test_async_with(self, events: list[StreamllEvent]) -> None:
        async def main() -> None:
            async with span("work") as work:
                await asyncio.sleep(0)
                assert current().span_id == work.span_id
            with pytest.raises(KeyError):
                async with span("fails"):
                    raise KeyError("x")

        asyncio.run(main())
        assert [event.level for event in events] == ["info", "error"]


class TestErrors:
    def test_goes_on_as_it_was(self, events: list[StreamllEvent]) -> None:
        raised = ValueError("no", 5)
        raised.__cause__ = cause = OSError()
        with pytest.raises(ValueError, match="no") as caught, span("work"):
            raise raised
        assert caught.value is raised
        assert raised.__cause__ is cause
        assert raised.__context__ is None
        assert len(traceback.extract_tb(raised.__traceback__)) == 1
        assert events[0].level == "error"
        assert events[0].data["error"] == {"type": "ValueError", "message": "('no', 5)"}

    def test_the_type_is_qualified(self, events: list[StreamllEvent]) -> None:
        with pytest.raises(BufferFullError), span("work"):
            raise BufferFullError("full")
        assert events[0].data["error"]["type"] == "streamll.errors.BufferFullError"

    def test_one_that_cannot_say_what_it_is(self, events: list[StreamllEvent]) -> None:
        with pytest.raises(BrokenError) as caught, span("work"):
            raise BrokenError
        assert events[0].data["error"]["message"] == f"<{__name__}.BrokenError.__str__ raised>"
        assert caught.value.__context__ is None

    def test_a_long_message_is_cut(self, events: list[StreamllEvent]) -> None:
        with pytest.raises(ValueError, match="x"), span("work"):
            raise ValueError("x" * 100_000)
        assert events[0].data["error"]["message"] == "x" * MESSAGE_BOUND + "..."

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
    def test_those_that_end_the_program_are_recorded(
        self, events: list[StreamllEvent], kind: type[BaseException]
    ) -> None:
        with pytest.raises(kind), span("work"):
            raise kind("stop")
        assert events[0].data["error"] == {"type": kind.__name__, "message": "stop"}

    def test_a_cancelled_task_is_no_error(self, events: list[StreamllEvent]) -> None:
        async def work() -> None:
            with span("work"):
                await asyncio.Event().wait()

        async def main() -> None:
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        (event,) = events
        assert event.data["cancelled"] is True
        assert "error" not in event.data
        assert event.level == "info"

    def test_another_librarys_cancellation_is_known_by_its_name(self, events: list[StreamllEvent]) -> None:
        class Cancelled(BaseException):
            pass

        class CancelledError(Exception):
            pass

        with pytest.raises(Cancelled), span("work"):
            raise Cancelled
        with pytest.raises(CancelledError), span("work"):
            raise CancelledError
        assert [event.data.get("cancelled") for event in events] == [True, None]
        assert [event.level for event in events] == ["info", "error"]

    def test_a_hub_that_raises_is_not_heard(self, events: list[StreamllEvent]) -> None:
        def full(event: StreamllEvent) -> bool:
            raise BufferFullError("full")

        hub.fill(full)
        with span("work").announce() as work:
            work.event("step")
            assert capture_exception(ValueError("no")) is None
        with pytest.raises(ValueError, match="no") as caught, span("work"):
            raise ValueError("no")
        assert caught.value.__context__ is None

    def test_keeps_no_frame_alive(self, events: list[StreamllEvent]) -> None:
        def fail() -> weakref.ref[Marker]:
            local = Marker()
            watched = weakref.ref(local)
            try:
                with span("work"):
                    raise ValueError("no")
            except ValueError:
                capture_exception()
            return watched

        gc.collect()
        gc.disable()
        try:
            assert fail()() is None
        finally:
            gc.enable()
        assert [event.event_type for event in events] == ["span", "error"]

    def test_a_full_stack_stays_the_programs_error(self, events: list[StreamllEvent]) -> None:
        def deeper() -> None:
            with span("deeper"):
                deeper()

        with span("outer") as outer:
            with pytest.raises(RecursionError):
                deeper()
            assert current() is SCOPE.get()
            assert current().span_id == outer.span_id
        assert [event.operation for event in events[-2:]] == ["deeper", "outer"]
        assert events[-2].data["error"]["type"] == "RecursionError"


class TestMisuse:
    def test_used_before_it_is_entered(self, events: list[StreamllEvent]) -> None:
        early = span("work")
        assert (early.span_id, early.execution_id) == ("", "")
        early.set(a=1)
        with span("around") as around:
            early.event("step")
        early.__exit__(None, None, None)
        assert events[0].span_id == around.span_id
        assert [event.event_type for event in events] == ["step", "span"]

    def test_used_after_its_end(self, events: list[StreamllEvent]) -> None:
        with span("work", a=1) as work:
            pass
        work.set(a=2)
        work.event("late")
        work.__exit__(None, None, None)
        ended, late = events
        assert ended.data["a"] == 1
        assert late.span_id == ended.span_id == work.span_id

    def test_entered_while_it_runs(self, events: list[StreamllEvent]) -> None:
        work = span("work")
        with work, work:
            pass
        assert len(events) == 1

    def test_entered_again_after_its_end_is_a_new_span(self, events: list[StreamllEvent]) -> None:
        work = span("work", a=1)
        with work:
            pass
        with work:
            pass
        first, second = events
        assert first.span_id != second.span_id
        assert second.data["a"] == 1

    def test_a_span_that_is_never_ended_makes_no_event(self, events: list[StreamllEvent]) -> None:
        span("work").__enter__()
        gc.collect()
        assert events == []
        SCOPE.set(ROOT)


class TestSpanEvent:
    def test_belongs_to_the_span_wherever_it_is_called(self, events: list[StreamllEvent]) -> None:
        with span("outer") as outer, span("inner"):
            outer.event("cache_miss", key="a")
        (miss, inner, _) = events
        assert (miss.event_type, miss.operation, miss.data) == ("cache_miss", "outer", {"key": "a"})
        assert miss.span_id == outer.span_id != inner.span_id
        assert miss.execution_id == outer.execution_id
        assert miss.parent_span_id == ""


class TestInactive:
    def test_does_nothing(self, inactive: None) -> None:
        with span("work", k=5).announce() as work:
            assert (work.span_id, work.execution_id) == ("", "")
            assert current() is ROOT
            work.set(a=1)
            work.event("step")
        assert capture_exception(ValueError("no")) is None

    def test_is_one_object_for_all_which_nothing_changes(self, inactive: None) -> None:
        first = span("work", k=5)
        assert isinstance(first, Span)
        assert first.prioritize("debug") is first
        with pytest.raises(ValueError, match="no"), first:
            raise ValueError("no")
        assert span("other") is first
        assert first.operation == ""
        with pytest.raises(TypeError, match="a span is no decorator"):
            first(len)

        async def work() -> None:
            async with span("later") as same:
                assert same is first

        asyncio.run(work())

    def test_made_before_and_entered_afterwards_it_stays_so(self, events: list[StreamllEvent]) -> None:
        with hub.instead(hub.dispatch):
            hub.empty()
            early = span("early")
        with early:
            assert current() is ROOT
        assert events == []

    def test_activated_or_deactivated_in_the_middle(self, events: list[StreamllEvent]) -> None:
        dispatch = hub.dispatch
        with span("ends inactive"):
            hub.empty()
        assert current() is ROOT
        with span("begins inactive") as late:
            hub.fill(dispatch)
            late.event("step")
        assert [event.event_type for event in events] == ["step"]
        assert events[0].span_id == ""


def fail_at_depth(depth: int) -> None:
    if depth:
        fail_at_depth(depth - 1)
    raise KeyError("deep")


class TestCaptureException:
    def test_describes_the_error_and_its_stack(self, events: list[StreamllEvent]) -> None:
        with span("work") as work:
            with pytest.raises(KeyError) as caught:
                fail_at_depth(2)
            error = caught.value
            event_id = capture_exception(error, question="why", error="mine")
        event = events[0]
        assert event.event_id == event_id
        assert (event.event_type, event.level, event.span_id) == ("error", "error", work.span_id)
        assert (event.module_name, event.method_name) == (__name__, "fail_at_depth")
        described = event.data["error"]
        assert (described["type"], described["message"]) == ("KeyError", "'deep'")
        expected = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        assert [tuple(line.rsplit(" in ", 1)[0].rsplit(":", 1)) for line in described["stack"]] == [
            (file, str(line)) for file, line in expected
        ]
        assert described["stack"][-1].endswith(" in fail_at_depth")
        assert event.data["question"] == "why"

    def test_takes_the_one_that_is_being_handled(self, events: list[StreamllEvent]) -> None:
        try:
            raise ValueError("no")
        except ValueError:
            event_id = capture_exception()
        assert events[0].event_id == event_id
        assert events[0].data["error"]["type"] == "ValueError"

    def test_without_any_error_there_is_nothing_to_say(self, events: list[StreamllEvent]) -> None:
        assert sys.exc_info() == (None, None, None)
        assert capture_exception() is None
        assert events == []

    def test_one_that_was_never_raised(self, events: list[StreamllEvent]) -> None:
        capture_exception(ValueError("no"))
        assert events[0].data["error"]["stack"] == []
        assert events[0].module_name == ""

    def test_what_is_no_error_is_no_error_of_the_hosts(self, events: list[StreamllEvent]) -> None:
        capture_exception("oops")  # type: ignore[arg-type]  # what an untyped program may do
        assert events[0].data["error"] == {"type": "str", "message": "oops", "stack": []}

    def test_an_error_whose_type_hides_its_name(self, events: list[StreamllEvent]) -> None:
        class Nameless(type):
            def __getattribute__(cls, name: str) -> object:
                if name == "__module__":
                    raise RuntimeError("no name")
                return super().__getattribute__(name)

        class OddError(Exception, metaclass=Nameless):
            pass

        odd = OddError()
        assert capture_exception(odd) is not None
        try:
            with span("work"):
                raise odd
        except OddError as error:
            assert error is odd  # noqa: PT017  # what pytest makes of it asks for its module's name
        names = {event.data["error"]["type"].rsplit(".", 1)[1] for event in events}
        assert names == {"OddError"}

    def test_a_deep_stack_is_bounded(self, events: list[StreamllEvent]) -> None:
        try:
            fail_at_depth(200)
        except KeyError:
            capture_exception()
        stack = events[0].data["error"]["stack"]
        assert stack[0] == f"({202 - STACK_BOUND} outer frames left out)"
        assert len(stack) == STACK_BOUND + 1
        assert stack[-1].endswith("in fail_at_depth")

    def test_a_module_without_a_name(self, events: list[StreamllEvent]) -> None:
        code = compile("raise ValueError('no')", os.devnull, "exec")
        try:
            exec(code, {"__name__": None})
        except ValueError:
            capture_exception()
        assert events[0].module_name == ""

    def test_returns_none_when_no_sink_took_it(self, events: list[StreamllEvent]) -> None:
        hub.fill(lambda event: False)
        assert capture_exception(ValueError("no")) is None


@contextmanager
def entered_here() -> Iterator[Span]:
    """A span of a helper's, whose own frame rests while the block runs."""
    with span("helped") as helped:
        yield helped


class TestFrames:
    """Whose code runs, for those who see stacks and no context."""

    @pytest.fixture
    def frames(self, events: list[StreamllEvent]) -> Iterator[dict[int, Any]]:
        hub.frames = {}
        yield hub.frames
        hub.frames = None

    def test_are_the_spans_while_it_is_entered(self, frames: dict[int, Any]) -> None:
        here = id(sys._getframe())
        with span("outer") as outer:
            assert frames == {here: outer}
            with span("inner") as inner:
                assert frames == {here: inner}
            assert frames == {here: outer}
        assert frames == {}
        assert outer.operation == "outer"

    def test_are_those_of_whoever_runs_inside_not_of_helpers(self, frames: dict[int, Any]) -> None:
        here = id(sys._getframe())
        with ExitStack() as stack:
            stacked = stack.enter_context(span("stacked"))
            assert frames == {here: stacked}
            with entered_here() as helped:
                assert frames == {here: helped}
            assert frames == {here: stacked}
        assert frames == {}

    def test_of_coroutines_and_generators_are_their_own(self, frames: dict[int, Any]) -> None:
        async def work() -> None:
            here = id(sys._getframe())
            async with span("async") as own:
                assert frames == {here: own}

        def steps() -> Iterator[None]:
            here = id(sys._getframe())
            with span("steps") as own:
                yield
                assert frames == {here: own}

        asyncio.run(work())
        assert list(steps()) == [None]
        assert frames == {}

    def test_may_stop_being_wanted_in_the_middle(self, frames: dict[int, Any]) -> None:
        with span("work"):
            hub.frames = None
        with span("work"):
            hub.frames = {}
        assert hub.frames == {}

    def test_left_out_of_order(self, frames: dict[int, Any]) -> None:
        with span("outer") as outer:
            first, second = span("first"), span("second")
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            assert list(frames.values()) == [second]
            second.__exit__(None, None, None)
            assert list(frames.values()) == [outer]
        assert frames == {}

    def test_are_bounded(self, frames: dict[int, Any]) -> None:
        frames.update(dict.fromkeys(range(FRAMES_BOUND)))
        with span("one too many"):
            assert len(frames) == FRAMES_BOUND


def test_a_span_may_be_subclassed_and_typed(events: list[StreamllEvent]) -> None:
    class Timed(Span):
        __slots__ = ()

    with Timed("work") as timed:
        assert isinstance(timed, Timed)
    assert event_here("x") is not None
    assert events[0].operation == "work"
