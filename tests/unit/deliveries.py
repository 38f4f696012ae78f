"""Entries for the tests of delivery."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from streamll.delivery.outcome import Entry
from streamll.models import Record


def record(payload: bytes = b"x", *, created: int = 0, poison: str = "", event_id: str = "") -> Record:
    """An encoded event, of which only these are looked at."""
    return Record(payload, "application/msgpack", event_id, "t", "", "", "", "", "", 0, created, poison)


def entry(seq: int, *, created: int = 0, poison: str = "", size: int = 1) -> Entry:
    """An accepted one, created at so many monotonic nanoseconds."""
    return Entry(seq, record(b"x" * size, created=created, poison=poison))


def entries(*seqs: int) -> list[Entry]:
    return [entry(seq) for seq in seqs]


@contextmanager
def untraced() -> Iterator[None]:
    """A block in which a signal handler may raise: in the middle of a coverage tool it would leave its lock locked."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


def seqs(of: Sequence[Entry] | Sequence[tuple[Entry, str]]) -> list[int]:
    """The numbers of entries, or of entries dropped with a reason."""
    return [(item[0] if isinstance(item, tuple) else item).seq for item in of]
