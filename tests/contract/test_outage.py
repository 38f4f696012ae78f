"""What a sink does while its destination is away, and once it is back.

Everything here is about decisions that hold whatever was away, so each test runs for each sink with a quick way to hurt
its destination. Those about the outage itself run for the hard ways too: frozen, stalled, killed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import urlsplit, urlunsplit

import pytest

from streamll.delivery.circuit import CircuitState
from streamll.errors import BufferFullError
from streamll.registry import make_sink
from streamll.sinks.base import DeliveryReport, Sink
from tests.contract.conftest import QUICK, BalanceWatch, assert_told, emit, ids_at, make_event
from tests.contract.destinations import Outage
from tests.fixtures.waiting import PATIENCE, wait_until

Watch = Callable[[Sink], BalanceWatch]

OUTAGE_IS_OVER = 90.0
"""Patience with a server that has to start again."""


def struggles(sink: Sink) -> Callable[[], bool]:
    """Whether the sink has noticed by now."""
    before = sink.stats().failed_batches
    return lambda: sink.stats().failed_batches > before and sink.stats().last_error != ""


def test_away_from_the_start(any_outage: Outage, watch: Watch) -> None:
    any_outage.begin()
    sink = any_outage.destination.sink(**QUICK)
    watch(sink)
    slowest = 0.0
    ids = []
    for n in range(60):
        event = make_event(n)
        began = time.monotonic()
        assert sink.handle_event(event)
        slowest = max(slowest, time.monotonic() - began)
        ids.append(event.event_id)
    assert slowest < 5  # no waiting for a connection, which is given a second, or for retries
    assert wait_until(struggles(sink))
    stats = sink.stats()
    assert (stats.delivered, stats.dropped, stats.buffered + stats.in_flight) == (0, {}, 60)
    assert stats.last_error
    any_outage.end()
    assert wait_until(sink.event_queue.empty, OUTAGE_IS_OVER)  # and nobody touches it
    assert ids_at(any_outage.destination) == ids
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.defects) == (60, 0)
    assert stats.retries > 0
    assert_told(any_outage.destination, sink.producer, last=60)


def test_away_in_the_middle(any_outage: Outage, watch: Watch) -> None:
    reports: list[DeliveryReport] = []
    destination = any_outage.destination
    sink = destination.sink(**QUICK, on_delivery=reports.append, batch_size=10)
    watch(sink)
    ids = emit(sink, 20)
    assert sink.flush(PATIENCE)
    any_outage.begin()
    ids += emit(sink, 30)
    assert wait_until(struggles(sink))
    ids += emit(sink, 30)
    any_outage.end()
    ids += emit(sink, 20)
    assert wait_until(sink.event_queue.empty, OUTAGE_IS_OVER)
    assert ids_at(destination) == ids
    if destination.shows_numbers:
        assert {stored.seq for stored in destination.stored()} == set(range(1, 101))
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.dropped, stats.circuit, stats.defects) == (100, {}, "closed", 0)
    assert Counter(report.seq for report in reports) == Counter(range(1, 101))
    assert {report.status for report in reports} == {"delivered"}
    assert_told(destination, sink.producer, last=100)


@pytest.mark.concurrent
def test_ten_threads_emit_while_it_goes_and_comes(outage: Outage, watch: Watch) -> None:
    sink = outage.destination.sink(**QUICK, batch_size=20)
    watch(sink)
    emitted: dict[int, list[str]] = {}
    half = threading.Barrier(11)

    def work(number: int) -> None:
        ids = emit(sink, 40)
        half.wait(PATIENCE)
        half.wait(PATIENCE)
        emitted[number] = ids + emit(sink, 40)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    half.wait(PATIENCE)
    outage.begin()
    noticed = struggles(sink)
    half.wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    emit_more = emit(sink, 1)
    assert wait_until(noticed)
    outage.end()
    assert wait_until(sink.event_queue.empty)
    there = ids_at(outage.destination)
    assert Counter(there) == Counter([id for ids in emitted.values() for id in ids] + emit_more)
    place = {id: position for position, id in enumerate(there)}
    for ids in emitted.values():
        assert [place[id] for id in ids] == sorted(place[id] for id in ids)
    assert sink.stop(PATIENCE).delivered == 801


def test_the_circuit_opens_and_closes_again(outage: Outage) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, failure_threshold=3)
    emit(sink, 50)
    assert wait_until(lambda: sink.stats().circuit == "open")
    assert wait_until(lambda: len(sink.stats().circuit_history) >= 3)  # a probe went out, and failed
    assert sink.stats().failed_batches >= (1 if outage.is_fatal else 3)
    outage.end()
    assert wait_until(sink.event_queue.empty)
    stats = sink.stop(PATIENCE)
    history = [change.state for change in stats.circuit_history]
    assert history[0] is CircuitState.OPEN
    assert history[-2:] == [CircuitState.HALF_OPEN, CircuitState.CLOSED]
    assert all(later.at >= earlier.at for earlier, later in pairwise(stats.circuit_history))
    assert all(change.reason for change in stats.circuit_history)
    assert stats.delivered == 50


def test_without_a_circuit_breaker_it_goes_on_trying(outage: Outage) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, circuit_breaker=False)
    ids = emit(sink, 5)
    assert wait_until(lambda: sink.stats().failed_batches >= 4)
    assert (sink.stats().circuit, sink.stats().circuit_history) == ("closed", ())
    outage.end()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(outage.destination) == ids
    sink.stop(PATIENCE)


def test_it_is_said_once(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamll")
    outage.begin()
    sink = outage.destination.sink(**QUICK, name="said")
    emit(sink, 5)
    assert wait_until(lambda: sink.stats().failed_batches >= 6)
    outage.end()
    assert wait_until(sink.event_queue.empty)
    sink.stop(PATIENCE)
    said = [record.getMessage() for record in caplog.records if record.name == "streamll"]
    assert len(said) == 2, said
    assert "events are kept" in said[0]
    assert "delivering again" in said[1]
    for secret in outage.destination.secrets:
        assert secret not in f"{said} {sink!r} {sink.stats()!r}"


@pytest.mark.integration
@pytest.mark.parametrize(
    "service", [pytest.param("redis", marks=pytest.mark.redis), pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)]
)
def test_a_wrong_password_is_fatal_and_never_shown(
    service: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "streamll")
    if service == "redis":
        server = request.getfixturevalue("own_redis")(requirepass="right-secret")
    else:
        server = request.getfixturevalue("rabbitmq_server")
    parts = urlsplit(server.url)
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit(parts._replace(netloc=f"someone:wrong-secret@{host}"))
    sink = make_sink(url, **{**QUICK, "recovery_timeout": 3600.0, "recovery_bound": 3600.0}, failure_threshold=1000)
    emit(sink, 5)
    assert wait_until(lambda: sink.stats().circuit == "open" and sink.stats().last_error)
    stats = sink.stats()
    assert (stats.failed_batches, stats.delivered, stats.buffered + stats.in_flight) == (1, 0, 5)
    assert not sink.flush(0.2)
    shown = (
        f"{sink!r} {stats!r} {stats} {sink.stop(0)} {[record.getMessage() for record in caplog.records]} {caplog.text}"
    )
    for secret in ("wrong-secret", "right-secret", parts.password or "right-secret"):
        assert secret not in shown


def test_flush_keeps_its_deadline_and_says_false(silent_outage: Outage) -> None:
    silent_outage.begin()
    sink = silent_outage.destination.sink(**QUICK)
    assert sink.flush(0)  # nothing is there to flush
    ids = emit(sink, 5)
    for timeout in (0.0, 0.3):
        began = time.monotonic()
        assert not sink.flush(timeout)
        assert timeout <= time.monotonic() - began < timeout + 5
    assert sink.event_queue.qsize() == 5
    silent_outage.end()
    assert wait_until(lambda: sink.flush(1), OUTAGE_IS_OVER)
    assert ids_at(silent_outage.destination) == ids
    sink.stop(PATIENCE)


def test_flush_lets_an_open_circuit_probe(outage: Outage) -> None:
    outage.begin()
    sink = outage.destination.sink(**{**QUICK, "recovery_timeout": 3600.0, "recovery_bound": 3600.0})
    ids = emit(sink, 40)
    assert wait_until(lambda: sink.stats().circuit == "open")
    assert not sink.flush(0.2)
    outage.end()
    assert sink.flush(PATIENCE)
    assert sink.stats().circuit == "closed"
    assert ids_at(outage.destination) == ids
    sink.stop(PATIENCE)


def test_stop_keeps_its_deadline_and_counts_what_is_lost(silent_outage: Outage, watch: Watch) -> None:
    reports: list[DeliveryReport] = []
    destination = silent_outage.destination
    sink = destination.sink(**QUICK, on_delivery=reports.append, batch_size=10)
    watch(sink)
    there = emit(sink, 5)
    assert sink.flush(PATIENCE)
    silent_outage.begin()
    emit(sink, 30)
    assert wait_until(struggles(sink))
    began = time.monotonic()
    stats = sink.stop(0.3)
    assert time.monotonic() - began < 5
    assert (stats.phase, stats.delivered, stats.buffered, stats.in_flight) == ("stopped", 5, 0, 0)
    assert stats.balanced
    assert sum(stats.dropped.values()) == 30
    assert set(stats.dropped) <= {"shutdown", "unconfirmed"}
    began = time.monotonic()
    assert sink.stop(PATIENCE) == stats
    assert time.monotonic() - began < 5
    assert sink.flush(0)
    assert wait_until(lambda: len(reports) == 35)
    assert Counter(report.seq for report in reports) == Counter(range(1, 36))
    assert Counter(report.reason for report in reports if report.status == "dropped") == Counter(stats.dropped)
    silent_outage.end()
    assert ids_at(destination)[:5] == there
    assert destination.notes() == []  # a reader must not take the rest for delivered, or for declared


def test_stop_ends_early_when_it_comes_back_in_time(outage: Outage) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK)
    ids = emit(sink, 30)
    assert wait_until(lambda: sink.stats().circuit == "open")
    results = []
    stopping = threading.Thread(target=lambda: results.append(sink.stop(PATIENCE)))
    stopping.start()
    assert not sink.handle_event(make_event())
    outage.end()
    stopping.join(2 * PATIENCE)
    assert results[0].delivered == 30
    assert ids_at(outage.destination) == ids
    assert_told(outage.destination, sink.producer, last=30)


def fill(sink: Sink) -> None:
    """Have one event in flight, so that what comes next fills the buffer."""
    assert sink.handle_event(make_event())
    assert wait_until(lambda: sink.stats().in_flight == 1)


def test_drop_oldest_keeps_the_newest_and_what_is_in_flight(outage: Outage, watch: Watch) -> None:
    reports: list[DeliveryReport] = []
    outage.begin()
    sink = outage.destination.sink(**QUICK, buffer_size=20, on_delivery=reports.append)
    watch(sink)
    fill(sink)
    ids = emit(sink, 100)
    stats = sink.stats()
    assert stats.buffered + stats.in_flight == 20
    assert stats.dropped == {"overflow": 81}
    outage.end()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(outage.destination)[1:] == ids[-19:]
    if outage.destination.shows_numbers:
        assert [s.seq for s in sorted(set(outage.destination.stored()), key=lambda s: s.seq)] == [1, *range(83, 102)]
    assert sink.stop(PATIENCE).delivered == 20
    assert_told(outage.destination, sink.producer, last=101, gaps=[(2, 82)], reasons={"overflow": 81})
    assert Counter(report.seq for report in reports) == Counter(range(1, 102))
    assert {report.seq for report in reports if report.reason == "overflow"} == set(range(2, 83))


def test_drop_newest_keeps_what_was_first(outage: Outage, watch: Watch) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, buffer_size=20, buffer_overflow_strategy="drop_newest")
    watch(sink)
    events = [make_event(n) for n in range(50)]
    assert [sink.handle_event(event) for event in events] == [True] * 20 + [False] * 30
    stats = sink.stats()
    assert (stats.accepted, stats.refused, stats.dropped) == (20, {"buffer_full": 30}, {})
    outage.end()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(outage.destination) == [event.event_id for event in events[:20]]
    sink.stop(PATIENCE)
    assert_told(outage.destination, sink.producer, last=20)  # what was refused never had a number


def test_block_waits_for_room_but_not_for_ever(outage: Outage, watch: Watch) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, buffer_size=10, buffer_overflow_strategy="block", block_timeout=1.5)
    watch(sink)
    ids = emit(sink, 10)
    began = time.monotonic()
    assert not sink.handle_event(make_event())
    assert 1.5 <= time.monotonic() - began < 15
    assert sink.stats().refused == {"buffer_full": 1}
    outage.end()
    assert wait_until(sink.event_queue.empty)
    more = emit(sink, 30)  # three buffers full: each must wait, and gets its place
    assert sink.flush(PATIENCE)
    assert ids_at(outage.destination) == ids + more
    sink.stop(PATIENCE)


def test_raise_error_tells_the_caller(outage: Outage, watch: Watch) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, buffer_size=10, buffer_overflow_strategy="raise_error")
    watch(sink)
    ids = emit(sink, 10)
    for _ in range(3):
        with pytest.raises(BufferFullError, match="10 events"):
            sink.handle_event(make_event())
    assert sink.stats().refused == {"buffer_full": 3}
    outage.end()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(outage.destination) == ids
    sink.stop(PATIENCE)


def test_a_buffer_full_in_bytes_gives_way_too(outage: Outage, watch: Watch) -> None:
    outage.begin()
    sink = outage.destination.sink(**QUICK, buffer_bytes=20_000)
    watch(sink)
    fill(sink)
    ids = emit(sink, 100)
    stats = sink.stats()
    assert 10_000 < stats.bytes_held <= 20_000
    kept = stats.buffered
    assert 0 < kept < 50
    assert stats.dropped == {"overflow": 100 - kept}
    outage.end()
    assert wait_until(sink.event_queue.empty)
    assert ids_at(outage.destination)[1:] == ids[-kept:]
    assert sink.stop(PATIENCE).bytes_held == 0
    lost = 100 - kept
    assert_told(outage.destination, sink.producer, last=101, gaps=[(2, 1 + lost)], reasons={"overflow": lost})


def test_events_expire(outage: Outage, watch: Watch) -> None:
    reports: list[DeliveryReport] = []
    outage.begin()
    sink = outage.destination.sink(**QUICK, delivery_deadline=0.3, on_delivery=reports.append, batch_size=10)
    watch(sink)
    emit(sink, 50)
    assert wait_until(sink.event_queue.empty)  # in the midst of the outage
    stats = sink.stats()
    assert (stats.delivered, sum(stats.dropped.values())) == (0, 50)
    assert set(stats.dropped) <= {"expired", "unconfirmed"}
    assert stats.dropped["expired"] >= 40
    outage.end()

    def recovered() -> bool:
        emit(sink, 1)
        return sink.flush(0.2)

    assert wait_until(recovered)
    assert wait_until(sink.event_queue.empty)
    stats = sink.stop(PATIENCE)
    assert stats.delivered > 0
    assert Counter(report.seq for report in reports) == Counter(range(1, stats.accepted + 1))
    gaps = [(1, stats.accepted - stats.delivered)]
    assert_told(outage.destination, sink.producer, stats.accepted, gaps, stats.dropped)


def test_events_expire_on_time_while_the_circuit_is_open(outage: Outage) -> None:
    outage.begin()
    sink = outage.destination.sink(
        **{**QUICK, "recovery_timeout": 3600.0, "recovery_bound": 3600.0}, delivery_deadline=1.0, failure_threshold=1
    )
    emit(sink, 30)
    assert wait_until(lambda: sink.stats().circuit == "open")
    emit(sink, 30)
    assert wait_until(sink.event_queue.empty)
    emit(sink, 30)
    assert wait_until(sink.event_queue.empty)
    assert sum(sink.stats().dropped.values()) == 90
    outage.end()
    stats = sink.stop(PATIENCE)  # which lets what is to be told of them through
    assert_told(outage.destination, sink.producer, 90, [(1, 90)], stats.dropped)


def test_a_callback_that_raises_harms_nothing(outage: Outage, watch: Watch) -> None:
    def told(report: DeliveryReport) -> None:
        raise KeyError(report.seq)

    outage.begin()
    sink = outage.destination.sink(**QUICK, on_delivery=told, buffer_size=20)
    watch(sink)
    emit(sink, 60)
    outage.end()
    assert wait_until(sink.event_queue.empty)
    stats = sink.stop(PATIENCE)
    assert stats.delivered + stats.dropped["overflow"] == 60
    assert (stats.callback_errors, stats.defects) == (60, 0)
