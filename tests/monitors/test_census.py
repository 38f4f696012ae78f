"""A census counts what there is, calls nobody's code, and tells what came between two of them."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from streamll.monitors.memory.allocation_window import AllocationWindow
from streamll.monitors.memory.census import KEPT, Census, TypeCount, name_of, take_census


class Thing:
    def __init__(self) -> None:
        self.itself = self


class Hostile(type):
    def __hash__(cls) -> int:
        raise AssertionError

    def __eq__(cls, other: object) -> bool:
        raise AssertionError

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise AssertionError

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise AssertionError


class Prickly(metaclass=Hostile):
    def __sizeof__(self) -> int:
        raise AssertionError

    @property
    def __class__(self) -> Any:
        raise AssertionError

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise AssertionError


def count_of(census: Census, kind: type) -> int:
    return {each.name: each.objects for each in census.types}.get(name_of(kind), 0)


def test_counts_what_there_is_and_names_what_came() -> None:
    gc.collect()
    before = take_census()
    things = [Thing() for _ in range(2000)]
    lists: list[Any] = [[Thing] for _ in range(500)]
    after = take_census()
    assert count_of(after, Thing) - count_of(before, Thing) == 2000
    assert count_of(after, list) - count_of(before, list) >= 502
    grown = after.growth(before)
    assert TypeCount(name_of(Thing), 2000) in grown[:2]  # before Python 3.11 each has a dict of its own
    sizes = {each.name: each.size for each in grown}
    assert sizes["list"] is not None
    assert sizes["list"] >= 500 * lists[0].__sizeof__() + things.__sizeof__()
    assert not any("TypeCount" in each.name for each in after.types)
    assert len(after.types) <= KEPT
    assert after.objects > 2500
    assert after.stall_ns > 0


def test_calls_no_code_of_the_program() -> None:
    prickly = [Prickly() for _ in range(100)]
    names = {each.name: each.objects for each in take_census().types}
    assert names[f"{__name__}.Prickly"] == 100
    assert len(prickly) == 100


def test_keeps_nothing_alive() -> None:
    ended = threading.Event()

    class Ends:
        def __del__(self) -> None:
            ended.set()

    thing: Any = Ends()
    take_census()
    assert not ended.is_set()
    del thing
    assert ended.is_set()


def test_classes_of_one_name_are_one_row() -> None:
    def make() -> type:
        class Same:
            def __init__(self) -> None:
                self.itself = self

        return Same

    kept = [make()() for _ in range(5)]
    assert count_of(take_census(), type(kept[0])) == 5


def test_growth_is_of_what_is_more() -> None:
    before = Census(0, 0, (TypeCount("a", 5), TypeCount("list", 7, 700), TypeCount("c", 9)), 0)
    after = Census(0, 0, (TypeCount("c", 8), TypeCount("a", 6), TypeCount("list", 10, 900), TypeCount("d", 2)), 0)
    assert after.growth(before) == [TypeCount("list", 3, 200), TypeCount("d", 2), TypeCount("a", 1)]


class TestAllocationWindow:
    def test_names_the_line_that_allocates(self) -> None:
        window = AllocationWindow(10.0)
        assert window.begin(100.0)
        kept = [bytearray(1000) for _ in range(500)]  # this line
        assert window.poll(105.0) is None
        sites = window.poll(110.0)
        assert sites
        assert sites[0].place == f"{__file__}:{kept_line()}"
        assert sites[0].size >= 500 * 1000
        assert sites[0].blocks >= 500
        assert len(kept) == 500

    def test_ends_early_rather_than_remember_too_much(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tracemalloc

        monkeypatch.setattr("streamll.monitors.memory.allocation_window.MEMORY_BOUND", 10_000)
        window = AllocationWindow(10.0)
        assert window.begin(0.0)
        kept = [[n] for n in range(5000)]
        assert window.poll(0.1)
        assert not tracemalloc.is_tracing()
        assert len(kept) == 5000

    def test_leaves_a_program_alone_that_traces_itself(self) -> None:
        import tracemalloc

        tracemalloc.start()
        try:
            window = AllocationWindow(1.0)
            assert not window.begin(0.0)
            assert window.poll(0.0) == []
            window.cancel()
            assert tracemalloc.is_tracing()
        finally:
            tracemalloc.stop()

    def test_may_be_ended_by_the_program(self) -> None:
        import tracemalloc

        window = AllocationWindow(1.0)
        assert window.begin(0.0)
        tracemalloc.stop()
        assert window.poll(2.0) == []
        window.cancel()


def kept_line() -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith("# this line"))
