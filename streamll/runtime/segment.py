"""The bytes of a segment: a header, and frames that each hold one entry or one settlement.

What belongs here: bytes in, bytes out, and what is to be made of bytes that are not what they should be. What does not:
files, mappings, leases, clocks (segment_file.py, journal.py, lease.py, spool.py).

A segment is as long as it will ever be from the beginning, and zero where nothing has been written yet:

    header      8 KiB: the same block of at most 4 KiB twice, so that one damaged bit costs nothing
      block     magic (8), version (u16), zero (u16), bytes of the header (u32), bytes of the map (u32), CRC-32 of all
                of these and the map (u32), and a MessagePack map: the fields of `Header`
    frames      one behind the other, without padding
      frame     marker C1 A5, bytes of the body (u32), CRC-32 of the body (u32), body
      body      a MessagePack array. Its first element is a sequence number: then the array is an `Entry`. Or it is 0:
                then it is a settlement, [0, [[first, last], ...], undeclared]: ranges of numbers whose fate is known, and
                which must never be delivered again.

All integers are big-endian. The CRC of a body begins with the segment's salt, a random number in its header: bytes that
happen to look like a frame (an event may carry any bytes, those of a segment too) are none, wherever the reader has to
look for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from zlib import crc32

import msgspec

from streamll.delivery.outcome import Entry
from streamll.errors import StreamllError
from streamll.ranges import RangeSet

VERSION = 1
"""The version of segments that this module writes, and the highest that it reads."""

MAGIC = b"\x89SLLSEG\n"
HEADER_BYTES = 8192
MARKER = b"\xc1\xa5"
"""Begins a frame. MessagePack never uses C1, and neither does UTF-8."""

LEAST_SEGMENT = 64 * 1024
"""Bytes of the smallest segment."""

LARGEST_SEGMENT = 1 << 30
"""Bytes of the largest segment; a file that says it is longer is taken for damaged, rather than read into memory."""

MOST_RANGES_A_FRAME = 1000
"""Ranges in one settlement, at most."""

EMPTY, FOREIGN, NEWER, DAMAGED = "empty", "foreign", "newer", "damaged"

_BLOCK_BYTES = HEADER_BYTES // 2
_BLOCK = Struct(">8sHHII")
_CRC = Struct(">I")
_FRAME = Struct(">2sII")
FRAME_BYTES = _FRAME.size
_LONGEST_SETTLEMENT = 32 * 1024
_MOST_RANGES = 100_000  # that a survey remembers of each kind: what is on disk may say anything
_NUMBERS = 1 << 63
_MARKER_BEGINS = MARKER[:1]
_ZEROS = bytes(64 * 1024)
_CREDIT_A_BYTE = 8

encode_entry = msgspec.msgpack.Encoder().encode
"""An entry as the body of a frame."""

_pack_frame = _FRAME.pack
_encode = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode


class _Number(msgspec.Struct, array_like=True, gc=False):
    """The first element of a body; the others are skipped."""

    seq: int


_decode_number = msgspec.msgpack.Decoder(_Number).decode


class _Settlement(msgspec.Struct, array_like=True, gc=False):
    """What is said by a body that begins with 0."""

    zero: int
    ranges: list[tuple[int, int]]
    undeclared: bool = False


_decode_settlement = msgspec.msgpack.Decoder(_Settlement).decode
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class SegmentError(StreamllError):
    """Raised when bytes are not a segment that this version can read.

    Attributes:
        kind: "empty" (nothing but zeros), "foreign" (something else), "newer" (written by a newer version) or "damaged".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment says of itself.

    Attributes:
        producer: Whose entries these are: the id under which they are to be delivered.
        destination: Where they go, as it is shown: without credentials.
        url: Where they go, as a URL that a replay can use, without credentials; empty when there is none.
        durability: "process" or "disk".
        index: The place of the segment among its producer's, from 1.
        size: The bytes of the whole segment.
        salt: Begins the CRC of every frame.
        pid, host, created: Who made it, where, and when, in nanoseconds since the epoch.
    """

    producer: str
    destination: str
    url: str
    durability: str
    index: int
    size: int
    salt: int
    pid: int
    host: str
    created: int


_decode_header = msgspec.msgpack.Decoder(Header).decode


def pack_header(header: Header) -> bytes:
    """Return the first `HEADER_BYTES` of a segment.

    Raises:
        ValueError: When it says more than a header can hold.
    """
    what = _encode(header)
    if len(what) > _BLOCK_BYTES - _BLOCK.size - _CRC.size:
        raise ValueError(f"a segment's header holds {_BLOCK_BYTES} bytes; this one needs {len(what)}")
    fixed = _BLOCK.pack(MAGIC, VERSION, 0, HEADER_BYTES, len(what))
    block = fixed + _CRC.pack(crc32(what, crc32(fixed))) + what
    return block.ljust(_BLOCK_BYTES, b"\0") * 2


def read_header(data: bytes) -> Header:
    """Read the header of a segment.

    Args:
        data: The first `HEADER_BYTES` of a file, or fewer when it is shorter.

    Raises:
        SegmentError: When there is none that this version can read; `kind` says why.
    """
    if not data.strip(b"\0"):
        raise SegmentError(EMPTY, "it is empty")
    try:
        return _read_block(data[:_BLOCK_BYTES])
    except SegmentError as error:
        try:
            return _read_block(data[_BLOCK_BYTES:HEADER_BYTES])
        except SegmentError as other:
            # The one that knows more: a damaged magic looks like something foreign.
            raise (error if other.kind == FOREIGN else other) from None


def _read_block(block: bytes) -> Header:
    if not block.startswith(MAGIC):
        raise SegmentError(FOREIGN, "it is no segment of streamll")
    begin = _BLOCK.size + _CRC.size
    if len(block) < begin:
        raise SegmentError(DAMAGED, "its header is cut off")
    _, version, _, _, length = _BLOCK.unpack_from(block)
    (check,) = _CRC.unpack_from(block, _BLOCK.size)
    what = block[begin : begin + length]
    if version > VERSION:
        raise SegmentError(NEWER, f"a newer version of streamll wrote it (format {version}; this one reads {VERSION})")
    if len(what) != length or crc32(what, crc32(block[: _BLOCK.size])) != check:
        raise SegmentError(DAMAGED, "its header is damaged")
    try:
        header = _decode_header(what)
    except _UNDECODABLE:
        raise SegmentError(DAMAGED, "its header is not what one says") from None
    if header.index < 1 or not HEADER_BYTES <= header.size <= LARGEST_SEGMENT or not 0 <= header.salt < 1 << 32:
        raise SegmentError(DAMAGED, "its header says what cannot be")
    return header


def pack_frame(body: bytes, salt: int) -> bytes:
    """Return the frame around a body, as one bytes object: it is to be stored in one step."""
    return _pack_frame(MARKER, len(body), crc32(body, salt)) + body


def pack_settlement(ranges: Sequence[tuple[int, int]], salt: int, undeclared: bool = False) -> bytes:
    """Return the frame that says: the fate of the numbers in these inclusive ranges is known.

    Args:
        ranges: At most `MOST_RANGES_A_FRAME`.
        salt: The segment's.
        undeclared: Whether they were dropped, and no reader has been told yet. A later settlement of the same numbers
            says that it has.
    """
    return pack_frame(_encode((0, ranges, undeclared)), salt)


def frame_length(start: bytes) -> int:
    """The bytes that a frame says it has, from its first `FRAME_BYTES`."""
    length: int = _FRAME.unpack(start)[1]
    return FRAME_BYTES + length


@dataclass
class Damage:
    """What could not be read.

    Attributes:
        places: Stretches of bytes that were skipped, and frames that are whole but say nothing that can be.
        bytes: How many bytes these are.
    """

    places: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        """Count one more place of so many bytes."""
        self.places += 1
        self.bytes += size


def bodies(data: bytes, start: int, salt: int, damage: Damage) -> Iterator[bytes]:
    """The bodies of all whole frames, in order; what is between them is skipped and counted.

    Zeros mean the end, unless a frame follows: a power cut may leave a page unwritten between two that were.

    Args:
        data: A segment, or as much of it as there is.
        start: Where the frames begin in it.
        salt: The segment's.
        damage: Is told what was skipped.
    """
    unpack = _FRAME.unpack_from
    size = len(data)
    last = size - FRAME_BYTES
    # Bytes that may still be checked in vain: all there is once, and some for every byte that was searched. Without a
    # bound, bytes that look like many long frames would take the square of their length.
    credit = size
    lost = -1  # where what cannot be read began
    at = start
    while at <= last:
        marker, length, check = unpack(data, at)
        end = at + FRAME_BYTES + length
        if marker == MARKER and 1 < length <= credit and end <= size:
            body = data[at + FRAME_BYTES : end]
            if crc32(body, salt) == check:
                if lost >= 0:
                    damage.add(at - lost)
                    lost = -1
                yield body
                at = end
                continue
            credit -= length
        if lost < 0:
            lost = at
        found = data.find(_MARKER_BEGINS, at + 1)  # one byte: ten times as fast over zeros as two
        if found < 0:
            break
        credit += (found - at) * _CREDIT_A_BYTE
        at = found
    skipped = _written(data, at if lost < 0 else lost)
    if skipped:
        damage.add(skipped)


def _written(data: bytes, start: int) -> int:
    """How many bytes there are from `start` to the last one that is not zero."""
    end = len(data)
    while end > start:
        begin = max(start, end - len(_ZEROS))
        if data[begin:end] != _ZEROS[: end - begin]:
            return begin + len(data[begin:end].rstrip(b"\0")) - start
        end = begin
    return 0


class Survey:
    """What the segments of a producer hold, by their numbers only: which entries are there, and which are settled.

    Attributes:
        stored: The numbers of the entries.
        settled: The numbers whose fate is known.
        undeclared: Those of them that were dropped, and of which no reader has been told.
        first, last: The lowest and the highest number of an entry; 0 when there is none.
        damage: What could not be read.
    """

    def __init__(self) -> None:
        self.stored = RangeSet(limit=_MOST_RANGES)
        self.settled = RangeSet(limit=_MOST_RANGES)
        self.undeclared = RangeSet(limit=_MOST_RANGES)
        self.first = self.last = 0
        self.damage = Damage()

    def add(self, data: bytes, start: int, salt: int) -> None:
        """Look at the next segment.

        Args:
            data, start, salt: As for `bodies`.
        """
        damage = self.damage
        first, last = 1, 0  # the run of numbers that is not in `stored` yet
        for body in bodies(data, start, salt, damage):
            if not body[1]:
                self._settle(body)
                continue
            seq = _number_of(body)
            # Entries come in the order of their numbers. The same once more is a later copy; a lower one is damage.
            if seq == last + 1 and first <= last:
                last = seq
            elif self.last < seq < _NUMBERS:
                self.stored.add(first, last)
                first = last = seq
            elif not seq or seq != self.last:
                damage.add(len(body))
                continue
            self.last = seq
        self.stored.add(first, last)
        self.first = next(iter(self.stored), (0, 0))[0]

    def _settle(self, body: bytes) -> None:
        try:
            if len(body) <= _LONGEST_SETTLEMENT:
                said = _decode_settlement(body)
                if not said.zero and all(0 < first <= last < _NUMBERS for first, last in said.ranges):
                    change = self.undeclared.add if said.undeclared else self.undeclared.remove
                    for first, last in said.ranges:
                        self.settled.add(first, last)
                        change(first, last)
                    return
        except _UNDECODABLE:
            pass
        self.damage.add(len(body))

    def unsettled(self) -> int:
        """How many entries are to be delivered."""
        return self.stored.without(self.settled).count()

    def missing(self, whole: bool = False) -> list[tuple[int, int]]:
        """The ranges up to the last number that are neither stored nor settled.

        Args:
            whole: Whether no segment has gone yet: then the first number was 1 if damage hides it; else the first that is
                there.
        """
        first = 1 if whole and self.damage.places else self.first
        between = RangeSet([(first, self.last)] if self.first else [])
        return list(between.without(self.stored.joined(self.settled)))


def _number_of(body: bytes) -> int:
    """The number of the entry in a body; 0 when it has none that can be."""
    try:
        return max(0, _decode_number(body).seq)
    except _UNDECODABLE:
        return 0


class EntryReader:
    """Entries in the order of their numbers, out of one segment after another.

    The same number twice: the later one is the one. So an entry is held back until the next one is there.

    Args:
        settled: Numbers that are not wanted; None: all are.

    Attributes:
        held: The entry read last; another copy of it may follow.
        cursor: The lowest number that is wanted next.
        damage: What could not be read.
        undecodable: How many entries are whole, but no entries of this version.
    """

    def __init__(self, settled: RangeSet | None = None) -> None:
        self._settled = settled
        self._highest = 0  # number read so far
        self.held: Entry | None = None
        self.cursor = 1
        self.damage = Damage()
        self.undecodable = 0

    def entries(self, data: bytes, start: int, salt: int) -> Iterator[Entry]:
        """The entries of a segment, or of a part of one that ends where a frame does; the last one stays behind.

        Args:
            data, start, salt: As for `bodies`.
        """
        decode = _decode_entry
        settled = self._settled
        for body in bodies(data, start, salt, self.damage):
            if not body[1]:
                continue
            try:
                entry = decode(body)
            except _UNDECODABLE:
                self.undecodable += 1
                continue
            seq = entry.seq
            if seq < self._highest or seq < 1 or seq >= _NUMBERS:
                continue
            self._highest = seq
            if seq < self.cursor or (settled is not None and seq in settled):
                continue
            held, self.held = self.held, entry
            if held is not None and held.seq < seq:
                self.cursor = held.seq + 1
                yield held

    def rest(self) -> Entry | None:
        """The entry that is held back: nothing is behind it."""
        held, self.held = self.held, None
        if held is not None:
            self.cursor = held.seq + 1
        return held

    def restart(self, cursor: int) -> None:
        """Forget what is held back; the next segment holds, or stands before, the number `cursor`."""
        self.held = None
        self.cursor = cursor
        self._highest = 0
