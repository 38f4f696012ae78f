"""The process's one configuration, on sinks that need no server."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import streamll
from streamll import api
from streamll.models import StreamllEvent
from streamll.pipeline import Pipeline
from streamll.sinks.memory import MemorySink
from streamll.testing import capture
from tests.fixtures.interrupts import interrupted
from tests.fixtures.waiting import wait_until


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    streamll.shutdown(5)
    streamll.configure(sinks=[], environ={})


def types(sink: MemorySink) -> list[str]:
    """The types of what was delivered."""
    assert sink.flush(10)
    return [event.event_type for event in sink.events]


def test_emit_reaches_every_sink_and_balances() -> None:
    sinks = [MemorySink(name="a"), MemorySink(name="b")]
    streamll.configure(sinks=sinks, environ={})
    assert streamll.emit("token", operation="generate", data={"text": "Hi", "password": "x"}, tags=["a"], level="info")
    assert streamll.flush(10)
    for sink in sinks:
        (event,) = sink.events
        assert (event.event_type, event.operation, event.level, event.tags) == ("token", "generate", "info", ["a"])
        assert event.data == {"text": "Hi", "password": "[redacted]"}
    stats = streamll.stats()
    assert stats.balanced
    assert {name: numbers.delivered for name, numbers in stats.sinks.items()} == {"a": 1, "b": 1}
    assert stats.pipeline.redacted == 1  # once for both: they share the bytes


def test_emit_without_configuration_is_a_no_op_that_is_said_once() -> None:
    script = "import streamll\nfor _ in range(3): assert streamll.emit('x') is False\nprint(streamll.flush(), streamll.stats().balanced)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.count("before configure()") == 1
    assert done.stdout == "True True\n"


def test_disabled_is_silent_and_makes_no_sink() -> None:
    script = """
import streamll, threading
streamll.configure(sinks=["redis://localhost:1/0"])
assert streamll.emit("x") is False
with streamll.span("s") as span: span.event("e")
@streamll.trace
def f(): return 5
assert f() == 5 and threading.active_count() == 1 and not streamll.stats().sinks
"""
    env = {**os.environ, "STREAMLL_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_environment_configures_everything() -> None:
    environ = {
        "STREAMLL_SINKS": "memory://a?batch_size=7, memory://b",
        "STREAMLL_BATCH_SIZE": "20",
        "STREAMLL_BUFFER_SIZE": "50",
        "STREAMLL_SERVICE": "shop",
        "STREAMLL_REDACT_KEYS": "patient",
        "OTEL_SERVICE_NAME": "other",
    }
    streamll.configure(environ=environ)
    first, second = api.sinks()
    assert (first.name, first.options.batch_size, first.options.buffer_size) == ("a", 7, 50)
    assert (second.name, second.options.batch_size) == ("b", 20)
    streamll.emit("x", data={"patient": "Ann"})
    assert streamll.flush(10)
    assert isinstance(first, MemorySink)
    assert first.events[0].resource["service"] == "shop"
    assert first.events[0].data == {"patient": "[redacted]"}


def test_what_is_given_in_python_wins_over_the_environment() -> None:
    environ = {"STREAMLL_BATCH_SIZE": "20", "STREAMLL_SERVICE": "env", "OTEL_SERVICE_NAME": "otel"}
    streamll.configure(sinks=["memory://"], batch_size=30, environ=environ)
    assert api.sinks()[0].options.batch_size == 30
    streamll.configure(sinks=["memory://"], service="given", environ=environ)
    assert api._route is not None
    assert api._route.pipeline.resource["service"] == "given"
    streamll.configure(sinks=["memory://"], environ={"OTEL_SERVICE_NAME": "otel"})
    assert api._route is not None
    assert api._route.pipeline.resource["service"] == "otel"


def test_urls_with_several_hosts_are_not_taken_apart() -> None:
    streamll.configure(sinks="redis+sentinel://a:1,b:2/service?stream=s,memory://m", environ={})
    assert [sink.name for sink in api.sinks()] == ["redis", "m"]


def test_sinks_of_one_kind_get_names_of_their_own() -> None:
    streamll.configure(sinks=["memory://", "memory://", "memory://"], environ={})
    assert list(streamll.stats().sinks) == ["memory", "memory-2", "memory-3"]


TWICE = MemorySink()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sinks": ["nonsense://x"]}, ("nonsense", "redis")),
        ({"sinks": ["redis://localhost:99999/0"]}, ("port", "65535")),
        ({"sinks": ["memory://"], "batch_size": 0}, ("batch_size", "0", "at least 1")),
        ({"sinks": ["memory://"], "no_such_option": 1}, ("no_such_option", "batch_size")),
        ({"sinks": ["memory://?no_such_option=1"]}, ("no_such_option", "max_events")),
        ({"sinks": ["redis://[::1/0"]}, ("URL", "host")),
        ({"sinks": [5]}, ("sinks", "int")),
        ({"sinks": 5}, ("sinks", "list")),
        ({"sinks": [TWICE, TWICE]}, ("sinks", "memory://", "twice")),
        ({"sinks": ["memory://"], "before_send": [3]}, ("before_send", "int")),
        ({"sinks": ["memory://"], "before_send": 3}, ("before_send", "int")),
        ({"sinks": ["memory://"], "buffer_overflow_strategy": "drop"}, ("buffer_overflow_strategy", "drop_oldest")),
        (
            {"sinks": ["memory://"], "durability": "disk", "spool_bytes": 1_000_000},
            ("spool_bytes", "twice", "segment_bytes"),
        ),
        ({"sinks": ["memory://"], "environ": {"STREAMLL_ENABLED": "perhaps"}}, ("STREAMLL_ENABLED", "perhaps")),
        (
            {"sinks": ["memory://"], "environ": {"STREAMLL_BATCH_SIZE": "x"}},
            ("STREAMLL_BATCH_SIZE", "'x'", "at least 1"),
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_error_and_changes_nothing(
    arguments: dict[str, object], words: tuple[str, ...]
) -> None:
    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    with pytest.raises(streamll.ConfigurationError) as caught:
        streamll.configure(**{"environ": {}, **arguments})  # type: ignore[arg-type]  # wrong on purpose
    for word in words:
        assert word in str(caught.value)
    assert streamll.emit("x")
    assert types(sink) == ["x"]


def test_a_second_configuration_takes_over_and_drains_the_first() -> None:
    first, second = MemorySink(name="first", flush_interval=60), MemorySink(name="second")
    streamll.configure(sinks=[first], environ={})
    streamll.emit("one")
    streamll.configure(sinks=[second], environ={})
    streamll.emit("two")
    assert [event.event_type for event in first.events] == ["one"]
    assert first.stats().phase == "stopped"
    assert types(second) == ["two"]


def test_a_sink_may_stay_in_the_next_configuration() -> None:
    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    streamll.emit("one")
    streamll.configure(sinks=[sink], environ={}, service="s")
    streamll.emit("two")
    assert types(sink) == ["one", "two"]


def test_after_shutdown_emit_is_a_no_op_and_the_numbers_stay() -> None:
    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    streamll.emit("one")
    last = streamll.shutdown(10)
    assert last.sinks["memory"].delivered == 1
    assert streamll.emit("two") is False
    assert streamll.stats() == last


def test_before_send_changes_and_drops() -> None:
    def drop_tokens(event: StreamllEvent) -> StreamllEvent | None:
        return None if event.event_type == "token" else event

    def mark(event: StreamllEvent) -> StreamllEvent:
        event.data["marked"] = True
        streamll.emit("from_inside")
        return event

    sink = MemorySink()
    streamll.configure(sinks=[sink], before_send=[drop_tokens, mark], environ={})
    data = {"n": 1}
    assert not streamll.emit("token")
    assert streamll.emit("other", data=data)
    assert types(sink) == ["other"]
    assert sink.events[0].data == {"n": 1, "marked": True}
    assert data == {"n": 1}
    streamll.configure(sinks=[sink], before_send=drop_tokens, environ={})  # one needs no list
    assert not streamll.emit("token")
    assert streamll.stats().pipeline.filtered == 1


def test_each_sink_has_its_own_filter() -> None:
    everything = MemorySink(name="everything")
    errors = MemorySink(name="errors", event_filter=lambda event: event.level == "error")
    streamll.configure(sinks=[everything, errors], environ={})
    streamll.emit("a", level="info")
    streamll.emit("b", level="error")
    assert types(everything) == ["a", "b"]
    assert types(errors) == ["b"]
    numbers = errors.stats()
    assert (numbers.offered, numbers.accepted, dict(numbers.refused)) == (2, 1, {"filtered": 1})
    assert numbers.balanced


def test_raise_error_is_raised_after_all_sinks_were_offered_the_event() -> None:
    full = MemorySink(name="full", buffer_size=2, batch_size=1, buffer_overflow_strategy="raise_error")
    other = MemorySink(name="other")
    streamll.configure(sinks=[full, other], environ={})
    raised = 0
    for _ in range(2000):
        try:
            streamll.emit("x")
        except streamll.BufferFullError:
            raised += 1
    assert raised > 0
    assert streamll.flush(10)
    numbers = full.stats()
    assert numbers.refused.get("buffer_full", 0) == raised
    assert numbers.balanced
    assert len(types(other)) == 2000


def test_emit_event_takes_an_event_that_was_built_elsewhere() -> None:
    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    event = StreamllEvent(event_type="x", event_id="mine", execution_id="any string")
    assert streamll.emit_event(event)
    assert types(sink) == ["x"]
    assert (sink.events[0].event_id, sink.events[0].execution_id) == ("mine", "any string")
    assert event.resource == {}


def test_context_follows_tasks_and_is_handed_to_threads() -> None:
    async def step(name: str) -> None:
        with streamll.span(name):
            await asyncio.sleep(0)
            streamll.emit("inside", data={"in": name})

    async def main() -> None:
        with streamll.span("root"):
            await asyncio.gather(step("a"), step("b"))
            thread = threading.Thread(target=streamll.bind_context(streamll.emit), args=("from_thread",))
            thread.start()
            thread.join()
        assert await streamll.aflush(10)
        await streamll.ashutdown(10)

    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    asyncio.run(main())
    spans = {event.operation: event for event in sink.events if event.event_type == "span"}
    assert len({event.execution_id for event in sink.events}) == 1
    assert spans["a"].parent_span_id == spans["b"].parent_span_id == spans["root"].span_id
    for event in sink.events:
        if event.event_type == "inside":
            assert event.span_id == spans[event.data["in"]].span_id
        if event.event_type == "from_thread":
            assert event.span_id == spans["root"].span_id


def test_emit_from_signal_handlers_finalisers_and_logging_handlers() -> None:
    class Forwarding(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            streamll.emit("log", data={"message": record.getMessage()})

    class Dying:
        def __init__(self) -> None:
            self.me = self  # a cycle, so that the garbage collector finds it at some allocation

        def __del__(self) -> None:
            if not streamll.emit("died"):
                cut_off.append(self)  # the collection was on the worker's thread, where nothing becomes an event

    cut_off: list[object] = []
    sink = MemorySink(buffer_size=1_000_000, max_events=1_000_000)
    streamll.configure(sinks=[sink], environ={})
    handler = Forwarding()
    root = logging.getLogger()
    threshold = gc.get_threshold()
    root.addHandler(handler)
    gc.set_threshold(10)
    try:
        with interrupted(lambda: streamll.emit("signal"), 0.001):
            for n in range(3000):
                Dying()
                streamll.emit("main", data={"n": n})
                if n % 10 == 0:
                    root.error("a record")
    finally:
        gc.set_threshold(*threshold)
        root.removeHandler(handler)
    gc.collect()
    counts: dict[str, int] = {}
    for event_type in types(sink):
        counts[event_type] = counts.get(event_type, 0) + 1
    assert counts["main"] == 3000
    assert counts["log"] == 300
    assert counts["died"] + len(cut_off) >= 2900
    assert counts["signal"] > 0
    stats = streamll.stats()
    assert stats.balanced
    assert stats.pipeline.internal_errors == 0


def test_debug_logs_to_standard_error() -> None:
    script = (
        "import streamll; streamll.configure(sinks=['redis://127.0.0.1:1/0']); streamll.emit('x'); streamll.flush(1)"
    )
    env = {**os.environ, "STREAMLL_DEBUG": "1", "STREAMLL_EXIT_TIMEOUT": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0
    assert "DEBUG" in done.stderr
    assert "batch failed" in done.stderr


def test_capture_collects_what_a_reader_would_see_and_puts_back_what_was() -> None:
    sink = MemorySink()
    streamll.configure(sinks=[sink], environ={})
    with capture() as events:
        with streamll.span("work"):
            streamll.emit("token", data={"password": "x"})
        with capture() as inner:
            streamll.emit("inner")
    streamll.emit("after")
    assert [event.event_type for event in events] == ["token", "span"]
    assert events.of_type("token")[0].data == {"password": "[redacted]"}
    assert events.of_operation("work")[0].event_type == "span"
    assert [event.event_type for event in inner] == ["inner"]
    assert types(sink) == ["after"]


def test_capture_works_without_configuration() -> None:
    with capture() as events:
        assert streamll.emit("x")
    assert len(events) == 1
    assert streamll.emit("y") is False


def test_stats_read_well() -> None:
    sink = MemorySink(name="shop", event_filter=lambda event: event.event_type != "noise")
    streamll.configure(sinks=[sink], environ={})
    assert str(streamll.stats()) == "shop to memory://shop: 0 delivered, circuit closed"
    streamll.emit("x", {"data": "may come second"})
    streamll.emit("noise")
    assert streamll.flush(10)
    assert str(streamll.stats()) == "shop to memory://shop: 1 delivered, 1 refused (filtered), circuit closed"
    assert sink.events[0].data == {"data": "may come second"}


def test_a_misspelt_variable_is_said(caplog: pytest.LogCaptureFixture) -> None:
    streamll.configure(sinks=["memory://"], environ={"STREAMLL_BUFFERSIZE": "3", "STREAMLL_BUFFER_SIZE": "300"})
    assert "STREAMLL_BUFFERSIZE" in caplog.text
    assert "STREAMLL_BUFFER_SIZE is" not in caplog.text


def test_what_a_replaced_sink_could_not_deliver_is_said(caplog: pytest.LogCaptureFixture) -> None:
    streamll.configure(sinks=["redis://127.0.0.1:1/0?stop_timeout=0.1"], environ={})
    streamll.emit("x")
    streamll.configure(sinks=["memory://"], environ={})
    assert "1 shutdown" in caplog.text


def test_an_overflow_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    url = "redis://127.0.0.1:1/0?buffer_size=10&stop_timeout=0.1&recovery_timeout=0.05&retry_base=0.01"
    streamll.configure(sinks=[url], environ={})
    for _ in range(100):
        streamll.emit("x")
    assert wait_until(lambda: "the buffer is full" in caplog.text)
    streamll.shutdown()
    assert caplog.text.count("the buffer is full") == 1


def test_a_defect_in_the_pipeline_costs_the_event_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Pipeline, "_encode_any", defect)
    unplain = {"object": object()}
    sink = MemorySink()
    assert sink.handle_event(StreamllEvent(event_type="x", data=unplain)) is False
    assert sink.pipeline.stats().internal_errors == 1
    streamll.configure(sinks=[sink], environ={})
    assert streamll.emit("x", unplain) is False
    assert streamll.emit_event(StreamllEvent(event_type="x", data=unplain)) is False
    assert streamll.stats().pipeline.internal_errors == 2
    assert streamll.stats().balanced


def test_what_is_emitted_on_a_worker_thread_is_cut_off_and_counted() -> None:
    emitted = []
    sink = MemorySink(on_delivery=lambda report: emitted.append(streamll.emit("report")))
    streamll.configure(sinks=[sink], environ={})
    streamll.emit("x")
    assert types(sink) == ["x"]
    assert wait_until(lambda: emitted == [False])
    assert streamll.stats().pipeline.muted == 1
