"""Many events in an entry of the stream, on a real server: each event once, however the frames of two attempts differ."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis

from streamll.delivery.outcome import Entry, Failure
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from streamll.wire.frame import MOST_BYTES, MOST_EVENTS
from streamll.wire.redis import decode_entry, keys_for
from tests.fixtures.redis import RedisServer
from tests.fixtures.waiting import wait_until
from tests.sinks.redis_fixtures import OwnRedis
from tests.sinks.redis_tools import PRODUCER, deliver, entries, numbers, opened, read, soon, stored, through, transport

pytestmark = [pytest.mark.redis, pytest.mark.integration]


def framed(url: str, way: str, **options: Any) -> Any:
    return opened(url, fence=way, framing="batch", **options)


def frames(client: Any) -> list[tuple[int, int]]:
    """The first number and the count of each entry of the stream."""
    return [(int(fields[b"seq"]), int(fields.get(b"count", 1))) for _, fields in client.xrange("events")]


def test_a_batch_is_one_entry(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = framed(server.url, way)
    deliver(sender, entries(1, 100))
    deliver(sender, entries(101, 101))
    deliver(sender, entries(102, 103))
    assert frames(client) == [(1, 100), (101, 1), (102, 2)]
    assert stored(client) == numbers(1, 103)
    untyped: Any = client
    first, alone, _ = (fields for _, fields in untyped.xrange("events"))
    assert set(first) == {b"events", b"producer", b"seq", b"count"}
    assert decode_entry(alone).seq == 101  # as without framing
    assert client.get(keys_for("events", PRODUCER).fence) == b"103"


def test_frames_are_bounded_and_end_where_numbers_are_missing(
    server: RedisServer, client: redis.Redis, way: str
) -> None:
    sender = framed(server.url, way)
    many = 3 * MOST_EVENTS + 1
    deliver(sender, entries(1, many))
    assert [count for _, count in frames(client)] == [MOST_EVENTS] * 3 + [1]
    deliver(sender, [*entries(many + 1, many + 5), *entries(many + 7, many + 9)])
    assert frames(client)[-2:] == [(many + 1, 5), (many + 7, 3)]
    client.delete("events")
    last = many + 9
    large = [*entries(last + 1, last + 2), *entries(last + 3, last + 3, MOST_BYTES), *entries(last + 4, last + 5)]
    deliver(sender, large)
    assert frames(client) == [(last + 1, 2), (last + 3, 1), (last + 4, 2)]
    assert stored(client) == numbers(last + 1, last + 5)


def test_dead_letters_stand_alone(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = framed(server.url, way)
    deliver(sender, entries(1, 10, dead=(1, 5, 6, 10)))
    assert frames(client) == [(2, 3), (7, 3)]
    untyped: Any = client
    letters = [decode_entry(fields) for _, fields in untyped.xrange("events:dead-letter")]
    assert [(letter.seq, letter.reason) for letter in letters] == [(seq, "told so") for seq in (1, 5, 6, 10)]


@pytest.mark.parametrize("first", [1, 50, 51, 99, 100, 101])
def test_sent_again_in_other_frames(server: RedisServer, client: redis.Redis, way: str, first: int) -> None:
    sender = framed(server.url, way)
    deliver(sender, entries(1, 100))
    sender.close(clean=False)
    # Of a frame that the fence goes through, just what is above it is appended.
    again = framed(server.url, way)
    assert again.send(entries(first, 150), soon()).failure is None
    assert again.send(entries(first, 150), soon()).failure is None
    assert stored(client) == numbers(1, 150)
    assert frames(client) == [(1, 100), (101, 50)]


def test_frames_after_single_events_and_single_events_after_frames(
    server: RedisServer, client: redis.Redis, way: str
) -> None:
    last = 0
    for framing in ("single", "batch", "single", "batch"):
        sender = opened(server.url, fence=way, framing=framing)
        deliver(sender, entries(max(1, last - 3), last + 10))
        last += 10
        sender.close(clean=False)
    assert stored(client) == numbers(1, 40)
    assert frames(client)[10] == (11, 10)


def test_more_frames_than_one_run_of_the_script(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = framed(server.url, way)
    # Pairs with a hole behind each: 700 entries.
    batch = [entry for entry in entries(1, 2100) if entry.seq % 3]
    deliver(sender, batch)
    deliver(sender, [*batch[-5:], *entries(2101, 2110)])
    assert stored(client) == [*(entry.seq for entry in batch), *numbers(2101, 2110)]
    assert len(frames(client)) == 701


def test_other_frames_reach_a_frozen_server(server: RedisServer, client: redis.Redis, way: str) -> None:
    senders = [framed(server.url, way) for _ in range(4)]
    for sender in senders:
        assert sender.send(entries(1, 10), soon()).failure is None
    server.freeze()
    for place, sender in enumerate(senders):
        assert sender.send(entries(1, 60 + 10 * place), soon(0.1)).failure is Failure.UNAVAILABLE
    server.thaw()
    for sender in senders:
        deliver(sender, entries(1, 95))
        sender.close(clean=False)
    assert stored(client) == numbers(1, 95)


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
def test_cut_at_many_places_inside_a_batch(server: RedisServer, client: redis.Redis, way: str, direction: str) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        sender = framed(through(proxy), way, stream="measure")
        sender.send(entries(1, 10), soon())
        before = proxy.passed[direction]
        sender.send(entries(11, 50, dead=(20,)), soon())
        length = proxy.passed[direction] - before
        sender.close(clean=False)
        for count in sorted({*range(0, length, max(1, length // 25)), 1, length - 1}):
            stream = f"cut-{count}"
            sender = framed(through(proxy), way, stream=stream)
            deliver(sender, entries(1, 10))
            proxy.cut_after(count, direction)
            connections = proxy.accepted
            deliver(sender, entries(11, 50, dead=(20,)))
            deliver(sender, entries(48, 55))
            assert proxy.accepted == connections + 1, f"cut at {count} did not happen"
            assert stored(client, stream) == [*numbers(1, 19), *numbers(21, 55)], f"cut at {count}"
            sender.close(clean=False)


def test_which_event_of_a_frame_is_too_long_is_found_by_halving(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(proto_max_bulk_len="1mb")
    sender = framed(server.url, way)
    deliver(sender, entries(1, 5))
    long = entries(8, 8, size=2**20 + 10)
    outcome = sender.send([*entries(6, 7), *long, *entries(9, 10)], soon())
    assert outcome.failure is Failure.REJECTED
    assert list(outcome.rejected) == [2]  # it stands alone, for it is too large to share a frame
    sender.open(soon())
    letter = Entry(8, entries(8, 8)[0].record, "too long")
    deliver(sender, [*entries(6, 7), letter, *entries(9, 10)])
    with server.client() as client:
        assert stored(client) == [*numbers(1, 7), 9, 10]
        assert [entry.seq for entry in read(client, "events:dead-letter")] == [8]


def test_a_server_that_forgets(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = framed(server.url, way)
    deliver(sender, entries(1, 100))
    client.flushall()
    outcomes = deliver(sender, entries(101, 150))
    assert sum(outcome.lost_after_ack for outcome in outcomes) == 100
    assert stored(client) == numbers(101, 150)


def test_a_frame_that_a_server_stored_in_part_is_no_frame(server: RedisServer, client: redis.Redis, way: str) -> None:
    """A key of another kind takes the stream's place between two batches: nothing of a frame is there, or all of it."""
    sender = framed(server.url, way)
    deliver(sender, entries(1, 5))
    client.rename("events", "kept")
    client.set("events", "a string")
    outcome = sender.send(entries(6, 20), soon())
    assert outcome.failure is Failure.FATAL
    assert not outcome.delivered
    assert client.get(keys_for("events", PRODUCER).fence) == b"5"
    client.delete("events")
    client.rename("kept", "events")
    deliver(sender, entries(6, 20))
    assert frames(client) == [(1, 5), (6, 15)]


def test_the_stream_is_trimmed_by_frames(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = framed(server.url, way, trim="exact", max_stream_length=10)
    for first in range(1, 2001, 100):
        deliver(sender, entries(first, first + 99, dead=(first + 99,)))
    assert len(frames(client)) == 10
    assert stored(client)[-1] == 1999


def test_replicas_must_have_a_frame(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(repl_diskless_sync_delay="0")
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    with server.client() as client:
        assert wait_until(lambda: client.info("replication")["connected_slaves"] == 1)
    sender = framed(server.url, way, wait_replicas=1)
    deliver(sender, entries(1, 10))
    replica.freeze()
    assert sender.send(entries(11, 20), soon(0.5)).failure is Failure.UNAVAILABLE
    thawing = threading.Timer(0.2, replica.thaw)
    thawing.start()
    deliver(sender, entries(11, 25))  # all of it again, and five more in the frame
    thawing.join()
    with replica.client() as other:
        assert stored(other) == numbers(1, 25)


def test_many_writers_at_once_on_a_network_that_is_cut(server: RedisServer, client: redis.Redis) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy:
        failures: list[BaseException] = []

        def write(name: str, way: str) -> None:
            try:
                sender = transport(through(proxy), producer=name, fence=way, framing="batch")
                for first in range(1, 400, 20):
                    deliver(sender, entries(max(1, first - 7), first + 19))
            except BaseException as error:
                failures.append(error)

        writers = [
            threading.Thread(target=write, args=(f"w{number}", "script" if number % 2 else "transaction"))
            for number in range(4)
        ]
        for writer in writers:
            writer.start()
        for count in range(25):
            before = proxy.accepted
            proxy.cut_after(count * 397 % 4000, TO_SERVER if count % 2 else TO_CLIENT)
            wait_until(lambda before=before: proxy.accepted > before, 0.05)  # type: ignore[misc]  # bound, not shared
        proxy.heal()
        for writer in writers:
            writer.join(30.0)
        assert not failures
        for number in range(4):
            assert stored(client, producer=f"w{number}") == numbers(1, 400)
