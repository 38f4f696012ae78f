"""What dead processes left in the spool is delivered: with real files, real threads, and brokers that answer from a script.

A death is played: the journal is closed without a word, so that its lease ends and its files stay. Real deaths are in
tests/contract/test_spool.py.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamll.codec import decode
from streamll.delivery.outcome import BatchOutcome, Entry
from streamll.ids import new_producer_id
from streamll.models import GAP, StreamllEvent
from streamll.options import KIB
from streamll.pipeline import Pipeline
from streamll.runtime import adoption
from streamll.runtime.adoption import Adoption, Lane
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from streamll.testing.scripted import DELIVERED, REJECTED, UNAVAILABLE, Hang, ScriptedSink, ScriptedTransport
from tests.fixtures.waiting import PATIENCE, wait_until

DESTINATION = "scripted"
SEGMENT = 64 * KIB

QUICK: dict[str, Any] = {
    "flush_interval": 0.001,
    "retry_base": 0.001,
    "retry_bound": 0.002,
    "recovery_timeout": 0.01,
    "recovery_bound": 0.02,
    "durability": "process",
}


class Broker:
    """Transports by producer: those of the dead, and the living sink's own."""

    def __init__(self, **scripts: Any) -> None:
        self.scripts = scripts
        self.transports: dict[str, ScriptedTransport] = {}

    def __call__(self, producer: str) -> ScriptedTransport:
        transport = ScriptedTransport(**self.scripts.get(producer, {}))
        self.transports[producer] = transport
        return transport

    def sent(self, producer: str) -> list[Entry]:
        transport = self.transports.get(producer)
        return [] if transport is None else [entry for batch in list(transport.sent) for entry in batch]

    def seqs(self, producer: str) -> list[int]:
        """The numbers that were sent for a producer, dead letters negative."""
        return [-entry.seq if entry.dead_letter else entry.seq for entry in self.sent(producer)]


def event(n: int = 0, **fields: Any) -> StreamllEvent:
    return StreamllEvent(event_type="test", data={"n": n}, **fields)


def begin(
    spool: Path,
    count: int,
    *,
    settled: int = 0,
    poison: int = 0,
    destination: str = DESTINATION,
    durability: str = "process",
) -> Journal:
    """What a process has that accepted so many events, and of which so many were delivered."""
    producer = new_producer_id()
    journal = Journal(spool, Identity(destination, destination, producer, durability), SEGMENT)
    pipeline = Pipeline()
    for n in range(1, count + 1):
        record = pipeline.encode(event(n))
        assert journal.append(Entry(n, msgspec.structs.replace(record, poison="bad") if n == poison else record))
    if settled:
        journal.settle([(1, settled)])
    return journal


def die(journal: Journal) -> None:
    journal._chain.close(delete=False)


def leave(spool: Path, count: int, **what: Any) -> str:
    """Begin, and die at once; returns the producer."""
    journal = begin(spool, count, **what)
    die(journal)
    return journal.identity.producer


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def files(spool: Path) -> list[Path]:
    """Those in a spool, in which others may delete something meanwhile."""
    return sorted(Path(folder, name) for folder, _, names in os.walk(spool) for name in names)


def is_empty(spool: Path) -> bool:
    return not files(spool) and not list(orphans(spool))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for orphans all the time."""
    monkeypatch.setattr(adoption, "LOOK_AGAIN", 0.01)


@pytest.fixture
def sink_of(tmp_path: Path) -> Iterator[Callable[..., ScriptedSink]]:
    """Make sinks over a broker, with one spool; all are stopped at the end."""
    made: list[ScriptedSink] = []

    def make(broker: Broker, kind: type[ScriptedSink] = ScriptedSink, **options: Any) -> ScriptedSink:
        sink = kind(broker, **{**QUICK, "spool_dir": str(tmp_path), "segment_bytes": SEGMENT, **options})
        made.append(sink)
        return sink

    yield make
    for sink in made:
        sink.stop(0)


MakeSink = Callable[..., ScriptedSink]


def adopted(sink: ScriptedSink, producer: str = "") -> Adoption | None:
    """How far it is with an orphan; that its numbers add up is looked at each time."""
    found = sink.stats().adopted
    assert all(one.balanced for one in found), found
    return next((one for one in found if one.producer == producer), None)


def is_done(sink: ScriptedSink, *producers: str) -> Callable[[], bool]:
    def done() -> bool:
        found = [adopted(sink, producer) for producer in producers]
        return all(one is not None and one.spooled + one.in_flight + one.buffered == 0 for one in found)

    return done


def test_it_is_delivered_under_the_dead_producers_name_and_numbers(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 50, settled=10)
    broker = Broker()
    sink = sink_of(broker, batch_size=7)
    sink.start()
    assert wait_until(lambda: is_empty(tmp_path))
    assert broker.seqs(producer) == numbers(11, 50)
    assert [decode(entry.record.payload).data["n"] for entry in broker.sent(producer)] == numbers(11, 50)
    stats = sink.stats()
    (done,) = stats.adopted
    assert (done.producer, done.offered, done.accepted, done.delivered, done.spooled) == (producer, 40, 40, 40, 0)
    assert stats.accepted == 0  # it is nothing of its own
    assert broker.transports[producer].closed == [False, True]
    sink.stop(PATIENCE)
    assert set(broker.transports) == {producer}


def test_it_begins_with_the_first_event_too(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 5)
    broker = Broker()
    sink = sink_of(broker)
    assert files(tmp_path)
    assert sink.handle_event(event())
    assert wait_until(is_done(sink, producer))
    assert broker.seqs(producer) == numbers(1, 5)
    assert sink.flush(PATIENCE)
    assert broker.seqs(sink.producer) == [1]


def test_poison_becomes_a_dead_letter(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 5, poison=3)
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    assert wait_until(is_done(sink, producer))
    assert broker.seqs(producer) == [1, 2, -3, 4, 5]
    done = adopted(sink, producer)
    assert done is not None
    assert (done.delivered, done.dead_lettered) == (4, 1)


def test_what_the_broker_rejects_becomes_a_dead_letter(tmp_path: Path, sink_of: MakeSink) -> None:
    def rejects(batch: Any) -> BatchOutcome:
        return REJECTED if any(entry.seq == 2 and not entry.dead_letter for entry in batch) else DELIVERED

    producer = leave(tmp_path, 3)
    sink = sink_of(Broker(**{producer: {"then": rejects}}))
    sink.start()
    assert wait_until(is_done(sink, producer))
    done = adopted(sink, producer)
    assert done is not None
    assert (done.delivered, done.dead_lettered) == (2, 1)
    assert wait_until(lambda: is_empty(tmp_path))


def test_several_are_delivered_one_after_the_other_the_oldest_first(tmp_path: Path, sink_of: MakeSink) -> None:
    producers = [leave(tmp_path, 20 + n) for n in range(5)]
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    assert wait_until(lambda: is_empty(tmp_path))
    assert [(done.producer, done.delivered) for done in sink.stats().adopted] == [
        (producer, 20 + n) for n, producer in enumerate(producers)
    ]
    assert list(broker.transports) == producers


def test_its_own_events_wait_for_none_of_it(tmp_path: Path, sink_of: MakeSink) -> None:
    producers = [leave(tmp_path, 100) for _ in range(3)]
    hang = Hang()
    broker = Broker(**{producers[0]: {"steps": [hang]}})
    sink = sink_of(broker, send_timeout=600.0)
    sink.start()
    assert hang.reached.wait(PATIENCE)
    for n in range(100):
        assert sink.handle_event(event(n))
    assert sink.flush(PATIENCE)  # while the orphan's batch hangs
    assert broker.seqs(sink.producer) == numbers(1, 100)
    done = adopted(sink, producers[0])
    assert done is not None
    assert (done.in_flight, done.delivered) == (100, 0)
    hang.release()
    assert wait_until(is_done(sink, *producers))
    assert sink.stop(PATIENCE).delivered == 100
    assert is_empty(tmp_path)


def test_a_broker_that_is_away_is_tried_until_it_is_back(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 30)
    sink = sink_of(Broker(**{producer: {"steps": [UNAVAILABLE] * 8}}))
    sink.start()
    assert wait_until(is_done(sink, producer))
    assert wait_until(lambda: is_empty(tmp_path))


def test_its_numbers_add_up_at_every_read(tmp_path: Path, sink_of: MakeSink) -> None:
    producers = [leave(tmp_path, 300, settled=n) for n in range(4)]
    broker = Broker(**{producer: {"steps": [DELIVERED, UNAVAILABLE] * 20} for producer in producers})
    sink = sink_of(broker, batch_size=10, batch_growth=1)
    sink.start()
    seen: list[str] = []
    settled: Counter[str] = Counter()

    def look() -> bool:
        found = sink.stats().adopted
        assert [one.producer for one in found][: len(seen)] == seen  # none is missing for a moment
        seen[:] = [one.producer for one in found]
        for one in found:
            assert one.balanced, one
            assert one.delivered >= settled[one.producer]
            settled[one.producer] = one.delivered
        return len(found) == 4 and is_done(sink, *producers)()

    assert wait_until(look, interval=0)
    look()
    assert list(settled.values()) == [300, 299, 298, 297]


def test_a_stop_leaves_the_rest_where_it_is(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 100)
    hang = Hang()
    first = Broker(**{producer: {"steps": [DELIVERED, hang]}})
    sink = sink_of(first, batch_size=10, batch_growth=1, send_timeout=600.0)
    sink.start()
    assert hang.reached.wait(PATIENCE)
    began = time.monotonic()
    stats = sink.stop(0.05)
    assert time.monotonic() - began < 5
    (left,) = stats.adopted
    assert (left.delivered, left.spooled, left.in_flight, left.dropped, left.balanced) == (10, 90, 0, {}, True)
    second = Broker()
    next_one = sink_of(second)
    next_one.start()
    assert wait_until(lambda: is_empty(tmp_path))
    assert second.seqs(producer) == numbers(11, 100)  # of those in flight nobody knows
    (done,) = next_one.stats().adopted
    assert (done.accepted, done.delivered) == (90, 90)


def test_a_stop_has_the_time_that_it_was_given(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 100)
    hang = Hang()
    broker = Broker(**{producer: {"steps": [hang]}})
    sink = sink_of(broker, send_timeout=600.0)
    sink.start()
    assert hang.reached.wait(PATIENCE)
    threading.Timer(0.1, hang.release).start()
    (done,) = sink.stop(PATIENCE).adopted
    assert done.delivered == 100
    assert is_empty(tmp_path)


def test_a_stop_before_it_was_looked_for_leaves_it(tmp_path: Path, sink_of: MakeSink) -> None:
    producers = [leave(tmp_path, 10) for _ in range(3)]
    hang = Hang()
    broker = Broker(**{producers[0]: {"steps": [hang]}})
    sink = sink_of(broker, send_timeout=600.0)
    sink.start()
    assert hang.reached.wait(PATIENCE)
    sink.stop(0)
    assert [path.name for path in orphans(tmp_path)] == producers
    assert list(broker.transports) == producers[:1]


def test_one_of_a_living_process_is_left_alone(tmp_path: Path, sink_of: MakeSink) -> None:
    living = begin(tmp_path, 10)
    dead = leave(tmp_path, 5)
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    assert wait_until(is_done(sink, dead))
    time.sleep(0.1)  # ten looks
    assert set(broker.transports) == {dead}
    die(living)
    assert wait_until(is_done(sink, living.identity.producer))
    assert broker.seqs(living.identity.producer) == numbers(1, 10)


def test_what_a_stopped_sink_has_left_another_of_the_same_process_delivers(sink_of: MakeSink) -> None:
    away = Broker()
    first = sink_of(away)
    away.scripts[first.producer] = {"then": UNAVAILABLE}
    for n in range(10):
        assert first.handle_event(event(n))
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    assert first.stop(0).spooled == 10
    assert wait_until(is_done(sink, first.producer))
    assert broker.seqs(first.producer) == numbers(1, 10)


def test_also_what_one_has_left_whose_worker_outlived_it(sink_of: MakeSink) -> None:
    away = Broker()
    first = sink_of(away)
    hang = Hang(stubborn=True)
    away.scripts[first.producer] = {"steps": [hang]}
    for n in range(10):
        assert first.handle_event(event(n))
    assert hang.reached.wait(PATIENCE)
    assert first.stop(0).spooled == 10
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    hang.release()
    assert wait_until(is_done(sink, first.producer), 5)
    assert broker.seqs(first.producer) == numbers(1, 10)


def test_one_of_another_destination_is_left_alone(tmp_path: Path, sink_of: MakeSink) -> None:
    other = leave(tmp_path, 5, destination="scripted://elsewhere")
    dead = leave(tmp_path, 5)
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    assert wait_until(is_done(sink, dead))
    sink.stop(PATIENCE)
    assert [path.name for path in orphans(tmp_path)] == [other]
    assert set(broker.transports) == {dead}


def test_one_that_appears_later_is_found(tmp_path: Path, sink_of: MakeSink) -> None:
    broker = Broker()
    sink = sink_of(broker)
    sink.start()
    producer = leave(tmp_path, 5)
    assert wait_until(is_done(sink, producer))
    assert broker.seqs(producer) == numbers(1, 5)


@pytest.mark.concurrent
def test_of_several_that_race_for_it_one_has_it(tmp_path: Path, sink_of: MakeSink) -> None:
    producers = [leave(tmp_path, 200, settled=n) for n in range(12)]
    brokers = [Broker() for _ in range(6)]
    sinks = [sink_of(broker, batch_size=20) for broker in brokers]
    barrier = threading.Barrier(len(sinks))

    def race(sink: ScriptedSink) -> None:
        barrier.wait(PATIENCE)
        sink.start()

    threads = [threading.Thread(target=race, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wait_until(lambda: is_empty(tmp_path))
    for n, producer in enumerate(producers):
        assert [broker.seqs(producer) for broker in brokers if producer in broker.transports] == [numbers(n + 1, 200)]
    assert sum(len(sink.stats().adopted) for sink in sinks) == 12


class Forgetful(ScriptedSink):
    """A sink whose destination remembers a producer for a minute and a half."""

    orphan_age = 90.0


def test_one_that_is_too_old_is_left_and_that_is_said_once(
    tmp_path: Path, sink_of: MakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    old = leave(tmp_path, 5)
    (path,) = files(tmp_path)
    os.utime(path, (time.time() - 100, time.time() - 100))
    young = leave(tmp_path, 5)
    broker = Broker()
    sink = sink_of(broker, Forgetful)
    sink.start()
    assert wait_until(is_done(sink, young))
    time.sleep(0.1)  # ten looks
    assert set(broker.transports) == {young}
    (said,) = [record.getMessage() for record in caplog.records if old in record.getMessage()]
    assert "streamll replay" in said
    sink.stop(PATIENCE)
    (folder,) = orphans(tmp_path)
    journal = adopt(folder)  # nobody holds it
    assert journal is not None
    assert journal.unsettled == 5
    journal.close(keep=True)


def test_it_is_said_how_many_events_are_delivered(
    tmp_path: Path, sink_of: MakeSink, caplog: pytest.LogCaptureFixture
) -> None:
    producer = leave(tmp_path, 7, settled=2)
    sink = sink_of(Broker(), name="mine")
    sink.start()
    assert wait_until(is_done(sink, producer))
    assert [record.getMessage() for record in caplog.records] == [
        "sink mine: 5 events of a process that died are delivered"
    ]


class TestDamage:
    def flip(self, spool: Path, text: bytes) -> None:
        """Have one byte of an event be another."""
        for path in files(spool):
            at = path.read_bytes().find(text)
            if at >= 0:
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(b"\xff")

    def test_what_is_lost_is_declared_in_its_place(self, tmp_path: Path, sink_of: MakeSink) -> None:
        producer = leave(tmp_path, 20, settled=2)
        needle = {n: b"\xa1n" + bytes([n]) for n in (1, 5, 6, 9)}
        for n in needle.values():
            self.flip(tmp_path, n)
        broker = Broker()
        sink = sink_of(broker, batch_size=1, batch_growth=1)
        sink.start()
        assert wait_until(is_done(sink, producer))
        assert wait_until(lambda: is_empty(tmp_path))
        sent = broker.sent(producer)
        assert [entry.seq for entry in sent] == sorted(entry.seq for entry in sent)
        assert [entry.seq for entry in sent if not entry.note] == [3, 4, 7, 8, *numbers(10, 20)]
        notes = [decode(entry.record.payload) for entry in sent if entry.note]
        assert {note.event_type for note in notes} == {GAP}
        declared = [tuple(pair) for note in notes for pair in note.data["ranges"]]
        assert declared == [(5, 6), (9, 9)]  # and not the first one, which had been delivered
        assert {reason for note in notes for reason in note.data["reasons"]} == {"lost_in_crash"}
        done = adopted(sink, producer)
        assert done is not None
        assert (done.accepted, done.delivered, done.damaged > 0) == (15, 15, True)

    def test_it_is_declared_again_when_the_adopter_was_stopped(self, tmp_path: Path, sink_of: MakeSink) -> None:
        producer = leave(tmp_path, 20)
        self.flip(tmp_path, b"\xa1n" + bytes([5]))
        hang = Hang()
        sink = sink_of(Broker(**{producer: {"steps": [hang]}}), send_timeout=600.0)
        sink.start()
        assert hang.reached.wait(PATIENCE)
        (left,) = sink.stop(0).adopted
        assert (left.delivered, left.spooled) == (0, 19)
        broker = Broker()
        sink_of(broker).start()
        assert wait_until(lambda: is_empty(tmp_path))
        assert [entry.seq for entry in broker.sent(producer)] == numbers(1, 20)
        assert [entry.seq for entry in broker.sent(producer) if entry.note] == [5]

    def test_numbers_that_were_in_memory_only_are_nobodys_loss(self, tmp_path: Path, sink_of: MakeSink) -> None:
        producer = leave(tmp_path, 20, durability="memory")
        self.flip(tmp_path, b"\xa1n" + bytes([5]))
        broker = Broker()
        sink = sink_of(broker)
        sink.start()
        assert wait_until(is_done(sink, producer))
        assert broker.seqs(producer) == [n for n in numbers(1, 20) if n != 5]

    def test_what_cannot_be_read_at_all_stops_nothing(self, tmp_path: Path, sink_of: MakeSink) -> None:
        bad = leave(tmp_path, 20)
        (path,) = files(tmp_path)
        path.write_bytes(b"garbage" * 5000)
        good = leave(tmp_path, 20)
        broker = Broker()
        sink = sink_of(broker)
        sink.start()
        assert wait_until(is_done(sink, good))
        assert set(broker.transports) == {good}
        assert wait_until(lambda: [path.name for path in files(tmp_path)] == ["00001001.segment.set-aside"])
        assert bad in str(files(tmp_path)[0])


class TestWhatGoesWrong:
    def test_one_that_cannot_be_begun_keeps_nobody_from_the_others(
        self, tmp_path: Path, sink_of: MakeSink, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = leave(tmp_path, 5)
        good = leave(tmp_path, 5)

        class Picky(ScriptedSink):
            def lane_for(self, journal: AdoptedJournal) -> Lane:
                if journal.identity.producer == bad:
                    raise KeyError("not this one")
                return super().lane_for(journal)

        broker = Broker()
        sink = sink_of(broker, Picky)
        sink.start()
        assert wait_until(is_done(sink, good))
        time.sleep(0.1)  # ten looks
        assert [path.name for path in orphans(tmp_path)] == [bad]
        (said,) = [record.getMessage() for record in caplog.records if bad in record.getMessage()]
        assert "KeyError" in said
        (folder,) = orphans(tmp_path)
        sink.stop(PATIENCE)
        journal = adopt(folder)  # nobody holds it
        assert journal is not None
        journal.close(keep=True)

    def test_a_defect_of_looking_is_said_once(
        self, sink_of: MakeSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        looks: list[Path] = []

        def fails(spool_dir: Path, destination: str) -> list[Path]:
            looks.append(spool_dir)
            raise RuntimeError("secret")

        monkeypatch.setattr(adoption, "orphans", fails)
        sink = sink_of(Broker())
        sink.start()
        assert wait_until(lambda: len(looks) > 5)
        sink.stop(PATIENCE)
        (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert "RuntimeError" in said
        assert "secret" not in said

    def test_without_a_thread_it_is_left_to_the_next(
        self, tmp_path: Path, sink_of: MakeSink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leave(tmp_path, 5)
        sink = sink_of(Broker())

        def no_more(thread: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        with monkeypatch.context() as context:
            context.setattr(threading.Thread, "start", no_more)
            assert sink.handle_event(event())
            assert sink.stop(PATIENCE).delivered == 1
        assert len(list(orphans(tmp_path))) == 1


# Forking a process that has threads is what this is about; Python 3.12 warns of it.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_it_to_its_parent(tmp_path: Path, sink_of: MakeSink) -> None:
    producer = leave(tmp_path, 100)
    hang = Hang()
    broker = Broker(**{producer: {"steps": [DELIVERED, hang]}})
    sink = sink_of(broker, batch_size=10, batch_growth=1, send_timeout=600.0)
    sink.start()
    assert hang.reached.wait(PATIENCE)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sink.start()
            assert sink.stats().adopted == ()
            assert sink.handle_event(event())
            stats = sink.stop(PATIENCE)
            assert (stats.delivered, stats.adopted) == (1, ())
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    hang.release()
    assert wait_until(is_done(sink, producer))
    assert sorted(set(broker.seqs(producer))) == numbers(1, 100)
    assert wait_until(lambda: is_empty(tmp_path))
