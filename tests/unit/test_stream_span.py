"""Spans over streams: what is measured, and that source and consumer notice nothing of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamll import steps as steps_module
from streamll.context import current
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors.budget import Allowance, budget
from streamll.monitors.stream_span import AsyncStream, Stream, stream
from streamll.spans import span
from streamll.steps import PENDING_BOUND, STALLS_BOUND, Steps
from streamll.tracing import trace

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000
        monkeypatch.setattr(steps_module, "perf_counter_ns", lambda: self.now)
        monkeypatch.setattr("streamll.spans.perf_counter_ns", lambda: self.now)

    def paced(self, waits: Iterable[int], item: Any = "ab") -> Iterator[Any]:
        """A source whose items take so long each."""
        for wait in waits:
            self.now += wait
            yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def asynchronous(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


def consumed(source: Any) -> list[Any]:
    """The items of a stream of either kind."""

    async def all_of() -> list[Any]:
        return [item async for item in source]

    return asyncio.run(all_of()) if isinstance(source, AsyncStream) else list(source)


class TestFigures:
    def test_tell_the_pace_of_the_source_not_of_the_consumer(self, events: list[StreamllEvent], clock: Clock) -> None:
        for _ in stream(clock.paced([500, 10, 30, 20]), "generate", model="small"):
            clock.now += 1_000_000  # what the consumer does
        (event,) = events
        assert (event.operation, event.level) == ("generate", "info")
        assert event.data == {
            "model": "small",
            "items": 4,
            "waited_ns": 560,
            "first_item_ns": 500,
            "gap_p50_ns": 20,
            "gap_p95_ns": 30,
            "gap_max_ns": 30,
            "gap_max_at": 3,
            "characters": 8,
            "duration_ns": 4_000_560,
        }

    def test_name_the_stalls_and_are_bounded(self, events: list[StreamllEvent], clock: Clock) -> None:
        waits = [5, *([1, 2_000_000] * 30)]
        assert list(stream(clock.paced(waits, b"abc"), "generate", stall=0.002)) == [b"abc"] * 61
        data = events[0].data
        assert (data["stalls"], data["bytes"]) == (30, 183)
        assert data["stalled_at"] == list(range(3, 2 * STALLS_BOUND + 2, 2))

    @pytest.mark.parametrize("items", [[], [1]])
    def test_of_what_has_no_gap(self, events: list[StreamllEvent], items: list[int]) -> None:
        assert list(stream(items, "short")) == items
        data = events[0].data
        assert (data["items"], "first_item_ns" in data) == (len(items), bool(items))
        assert not any(name.startswith("gap") for name in data)

    @example(list(range(1, 3 * PENDING_BOUND)))
    @example([10**9] * (PENDING_BOUND + 2))
    @given(st.lists(st.integers(1, 10**11), min_size=2, max_size=3 * PENDING_BOUND))
    def test_quantiles_are_within_a_hundredth_of_what_sorting_gives(self, waits: list[int]) -> None:
        ends: list[StreamllEvent] = []

        def keep(event: StreamllEvent) -> bool:
            ends.append(event)
            return True

        with pytest.MonkeyPatch.context() as patch, hub.instead(keep):
            list(stream(Clock(patch).paced(waits), "x"))
        gaps = sorted(waits[1:])
        data = ends[0].data
        for name, q in (("gap_p50_ns", 0.5), ("gap_p95_ns", 0.95)):
            exact = gaps[max(0, -int(-q * len(gaps) // 1) - 1)]
            assert abs(data[name] - exact) <= exact * 0.01 + 1
        assert (data["gap_max_ns"], data["waited_ns"]) == (gaps[-1], sum(waits))

    def test_are_the_same_for_a_traced_generator(self, events: list[StreamllEvent], clock: Clock) -> None:
        list(trace(clock.paced)([7, 9]))
        list(stream(clock.paced([7, 9]), "x"))
        assert events[0].data == events[1].data

    def test_attributes_come_also_later(self, events: list[StreamllEvent]) -> None:
        tokens = stream("ab", "generate")
        for _ in tokens:
            tokens.set(tokens_in=5)
        tokens.span.set(too="late")
        assert events[0].data["tokens_in"] == 5
        assert "too" not in events[0].data


class TestItems:
    @pytest.mark.parametrize(("items", "told"), [(False, []), (True, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (9, [1])])
    @pytest.mark.parametrize("make", [iter, asynchronous])
    def test_make_events_only_when_asked_for(
        self, events: list[StreamllEvent], items: int, told: list[int], make: Callable[[Any], Any]
    ) -> None:
        assert consumed(stream(make("abcde"), "generate", items=items)) == list("abcde")
        *each, end = events
        assert [event.data["index"] for event in each] == told
        assert [event.data["item"] for event in each] == ["abcde"[n - 1] for n in told]
        for event in each:
            assert (event.event_type, event.priority, event.operation) == ("item", "debug", "generate")
            assert (event.span_id, event.execution_id) == (end.span_id, end.execution_id)

    def test_give_way_to_the_budget(self, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget, "allowance", Allowance(debug=False))
        list(stream("abc", "generate", items=True))
        assert [event.event_type for event in events] == ["span"]


class TestScope:
    @pytest.mark.parametrize("asynchronously", [False, True])
    def test_is_the_sources_and_not_the_consumers(self, events: list[StreamllEvent], asynchronously: bool) -> None:
        inside: list[str] = []

        def source() -> Iterator[str]:
            with span("step"):
                inside.append(current().parent_span_id)
                yield current().span_id
            yield current().span_id

        async def async_source() -> AsyncIterator[str]:
            for item in source():
                yield item

        async def consume() -> None:
            with span("consumer") as consumer:
                if asynchronously:
                    async for _ in stream(async_source(), "generate"):
                        assert current().span_id == consumer.span_id
                else:
                    for _ in stream(source(), "generate"):
                        assert current().span_id == consumer.span_id

        asyncio.run(consume())
        step, generate, consumer = events
        assert generate.parent_span_id == consumer.span_id
        if not asynchronously:  # a generator within one changes its scope for whoever drives it
            assert step.parent_span_id == generate.span_id == inside[0]

    def test_frames_are_told_during_steps(self, events: list[StreamllEvent]) -> None:
        hub.frames = {}
        try:

            def source() -> Iterator[list[str]]:
                assert hub.frames is not None
                yield [each.operation for each in hub.frames.values()]

            for told in stream(source(), "generate"):
                assert told == ["generate"]
                assert hub.frames == {}
        finally:
            hub.frames = None


class TestEnds:
    def test_an_error_in_the_source(self, events: list[StreamllEvent]) -> None:
        raised = ValueError("no")

        def source() -> Iterator[int]:
            yield 1
            raise raised

        with pytest.raises(ValueError, match="no") as caught:
            list(stream(source(), "generate"))
        assert caught.value is raised
        assert raised.__context__ is None
        assert events[0].level == "error"
        assert (events[0].data["items"], events[0].data["error"]["type"]) == (1, "ValueError")

    def test_a_consumer_that_stops_early_leaves_the_source_as_it_is(self, events: list[StreamllEvent]) -> None:
        source = iter([1, 2, 3])
        generator = (n for n in source)
        for item in stream(generator, "generate"):
            if item == 2:
                break
        assert (events[0].data["closed"], events[0].data["items"]) == (True, 2)
        assert list(generator) == [3]

    def test_closing_reaches_the_source_within_its_span(self, events: list[StreamllEvent]) -> None:
        ended: list[str] = []

        def source() -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                ended.append(current().span_id)

        with stream(source(), "generate") as items:
            next(items)
        assert ended == [events[0].span_id]
        assert events[0].data["closed"] is True
        items.close()
        assert len(events) == 1

    def test_closing_asynchronously(self, events: list[StreamllEvent]) -> None:
        ended: list[str] = []

        async def source() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                ended.append("source")

        class Response:
            """What has an asynchronous `close`, as clients' streams have."""

            def __aiter__(self) -> AsyncIterator[int]:
                return asynchronous([1, 2])

            async def close(self) -> None:
                ended.append("response")

        async def main() -> None:
            async with stream(source(), "generate") as items:
                assert await anext(items) == 1
            await stream(Response(), "unused").aclose()

        asyncio.run(main())
        assert ended == ["source", "response"]
        assert [event.data.get("closed") for event in events] == [True]

    def test_forgotten_asynchronously(self, events: list[StreamllEvent]) -> None:
        async def main() -> None:
            async for _ in stream(asynchronous("abc"), "generate"):
                break
            gc.collect()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run(main())
        assert [(event.data["closed"], event.data["items"]) for event in events] == [(True, 1)]

    def test_a_cancelled_consumer(self, events: list[StreamllEvent]) -> None:
        async def source() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        async def main() -> None:
            task = asyncio.ensure_future(drain(stream(source(), "generate")))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async def drain(items: AsyncIterator[int]) -> None:
            async for _ in items:
                pass

        asyncio.run(main())
        assert events[0].data["cancelled"] is True

    def test_one_that_was_never_begun_makes_no_event(self, events: list[StreamllEvent]) -> None:
        stream("abc", "generate").close()
        assert events == []


class TestSource:
    def test_hears_what_is_sent_and_thrown(self, events: list[StreamllEvent]) -> None:
        def source() -> Generator[Any, Any, None]:
            sent = yield "first"
            try:
                yield sent
            except KeyError as error:
                yield error

        items = stream(source(), "generate")
        error = KeyError("k")
        assert [next(items), items.send("sent"), items.throw(error)] == ["first", "sent", error]
        with pytest.raises(StopIteration):
            next(items)

        async def asynchronously() -> None:
            async def async_source() -> Any:
                sent = yield "first"
                try:
                    yield sent
                except KeyError as error:
                    yield error

            async_items = stream(async_source(), "generate")
            assert [await anext(async_items), await async_items.asend("sent")] == ["first", "sent"]
            assert await async_items.athrow(error) is error

        asyncio.run(asynchronously())

    def test_an_iterator_hears_of_nothing(self, events: list[StreamllEvent]) -> None:
        items = stream([1, 2], "generate")
        next(items)
        with pytest.raises(KeyError):
            items.throw(KeyError("k"))
        assert events[0].level == "error"

        async def asynchronously() -> None:
            class Plain:
                def __aiter__(self) -> Any:
                    return self

                async def __anext__(self) -> int:
                    return 1

            async_items = stream(Plain(), "generate")
            assert await anext(async_items) == 1
            with pytest.raises(KeyError):
                await async_items.athrow(KeyError("k"))

        asyncio.run(asynchronously())
        assert events[1].level == "error"

    def test_is_sent_nothing_by_us(self, events: list[StreamllEvent]) -> None:
        class Connection:
            """Whose `send` means something else."""

            def __init__(self) -> None:
                self.sent: list[Any] = []
                self.left = 2

            def __iter__(self) -> Connection:
                return self

            def __next__(self) -> int:
                if not self.left:
                    raise StopIteration
                self.left -= 1
                return self.left

            def send(self, data: Any) -> None:
                self.sent.append(data)

        connection = Connection()
        assert list(stream(connection, "read")) == [1, 0]
        assert connection.sent == []

    def test_of_both_kinds_is_of_the_kind_it_is_used_as(self, events: list[StreamllEvent]) -> None:
        class Both:
            def __iter__(self) -> Iterator[int]:
                return iter([1])

            def __aiter__(self) -> AsyncIterator[int]:
                return asynchronous([2])

        either: Any = stream(Both(), "generate")
        assert list(either) == [1]

        async def main() -> list[int]:
            later: Any = stream(Both(), "generate")
            return [item async for item in later]

        assert asyncio.run(main()) == [2]

    def test_is_handed_through_while_nothing_is_configured(self, inactive: None) -> None:
        source = (n for n in range(3))
        items = stream(source, "generate", items=True)
        assert iter(items) is source
        items.close()
        assert list(items) == []
        assert consumed(stream(asynchronous("ab"), "generate")) == ["a", "b"]
        with Steps(None) as steps:
            steps.resume()
            steps.suspend()

    @pytest.mark.parametrize(
        "wrong", [{"items": -1}, {"items": "yes"}, {"stall": 0}, {"stall": True}, {"stall": 1e999}]
    )
    def test_options_that_make_no_sense(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match="stream: "):
            stream([], "generate", **wrong)

    def test_what_is_not_iterable(self) -> None:
        with pytest.raises(TypeError, match="a int is not iterable"):
            stream(5, "generate")  # type: ignore[call-overload]

    def test_is_what_it_was(self) -> None:
        assert isinstance(stream("ab", "x"), Stream)
        assert not hasattr(stream("ab", "x"), "__aiter__")
        assert not hasattr(stream(asynchronous("ab"), "x"), "__iter__")
