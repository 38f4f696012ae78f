"""What a sink tells its readers of itself: which events it dropped, and that it has ended. And which it drops first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from streamll.delivery.gaps import ranges_of
from streamll.errors import BufferFullError
from streamll.models import CRITICAL, DEBUG, NORMAL
from streamll.options import KIB, PipelineOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import DeliveryReport, Sink
from tests.contract.conftest import QUICK, BalanceWatch, assert_told, emit, ids_at, make_event, told
from tests.contract.destinations import Destination, Outage, RabbitMQDestination
from tests.fixtures.rabbitmq import RabbitMQEndpoint
from tests.fixtures.waiting import PATIENCE, wait_until

Watch = Callable[[Sink], BalanceWatch]

CLASSES = {"c": CRITICAL, "n": NORMAL, "d": DEBUG}


def offer(sink: Sink, letters: str) -> list[str]:
    """Hand over an event of each class (c, n, d); returns the ids of those that were accepted."""
    accepted = []
    for n, letter in enumerate(letters):
        event = make_event(n)
        event.priority = CLASSES[letter]
        try:
            if sink.handle_event(event):
                accepted.append(event.event_id)
        except BufferFullError:
            pass
    return accepted


def hold_one(sink: Sink) -> list[str]:
    """Have number 1 in flight, so that what comes next fills the buffer; returns its id."""
    ids = offer(sink, "n")
    assert wait_until(lambda: sink.stats().in_flight == 1)
    return ids


class TestPressure:
    def test_drop_oldest_sheds_debug_first_and_critical_last(self, silent_outage: Outage, watch: Watch) -> None:
        reports: list[DeliveryReport] = []
        destination = silent_outage.destination
        silent_outage.begin()
        sink = destination.sink(**QUICK, buffer_size=12, on_delivery=reports.append)
        watch(sink)
        ids = hold_one(sink)
        ids += offer(sink, "dcndcndcndc")  # 2 to 12: it is full
        ids += offer(sink, "nnnnnn")  # 13 to 18, for which 2, 5, 8, 11 give way, then 4 and 7
        ids += offer(sink, "ccccccc")  # 19 to 25, for which 10 and 13 to 18 give way
        assert offer(sink, "dn") == []  # which would have to go first themselves
        dropped = [2, 4, 5, 7, 8, 10, 11, 13, 14, 15, 16, 17, 18]
        stats = sink.stats()
        assert (stats.accepted, stats.dropped, stats.refused) == (25, {"overflow": 13}, {"buffer_full": 2})
        silent_outage.end()
        assert sink.flush(PATIENCE)
        stats = sink.stop(PATIENCE)
        assert ids_at(destination) == [id for seq, id in enumerate(ids, 1) if seq not in dropped]
        assert_told(destination, sink.producer, 25, ranges_of(dropped), {"overflow": 13})
        assert (stats.delivered, stats.declared) == (12, 13 if destination.keeps_notes else 0)
        # Nobody is told of notes, and they count for nothing.
        assert Counter(report.seq for report in reports) == Counter(range(1, 26))
        assert {report.seq for report in reports if report.status == "dropped"} == set(dropped)

    def test_drop_newest_sheds_only_what_is_of_a_lower_class(self, outage: Outage, watch: Watch) -> None:
        outage.begin()
        sink = outage.destination.sink(**QUICK, buffer_size=6, buffer_overflow_strategy="drop_newest")
        watch(sink)
        ids = hold_one(sink)
        ids += offer(sink, "ddnnd")  # 2 to 6: it is full
        assert offer(sink, "d") == []
        ids += offer(sink, "nncc")  # 7 to 10, for which 6, 3, 2 and then 8 give way
        assert offer(sink, "nd") == []
        assert sink.stats().dropped == {"overflow": 4}
        outage.end()
        sink.stop(PATIENCE)
        assert ids_at(outage.destination) == [ids[seq - 1] for seq in (1, 4, 5, 7, 9, 10)]
        assert_told(outage.destination, sink.producer, 10, [(2, 3), (6, 6), (8, 8)], {"overflow": 4})

    @pytest.mark.parametrize("strategy", ["block", "raise_error"])
    def test_the_other_strategies_shed_nothing_that_was_accepted(self, outage: Outage, strategy: str) -> None:
        outage.begin()
        sink = outage.destination.sink(
            **QUICK, buffer_size=6, buffer_overflow_strategy=strategy, block_timeout=0.01, name="keeps"
        )
        ids = offer(sink, "dndndn")
        assert len(ids) == 6
        assert offer(sink, "ccnd") == []
        stats = sink.stats()
        assert (stats.dropped, stats.refused) == ({}, {"buffer_full": 4})
        outage.end()
        sink.stop(PATIENCE)
        assert ids_at(outage.destination) == ids
        assert_told(outage.destination, sink.producer, last=6)

    def test_the_class_of_an_event_does_not_change_its_place(self, destination: Destination) -> None:
        sink = destination.sink(batch_size=7, flush_interval=0.001)
        ids = offer(sink, "dcnncdcdnndcnccdnd" * 10)
        sink.stop(PATIENCE)
        assert ids_at(destination) == ids
        assert_told(destination, sink.producer, last=180)


class TestGaps:
    def test_what_was_lost_is_told_as_soon_as_it_can_be_though_nothing_more_comes(self, outage: Outage) -> None:
        destination = outage.destination
        outage.begin()
        sink = destination.sink(**QUICK, delivery_deadline=0.3)
        emit(sink, 30)
        assert wait_until(sink.event_queue.empty)  # all of them have expired
        dropped = sink.stats().dropped
        assert sum(dropped.values()) == 30
        assert sink.flush(0)
        outage.end()
        if destination.keeps_notes:
            assert wait_until(lambda: sink.stats().declared == 30)
        assert_told(destination, sink.producer, None, [(1, 30)], dropped)
        assert not destination.stored()
        sink.stop(PATIENCE)
        assert_told(destination, sink.producer, 30, [(1, 30)], dropped)

    def test_several_outages_leave_several_gaps(self, outage: Outage, watch: Watch) -> None:
        destination = outage.destination
        sink = destination.sink(**QUICK, buffer_size=10)
        watch(sink)
        ids: list[str] = []
        for _ in range(3):
            ids += emit(sink, 5)
            assert sink.flush(PATIENCE)
            outage.begin()
            ids += hold_one(sink)
            ids += emit(sink, 14)  # of which the first 5 give way
            outage.end()
            assert sink.flush(PATIENCE)
        stats = sink.stop(PATIENCE)
        gaps = [(7, 11), (27, 31), (47, 51)]
        assert stats.dropped == {"overflow": 15}
        assert ids_at(destination) == [
            id for seq, id in enumerate(ids, 1) if not any(first <= seq <= last for first, last in gaps)
        ]
        assert_told(destination, sink.producer, 60, gaps, {"overflow": 15})

    def test_what_may_have_arrived_is_there_or_told(self, silent_outage: Outage) -> None:
        destination = silent_outage.destination
        sink = destination.sink(**QUICK, delivery_deadline=0.7, batch_size=5, batch_growth=1)
        emit(sink, 5)
        assert sink.flush(PATIENCE)
        silent_outage.begin()
        emit(sink, 20)
        assert wait_until(sink.event_queue.empty)  # it was sent, perhaps, and is given up
        silent_outage.end()
        emit(sink, 5)
        sink.flush(PATIENCE)
        stats = sink.stop(PATIENCE)
        assert stats.delivered + sum(stats.dropped.values()) == 30
        if destination.keeps_notes:
            found = told(destination, sink.producer)
            declared = {seq for first, last in found.gaps for seq in range(first, last + 1)}
            assert found.last == 30
            assert declared | {stored.seq for stored in destination.stored()} == set(range(1, 31))

    def test_each_rejected_event_that_is_dropped_by_choice_is_told(self, poisonable: Destination) -> None:
        sink = poisonable.sink_for_poison(dead_letter=False, flush_interval=3600)
        poisonable.poison(sink)
        ids = emit(sink, 2)
        poisonable.poison(sink)
        poisonable.poison(sink)
        ids += emit(sink, 1)
        poisonable.poison(sink)
        stats = sink.stop(PATIENCE)
        assert (stats.delivered, stats.dropped) == (3, {"rejected": 4})
        assert ids_at(poisonable) == ids
        assert_told(poisonable, sink.producer, 7, [(1, 1), (4, 5), (7, 7)], {"rejected": 4})

    def test_a_note_is_for_machines_so_it_is_neither_cut_nor_redacted(self, outage: Outage) -> None:
        outage.begin()
        pipeline = Pipeline(PipelineOptions(max_event_bytes=KIB, oversize="dead_letter", redact_keys="ranges, last"))
        sink = outage.destination.sink(**QUICK, buffer_size=601, pipeline=pipeline)
        hold_one(sink)
        offer(sink, "cd" * 300)
        offer(sink, "c" * 300)  # for which every second event gives way
        outage.end()
        stats = sink.stop(PATIENCE)
        assert (stats.delivered, stats.dead_lettered, stats.dropped) == (601, 0, {"overflow": 300})
        gaps = [(seq, seq) for seq in range(3, 603, 2)]
        assert_told(outage.destination, sink.producer, 901, gaps, {"overflow": 300})


class TestClosing:
    def test_nothing_is_said_where_nothing_was_emitted(self, destination: Destination) -> None:
        with destination.sink() as sink:
            assert not sink.handle_event(None)  # type: ignore[arg-type]  # what untyped code does
        assert destination.everything() == []

    def test_each_run_of_a_program_closes_for_itself(self, destination: Destination) -> None:
        ended = []
        for count in (1, 5, 3):
            with destination.sink() as sink:
                emit(sink, count)
            ended.append((sink.producer, count))
        for producer, count in ended:
            assert_told(destination, producer, last=count)

    def test_a_stop_that_gives_up_does_not_close(self, silent_outage: Outage) -> None:
        """Also when all that it gave up was in its hands, so that nothing is left that waits."""
        destination = silent_outage.destination
        sink = destination.sink(**QUICK)
        emit(sink, 3)
        assert sink.flush(PATIENCE)
        silent_outage.begin()
        emit(sink, 1)
        assert wait_until(lambda: sink.stats().failed_batches > 0)
        stats = sink.stop(0.05)
        assert sum(stats.dropped.values()) == 1
        silent_outage.end()
        assert destination.notes() == []

    def test_neither_does_one_that_could_not_tell_of_its_gaps(self, outage: Outage) -> None:
        outage.begin()
        sink = outage.destination.sink(**QUICK, delivery_deadline=0.2)
        emit(sink, 3)
        assert wait_until(sink.event_queue.empty)
        stats = sink.stop(0.05)
        assert (sum(stats.dropped.values()), stats.declared) == (3, 0)
        outage.end()
        assert outage.destination.notes() == []


@pytest.mark.rabbitmq
@pytest.mark.integration
class TestRabbitMQ:
    """Where the broker has its own will about what it takes."""

    @pytest.fixture
    def place(self, rabbitmq_server: RabbitMQEndpoint) -> Iterator[RabbitMQDestination]:
        place = RabbitMQDestination(rabbitmq_server)
        yield place
        place.close()

    def test_notes_that_no_queue_takes_harm_nobody(self, place: RabbitMQDestination) -> None:
        sink = place.sink(binding_key="test", dead_letter=False)
        ids = emit(sink, 3)
        place.poison(sink)
        ids += emit(sink, 3)
        assert sink.flush(PATIENCE)
        stats = sink.stop(PATIENCE)
        assert (stats.delivered, stats.dropped, stats.dead_lettered) == (6, {"rejected": 1}, 0)
        assert (stats.declared, stats.defects, stats.circuit, stats.balanced) == (0, 0, "closed", True)
        assert ids_at(place) == ids
        assert place.notes() == []

    def test_a_dead_letter_that_finds_no_place_is_told(self, place: RabbitMQDestination) -> None:
        with place.server.connection() as connection:
            connection.channel().exchange_declare(
                f"{place.exchange}.dead-letter", "fanout", durable=True
            )  # and no queue
        sink = place.sink_for_poison()
        emit(sink, 3)
        place.poison(sink)
        emit(sink, 3)
        assert sink.flush(PATIENCE)
        stats = sink.stop(PATIENCE)
        assert (stats.delivered, stats.dropped) == (6, {"dead_letter_failed": 1})
        assert_told(place, sink.producer, 7, [(4, 4)], {"dead_letter_failed": 1})
