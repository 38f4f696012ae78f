"""FileConsumer on real files: following, rotation, truncation, torn and overlong lines, positions.

`timeout=0.0` makes a loop take what is there and end, so nothing here waits.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamll import codec
from streamll.consumers import Consumer, FileConsumer, consumer_for
from streamll.errors import ConsumerError
from streamll.models import GAP, StreamllEvent
from streamll.wire.file import dead_letter_line, event_line


def line(seq: int, producer: str = "p", **extra: Any) -> bytes:
    """A line as FileSink writes it."""
    event = StreamllEvent(event_type="t", event_id=f"{seq:032x}", timestamp=seq, operation=f"op {seq}")
    return msgspec.json.encode({**codec.to_dict(event), "producer": producer, "seq": seq, **extra}) + b"\n"


def lines(*numbers: int) -> bytes:
    return b"".join(line(number) for number in numbers)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def rotate(path: Path) -> None:
    """What a sink does when its file is full."""
    numbers = [int(one.suffix[1:]) for one in path.parent.iterdir() if one.suffix[1:].isdigit()]
    for number in sorted(numbers, reverse=True):
        path.with_name(f"{path.name}.{number}").rename(path.with_name(f"{path.name}.{number + 1}"))
    path.rename(path.with_name(f"{path.name}.1"))


def seqs(consumer: Consumer) -> list[int]:
    return [item.seq for item in consumer]


def open_descriptors() -> int:
    """How many this process has, where the system says so."""
    folder = Path("/dev/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def break_descriptor(consumer: Consumer, path: Path) -> None:
    """Put a folder in the place of the file that is open: reading it fails."""
    folder = os.open(path.parent, os.O_RDONLY)
    os.dup2(folder, consumer._source._descriptor, inheritable=False)  # type: ignore[attr-defined]
    os.close(folder)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events[1].jsonl"  # characters that mean something in a pattern


class TestReading:
    def test_events_and_their_labels(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2, reason="too large") + b"\n" + line(3, "q", of_tomorrow=True))
        with FileConsumer(path, follow=False) as consumer:
            items = list(consumer)
        assert [(item.producer, item.seq, item.dead_letter) for item in items] == [
            ("p", 1, ""),
            ("p", 2, "too large"),
            ("q", 3, ""),
        ]
        assert [item.event.extra for item in items if item.event] == [{}, {}, {"of_tomorrow": True}]
        assert items[0].payload == line(1).rstrip()

    def test_lines_of_others(self, path: Path) -> None:
        path.write_bytes(b'{"event_type":"a","seq":"1"}\n{"event_type":"b","producer":"p","seq":2,"reason":5}\n')
        with FileConsumer(path, follow=False) as consumer:
            assert [(item.producer, item.seq, item.dead_letter) for item in consumer] == [("", 0, ""), ("p", 2, "")]

    def test_dead_letters_of_other_bytes(self, path: Path) -> None:
        good = codec.encode(StreamllEvent(event_type="t", operation="too large"))
        path.write_bytes(
            dead_letter_line(good, "p", 1, "too large")
            + dead_letter_line(b"\x00no event", "p", 2, "poison")
            + dead_letter_line(b'{"temperature":21}', "p", 3, "poison")
            + b'{"payload_base64":"!"}\n'
        )
        with FileConsumer(path, follow=False) as consumer:
            items = list(consumer)
        assert [(item.seq, item.dead_letter) for item in items] == [
            (1, "too large"),
            (2, "poison"),
            (3, "poison"),
            (0, ""),
        ]
        assert [item.event.operation if item.event else None for item in items] == ["too large", None, None, None]
        assert items[0].payload == good
        assert items[1].payload == b"\x00no event"

    def test_without_decoding_events(self, path: Path) -> None:
        note = StreamllEvent(event_type=GAP, data={"count": 1, "ranges": [[3, 3]], "reasons": {"overflow": 1}})
        opaque = dead_letter_line(b"\x81", "p", 4, "no JSON")
        own = b'{"event_type":"t","producer":5,"seq":"x","producer":"p","seq":5}\n'
        append(
            path, lines(1, 2) + event_line(codec.to_json(note), "p", 3) + opaque + own + b"junk\n{}\n" + line(8)[:-1]
        )
        with FileConsumer(path, follow=False, decode=False, notes=True) as consumer:
            items = list(consumer)
        assert [(item.producer, item.seq, bool(item.error)) for item in items] == [
            *(("p", n, False) for n in range(1, 6)),
            ("", 0, True),
            ("", 0, False),
            ("p", 8, False),
        ]
        assert [item.event for item in items if not item.note] == [None] * 7
        assert items[2].event == note
        assert items[3].payload == b"\x81"
        assert items[0].payload == line(1)[:-1]

    def test_the_dead_letters_of_a_sink(self, path: Path) -> None:
        append(path.with_name(f"{path.name}.dead-letter.jsonl"), dead_letter_line(b"\x81", "p", 4, "no JSON"))
        for given in (path, f"file://{path}?follow=false"):
            with FileConsumer.of_dead_letters(given, timeout=0.0) as consumer:
                assert [(item.seq, item.dead_letter) for item in consumer] == [(4, "no JSON")]

    def test_many_lines_in_pages(self, path: Path) -> None:
        path.write_bytes(lines(*range(1, 5001)))
        with FileConsumer(path, follow=False, page_size=7) as consumer:
            assert seqs(consumer) == list(range(1, 5001))

    def test_doubles_are_dropped(self, path: Path) -> None:
        path.write_bytes(lines(1, 2, 1, 3))
        with FileConsumer(path, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3]
        assert consumer.stats().duplicates == 1

    def test_its_url(self, path: Path) -> None:
        path.write_bytes(lines(1))
        with consumer_for(f"file://{path}?follow=false".replace("[", "%5B").replace("]", "%5D")) as consumer:
            assert seqs(consumer) == [1]

    def test_what_is_no_event_is_handed_over(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2)[:40] + line(3) + b"\x00\xff\n[]\n" + line(4))
        with FileConsumer(path, follow=False) as consumer:
            items = list(consumer)
        assert [item.seq for item in items if item.event] == [1, 4]
        assert [bool(item.error) for item in items] == [False, True, True, True, False]
        assert consumer.stats().undecodable == 3

    def test_a_line_without_end_is_bounded(self, path: Path) -> None:
        long = b'{"event_type":"' + b"x" * 2_000_000
        path.write_bytes(line(1) + long + b"\n" + line(2) + long)
        with FileConsumer(path, max_event_bytes=1000, timeout=0.0) as consumer:
            items = list(consumer)
            assert [item.seq for item in items if item.event] == [1, 2]
            assert "2,000,015 bytes" in items[1].error
            assert len(items[1].payload) <= 1024
            append(path, b"\n" + line(3))
            assert [item.error[:20] for item in consumer] == ["no event: a line of ", ""]

    def test_a_line_just_beyond_the_bound(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2, padding="x" * 500))
        with FileConsumer(path, max_event_bytes=300, follow=False) as consumer:
            items = list(consumer)
        assert [item.event is None for item in items] == [False, True]
        assert "max_event_bytes=300" in items[1].error

    def test_asynchronously(self, path: Path) -> None:
        path.write_bytes(lines(*range(1, 1001)))

        async def main() -> list[str]:
            async with FileConsumer(path, follow=False) as consumer:
                return [event.operation async for event in consumer.events()]

        assert asyncio.run(main()) == [f"op {seq}" for seq in range(1, 1001)]


class TestFollowing:
    def test_lines_as_they_come(self, path: Path) -> None:
        path.write_bytes(lines(1, 2))
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1, 2]
            append(path, lines(3))
            assert seqs(consumer) == [3]

    def test_a_half_written_line_waits(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2)[:50])
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1]
            append(path, line(2)[50:-1])
            assert seqs(consumer) == []
            append(path, b"\n")
            assert seqs(consumer) == [2]

    def test_what_a_writer_takes_back_does_not_spoil_what_follows(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2)[:50])
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1]
            path.write_bytes(line(1) + line(3))  # the same file, cut back and written anew
            assert seqs(consumer) == [3]
            append(path, line(4)[:50])
            assert seqs(consumer) == []
            os.truncate(path, len(line(1) + line(3)))
            assert seqs(consumer) == []
            append(path, line(5))
            assert seqs(consumer) == [5]
            assert consumer.stats().reconnects == 0

    def test_without_following_a_last_line_counts_when_it_is_whole(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2).rstrip())
        with FileConsumer(path, follow=False) as consumer:
            assert seqs(consumer) == [1, 2]
        path.write_bytes(line(1) + line(2)[:50])
        with FileConsumer(path, follow=False) as consumer:
            assert seqs(consumer) == [1]
            position = consumer.stats().position
        append(path, line(2)[50:])
        with FileConsumer(path, follow=False, start=position) as consumer:
            assert seqs(consumer) == [2]

    def test_without_following_it_ends_at_what_was_there(self, path: Path) -> None:
        path.write_bytes(lines(1, 2, 3))
        with FileConsumer(path, follow=False, page_size=1) as consumer:
            assert next(consumer).seq == 1
            append(path, lines(4))
            rotate(path)
            path.write_bytes(lines(5))
            assert seqs(consumer) == [2, 3]

    def test_rotation(self, path: Path) -> None:
        path.write_bytes(lines(1, 2))
        with FileConsumer(path, timeout=0.0) as consumer:
            assert next(consumer).seq == 1
            append(path, lines(3))
            rotate(path)
            assert seqs(consumer) == [2, 3]  # the new file is not there yet
            path.write_bytes(lines(4))
            assert seqs(consumer) == [4]
            append(path.with_name(f"{path.name}.1"), b"")
            assert seqs(consumer) == []

    def test_several_rotations_at_once(self, path: Path) -> None:
        path.write_bytes(lines(1))
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1]
            for seq in range(2, 13):
                append(path, lines(seq * 10))
                rotate(path)
                path.write_bytes(lines(seq * 10 + 1))
            expected = [number for seq in range(2, 13) for number in (seq * 10, seq * 10 + 1)]
            assert seqs(consumer) == expected

    def test_a_line_torn_by_a_rotation(self, path: Path) -> None:
        path.write_bytes(line(1) + line(2)[:50])
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1]
            rotate(path)
            path.write_bytes(lines(3))
            items = list(consumer)
        assert [(item.seq, bool(item.error)) for item in items] == [(0, True), (3, False)]
        assert items[0].payload == line(2)[:50]
        assert consumer.stats().reconnects == 0

    def test_rotated_files_are_part_of_the_beginning(self, path: Path) -> None:
        for seq in range(1, 4):
            path.write_bytes(lines(seq))
            rotate(path)
        path.write_bytes(lines(4))
        path.with_name(f"{path.name}.gz").write_bytes(b"of no concern")
        path.with_name(f"{path.name}.1.bak").write_bytes(b"of no concern")
        with FileConsumer(path, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3, 4]
        with FileConsumer(path, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []

    def test_a_position_in_a_file_that_was_rotated_since(self, path: Path) -> None:
        path.write_bytes(lines(1, 2, 3))
        with FileConsumer(path) as consumer:
            assert [next(consumer).seq for _ in range(2)] == [1, 2]
            position = consumer.stats().position
        rotate(path)
        path.write_bytes(lines(4))
        with FileConsumer(path, start=position, follow=False) as consumer:
            assert seqs(consumer) == [3, 4]

    def test_a_position_in_a_file_that_is_gone(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path.write_bytes(lines(1))
        with FileConsumer(path, start="10@1", follow=False) as consumer:
            assert seqs(consumer) == [1]
        assert "is gone" in caplog.text

    def test_an_offset_in_the_present_file(self, path: Path) -> None:
        path.write_bytes(lines(1, 2))
        with FileConsumer(path, start=str(len(lines(1))), follow=False) as consumer:
            assert seqs(consumer) == [2]

    def test_the_end_is_where_the_last_whole_line_ends(self, path: Path) -> None:
        path.write_bytes(lines(1, 2) + line(3)[:50])
        with FileConsumer(path, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []
            append(path, line(3)[50:] + line(4))
            assert seqs(consumer) == [3, 4]
        path.write_bytes(b"x" * 600_000)
        with FileConsumer(path, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []

    def test_truncation(self, path: Path) -> None:
        path.write_bytes(lines(1, 2, 3))
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1, 2, 3]
            path.write_bytes(lines(4))
            assert [(item.seq, item.after_cut) for item in consumer] == [(4, True)]
            assert (consumer.stats().reconnects, consumer.stats().cuts) == (1, 1)

    def test_deleted_and_made_anew(self, path: Path) -> None:
        path.write_bytes(lines(1, 2))
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1, 2]
            path.unlink()
            assert seqs(consumer) == []
            path.write_bytes(lines(3))
            assert [(item.seq, item.after_cut) for item in consumer] == [(3, True)]

    def test_a_file_that_is_not_there_yet(self, path: Path) -> None:
        with FileConsumer(path, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []
            path.write_bytes(lines(1))
            assert seqs(consumer) == [1]  # all of it is new

    def test_a_disk_that_fails_for_a_while(self, path: Path) -> None:
        path.write_bytes(lines(1, 2))
        with FileConsumer(path, timeout=5.0, retry_base=0.0) as consumer:
            for seq in (1, 2):
                assert next(consumer).seq == seq
            append(path, lines(3))
            break_descriptor(consumer, path)
            assert next(consumer).seq == 3
            assert consumer.stats().reconnects == 1
            break_descriptor(consumer, path)
            path.unlink()
            append(path, lines(4))
            assert next(consumer).seq == 4

    def test_nothing_is_left_open(self, path: Path) -> None:
        path.write_bytes(lines(1))
        before = open_descriptors()
        with FileConsumer(path, timeout=0.0) as consumer:
            assert seqs(consumer) == [1]
            rotate(path)
            path.write_bytes(lines(2))
            assert seqs(consumer) == [2]
        assert open_descriptors() == before


class TestWhatIsNoFile:
    def test_nothing_there(self, path: Path) -> None:
        with FileConsumer(path, follow=False) as consumer, pytest.raises(ConsumerError, match="does not exist"):
            next(consumer)

    def test_no_directory(self, path: Path) -> None:
        with FileConsumer(path / "x" / "y") as consumer, pytest.raises(ConsumerError, match="directory"):
            next(consumer)

    def test_a_directory(self, tmp_path: Path) -> None:
        with FileConsumer(tmp_path) as consumer, pytest.raises(ConsumerError, match="regular file"):
            next(consumer)

    def test_a_named_pipe(self, path: Path) -> None:
        os.mkfifo(path)
        with FileConsumer(path) as consumer, pytest.raises(ConsumerError, match="regular file"):
            next(consumer)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, path: Path) -> None:
        path.write_bytes(lines(1))
        path.chmod(0)
        with FileConsumer(path) as consumer, pytest.raises(ConsumerError, match="Permission denied"):
            next(consumer)
