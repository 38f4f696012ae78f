"""Fixtures of the tests that need no server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamll.context import ROOT, SCOPE, current
from streamll.hub import hub
from streamll.models import StreamllEvent


@pytest.fixture
def events() -> Iterator[list[StreamllEvent]]:
    """What is handed to the hub during the test, in order."""
    before = (hub.active, hub.dispatch)
    seen: list[StreamllEvent] = []

    def keep(event: StreamllEvent) -> bool:
        seen.append(event)
        return True

    hub.fill(keep)
    yield seen
    hub.active, hub.dispatch = before


@pytest.fixture
def inactive() -> Iterator[None]:
    """A process in which nothing is configured to receive events."""
    before = (hub.active, hub.dispatch)
    hub.empty()
    yield
    hub.active, hub.dispatch = before


@pytest.fixture
def no_scope_left_behind() -> Iterator[None]:
    """Fails a test after which something is current that was not before."""
    SCOPE.set(ROOT)
    yield
    assert current() is ROOT
