"""What the end-to-end tests of the integrations share: what a real Redis was delivered, and servers on a loopback port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import streamll
from streamll.consumers import RedisConsumer
from streamll.models import StreamllEvent
from tests.fixtures.redis import RedisEndpoint


class Delivered:
    """What a consumer read back, when all of it was accounted for."""

    def __init__(self) -> None:
        self.events: list[StreamllEvent] = []

    def of(self, operation: str) -> list[StreamllEvent]:
        """The events of one operation."""
        return [event for event in self.events if event.operation == operation]

    def one(self, operation: str) -> StreamllEvent:
        """The only event of an operation."""
        (event,) = self.of(operation)
        return event

    def by_execution(self) -> dict[str, list[StreamllEvent]]:
        """The events of each execution."""
        found: dict[str, list[StreamllEvent]] = defaultdict(list)
        for event in self.events:
            found[event.execution_id].append(event)
        return found


@contextmanager
def delivered(server: RedisEndpoint, stream: str) -> Iterator[Delivered]:
    """Send the block's events to a real Redis; afterwards they are read back, and none may be missing or double."""
    found = Delivered()
    streamll.configure(sinks=[f"{server.url}?stream={stream}"])
    try:
        yield found
        assert streamll.flush(30)
    finally:
        stats = streamll.shutdown()
    (sink,) = stats.sinks.values()
    with RedisConsumer(server.url, stream, follow=False) as consumer:
        items = list(consumer)
    assert stats.balanced
    assert sink.offered == sink.accepted == sink.delivered == len(items)
    assert [item.seq for item in items] == list(range(1, len(items) + 1))
    found.events = [item.event for item in items if item.event is not None]
    if len(found.events) != len(items):
        pytest.fail("what was delivered cannot be read")
