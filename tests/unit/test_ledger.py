"""The counters, and the identity over them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamll.delivery.ledger import Balance, Ledger

reasons = st.sampled_from(["overflow", "expired", "rejected"])


def test_nothing_is_balanced() -> None:
    assert Balance().balanced
    assert Ledger().read(0) == Balance()


BALANCED = Balance(
    offered=100,
    accepted=90,
    refused={"buffer_full": 7, "stopped": 3},
    delivered=40,
    dead_lettered=5,
    dropped={"overflow": 10, "expired": 5},
    buffered=20,
    in_flight=8,
    spooled=2,
)


def test_every_event_in_one_place_is_balanced() -> None:
    assert BALANCED.balanced


@pytest.mark.parametrize("name", [field.name for field in fields(Balance)])
@pytest.mark.parametrize("by", [-1, 1])
def test_one_more_or_less_anywhere_is_not(name: str, by: int) -> None:
    value = getattr(BALANCED, name)
    changed: Any = {**value, "more": by} if isinstance(value, dict) else value + by
    changes: Any = {name: changed}
    assert not replace(BALANCED, **changes).balanced


def test_a_reading_does_not_change_with_the_ledger() -> None:
    ledger = Ledger()
    ledger.offered = 2
    ledger.refuse("stopped", 2)
    reading = ledger.read(buffered=0)
    ledger.refuse("stopped")
    ledger.drop("overflow")
    assert (reading.refused, reading.dropped) == ({"stopped": 2}, {})


@given(st.lists(st.tuples(st.booleans(), reasons, st.integers(1, 5))))
def test_reasons_are_counted_apart(counted: list[tuple[bool, str, int]]) -> None:
    ledger = Ledger()
    for refused, reason, n in counted:
        (ledger.refuse if refused else ledger.drop)(reason, n)
    for refused, kept in ((True, ledger.refused), (False, ledger.dropped)):
        expected: dict[str, int] = {}
        for was_refused, reason, n in counted:
            if was_refused == refused:
                expected[reason] = expected.get(reason, 0) + n
        assert kept == expected


class Life(RuleBasedStateMachine):
    """Events moved one by one, each move counted where it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.buffered = 0
        self.spooled = 0

    @rule(reason=reasons)
    def refuse(self, reason: str) -> None:
        self.ledger.offered += 1
        self.ledger.refuse(reason)

    @rule()
    def accept(self) -> None:
        self.ledger.offered += 1
        self.ledger.accepted += 1
        self.buffered += 1

    @rule(reason=reasons)
    def evict(self, reason: str) -> None:
        if self.buffered:
            self.buffered -= 1
            self.ledger.drop(reason)

    @rule()
    def take(self) -> None:
        self.ledger.in_flight += self.buffered
        self.buffered = 0

    @rule()
    def spool(self) -> None:
        self.spooled += self.buffered
        self.buffered = 0

    @rule(fate=st.sampled_from(["delivered", "dead_lettered", "dropped"]))
    def settle(self, fate: str) -> None:
        if self.ledger.in_flight:
            self.ledger.in_flight -= 1
            if fate == "dropped":
                self.ledger.drop("rejected")
            else:
                setattr(self.ledger, fate, getattr(self.ledger, fate) + 1)

    @invariant()
    def balances(self) -> None:
        assert self.ledger.read(self.buffered, self.spooled).balanced


TestLife = Life.TestCase
