"""The hub: where events go, what else sees them, and what holds again afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import streamll
from streamll.hub import Hub, hub
from streamll.models import StreamllEvent
from tests.unit.here import the_same_hub_afterwards


class Seen:
    """A tap, and the events that went where they should."""

    def __init__(self) -> None:
        self.taps: list[tuple[Any, ...]] = []
        self.events: list[StreamllEvent] = []

    def tap(self, *fields: Any) -> None:
        self.taps.append(fields)

    def dispatch(self, event: StreamllEvent) -> bool:
        self.events.append(event)
        return True


def test_a_tap_sees_what_goes_either_way_and_what_goes_nowhere() -> None:
    mine, seen = Hub(), Seen()
    mine.tap(seen.tap)
    event = StreamllEvent("a", operation="o", module_name="m", method_name="f", level="info", data={"n": 1})
    fields = ("a", "o", "m", "f", "info", {"n": 1})
    assert mine.active
    assert not mine.dispatch(event)
    mine.fill(seen.dispatch)
    assert mine.dispatch(event)
    assert mine.take("a", "", "", "", "", 0, "m", "f", "o", "info", {"n": 1}, [], "")
    assert seen.taps == [fields] * 3
    assert [each.data for each in seen.events] == [{"n": 1}] * 2
    mine.empty()
    states = [mine.active]
    mine.tap(None)
    assert [*states, mine.active] == [True, False]
    assert not mine.dispatch(event)


def test_without_a_tap_nothing_stands_in_between() -> None:
    mine, seen = Hub(), Seen()

    def take(*_: Any) -> bool:
        return True

    mine.fill(seen.dispatch, take)
    mine.tap(seen.tap)
    mine.tap(None)
    assert mine.dispatch == seen.dispatch
    assert mine.take is take


def test_instead_puts_back_the_very_ways_that_were_there() -> None:
    mine, seen = Hub(), Seen()

    def take(*_: Any) -> bool:
        return True

    def fail_elsewhere() -> None:
        with mine.instead(lambda event: False):
            assert not mine.dispatch(StreamllEvent("a"))
            raise ZeroDivisionError

    mine.fill(seen.dispatch, take)
    with pytest.raises(ZeroDivisionError):
        fail_elsewhere()
    assert mine.take is take
    assert mine.dispatch == seen.dispatch


def test_spans_and_emit_are_seen_though_nothing_is_configured() -> None:
    seen = Seen()
    with the_same_hub_afterwards():
        hub.tap(seen.tap)
        try:
            with streamll.span("work", k=1):
                assert not streamll.emit("inside", {"n": 2})
        finally:
            hub.tap(None)
    assert [(kind, operation) for kind, operation, *_ in seen.taps] == [("inside", ""), ("span", "work")]
    assert not hub.active


def test_who_holds_something_back_gives_it_out_in_order_whoever_of_them_fails() -> None:
    mine, seen = Hub(), Seen()
    mine.fill(seen.dispatch)

    def fail() -> None:
        raise ZeroDivisionError

    def emit(name: str) -> None:
        mine.dispatch(StreamllEvent(name))

    mine.holders |= dict.fromkeys([partial(emit, "a"), fail, partial(emit, "b")])
    mine.give_out()
    assert [event.event_type for event in seen.events] == ["a", "b"]


def test_a_flush_has_everything_given_out_first() -> None:
    given: list[bool] = []

    def holder() -> None:
        given.append(hub.active)

    with streamll.testing.capture():
        hub.holders[holder] = None
        try:
            assert streamll.flush(0.1)
        finally:
            del hub.holders[holder]
    assert given == [True]
    assert Hub().flush(None)
