"""MemorySink: what a user's test sees of it."""

from __future__ import annotations

import pytest

from streamll.codec import decode
from streamll.errors import ConfigurationError
from streamll.models import StreamllEvent
from streamll.options import KIB, PipelineOptions
from streamll.pipeline import Pipeline
from streamll.sinks.memory import MemorySink


def emit(sink: MemorySink, *operations: str) -> None:
    for operation in operations:
        assert sink.handle_event(StreamllEvent(event_type="test", operation=operation, data={"password": "hunter2"}))
    assert sink.flush(30)


def test_events_and_records_are_what_a_broker_would_have_got() -> None:
    with MemorySink() as sink:
        emit(sink, "a", "b")
        assert [event.operation for event in sink.events] == ["a", "b"]
        assert sink.events[0].data == {"password": "[redacted]"}
        assert [entry.seq for entry in sink.records] == [1, 2]
        assert decode(sink.records[1].record.payload) == sink.events[1]
        assert sink.dead_letters == []


def test_the_oldest_give_way() -> None:
    with MemorySink(max_events=3) as sink:
        emit(sink, *"abcde")
        assert [event.operation for event in sink.events] == ["c", "d", "e"]
        assert sink.stats().delivered == 5


def test_dead_letters_and_clear() -> None:
    pipeline = Pipeline(PipelineOptions(max_event_bytes=KIB, oversize="dead_letter"))
    with MemorySink(pipeline=pipeline) as sink:
        emit(sink, "a", "b" * 2000)
        assert "too large" in sink.dead_letters[0].dead_letter
        sink.clear()
        assert (sink.events, sink.records, sink.dead_letters) == ([], [], [])
        assert (sink.stats().delivered, sink.stats().dead_lettered) == (1, 1)


def test_urls() -> None:
    sink = MemorySink.from_url("memory://a%20box?max_events=7", buffer_size=9)
    assert (sink.name, sink.options.buffer_size, sink.destination) == ("a box", 9, "memory://a box")
    assert MemorySink.from_url("memory://").name == "memory"
    assert MemorySink.from_url("memory://one?name=two").name == "two"
    for url in ("memory://box/path", "memory://box#part"):
        with pytest.raises(ConfigurationError, match="must be memory://"):
            MemorySink.from_url(url)
    with pytest.raises(ConfigurationError, match="max_events='0'"):
        MemorySink.from_url("memory://?max_events=0")
    assert [finding.level for finding in MemorySink.check_url("memory://box")] == ["warning"]
