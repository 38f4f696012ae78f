"""Journal: what is stored comes back, in order, and what is settled does not; on a real disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest

from streamll.delivery.outcome import Entry
from streamll.errors import ConfigurationError
from streamll.runtime import segment_file, syncer
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.lease import key_of, require_support
from streamll.runtime.segment import HEADER_BYTES, read_header
from streamll.runtime.segment_file import SegmentFile
from tests.fixtures.waiting import wait_until
from tests.runtime.journals import (
    DESTINATION,
    EVERYTHING,
    SMALL,
    adopt_one,
    drain,
    entry,
    files,
    fill,
    interrupted_at,
    make,
)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class TestStoring:
    def test_touches_no_disk_before_there_is_something_to_store(self, spool: Path) -> None:
        journal = make(spool)
        journal.prepare()
        journal.settle([(1, 5)])
        journal.release(9)
        assert journal.read(10, EVERYTHING) == []
        journal.sync()
        journal.close(keep=True)
        assert not spool.exists()

    def test_what_was_stored_is_there_after_the_process(self, spool: Path) -> None:
        journal = make(spool)
        entries = [entry(seq, size) for seq, size in ((5, 0), (6, 3000), (9, 1))]
        for one in entries:
            assert journal.append(one)
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert adopted.read(10, EVERYTHING) == entries
        assert adopted.identity == journal.identity
        adopted.close(keep=False)

    def test_segments_follow_each_other(self, spool: Path) -> None:
        journal = make(spool, segment_bytes=4 * SMALL)
        fill(journal, 1, 3000, size=200)
        numbers = journal.numbers()
        assert numbers.segments > 3
        assert numbers.bytes == sum(path.stat().st_size for path in spool.rglob("*.segment"))
        assert (numbers.trouble, numbers.failures, numbers.refused, numbers.damaged) == ("", 0, 0, 0)
        sizes = [path.stat().st_size for path in sorted(spool.rglob("*.segment"))]
        assert sizes == sorted(sizes)
        assert (sizes[0], sizes[-1]) == (SMALL, 4 * SMALL)
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(1, 3001))
        adopted.close(keep=False)

    def test_a_header_says_whose_they_are_and_where_they_go(self, spool: Path) -> None:
        journal = make(spool, "9f0c2d4e6a8b1c3d")
        fill(journal, 1, 1)
        (path,) = spool.rglob("*.segment")
        header = read_header(path.read_bytes()[:HEADER_BYTES])
        assert path.parent == spool / key_of(DESTINATION) / "9f0c2d4e6a8b1c3d"
        assert (header.producer, header.destination, header.url) == ("9f0c2d4e6a8b1c3d", DESTINATION, DESTINATION)
        assert (header.pid, header.durability, header.size) == (os.getpid(), "process", SMALL)
        journal.close(keep=False)

    @pytest.mark.parametrize("umask", [0, 0o022, 0o777])
    def test_nobody_else_may_read_them(self, spool: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            journal = make(spool / "deep")
            fill(journal, 1, 2000)
            journal.prepare()
        finally:
            os.umask(before)
        found = [spool, *spool.rglob("*")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in found if not path.is_dir()} == {0o600}
        journal.close(keep=False)

    def test_a_spool_that_exists_is_left_as_it_is(self, spool: Path) -> None:
        spool.mkdir()
        spool.chmod(0o755)
        journal = make(spool)
        fill(journal, 1, 1)
        assert stat.S_IMODE(spool.stat().st_mode) == 0o755
        journal.close(keep=False)

    def test_the_next_segment_is_prepared_ahead(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 10)
        journal.prepare()
        assert len(files(spool)) == 1
        seq = 10
        while journal.numbers().segments == 1:
            seq += 1
            fill(journal, seq, seq)
            journal.prepare()
            if len(files(spool)) == 2 and journal.numbers().segments == 1:
                assert any(name.startswith(".spare") for name in files(spool))
        assert sorted(files(spool)) == ["00001001.segment", "00001002.segment"]
        journal.prepare()
        assert not any(name.startswith(".spare") for name in files(spool))
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == list(range(1, seq + 1))

    def test_one_that_was_being_prepared_when_the_spool_was_full_is_used(
        self, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = make(spool, spool_bytes=2 * SMALL)
        under_way: list[SegmentFile] = []
        keep = journal._chain._keep
        monkeypatch.setattr(journal._chain, "_keep", under_way.append)
        seq = 1
        while journal.append(entry(seq)):
            seq += 1
            if not under_way:
                journal.prepare()
        assert "spool_bytes" in journal.trouble
        assert not journal.append(entry(seq))
        keep(*under_way)
        fill(journal, seq, seq + 100)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == list(range(1, seq + 101))

    def test_an_entry_that_no_segment_holds_is_refused(self, spool: Path) -> None:
        journal = make(spool)
        assert not journal.append(entry(1, size=SMALL))
        assert "more than a segment holds" in journal.trouble
        fill(journal, 2, 2)
        journal.prepare()
        assert journal.trouble == ""
        assert journal.numbers().refused == 1
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [2]

    def test_a_large_entry_gets_a_segment_that_holds_it(self, spool: Path) -> None:
        journal = make(spool, segment_bytes=16 * SMALL)
        fill(journal, 1, 1)
        fill(journal, 2, 2, size=10 * SMALL)
        fill(journal, 3, 3)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [1, 2, 3]

    def test_what_cannot_be_encoded_is_refused(self, spool: Path) -> None:
        journal = make(spool)
        record = msgspec.structs.replace(entry(1).record, operation="\ud800")
        assert not journal.append(Entry(1, record))
        assert "cannot be encoded" in journal.trouble
        assert not journal.put_first([Entry(1, record)])
        journal.close(keep=False)

    def test_nothing_is_stored_after_the_end(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3)
        journal.close(keep=True)
        journal.close(keep=False)
        assert not journal.append(entry(4))
        assert not journal.put_first([entry(0)])
        journal.settle([(1, 3)])
        journal.prepare()
        journal.sync()
        journal.release(9)
        assert drain(adopt_one(spool)) == [1, 2, 3]

    def test_an_identity_that_no_header_holds_is_said_at_once(self, tmp_path: Path) -> None:
        for url, why in (("redis://" + "h" * 3500, "too long"), ("redis://\ud800", "no text")):
            with pytest.raises(ConfigurationError, match=f"durability: .* {why}"):
                Journal(tmp_path, Identity("d", url, "p"))
        longest = Journal(tmp_path, Identity("d", "\N{SNOWMAN}" * 1166, "p"))
        fill(longest, 1, 1)
        longest.close(keep=False)
        require_support()


class TestTakingBack:
    def test_what_was_not_given_out_is_not_there(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3)
        journal.take_back(2)
        journal.take_back(2)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [1, 2]

    def test_the_number_may_be_given_to_another(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3)
        journal.take_back(2)
        fill(journal, 3, 4)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [1, 2, 3, 4]

    def test_what_was_given_out_stays(self, spool: Path) -> None:
        journal = make(spool)
        journal.take_back(0)
        fill(journal, 1, 3)
        journal.take_back(3)
        journal.settle([(1, 1)])
        journal.take_back(2)  # something stands behind it: it is left
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [2, 3]

    def test_a_store_that_did_not_come_to_its_end_is_none(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 2)
        active = journal._chain.active
        at = active.end
        fill(journal, 3, 3)
        active.end = at  # the exception came before this step
        journal.take_back(2)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [1, 2]


class TestSettling:
    def test_what_is_settled_is_not_delivered_again(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 20)
        journal.settle([(1, 5), (8, 8)])
        journal.settle([(6, 6), (15, 17)])
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert (adopted.unsettled, adopted.first, adopted.last, adopted.missing) == (10, 1, 20, [])
        assert drain(adopted, 3) == [7, 9, 10, 11, 12, 13, 14, 18, 19, 20]

    def test_it_is_said_in_a_full_segment_too(self, spool: Path) -> None:
        journal = make(spool, spool_bytes=SMALL)
        seq = 1
        while journal.append(entry(seq)):
            seq += 1
        for n in range(1, seq):
            journal.settle([(n, n)])
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert (adopted.first, adopted.last) == (1, seq - 1)
        assert adopted.unsettled < seq - 50  # as many as the reserve holds
        assert drain(adopted) == list(range(seq - adopted.unsettled, seq))

    def test_a_full_spool_has_room_for_what_must_not_come_back(self, spool: Path) -> None:
        journal = make(spool, spool_bytes=2 * SMALL)
        last = 0
        while journal.append(entry(last + 1)):
            last += 1
        assert "spool_bytes" in journal.trouble
        for n in range(1, last, 2):
            journal.settle([(n, n)])
        middle = last // 2 + 50
        journal.settle([(1, middle)])
        journal.release(middle)
        fill(journal, last + 1, last + 1)
        journal.settle([(middle + 1, middle + 2)])
        journal.close(keep=True)
        read = drain(adopt_one(spool))
        assert read[-1] == last + 1
        assert not [n for n in read if n % 2 and n < last]

    def test_many_ranges_at_once(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 6001)
        journal.settle([(n, n) for n in range(1, 6001, 2)])
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [*range(2, 6001, 2), 6001]

    def test_segments_go_when_all_in_them_is_settled(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 5000)
        before = journal.numbers().segments
        assert before > 5
        journal.settle([(1, 2500)])
        journal.release(2501)
        assert before // 3 < journal.numbers().segments < before
        assert files(spool)[0] > "00001001.segment"
        journal.settle([(2501, 5000)])
        journal.release(5001)
        assert journal.numbers().segments == 1
        journal.release(5001)
        fill(journal, 5001, 5002)
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [5001, 5002]

    def test_one_that_another_thread_is_about_to_write_stays(self, spool: Path) -> None:
        journal = make(spool)

        class Segments(deque[SegmentFile]):
            def append(self, segment: SegmentFile) -> None:
                super().append(segment)
                journal.release(EVERYTHING)

        journal._chain.segments = Segments()
        fill(journal, 1, 2000)
        assert len(files(spool)) == 2
        last = drain(journal)
        assert last[-1] == 2000
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert drain(adopted) == last
        adopted.close(keep=False)

    def test_none_goes_before_an_older_one(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 5000)
        oldest = min(spool.rglob("*.segment"))
        oldest.rename(oldest.with_name("moved"))
        oldest.mkdir()  # which cannot be unlinked
        left = files(spool)
        journal.release(5001)
        assert files(spool) == left
        oldest.rmdir()
        journal.release(5001)
        assert journal.numbers().segments == 1
        journal.close(keep=False)

    def test_when_all_is_settled_nothing_is_left(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3000)
        journal.prepare()
        journal.close(keep=False)
        assert list(spool.rglob("*")) == [spool / key_of(DESTINATION)]


class TestReading:
    def test_it_follows_the_writer(self, spool: Path) -> None:
        journal = make(spool)
        done: list[int] = []
        last = 0
        for step in (1, 700, 3, 2000, 1, 1):
            fill(journal, last + 1, last + step)
            last += step
            done += drain(journal, 50, through=last)
            assert done == list(range(1, last + 1))
            journal.prepare()
            journal.release(last - 100)
        assert journal.numbers().segments < 3
        journal.close(keep=False)

    def test_the_batch_is_bounded(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 10, size=100)
        assert [one.seq for one in journal.read(3, EVERYTHING)] == [1, 2, 3]
        assert [one.seq for one in journal.read(9, 250)] == [4, 5]
        assert [one.seq for one in journal.read(9, 1)] == [6]
        assert journal.read(0, EVERYTHING) == []
        assert [one.seq for one in journal.read(9, EVERYTHING, through=8)] == [7, 8]
        assert journal.read(9, EVERYTHING, through=8) == []
        assert [one.seq for one in journal.read(9, EVERYTHING)] == [9, 10]
        assert journal.read(9, EVERYTHING) == []
        journal.close(keep=False)

    def test_it_goes_on_wherever_it_is_told_to(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3000)
        for seq in (1, 2999, 5, 6, 1500, 1501, 3001, 3000):
            journal.seek(seq)
            assert [one.seq for one in journal.read(2, EVERYTHING)] == [n for n in (seq, seq + 1) if n <= 3000]
        journal.seek(2000)
        journal.release(2900)
        assert drain(journal)[-1] == 3000
        journal.close(keep=False)

    def test_of_a_number_that_was_stored_twice_the_later_one_counts(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3)
        assert [one.seq for one in journal.read(9, EVERYTHING, through=2)] == [1, 2]
        again = entry(3, size=5)
        assert journal.append(again)
        assert journal.read(9, EVERYTHING, through=3) == [again]
        fill(journal, 4, 4)
        assert drain(journal, through=4) == [4]
        journal.close(keep=True)
        assert [one for one in adopt_one(spool).read(9, EVERYTHING) if one.seq == 3] == [again]

    def test_what_somebody_deleted_is_damage(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 3000)
        sorted(spool.rglob("*.segment"))[1].unlink()
        found = drain(journal)
        assert found[0] == 1
        assert found[-1] == 3000
        assert len(found) < 3000
        assert journal.numbers().damaged == 1
        journal.close(keep=False)


class TestPuttingFirst:
    def test_older_entries_stand_before_all_others(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 3001, 4000)
        assert journal.put_first([entry(seq, 1000) for seq in range(1, 3001)])
        assert journal.numbers().segments > 4
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert (adopted.first, adopted.last, adopted.unsettled, adopted.missing) == (1, 4000, 4000, [])
        assert drain(adopted) == list(range(1, 4001))

    def test_they_may_be_alone(self, spool: Path) -> None:
        journal = make(spool)
        assert journal.put_first([])
        assert not spool.exists()
        assert journal.put_first([entry(7), entry(8, size=2 * SMALL)])
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [7, 8]

    def test_all_of_them_or_none(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        journal = make(spool, spool_bytes=4 * SMALL)
        fill(journal, 9001, 9003)

        def full(descriptor: int, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as context:
            context.setattr("os.write", full)
            assert not journal.put_first([entry(seq) for seq in range(1, 5001)])
        assert "No space left" in journal.trouble
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [9001, 9002, 9003]


class TestSyncing:
    def test_the_disk_has_it_a_little_later(self, spool: Path) -> None:
        journal = make(spool, durability="disk", sync_interval=0.01)
        assert not [thread for thread in threading.enumerate() if thread.name == "streamll-sync"]
        for seq in range(1, 4):
            fill(journal, seq, seq)
            assert wait_until(lambda: not journal.numbers().unsynced)
        threads = [thread for thread in threading.enumerate() if thread.name == "streamll-sync"]
        assert [thread.daemon for thread in threads] == [True]
        journal.close(keep=True)
        assert not threads[0].is_alive()
        assert drain(adopt_one(spool)) == [1, 2, 3]

    def test_what_is_full_is_closed_when_the_disk_has_it(self, spool: Path) -> None:
        journal = make(spool, durability="disk", sync_interval=60)
        fill(journal, 1, 3000)
        assert len(journal._chain.mapped) == journal.numbers().segments > 2
        assert journal.sync()
        assert len(journal._chain.mapped) == 1
        assert not journal.numbers().unsynced
        journal.close(keep=False)

    def test_where_no_thread_can_be_started_the_end_syncs(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        synced: list[int] = []
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(segment_file, "_sync", lambda descriptor, _: synced.append(descriptor))
        journal = make(spool, durability="disk")
        fill(journal, 1, 3)
        assert journal.numbers().unsynced
        journal.close(keep=True)
        assert len(synced) == 1
        assert drain(adopt_one(spool)) == [1, 2, 3]

    def test_a_disk_that_hangs_keeps_nobody_from_leaving(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hangs = threading.Event()
        began = threading.Event()

        def hang(*_: object) -> None:
            began.set()
            hangs.wait(60)

        monkeypatch.setattr(segment_file, "_sync", hang)
        monkeypatch.setattr(syncer, "_JOIN", 0.05)
        journal = make(spool, durability="disk", sync_interval=0.001)
        fill(journal, 1, 3)
        assert began.wait(30)
        assert journal.numbers().unsynced
        journal.close(keep=True)
        assert drain(adopt_one(spool)) == [1, 2, 3]
        hangs.set()

    def test_the_last_sync_does_not_wait_for_its_turn(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[int] = []
        monkeypatch.setattr(segment_file, "_sync", lambda descriptor, _: synced.append(descriptor))
        journal = make(spool, durability="disk", sync_interval=3600)
        fill(journal, 1, 3)
        assert not synced
        journal.close(keep=True)
        assert synced

    def test_what_is_deleted_is_not_synced(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[int] = []
        monkeypatch.setattr(segment_file, "_sync", lambda descriptor, _: synced.append(descriptor))
        journal = make(spool, durability="disk", sync_interval=3600)
        fill(journal, 1, 3)
        journal.close(keep=False)
        assert not synced

    def test_a_failure_is_said_and_tried_again(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = segment_file._sync
        fails = True

        def sync(descriptor: int, buffer: object) -> None:
            if fails:
                raise OSError(5, "Input/output error")
            real(descriptor, buffer)  # type: ignore[arg-type]  # as it came

        monkeypatch.setattr(segment_file, "_sync", sync)
        journal = make(spool, durability="disk", sync_interval=0.01)
        fill(journal, 1, 3)
        assert wait_until(lambda: journal.trouble == f"{spool}: Input/output error (not synced)")
        assert journal.numbers().unsynced
        assert journal.numbers().failures
        fails = False
        assert wait_until(lambda: not journal.numbers().unsynced)
        assert wait_until(lambda: journal.trouble == "")
        journal.close(keep=False)


IN_THE_JOURNAL = tuple(
    f"/runtime/{name}.py" for name in "journal segment_chain segment_file ranges lease syncer journal_reader".split()
)


def in_the_journal(filename: str) -> bool:
    return filename.endswith(IN_THE_JOURNAL)


class TestInterrupts:
    """Ctrl-C between any two steps: what was accepted is there, and nothing is there that cannot be."""

    @pytest.mark.parametrize("size", [10, 2500], ids=["in its segment", "in the next one"])
    def test_append(self, tmp_path: Path, size: int) -> None:
        for step in count(1):
            spool = tmp_path / str(step)
            journal = make(spool)
            fill(journal, 1, 30, size=2000)
            with interrupted_at(step, in_the_journal) as steps:
                try:
                    journal.append(entry(31, size=size))
                except KeyboardInterrupt:
                    pass
            # Its number goes to the next one, and is another length.
            fill(journal, 31, 31, size=3)
            fill(journal, 32, 60, size=2000)
            journal.settle([(2, 2)])
            journal.close(keep=True)
            adopted = adopt_one(spool)
            assert adopted.damaged == 0
            read = adopted.read(99, EVERYTHING)
            assert [one.seq for one in read] == [1, *range(3, 61)]
            assert read[29] == entry(31, size=3)
            adopted.close(keep=False)
            assert list(spool.rglob("*")) == [spool / key_of(DESTINATION)]
            if steps[0] < step:
                break
        assert step > 10

    def test_settle(self, tmp_path: Path) -> None:
        for step in count(1):
            spool = tmp_path / str(step)
            journal = make(spool)
            fill(journal, 1, 40)
            done = False
            with interrupted_at(step, in_the_journal) as steps:
                try:
                    journal.settle([(1, 10), (12, 12)])
                    done = True
                except KeyboardInterrupt:
                    pass
            fill(journal, 41, 45)
            journal.settle([(20, 25)])
            journal.close(keep=True)
            adopted = adopt_one(spool)
            assert adopted.damaged == 0
            read = drain(adopted)
            assert not done or read[0] == 11
            assert set(read) >= {11, *range(13, 20), *range(26, 46)}
            assert not set(read) & set(range(20, 26))
            adopted.close(keep=False)
            if steps[0] < step:
                break
        assert step > 10

    @pytest.mark.parametrize("what", ["prepare", "release", "read"])
    def test_what_the_worker_calls(self, tmp_path: Path, what: str) -> None:
        for step in count(1, 23 if what == "read" else 1):
            spool = tmp_path / str(step)
            journal = make(spool)
            fill(journal, 1, 45, size=2500)
            journal.settle([(1, 25)])
            calls: dict[str, Callable[[], object]] = {
                "prepare": journal.prepare,
                "release": partial(journal.release, 26),
                "read": partial(journal.read, 99, EVERYTHING),
            }
            with interrupted_at(step, in_the_journal) as steps:
                try:
                    calls[what]()
                except KeyboardInterrupt:
                    pass
            fill(journal, 46, 100, size=2500)
            journal.prepare()
            journal.release(26)
            journal.seek(26)
            assert drain(journal) == list(range(26, 101))
            journal.close(keep=step % 2 == 0)
            if step % 2 == 0:
                adopted = adopt_one(spool)
                assert (adopted.damaged, drain(adopted)) == (0, list(range(26, 101)))
                adopted.close(keep=False)
            assert files(spool) == []
            if steps[0] < step:
                break
        assert step > 10
