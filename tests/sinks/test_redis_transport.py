"""The Redis transport on real servers: each entry once, whatever happens to the connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streamll.delivery.outcome import Failure
from streamll.errors import UnavailableError
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from streamll.wire.redis import FENCE_TTL, keys_for
from streamll.wire.redis_append import fence_script_sha
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.fixtures.waiting import wait_until
from tests.sinks.redis_tools import (
    PRODUCER,
    deliver,
    entries,
    numbers,
    opened,
    read,
    soon,
    stored,
    through,
    transport,
)

pytestmark = [pytest.mark.redis, pytest.mark.integration]


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as made:
        yield made


def test_a_batch_is_stored_in_order_with_all_fields(redis_server: RedisEndpoint, way: str) -> None:
    stream = f"streamll-test-{way}-{time.time_ns()}"
    sender = opened(redis_server.url, stream, fence=way)
    with redis_server.client() as client:
        try:
            outcome = sender.send(entries(1, 3), soon())
            assert (outcome.failure, outcome.error, outcome.lost_after_ack) == (None, "", 0)
            assert [(e.payload[:2], e.producer, e.seq, e.reason) for e in read(client, stream)] == [
                (b"1:", PRODUCER, 1, ""),
                (b"2:", PRODUCER, 2, ""),
                (b"3:", PRODUCER, 3, ""),
            ]
            fence = keys_for(stream, PRODUCER).fence
            assert client.get(fence) == b"3"
            assert FENCE_TTL - 60 < client.ttl(fence) <= FENCE_TTL
            sender.close(clean=True)
            assert 0 < client.ttl(fence) <= 60
        finally:
            sender.close(clean=False)
            client.delete(stream, keys_for(stream, PRODUCER).fence)


def test_a_batch_larger_than_one_run_of_the_script(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    assert sender.send(entries(1, 1701), soon()).failure is None
    assert stored(client) == numbers(1, 1701)
    assert sender.send([], soon()).failure is None


def test_a_resent_batch_that_overlaps_adds_exactly_what_is_missing(
    server: RedisServer, client: redis.Redis, way: str
) -> None:
    sender = opened(server.url, fence=way)
    assert sender.send(entries(1, 100), soon()).failure is None
    sender.close(clean=False)
    again = opened(server.url, fence=way)
    assert again.send(entries(51, 150), soon()).failure is None
    assert again.send(entries(51, 150), soon()).failure is None
    assert stored(client) == numbers(1, 150)


def test_numbers_may_be_missing_between_and_within_batches(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    first = [entry for entry in entries(5, 20) if entry.seq % 2]
    assert sender.send(first, soon()).lost_after_ack == 0
    assert sender.send(entries(40, 42), soon()).lost_after_ack == 0
    assert stored(client) == [*range(5, 20, 2), 40, 41, 42]


def test_producers_share_a_stream_without_meeting(server: RedisServer, client: redis.Redis, way: str) -> None:
    one, two = (opened(server.url, fence=way, producer=name) for name in ("one", "two"))
    for first in (1, 11, 21):
        for sender in (one, two):
            assert sender.send(entries(first, first + 9), soon()).failure is None
    assert stored(client, producer="one") == stored(client, producer="two") == numbers(1, 30)


def test_dead_letters_go_beside_in_the_same_step(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    assert sender.send(entries(1, 6, dead=(2, 6)), soon()).failure is None
    assert sender.send(entries(1, 7, dead=(2, 6)), soon()).failure is None
    assert stored(client) == [1, 3, 4, 5, 7]
    letters = read(client, "events:dead-letter")
    assert [(e.seq, e.reason, e.payload[:2]) for e in letters] == [(2, "told so", b"2:"), (6, "told so", b"6:")]


def test_frozen_in_the_middle_sent_again_and_thawed(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    assert sender.send(entries(1, 50), soon()).failure is None
    server.freeze()
    began = time.monotonic()
    outcome = sender.send(entries(51, 150), soon(0.3))
    assert 0.2 < time.monotonic() - began < 2.0
    assert outcome.failure is Failure.UNAVAILABLE
    assert not outcome.delivered
    assert "in time" in outcome.error
    assert not sender.is_open
    # Its new connection is queued behind the old one's bytes, in an order that nobody promises.
    thawing = threading.Timer(0.3, server.thaw)
    thawing.start()
    deliver(sender, entries(51, 150))
    thawing.join()
    deliver(sender, entries(151, 160))
    assert stored(client) == numbers(1, 160)


def test_many_copies_of_a_batch_reach_a_frozen_server(server: RedisServer, client: redis.Redis, way: str) -> None:
    senders = [opened(server.url, fence=way) for _ in range(4)]
    for sender in senders:
        assert sender.send(entries(1, 10), soon()).failure is None
    server.freeze()
    for sender in senders:
        assert sender.send(entries(1, 60), soon(0.1)).failure is Failure.UNAVAILABLE
    server.thaw()
    for sender in senders:
        deliver(sender, entries(1, 60))
        sender.close(clean=False)
    assert stored(client) == numbers(1, 60)


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
def test_cut_at_many_places_inside_a_batch(
    server: RedisServer, client: redis.Redis, proxy: FaultProxy, way: str, direction: str
) -> None:
    stream = "measure"
    sender = opened(through(proxy), stream, fence=way)
    sender.send(entries(1, 10), soon())
    before = proxy.passed[direction]
    sender.send(entries(11, 50, dead=(20,)), soon())
    length = proxy.passed[direction] - before
    sender.close(clean=False)
    step = max(1, length // 40)
    for count in sorted({*range(0, length, step), 1, length - 1}):
        stream = f"cut-{count}"
        sender = opened(through(proxy), stream, fence=way)
        assert sender.send(entries(1, 10), soon()).failure is None
        proxy.cut_after(count, direction)
        connections = proxy.accepted
        deliver(sender, entries(11, 50, dead=(20,)))
        deliver(sender, entries(51, 55))
        assert proxy.accepted == connections + 1, f"cut at {count} did not happen"
        assert stored(client, stream) == [*numbers(1, 19), *numbers(21, 55)], f"cut at {count}"
        assert client.xlen(f"{stream}:dead-letter") == 1
        sender.close(clean=False)


def test_a_batch_whose_chunks_were_partly_answered(server: RedisServer, client: redis.Redis, proxy: FaultProxy) -> None:
    sender = opened(through(proxy), fence="script")
    sender.send(entries(1001, 1010), soon())
    before = proxy.passed[TO_CLIENT]
    sender.send(entries(1011, 3010), soon())
    each = (proxy.passed[TO_CLIENT] - before) // 4
    proxy.cut_after(each * 2 + 1, TO_CLIENT)
    outcome = sender.send(entries(3011, 5010), soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert outcome.delivered == frozenset(range(1000))
    deliver(sender, entries(4011, 5010))
    assert stored(client) == numbers(1001, 5010)


@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "killed"])
def test_a_server_that_forgets_is_told_from_one_that_does_not(
    server: RedisServer, client: redis.Redis, way: str, flushed: bool
) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 100))
    if flushed:
        client.flushall()
    else:
        server.kill()
        server.restart(keep_data=False)
    outcomes = deliver(sender, entries(101, 150))
    assert sum(outcome.lost_after_ack for outcome in outcomes) == 100
    assert sum(outcome.lost_after_ack for outcome in deliver(sender, entries(151, 160))) == 0
    assert stored(client) == numbers(101, 160)


def test_a_fence_that_has_outlived_itself_is_no_loss(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 10))
    # What a week without an event comes to, which a test cannot wait for.
    sender._fenced -= FENCE_TTL
    client.delete(keys_for("events", PRODUCER).fence)
    assert sender.send(entries(11, 20), soon()).lost_after_ack == 0
    assert stored(client) == numbers(1, 20)


def test_a_server_that_goes_back_in_time(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 60))
    client.save()
    deliver(sender, entries(61, 100))
    server.kill()
    server.restart()
    outcomes = deliver(sender, entries(101, 150))
    assert sum(outcome.lost_after_ack for outcome in outcomes) == 40
    assert stored(client) == [*numbers(1, 60), *numbers(101, 150)]


def test_a_script_that_the_server_has_forgotten(server: RedisServer, client: redis.Redis) -> None:
    sender = opened(server.url, fence="script")
    assert sender.send(entries(1, 1200), soon()).failure is None
    assert client.script_exists(fence_script_sha().decode()) == [True]
    client.script_flush()
    assert sender.send(entries(1201, 2400), soon()).failure is None
    assert stored(client) == numbers(1, 2400)


@pytest.mark.parametrize("trim", ["exact", "approximate"])
def test_the_stream_is_trimmed(server: RedisServer, client: redis.Redis, way: str, trim: str) -> None:
    sender = opened(server.url, fence=way, trim=trim, max_stream_length=100)
    for first in range(1, 3000, 300):
        # The last of each batch is a dead letter, so that it is not the last entry of all that trims.
        assert sender.send(entries(first, first + 299, dead=(first + 299,)), soon()).failure is None
    length = client.xlen("events")
    assert length == 100 if trim == "exact" else 100 <= length < 500
    assert stored(client)[-1] == 2999
    assert client.xlen("events:dead-letter") == 10


def test_an_unbounded_stream_is_not_trimmed(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way, max_stream_length=0, trim="exact")
    assert sender.send(entries(1, 700, dead=(700,)), soon()).failure is None
    assert client.xlen("events") == 699
    assert client.xlen("events:dead-letter") == 1


def test_a_consumer_group_is_created_once(server: RedisServer, client: redis.Redis) -> None:
    for _ in range(2):
        sender = opened(server.url, create_group="readers")
        assert [group["name"] for group in client.xinfo_groups("events")] == [b"readers"]
        sender.close(clean=True)
    sender = opened(server.url)
    sender.send(entries(1, 5), soon())
    sender.close(clean=False)
    untyped: Any = client
    assert len(untyped.xreadgroup("readers", "c", {"events": ">"})[0][1]) == 5


def test_a_batch_that_is_interrupted_ends_at_once(server: RedisServer, client: redis.Redis, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 10))
    server.freeze()
    timer = threading.Timer(0.2, sender.interrupt)
    began = time.monotonic()
    timer.start()
    outcome = sender.send(entries(11, 20), soon(30.0))
    assert time.monotonic() - began < 5.0
    assert (outcome.failure, outcome.error) == (Failure.UNAVAILABLE, "interrupted")
    server.thaw()
    timer.join()
    deliver(sender, entries(11, 20))
    assert stored(client) == numbers(1, 20)


def test_a_large_batch_that_is_interrupted_while_it_is_written(server: RedisServer, client: redis.Redis) -> None:
    sender = opened(server.url)
    server.freeze()
    timer = threading.Timer(0.2, sender.interrupt)
    began = time.monotonic()
    timer.start()
    outcome = sender.send(entries(1, 200, size=100_000), soon(30.0))
    assert time.monotonic() - began < 5.0
    assert outcome.failure is Failure.UNAVAILABLE
    server.thaw()
    timer.join()


def test_a_large_batch_keeps_its_deadline_while_it_is_written(server: RedisServer) -> None:
    sender = opened(server.url)
    server.freeze()
    began = time.monotonic()
    outcome = sender.send(entries(1, 200, size=100_000), soon(0.5))
    assert 0.4 < time.monotonic() - began < 2.0
    assert outcome.failure is Failure.UNAVAILABLE
    assert "in time" in outcome.error
    server.thaw()


def test_opening_is_interrupted(server: RedisServer) -> None:
    sender = transport(server.url)
    server.freeze()
    timer = threading.Timer(0.2, sender.interrupt)
    began = time.monotonic()
    timer.start()
    with pytest.raises(UnavailableError, match="interrupted"):
        sender.open(soon(30.0))
    assert time.monotonic() - began < 5.0
    timer.join()
    server.thaw()
    sender.open(soon())


def test_opening_keeps_its_deadline(server: RedisServer) -> None:
    sender = transport(server.url)
    server.freeze()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="in time"):
        sender.open(soon(0.3))
    assert 0.2 < time.monotonic() - began < 2.0
    assert not sender.is_open
    server.thaw()


def test_a_connection_that_ended_while_idle_is_noticed_before_it_is_used(server: RedisServer, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 10))
    sender._used -= 60.0  # a minute without an event
    assert sender.is_open
    server.restart()
    assert wait_until(lambda: not sender.is_open)
    outcome = sender.send(entries(11, 20), soon())
    assert (outcome.failure, outcome.sent) == (Failure.UNAVAILABLE, False)
    deliver(sender, entries(11, 20))
    sender.close(clean=True)
    sender.close(clean=True)
