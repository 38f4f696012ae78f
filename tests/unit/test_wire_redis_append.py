"""Requests to append: the script's command, a transaction's, and that they are packed as hiredis would."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamll.wire.redis import Argument, Keys
from streamll.wire.redis_append import (
    FENCE_SCRIPT,
    EventPacker,
    Items,
    Trim,
    fence_command,
    fence_script_sha,
    probing_commands,
    script_command,
    xadd_commands,
)

KEYS = Keys(b"events", b"{events}:fence:p", b"events:dead-letter")


def test_the_script_is_known_by_the_hash_that_redis_gives_it() -> None:
    assert hashlib.sha1(FENCE_SCRIPT).hexdigest().encode() == fence_script_sha()


def test_the_command_of_the_script() -> None:
    command = script_command(KEYS, b"p", 6, Trim(1000), Items([7, 8], [b"seven", b"eight"], ["", "bad"]))
    assert command[:3] == (b"EVALSHA", fence_script_sha(), 3)
    assert command[3:6] == (KEYS.stream, KEYS.fence, KEYS.dead_letters)
    assert command[6:11] == (b"p", 6, b"~", 1000, 2_592_000_000)
    assert command[11:] == (7, 1, b"seven", b"", 8, 1, b"eight", b"bad")
    framed = script_command(KEYS, b"p", 6, Trim(1000), Items([7, 9], [b"frame", b"nine"], counts=[2, 1]))
    assert framed[11:] == (7, 2, b"frame", b"", 9, 1, b"nine", b"")
    nothing = script_command(KEYS, b"p", 6, Trim(0, exact=True), Items((), ()), whole=True)
    assert nothing[:2] == (b"EVAL", FENCE_SCRIPT)
    assert nothing[6:] == (b"p", 6, b"=", 0, 2_592_000_000)


def test_the_commands_of_the_transaction() -> None:
    items = Items([7, 8, 9], [b"seven", b"eight", b"nine"], ["", "", "bad"])
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
    assert xadd_commands(KEYS, b"p", Trim(50), items.between(2, 3)) == [
        (b"XADD", b"events:dead-letter", b"MAXLEN", b"~", 50, b"*", *letter)
    ]
    assert xadd_commands(KEYS, b"p", Trim(50), Items([7, 9], [b"frame", b"nine"], counts=[2, 1])) == [
        (b"XADD", b"events", b"*", b"events", b"frame", b"producer", b"p", b"seq", 7, b"count", 2),
        (b"XADD", b"events", b"MAXLEN", b"~", 50, b"*", b"event", b"nine", b"producer", b"p", b"seq", 9),
    ]
    # What tries whether that is permitted names all keys but the stream's, which is in the slot of the fence.
    assert [command[0] for command in probing_commands(KEYS)] == [b"MULTI", b"GET", b"GET", b"EXEC"]
    assert fence_command(KEYS, 9) == (b"SET", KEYS.fence, 9, b"PX", 2_592_000_000)


@given(st.lists(st.tuples(st.binary(max_size=5), st.sampled_from(["", "bad"])), max_size=20))
def test_every_entry_becomes_one_command(entries: list[tuple[bytes, str]]) -> None:
    items = Items(range(1, len(entries) + 1), [payload for payload, _ in entries], [reason for _, reason in entries])
    commands = xadd_commands(KEYS, b"p", Trim(10), items)
    assert [command[1] for command in commands] == [
        KEYS.dead_letters if reason else KEYS.stream for _, reason in entries
    ]
    trimming = [command for command in commands if b"MAXLEN" in command and command[1] == KEYS.stream]
    assert len(trimming) == (1 if any(not reason for _, reason in entries) else 0)


def packed(commands: Sequence[tuple[Argument, ...]]) -> bytes:
    return b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]  # stub: one word


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=20),
    st.one_of(st.integers(1, 2**53), st.integers(0, 6).map(lambda zeros: max(1, 10**zeros - 7))),
    st.lists(st.integers(0, 5), min_size=20, max_size=20),
    st.binary(min_size=1, max_size=10),
    st.integers(0, 10**6),
    st.booleans(),
)
@example([b"%d", b"%", b"%%b"], 1, [0] * 20, b"100%s%", 5, True)
@example([b""] * 20, 95, [99] * 20, b"events", 0, False)
def test_events_are_packed_all_at_once_as_they_are_one_by_one(
    payloads: list[bytes], first: int, gaps: list[int], key: bytes, limit: int, exact: bool
) -> None:
    numbers = [first + place + sum(gaps[:place]) for place in range(len(payloads))]
    keys = Keys(key, key + b":fence", key + b":dead")
    trim = Trim(limit, exact)
    packer = EventPacker(keys, key, trim)
    for _ in range(2):
        assert b"".join(packer.pack(numbers, payloads)) == packed(
            xadd_commands(keys, key, trim, Items(numbers, payloads))
        )


@pytest.mark.parametrize("count", [499, 500, 501, 1000, 1201])
def test_many_events_are_packed_in_pieces_of_which_the_last_trims(count: int) -> None:
    items = Items(range(700, 700 + count), [b"x" * (number % 50) for number in range(count)])
    pieces = EventPacker(KEYS, b"p", Trim(5)).pack(items.numbers, items.payloads)
    assert len(pieces) == -(-count // 500)
    assert b"".join(pieces) == packed(xadd_commands(KEYS, b"p", Trim(5), items))
    assert [b"MAXLEN" in piece for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(("limit", "exact", "sign"), [(5, True, b"="), (5, False, b"~")])
def test_the_word_for_how_a_stream_is_trimmed(limit: int, exact: bool, sign: bytes) -> None:
    assert Trim(limit, exact).sign == sign
