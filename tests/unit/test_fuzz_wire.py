"""What readers make of entries, messages and lines that are anybody's: an entry or a DecodeError; and what follows from the
names and numbers in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.consumers.file import FileConsumer
from streamll.consumers.received import Received
from streamll.consumers.seen import SeenNumbers
from streamll.errors import DecodeError
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.views.audit import Audit
from streamll.views.audit_text import audit_lines
from streamll.views.line import HARMFUL
from streamll.views.notes import read_closing, read_gap
from streamll.wire.entry import WireEntry
from streamll.wire.file import dead_letter_line, event_line
from streamll.wire.rabbitmq import decode_message
from streamll.wire.redis import decode_entries, decode_entry, decode_fields

NAMES = st.sampled_from([b"event", b"producer", b"seq", b"reason", b"events", "event", "seq", b"", b"\xff", "\udcff"])
NUMBERS = st.sampled_from(
    [
        b"0",
        b"1",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"1_0",
        b"01",
        b"1.0",
        b"1e3",
        "²".encode(),
        "٣".encode(),
        b"\xff",
        b"9" * 20,
        b"9" * 21,
        b"9" * 5000,
        b"18446744073709551616",
        b"9223372036854775808",
        b"nan",
        b"",
        b"\0",
    ]
)
BYTES = st.one_of(st.binary(max_size=20), NUMBERS, st.just(b"{}"), st.just(b"\x81\xaaevent_type\xa1t"))
TEXTS = st.one_of(BYTES, st.text(st.characters(codec=None), max_size=10))

PRODUCERS = st.sampled_from(
    ["", "p", "p.q", "." * 50, "\x1b[31m", "p" * 256, "p" * 257, "p" * 100_000, "\0", "a\nb", "٣"]
)
SEQS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**20 - 1, -(2**63)]).flatmap(
        lambda number: st.integers(number - 3, number + 3)
    ),
)


def said(error: DecodeError, word: str = "") -> None:
    assert word in str(error)
    assert len(str(error)) < 200


def check(entry: WireEntry) -> None:
    assert type(entry.payload) is bytes
    assert type(entry.producer) is str
    assert type(entry.reason) is str
    assert type(entry.seq) is int
    assert 0 <= entry.seq < 10**20


@given(st.lists(st.one_of(NAMES, TEXTS), max_size=12), st.lists(st.tuples(NAMES, TEXTS), max_size=6))
def test_the_fields_of_a_redis_entry(flat: list[Any], pairs: list[tuple[Any, Any]]) -> None:
    reads: list[Callable[[], Sequence[WireEntry]]] = [
        lambda: decode_fields([item for item in flat if isinstance(item, bytes)]),
        lambda: decode_entries(dict(pairs)),
        lambda: [decode_entry(dict(pairs))],
    ]
    for read in reads:
        try:
            for entry in read():
                check(entry)
        except DecodeError as error:
            said(error)


@given(
    st.lists(st.binary(max_size=8), max_size=3),
    st.one_of(st.binary(max_size=30), NUMBERS),
    st.one_of(st.binary(max_size=30), NUMBERS),
)
def test_what_looks_like_a_sinks_own_entry(payload: list[bytes], producer: bytes, seq: bytes) -> None:
    try:
        (entry,) = decode_fields([b"event", b"".join(payload), b"producer", producer, b"seq", seq])
        check(entry)
    except DecodeError as error:
        said(error, "seq")


HEADERS = st.dictionaries(
    st.sampled_from(["producer", "seq", "reason", "events", "x"]),
    st.one_of(
        *(SEQS, st.text(max_size=5), st.binary(max_size=5), st.none(), st.booleans(), st.floats(), PRODUCERS),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    ),
    max_size=4,
)
IDENTS = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.builds("{}:{}".format, st.text(max_size=5), st.one_of(SEQS, st.text(max_size=3))),
)


@given(st.binary(max_size=20), st.one_of(st.none(), HEADERS), IDENTS)
def test_the_headers_of_a_message(body: bytes, headers: dict[str, Any] | None, ident: str | None) -> None:
    try:
        entry = decode_message(body, headers, ident)
    except DecodeError as error:
        said(error, "body" if not body and "events" not in (headers or {}) else "many events")
        return
    assert type(entry.payload) is bytes
    assert type(entry.producer) is str
    assert type(entry.reason) is str
    assert type(entry.seq) is int
    assert (entry.producer == "") == (entry.seq == 0)
    assert entry.seq >= 0


LINES = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(
        st.sampled_from(["producer", "seq", "reason", "payload_base64", "event_type", "data", "timestamp", "x"]),
        st.one_of(
            SEQS, PRODUCERS.filter(lambda text: len(text) < 300), st.none(), st.booleans(), st.just("e30="), st.just({})
        ),
        max_size=6,
    ).map(lambda fields: json.dumps(fields).encode()),
    st.builds(event_line, st.just(b'{"event_type":"t","producer":"other","seq":7}'), PRODUCERS, SEQS),
    st.builds(
        dead_letter_line, st.binary(max_size=20), PRODUCERS, SEQS, st.text(st.characters(codec=None), max_size=9)
    ),
)


@given(st.lists(LINES, max_size=8), st.binary(max_size=20), st.booleans(), st.integers(1, 200))
def test_the_lines_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], rest: bytes, decode: bool, most: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines) + rest)
    with FileConsumer(path, follow=False, decode=decode, notes=True, max_event_bytes=most, dedup_window=0) as consumer:
        items: list[Received] = list(consumer)
    assert len(items) <= path.read_bytes().count(b"\n") + 1
    for item in items:
        assert type(item.producer) is str
        assert isinstance(item.seq, int)
        assert (item.producer == "") == (item.seq == 0) or not decode
        assert len(item.error) < 400
        assert not (item.event is not None and item.error)


RANGES = st.one_of(
    st.lists(st.tuples(SEQS, SEQS), max_size=4),
    st.lists(st.one_of(SEQS, st.none(), st.text(max_size=2), st.lists(SEQS, max_size=3)), max_size=3),
    st.none(),
)


@st.composite
def notes(draw: st.DrawFn) -> StreamllEvent:
    """Notes that may be true, or anything but."""
    ranges: Any = draw(RANGES)
    try:
        total = sum(last - first + 1 for first, last in ranges or ())
    except (TypeError, ValueError):
        total = 1
    count = draw(st.one_of(st.just(total), SEQS, st.floats(), st.booleans()))
    reasons = draw(
        st.one_of(
            st.just({"overflow": total}),
            st.dictionaries(st.one_of(st.text(max_size=3), st.just("r" * 101), st.integers()), SEQS, max_size=3),
            st.lists(SEQS, max_size=2),
        )
    )
    data = {"count": count, "ranges": ranges, "reasons": reasons, "last": draw(st.one_of(SEQS, st.none(), st.text()))}
    return StreamllEvent(event_type=draw(st.sampled_from([GAP, CLOSING, "t"])), data=data)


@given(notes())
def test_a_note_is_believed_only_when_it_can_be(note: StreamllEvent) -> None:
    gap, last = read_gap(note), read_closing(note)
    if gap is not None:
        assert gap.count == sum(last - first + 1 for first, last in gap.ranges) == note.data["count"]
        assert [number for pair in gap.ranges for number in pair] == sorted(
            number for pair in gap.ranges for number in pair
        )
        assert gap.ranges[0][0] > 0
    if last is not None:
        assert last >= 0


STEPS = st.one_of(
    st.tuples(st.just("event"), PRODUCERS, SEQS, st.booleans()),
    st.tuples(st.just("letter"), PRODUCERS, SEQS),
    st.tuples(st.just("note"), PRODUCERS, SEQS, st.one_of(st.none(), notes())),
    st.tuples(st.just("cut")),
)


@given(st.lists(STEPS, max_size=25), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_an_audit_of_anything(steps: list[tuple[Any, ...]], ranges: int, producers: int, whole: bool) -> None:
    audit = Audit(most_ranges=ranges * 8, most_producers=producers)
    audit.whole = whole
    add: dict[str, Callable[..., None]] = {
        "event": audit.add,
        "letter": audit.add_dead_letter,
        "note": audit.add_note,
        "cut": audit.cut,
    }
    for kind, *rest in steps:
        add[kind](*rest)
    report = audit.report()
    lines = audit_lines(report)
    assert not any(HARMFUL.search(line) for line in lines)
    assert all(len(line) < 20_000 for line in lines)
    assert report.total.events <= len(steps)
    assert min(vars(report.total).values()) >= 0
    assert len(report.producers) <= producers


@given(st.lists(st.tuples(PRODUCERS, SEQS), max_size=40), st.integers(0, 8))
def test_numbers_that_were_seen(steps: list[tuple[str, int]], window: int) -> None:
    seen, known = SeenNumbers(window), set()
    for producer, seq in steps:
        new = seen.add(producer, seq)
        assert new or (producer, seq) in known
        known.add((producer, seq))
        assert len(seen) <= max(window, 0)


def test_many_numbers_in_the_worst_order_take_no_time_without_end() -> None:
    """Each is put in front of all that are there."""
    begun = time.process_time()
    audit, seen = Audit(most_ranges=20_000), SeenNumbers(20_000)
    for seq in range(100_000, 0, -2):
        audit.add("p", seq)
        seen.add("p", seq)
    assert len(audit) <= 20_000
    assert len(seen) <= 20_000
    assert time.process_time() - begun < 60  # it hangs, or it does not
