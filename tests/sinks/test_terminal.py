"""TerminalSink: streams that people look at, and streams that nobody looks at."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from streamll.delivery.outcome import Entry, Failure
from streamll.errors import ConfigurationError, FatalError
from streamll.models import Record, StreamllEvent
from streamll.options import KIB, PipelineOptions
from streamll.pipeline import Pipeline
from streamll.sinks.terminal import TerminalSink, _TerminalTransport

PATIENCE = 30.0
ROOT = Path(__file__).resolve().parents[2]
PAYLOAD = b'{"v":1,"event_type":"test","data":{"n":1}}'

QUICK: dict[str, Any] = {"recovery_timeout": 0.05, "recovery_bound": 0.1, "flush_interval": 0.0}


def entry(seq: int, payload: bytes = PAYLOAD, dead_letter: str = "") -> Entry:
    return Entry(seq, Record(payload, "", f"e{seq}", "test", "op", "", "", "", "", 0, 0), dead_letter)


def emit(sink: TerminalSink, *texts: str, **fields: Any) -> None:
    for text in texts:
        assert sink.handle_event(StreamllEvent(event_type="test", data={"text": text}, **fields))


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a pipe, and a stream into it."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="utf-8")
    yield reading, stream
    stream.close()
    os.close(reading)


def fill(stream: TextIO) -> int:
    """Fill a pipe to its brim, and leave it non-blocking; returns how much it took."""
    os.set_blocking(stream.fileno(), False)
    taken = 0
    for size in (65_536, 1):
        try:
            while True:
                taken += os.write(stream.fileno(), b"\n" * size)
        except BlockingIOError:
            pass
    return taken


class TestLines:
    def test_a_text_stream_gets_a_line_for_each_event(self) -> None:
        stream = io.StringIO()
        with TerminalSink(stream) as sink:
            emit(sink, "one", "\x1b[31mtwo\n", operation="speak")
        assert [line.partition(" ")[2] for line in stream.getvalue().splitlines()] == [
            "test speak text=one",
            'test speak text="\\u001b[31mtwo\\n"',
        ]

    def test_dead_letters_are_shown(self) -> None:
        stream = io.StringIO()
        pipeline = Pipeline(PipelineOptions(max_event_bytes=KIB, oversize="dead_letter"))
        with TerminalSink(stream, pipeline=pipeline) as sink:
            emit(sink, "x" * 2000, operation="\x1b[2J")
        assert re.fullmatch(r"dead letter 1: test \\x1b\[2J \(\d+ bytes\): too large: .*\n", stream.getvalue())

    def test_what_is_no_event_is_rejected(self) -> None:
        stream = io.StringIO()
        transport = _TerminalTransport(stream, "never")
        transport.open(soon())
        outcome = transport.send([entry(1), entry(2, b"nonsense"), entry(3)], soon())
        assert (outcome.failure, list(outcome.rejected)) == (None, [1])
        assert len(stream.getvalue().splitlines()) == 2

    @pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
    def test_a_long_line_goes_through_a_pipe_in_one_piece(self, pipe: tuple[int, Any], encoding: str) -> None:
        reading, stream = pipe
        stream.reconfigure(encoding=encoding)
        with TerminalSink(stream, color="always") as sink:
            emit(sink, "👍" * 5000, "short")
        lines = os.read(reading, 65_536).splitlines()
        assert len(lines) == 2
        assert 1000 < len(lines[0]) <= 4096
        assert "…".encode(encoding, "backslashreplace") in lines[0]

    def test_an_encoding_that_lacks_a_character_shows_its_escape(self, tmp_path: Path) -> None:
        path = tmp_path / "out"
        with path.open("w", encoding="ascii") as stream, TerminalSink(stream) as sink:
            emit(sink, "naïve👍")
        assert rb"text=na\xefve\U0001f44d" in path.read_bytes()

    def test_one_that_is_no_file_too(self) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
        with TerminalSink(stream) as sink:
            emit(sink, "naïve👍")
        assert rb"text=na" + b"\xef" + rb"ve\U0001f44d" in stream.buffer.getvalue()


class TestColor:
    @pytest.mark.parametrize(
        ("option", "environment", "colored"),
        [
            ("auto", {"TERM": "xterm"}, True),
            ("auto", {"TERM": "dumb"}, False),
            ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, False),
            ("never", {"TERM": "xterm"}, False),
            ("always", {"TERM": "dumb", "NO_COLOR": "1"}, True),
        ],
    )
    def test_on_a_terminal(
        self, option: str, environment: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        control, terminal = pty.openpty()
        with os.fdopen(terminal, "w") as stream, TerminalSink(stream, color=option) as sink:
            emit(sink, "hello")
            assert sink.flush(PATIENCE)
            shown = os.read(control, 65_536)
        os.close(control)
        assert b"hello" in shown
        assert (b"\x1b[" in shown) == colored

    def test_elsewhere_only_when_told_to(self) -> None:
        for option, colored in (("auto", False), ("always", True)):
            stream = io.StringIO()
            with TerminalSink(stream, color=option) as sink:
                emit(sink, "hello")
            assert ("\x1b[" in stream.getvalue()) == colored


class Odd:
    """An object that is called a stream."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.text = ""

    def write(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        self.text += text

    def flush(self) -> None:
        pass


class TestTrouble:
    def test_a_closed_stream_is_fatal_and_harms_nobody(self, pipe: tuple[int, TextIO]) -> None:
        for stream in (io.StringIO(), pipe[1]):
            sink = TerminalSink(stream, **QUICK)
            emit(sink, "one")
            assert sink.flush(PATIENCE)
            stream.close()
            emit(sink, "two")
            assert not sink.flush(0.1)
            stats = sink.stop(0.1)
            assert (stats.delivered, stats.dropped, stats.defects) == (1, {"shutdown": 1}, 0)
            assert "closed" in stats.last_error

    def test_a_pipe_without_a_reader_is_fatal(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            transport = _TerminalTransport(stream, "never")
            transport.open(soon())
            outcome = transport.send([entry(1)], soon())
            assert (outcome.failure, outcome.sent) == (Failure.FATAL, False)
            assert "Broken pipe" in outcome.error
            assert not transport.is_open
            transport.close(clean=False)

    @pytest.mark.parametrize(
        ("error", "failure"),
        [
            (RuntimeError("odd"), Failure.FATAL),
            (BrokenPipeError(), Failure.FATAL),
            (OSError(28, "No space left on device"), Failure.UNAVAILABLE),
        ],
    )
    def test_what_anybodys_stream_raises_stops_here(self, error: Exception, failure: Failure) -> None:
        stream: Any = Odd(error)
        transport = _TerminalTransport(stream, "auto")
        transport.open(soon())
        assert transport.send([entry(1)], soon()).failure is failure
        stream.error = None
        transport.open(soon())
        assert transport.send([entry(1)], soon()).failure is None
        assert "test" in stream.text

    def test_without_a_standard_stream_it_is_fatal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        with pytest.raises(FatalError, match="stderr is closed"):
            _TerminalTransport("stderr", "auto").open(soon())
        assert TerminalSink.check_url("terminal://")[0].level == "error"

    def test_unopened_it_sends_nothing(self) -> None:
        transport = _TerminalTransport(io.StringIO(), "auto")
        outcome = transport.send([entry(1)], soon())
        assert (outcome.failure, outcome.sent) == (Failure.UNAVAILABLE, False)

    def test_a_full_pipe_is_waited_for_until_the_deadline(self, pipe: tuple[int, TextIO]) -> None:
        reading, stream = pipe
        transport = _TerminalTransport(stream, "never")
        transport.open(soon())
        taken = fill(stream)
        outcome = transport.send([entry(1)], soon(0.05))
        assert (outcome.failure, outcome.delivered) == (Failure.UNAVAILABLE, set())
        assert "nobody reads" in outcome.error
        while taken:
            taken -= len(os.read(reading, min(taken, 65_536)))
        transport.open(soon())
        assert transport.send([entry(1), entry(2)], soon()).failure is None
        assert os.read(reading, 65_536).count(b"\n") == 2

    def test_an_interrupt_ends_the_wait(self, pipe: tuple[int, TextIO]) -> None:
        transport = _TerminalTransport(pipe[1], "never")
        transport.open(soon())
        fill(pipe[1])
        threading.Timer(0.05, transport.interrupt).start()
        began = time.monotonic()
        assert transport.send([entry(1)], soon(600)).failure is Failure.UNAVAILABLE
        assert time.monotonic() - began < PATIENCE


LIMITED = """
import resource, sys, time
from streamll.models import StreamllEvent
from streamll.sinks.terminal import TerminalSink

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1010, hard))  # the kernel writes what still fits, as on a full disk
sink = TerminalSink("stdout", retry_base=0.01, retry_bound=0.02, recovery_timeout=0.05, recovery_bound=0.1)
for n in range(100):
    sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))
sink.request_flush()
deadline = time.monotonic() + 20
while sink.stats().failed_batches < 4 and time.monotonic() < deadline:
    time.sleep(0.005)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
stats = sink.stop(20)
print(stats.delivered, stats.failed_batches >= 4, file=sys.stderr)
"""


SCRIPT = """
import sys
from streamll.models import StreamllEvent
from streamll.sinks.terminal import TerminalSink
sink = TerminalSink(sys.argv[1], flush_interval=0, exit_timeout=1, name="end")
for n in range(int(sys.argv[2])):
    sink.handle_event(StreamllEvent(event_type="test", data={"n": n}))
"""


class TestPrograms:
    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_a_program_that_ends_has_shown_what_it_emitted(self, stream: str) -> None:
        command = [sys.executable, "-c", SCRIPT, stream, "200"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        shown, silent = (done.stdout, done.stderr) if stream == "stdout" else (done.stderr, done.stdout)
        assert (done.returncode, silent) == (0, "")
        assert re.findall(r" n=(\d+)", shown) == [str(n) for n in range(200)]

    def test_a_line_that_was_written_in_part_is_written_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "out"
        with path.open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-c", LIMITED], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, timeout=60, check=True
            )
        assert done.stderr.endswith(b"100 True\n")
        lines = path.read_text().splitlines()
        whole = [int(match[1]) for line in lines if (match := re.fullmatch(r"\S+ test n=(\d+)", line))]
        assert whole == list(range(100))
        assert len(lines) == 101  # and the torn one

    def test_a_program_whose_output_nobody_reads_ends_all_the_same(self) -> None:
        command = [sys.executable, "-c", SCRIPT, "stdout", "9000"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.wait(PATIENCE) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            assert re.search(r"sink end: .*\d+ shutdown", process.stderr.read())
            assert " n=0" in process.stdout.readline()

    def test_a_program_whose_reader_has_gone_ends_all_the_same(self) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, "-c", SCRIPT, "stdout", "200"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(reading)
        os.close(writing)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in err
        assert "Broken pipe" in err


def test_urls_and_streams_that_cannot_be_used() -> None:
    for url in ("terminal://elsewhere", "terminal://stderr/path", "terminal:///dev/tty"):
        with pytest.raises(ConfigurationError, match="terminal://stderr or terminal://stdout"):
            TerminalSink.from_url(url)
    for stream in ("stdin", 5, None):
        with pytest.raises(ConfigurationError, match="must be stderr, stdout or a text stream"):
            TerminalSink(stream)  # type: ignore[arg-type]  # what untyped code gives
    with pytest.raises(ConfigurationError, match="auto, always, never"):
        TerminalSink.from_url("terminal://?color=red")


def test_a_url_says_which_stream(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalSink.from_url("terminal://stdout?color=never&name=out") as sink:
        emit(sink, "hello")
    assert "text=hello" in capsys.readouterr().out
    assert (sink.name, sink.destination) == ("out", "terminal://stdout")
    with TerminalSink.from_url("terminal://") as sink:
        emit(sink, "hello")
    assert "text=hello" in capsys.readouterr().err
    assert TerminalSink.check_url("terminal://stdout")[0].level == "ok"
