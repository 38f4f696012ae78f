"""Frames: what is packed is what is read back, whatever else is read is refused, and who may share one."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamll.errors import DecodeError
from streamll.wire.frame import ALONE, MOST_BYTES, MOST_EVENTS, divide, pack, unpack

PAYLOADS = st.lists(st.binary(max_size=40), min_size=1, max_size=40)


@given(PAYLOADS)
@example([b""])
@example([b"x"] * 70_000)
@example([b"x" * 70_000, b"y"])
def test_what_is_packed_is_read_back(payloads: list[bytes]) -> None:
    assert unpack(pack(payloads), len(payloads)) == payloads
    assert unpack(pack(tuple(payloads)), len(payloads)) == payloads


@given(PAYLOADS, st.integers(0, 100))
def test_an_envelope_that_says_another_count_is_not_believed(payloads: list[bytes], count: int) -> None:
    if count != len(payloads):
        with pytest.raises(DecodeError, match="where its envelope says"):
            unpack(pack(payloads), count)


def test_a_frame_of_nothing_is_refused() -> None:
    with pytest.raises(DecodeError, match="0 events"):
        unpack(pack([]), 0)


@given(PAYLOADS, st.data())
def test_a_frame_that_was_cut_or_added_to_is_refused(payloads: list[bytes], data: st.DataObject) -> None:
    frame = pack(payloads)
    with pytest.raises(DecodeError):
        unpack(frame[: data.draw(st.integers(0, len(frame) - 1))], len(payloads))
    with pytest.raises(DecodeError):
        unpack(frame + data.draw(st.binary(min_size=1, max_size=5)), len(payloads))


@given(st.binary(max_size=200), st.integers(0, 2**40))
@example(b"\xdd\xff\xff\xff\xff" + b"\xc4\x00", 2**32 - 1)
@example(b"\x92\xa1a\xa1b", 2)
@example(b"\x91\x91\xc4\x00", 1)
@example(b"\x91\xc6\xff\xff\xff\xff", 1)
@example(b"\xdc\x00", 0)
@example(b"\xdc\x00", 2)
def test_hostile_bytes_are_a_list_of_events_or_refused(frame: bytes, count: int) -> None:
    try:
        found = unpack(frame, count)
    except DecodeError as refusal:
        said = str(refusal)
    else:
        said = ""
        assert len(found) == count
        assert msgspec.msgpack.decode(frame) == found
    assert len(said) < 300


def test_no_memory_is_taken_for_what_a_frame_claims() -> None:
    claimed = 50_000_000
    frame = b"\xdd" + claimed.to_bytes(4, "big") + b"\xc4\x00" * 10
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="50,000,000 events in 25 bytes"):
            unpack(frame, claimed)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def places(parts: list[slice]) -> list[list[int]]:
    return [list(range(part.start, part.stop)) for part in parts]


def test_consecutive_events_share_a_frame() -> None:
    assert divide([], []) == []
    assert places(divide([7], [10])) == [[0]]
    assert places(divide([7, 8, 9], [10, 10, 10])) == [[0, 1, 2]]
    assert places(divide([7, 8, 10, 11, 13], [10] * 5)) == [[0, 1], [2, 3], [4]]


def test_only_events_of_one_kind_share_a_frame() -> None:
    assert places(divide([1, 2, 3, 4], [1] * 4, ["a", "a", "b", "a"])) == [[0, 1], [2], [3]]
    assert places(divide([1, 2, 3, 4], [1] * 4, ["a", ALONE, ALONE, "a"])) == [[0], [1], [2], [3]]
    assert places(divide([1, 2], [1] * 2, ["", ""])) == [[0, 1]]


def test_a_frame_is_bounded() -> None:
    count = 2 * MOST_EVENTS + 1
    parts = divide(list(range(1, count + 1)), [1] * count)
    assert [part.stop - part.start for part in parts] == [MOST_EVENTS, MOST_EVENTS, 1]
    half = MOST_BYTES // 2
    assert places(divide([1, 2, 3], [half, half, half])) == [[0, 1], [2]]
    assert places(divide([1, 2, 3], [half, half + 1, half - 1])) == [[0], [1, 2]]


def test_what_is_too_large_by_itself_stands_alone() -> None:
    assert places(divide([1, 2, 3, 4, 5], [1, 1, MOST_BYTES + 1, 1, 1])) == [[0, 1], [2], [3, 4]]


@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.sampled_from([0, 1, MOST_BYTES // 3, MOST_BYTES + 1]), st.sampled_from("ab-")),
        max_size=30,
    ),
    st.booleans(),
)
def test_a_batch_is_divided_without_a_hole(events: list[tuple[int, int, str]], told: bool) -> None:
    numbers = list(accumulate(step for step, _, _ in events))
    sizes = [size for _, size, _ in events]
    kinds = [ALONE if kind == "-" else kind for _, _, kind in events] if told else None
    parts = divide(numbers, sizes, kinds)
    assert [place for part in places(parts) for place in part] == list(range(len(events)))
    for part in parts:
        if part.stop - part.start > 1:
            assert numbers[part.stop - 1] - numbers[part.start] == part.stop - part.start - 1
            assert sum(sizes[part]) <= MOST_BYTES
            assert kinds is None or (len(set(kinds[part])) == 1 and kinds[part.start] is not ALONE)
