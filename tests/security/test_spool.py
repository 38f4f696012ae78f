"""What is kept on disk is its user's alone, also in a folder that everybody may write to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from streamll.models import StreamllEvent
from streamll.registry import make_sink
from streamll.runtime.lease import key_of
from streamll.sinks.base import Sink
from tests.fixtures.process import free_port
from tests.fixtures.waiting import wait_until

ROOT = Path(__file__).parents[2]
SUFFIX = ".segment"
SEGMENT = f"00001001{SUFFIX}"


def sink_with(spool: Path, url: str = "") -> Sink:
    """A sink that keeps on disk what it cannot deliver: nobody listens there."""
    return make_sink(
        url or f"redis://127.0.0.1:{free_port()}/0?stream=s",
        durability="process",
        spool_dir=str(spool),
        segment_bytes=65536,
        spool_bytes=1 << 20,
        connect_timeout=0.5,
    )


def emit(sink: Sink, count: int = 3) -> None:
    for n in range(count):
        assert sink.handle_event(StreamllEvent(event_type="secret", data={"n": n}))


@pytest.mark.parametrize("umask", [0, 0o777])
def test_files_and_folders_are_private(umask: int, tmp_path: Path) -> None:
    spool = tmp_path / "above" / "spool"
    before = os.umask(umask)
    try:
        sink = sink_with(spool)
        emit(sink)
        while_running = {path: path.stat().st_mode for path in (tmp_path / "above").rglob("*")}
        sink.stop(0.1)
    finally:
        os.umask(before)
    left = {path: path.stat().st_mode for path in (tmp_path / "above", spool, *spool.rglob("*"))}
    assert any(path.suffix == SUFFIX for path in left)
    assert sink.stats().spooled == 3
    for mode in (*while_running.values(), *left.values()):
        assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600)


def test_a_link_in_the_place_of_the_destinations_folder(tmp_path: Path) -> None:
    """Nothing is written through it, and no event is lost for it."""
    spool, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    spool.mkdir()
    elsewhere.mkdir(mode=0o755)
    sink = sink_with(spool)
    (spool / key_of(sink.address)).symlink_to(elsewhere)
    emit(sink)
    stats = sink.stats()
    assert (stats.buffered + stats.in_flight, stats.spooled, stats.unprotected) == (3, 0, 3)
    assert stats.spool_trouble
    sink.stop(0.1)
    assert list(elsewhere.iterdir()) == []
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


@pytest.mark.parametrize("what", ["producer", "segment", "spare", "fifo", "folder"])
def test_what_is_planted_beside_a_dead_processs_files(what: str, tmp_path: Path) -> None:
    """An adopter reads, changes and deletes nothing behind it."""
    spool, elsewhere = tmp_path / "spool", tmp_path / "elsewhere"
    dead = sink_with(spool)
    emit(dead)
    dead.stop(0.1)
    (left,) = spool.rglob(f"*{SUFFIX}")
    elsewhere.mkdir()
    target = elsewhere / SEGMENT
    target.write_bytes(left.read_bytes())
    before = target.read_bytes()
    planted = left.parent.parent / "0123456789abcdef"
    if what == "producer":
        planted.symlink_to(elsewhere)
    else:
        planted.mkdir(mode=0o700)
        name = ".spare-1" if what == "spare" else SEGMENT
        if what == "fifo":
            os.mkfifo(planted / name)
        elif what == "folder":
            (planted / name).mkdir()
        else:
            (planted / name).symlink_to(target)
    url = dead.address
    sink = sink_with(spool, url)
    sink.start()
    emit(sink, 1)
    assert wait_until(lambda: sink.stats().adopted)
    sink.stop(0.1)
    assert target.read_bytes() == before
    assert [path.name for path in elsewhere.iterdir()] == [SEGMENT]
    assert sink.stats().balanced


def test_the_spool_may_be_a_link(tmp_path: Path) -> None:
    """Where it is, is its user's choice."""
    (tmp_path / "real").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "real")
    sink = sink_with(tmp_path / "spool")
    emit(sink)
    sink.stop(0.1)
    assert sink.stats().spooled == 3
    assert list((tmp_path / "real").rglob(f"*{SUFFIX}"))


OTHER = """
import os, sys
from pathlib import Path
from streamll.runtime.spool import adopt, orphans
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.lease import bytes_in, key_of
from streamll.delivery.outcome import Entry
from streamll.models import Record
import streamll.values, logging, hashlib, encodings.idna, traceback
spool, destination = Path(sys.argv[1]), sys.argv[2]
os.setegid(65534)
os.seteuid(65534)
found = [path for path in orphans(spool)]
taken = [adopt(path) for path in spool.glob("*/*")]
journal = Journal(spool, Identity(destination, destination, "0123456789abcdef", "process"), segment_bytes=65536, spool_bytes=1 << 20)
record = Record(b"x", "application/msgpack", "e", "t", "", "", "", "", "", 1, 1)
kept = journal.append(Entry(1, record))
print(len(found), [one for one in taken if one], kept, bool(journal.trouble))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
def test_another_users_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a folder for all, such as /tmp: neither reads, takes over or writes into what is the other's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # which other users may enter
        Path(folder).chmod(0o755)
        spool = Path(folder) / "spool"
        spool.mkdir()
        spool.chmod(0o1777)
        mine = sink_with(spool)
        emit(mine)
        mine.stop(0.1)
        before = {path: path.read_bytes() for path in spool.rglob("*") if path.is_file()}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        command = [sys.executable, "-c", OTHER, str(spool), mine.address]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50)
        assert done.stdout.split() == ["0", "[]", "False", "True"], done.stderr
        assert {path: path.read_bytes() for path in spool.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_destinations_folder_that_somebody_else_made_first(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    sink = sink_with(spool)
    theirs = spool / key_of(sink.address)
    theirs.mkdir(parents=True)
    theirs.chmod(0o777)
    os.chown(theirs, 65534, 65534)
    emit(sink)
    assert sink.stats().unprotected == 3
    sink.stop(0.1)
    assert list(theirs.iterdir()) == []
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o777
