"""Events made here and now, for the tests of what they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamll.api import emit
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.privacy import process_key


@contextmanager
def the_same_hub_afterwards() -> Iterator[None]:
    """Let a block fill and empty the hub as it likes."""
    with hub.instead(lambda event: False):
        hub.empty()
        yield


def event_here(event_type: str, data: Any = None, **given: Any) -> StreamllEvent | None:
    """The event that `emit` makes now, which goes nowhere else; None where events are cut off."""
    made: list[StreamllEvent] = []

    def keep(event: StreamllEvent) -> bool:
        made.append(event)
        return True

    with hub.instead(keep):
        emit(event_type, data, **given)
    return made[0] if made else None


@contextmanager
def no_pseudonym_yet() -> Iterator[None]:
    """Let a block be the first in the process to need a key for pseudonyms."""
    before = process_key._made.copy()
    process_key._made.clear()
    try:
        yield
    finally:
        process_key._made.clear()
        process_key._made.update(before)
