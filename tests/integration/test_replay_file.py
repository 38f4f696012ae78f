"""Redriving dead letters of files: lines move, and nothing is lost by whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import stat
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamll import codec
from streamll.consumers import FileConsumer
from streamll.errors import ConfigurationError, FatalError, UnavailableError
from streamll.models import StreamllEvent
from streamll.options import SinkOptions
from streamll.replay.base import Letter, Redrive, Selection, Tally, survey
from streamll.replay.file import FileDeadLetters
from streamll.replay.places import FilePlace, place_of
from streamll.sinks.file import FileOptions, FileSink, LineFile
from streamll.wire.file import dead_letter_line

PRODUCER = "0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def dead(path: Path, n: int = 0) -> Path:
    return path.with_name(path.name + ".dead-letter.jsonl" + (f".{n}" if n else ""))


def payload(seq: int) -> bytes:
    return codec.encode(StreamllEvent(event_type="token", data={"n": seq}), codec.JSON)


def fill(place: Path, first: int, last: int, reason: str = "too large") -> None:
    with place.open("ab") as file:
        for seq in range(first, last + 1):
            file.write(dead_letter_line(payload(seq), PRODUCER, seq, reason))


def numbers(place: Path) -> list[int]:
    if not place.exists():
        return []
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert all(line["data"]["n"] == line["seq"] and line["producer"] == PRODUCER for line in lines)
    return [line["seq"] for line in lines]


def redrive(url: str | Path, to: str | Path = "", **selection: Any) -> Tally:
    place = place_of(str(url))
    destination = place_of(str(to)).destination(place) if to else place.home()
    work = Redrive(place.dead_letters(look=False), destination, Selection(**selection))
    work.run()
    return work.tally


def test_lines_go_back_as_they_were_and_without_their_reason(path: Path) -> None:
    path.write_text('{"v":1}\n')
    fill(dead(path), 1, 1_200)
    tally = redrive(path)
    assert (tally.redriven, tally.rejected, tally.left) == (1_200, 0, 0)
    lines = path.read_bytes().splitlines()
    assert lines[0] == b'{"v":1}'
    assert [json.loads(line)["seq"] for line in lines[1:]] == list(range(1, 1_201))
    fields = json.loads(lines[1])
    assert fields["data"] == {"n": 1}
    assert "reason" not in fields
    assert not dead(path).exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert redrive(path).redriven == 0


def test_what_a_sink_dead_lettered_is_read_back_after_all(path: Path) -> None:
    with FileSink(path) as sink:
        for n in range(6):
            record = sink.pipeline.encode(StreamllEvent(event_type="token", data={"n": n}), sink.content_type)
            assert sink.handle_record(msgspec.structs.replace(record, poison="bad luck" if n % 2 else ""))
        assert sink.flush(10)
    assert redrive(f"file://{path}").redriven == 3
    with FileConsumer(path, follow=False) as consumer:
        items = [item for item in consumer if item.event is not None and item.event.event_type == "token"]
    assert [item.event.data["n"] for item in items if item.event] == [0, 2, 4, 1, 3, 5]
    assert {item.producer for item in items} == {sink.producer}
    assert {item.dead_letter for item in items} == {""}


@pytest.mark.parametrize("name", ["events.jsonl.dead-letter.jsonl", "file"])
def test_the_dead_letters_themselves_may_be_named(path: Path, name: str) -> None:
    fill(dead(path), 1, 2)
    url = f"file://{dead(path)}" if name == "file" else str(dead(path))
    assert redrive(url).redriven == 2
    assert numbers(path) == [1, 2]


def test_rotated_ones_come_first_and_vanish(path: Path) -> None:
    fill(dead(path, 10), 1, 3)
    fill(dead(path, 2), 4, 6)
    fill(dead(path), 7, 9)
    (path.parent / f"{dead(path).name}.old").write_text("not ours")
    tally = redrive(path)
    assert (tally.redriven, tally.left) == (9, 0)
    assert numbers(path) == list(range(1, 10))
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{dead(path).name}.old"}


def test_only_rotated_ones(path: Path) -> None:
    fill(dead(path, 1), 1, 3)
    assert redrive(path).redriven == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_selection_leaves_the_others_where_they_are(path: Path) -> None:
    fill(dead(path, 1), 1, 4, reason="Too LARGE: 9 bytes")
    fill(dead(path), 5, 6, reason="other")
    fill(dead(path), 7, 9, reason="too large: 8 bytes")
    dead(path).chmod(0o640)
    meant, unusable, others = survey(place_of(str(path)).dead_letters(look=True), Selection("too large", 6))
    assert (dict(meant), dict(unusable), others) == ({"Too LARGE: 9 bytes": 4, "too large: 8 bytes": 2}, {}, 3)
    tally = redrive(path, reason="too large", limit=6)
    assert (tally.redriven, tally.left) == (6, 3)
    assert numbers(path) == [1, 2, 3, 4, 7, 8]
    assert numbers(dead(path)) == [5, 6, 9]
    assert stat.S_IMODE(dead(path).stat().st_mode) == 0o640
    assert not dead(path, 1).exists()


def test_what_is_no_event_stays(path: Path) -> None:
    event = codec.encode(StreamllEvent(event_type="token", data={"n": 3}))
    strange = [
        dead_letter_line(b"\xc1 no event", PRODUCER, 1, "bad"),
        b"no JSON\n",
        b'{"v":1,"event_type":"token"}\n',
        b'{"producer":"p","seq":1,"reason":"x","payload_base64":"%%%"}\n',
        b'{"producer":"p","seq":1,"reason":"x"}\n',
        b'{"torn',
    ]
    dead(path).write_bytes(
        b"\n".join([b"".join(strange[:3]) + dead_letter_line(event, PRODUCER, 3, "bad"), *strange[3:]])
    )
    tally = redrive(path)
    assert (tally.redriven, tally.rejected, tally.left) == (1, 6, 0)
    assert json.loads(path.read_text())["data"] == {"n": 3}
    assert dead(path).read_bytes().replace(b"\n\n", b"\n") == b"".join(strange)


def test_a_line_that_somebody_has_edited_and_keys_of_our_names(path: Path) -> None:
    own = b'{"v":1,"event_type":"token","producer":"mine","reason":"mine"}'
    edited = b'{ "reason": "x", "v": 1, "event_type": "token", "producer": "p", "seq": 5 }\n'
    dead(path).write_bytes(dead_letter_line(own, PRODUCER, 4, "x") + edited)
    assert redrive(path).redriven == 2
    first, second = path.read_bytes().splitlines()
    assert first == own[:-1] + b',"producer":"0123456789abcdef","seq":4}'
    assert json.loads(second) == {"v": 1, "event_type": "token", "producer": "p", "seq": 5}


def test_to_another_file_that_rotates(path: Path, tmp_path: Path) -> None:
    fill(dead(path), 1, 1_500)
    other = tmp_path / "there" / "other.jsonl"
    assert redrive(path, f"file://{other}?max_bytes=60000&backups=9").redriven == 1_500
    assert not path.exists()
    found = sorted(other.parent.iterdir(), reverse=True)
    assert len(found) == 3
    assert sorted(number for file in found for number in numbers(file)) == list(range(1, 1_501))


def test_nothing_there(path: Path, tmp_path: Path) -> None:
    tally = redrive(tmp_path / "no" / "such.jsonl")
    assert (tally.redriven, tally.left) == (0, 0)
    assert list(tmp_path.iterdir()) == []


def test_looking_makes_and_locks_nothing(path: Path) -> None:
    fill(dead(path, 1), 1, 3)
    with LineFile(dead(path, 1), FileOptions()).held(0.0):
        assert survey(place_of(str(path)).dead_letters(look=True), Selection())[0].total() == 3
    assert [file.name for file in path.parent.iterdir()] == [dead(path, 1).name]


def test_another_redrive_or_sink_that_has_the_lock_is_waited_for(path: Path) -> None:
    fill(dead(path), 1, 3)
    with LineFile(dead(path), FileOptions()).held(0.0), pytest.raises(UnavailableError, match="another process holds"):
        redrive(f"file://{path}?send_timeout=0.05")
    assert numbers(dead(path)) == [1, 2, 3]
    assert redrive(path).redriven == 3


def test_a_full_disk_loses_nothing(path: Path) -> None:
    fill(dead(path), 1, 900)
    size = dead(path).stat().st_size // 900
    with _files_no_longer_than(600 * size), pytest.raises(UnavailableError, match="File too large"):
        redrive(path)
    moved = numbers(path)
    assert 500 <= len(moved) < 900
    assert moved + numbers(dead(path)) == list(range(1, 901))
    assert redrive(path).left == 0


def test_a_destination_that_is_no_file(path: Path) -> None:
    fill(dead(path), 1, 3)
    with pytest.raises(UnavailableError, match="not a regular file"):
        redrive(path, os.devnull)
    assert numbers(dead(path)) == [1, 2, 3]


@contextlib.contextmanager
def _files_no_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class _Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", ["fsync", "fchown", "fchmod", "replace"])
def test_killed_between_two_steps_the_events_are_in_one_place_at_least(
    path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where what is left is about to be in place: events may be in both, and a reader drops the doubles."""
    fill(dead(path), 1, 30, reason="a")
    fill(dead(path), 31, 40, reason="b")
    real = getattr(os, at) if at != "replace" else Path.replace
    calls = 0

    def kill(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if at != "fsync" or calls > 1:  # the first is that of the events
            raise _Killed
        return real(*arguments)

    monkeypatch.setattr(Path if at == "replace" else os, at, kill)
    with pytest.raises(_Killed):
        redrive(path, reason="a")
    monkeypatch.undo()
    assert numbers(path) == list(range(1, 31))
    assert numbers(dead(path)) == list(range(1, 41))
    tally = redrive(path, reason="a")
    assert (tally.redriven, tally.left) == (30, 10)
    assert numbers(dead(path)) == list(range(31, 41))
    with FileConsumer(path, follow=False) as consumer:
        assert [item.seq for item in consumer] == list(range(1, 31))
    assert {file.name for file in path.parent.iterdir()} <= {path.name, dead(path).name}


def test_what_was_moved_away_by_somebody_else_is_not_overwritten(path: Path) -> None:
    fill(dead(path), 1, 3)

    def take_over() -> None:
        dead(path).rename(dead(path).with_suffix(".moved"))
        fill(dead(path), 100, 100)

    place = FilePlace(str(path))
    work = Redrive(place.dead_letters(look=False), place.home(), Selection())
    with pytest.raises(UnavailableError, match="was moved by somebody else"):
        work.run(on_page=take_over)
    assert numbers(dead(path)) == [100]
    assert numbers(path) == [1, 2, 3]


def test_another_users_file_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(dead(path), 1, 3)
    monkeypatch.setattr(os, "geteuid", lambda: dead(path).stat().st_uid + 1)
    with pytest.raises(FatalError, match="belongs to another user"):
        redrive(path)
    assert numbers(dead(path)) == [1, 2, 3]


def test_sinks_go_on_writing_dead_letters_meanwhile(path: Path) -> None:
    """Each of theirs is in one of the two files afterwards, whenever it came."""
    line = LineFile(dead(path), FileOptions())
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set() and len(written) < 3_000:
            seq = len(written) + 1
            done, error = line.append([dead_letter_line(payload(seq), PRODUCER, seq, "x")], float("inf"))
            assert (done, error) == (1, None)
            written.append(seq)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            redrive(path)
    finally:
        stop.set()
        writer.join()
        line.close()
    redrive(path)
    assert numbers(path) == written
    assert not dead(path).exists()


def test_closing_in_the_middle_removes_what_was_delivered(path: Path) -> None:
    fill(dead(path), 1, 900)
    place = FilePlace(str(path))
    work = Redrive(place.dead_letters(look=False), place.home(), Selection())
    asked: list[int] = []

    def stop() -> bool:
        asked.append(work.tally.redriven)
        return len(asked) > 1

    work.run(stop)
    assert (work.tally.redriven, work.tally.left) == (500, 400)
    assert numbers(dead(path)) == list(range(501, 901))


def test_an_error_in_the_middle_removes_what_was_delivered(path: Path) -> None:
    fill(dead(path), 1, 900)
    place = FilePlace(str(path))
    work = Redrive(place.dead_letters(look=False), place.home(), Selection())
    with pytest.raises(_Killed):
        work.run(on_page=_raise(_Killed))
    assert numbers(path) == list(range(1, 501))
    assert numbers(dead(path)) == list(range(501, 901))


def _raise(kind: type[BaseException]) -> Callable[[], None]:
    def call() -> None:
        raise kind

    return call


def test_errors_of_the_system_are_said(path: Path) -> None:
    dead(path).mkdir()
    with pytest.raises(UnavailableError, match="directory"):
        redrive(path)
    source = FileDeadLetters(dead(path), SinkOptions(), look=True)
    source.open()
    with pytest.raises(UnavailableError):
        source.take()
    source.close()


@pytest.mark.parametrize("url", ["terminal://", "memory://", "http://user:secret@host/"])
def test_other_places_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="another kind") as raised:
        place_of(url)
    assert "secret" not in str(raised.value)


def test_base64_of_an_event_is_an_event(path: Path) -> None:
    event = codec.encode(StreamllEvent(event_type="token", data={"n": 1}))
    line = {"producer": PRODUCER, "seq": 1, "reason": "x", "payload_base64": b64encode(event).decode()}
    dead(path).write_text(json.dumps(line) + "\n")
    source = FileDeadLetters(dead(path), SinkOptions(), look=True)
    source.open()
    (letter,) = source.take()
    source.close()
    assert isinstance(letter, Letter)
    assert (letter.payload, letter.producer, letter.seq, letter.problem) == (event, PRODUCER, 1, "")
