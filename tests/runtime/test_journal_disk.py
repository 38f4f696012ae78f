"""Journal on disks that are full, closed to it, or changed by others: nothing is raised, and it recovers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamll.runtime import segment_chain
from streamll.runtime.journal import Journal
from streamll.runtime.lease import Folder, key_of
from tests.fixtures.waiting import wait_until
from tests.runtime.journals import DESTINATION, EVERYTHING, SMALL, adopt_one, drain, entry, files, fill, make, run


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def until_refused(journal: Journal, first: int = 1) -> int:
    """Store entries until one is refused; returns its number."""
    while journal.append(entry(first, 500)):
        first += 1
    return first


LIMITED = """
import json, resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
journal = make(spool, durability=sys.argv[2], segment_bytes=8 * SMALL)
seq = 1
while journal.append(entry(seq, 500)):
    seq += 1
seen = {"stored": seq - 1, "trouble": journal.trouble, "failures": journal.numbers().failures, "files": files(spool)}
for _ in range(1000):
    assert not journal.append(entry(seq, 500))
seen["failures after 1000 more"] = journal.numbers().failures
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
deadline = time.monotonic() + 20
while not journal.append(entry(seq, 500)) and time.monotonic() < deadline:
    time.sleep(0.01)
journal.prepare()
seen["trouble after"] = journal.trouble
journal.close(keep=True)
print(json.dumps(seen))
"""


class TestTwoThreads:
    """`emit` and the worker need a segment at the same time."""

    def test_whose_folder_comes_too_late_uses_the_others(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        create = Folder.create
        journal = make(spool)

        def other_is_faster(parent: Path, name: str) -> Folder:
            monkeypatch.setattr(Folder, "create", create)
            assert journal.append(entry(1))
            return create(parent, name)

        monkeypatch.setattr(Folder, "create", other_is_faster)
        assert journal.append(entry(2))
        assert journal.trouble == ""
        journal.close(keep=True)

    def test_trouble_with_what_nobody_needs_any_more_is_over(self, spool: Path) -> None:
        journal = make(spool)
        assert journal.append(entry(1))
        journal._chain._fail(OSError(39, "Directory not empty"))  # as one that comes too late has it
        assert journal.trouble

        def is_over() -> bool:
            journal.prepare()
            return not journal.trouble

        assert wait_until(is_over)
        journal.close(keep=True)


class TestFullDisk:
    @pytest.mark.parametrize("durability", ["process", "disk"])
    def test_a_segment_that_cannot_be_made_is_said(self, spool: Path, durability: str) -> None:
        seen = json.loads(run(LIMITED, spool, durability))
        assert seen["stored"] > 50
        assert seen["trouble"] == f"{spool}: File too large"
        assert seen["files"] == ["00001001.segment"]
        assert seen["failures"] == 1
        assert seen["failures after 1000 more"] <= 2  # once a second
        assert seen["trouble after"] == ""
        assert drain(adopt_one(spool)) == list(range(1, seen["stored"] + 2))

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 512 KiB."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"only root may mount: {mounted.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def test_a_file_system_that_is_full_and_is_not_any_more(self, small_disk: Path) -> None:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 300_000)
        journal = make(small_disk / "spool")
        seq = until_refused(journal)
        assert seq > 200
        assert "No space left on device" in journal.trouble
        left = files(small_disk / "spool")
        journal.prepare()
        assert files(small_disk / "spool") == left  # what could not be made whole is gone again
        ballast.unlink()
        assert wait_until(lambda: journal.append(entry(seq, 500)))
        fill(journal, seq + 1, seq + 50, 500)
        assert journal.trouble == ""
        journal.close(keep=True)
        adopted = adopt_one(small_disk / "spool")
        assert drain(adopted) == list(range(1, seq + 51))
        adopted.close(keep=False)

    def test_a_full_disk_that_is_to_be_drained(self, small_disk: Path) -> None:
        journal = make(small_disk / "spool")
        seq = until_refused(journal)
        journal.close(keep=True)
        adopted = adopt_one(small_disk / "spool")
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"x" * 600_000)
        read = [one.seq for one in adopted.read(seq // 2, EVERYTHING)]
        adopted.settle([(1, read[-1])])
        assert adopted.trouble
        adopted.release(read[-1] + 1)
        assert adopted.trouble  # until it is tried again
        adopted.settle([(1, read[-1])])
        assert adopted.trouble == ""
        adopted.close(keep=True)
        adopted = adopt_one(small_disk / "spool")
        assert drain(adopted) == list(range(read[-1] + 1, seq))
        adopted.close(keep=False)


class TestSpoolBytes:
    def test_bounds_all_journals_together(self, spool: Path) -> None:
        one, other = make(spool, "one", spool_bytes=4 * SMALL), make(spool, "other", spool_bytes=4 * SMALL)
        fill(other, 1, 1)
        assert (one.fill, round(other.fill, 1)) == (0.0, 0.0)
        seq = until_refused(one)
        assert one.trouble == f"{spool}: spool_bytes is reached: 262,144 of 262,144 bytes are in use"
        assert one.numbers().bytes == 3 * SMALL
        assert 0.98 < one.fill <= 1.0
        other.close(keep=False)
        assert wait_until(lambda: one.append(entry(seq)))
        one.close(keep=False)

    def test_room_that_others_make_is_seen(self, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segment_chain, "_LOOK_AFTER", 0.0)
        one, other = make(spool, "one", spool_bytes=4 * SMALL), make(spool, "other", spool_bytes=4 * SMALL)
        until_refused(other)
        assert not one.append(entry(1))
        assert one.fill > 0.9
        other.close(keep=False)
        one.prepare()
        assert one.fill < 0.1
        one.close(keep=False)

    def test_only_what_is_of_a_spool_counts(self, spool: Path) -> None:
        for place in ("large", "0123456789abcdef.txt", "somebody's/folder", "0123456789ABCDEF/p"):
            (spool / place).parent.mkdir(parents=True, exist_ok=True)
            (spool / place).write_bytes(bytes(4 * SMALL))
        journal = make(spool, spool_bytes=SMALL)
        fill(journal, 1, 1)
        journal.close(keep=False)

    def test_room_that_is_released_is_used_at_once(self, spool: Path) -> None:
        journal = make(spool, spool_bytes=4 * SMALL)
        seq = until_refused(journal)
        journal.release(seq // 2)
        assert journal.fill < 0.8
        fill(journal, seq, seq + 20)
        journal.close(keep=False)


class TestImpossible:
    @pytest.mark.parametrize("place", ["file", "file/below", "/dev/null", "/proc/streamll", "link"])
    def test_folders_are_trouble(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        spool = tmp_path / place
        journal = make(spool)
        for seq in range(1, 5):
            assert not journal.append(entry(seq))
        assert journal.trouble
        assert "\n" not in journal.trouble
        journal.prepare()
        journal.settle([(1, 1)])
        assert journal.read(5, EVERYTHING) == []
        assert journal.numbers().refused == 4
        assert journal.numbers().failures <= 2
        journal.close(keep=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_folder_is_trouble_until_it_is_not(self, spool: Path) -> None:
        spool.mkdir(0o500)
        journal = make(spool)
        assert not journal.append(entry(1))
        assert "Permission denied" in journal.trouble
        spool.chmod(0o700)
        assert wait_until(lambda: journal.append(entry(1)))
        journal.close(keep=False)

    def test_a_read_only_file_system_is_trouble_until_it_is_not(self, tmp_path: Path) -> None:
        spool = tmp_path / "disk"
        spool.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", spool], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"only root may mount: {mounted.stderr.strip()}")
        try:
            journal = make(spool)
            assert not journal.append(entry(1))
            assert journal.trouble == f"{spool}: Read-only file system"
            subprocess.run(["mount", "-o", "remount,rw", spool], check=True)
            assert wait_until(lambda: journal.append(entry(1)))
            fill(journal, 2, 1000)
            subprocess.run(["mount", "-o", "remount,ro", spool], capture_output=True)  # refused while it is written
            journal.close(keep=False)
        finally:
            subprocess.run(["umount", spool], check=True)

    def test_somebody_elses_folder_is_not_used(self, spool: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may give folders away")
        folder = spool / key_of(DESTINATION)
        folder.mkdir(parents=True)
        os.chown(folder, 12345, 12345)
        journal = make(spool)
        assert not journal.append(entry(1))
        assert journal.trouble == f"{spool}: belongs to another user"
        journal.close(keep=False)


class TestOthers:
    @pytest.mark.parametrize("what", ["spool", "folder", "segment"])
    def test_deleting_is_noticed_and_it_begins_anew(
        self, spool: Path, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(segment_chain, "_LOOK_AFTER", 0.0)
        journal = make(spool)
        fill(journal, 1, 1000)
        journal.prepare()
        assert journal.trouble == ""
        if what == "spool":
            shutil.rmtree(spool)
        elif what == "folder":
            shutil.rmtree(spool / key_of(DESTINATION) / "p")
        else:
            for path in spool.rglob("*.segment"):
                path.unlink()
        journal.prepare()
        assert "deleted by somebody else" in journal.trouble
        assert journal.numbers().failures == 1
        fill(journal, 1001, 2000)
        journal.prepare()
        assert journal.trouble == ""
        assert drain(journal) == list(range(1001, 2001))
        journal.release(1001)
        journal.close(keep=True)
        adopted = adopt_one(spool)
        assert drain(adopted) == list(range(1001, 2001))
        adopted.close(keep=False)
