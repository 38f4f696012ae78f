"""The wire format of Redis: keys in one slot, and entries read back from whatever a client gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.errors import ConfigurationError, DecodeError
from streamll.wire.entry import WireEntry
from streamll.wire.frame import pack
from streamll.wire.redis import (
    Argument,
    Keys,
    decode_entries,
    decode_entry,
    decode_fields,
    hash_slot,
    keys_for,
)
from streamll.wire.redis_append import Items, Trim, xadd_commands

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = Keys(b"events", b"{events}:fence:p", b"events:dead-letter")


@pytest.mark.parametrize(
    ("key", "slot"),
    [  # as redis-server answers to CLUSTER KEYSLOT
        (b"foo", 12182),
        (b"bar", 5061),
        (b"{foo}bar", 12182),
        (b"x{foo}{bar}", 12182),
        (b"{}foo", 9500),
        (b"foo{bar", 15278),
        (b"123456789", 12739),
    ],
)
def test_the_slot_of_a_key(key: bytes, slot: int) -> None:
    assert hash_slot(key) == slot


@pytest.mark.parametrize("stream", ["events", "{tenant}:events", "a{b}c}d", "a{b", "{x}}", "événements", "a b"])
@pytest.mark.parametrize("cluster", [True, False])
def test_all_keys_are_in_the_slot_of_the_stream(stream: str, cluster: bool) -> None:
    keys = keys_for(stream, "0123456789abcdef", cluster=cluster)
    assert keys.stream == stream.encode()
    assert hash_slot(keys.fence) == hash_slot(keys.stream)
    assert keys.fence.endswith(b":fence:0123456789abcdef")
    if cluster:
        assert hash_slot(keys.dead_letters) == hash_slot(keys.stream)
    else:
        assert keys.dead_letters == keys.stream + b":dead-letter"


@pytest.mark.parametrize("stream", ["a}b", "}", "{}events", "a{}b", "}{"])
def test_a_key_that_no_other_can_share_a_slot_with_is_refused(stream: str) -> None:
    with pytest.raises(ConfigurationError, match="no other key can share its slot"):
        keys_for(stream, "p")


@given(st.text(min_size=1, max_size=20, alphabet="ab{}:"))
def test_keys_are_in_one_slot_or_refused(stream: str) -> None:
    try:
        keys = keys_for(stream, "p", cluster=True)
    except ConfigurationError:
        return
    assert hash_slot(keys.fence) == hash_slot(keys.stream) == hash_slot(keys.dead_letters)


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a key"):
        keys_for("", "p")


def test_a_dead_letter_stream_of_ones_own() -> None:
    assert keys_for("events", "p", "bad").dead_letters == b"bad"
    assert keys_for("{t}events", "p", "{t}bad", cluster=True).dead_letters == b"{t}bad"
    with pytest.raises(ConfigurationError, match=r"'\{events\}:dead-letter'"):
        keys_for("events", "p", "bad", cluster=True)
    with pytest.raises(ConfigurationError, match="must not be the stream itself"):
        keys_for("events", "p", "events")


@given(
    payload=st.binary(max_size=200),
    producer=TEXTS,
    seq=st.integers(0, 2**53),
    reason=TEXTS,
    decoded=st.booleans(),
)
def test_what_is_appended_is_read_back(payload: bytes, producer: str, seq: int, reason: str, decoded: bool) -> None:
    items = Items([seq], [payload], [reason])
    (command,) = xadd_commands(KEYS, producer.encode(), Trim(0), items)
    entry = decode_entry(fields_of(command, decoded))
    assert (entry.payload, entry.producer, entry.seq, entry.reason) == (payload, producer, seq, reason)


@given(st.lists(st.binary(max_size=30), min_size=2, max_size=20), TEXTS, st.integers(1, 2**53), st.booleans())
def test_a_frame_that_is_appended_is_read_back(payloads: list[bytes], producer: str, first: int, decoded: bool) -> None:
    items = Items([first], [pack(payloads)], counts=[len(payloads)])
    (command,) = xadd_commands(KEYS, producer.encode(), Trim(0), items)
    fields = fields_of(command, decoded)
    read = decode_entries(fields)
    assert read == [WireEntry(payload, producer, first + place) for place, payload in enumerate(payloads)]
    assert read == decode_fields([part for pair in fields_of(command, False).items() for part in pair])
    with pytest.raises(DecodeError, match="many events"):
        decode_entry(fields)


def fields_of(command: tuple[Argument, ...], decoded: bool) -> dict[Any, Any]:
    """The fields that an XADD without MAXLEN gives an entry; a client that decodes responses gives text."""
    flat = [str(word).encode() if isinstance(word, int) else word for word in command[3:]]
    words = [word.decode("utf-8", "surrogateescape") if decoded and isinstance(word, bytes) else word for word in flat]
    return dict(zip(words[0::2], words[1::2], strict=True))


@pytest.mark.parametrize(
    "lie",
    [
        {b"count": b"3"},
        {b"count": b"0"},
        {b"count": b"-2"},
        {b"count": b""},
        {b"seq": b"x"},
        {b"events": b""},
        {b"events": b"\x92\xc4\x01a"},
        {b"events": b"\xdd\xff\xff\xff\xff", b"count": b"4294967295"},
    ],
)
def test_a_frame_that_cannot_be_read(lie: dict[bytes, bytes]) -> None:
    fields = {b"events": pack([b"a", b"b"]), b"producer": b"p", b"seq": b"7", b"count": b"2"}
    assert [entry.seq for entry in decode_entries(fields)] == [7, 8]
    with pytest.raises(DecodeError):
        decode_entries({**fields, **lie})
    for name in (b"seq", b"count"):
        with pytest.raises(DecodeError, match=name.decode()):
            decode_entries({key: value for key, value in fields.items() if key != name})


def test_an_entry_of_somebody_else() -> None:
    entry = decode_entry({b"event": b"{}"})
    assert (entry.payload, entry.producer, entry.seq, entry.reason) == (b"{}", "", 0, "")
    assert decode_entry({b"event": b"", b"producer": b"\xff"}).producer == "\\xff"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({b"message": b"hello"}, "no field `event`"),
        ({}, "no field `event`"),
        ({b"events": b"...", b"seq": b"1"}, "many events"),
        ({b"event": b"x", b"seq": b"one"}, "not a number: 'one'"),
        ({b"event": b"x", b"seq": b"-1"}, "not a number"),
        ({b"event": b"x", b"seq": b""}, "not a number"),
        ({b"event": b"x", b"seq": b"1" * 5000}, "not a number"),
    ],
)
def test_an_entry_that_cannot_be_read(fields: dict[bytes | str, bytes | str], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_entry(fields)


@given(
    st.lists(st.sampled_from([b"event", b"events", b"producer", b"seq", b"count", b"reason", b"other"]), unique=True),
    st.binary(),
)
def test_fields_in_turn_are_read_as_a_map_of_them(names: list[bytes], value: bytes) -> None:
    """The way that is quick for what a sink writes, and the one for all else, see the same."""

    def read(how: Callable[[], Sequence[WireEntry]]) -> object:
        try:
            return list(how())
        except DecodeError as error:
            return str(error)

    for number in (value, b"7"):
        pairs: list[tuple[bytes, bytes]] = [(name, number if name == b"seq" else value) for name in names]
        flat = [part for pair in pairs for part in pair]
        assert read(partial(decode_fields, flat)) == read(partial(decode_entries, dict(pairs)))


def test_fields_as_a_sink_writes_them() -> None:
    flat = [b"event", b"{}", b"producer", b"p", b"seq", b"12"]
    assert list(decode_fields(flat)) == [WireEntry(b"{}", "p", 12)]
    with pytest.raises(DecodeError, match="not a number"):
        decode_fields([*flat[:5], b"-12"])
