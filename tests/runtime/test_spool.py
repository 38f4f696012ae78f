"""What dead processes left: found, adopted, delivered once; what is no segment is put aside, and nobody's else is touched."""

from __future__ import annotations

import logging
import os
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from streamll.runtime import spool as module
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.journal_reader import read_bytes
from streamll.runtime.lease import Folder, key_of
from streamll.runtime.segment import HEADER_BYTES, pack_header
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from streamll.tally import Tally
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
    make,
    run,
    start,
)
from tests.unit.segments import header


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(module, "_said", set())
    monkeypatch.setattr(module, "set_aside", Tally())


def leave(spool: Path, producer: str = "p", last: int = 100, size: int = 20, **options: Any) -> Path:
    """What a process leaves that stored so many entries and died; returns the folder."""
    journal = make(spool, producer, **options)
    fill(journal, 1, last, size)
    journal.close(keep=True)
    return spool / key_of(DESTINATION) / producer


def first_segment(folder: Path) -> Path:
    return min(folder.glob("*.segment"))


class TestFinding:
    def test_nothing_is_in_a_spool_that_is_not_there(self, spool: Path) -> None:
        assert list(orphans(spool)) == []
        assert list(orphans(spool, DESTINATION)) == []
        spool.touch()
        assert list(orphans(spool)) == []

    def test_the_oldest_comes_first(self, spool: Path) -> None:
        folders = [leave(spool, producer) for producer in ("b", "c", "a")]
        assert list(orphans(spool)) == folders

    def test_those_of_one_destination_only(self, spool: Path) -> None:
        mine = leave(spool)
        other = Journal(spool, Identity("amqp://elsewhere", "", "q"), SMALL)
        fill(other, 1, 1)
        other.close(keep=True)
        assert list(orphans(spool, DESTINATION)) == [mine]
        assert [folder.name for folder in orphans(spool)] == ["p", "q"]
        assert [folder.name for folder in orphans(spool, "amqp://elsewhere")] == ["q"]

    def test_other_things_in_a_spool_are_none(self, spool: Path, tmp_path: Path) -> None:
        mine = leave(spool)
        (spool / "README").touch()
        (spool / "a folder").mkdir()
        (mine.parent / "file").touch()
        (mine.parent / "folder").mkdir()
        (mine.parent / "link").symlink_to(leave(tmp_path / "other"))
        assert list(orphans(spool)) == [mine]

    def test_what_was_left_empty_is_removed_after_a_while(self, spool: Path) -> None:
        mine = leave(spool)
        left = [mine.parent / name for name in ("empty", ".half.new", "spare")]
        for folder in left:
            folder.mkdir()
        (left[2] / ".spare-1").touch()
        assert list(orphans(spool)) == [mine]
        assert all(folder.exists() for folder in left)
        for folder in left:
            os.utime(folder, (1, 1))
        assert list(orphans(spool)) == [mine]
        assert not any(folder.exists() for folder in left)

    def test_an_empty_folder_of_a_living_process_stays(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 1)
        folder = spool / key_of(DESTINATION) / "p"
        first_segment(folder).unlink()
        os.utime(folder, (1, 1))
        assert list(orphans(spool)) == []
        assert folder.exists()
        journal.close(keep=False)


class TestAdopting:
    def test_the_journal_of_a_living_process_is_not_adopted(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 10)
        (folder,) = orphans(spool)
        assert adopt(folder) is None  # of this process
        journal.close(keep=True)
        process = start("journal = make(spool); fill(journal, 1, 5); say('ready'); sys.stdin.read()", spool / "other")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (other,) = orphans(spool / "other")
        assert adopt(other) is None
        process.kill()
        process.communicate(timeout=30)
        adopted = adopt(other)
        assert adopted is not None
        assert adopt(other) is None  # it has an owner again
        assert drain(adopted) == [1, 2, 3, 4, 5]
        adopted.close(keep=False)
        assert adopt(other) is None  # it is gone
        assert adopt(spool / "never" / "was") is None

    def test_it_says_what_is_left_to_do(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 11, 20)
        fill(journal, 31, 40)
        journal.settle([(11, 12), (21, 25), (33, 33)])
        journal.close(keep=True)
        os.utime(first_segment(spool / key_of(DESTINATION) / "p"), (time.time() - 500,) * 2)
        adopted = adopt_one(spool)
        assert (adopted.unsettled, adopted.first, adopted.last, adopted.missing) == (17, 11, 40, [(26, 30)])
        assert (adopted.damaged, adopted.numbers().damaged) == (0, 0)
        assert 499 < adopted.age < 600
        assert adopted.identity == journal.identity
        adopted.close(keep=False)

    def test_a_journal_in_which_all_is_settled(self, spool: Path) -> None:
        journal = make(spool)
        fill(journal, 1, 10)
        journal.settle([(1, 10)])
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert (adopted.unsettled, adopted.missing, adopted.read(9, EVERYTHING)) == (0, [], [])
        adopted.close(keep=False)
        assert list(orphans(spool)) == []

    def test_what_an_adopter_settles_the_next_one_knows(self, spool: Path) -> None:
        leave(spool, last=3000)
        done: list[int] = []
        for _ in range(10):
            adopted = adopt_one(spool)
            assert adopted.unsettled == 3000 - len(done)
            batch = [one.seq for one in adopted.read(270, EVERYTHING)]
            adopted.settle([(batch[0], batch[-1])])
            adopted.release(batch[-1] + 1)
            done += batch
            adopted.close(keep=True)
        adopted = adopt_one(spool)
        done += drain(adopted)
        assert done == list(range(1, 3001))
        assert adopted.missing == []
        adopted.close(keep=False)
        assert files(spool) == []

    def test_an_adopter_that_is_killed_leaves_an_orphan(self, spool: Path) -> None:
        leave(spool, last=3000)
        script = """
adopted = adopt_one(spool)
read = [one.seq for one in adopted.read(1000, EVERYTHING)]
adopted.settle([(read[0], read[499])])
adopted.release(read[500])
say("ready")
sys.stdin.read()
"""
        process = start(script, spool)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [adopt(folder) for folder in orphans(spool)] == [None]
        process.kill()
        process.communicate(timeout=30)
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(501, 3001))
        adopted.close(keep=False)

    def test_what_is_settled_is_not_read_again(self, spool: Path) -> None:
        leave(spool)
        adopted = adopt_one(spool)
        assert len(adopted.read(10, EVERYTHING)) == 10
        adopted.settle([(3, 5)])
        adopted.seek(1)
        assert [one.seq for one in adopted.read(5, EVERYTHING)] == [1, 2, 6, 7, 8]
        assert not adopted.append(entry(101))
        assert "adopted" in adopted.trouble
        adopted.close(keep=False)

    def test_a_settlement_needs_little_room_and_no_spool_bytes(self, spool: Path) -> None:
        leave(spool, last=700, spool_bytes=2 * SMALL)
        adopted = adopt_one(spool)
        before = adopted.numbers().bytes
        adopted.settle([(1, 5)])
        assert adopted.trouble == ""
        assert adopted.numbers().bytes - before == SMALL
        adopted.close(keep=False)

    def test_memory_is_that_of_a_segment(self, spool: Path) -> None:
        leave(spool, last=6000, size=1000, segment_bytes=8 * SMALL)
        assert sum(path.stat().st_size for path in spool.rglob("*.segment")) > 12 * 8 * SMALL
        tracemalloc.start()
        try:
            adopted = adopt_one(spool)
            n = 0
            while batch := adopted.read(20, EVERYTHING):
                n += len(batch)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert n == 6000
        assert peak < 3 * 8 * SMALL
        adopted.close(keep=False)

    def test_a_journal_on_disk_is_adopted_and_synced(self, spool: Path) -> None:
        journal = make(spool, durability="disk")
        fill(journal, 1, 10)
        journal.close(keep=True)
        adopted = adopt_one(spool)
        adopted.settle([(1, 3)])
        assert wait_until(lambda: not adopted.numbers().unsynced)
        adopted.close(keep=True)
        assert adopt_one(spool).unsettled == 7


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "foreign":
        path.write_bytes(b"#!/bin/sh\nrm -rf /\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":
        path.write_bytes(bytes(len(data)))
    elif how == "truncated":
        path.write_bytes(data[:100])
    elif how == "damaged":
        path.write_bytes(
            b"".join(data[:50] + b"!" + data[51 : HEADER_BYTES // 2] for _ in range(2)) + data[HEADER_BYTES:]
        )
    elif how == "newer":
        path.write_bytes(data.replace(b"\x89SLLSEG\n\0\1", b"\x89SLLSEG\n\0\2"))
    elif how == "link":
        path.rename(path.parent.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent.parent / "elsewhere")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "another producer's":
        path.write_bytes(pack_header(header(producer="other")).ljust(SMALL, b"\0"))
    else:
        os.chown(path, 12345, 12345)


KINDS = {
    "foreign": "foreign",
    "empty": "empty",
    "zeros": "empty",
    "truncated": "damaged",
    "damaged": "damaged",
    "link": "unreadable",
    "folder": "unreadable",
    "pipe": "unreadable",
    "another producer's": "foreign",
    "another user's": "unreadable",
}


class TestSettingAside:
    @pytest.mark.parametrize("how", KINDS)
    def test_what_is_no_segment(self, spool: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
        if how == "another user's" and os.geteuid() != 0:
            pytest.skip("only root may give files away")
        folder = leave(spool, last=3000)
        victim = sorted(folder.glob("*.segment"))[1]
        damage(victim, how)
        with caplog.at_level(logging.WARNING, "streamll"):
            adopted = adopt_one(spool)
            adopted.close(keep=True)
            adopted = adopt_one(spool)
        found = drain(adopted)
        ((first, last),) = adopted.missing
        assert found == [*range(1, first), *range(last + 1, 3001)]
        assert adopted.unsettled == len(found)
        assert module.set_aside.read() == {KINDS[how]: 1}
        (message,) = caplog.messages
        assert victim.name in message
        if KINDS[how] == "unreadable":
            assert os.path.lexists(victim)  # it is not ours to touch
        else:
            assert not victim.exists()
            assert victim.with_name(victim.name + ".set-aside").exists()
        adopted.close(keep=False)
        if KINDS[how] == "unreadable":
            assert files(folder) == ([] if how == "folder" else [victim.name])
            assert list(orphans(spool)) == [folder]
            assert adopt(folder) is None
        else:
            assert files(folder) == [victim.name + ".set-aside"]
            assert list(orphans(spool)) == []

    def test_links_are_not_followed(self, spool: Path) -> None:
        folder = leave(spool)
        damage(first_segment(folder), "link")
        assert adopt(folder) is None
        assert (spool / "elsewhere").stat().st_size == SMALL

    def test_a_folder_with_nothing_else(self, spool: Path) -> None:
        folder = leave(spool)
        damage(first_segment(folder), "foreign")
        assert adopt(folder) is None
        assert files(folder) == ["00001001.segment.set-aside"]
        assert list(orphans(spool)) == []

    @pytest.mark.parametrize("which", [0, 1, -1])
    def test_a_newer_version_is_left_alone(self, spool: Path, which: int, caplog: pytest.LogCaptureFixture) -> None:
        folder = leave(spool, last=3000)
        segments = sorted(folder.glob("*.segment"))
        damage(segments[2], "empty")
        damage(segments[which], "newer")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with caplog.at_level(logging.WARNING, "streamll"):
            for _ in range(2):
                for found in orphans(spool):
                    assert adopt(found) is None
                assert adopt(folder) is None
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert "a newer version of streamll wrote it" in caplog.messages[0]
        assert len(caplog.messages) == 1
        assert module.set_aside.read() == {"newer": 1}

    def test_damaged_frames_are_skipped_and_counted(self, spool: Path) -> None:
        folder = leave(spool)
        path = first_segment(folder)
        data = bytearray(path.read_bytes())
        for at in (HEADER_BYTES + 20, HEADER_BYTES + 500, HEADER_BYTES + 2000):
            data[at] ^= 8
        path.write_bytes(data)
        adopted = adopt_one(spool)
        assert len(drain(adopted)) == 97 == adopted.unsettled
        assert adopted.damaged == 3
        assert [first == last for first, last in adopted.missing] == [True] * len(adopted.missing)
        adopted.close(keep=False)

    def test_a_file_that_was_cut_off(self, spool: Path) -> None:
        folder = leave(spool)
        os.truncate(first_segment(folder), HEADER_BYTES + 1000)
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(1, adopted.unsettled + 1))
        assert 5 < adopted.unsettled < 20
        assert adopted.damaged == 2  # the frame, and the rest
        adopted.close(keep=False)

    def test_files_that_nobody_knows_are_left(self, spool: Path) -> None:
        folder = leave(spool)
        for name in ("notes.txt", "1.segment", "٠٠٠٠١٠٠٢.segment", "000010022.segment"):
            (folder / name).write_text("mine")
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(1, 101))
        adopted.close(keep=False)
        assert len(files(folder)) == 4

    def test_what_an_older_life_prepared_is_removed(self, spool: Path) -> None:
        folder = leave(spool)
        (folder / ".spare-7").write_bytes(bytes(100))
        adopt_one(spool).close(keep=True)
        assert files(folder) == ["00001001.segment"]

    def test_a_folder_of_another_user_is_not_looked_into(self, spool: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may give folders away")
        folder = leave(spool)
        os.chown(folder, 12345, 12345)
        assert list(orphans(spool)) == []
        assert adopt(folder) is None

    def test_a_folder_that_cannot_be_opened_is_said_once(
        self, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = leave(spool)

        def fail(*_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(module, "_adopt", fail)
        for _ in range(2):
            assert adopt(folder) is None
        assert [message.rpartition(": ")[2] for message in caplog.messages] == ["Input/output error"]
        monkeypatch.undo()
        assert isinstance(adopt(folder), AdoptedJournal)


def test_a_process_without_descriptors_takes_nothing_for_damaged(spool: Path) -> None:
    leave(spool, last=3000)
    before = files(spool)
    script = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
(folder,) = orphans(spool)
used = len(os.listdir("/dev/fd")) - 1
for more in range(6):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
    adopted = adopt(folder)
    if adopted is not None:
        say("adopted with", more)
        adopted.settle([(1, 5)])
        adopted.close(keep=True)
"""
    assert run(script, spool).split()[-1] == "5"
    assert set(files(spool)) >= set(before)
    adopted = adopt_one(spool)
    assert drain(adopted) == list(range(6, 3001))
    assert (adopted.damaged, adopted.missing) == (0, [])
    adopted.close(keep=False)


def test_a_segment_on_a_bad_sector(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = leave(spool, last=3000)
    victim = sorted(path.name for path in folder.glob("*.segment"))[1]
    real = read_bytes

    def read(of: Folder, name: str, start: int, end: int) -> bytes:
        if name == victim and end > HEADER_BYTES:
            raise OSError(5, "Input/output error")
        return real(of, name, start, end)

    monkeypatch.setattr(module, "read_bytes", read)
    adopted = adopt_one(spool)
    assert adopted.damaged == 1
    assert len(adopted.missing) == 1
    assert len(drain(adopted)) == adopted.unsettled < 3000
    adopted.close(keep=False)
    assert files(spool) == [victim]  # it may be read another day


ADOPTS = """
say("ready")
sys.stdin.readline()
for _ in range(3):
    for folder in orphans(spool):
        adopted = adopt(folder)
        if adopted is not None:
            while batch := adopted.read(7, EVERYTHING):
                for one in batch:
                    say(adopted.identity.producer, one.seq)
                adopted.settle([(batch[0].seq, batch[-1].seq)])
                adopted.release(batch[-1].seq + 1)
            adopted.close(keep=False)
"""


@pytest.mark.concurrent
def test_processes_that_race_for_orphans_deliver_each_event_once(spool: Path) -> None:
    for n in range(40):
        leave(spool, f"p{n}", last=30)
    living = make(spool, "living")
    fill(living, 1, 30)
    processes = [start(ADOPTS, spool) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = []
    for process in processes:
        out, err = process.communicate(timeout=50)
        assert (process.returncode, err) == (0, "")
        said.append(out.splitlines())
    everything = sorted(line for lines in said for line in lines)
    assert everything == sorted(f"p{n} {seq}" for n in range(40) for seq in range(1, 31))
    assert drain(living) == list(range(1, 31))
    living.close(keep=False)
    assert files(spool) == []


@pytest.mark.concurrent
def test_short_lives_that_begin_while_others_adopt(spool: Path) -> None:
    """Folders that are being made, and given back, while somebody looks for orphans."""
    script = """
for n in range(100):
    journal = make(spool, f"{sys.argv[2]}-{n}")
    assert journal.append(entry(1)), journal.trouble
    assert journal.append(entry(2)), journal.trouble
    journal.close(keep=n % 2 == 0)
"""
    lives = [start(script, spool, n) for n in range(3)]
    adopted = []
    while any(life.poll() is None for life in lives):
        for folder in orphans(spool):
            if (journal := adopt(folder)) is not None:
                adopted.append((journal.identity.producer, drain(journal)))
                journal.close(keep=False)
    for life in lives:
        assert life.communicate(timeout=30) == ("", "")
    for folder in orphans(spool):
        if (journal := adopt(folder)) is not None:
            adopted.append((journal.identity.producer, drain(journal)))
            journal.close(keep=False)
    assert sorted(adopted) == sorted((f"{life}-{n}", [1, 2]) for life in range(3) for n in range(0, 100, 2))
    assert files(spool) == []
    shutil.rmtree(spool)
    assert run("say(*orphans(spool))", spool) == "\n"
