"""What a sink does while its destination is there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from streamll.codec import decode
from streamll.errors import LifecycleError
from streamll.models import StreamllEvent
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline
from streamll.registry import make_sink
from streamll.sinks.base import DeliveryReport, Sink
from tests.contract.conftest import BalanceWatch, assert_told, emit, ids_at, make_event, marked
from tests.contract.destinations import Destination
from tests.fixtures.waiting import PATIENCE, wait_until

Watch = Callable[[Sink], BalanceWatch]


def test_the_first_event_starts_it_and_delivered_means_there(destination: Destination) -> None:
    before = threading.active_count()
    sink = destination.sink(name="contract")
    assert sink.stats().phase == "new"
    assert threading.active_count() == before
    event = make_event()
    untouched = repr(event)
    assert sink.handle_event(event)
    assert repr(event) == untouched
    assert sink.stats().phase == "running"
    worker = next(thread for thread in threading.enumerate() if thread.name == "streamll-contract")
    assert worker.daemon
    assert sink.flush(PATIENCE)
    (stored,) = destination.stored()
    assert stored.event_id == event.event_id
    assert b"hunter2" not in stored.payload
    if destination.shows_numbers:
        assert (stored.producer, stored.seq) == (sink.producer, 1)
    assert destination.notes() == []
    stats = sink.stop(PATIENCE)
    assert_told(destination, sink.producer, last=1)
    assert (stats.offered, stats.accepted, stats.delivered, stats.failed_batches) == (1, 1, 1, 0)
    assert stats.latency.p50 is not None
    assert stats.balanced
    assert not worker.is_alive()


def test_events_are_there_in_order_under_one_producer(destination: Destination, watch: Watch) -> None:
    sink = destination.sink(batch_size=50, batch_growth=2, flush_interval=0.01)
    watch(sink)
    ids = emit(sink, 1234)
    assert sink.flush(PATIENCE)
    assert ids_at(destination) == ids
    if destination.shows_numbers:
        numbers = {(stored.producer, stored.seq) for stored in destination.stored()}
        assert numbers == {(sink.producer, seq) for seq in range(1, 1235)}
        assert [stored.seq for stored in destination.stored()] == sorted(seq for _, seq in numbers)
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.batches >= 13) == (1234, True)
    assert_told(destination, sink.producer, last=1234)


@pytest.mark.concurrent
def test_ten_threads_emit_at_once_and_the_balance_always_holds(destination: Destination, watch: Watch) -> None:
    sink = destination.sink(batch_size=40, flush_interval=0.005)
    watch(sink)
    emitted: dict[int, list[str]] = {}
    together = threading.Barrier(10)

    def work(number: int) -> None:
        together.wait()
        emitted[number] = emit(sink, 150)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sink.flush(PATIENCE)
    there = ids_at(destination)
    assert Counter(there) == Counter(id for ids in emitted.values() for id in ids)
    place = {id: position for position, id in enumerate(there)}
    for ids in emitted.values():
        assert [place[id] for id in ids] == sorted(place[id] for id in ids)
    assert sink.stop(PATIENCE).delivered == 1500


def test_flush_hurries_and_says_whether_all_is_delivered(destination: Destination) -> None:
    sink = destination.sink(flush_interval=3600)
    assert sink.flush()
    ids = emit(sink, 3)
    assert not sink.event_queue.empty()
    assert sink.event_queue.qsize() == 3
    assert sink.flush(PATIENCE)
    assert sink.event_queue.empty()
    assert ids_at(destination) == ids
    more = emit(sink, 2)
    sink.request_flush()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(destination) == ids + more
    sink.stop(PATIENCE)
    assert sink.flush(0)


def test_stop_delivers_what_there_is_and_is_final(destination: Destination) -> None:
    sink = destination.sink(flush_interval=3600)
    ids = emit(sink, 20)
    stats = sink.stop(PATIENCE)
    assert ids_at(destination) == ids
    assert (stats.phase, stats.delivered, stats.buffered, stats.in_flight) == ("stopped", 20, 0, 0)
    assert sink.stop(0) == stats
    assert not sink.handle_event(make_event())
    assert sink.stats().refused == {"stopped": 1}
    assert sink.stats().balanced
    with pytest.raises(LifecycleError, match="stopped"):
        sink.start()
    assert sink.event_queue.empty()
    assert ids_at(destination) == ids
    assert_told(destination, sink.producer, last=20)


def test_a_sink_that_never_ran_can_be_stopped(destination: Destination) -> None:
    sink = destination.sink()
    stats = sink.stop(0)
    assert (stats.phase, stats.offered, stats.balanced) == ("stopped", 0, True)
    assert not sink.handle_event(make_event())


def test_several_threads_may_stop_it_at_once(destination: Destination) -> None:
    sink = destination.sink(flush_interval=3600)
    ids = emit(sink, 20)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(sink.stop(PATIENCE))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [result.delivered for result in results] == [20] * 5
    assert ids_at(destination) == ids
    assert_told(destination, sink.producer, last=20)


def test_as_a_context_manager(destination: Destination) -> None:
    with destination.sink(flush_interval=3600) as sink:
        assert sink.stats().phase == "running"
        ids = emit(sink, 5)
    assert sink.stats().phase == "stopped"
    assert ids_at(destination) == ids


def test_in_an_asyncio_application(destination: Destination) -> None:
    async def application() -> list[str]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with destination.sink(flush_interval=3600) as sink:
            events = [make_event(n) for n in range(30)]

            async def handle(event: StreamllEvent) -> None:
                assert sink.handle_event(event)

            await asyncio.gather(*map(handle, events))
            before = ticks
            assert await sink.aflush(PATIENCE)
            assert ticks > before  # the loop went on meanwhile
            late = make_event()
            await handle(late)
            stats = await sink.astop(PATIENCE)
        ticking.cancel()
        assert stats.delivered == 31
        return [event.event_id for event in (*events, late)]

    ids = asyncio.run(application())
    assert Counter(ids_at(destination)) == Counter(ids)


def test_on_delivery_reports_each_event_once_and_may_fail(destination: Destination, watch: Watch) -> None:
    reports: list[DeliveryReport] = []

    def told(report: DeliveryReport) -> None:
        reports.append(report)
        if report.seq % 2:
            raise RuntimeError("the callback is broken")

    sink = destination.sink(on_delivery=told, batch_size=7, flush_interval=0.005)
    watch(sink)
    ids = emit(sink, 50)
    assert sink.flush(PATIENCE)
    stats = sink.stop(PATIENCE)
    assert [(report.event_id, report.seq) for report in reports] == list(zip(ids, range(1, 51), strict=True))
    assert {(report.status, report.reason) for report in reports} == {("delivered", "")}
    assert all(report.latency >= 0 for report in reports)
    assert (stats.delivered, stats.callback_errors, stats.defects) == (50, 25, 0)
    assert ids_at(destination) == ids


def test_a_callback_can_neither_flush_nor_stop_its_own_sink(destination: Destination) -> None:
    errors: list[BaseException] = []

    def told(report: DeliveryReport) -> None:
        for wait in (sink.flush, sink.stop):
            try:
                wait()
            except LifecycleError as error:
                errors.append(error)
        sink.handle_event(make_event())  # telemetry about telemetry

    sink = destination.sink(on_delivery=told)
    ids = emit(sink, 1)
    assert wait_until(lambda: len(errors) == 2)
    assert sink.flush(PATIENCE)
    assert sink.stop(PATIENCE).offered == 1
    assert ids_at(destination) == ids


def test_an_event_filter_decides_and_may_fail(destination: Destination) -> None:
    def wanted(event: StreamllEvent) -> bool:
        if event.data["n"] == 3:
            raise RuntimeError("the filter is broken")
        return bool(event.data["n"] % 2 == 0)

    sink = destination.sink(event_filter=wanted)
    events = [make_event(n) for n in range(6)]
    assert [sink.handle_event(event) for event in events] == [True, False, True, False, True, False]
    stats = sink.stop(PATIENCE)
    assert (stats.offered, stats.accepted, stats.refused) == (6, 3, {"filtered": 3})
    assert stats.callback_errors == 1
    assert stats.balanced
    assert ids_at(destination) == [events[n].event_id for n in (0, 2, 4)]


def test_what_is_no_event_is_refused(destination: Destination) -> None:
    sink = destination.sink()
    for thing in (None, "event", {"event_type": "test"}, StreamllEvent):
        assert not sink.handle_event(thing)  # type: ignore[arg-type]  # what untyped code does
    stats = sink.stop(PATIENCE)
    assert (stats.offered, stats.refused, stats.balanced) == (4, {"not_an_event": 4}, True)


def test_an_event_over_the_limit_is_cut(destination: Destination) -> None:
    sink = destination.sink(pipeline=Pipeline(PipelineOptions(max_event_bytes=1024)))
    event = make_event(text="x" * 100_000)
    assert sink.handle_event(event)
    assert sink.stop(PATIENCE).delivered == 1
    (stored,) = destination.stored()
    assert stored.event_id == event.event_id
    assert len(stored.payload) < 2048  # the destination's own words around it included
    assert sink.pipeline.stats().oversize == 1


def test_an_event_over_the_limit_is_dead_lettered_whole_by_policy(destination: Destination, watch: Watch) -> None:
    pipeline = Pipeline(PipelineOptions(max_event_bytes=1024, oversize="dead_letter"))
    reports: list[DeliveryReport] = []
    sink = destination.sink(pipeline=pipeline, on_delivery=reports.append, flush_interval=3600)
    watch(sink)
    before = emit(sink, 3)
    event = make_event(text="x" * 3000)
    assert sink.handle_event(event)
    after = emit(sink, 3)
    stats = sink.stop(PATIENCE)
    assert ids_at(destination) == before + after
    (letter,) = destination.dead_letters()
    assert (letter.seq, "too large" in letter.reason) == (4, True)
    if destination.keeps_dead_letters:
        assert decode(letter.payload).event_id == event.event_id
        assert decode(letter.payload).data["text"] == "x" * 3000
    assert (stats.delivered, stats.dead_lettered, stats.dropped) == (6, 1, {})
    assert_told(destination, sink.producer, last=7)  # the dead letter has its number: there is no gap
    assert [(report.status, bool(report.reason)) for report in reports if report.seq == 4] == [("dead_lettered", True)]


def test_poison_stands_alone_in_the_end_and_the_rest_is_delivered(poisonable: Destination, watch: Watch) -> None:
    reports: list[DeliveryReport] = []
    sink = poisonable.sink_for_poison(on_delivery=reports.append, flush_interval=3600)
    watch(sink)
    before = emit(sink, 9)
    poison = poisonable.poison(sink)
    between = emit(sink, 4)
    poisonable.poison(sink)
    after = emit(sink, 9)
    assert sink.flush(PATIENCE)
    assert ids_at(poisonable) == before + between + after
    stats = sink.stats()
    assert (stats.delivered, stats.circuit, stats.circuit_history) == (22, "closed", ())
    letters = poisonable.dead_letters()
    if poisonable.keeps_rejected:
        assert (stats.dead_lettered, stats.dropped) == (2, {})
        assert [letter.seq for letter in letters] == [10, 15]
        assert all(letter.reason for letter in letters)
        if poisonable.keeps_dead_letters:
            assert letters[0].payload == poison
    else:
        assert (stats.dead_lettered, stats.dropped) == (0, {"dead_letter_failed": 2})
    assert sink.stop(PATIENCE).defects == 0  # by then all is reported
    if poisonable.keeps_rejected:
        assert_told(poisonable, sink.producer, last=24)
    else:
        assert_told(poisonable, sink.producer, 24, [(10, 10), (15, 15)], {"dead_letter_failed": 2})
    fates = [(report.status, bool(report.reason)) for report in sorted(reports, key=lambda report: report.seq)]
    fate = "dead_lettered" if poisonable.keeps_rejected else "dropped"
    good = ("delivered", False)
    assert fates == [good] * 9 + [(fate, True)] + [good] * 4 + [(fate, True)] + [good] * 9


def test_without_a_dead_letter_destination_poison_is_dropped(poisonable: Destination) -> None:
    sink = poisonable.sink_for_poison(dead_letter=False, flush_interval=3600)
    before = emit(sink, 3)
    poisonable.poison(sink)
    after = emit(sink, 3)
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.dead_lettered, stats.dropped) == (6, 0, {"rejected": 1})
    assert ids_at(poisonable) == before + after
    assert poisonable.dead_letters() == []
    assert_told(poisonable, sink.producer, last=7, gaps=[(4, 4)], reasons={"rejected": 1})


@pytest.mark.parametrize("destination", marked(("file", "redis", "rabbitmq")), indirect=True)
def test_a_url_makes_the_same_sink(destination: Destination) -> None:
    url = destination.url()
    sink = make_sink(url, flush_interval=0.001, name="by-url")
    ids = emit(sink, 3)
    assert sink.stop(PATIENCE).delivered == 3
    assert ids_at(destination) == ids
    assert sink.name == "by-url"
    assert sink.options.flush_interval == 0.001
    began = time.monotonic()
    assert all(finding.level in ("ok", "warning") for finding in type(sink).check_url(url))
    assert time.monotonic() - began < PATIENCE


def test_nothing_shows_a_credential(destination: Destination) -> None:
    sink = destination.sink()
    emit(sink, 1)
    shown = f"{sink!r} {sink.stop(PATIENCE)!r} {sink.destination}"
    for secret in destination.secrets:
        assert secret not in shown
