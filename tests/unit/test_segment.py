"""The bytes of a segment: what is written, and what is made of bytes that are not as they were written."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from zlib import crc32

import msgspec
import pytest

from streamll.delivery.outcome import Entry
from streamll.models import Record
from streamll.runtime import segment as module
from streamll.runtime.segment import (
    FRAME_BYTES,
    HEADER_BYTES,
    LARGEST_SEGMENT,
    MAGIC,
    MARKER,
    MOST_RANGES_A_FRAME,
    Damage,
    EntryReader,
    SegmentError,
    bodies,
    frame_length,
    pack_frame,
    pack_header,
    pack_settlement,
    read_header,
)
from tests.unit.segments import SALT, entries, frame, header, numbers, segment, stored, survey

FIVE = [stored(seq) for seq in range(1, 6)]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def kind(data: bytes) -> str:
    with pytest.raises(SegmentError) as raised:
        read_header(data)
    return raised.value.kind


class TestFormat:
    """Segments are read by other versions, so their bytes are a promise."""

    def test_a_frame(self) -> None:
        body = b"\x92\x07\xa1x"
        assert pack_frame(body, 5) == b"\xc1\xa5" + b"\0\0\0\x04" + crc32(body, 5).to_bytes(4, "big") + body
        assert frame_length(pack_frame(body, 5)[:FRAME_BYTES]) == FRAME_BYTES + 4

    def test_an_entry_is_an_array_that_begins_with_its_number(self) -> None:
        record = Record(b"p", "c", "id", "type", "op", "mod", "meth", "lvl", "exec", 11, 12, "bad", "debug")
        body = frame(Entry(7, record, "dead", note=True))[FRAME_BYTES:]
        fields = [b"p", "c", "id", "type", "op", "mod", "meth", "lvl", "exec", 11, 12, "bad", "debug"]
        assert msgspec.msgpack.decode(body) == [7, fields, "dead", True]

    def test_a_settlement_has_the_number_0(self) -> None:
        said = pack_settlement([(1, 3), (5, 5)], 0, undeclared=True)[FRAME_BYTES:]
        assert msgspec.msgpack.decode(said) == [0, [[1, 3], [5, 5]], True]

    def test_a_header_is_there_twice(self) -> None:
        packed = pack_header(header())
        assert len(packed) == HEADER_BYTES
        assert packed[: HEADER_BYTES // 2] == packed[HEADER_BYTES // 2 :]
        assert packed.startswith(MAGIC + b"\0\1" + b"\0\0" + HEADER_BYTES.to_bytes(4, "big"))
        length = int.from_bytes(packed[16:20], "big")
        assert packed[20:24] == crc32(packed[24 : 24 + length], crc32(packed[:20])).to_bytes(4, "big")
        assert msgspec.msgpack.decode(packed[24 : 24 + length])["producer"] == "p"

    def test_fields_of_newer_versions_are_skipped(self) -> None:
        record = msgspec.msgpack.decode(msgspec.msgpack.encode(stored(9).record))
        body = msgspec.msgpack.encode([9, [*record, "new"], "", False, {"new": 1}])
        data = pack_header(header()) + pack_frame(body, SALT)
        assert [entry.seq for entry in entries(data)] == [9]


class TestHeader:
    def test_comes_back(self) -> None:
        assert read_header(pack_header(header(url="", durability="disk"))) == header(url="", durability="disk")

    def test_one_that_says_too_much_is_refused(self) -> None:
        assert pack_header(header(url="u" * 3900))
        with pytest.raises(ValueError, match="4096 bytes"):
            pack_header(header(url="u" * 4096))

    @pytest.mark.parametrize("data", [b"", b"\0", bytes(100), bytes(HEADER_BYTES)])
    def test_nothing_is_empty(self, data: bytes) -> None:
        assert kind(data) == "empty"

    @pytest.mark.parametrize("data", [b"#!/bin/sh", b"x" * HEADER_BYTES, MAGIC[1:] * 2000, b"\x89PNG\r\n"])
    def test_something_else_is_foreign(self, data: bytes) -> None:
        assert kind(data) == "foreign"

    def test_a_newer_version_says_so(self) -> None:
        packed = pack_header(header()).replace(MAGIC + b"\0\1", MAGIC + b"\0\2")
        with pytest.raises(SegmentError, match=r"a newer version of streamll wrote it \(format 2; this one reads 1\)"):
            read_header(packed)
        assert kind(packed) == "newer"

    @pytest.mark.parametrize("length", [1, 8, 9, 23, 24, 100, 150])
    def test_a_truncated_one_is_damaged(self, length: int) -> None:
        assert kind(pack_header(header())[:length]) == ("foreign" if length < len(MAGIC) else "damaged")

    def test_half_of_it_is_enough(self) -> None:
        packed = pack_header(header())
        assert read_header(packed[: HEADER_BYTES // 2]) == header()
        assert read_header(bytes(HEADER_BYTES // 2) + packed[HEADER_BYTES // 2 :]) == header()

    def test_a_damaged_bit_costs_nothing(self) -> None:
        packed = pack_header(header())
        for bit in range(0, HEADER_BYTES * 8, 7):
            assert read_header(flipped(packed, bit)) == header()

    def test_two_of_them_are_seen(self) -> None:
        packed = pack_header(header())
        half = HEADER_BYTES * 8 // 2
        for bit in range(150 * 8):
            assert kind(flipped(flipped(packed, bit), half + bit)) in ("damaged", "foreign", "newer")

    @pytest.mark.parametrize(
        "fields",
        [{"index": 0}, {"size": 100}, {"size": LARGEST_SEGMENT + 1}, {"salt": -1}, {"salt": 1 << 32}],
    )
    def test_what_cannot_be_is_damaged(self, fields: dict[str, int]) -> None:
        assert kind(pack_header(header(**fields))) == "damaged"

    def test_a_whole_one_of_other_fields_is_damaged(self) -> None:
        what = msgspec.msgpack.encode({"producer": 5})
        fixed = pack_header(header())[:16] + len(what).to_bytes(4, "big")
        assert kind(fixed + crc32(what, crc32(fixed)).to_bytes(4, "big") + what) == "damaged"


class TestReading:
    def test_entries_come_back_in_order(self) -> None:
        assert entries(segment(*FIVE)) == FIVE
        found = survey(segment(*FIVE))
        assert (list(found.stored), found.first, found.last, found.unsettled()) == ([(1, 5)], 1, 5, 5)
        assert found.damage == Damage()

    def test_nothing_is_nothing(self) -> None:
        for data in (segment(), b"", pack_header(header())):
            found = survey(data)
            assert (entries(data), found.first, found.last, found.unsettled(), found.missing()) == ([], 0, 0, 0, [])
            assert found.damage == Damage()

    def test_what_damage_hides_at_the_beginning_is_missing_when_no_segment_has_gone(self) -> None:
        found = survey(flipped(segment(*FIVE), (HEADER_BYTES + FRAME_BYTES + 1) * 8))
        assert (list(found.stored), found.missing(), found.missing(whole=True)) == ([(2, 5)], [], [(1, 1)])
        assert survey(segment(*FIVE[1:])).missing(whole=True) == []

    def test_what_is_settled_is_left_out_wherever_that_is_said(self) -> None:
        data = segment(*FIVE[:3], [(1, 2)], *FIVE[3:]), segment([(4, 4), (90, 99)])
        assert numbers(*data) == [3, 5]
        found = survey(*data)
        assert (found.unsettled(), found.first, found.last, found.missing()) == (2, 1, 5, [])

    def test_what_was_dropped_is_undeclared_until_a_later_settlement_says_otherwise(self) -> None:
        dropped = pack_settlement([(2, 9), (20, 20)], SALT, undeclared=True)
        data = pack_header(header()) + b"".join([frame(FIVE[0]), dropped, frame([(1, 1), (3, 5)]), frame(stored(30))])
        found = survey(data)
        assert list(found.settled) == [(1, 9), (20, 20)]
        assert list(found.undeclared) == [(2, 2), (6, 9), (20, 20)]
        assert numbers(data) == [30]

    def test_the_later_copy_of_a_number_is_the_one(self) -> None:
        again = stored(3, b"again")
        expected = [*FIVE[:2], again, *FIVE[3:]]
        assert entries(segment(*FIVE[:3], again, *FIVE[3:])) == expected
        assert entries(segment(*FIVE[:3]), segment(again, *FIVE[3:])) == expected
        assert entries(segment(*FIVE[:3], again)) == expected[:3]
        assert survey(segment(*FIVE[:3], again)).unsettled() == 3
        assert survey(segment(*FIVE[:3], again)).damage == Damage()

    def test_numbers_that_fall_are_damage(self) -> None:
        data = segment(FIVE[0], FIVE[3], FIVE[1], FIVE[4])
        assert numbers(data) == [1, 4, 5]
        found = survey(data)
        assert (list(found.stored), found.missing(), found.damage.places) == ([(1, 1), (4, 5)], [(2, 3)], 1)

    def test_what_is_neither_stored_nor_settled_is_missing(self) -> None:
        data = segment(stored(10), [(12, 13)], stored(20), stored(21), stored(30))
        found = survey(data)
        assert found.missing() == [(11, 11), (14, 19), (22, 29)]
        assert found.unsettled() == 4

    def test_a_cursor_skips_what_lies_below(self) -> None:
        reader = EntryReader()
        reader.restart(4)
        assert entries(segment(*FIVE), reader=reader) == FIVE[3:]
        assert reader.cursor == 6
        reader.restart(2)
        assert entries(segment(*FIVE), reader=reader) == FIVE[1:]

    def test_numbers_may_be_large_and_not_absurd(self) -> None:
        large = stored((1 << 63) - 1)
        assert entries(segment(FIVE[0], large)) == [FIVE[0], large]
        absurd = [Entry(seq, FIVE[0].record) for seq in (-1, 1 << 63, (1 << 64) - 1)]
        assert numbers(segment(FIVE[0], *absurd, FIVE[1])) == [1, 2]
        assert survey(segment(FIVE[0], *absurd, FIVE[1])).damage.places == 3

    @pytest.mark.parametrize(
        "body",
        [
            b"\xc0\x01",
            b"\x91\x01\x02",
            b"\x92\xa1x\xc0",
            b"\x92\xc4\x01",
            b"\x81\x01\x02",
            b"\xdd\xff\xff\xff\xff\x01",
            b"\xff\xff",
            b"\x91" * 50_000,
            b"\x94\x05" + b"\x91" * 50_000 + b"\x01",
            b"\x81\x01" * 25_000,
            msgspec.msgpack.encode([0]),
            msgspec.msgpack.encode([0, 1]),
            msgspec.msgpack.encode([0, [[1]]]),
            msgspec.msgpack.encode([0, [[2, 1]]]),
            msgspec.msgpack.encode([0, [[0, 1]]]),
            msgspec.msgpack.encode([0, [[1, 1 << 63]]]),
            msgspec.msgpack.encode([0, [[1, 1]], "yes"]),
            b"\x92\x00" + b"\x91" * 50_000,
            msgspec.msgpack.encode([0, [[n, n] for n in range(20_000)]]),
        ],
        ids=lambda body: body[:6].hex(),
    )
    def test_a_whole_frame_that_says_nothing_is_counted(self, body: bytes) -> None:
        data = pack_header(header()) + frame(FIVE[0]) + pack_frame(body, SALT) + frame(FIVE[1])
        assert numbers(data) == [1, 2]
        found = survey(data)
        assert found.unsettled() == 2
        assert (found.damage.places, found.damage.bytes) == (1, len(body))

    def test_an_entry_of_another_shape_is_counted_when_it_is_read(self) -> None:
        data = segment(FIVE[0]).rstrip(b"\0") + pack_frame(msgspec.msgpack.encode([2, ["x"]]), SALT) + frame(FIVE[2])
        reader = EntryReader()
        assert entries(data, reader=reader) == [FIVE[0], FIVE[2]]
        assert reader.undecodable == 1

    def test_the_longest_settlement_that_is_written_is_read(self) -> None:
        wide = [(n, n) for n in range((1 << 63) - 2 * MOST_RANGES_A_FRAME, (1 << 63) - 1, 2)]
        assert len(wide) == MOST_RANGES_A_FRAME
        assert list(survey(segment(wide)).settled) == wide


class TestDamage:
    """A segment of five entries; each test damages it."""

    DATA = segment(*FIVE, size=16384)
    FRAMES = tuple(frame(entry) for entry in FIVE)

    def test_a_damaged_bit_costs_the_frame_that_it_is_in(self) -> None:
        at = HEADER_BYTES
        for entry, one in zip(FIVE, self.FRAMES, strict=True):
            for bit in range(at * 8, (at + len(one)) * 8):
                data = flipped(self.DATA, bit)
                assert entries(data) == [other for other in FIVE if other is not entry]
                assert survey(data).damage == Damage(1, len(one))
            at += len(one)

    def test_a_damaged_bit_behind_the_last_frame_costs_nothing(self) -> None:
        end = HEADER_BYTES + sum(map(len, self.FRAMES))
        for bit in range(end * 8, end * 8 + 200):
            assert entries(flipped(self.DATA, bit)) == FIVE
        assert survey(flipped(self.DATA, end * 8 + 8)).damage == Damage(1, 2)

    def test_a_torn_tail_costs_the_last_frame(self) -> None:
        end = HEADER_BYTES + sum(map(len, self.FRAMES))
        for lost in range(1, len(self.FRAMES[-1])):
            for data in (self.DATA[: end - lost], self.DATA[: end - lost].ljust(16384, b"\0")):
                assert entries(data) == FIVE[:4]
                assert survey(data).damage.places == 1

    def test_zeros_in_the_middle_cost_what_was_there(self) -> None:
        """A power cut may leave a page unwritten between two that were."""
        begin = HEADER_BYTES + len(self.FRAMES[0])
        for size in (1, 9, len(self.FRAMES[1]), len(self.FRAMES[1] + self.FRAMES[2])):
            data = self.DATA[:begin] + bytes(size) + self.DATA[begin + size :]
            assert numbers(data) == ([1, 3, 4, 5] if size <= len(self.FRAMES[1]) else [1, 4, 5])
            assert survey(data).damage.places == 1

    def test_garbage_between_frames_is_skipped(self) -> None:
        garbage = [b"x", MARKER, MARKER * 9, MARKER + b"\0\0\0\x10", MARKER + b"\xff" * 8, frame(FIVE[1], SALT + 1)]
        data = pack_header(header()) + b"".join(one + frame(entry) for one, entry in zip(garbage, FIVE, strict=False))
        assert entries(data) == FIVE
        assert survey(data).damage == Damage(5, sum(map(len, garbage[:5])))

    def test_frames_of_another_segment_are_none(self) -> None:
        assert survey(pack_header(header()) + frame(FIVE[0], SALT ^ 1)).damage.places == 1

    def test_an_event_that_holds_frames_cannot_bring_them_to_life(self) -> None:
        """Whoever writes the events does not know the salt: what is in a damaged frame stays there."""
        forged = frame(stored(99), salt=0) + frame([(1, 1 << 40)], salt=0)
        data = bytearray(segment(FIVE[0], stored(2, forged), FIVE[2]))
        data[HEADER_BYTES + len(self.FRAMES[0]) + 7] ^= 1
        assert numbers(bytes(data)) == [1, 3]
        assert list(survey(bytes(data)).settled) == []

    def test_a_frame_that_is_longer_than_the_segment_is_none(self) -> None:
        data = self.DATA[:HEADER_BYTES] + MARKER + b"\xff\xff\xff\xff" + bytes(4) + self.DATA[HEADER_BYTES:]
        assert entries(data) == FIVE

    def test_a_long_tail_of_garbage_is_measured(self) -> None:
        data = segment(*FIVE, size=300_000)
        noise = data[:200_000] + b"x" + data[200_001:]
        assert survey(noise).damage.bytes == 200_001 - HEADER_BYTES - sum(map(len, self.FRAMES))


class TestWork:
    """Bytes that were made to be slow or large are neither."""

    @pytest.mark.parametrize(
        "hostile",
        [
            MARKER + b"\x00\x01\xff\xff" + b"1234",  # each says that it is long
            MARKER + b"\x00\x07\xff\xff" + b"1234",
            frame(stored(1)) + MARKER + b"\x00\x07\xff\xff" + b"1234",  # each whole frame is followed by such a one
            MARKER + b"\x00\x00\x40\x00" + b"1234" + b"y" * 10,
        ],
    )
    def test_checking_is_bounded(self, hostile: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        size = 1 << 20
        data = (hostile * (size // len(hostile) + 1))[:size]
        checked = 0

        def counting(piece: bytes, salt: int) -> int:
            nonlocal checked
            checked += len(piece)
            return crc32(piece, salt)

        monkeypatch.setattr(module, "crc32", counting)
        list(bodies(data, 0, SALT, Damage()))
        assert checked < 12 * size

    def test_good_frames_are_found_behind_it(self) -> None:
        hostile = (MARKER + b"\x00\x01\xff\xff" + b"1234") * 20_000
        many = b"".join(frame(stored(seq)) for seq in range(1, 1001))
        found = survey(pack_header(header()) + hostile + many)
        assert (found.first, found.last, found.unsettled()) == (1, 1000, 1000)

    @pytest.mark.parametrize(
        "item",
        [[(n, n) for n in range(1, 3000, 3)], stored(1), stored(1, b"p" * 5000)],
        ids=["settlements", "entries", "large entries"],
    )
    def test_memory_is_a_small_multiple(self, item: Entry | Sequence[tuple[int, int]]) -> None:
        one = frame(item)
        data = pack_header(header()) + one * ((1 << 18) // len(one))
        tracemalloc.start()
        try:
            survey(data)
            entries(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(data)

    def test_ranges_are_bounded(self) -> None:
        found = survey(*[segment([(n, n) for n in range(k, k + 2000, 2)]) for k in range(1, 400_000, 4000)])
        assert len(found.settled) <= 100_000
