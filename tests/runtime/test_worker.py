"""What the worker does with each answer of a transport."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from streamll.codec import decode
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import FatalError, LifecycleError, UnavailableError
from streamll.models import CLOSING, StreamllEvent
from streamll.sinks.base import DeliveryReport, Sink
from streamll.testing.scripted import DELIVERED, FATAL, REJECTED, UNAVAILABLE, Hang, ScriptedSink, ScriptedTransport
from tests.fixtures.waiting import PATIENCE, wait_until

QUICK: dict[str, Any] = {
    "flush_interval": 3600.0,
    "retry_base": 0.001,
    "retry_bound": 0.002,
    "recovery_timeout": 0.01,
    "recovery_bound": 0.02,
}


def emit(sink: Sink, count: int) -> None:
    for n in range(count):
        assert sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))


def numbers(batch: list[Entry]) -> list[int]:
    """The sequence numbers of a batch, dead letters negative."""
    return [-entry.seq if entry.dead_letter else entry.seq for entry in batch]


def closed(transport: ScriptedTransport) -> list[list[int]]:
    """The numbers of each batch of a sink that has stopped, without the closing record, which must be the last."""
    *batches, (closing,) = transport.sent
    (last,) = decode(closing.record.payload).data.values()
    assert (closing.note, closing.record.event_type, closing.seq) == (True, CLOSING, last + 1)
    assert not any(entry.note for batch in batches for entry in batch)
    return [numbers(batch) for batch in batches]


def test_one_thread_drives_the_transport_and_closes_it_clean() -> None:
    transport = ScriptedTransport()
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 5)
    assert sink.stop(PATIENCE).delivered == 5
    assert transport.threads == {"streamll-scripted"}
    assert closed(transport) == [[1, 2, 3, 4, 5]]
    assert (transport.opened, transport.closed[-1]) == (1, True)


def test_an_unavailable_batch_is_sent_again_as_it_was() -> None:
    transport = ScriptedTransport([UNAVAILABLE, UNAVAILABLE, DELIVERED])
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 3)
    stats = sink.stop(PATIENCE)
    assert closed(transport) == [[1, 2, 3]] * 3
    assert (stats.delivered, stats.retries, stats.failed_batches, stats.batches, transport.opened) == (3, 2, 2, 3, 3)


def test_what_is_known_to_be_delivered_is_not_sent_again() -> None:
    partly = BatchOutcome(Failure.UNAVAILABLE, delivered={0, 2}, error="cut")
    transport = ScriptedTransport([partly])
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 4)
    assert sink.stop(PATIENCE).delivered == 4
    assert closed(transport) == [[1, 2, 3, 4], [2, 4]]


def test_a_rejected_batch_is_halved_until_the_poison_stands_alone() -> None:
    def rejects_three(batch: Any) -> BatchOutcome:
        return REJECTED if any(entry.seq == 3 and not entry.dead_letter for entry in batch) else DELIVERED

    transport = ScriptedTransport(then=rejects_three)
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 4)
    stats = sink.stop(PATIENCE)
    assert closed(transport) == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [-3], [4]]
    assert (stats.delivered, stats.dead_lettered, stats.circuit_history) == (3, 1, ())


def test_a_dead_letter_that_is_rejected_too_is_given_up() -> None:
    transport = ScriptedTransport([REJECTED, REJECTED])
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 1)
    assert sink.stop(PATIENCE).dropped == {"dead_letter_failed": 1}


def test_a_stop_whose_time_is_over_does_not_close_though_the_transport_would_take_it() -> None:
    slowly = threading.Event()

    def rejects_many(batch: Any) -> BatchOutcome:
        slowly.wait(0.02)
        return REJECTED if len(batch) > 1 else DELIVERED

    transport = ScriptedTransport(then=rejects_many)
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 100)
    stats = sink.stop(0.2)  # in the middle of the one batch, so that nothing waits
    assert stats.delivered + stats.dropped["shutdown"] == 100
    assert not any(entry.note for batch in transport.sent for entry in batch)
    assert transport.closed[-1] is False


def test_a_closing_record_is_not_worth_a_wait_or_a_connection() -> None:
    hang = Hang()
    for answer in (UNAVAILABLE, RuntimeError("a defect"), hang, BatchOutcome(rejected={0: "no queue"})):
        transport = ScriptedTransport([DELIVERED, answer])
        sink = ScriptedSink(transport, **QUICK)
        emit(sink, 3)
        began = time.monotonic()
        stats = sink.stop(PATIENCE)
        assert time.monotonic() - began < 5
        assert (stats.delivered, stats.dropped, stats.dead_lettered, stats.balanced) == (3, {}, 0, True)
        assert closed(transport) == [[1, 2, 3]]
    transport = ScriptedTransport()
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 3)
    assert sink.flush(PATIENCE)
    transport.close(clean=False)  # as a server does that goes away while nothing is sent
    sink.stop(PATIENCE)
    assert [numbers(batch) for batch in transport.sent] == [[1, 2, 3]]
    assert transport.opened == 1


def test_what_a_transport_raises_harms_nobody() -> None:
    transport = ScriptedTransport(
        [RuntimeError("a defect"), DELIVERED],
        opening=[UnavailableError("down"), FatalError("no entry"), None],
    )
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 2)
    stats = sink.stop(PATIENCE)
    assert (stats.delivered, stats.failed_batches, stats.defects) == (2, 3, 1)
    assert "RuntimeError" in stats.last_error


def test_a_transport_that_cannot_even_be_made_is_a_defect_and_keeps_the_events() -> None:
    def broken(producer: str) -> ScriptedTransport:
        raise RuntimeError("no such thing")

    sink = ScriptedSink(ScriptedTransport(), **QUICK)
    sink._worker._make_transport = lambda: broken("")
    emit(sink, 2)
    assert not sink.flush(0.05)
    assert wait_until(lambda: sink.stats().defects == 1)
    assert (sink.stats().in_flight, sink.stats().balanced) == (2, True)
    stats = sink.stop(0)
    assert (sum(stats.dropped.values()), stats.balanced) == (2, True)


def test_fatal_opens_the_circuit_at_once() -> None:
    transport = ScriptedTransport([FATAL])
    sink = ScriptedSink(transport, **{**QUICK, "recovery_timeout": 3600.0, "recovery_bound": 3600.0})
    emit(sink, 30)
    sink.request_flush()
    assert wait_until(lambda: sink.stats().circuit == "open" and sink.stats().failed_batches == 1)
    assert sink.stats().in_flight == 30
    assert sink.flush(PATIENCE)
    assert [len(batch) for batch in transport.sent] == [30, 10, 20]  # a small one goes ahead as the probe
    sink.stop(PATIENCE)


def test_batches_grow_with_the_backlog() -> None:
    first = Hang()
    transport = ScriptedTransport([first])
    sink = ScriptedSink(transport, **{**QUICK, "flush_interval": 0.0}, batch_size=10, batch_growth=4, buffer_size=1000)
    emit(sink, 1)
    assert first.reached.wait(PATIENCE)
    emit(sink, 100)
    first.release()
    assert sink.flush(PATIENCE)
    assert [len(batch) for batch in transport.sent] == [1, 40, 40, 20]
    sink.stop(PATIENCE)


def test_a_full_batch_ends_the_linger() -> None:
    transport = ScriptedTransport()
    sink = ScriptedSink(transport, **QUICK, batch_size=10)
    emit(sink, 9)
    assert not sink.event_queue.empty()
    emit(sink, 1)
    assert wait_until(sink.event_queue.empty)
    sink.stop(PATIENCE)


def test_stop_ends_a_send_that_hangs() -> None:
    hang = Hang()
    sink = ScriptedSink(ScriptedTransport([hang]), **QUICK, send_timeout=3600.0)
    emit(sink, 3)
    sink.request_flush()
    assert hang.reached.wait(PATIENCE)
    began = time.monotonic()
    stats = sink.stop(0.05)
    assert time.monotonic() - began < 5
    assert (stats.dropped, stats.balanced) == ({"unconfirmed": 3}, True)


def test_a_send_that_cannot_be_ended_does_not_hold_stop_and_each_event_is_reported_once() -> None:
    hang = Hang(stubborn=True)
    reports: list[DeliveryReport] = []
    sink = ScriptedSink(ScriptedTransport([hang]), **QUICK, batch_size=3, on_delivery=reports.append)
    emit(sink, 3)
    assert hang.reached.wait(PATIENCE)
    emit(sink, 2)
    began = time.monotonic()
    stats = sink.stop(0.05)
    assert time.monotonic() - began < 5
    assert (stats.dropped, stats.balanced) == ({"unconfirmed": 3, "shutdown": 2}, True)
    hang.release()  # it says now that all was delivered, which is no longer counted
    assert wait_until(lambda: len(reports) == 5)
    assert Counter((report.seq, report.status, report.reason) for report in reports) == Counter(
        [(seq, "dropped", "unconfirmed" if seq <= 3 else "shutdown") for seq in range(1, 6)]
    )
    assert sink.stats().dropped == stats.dropped
    assert sink.stats().balanced


def test_a_second_stop_waits_no_longer_than_it_was_told() -> None:
    hang = Hang()
    sink = ScriptedSink(ScriptedTransport([hang]), **QUICK, send_timeout=3600.0)
    emit(sink, 3)
    patient = threading.Thread(target=sink.stop, args=(600.0,))
    patient.start()
    assert hang.reached.wait(PATIENCE)
    began = time.monotonic()
    assert sink.stop(0.05).phase == "stopped"
    assert time.monotonic() - began < 5
    patient.join(PATIENCE)
    assert not patient.is_alive()


@contextmanager
def alarm(handler: Any, after: float) -> Iterator[None]:
    """Have a signal handler called on the main thread."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_stop_the_sink_that_is_being_stopped() -> None:
    hang = Hang()
    sink = ScriptedSink(ScriptedTransport([hang]), **QUICK, send_timeout=3600.0)
    emit(sink, 3)
    sink.request_flush()
    assert hang.reached.wait(PATIENCE)
    inner = []
    with alarm(lambda *_: inner.append(sink.stop(0.05)), 0.05):
        stats = sink.stop(20)
    assert inner == [stats]
    assert stats.dropped == {"unconfirmed": 3}


def test_stop_and_the_first_event_may_come_at_the_same_time() -> None:
    for _ in range(200):
        sink = ScriptedSink(ScriptedTransport(), **QUICK)
        together = threading.Barrier(2)
        raised: list[BaseException] = []

        def first(sink: Sink = sink, together: threading.Barrier = together, raised: Any = raised) -> None:
            together.wait()
            try:
                sink.handle_event(StreamllEvent(event_type="test"))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=first)
        thread.start()
        together.wait()
        stats = sink.stop(PATIENCE)
        thread.join(PATIENCE)
        assert raised == []
        assert stats.phase == "stopped"
        stats = sink.stats()
        assert stats.balanced
        assert stats.delivered + stats.refused.get("stopped", 0) == 1


def test_stop_in_the_middle_of_starting_leaves_no_worker_behind() -> None:
    sink = ScriptedSink(ScriptedTransport(), **QUICK, name="middle")
    worker = sink._worker
    start = worker.start

    def start_and_be_stopped() -> bool:
        sink.begin_stop(0)  # as a signal handler would
        return start()

    worker.start = start_and_be_stopped  # type: ignore[method-assign]
    assert not sink.handle_event(StreamllEvent(event_type="test"))
    assert sink.stop(PATIENCE).refused == {"stopped": 1}
    assert wait_until(lambda: "streamll-middle" not in {thread.name for thread in threading.enumerate()})
    with pytest.raises(LifecycleError):
        sink.start()


def test_a_filter_that_raises_is_said_once_also_to_a_handler_that_sends_it_back() -> None:
    def broken(event: StreamllEvent) -> bool:
        logging.getLogger("app").warning("asked about %s", event.event_type)
        raise RuntimeError("the filter is broken")

    sink = ScriptedSink(ScriptedTransport(), **QUICK, event_filter=broken)

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sink.handle_event(StreamllEvent(event_type="log", data={"text": record.getMessage()}))

    handler = Forward()
    logging.getLogger().addHandler(handler)
    try:
        for _ in range(3):
            assert not sink.handle_event(StreamllEvent(event_type="test"))
    finally:
        logging.getLogger().removeHandler(handler)
    stats = sink.stop(PATIENCE)
    # What the filter itself logs is cut off; what the sink says of it, once, is an event like any other.
    assert stats.refused == {"filtered": 4}
    assert stats.callback_errors == 4


def test_flushes_of_several_threads_do_not_undo_each_other() -> None:
    transport = ScriptedTransport()
    sink = ScriptedSink(transport, **QUICK, buffer_size=100_000, batch_size=50_000)
    flushed: list[bool] = []

    def work() -> None:
        for _ in range(100):
            emit(sink, 1)
            flushed.append(sink.flush(PATIENCE))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE)
    assert flushed == [True] * 800
    sink.stop(PATIENCE)


def test_a_heartbeat_is_served_while_events_linger() -> None:
    class Serviced(ScriptedTransport):
        service_interval = 0.01
        served = 0

        def idle(self, seconds: float) -> None:
            self.served += 1

    transport = Serviced()
    sink = ScriptedSink(transport, **QUICK)
    emit(sink, 1)
    assert sink.flush(PATIENCE)
    emit(sink, 1)
    before = transport.served
    assert wait_until(lambda: transport.served >= before + 5)
    assert sink.event_queue.qsize() == 1
    sink.stop(PATIENCE)


def test_a_running_sink_that_nobody_holds_lives_until_it_is_stopped() -> None:
    transport = ScriptedTransport()
    sink = ScriptedSink(transport, **QUICK, name="forgotten")
    emit(sink, 1)
    del sink
    gc.collect()
    (found,) = [thing for thing in gc.get_objects() if type(thing) is ScriptedSink and thing.name == "forgotten"]
    assert found.stop(PATIENCE).delivered == 1


@pytest.mark.parametrize("timeout", [float("inf"), 1e18])
def test_a_timeout_may_be_endless(timeout: float) -> None:
    sink = ScriptedSink(ScriptedTransport(), **QUICK)
    emit(sink, 3)
    assert sink.flush(timeout)
    emit(sink, 2)
    assert sink.stop(timeout).delivered == 5


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "streamll"]


def test_the_first_dead_letter_and_the_first_loss_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamll")
    script = [BatchOutcome(rejected={0: "no queue"}), DELIVERED] * 3
    sink = ScriptedSink(ScriptedTransport(script), **QUICK, name="said")
    for _ in range(3):
        emit(sink, 1)
        assert sink.flush(PATIENCE)
    assert sink.stop(PATIENCE).dead_lettered == 3
    assert said(caplog) == ["sink said: an event became a dead letter: no queue; further ones are only counted"]
    caplog.clear()
    sink = ScriptedSink(ScriptedTransport([BatchOutcome(rejected={0: "no", 1: "no"})]), **QUICK, dead_letter=False)
    emit(sink, 2)
    assert sink.stop(PATIENCE).dropped == {"rejected": 2}
    assert said(caplog) == ["sink scripted: an event was dropped: rejected; further ones are only counted"]


def test_a_callback_that_raises_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamll")

    def broken(report: DeliveryReport) -> None:
        raise RuntimeError("the callback is broken")

    sink = ScriptedSink(ScriptedTransport(), **QUICK, on_delivery=broken)
    for _ in range(3):
        emit(sink, 1)
        assert sink.flush(PATIENCE)
    assert sink.stop(PATIENCE).callback_errors == 3
    assert said(caplog) == ["sink scripted: an on_delivery callback raised RuntimeError; it goes on"]


def test_a_sink_that_is_renamed_speaks_under_its_new_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streamll")
    transport = ScriptedTransport([FATAL, DELIVERED])
    sink = ScriptedSink(transport, **QUICK)
    sink.name = "second"
    emit(sink, 1)
    assert sink.stop(PATIENCE).name == "second"
    assert transport.threads == {"streamll-second"}
    assert [text.partition(":")[0] for text in said(caplog)] == ["sink second", "sink second"]
