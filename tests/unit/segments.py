"""Segments for tests: made of entries and settlements, and read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streamll.delivery.outcome import Entry
from streamll.models import Record
from streamll.runtime.segment import (
    HEADER_BYTES,
    EntryReader,
    Header,
    Survey,
    encode_entry,
    pack_frame,
    pack_header,
    pack_settlement,
)

SALT = 0xC0FFEE


def header(**fields: Any) -> Header:
    said = {
        "producer": "p",
        "destination": "redis://h/0?stream=s",
        "url": "redis://h/0?stream=s",
        "pid": 7,
        "host": "h",
    }
    return Header(**{**said, "durability": "process", "index": 1, "size": 65536, "salt": SALT, "created": 5, **fields})


def stored(seq: int, payload: bytes = b"") -> Entry:
    """An entry that differs from every other."""
    record = Record(
        payload or b"payload %d" % seq, "application/msgpack", f"e{seq}", "tick", "", "", "", "", "", seq, 1
    )
    return Entry(seq, record)


def frame(item: Entry | Sequence[tuple[int, int]], salt: int = SALT) -> bytes:
    """The frame of an entry, or of a settlement."""
    return pack_frame(encode_entry(item), salt) if isinstance(item, Entry) else pack_settlement(item, salt)


def segment(*items: Entry | Sequence[tuple[int, int]], size: int = 65536) -> bytes:
    """A whole segment that holds these entries and settlements."""
    return (pack_header(header(size=size)) + b"".join(map(frame, items))).ljust(size, b"\0")


def survey(*segments: bytes) -> Survey:
    found = Survey()
    for data in segments:
        found.add(data, HEADER_BYTES, SALT)
    return found


def entries(*segments: bytes, reader: EntryReader | None = None) -> list[Entry]:
    """All entries of some segments that no settlement in them names."""
    reader = reader or EntryReader(survey(*segments).settled)
    found = [entry for data in segments for entry in reader.entries(data, HEADER_BYTES, SALT)]
    last = reader.rest()
    return found if last is None else [*found, last]


def numbers(*segments: bytes) -> list[int]:
    return [entry.seq for entry in entries(*segments)]
