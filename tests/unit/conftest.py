"""Fixtures of the tests that need no server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamll.context import ROOT, SCOPE, current
from streamll.hub import hub
from streamll.models import StreamllEvent
from tests.unit.here import the_same_hub_afterwards


@pytest.fixture
def events() -> Iterator[list[StreamllEvent]]:
    """What is handed to the hub during the test, in order."""
    seen: list[StreamllEvent] = []

    def keep(event: StreamllEvent) -> bool:
        seen.append(event)
        return True

    with the_same_hub_afterwards():
        hub.fill(keep)
        yield seen


@pytest.fixture
def inactive() -> Iterator[None]:
    """A process in which nothing is configured to receive events."""
    with the_same_hub_afterwards():
        hub.empty()
        yield


@pytest.fixture
def no_scope_left_behind() -> Iterator[None]:
    """Fails a test after which something is current that was not before."""
    SCOPE.set(ROOT)
    yield
    assert current() is ROOT
