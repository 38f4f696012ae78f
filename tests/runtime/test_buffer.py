"""What the buffer accepts, gives way to, and counts."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from streamll.delivery.machine import Settlement
from streamll.errors import BufferFullError
from streamll.models import Record
from streamll.options import KIB, SinkOptions
from streamll.runtime.buffer import Buffer
from streamll.runtime.waiting import ENTRY_OVERHEAD


def record(size: int = 10, created: int = 0) -> Record:
    return Record(b"x" * size, "", "", "", "", "", "", "", "", 0, created)


def buffer(**options: Any) -> Buffer:
    return Buffer(SinkOptions.from_mapping(options))


def taken(entries: Any) -> list[int]:
    return [entry.seq for entry in entries]


def test_bytes_in_flight_are_never_made_room_for_at_the_cost_of_what_waits() -> None:
    held = buffer(buffer_bytes=4 * KIB)
    assert held.put(record(2600))
    assert taken(held.take(1, 1)) == [1]
    assert held.put(record(10))
    # Whatever waits could give way, and there would still be no room: so nothing does.
    assert not held.put(record(3000))
    balance = held.read()
    assert (balance.refused, balance.dropped, balance.buffered) == ({"buffer_full": 1}, {}, 1)
    assert held.put(record(400))
    assert held.read().dropped == {"overflow": 1}
    assert held.read().balanced


def test_what_is_larger_than_the_buffer_is_refused() -> None:
    held = buffer(buffer_bytes=KIB)
    assert held.put(record(1))
    assert not held.put(record(2 * KIB))
    assert (held.read().refused, held.read().buffered) == ({"too_large": 1}, 1)


def test_bytes_held_come_down_to_nothing() -> None:
    held = buffer(buffer_size=4)
    for n in range(10):
        held.put(record(n))
    batch = held.take(2, 10**6)
    assert held.bytes_held == 6 + 7 + 8 + 9 + 4 * ENTRY_OVERHEAD
    assert held.settle(Settlement(delivered=batch), None)
    assert held.bytes_held == 8 + 9 + 2 * ENTRY_OVERHEAD
    assert taken([entry for entry, _ in held.give_up()]) == [9, 10]
    assert held.bytes_held == 0
    assert held.read().balanced


def test_a_batch_is_bounded_in_bytes_but_never_empty() -> None:
    held = buffer()
    for size in (500, 10, 10, 600):
        held.put(record(size))
    assert taken(held.take(10, 100)) == [1]
    assert taken(held.take(10, 100)) == [2, 3]
    assert taken(held.take(10, 100)) == [4]


def test_the_oldest_expire() -> None:
    held = buffer()
    for created in (10, 20, 30):
        held.put(record(created=created))
    expired, oldest = held.expire(25)
    assert (taken(expired), oldest) == ([1, 2], 30)
    assert held.expire(100)[1] is None
    assert held.read().dropped == {"expired": 3}
    assert held.bytes_held == 0
    assert not held.activity.wait(0)
    held.put(record())
    assert held.activity.wait(0)


def test_a_put_inside_a_put_is_accepted_after_it() -> None:
    held = buffer()

    class Reenters(list[int]):
        """Garbage that emits when it is found, in the middle of a put."""

        def __del__(self) -> None:
            held.put(record(2))

    def evict(entry: Any) -> None:
        if entry.seq == 1:
            garbage = Reenters()
            garbage.append(garbage)  # type: ignore[arg-type]  # a cycle, which only the collector finds
            del garbage
            gc.collect()

    held = Buffer(SinkOptions(buffer_size=2), evict)
    for size in (1, 1, 1):
        assert held.put(record(size))
    assert [(entry.seq, len(entry.record.payload)) for entry in held.take(9, 10**6)] == [(3, 1), (4, 2)]
    assert held.read().balanced
    assert held.read().dropped == {"overflow": 2}


def test_an_error_thrown_into_a_put_leaves_the_numbers_right() -> None:
    def evict(entry: Any) -> None:
        if entry.seq == 2:
            raise KeyboardInterrupt

    held = Buffer(SinkOptions(buffer_size=2), evict)
    for _ in range(3):
        held.put(record())
    with pytest.raises(KeyboardInterrupt):
        held.put(record())
    assert held.read().balanced
    assert held.put(record())
    balance = held.read()
    assert (balance.offered, balance.accepted, balance.buffered) == (4, 4, 2)
    assert balance.balanced


def test_whoever_waits_for_room_gets_it_when_there_is_some() -> None:
    held = buffer(buffer_size=2, buffer_overflow_strategy="block", block_timeout=30)
    held.put(record())
    held.put(record())
    batch = held.take(1, 1)
    accepted: list[bool] = []
    waiting = threading.Thread(target=lambda: accepted.append(held.put(record())))
    waiting.start()
    assert held.settle(Settlement(delivered=batch), None)
    waiting.join(30)
    assert accepted == [True]
    assert held.read().refused == {}


def test_whoever_waits_for_room_is_sent_away_when_it_closes() -> None:
    held = buffer(buffer_size=2, buffer_overflow_strategy="block", block_timeout=30)
    held.put(record())
    held.put(record())
    accepted: list[bool] = []
    waiting = threading.Thread(target=lambda: accepted.append(held.put(record())))
    waiting.start()
    held.close()
    waiting.join(30)
    assert accepted == [False]
    assert held.read().refused == {"stopped": 1}


def test_raise_error_counts_what_it_raises_for() -> None:
    held = buffer(buffer_size=2, buffer_overflow_strategy="raise_error")
    held.put(record())
    held.put(record())
    with pytest.raises(BufferFullError, match="2 events"):
        held.put(record())
    assert (held.read().refused, held.read().balanced) == ({"buffer_full": 1}, True)


def test_after_giving_up_nothing_changes_any_more() -> None:
    held = buffer()
    for _ in range(5):
        held.put(record())
    batch = held.take(2, 10**6)
    assert taken([entry for entry, _ in held.give_up()]) == [3, 4, 5]
    assert held.give_up() == []
    assert not held.settle(Settlement(delivered=batch), None)
    assert not held.put(record())
    balance = held.read()
    assert (balance.dropped, balance.refused) == ({"shutdown": 3, "unconfirmed": 2}, {"stopped": 1})
    assert balance.balanced
    assert held.wait_settled(5, 0)
