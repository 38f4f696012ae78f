"""Pauses of the collector are all seen, and nobody suffers for it."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest

from streamll.monitors.memory import gc_watch
from streamll.monitors.memory.gc_watch import NOTED_BOUND, GcWatch


@pytest.fixture
def watch() -> Iterator[GcWatch]:
    watch = GcWatch()
    watch.start()
    yield watch
    watch.stop()


def test_every_collection_is_seen_with_what_it_did(watch: GcWatch) -> None:
    gc.disable()
    try:
        watch.take()
        before = watch.stats()
        for generation in (0, 1, 2):
            cycle: list[Any] = []
            cycle.append(cycle)
            del cycle
            gc.collect(generation)
        pauses = watch.take()
    finally:
        gc.enable()
    after = watch.stats()
    assert [pause.generation for pause in pauses] == [0, 1, 2]
    assert all(pause.collected >= 1 and pause.duration_ns > 0 for pause in pauses)
    assert all(abs(time.time_ns() - pause.timestamp) < 60e9 for pause in pauses)
    assert after.collections - before.collections == 3
    assert after.by_generation[2]["collections"] - before.by_generation.get(2, {}).get("collections", 0) == 1
    assert after.total_ms - before.total_ms == pytest.approx(sum(pause.duration_ns for pause in pauses) / 1e6)
    assert after.longest_ms >= max(pause.duration_ns for pause in pauses) / 1e6
    assert after.quantiles["p99_ms"] is not None


def test_a_pause_is_as_long_as_the_collection(watch: GcWatch) -> None:
    many = [[n] for n in range(200_000)]
    watch.take()
    began = time.perf_counter_ns()
    gc.collect()
    took = time.perf_counter_ns() - began
    longest = max(watch.take(), key=lambda pause: pause.duration_ns)
    assert took / 3 < longest.duration_ns <= took
    assert len(many) == 200_000


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timers that signal")
def test_what_a_signal_handler_raises_during_a_collection_reaches_the_program(watch: GcWatch) -> None:
    """A callback written in Python would be where it is raised, and lost."""

    class TimeIsUpError(Exception):
        pass

    def handle(*_: object) -> None:
        raise TimeIsUpError

    def collect() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.004)
        for _ in range(1000):
            gc.collect()

    many = [[n] for n in range(300_000)]
    callbacks = list(gc.callbacks)
    gc.callbacks[:] = watch._callbacks  # hypothesis has one written in Python
    before = signal.signal(signal.SIGPROF, handle)
    try:
        for _ in range(3):
            with pytest.raises(TimeIsUpError):
                collect()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        gc.callbacks[:] = callbacks
    assert len(many) == 300_000


def test_more_than_it_can_note_are_counted_as_missed(watch: GcWatch) -> None:
    watch.take()
    before = watch.stats()
    gc.disable()
    try:
        for _ in range(NOTED_BOUND + 100):
            gc.collect(0)
        assert len(watch.take()) == NOTED_BOUND
        gc.collect(0)
        assert len(watch.take()) == 1
    finally:
        gc.enable()
    after = watch.stats()
    assert after.collections - before.collections == NOTED_BOUND + 101
    assert after.missed - before.missed == 100


def test_collections_after_somebody_has_thrown_all_callbacks_out_are_counted_as_missed(watch: GcWatch) -> None:
    callbacks = list(gc.callbacks)
    watch.take()
    before = watch.stats()
    gc.callbacks.clear()
    try:
        gc.collect()
        gc.collect()
        assert watch.take() == []
    finally:
        gc.callbacks[:] = callbacks
    assert watch.stats().missed - before.missed >= 2


def test_notes_that_begin_in_the_middle_are_made_out(watch: GcWatch) -> None:
    said = {"generation": 0, "collected": 0, "uncollectable": 0}
    gc.disable()
    try:
        watch.take()
        watch._notes.extend([500, said, said, 1000, 1700, said, 2000])
        assert [pause.duration_ns for pause in watch.take()] == [700]
        watch._notes.extend([2500, said])
        assert [pause.duration_ns for pause in watch.take()] == [500]
    finally:
        gc.enable()


def test_nothing_stays_registered() -> None:
    before = list(gc.callbacks)
    watches = [GcWatch(), GcWatch()]
    for watch in watches:
        watch.start()
        watch.start()
        assert watch.running
    assert len(gc.callbacks) == len(before) + 4
    watches[0].stop()
    watches[0].stop()
    assert not watches[0].running
    gone = ref(watches[1])
    watches.clear()
    del watch
    assert gone() is None
    assert gc.callbacks == before


def test_callbacks_of_others_are_not_compared() -> None:
    class Jealous:
        def __call__(self, phase: str, info: dict[str, int]) -> None:
            pass

        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]  # as Python has it for a class with __eq__

    jealous = Jealous()
    gc.callbacks.append(jealous)
    try:
        watch = GcWatch()
        watch.start()
        watch.stop()
        assert gc.callbacks.pop() is jealous
    finally:
        gc.callbacks[:] = [callback for callback in gc.callbacks if callback is not jealous]
    gc.callbacks.clear()
    watch.start()
    gc.callbacks.clear()  # by somebody else
    watch.stop()
    assert not watch.running


def test_what_it_adds_to_a_collection_is_measured_and_little() -> None:
    assert 0 < gc_watch.cost_ns() < 100_000
