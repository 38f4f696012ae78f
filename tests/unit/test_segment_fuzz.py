"""The reader of segments under bytes that nobody wrote, and under segments that something has happened to."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from streamll.delivery.outcome import Entry
from streamll.runtime.segment import (
    HEADER_BYTES,
    MAGIC,
    MARKER,
    Damage,
    SegmentError,
    bodies,
    pack_frame,
    pack_header,
    read_header,
)
from tests.unit.segments import SALT, entries, frame, header, numbers, segment, stored, survey

tokens = st.sampled_from(
    [MARKER, MAGIC, bytes(10), b"\xc1", b"\xff" * 4, frame(stored(3)), frame([(1, 5)]), b"\x91" * 99]
)
noise = st.lists(st.one_of(st.binary(max_size=40), tokens), max_size=20).map(b"".join)
payloads = st.binary(max_size=60)


def check(data: bytes) -> list[Entry]:
    """Read a segment both ways, and see that they agree."""
    with suppress(SegmentError):
        read_header(data[:HEADER_BYTES])
    found = survey(data)
    read = entries(data)
    seqs = [entry.seq for entry in read]
    assert seqs == sorted(set(seqs))
    assert all(seq in found.stored and seq not in found.settled for seq in seqs)
    assert len(read) <= found.unsettled()
    assert found.damage.bytes <= max(0, len(data) - HEADER_BYTES)
    return read


@given(noise)
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    check(data)
    check(pack_header(header()) + data)


@given(st.lists(noise, max_size=12))
def test_any_bodies_in_whole_frames(bodies_: list[bytes]) -> None:
    check(pack_header(header()) + b"".join(pack_frame(body, SALT) for body in bodies_))


@given(noise, st.binary(max_size=300))
def test_what_is_found_is_what_was_framed(before: bytes, body: bytes) -> None:
    """Whatever stands before a frame, it is found, if nothing before it claims its bytes with the right CRC."""
    damage = Damage()
    found = list(bodies(before + pack_frame(body, SALT), 0, SALT, damage))
    if len(body) > 1:
        assert found[-1] == body
    assert damage.bytes <= len(before) + len(body) + 10


@st.composite
def segments(draw: st.DrawFn) -> list[bytes]:
    """The frames of a segment: entries with gaps and repeats between their numbers, and settlements."""
    frames, seq = [], draw(st.integers(0, 1 << 40))
    for step in draw(st.lists(st.integers(0, 4), min_size=1, max_size=12)):
        seq += step
        frames.append(frame([(seq + 1, seq + 2)] if step == 4 else stored(max(1, seq), draw(payloads))))
    return frames


@given(segments(), st.data())
def test_a_damaged_bit_costs_one_frame(frames: list[bytes], data: st.DataObject) -> None:
    whole = pack_header(header()) + b"".join(frames)
    hit = data.draw(st.integers(0, len(frames) - 1))
    at = HEADER_BYTES + len(b"".join(frames[:hit]))
    bit = data.draw(st.integers(0, len(frames[hit]) * 8 - 1))
    changed = bytearray(whole)
    changed[at + bit // 8] ^= 1 << bit % 8
    without = pack_header(header()) + b"".join(frames[:hit] + frames[hit + 1 :])
    assert check(bytes(changed)) == check(without)


@given(segments(), segments(), st.data())
def test_cut_spliced_and_repeated(frames: list[bytes], others: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(pack_header(header()) + b"".join(frames))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(at, min(len(whole), at + 200)))
        piece = data.draw(st.one_of(st.sampled_from(others + frames), st.binary(max_size=20), st.just(bytes(50))))
        match data.draw(st.sampled_from(["cut", "put", "replace", "swap"])):
            case "cut":
                del whole[at:]
            case "put":
                whole[at:at] = piece
            case "replace":
                whole[at:end] = piece
            case _:
                whole[at:end] = reversed(whole[at:end])
    check(bytes(whole))


@given(segments(), st.integers(0, 5000))
def test_a_torn_tail_leaves_what_is_before_it(frames: list[bytes], lost: int) -> None:
    whole = pack_header(header()) + b"".join(frames)
    cut = max(HEADER_BYTES, len(whole) - lost)
    left, at = 0, HEADER_BYTES
    while left < len(frames) and at + len(frames[left]) <= cut:
        at += len(frames[left])
        left += 1
    assert numbers(whole[:cut].ljust(len(whole), b"\0")) == numbers(pack_header(header()) + b"".join(frames[:left]))


@given(segments(), segments())
def test_segments_are_read_one_behind_the_other(one: list[bytes], other: list[bytes]) -> None:
    both = [pack_header(header()) + b"".join(frames) for frames in (one, other)]
    found = survey(*both)
    assert len(numbers(*both)) <= found.unsettled()
    assert survey(segment()).unsettled() == 0
