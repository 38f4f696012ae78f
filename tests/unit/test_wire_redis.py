"""The wire format of Redis: keys in one slot, commands as they should be, entries read back from whatever a client gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.errors import ConfigurationError, DecodeError
from streamll.wire.entry import WireEntry
from streamll.wire.redis import (
    FENCE_SCRIPT,
    STEP,
    Argument,
    Keys,
    Trim,
    decode_entry,
    decode_fields,
    fence_command,
    fence_script_sha,
    hash_slot,
    keys_for,
    script_command,
    xadd_commands,
)

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


def test_the_script_is_known_by_the_hash_that_redis_gives_it() -> None:
    assert hashlib.sha1(FENCE_SCRIPT).hexdigest().encode() == fence_script_sha()


def test_the_command_of_the_script() -> None:
    items: list[Argument] = [7, b"seven", "", 8, b"eight", b"bad"]
    command = script_command(KEYS, b"p", 6, Trim(1000), items)
    assert command[:3] == (b"EVALSHA", fence_script_sha(), 3)
    assert command[3:6] == (KEYS.stream, KEYS.fence, KEYS.dead_letters)
    assert command[6:] == (b"p", 6, b"~", 1000, 2_592_000_000, *items)
    assert script_command(KEYS, b"p", 6, Trim(0, exact=True), items, whole=True)[:2] == (b"EVAL", FENCE_SCRIPT)


def test_the_commands_of_the_transaction() -> None:
    items: list[Argument] = [7, b"seven", "", 8, b"eight", "", 9, b"nine", b"bad"]
    fields = [(b"event", b"seven", b"producer", b"p", b"seq", 7), (b"event", b"eight", b"producer", b"p", b"seq", 8)]
    letter = (b"event", b"nine", b"producer", b"p", b"seq", 9, b"reason", b"bad")
    assert xadd_commands(KEYS, b"p", Trim(0), items) == [
        (b"XADD", b"events", b"*", *fields[0]),
        (b"XADD", b"events", b"*", *fields[1]),
        (b"XADD", b"events:dead-letter", b"*", *letter),
    ]
    # Only the last entry of the stream trims it, so that it is done once.
    assert xadd_commands(KEYS, b"p", Trim(50, exact=True), items) == [
        (b"XADD", b"events", b"*", *fields[0]),
        (b"XADD", b"events", b"MAXLEN", b"=", 50, b"*", *fields[1]),
        (b"XADD", b"events:dead-letter", b"MAXLEN", b"~", 50, b"*", *letter),
    ]
    assert xadd_commands(KEYS, b"p", Trim(50), items[6:]) == [
        (b"XADD", b"events:dead-letter", b"MAXLEN", b"~", 50, b"*", *letter)
    ]
    assert fence_command(KEYS, 9) == (b"SET", KEYS.fence, 9, b"PX", 2_592_000_000)


@given(
    payload=st.binary(max_size=200),
    producer=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    seq=st.integers(0, 2**53),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    decoded=st.booleans(),
)
def test_what_is_packed_is_read_back(payload: bytes, producer: str, seq: int, reason: str, decoded: bool) -> None:
    items: list[Argument] = [seq, payload, reason.encode()]
    (command,) = xadd_commands(KEYS, producer.encode(), Trim(0), items)
    flat = [str(word).encode() if isinstance(word, int) else word for word in command[3:]]
    fields: dict[bytes | str, bytes | str] = {}
    for name, value in zip(flat[0::2], flat[1::2], strict=True):
        assert isinstance(name, bytes)
        assert isinstance(value, bytes)
        # A client that decodes responses gives text instead.
        if decoded:
            fields[name.decode()] = value.decode("utf-8", "surrogateescape")
        else:
            fields[name] = value
    entry = decode_entry(fields)
    assert (entry.payload, entry.producer, entry.seq, entry.reason) == (payload, producer, seq, reason)


@given(st.lists(st.tuples(st.integers(1, 99), st.binary(max_size=5), st.sampled_from(["", b"bad"])), max_size=20))
def test_every_entry_becomes_one_command(entries: list[tuple[int, bytes, str | bytes]]) -> None:
    items: list[Argument] = [argument for entry in entries for argument in entry]
    commands = xadd_commands(KEYS, b"p", Trim(10), items)
    assert len(commands) == len(items) // STEP
    assert [command[1] for command in commands] == [
        KEYS.dead_letters if reason else KEYS.stream for _, _, reason in entries
    ]
    trimming = [command for command in commands if b"MAXLEN" in command and command[1] == KEYS.stream]
    assert len(trimming) == (1 if any(not reason for _, _, reason in entries) else 0)


def test_an_entry_of_somebody_else() -> None:
    entry = decode_entry({b"event": b"{}"})
    assert (entry.payload, entry.producer, entry.seq, entry.reason) == (b"{}", "", 0, "")
    assert decode_entry({b"event": b"", b"producer": b"\xff"}).producer == "\\xff"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({b"message": b"hello"}, "no field `event`"),
        ({}, "no field `event`"),
        ({b"events": b"...", b"seq": b"1"}, "newer version"),
        ({b"event": b"x", b"seq": b"one"}, "not a number: 'one'"),
        ({b"event": b"x", b"seq": b"-1"}, "not a number"),
        ({b"event": b"x", b"seq": b""}, "not a number"),
        ({b"event": b"x", b"seq": b"1" * 5000}, "not a number"),
    ],
)
def test_an_entry_that_cannot_be_read(fields: dict[bytes | str, bytes | str], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_entry(fields)


@given(st.lists(st.sampled_from([b"event", b"producer", b"seq", b"reason", b"other"]), unique=True), st.binary())
def test_fields_in_turn_are_read_as_a_map_of_them(names: list[bytes], value: bytes) -> None:
    """The way that is quick for what a sink writes, and the one for all else, see the same."""

    def read(how: Callable[[], WireEntry]) -> object:
        try:
            return how()
        except DecodeError as error:
            return str(error)

    for number in (value, b"7"):
        pairs: list[tuple[bytes, bytes]] = [(name, number if name == b"seq" else value) for name in names]
        flat = [part for pair in pairs for part in pair]
        assert read(partial(decode_fields, flat)) == read(partial(decode_entry, dict(pairs)))


def test_fields_as_a_sink_writes_them() -> None:
    flat = [b"event", b"{}", b"producer", b"p", b"seq", b"12"]
    assert decode_fields(flat) == WireEntry(b"{}", "p", 12)
    with pytest.raises(DecodeError, match="not a number"):
        decode_fields([*flat[:5], b"-12"])
