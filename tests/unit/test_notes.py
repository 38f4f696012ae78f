"""The notes of sinks: in words when they can be believed, and never believed when they cannot be true."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.views.line import HARMFUL, format_event
from streamll.views.notes import describe, read_closing, read_gap, shown_ranges
from streamll.views.summary import summarise


def gap(ranges: Any, reasons: Any = None, count: Any = None) -> StreamllEvent:
    total = sum(last - first + 1 for first, last in ranges) if count is None else count
    return StreamllEvent(
        event_type=GAP,
        data={"count": total, "ranges": ranges, "reasons": {"overflow": total} if reasons is None else reasons},
    )


def closing(last: Any) -> StreamllEvent:
    return StreamllEvent(event_type=CLOSING, data={"last": last})


def test_a_gap() -> None:
    note = read_gap(gap([[501, 700], (703, 703)], {"overflow": 200, "expired": 1}))
    assert note is not None
    assert note.ranges == ((501, 700), (703, 703))
    assert note.count == 201


MALFORMED: list[StreamllEvent] = [
    StreamllEvent(event_type=GAP),
    StreamllEvent(event_type="other", data=gap([[1, 2]]).data),
    gap([], {}),
    gap([[1, 2]], count=3),
    gap([[1, 2]], count=True),
    gap([[1, 2]], count="2"),
    gap([[2, 1]], {"overflow": 1}, 1),
    gap([[0, 1]]),
    gap([[-5, 5]]),
    gap([[5, 6], [1, 2]]),
    gap([[1, 5], [5, 6]]),
    gap([[1, 2, 3]], count=2),
    gap([[1.0, 2.0]], count=2),
    gap([["1", "2"]], count=2),
    gap([[True, 2]], count=2),
    gap("12", count=2),
    gap({1: 2}, count=2),
    gap([5], count=1),
    gap([[1, 2]], {"overflow": 1}),
    gap([[1, 2]], {"overflow": 3, "expired": -1}),
    gap([[1, 2]], {"overflow": 2.0}),
    gap([[1, 2]], {1: 2}),
    gap([[1, 2]], {"x" * 101: 2}),
    gap([[1, 2]], ["overflow", 2]),
    gap([[1, 1000]], {str(n): 1 for n in range(1000)}),
]


@pytest.mark.parametrize("note", MALFORMED)
def test_a_gap_that_cannot_be_true_is_none(note: StreamllEvent) -> None:
    assert read_gap(note) is None
    assert describe(note) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_nonsense_is_never_a_gap_that_does_not_add_up(value: Any) -> None:
    for data in ({"ranges": value}, {"ranges": value, "count": value}, {"ranges": [value], "count": 1, "reasons": {}}):
        assert read_gap(StreamllEvent(event_type=GAP, data=data)) is None


def test_a_huge_range_costs_nothing() -> None:
    note = read_gap(gap([[1, 2**63]]))
    assert note is not None
    assert note.count == 2**63


def test_a_closing_record() -> None:
    assert read_closing(closing(7)) == 7
    assert read_closing(closing(0)) == 0
    assert all(read_closing(closing(last)) is None for last in (-1, True, "7", None, 1.0))
    assert read_closing(StreamllEvent(event_type=GAP, data={"last": 7})) is None


def test_in_words() -> None:
    assert describe(gap([[501, 700]])) == "200 events lost: overflow 200 (501-700)"
    assert describe(gap([[5, 5]], {"expired": 1}), "9f0c") == "1 event lost of producer 9f0c: expired 1 (5)"
    assert describe(closing(1234), "9f0c") == "producer 9f0c closed after 1,234 events"
    assert describe(closing(1)) == "a producer closed after 1 event"
    assert describe(StreamllEvent(event_type="span")) is None


def test_many_ranges_are_not_all_shown() -> None:
    many = [(n, n) for n in range(1, 30, 2)]
    assert shown_ranges(many) == "1, 3, 5, 7, 9 and 10 more"
    assert shown_ranges(many[:2], 15) == "1, 3 and 13 more"
    assert shown_ranges([(1, 2000)]) == "1-2,000"


def test_as_a_line() -> None:
    line = format_event(gap([[501, 700]]), producer="9f0c")
    assert line.endswith("200 events lost of producer 9f0c: overflow 200 (501-700)")
    assert format_event(closing(3)).endswith("a producer closed after 3 events")
    assert GAP in format_event(gap([[2, 1]], {}, 1))  # shown as it is


def test_as_a_line_that_harms_no_terminal() -> None:
    evil = "\x1b[2J\u202e\n"
    for note in (gap([[1, 2]], {evil: 2}), StreamllEvent(event_type=GAP, data={"ranges": evil})):
        assert not HARMFUL.search(format_event(note, producer=evil))


def test_in_a_summary() -> None:
    summary = summarise(
        [StreamllEvent(event_type="log"), gap([[1, 200]]), gap([[2, 1]], {}, 1), closing(9), closing(1)]
    )
    assert [row.operation for row in summary.operations()] == ["log"]
    assert (summary.lost, summary.closed) == (200, 2)
    assert summary.table().splitlines()[-1] == "events lost, as their sinks said: 200; sinks that ended: 2"
