"""What of a buffer's events lies on disk: on real journals, with nobody but the test to take them and settle them."""

from __future__ import annotations

import errno
import gc
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamll.delivery.gaps import Holes
from streamll.delivery.machine import Settlement
from streamll.delivery.outcome import Entry
from streamll.ids import new_producer_id
from streamll.models import CRITICAL, DEBUG, NORMAL, Record
from streamll.options import KIB, MIB, SinkOptions
from streamll.runtime import journal_reader
from streamll.runtime.buffer import Buffer
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.lease import Folder
from streamll.runtime.segment import HEADER_BYTES
from streamll.runtime.shelf import Shelf
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from tests.unit.deliveries import untraced

SEGMENT = 64 * KIB
DESTINATION = "nowhere://"


def record(n: int = 0, priority: str = NORMAL, size: int = 0, poison: str = "") -> Record:
    payload = b"%d:" % n + b"x" * size
    return Record(payload, "application/msgpack", f"id-{n}", "t", "", "", "", "", "", 0, 0, poison, priority)


class Held:
    """A buffer with a shelf, and the worker's side of it in the test's hands."""

    def __init__(self, spool: Path, **options: Any) -> None:
        options = {"segment_bytes": SEGMENT, "buffer_size": 10, "batch_size": 5, **options}
        self.options = SinkOptions(spool_dir=str(spool), **options)
        identity = Identity(DESTINATION, DESTINATION, new_producer_id(), self.options.durability)
        self.journal = Journal(spool, identity, self.options.segment_bytes, self.options.spool_bytes)
        self.shelf = Shelf(self.journal, self.options.durability != "memory")
        self.holes = Holes()
        self.buffer = Buffer(self.options, shelf=self.shelf, holes=self.holes)

    def put(self, first: int, last: int, **fields: Any) -> list[bool]:
        return [self.buffer.put(record(n, **fields)) for n in range(first, last + 1)]

    def take(self, n: int = 1000) -> list[Entry]:
        batch = self.buffer.take(n, 10**9)
        self.check()
        return batch

    def settle(self, batch: list[Entry]) -> None:
        assert self.buffer.settle(Settlement(delivered=batch), None)
        self.check()

    def drain(self, n: int = 1000) -> list[int]:
        """Take and settle everything; returns the numbers, whose events must be those that were put under them."""
        numbers = []
        while len(self.buffer):
            batch = self.take(n)
            numbers += [entry.seq for entry in batch]
            self.settle(batch)
        return numbers

    def check(self) -> None:
        assert self.buffer.read().balanced, self.buffer.read()

    def die(self) -> None:
        """Leave everything as a killed process does: the lease ends, and no more is said."""
        self.journal._chain.close(delete=False)

    def end(self) -> list[Entry]:
        """Give up what is left, as a stop does; returns what is lost."""
        lost = [entry for entry, _ in self.buffer.give_up()]
        self.shelf.close()
        self.check()
        return lost


@contextmanager
def adopted(spool: Path) -> Iterator[AdoptedJournal]:
    (folder,) = orphans(spool, DESTINATION)
    journal = adopt(folder)
    assert journal is not None
    yield journal
    journal.close(keep=True)


def left_in(spool: Path) -> list[int]:
    """The numbers of what would be adopted."""
    if not list(orphans(spool, DESTINATION)):
        return []
    with adopted(spool) as journal:
        found = journal.read(10**6, 10**9)
        assert journal.unsettled == len(found)
        return [entry.seq for entry in found]


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def files(spool: Path) -> list[Path]:
    return sorted(path for path in spool.rglob("*") if path.is_file())


class TestDurability:
    def test_what_is_accepted_is_left_by_a_death(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process")
        assert all(held.put(1, 10))
        assert (held.buffer.read().buffered, held.buffer.read().spooled) == (10, 0)  # both in memory and on disk
        held.die()
        assert left_in(tmp_path) == numbers(1, 10)

    def test_what_was_settled_before_is_not(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process")
        held.put(1, 10)
        first, second, third = held.take(3), held.take(3), held.take(4)
        held.settle(first)
        assert held.buffer.settle(Settlement(dead_lettered=second[:1], dropped=[(second[1], "rejected")]), 6)
        held.check()
        held.die()
        assert left_in(tmp_path) == numbers(6, 10)
        assert len(third) == 4  # in flight, so nobody knows: it is delivered again

    @pytest.mark.parametrize("strategy", ["drop_oldest", "drop_newest"])
    def test_what_gave_way_is_not_resurrected(self, tmp_path: Path, strategy: str) -> None:
        held = Held(tmp_path, durability="process", buffer_overflow_strategy=strategy)
        held.put(1, 25)
        held.check()
        held.die()
        assert left_in(tmp_path) == (numbers(16, 25) if strategy == "drop_oldest" else numbers(1, 10))

    def test_what_expired_is_not_resurrected(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process")
        held.put(1, 10)
        expired, _ = held.buffer.expire(created_before=1)
        assert len(expired) == 10
        held.die()
        assert left_in(tmp_path) == []

    def test_nothing_is_left_after_everything_was_delivered(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process")
        held.put(1, 10)
        held.drain()
        assert held.end() == []
        assert files(tmp_path) == []
        assert list(orphans(tmp_path)) == []

    def test_files_go_as_what_is_in_them_is_settled(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process", buffer_size=1000, spool_bytes=MIB)
        for n in range(50):
            assert all(held.put(20 * n + 1, 20 * n + 20, size=4000))
            held.drain()
        assert held.shelf.unprotected == 0
        assert len(files(tmp_path)) == 1
        held.end()

    def test_files_go_as_what_is_in_them_gives_way(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process", spool_bytes=MIB)
        for n in range(100):
            held.put(10 * n + 1, 10 * n + 10, size=4000)
            held.buffer.tidy()
        assert held.shelf.unprotected == 0
        assert len(files(tmp_path)) <= 3
        held.die()
        assert left_in(tmp_path) == numbers(991, 1000)

    def test_what_gave_way_is_known_whenever_it_dies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spool = tmp_path / "spool"
        held = Held(spool, durability="process", spool_bytes=MIB)
        moments: list[tuple[Path, int]] = []
        release = Journal.release

        def release_and_keep_the_moment(journal: Journal, floor: int) -> bool:
            released = release(journal, floor)
            moments.append((tmp_path / f"moment-{len(moments)}", held.buffer.last_seq))
            shutil.copytree(spool, moments[-1][0])
            return released

        with monkeypatch.context() as context:
            context.setattr(Journal, "release", release_and_keep_the_moment)
            for n in range(40):
                held.put(5 * n + 1, 5 * n + 5, size=4000)
                held.buffer.tidy()
        held.end()
        for moment, last in moments:
            with adopted(moment) as journal:
                there = {entry.seq for entry in journal.read(10**6, 10**9)}
                gone = {n for first, last in journal.undeclared for n in range(first, last + 1)}
            assert not there & gone
            assert there | gone == set(numbers(1, last))

    def test_poison_stays_poison(self, tmp_path: Path) -> None:
        held = Held(tmp_path, durability="process")
        held.put(1, 1, poison="too long")
        held.die()
        with adopted(tmp_path) as journal:
            (entry,) = journal.read(10, 10**9)
        assert (entry.record, entry.dead_letter) == (record(1, poison="too long"), "")


class TestADiskThatTakesNothing:
    @pytest.fixture
    def nowhere(self, tmp_path: Path) -> Path:
        (tmp_path / "file").write_text("in the way")
        return tmp_path / "file" / "spool"

    def test_events_stay_in_memory_and_that_is_counted(self, nowhere: Path) -> None:
        held = Held(nowhere, durability="process")
        assert all(held.put(1, 15))
        assert held.shelf.unprotected == 15
        assert "Not a directory" in held.journal.trouble
        assert held.drain() == numbers(6, 15)
        assert held.end() == []

    def test_what_is_in_memory_only_cannot_be_left_to_the_next_process(self, nowhere: Path) -> None:
        held = Held(nowhere, durability="process")
        held.put(1, 10)
        held.take(3)
        lost = held.end()
        assert [entry.seq for entry in lost] == numbers(1, 10)
        assert held.buffer.read().dropped == {"shutdown": 7, "unconfirmed": 3}

    def test_only_that_is_lost_which_came_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        held = Held(tmp_path, durability="process", buffer_size=1000)
        held.put(1, 10)

        def full(descriptor: int, offset: int, length: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr("os.posix_fallocate", full)
            assert all(held.put(11, 30, size=5000))  # more than is left of the first segment
        unprotected = held.shelf.unprotected
        assert 0 < unprotected < 20
        assert "No space left" in held.journal.trouble
        held.journal._chain._retry_at = 0.0  # a second later
        assert all(held.put(31, 40))
        held.journal.prepare()
        assert (held.shelf.unprotected, held.journal.trouble) == (unprotected, "")
        lost = held.end()
        assert [entry.seq for entry in lost] == numbers(31 - unprotected, 30)
        assert left_in(tmp_path) == numbers(1, 30 - unprotected) + numbers(31, 40)

    def test_those_that_were_delivered_are_not_remembered(self, nowhere: Path) -> None:
        held = Held(nowhere, durability="process", buffer_size=100)
        for n in range(20):
            held.put(50 * n + 1, 50 * n + 50)
            held.drain()
        held.put(1001, 1003)
        assert [entry.seq for entry in held.end()] == numbers(1001, 1003)

    def test_nothing_can_spill(self, nowhere: Path) -> None:
        held = Held(nowhere, buffer_overflow_strategy="spill")
        assert held.put(1, 12) == [True] * 10 + [False] * 2
        assert held.buffer.read().refused == {"spool_full": 2}
        assert held.drain() == numbers(1, 10)
        assert all(held.put(11, 20))
        assert len(held.end()) == 10


class TestSpill:
    def test_what_finds_no_room_goes_to_disk_and_comes_back_in_order(self, tmp_path: Path) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill")
        assert files(tmp_path) == []
        assert all(held.put(1, 10))
        assert files(tmp_path) == []
        assert all(held.put(11, 2000))
        balance = held.buffer.read()
        assert (balance.accepted, balance.buffered, balance.spooled) == (2000, 10, 1990)
        assert held.buffer.bytes_held < 10_000
        assert held.drain(n=7) == numbers(1, 2000)
        assert (held.shelf.spooled, held.buffer.bytes_held) == (0, 0)
        held.put(2001, 2010)
        assert held.buffer.read().buffered == 10  # in memory again
        assert held.drain() == numbers(2001, 2010)
        held.end()
        assert files(tmp_path) == []

    def test_once_it_spills_what_is_new_follows_though_there_is_room(self, tmp_path: Path) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill")
        held.put(1, 30)
        held.settle(held.take(10))
        held.put(31, 40)
        balance = held.buffer.read()
        assert (balance.buffered, balance.spooled) == (0, 30)
        batch = held.take(5)
        held.put(41, 45)
        assert [entry.seq for entry in batch] == numbers(11, 15)
        held.settle(batch)
        assert held.drain(n=6) == numbers(16, 45)
        held.end()

    def test_by_bytes_too(self, tmp_path: Path) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill", buffer_size=1000, buffer_bytes=10_000)
        assert all(held.put(1, 50, size=1000))
        balance = held.buffer.read()
        assert 0 < balance.buffered < 10
        assert balance.spooled == 50 - balance.buffered
        assert held.buffer.bytes_held <= 10_000
        assert not held.buffer.put(record(size=20_000))
        assert held.buffer.read().refused == {"too_large": 1}
        assert held.drain(n=3) == numbers(1, 50)
        held.end()

    def test_the_least_important_is_refused_first(self, tmp_path: Path) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill", spool_bytes=1280 * KIB)

        def taken(priority: str) -> int:
            """How many of a class are taken until one is refused."""
            n = 0
            while held.buffer.put(record(n, priority, size=900)):
                n += 1
                held.journal.prepare()
                assert n < 5000
            return n

        first = taken(DEBUG)
        assert 0.79 < held.journal.fill < 0.85
        assert not held.buffer.put(record(priority=DEBUG))
        second = taken(NORMAL)
        assert 0.94 < held.journal.fill < 0.99
        third = taken(CRITICAL)
        assert min(first, second, third) > 10, (first, second, third)
        assert not held.buffer.put(record(priority=DEBUG))
        assert held.buffer.read().refused == {"spool_full": 5}
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 1280 * KIB
        accepted = held.buffer.read().accepted
        assert accepted == first + second + third
        held.settle(held.take())
        while held.buffer.read().spooled > accepted // 2:
            held.settle(held.take(100))
        assert held.buffer.put(record(priority=DEBUG))  # there is room again
        held.drain()
        held.end()
        assert files(tmp_path) == []

    def test_with_durability_everything_is_on_disk_from_the_beginning(self, tmp_path: Path) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill", durability="process")
        assert all(held.put(1, 40))
        assert (held.buffer.read().buffered, held.buffer.read().spooled) == (10, 30)
        held.settle(held.take(4))
        held.die()
        assert left_in(tmp_path) == numbers(5, 40)

    @pytest.mark.parametrize("durability", ["memory", "process"])
    @pytest.mark.parametrize("spilled", [0, 30])
    def test_a_stop_leaves_everything_in_order(self, tmp_path: Path, durability: str, spilled: int) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill", durability=durability)
        held.put(1, 10 + spilled)
        batch = held.take(5)
        assert held.buffer.settle(Settlement(delivered=batch[:2]), 3)
        assert held.end() == []
        balance = held.buffer.read()
        assert (balance.delivered, balance.spooled, balance.dropped) == (2, 8 + spilled, {})
        assert left_in(tmp_path) == numbers(3, 10 + spilled)

    def test_what_does_not_fit_on_the_disk_at_the_end_is_lost_and_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = Held(tmp_path, buffer_overflow_strategy="spill")
        held.put(1, 30)

        def full(descriptor: int, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr("os.write", full)
            assert [entry.seq for entry in held.end()] == numbers(1, 10)
        assert (held.buffer.read().dropped, held.buffer.read().spooled) == ({"shutdown": 10}, 20)
        assert left_in(tmp_path) == numbers(11, 30)


class TestDamage:
    def spilled(self, spool: Path, count: int) -> Held:
        held = Held(spool, buffer_overflow_strategy="spill")
        assert all(held.put(1, count, size=500))
        return held

    def test_an_event_that_the_disk_has_lost_is_dropped_and_declared(self, tmp_path: Path) -> None:
        held = self.spilled(tmp_path, 60)
        (path,) = files(tmp_path)
        data = path.read_bytes()
        at = data.index(b"31:xxx")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"!")
        assert held.drain(n=8) == [n for n in numbers(1, 60) if n != 31]
        assert held.buffer.read().dropped == {"spool_damaged": 1}
        (gap,) = held.holes.take(1000)
        assert (gap.ranges, gap.reasons) == (((31, 31),), {"spool_damaged": 1})
        held.end()

    def test_a_file_that_is_deleted_takes_its_events_with_it(self, tmp_path: Path) -> None:
        held = self.spilled(tmp_path, 1000)
        victim = files(tmp_path)[2]
        victim.unlink()
        delivered = held.drain(n=50)
        missing = sorted(set(numbers(1, 1000)) - set(delivered))
        assert missing == numbers(missing[0], missing[-1])
        assert delivered == sorted(delivered)
        assert held.buffer.read().dropped == {"spool_damaged": len(missing)}
        assert sum(gap.count for gap in held.holes.take(10_000)) == len(missing) > 50
        held.end()

    def test_when_all_is_lost_it_goes_on(self, tmp_path: Path) -> None:
        held = self.spilled(tmp_path, 100)
        for path in files(tmp_path):
            with path.open("r+b") as file:
                file.seek(HEADER_BYTES)
                file.write(bytes(path.stat().st_size - HEADER_BYTES))
        assert held.drain(n=8) == numbers(1, 10)
        assert held.buffer.read().dropped == {"spool_damaged": 90}
        held.put(101, 120)
        assert held.drain(n=8) == numbers(101, 120)
        held.end()

    def test_a_file_that_cannot_be_opened_for_a_moment_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        held = self.spilled(tmp_path, 60)
        held.settle(held.take(10))

        def refuses(folder: Folder, name: str, start: int, end: int) -> bytes:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as context:
            context.setattr(journal_reader, "read_bytes", refuses)
            try:
                assert held.buffer.take(10, 10**9) == []
            except OSError:
                pass
        assert held.buffer.read().spooled == 50
        assert held.drain(n=8) == numbers(11, 60)
        held.end()


class Interrupt(Exception):
    """What a signal handler raises."""


# Interrupted between opening something and seeing to it that it is closed, Python says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.concurrent
@pytest.mark.parametrize("durability", ["memory", "process"])
def test_a_signal_handler_that_raises_in_the_middle_leaves_it_consistent(tmp_path: Path, durability: str) -> None:
    held = Held(tmp_path, buffer_overflow_strategy="spill", durability=durability, buffer_size=20)
    taken: list[Entry] = []
    ended = threading.Event()

    def work() -> None:
        sys.settrace(None)  # a coverage tool here and an exception there are a deadlock in the tool
        rng = random.Random(1)
        while not ended.is_set() or len(held.buffer):
            batch = held.buffer.take(rng.randint(1, 30), 10**9)
            taken.extend(batch)
            held.buffer.settle(Settlement(delivered=batch), None)
            if not batch:
                time.sleep(0.001)  # else it keeps the interpreter from the one that puts

    def raises(*args: object) -> None:
        raise Interrupt

    worker = threading.Thread(target=work)
    sure: set[bytes] = set()
    n = interrupts = 0
    before = signal.signal(signal.SIGALRM, raises)
    worker.start()
    try:
        with untraced():
            rng = random.Random(2)
            while interrupts < 100 and n < 20_000:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.00005, 0.002))
                    over = time.monotonic() + 0.05  # an exception in a finaliser is swallowed, and no other would come
                    while time.monotonic() < over:
                        n += 1
                        if held.buffer.put(record(n)):
                            sure.add(b"%d:" % n)
                except Interrupt:
                    interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ended.set()
        worker.join(30)
    gc.collect()  # what was left open is found here, and not in the next test
    held.check()
    balance = held.buffer.read()
    assert (balance.delivered, balance.dropped, len(held.buffer)) == (balance.accepted, {}, 0)
    assert [entry.seq for entry in taken] == numbers(1, balance.accepted)
    payloads = [entry.record.payload for entry in taken]
    assert payloads == sorted(set(payloads), key=lambda payload: int(payload[:-1]))
    assert sure <= set(payloads)  # of an interrupted one nobody was told anything
    held.end()
    assert files(tmp_path) == []
