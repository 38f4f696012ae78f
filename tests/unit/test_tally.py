"""Counting from anywhere, without waiting and without losing any."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.tally import _FOLD_AT, Tally
from tests.fixtures.interrupts import interrupted


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5))))
def test_counts_by_name(added: list[tuple[str, int]]) -> None:
    tally = Tally()
    for name, n in added:
        tally.add(name, n)
    expected = {name: sum(n for other, n in added if other == name) for name, _ in added}
    assert tally.read() == {name: n for name, n in expected.items() if n}


def test_one_is_the_default_and_a_reading_is_a_copy() -> None:
    tally = Tally()
    tally.add("a")
    reading = tally.read()
    tally.add("a")
    assert reading == {"a": 1}
    assert tally.read() == {"a": 2}
    tally.read().clear()
    assert tally.read() == {"a": 2}


def test_what_was_noted_does_not_pile_up() -> None:
    tally = Tally()
    for _ in range(_FOLD_AT * 10):
        tally.add("a")
        assert len(tally._noted) < _FOLD_AT
    assert tally.read() == {"a": _FOLD_AT * 10}


def test_nothing_waits_for_somebody_who_is_folding() -> None:
    tally = Tally()
    with tally._folding:
        for _ in range(_FOLD_AT * 2):
            tally.add("a")
        assert tally.read() == {}
    assert tally.read() == {"a": _FOLD_AT * 2}


@pytest.mark.concurrent
def test_many_threads_lose_none() -> None:
    tally = Tally()

    def add(_: int) -> None:
        for _ in range(5000):
            tally.add("a")
            tally.add("b", 2)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(add, range(8)))
    assert tally.read() == {"a": 40_000, "b": 80_000}


def test_a_finaliser_may_count_in_the_middle_of_it() -> None:
    tally = Tally()

    class Counts:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            tally.add("finalised")

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(1000):
            Counts()
            tally.add("made")
            tally.read()
        gc.collect()
    finally:
        gc.set_threshold(*before)
    assert tally.read() == {"made": 1000, "finalised": 1000}


def test_a_signal_handler_may_count_in_the_middle_of_it() -> None:
    tally = Tally()
    handled = added = 0

    def handler() -> None:
        nonlocal handled
        handled += 1
        tally.add("handled")

    with interrupted(handler, 0.0001, cpu_time=True):
        while handled < 10 and added < 2_000_000:
            tally.add("added")
            added += 1
    assert handled
    assert tally.read() == {"added": added, "handled": handled}
