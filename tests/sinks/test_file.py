"""FileSink: what the disk, other processes and other programs do to its file."""

from __future__ import annotations

import base64
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamll.consumers.file import FileConsumer
from streamll.delivery.outcome import Entry, Failure
from streamll.errors import ConfigurationError, FatalError, UnavailableError
from streamll.models import CLOSING, NOTES, Record, StreamllEvent
from streamll.sinks.base import DeliveryReport
from streamll.sinks.file import FileOptions, FileSink, _FileTransport
from tests.fixtures.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parents[2]

QUICK: dict[str, Any] = {
    "flush_interval": 0.0,
    "retry_base": 0.01,
    "retry_bound": 0.02,
    "recovery_timeout": 0.05,
    "recovery_bound": 0.1,
}


def emit(sink: FileSink, first: int, last: int, **fields: Any) -> None:
    for n in range(first, last + 1):
        assert sink.handle_event(StreamllEvent(event_type="test", data={"n": n, **fields}))


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, all of which must be whole."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def events(*paths: Path) -> list[dict[str, Any]]:
    """The lines that are events."""
    return [line for path in paths for line in lines(path) if line["event_type"] not in NOTES]


def numbers(*paths: Path) -> list[int]:
    """The `n` of the events."""
    return [line["data"]["n"] for line in events(*paths)]


def closings(*paths: Path) -> list[int]:
    """The last numbers of the sinks that stopped, as their closing records have them."""
    return [line["data"]["last"] for path in paths for line in lines(path) if line["event_type"] == CLOSING]


def entry(seq: int, payload: bytes = b'{"v":1,"event_type":"test"}', content_type: str = "application/json") -> Entry:
    return Entry(seq, Record(payload, content_type, f"e{seq}", "test", "", "", "", "", "", 0, time.monotonic_ns()))


def soon() -> float:
    return time.monotonic() + PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


class TestLines:
    def test_an_event_is_a_line_with_producer_and_number(self, path: Path) -> None:
        with FileSink(path) as sink:
            emit(sink, 1, 2, text="naïve\nline", password="hunter2")
        first, second, closing = lines(path)
        assert first["data"] == {"n": 1, "text": "naïve\nline", "password": "[redacted]"}
        assert (first["v"], first["event_type"], first["producer"], first["seq"]) == (1, "test", sink.producer, 1)
        assert first["timestamp"].endswith("Z")
        assert second["seq"] == 2
        assert (closing["event_type"], closing["data"], closing["seq"]) == (CLOSING, {"last": 2}, 3)
        assert closing["producer"] == sink.producer

    def test_the_encoding_is_json_whatever_was_asked_for(self, path: Path) -> None:
        with FileSink(path, encoding="msgpack") as sink:
            emit(sink, 1, 1)
        assert numbers(path) == closings(path) == [1]

    def test_records_of_other_encodings_and_shapes_become_lines(self, path: Path) -> None:
        transport = _FileTransport("p", path, FileOptions())
        transport.open(soon())
        msgpack = b"\x82\xaaevent_type\xa4test\xa4data\x81\xa1n\x02"
        odd_key = b"\x82\xaaevent_type\xa4test\xa4data\x81\xc0\x02"  # nil as a key, which JSON does not know
        spread = b'{\n "event_type": "test",\n "data": {"n": 3}\n}\n'
        batch = [entry(2, msgpack, "application/msgpack"), entry(3, spread), entry(4, odd_key, "application/msgpack")]
        outcome = transport.send(batch, soon())
        transport.close(clean=True)
        assert (outcome.failure, outcome.delivered, list(outcome.rejected)) == (Failure.REJECTED, {0, 1}, [2])
        assert numbers(path) == [2, 3]

    def test_an_event_cannot_take_the_place_of_our_keys(self, path: Path) -> None:
        event = StreamllEvent(event_type="test", extra={"producer": "mine", "seq": 99})
        with FileSink(path) as sink:
            sink.handle_event(event)
        (line,) = events(path)
        assert (line["producer"], line["seq"]) == (sink.producer, 1)

    @pytest.mark.parametrize(
        "payload",
        [
            b'{"v":1,"event_type":"test","data":{"n":1}}',
            b"{}",
            b"[1]",
            b"\xff\x00",
            b'{"a":\n1}',
            b'{"a":}',
            b"",
            b'{"a":1} ',
        ],
    )
    def test_a_dead_letter_keeps_its_bytes(self, path: Path, payload: bytes) -> None:
        transport = _FileTransport("p", path, FileOptions())
        transport.open(soon())
        dead = Entry(7, entry(7, payload).record, "too \ud800 odd")
        assert transport.send([dead], soon()).failure is None
        transport.close(clean=True)
        file = path.with_name("events.jsonl.dead-letter.jsonl")
        (line,) = lines(file)
        assert (line["producer"], line["seq"], line["reason"]) == ("p", 7, r"too \ud800 odd")
        if "payload_base64" in line:
            assert base64.b64decode(line["payload_base64"]) == payload
        else:
            assert file.read_bytes().startswith(payload[:-1] + b",")
        (item,) = FileConsumer(file, follow=False)
        assert (item.producer, item.seq, item.dead_letter) == ("p", 7, r"too \ud800 odd")

    def test_a_reader_gets_them_all(self, path: Path) -> None:
        with FileSink(path, max_bytes=2000, backups=100, batch_size=3, batch_growth=1) as sink:
            emit(sink, 1, 100)
        assert len(list(path.parent.iterdir())) > 5
        items = list(FileConsumer(path, follow=False))
        assert [(item.seq, item.event.data["n"]) for item in items if item.event] == [(n, n) for n in range(1, 101)]


class TestRotation:
    def test_the_oldest_files_go(self, path: Path) -> None:
        sink = FileSink(path, max_bytes=1000, backups=3)
        for n in range(1, 60):
            emit(sink, n, n)
            assert sink.flush(PATIENCE)
        sink.stop(PATIENCE)
        names = [f"events.jsonl.{n}" for n in (3, 2, 1)]
        assert sorted(p.name for p in path.parent.iterdir()) == ["events.jsonl", *sorted(names)]
        kept = numbers(*(path.with_name(name) for name in names), path)
        assert kept == list(range(60 - len(kept), 60))
        assert closings(path) == [59]
        assert all(500 < path.with_name(name).stat().st_size <= 1000 for name in names)

    def test_a_batch_longer_than_the_bound_has_a_file_of_its_own(self, path: Path) -> None:
        sink = FileSink(path, max_bytes=1000)
        for first, last in ((1, 2), (3, 40), (41, 42)):
            emit(sink, first, last)
            assert sink.flush(PATIENCE)
        sink.stop(PATIENCE)
        files = [path.with_name("events.jsonl.2"), path.with_name("events.jsonl.1"), path]
        assert [numbers(file) for file in files] == [[1, 2], list(range(3, 41)), [41, 42]]
        assert closings(*files) == [42]
        assert files[1].stat().st_size > 1000

    def test_where_it_cannot_rotate_it_grows_on_and_says_so_once(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (path.with_name("events.jsonl.1") / "in the way").mkdir(parents=True)
        (path.with_name("events.jsonl.2") / "in the way").mkdir(parents=True)
        with FileSink(path, max_bytes=500, backups=2) as sink:
            for n in range(1, 11):
                emit(sink, n, n)
                assert sink.flush(PATIENCE)
        assert numbers(path) == list(range(1, 11))
        assert closings(path) == [10]
        said = [record for record in caplog.records if "cannot be rotated" in record.getMessage()]
        assert len(said) == 1


class TestOthers:
    def test_a_torn_last_line_cannot_swallow_the_next_event(self, path: Path) -> None:
        path.write_bytes(b'{"whole":1}\n{"torn":')
        with FileSink(path) as sink:
            emit(sink, 1, 2)
        assert path.read_bytes().startswith(b'{"whole":1}\n{"torn":\n{"v":1')
        assert [json.loads(line)["seq"] for line in path.read_bytes().splitlines()[2:]] == [1, 2, 3]  # with the closing

    @pytest.mark.parametrize("how", ["moved", "deleted", "truncated", "replaced", "folder moved"])
    def test_what_others_do_to_the_file(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "logs" / "events.jsonl"
        aside = tmp_path / "aside"
        sink = FileSink(path, **QUICK)
        emit(sink, 1, 5)
        assert sink.flush(PATIENCE)
        if how == "moved":
            path.rename(aside)
        elif how == "deleted":
            path.unlink()
        elif how == "truncated":
            aside.write_bytes(path.read_bytes())
            os.truncate(path, 0)
        elif how == "replaced":
            other = tmp_path / "other"
            other.write_text("")
            other.rename(path)
        else:
            path.parent.rename(aside)
        emit(sink, 6, 10)
        assert sink.stop(PATIENCE).failed_batches == 0
        assert numbers(path) == list(range(6, 11))
        assert closings(path) == [10]
        if how in ("moved", "truncated"):
            assert numbers(aside) == list(range(1, 6))

    @pytest.mark.concurrent
    def test_several_processes_append_and_rotate(self, path: Path) -> None:
        script = (
            "import sys\n"
            "from streamll.models import StreamllEvent\n"
            "from streamll.sinks.file import FileSink\n"
            "with FileSink(sys.argv[1], max_bytes=20_000, backups=1000, batch_size=7, batch_growth=1,"
            " flush_interval=0, stop_timeout=30) as sink:\n"
            "    for n in range(300): sink.handle_event(StreamllEvent(event_type='test', data={'n': n}))\n"
            "print(sink.stats().delivered)\n"
        )
        command = [sys.executable, "-c", script, str(path)]
        writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
        assert [writer.communicate(timeout=2 * PATIENCE)[0].strip() for writer in writers] == [b"300"] * 4
        files = list(path.parent.iterdir())
        assert len(files) > 5
        there = Counter((line["producer"], line["data"]["n"]) for line in events(*files))
        assert len(there) == 1200
        assert set(there.values()) == {1}
        assert closings(*files) == [300] * 4
        assert max(file.stat().st_size for file in files) <= 20_000

    def test_a_writer_that_is_killed_costs_one_line_at_most(self, path: Path) -> None:
        script = (
            "import sys\n"
            "from streamll.models import StreamllEvent\n"
            "from streamll.sinks.file import FileSink\n"
            "sink = FileSink(sys.argv[1], flush_interval=0)\n"
            "while True: sink.handle_event(StreamllEvent(event_type='test', data={'n': 0, 'text': 'x' * 3000}))\n"
        )
        for _ in range(3):
            writer = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT)
            size = path.stat().st_size if path.exists() else 0
            assert wait_until(lambda size=size: path.exists() and path.stat().st_size > size + 100_000)  # type: ignore[misc]
            writer.kill()
            writer.wait(PATIENCE)
        with FileSink(path) as sink:
            emit(sink, 1, 3)
        whole, torn = 0, 0
        for line in path.read_bytes().splitlines():
            try:
                whole += len(json.loads(line)) > 0
            except ValueError:
                torn += 1
        assert whole > 3
        assert torn <= 3
        ours = [json.loads(line)["data"] for line in path.read_bytes().splitlines()[-4:]]
        assert ours == [{"n": 1}, {"n": 2}, {"n": 3}, {"last": 3}]

    def test_a_forked_child_closes_its_copy_of_the_file(self, path: Path) -> None:
        transport = _FileTransport("p", path, FileOptions())
        transport.open(soon())
        assert transport.send([entry(1)], soon()).failure is None
        descriptor = transport._events._descriptor
        pid = os.fork()
        if pid == 0:
            try:
                os.fstat(descriptor)
            except OSError:
                os._exit(1 if transport.is_open else 0)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert transport.send([entry(2)], soon()).failure is None
        transport.close(clean=True)
        assert [line["seq"] for line in lines(path)] == [1, 2]


LIMITED = """
import json, resource, signal, sys, time
from streamll.models import StreamllEvent
from streamll.sinks.file import FileSink

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # the kernel writes what still fits, as on a full disk
reports = []
sink = FileSink(sys.argv[1], flush_interval=3600, retry_base=0.01, retry_bound=0.02, recovery_timeout=0.05,
                recovery_bound=0.1, fsync=sys.argv[2], on_delivery=reports.append)
for n in range(100):
    assert sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))
sink.request_flush()
deadline = time.monotonic() + 20
while sink.stats().failed_batches < 4 and time.monotonic() < deadline:
    time.sleep(0.005)
full = sink.stats()
size = len(open(sys.argv[1], "rb").read())
whole = open(sys.argv[1], "rb").read().count(b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
stats = sink.stop(20)
print(json.dumps({"size": size, "whole": whole, "delivered_when_full": full.delivered, "circuit": full.circuit,
                  "error": full.last_error, "balanced": full.balanced, "delivered": stats.delivered,
                  "reports": sorted(report.seq for report in reports)}))
"""


class TestFullDisk:
    @pytest.mark.parametrize("fsync", ["false", "true"])
    def test_what_does_not_fit_whole_is_cut_off_again(self, path: Path, fsync: str) -> None:
        command = [sys.executable, "-c", LIMITED, str(path), fsync]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        seen = json.loads(done.stdout)
        assert seen["size"] <= 5000
        assert seen["whole"] == seen["delivered_when_full"]
        assert seen["whole"] > 0
        assert seen["balanced"]
        assert "File too large" in seen["error"]
        assert seen["delivered"] == 100
        assert seen["reports"] == list(range(1, 101))
        assert numbers(path) == list(range(100))
        assert closings(path) == [100]

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 64 KiB."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True
        )
        if mounted.returncode:
            pytest.skip(f"only root may mount: {mounted.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def test_a_file_system_that_is_full_and_is_not_any_more(self, small_disk: Path) -> None:
        path = small_disk / "events.jsonl"
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * 40_000)
        reports: list[DeliveryReport] = []
        sink = FileSink(path, **QUICK, on_delivery=reports.append)
        emit(sink, 1, 80, text="x" * 400)
        assert wait_until(lambda: sink.stats().failed_batches > 2)
        full = sink.stats()
        assert full.balanced
        assert "No space left" in full.last_error
        assert FileSink.check_url(f"file://{path}")[-1].level == "warning"
        ballast.unlink()
        assert wait_until(sink.event_queue.empty)
        assert sink.stop(PATIENCE).delivered == 80
        assert numbers(path) == list(range(1, 81))
        assert closings(path) == [80]
        assert sorted(report.seq for report in reports) == list(range(1, 81))


class TestRefusals:
    @pytest.mark.parametrize("what", ["folder", "pipe", "device", "below a file", "loop", "long name", "no proc"])
    def test_what_waiting_does_not_mend_is_fatal(self, tmp_path: Path, what: str) -> None:
        path = tmp_path / "it"
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        elif what == "device":
            path = Path(os.devnull)
        elif what == "below a file":
            path.write_text("")
            path = path / "events.jsonl"
        elif what == "loop":
            path.symlink_to(path)
        elif what == "long name":
            path = tmp_path / ("x" * 300)
        else:
            path = Path("/proc/streamll/events.jsonl")
        transport = _FileTransport("p", path, FileOptions())
        with pytest.raises(FatalError, match=str(path)):
            transport.open(soon())
        assert not transport.is_open
        outcome = transport.send([entry(1)], soon())
        assert (outcome.failure, outcome.sent) == (Failure.FATAL, False)

    def test_too_many_open_files_may_pass(self, path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        transport = _FileTransport("p", path, FileOptions())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(UnavailableError, match="Too many open files"):
                transport.open(soon())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        transport.open(soon())
        transport.close(clean=True)

    def test_without_permission_it_is_fatal_and_check_says_so(self) -> None:
        script = (
            "import os, sys, tenacity, time\n"
            "from streamll.models import StreamllEvent\n"
            "from streamll.sinks.file import FileSink\n"
            # Nothing is refused to root. All that is needed is imported by now: it may be out of that user's reach.
            "if os.getuid() == 0: os.setuid(65534)\n"
            "sink = FileSink(sys.argv[1], failure_threshold=1000)\n"
            "sink.handle_event(StreamllEvent(event_type='test'))\n"
            "deadline = time.monotonic() + 20\n"
            "while sink.stats().circuit != 'open' and time.monotonic() < deadline: time.sleep(0.005)\n"
            "check = FileSink.check_url\n"
            "print(sink.stats().last_error, '|', check('file://' + sys.argv[1])[0], check('file://' + sys.argv[2])[0].level)\n"
            "sink.stop(0)\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            closed = Path(folder, "closed")
            closed.mkdir(0)
            Path(folder).chmod(0o555)
            command = [sys.executable, "-c", script, f"{folder}/events.jsonl", f"{closed}/a/b"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
            closed.chmod(0o755)
            Path(folder).chmod(0o755)
        assert done.returncode == 0, done.stderr
        error, _, finding = done.stdout.partition("|")
        assert "Permission denied" in error
        assert "level='error'" in finding
        assert "may not write" in finding
        assert finding.strip().endswith("error")  # where one may not even look

    def test_paths_and_urls_that_cannot_be_used(self) -> None:
        for path in ("", "a\0b", "folder/", b"bytes"):
            with pytest.raises(ConfigurationError, match="must name a file"):
                FileSink(path)  # type: ignore[arg-type]  # bytes is what untyped code gives
        for url in ("file://relative/path", "file:relative", "file:///a#b"):
            with pytest.raises(ConfigurationError, match="three slashes"):
                FileSink.from_url(url)
        with pytest.raises(ConfigurationError, match="backups='0'"):
            FileSink.from_url("file:///a/b?backups=0")

    def test_a_url_says_the_same_as_arguments(self, tmp_path: Path) -> None:
        sink = FileSink.from_url(f"file://{tmp_path}/a%20b%23c?max_bytes=5000&backups=2&fsync=yes&name=mine", backups=3)
        assert (sink.path, sink.name) == (tmp_path / "a b#c", "mine")
        assert "a%20b%23c" in sink.destination

    def test_a_relative_path_is_that_of_the_beginning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        sink = FileSink("events.jsonl")
        monkeypatch.chdir("/")
        emit(sink, 1, 1)
        sink.stop(PATIENCE)
        assert numbers(tmp_path / "events.jsonl") == [1]


class TestCheck:
    def test_a_good_place(self, path: Path) -> None:
        findings = FileSink.check_url(f"file://{path.parent}/new/deep/{path.name}?max_bytes=1000000&name=x")
        assert [finding.level for finding in findings] == ["ok", "ok"]
        assert "does not exist yet" in findings[0].text
        assert not (path.parent / "new").exists()

    def test_growing_without_bound_is_a_warning(self, path: Path) -> None:
        path.write_text("")
        findings = FileSink.check_url(f"file://{path}")
        assert [finding.level for finding in findings] == ["ok", "warning", "ok"]
        assert "max_bytes" in findings[1].remedy

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path, tmp_path / "file" / "events.jsonl"):
            assert [finding.level for finding in FileSink.check_url(f"file://{path}")] == ["error"]


def test_a_lock_that_somebody_keeps_is_waited_for_until_the_deadline(path: Path) -> None:
    import fcntl

    transport = _FileTransport("p", path, FileOptions())
    transport.open(soon())
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        outcome = transport.send([entry(1)], time.monotonic() + 0.05)
        assert (outcome.failure, outcome.sent) == (Failure.UNAVAILABLE, False)
        assert "another process" in outcome.error
        assert not transport.is_open
    transport.open(soon())
    assert transport.send([entry(1)], soon()).failure is None
    transport.close(clean=True)
    transport.idle(0.0)
    assert [line["seq"] for line in lines(path)] == [1]


def test_nothing_is_logged_while_all_is_well(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with FileSink(path) as sink:
        emit(sink, 1, 10)
    assert caplog.records == []
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python's own doing, which the full disk relies on
