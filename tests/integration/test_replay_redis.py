"""Redriving dead letters of Redis: each event is in one of the two streams, whatever is cut when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import redis

from streamll import codec
from streamll.errors import ConfigurationError, FatalError, TransportError, UnavailableError
from streamll.models import StreamllEvent
from streamll.replay.base import Redrive, Selection, Tally, survey
from streamll.replay.places import place_of
from streamll.sinks.redis import RedisSink
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from streamll.wire.redis import decode_entry, keys_for
from tests.fixtures.redis import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.integration]

OwnRedis = Callable[..., RedisServer]
PRODUCERS = ("one", "two")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as made:
        made.flushall()
        yield made


@pytest.fixture(scope="module")
def other() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.fixture
def there(other: RedisServer) -> Iterator[redis.Redis]:
    with other.client() as made:
        made.flushall()
        yield made


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", server.port) as made:
        yield made


def payload(producer: str, seq: int, size: int = 0) -> bytes:
    return codec.encode(StreamllEvent(event_type="token", data={"of": producer, "n": seq, "text": "x" * size}))


def fill(client: redis.Redis, key: str, count: int, reason: str = "too large", size: int = 0) -> None:
    """Dead letters, from two producers in turn."""
    with client.pipeline() as pipe:
        for n in range(count):
            producer, seq = PRODUCERS[n % 2], n // 2 + 1
            event = payload(producer, seq, size)
            pipe.xadd(key, {"event": event, "producer": producer, "seq": seq, "reason": reason})
        pipe.execute()


def found(client: redis.Redis, *keys: str) -> list[tuple[str, int]]:
    """Producer and number of each entry, at one moment, having checked that the event is that one."""
    with client.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.xrange(key)
        entries = [decode_entry(fields) for page in pipe.execute() for _, fields in page]
    for entry in entries:
        assert codec.decode(entry.payload).data["of"] == entry.producer
        assert codec.decode(entry.payload).data["n"] == entry.seq
    return [(entry.producer, entry.seq) for entry in entries]


def fields(client: Any, key: str) -> list[dict[bytes | str, bytes | str]]:
    return [found for _, found in client.xrange(key)]


def letters(count: int) -> list[tuple[str, int]]:
    return [(PRODUCERS[n % 2], n // 2 + 1) for n in range(count)]


def redrive(url: str, to: str = "", **selection: Any) -> Tally:
    place = place_of(url)
    destination = place_of(to).destination(place) if to else place.home()
    work = Redrive(place.dead_letters(look=False), destination, Selection(**selection))
    work.run()
    return work.tally


def until_done(url: str, to: str = "") -> None:
    """Run it again and again, as somebody would who sees that it failed."""
    for _ in range(10):
        try:
            redrive(url, to)
        except UnavailableError:
            continue
        return
    raise AssertionError("it fails again and again")


def through(proxy: FaultProxy, stream: str) -> str:
    return f"redis://{proxy.host}:{proxy.port}/0?stream={stream}"


class TestInOneServer:
    def test_everything_goes_back_as_it_was_and_without_its_reason(
        self, server: RedisServer, client: redis.Redis
    ) -> None:
        client.xadd("app", {"event": payload("one", 99), "producer": "one", "seq": 99})
        client.set(keys_for("app", "one").fence, 99)
        fill(client, "app:dead-letter", 1_203)
        tally = redrive(f"{server.url}?stream=app")
        assert (tally.redriven, tally.rejected, tally.left) == (1_203, 0, 0)
        assert found(client, "app") == [("one", 99), *letters(1_203)]
        assert all(b"reason" not in entry for entry in fields(client, "app"))
        assert client.xlen("app:dead-letter") == 0
        assert client.get(keys_for("app", "one").fence) == b"99"  # it says nothing of what comes late
        assert not client.keys("*redrive*")

    def test_what_a_sink_dead_lettered_is_delivered_after_all(self, server: RedisServer, client: redis.Redis) -> None:
        with RedisSink(f"{server.url}?stream=app") as sink:
            for n in range(10):
                record = sink.pipeline.encode(StreamllEvent(event_type="token", data={"n": n}), sink.content_type)
                assert sink.handle_record(msgspec.structs.replace(record, poison="bad luck" if n % 2 else ""))
            assert sink.flush(10)
        assert client.xlen("app:dead-letter") == 5
        assert redrive(f"{server.url}?stream=app").redriven == 5
        entries = [decode_entry(entry) for entry in fields(client, "app")]
        events = {entry.seq: codec.decode(entry.payload) for entry in entries if entry.seq <= 10}
        assert {event.data["n"] for event in events.values()} == set(range(10))
        assert {entry.producer for entry in entries} == {sink.producer}

    def test_the_dead_letters_themselves_may_be_named(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 4)
        assert redrive(f"{server.url}?stream=app:dead-letter").redriven == 4
        assert found(client, "app") == letters(4)

    def test_dead_letters_under_a_name_of_their_own(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "poison", 4)
        assert redrive(f"{server.url}?stream=app&dead_letter_stream=poison").redriven == 4
        assert found(client, "app") == letters(4)

    def test_another_stream_of_the_same_server_is_one_step_too(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 4)
        url = f"{server.url}?stream=app"
        assert place_of(f"{server.url}?stream=other").destination(place_of(url)).takes_away
        assert redrive(url, f"{server.url}?stream=other").redriven == 4
        assert found(client, "other") == letters(4)
        assert client.xlen("app:dead-letter") == 0

    def test_a_selection(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 6, reason="Too LARGE: 3000 bytes")
        fill(client, "app:dead-letter", 4, reason="unroutable")
        source = place_of(f"{server.url}?stream=app").dead_letters(look=True)
        meant, unusable, others = survey(source, Selection("too large"))
        assert (dict(meant), dict(unusable), others) == ({"Too LARGE: 3000 bytes": 6}, {}, 4)
        tally = redrive(f"{server.url}?stream=app", reason="too large", limit=5)
        assert (tally.redriven, tally.left) == (5, 5)
        assert found(client, "app") == letters(5)
        assert [entry[b"reason"] for entry in fields(client, "app:dead-letter")] == [
            b"Too LARGE: 3000 bytes",
            *[b"unroutable"] * 4,
        ]

    def test_what_is_no_event_of_ours_stays(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 2)
        client.xadd("app:dead-letter", {"temperature": "21"})
        client.xadd("app:dead-letter", {"event": b"\xc1 no event at all", "producer": "one", "seq": 7, "reason": "bad"})
        tally = redrive(f"{server.url}?stream=app")
        assert (tally.redriven, tally.rejected, tally.left) == (3, 1, 0)
        assert list(tally.stayed) == ["the entry has no field `event`: streamll did not write it"]
        assert fields(client, "app")[-1] == {b"event": b"\xc1 no event at all", b"producer": b"one", b"seq": b"7"}
        assert fields(client, "app:dead-letter") == [{b"temperature": b"21"}]

    def test_long_events_are_taken_a_few_at_a_time(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 60, size=300_000)
        source = place_of(f"{server.url}?stream=app").dead_letters(look=True)
        source.open()
        sizes = []
        while taken := source.take():
            sizes.append(len(taken))
        source.close()
        assert sizes[0] == 50  # before anything is known of their size
        assert max(sizes[1:]) <= 14
        assert redrive(f"{server.url}?stream=app").redriven == 60

    def test_what_comes_meanwhile_is_left(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 3)
        place = place_of(f"{server.url}?stream=app")
        work = Redrive(place.dead_letters(look=False), place.home(), Selection())
        work.run(on_page=lambda: fill(client, "app:dead-letter", 2))
        assert (work.tally.redriven, work.tally.left) == (3, 2)

    def test_nothing_there(self, server: RedisServer, client: redis.Redis) -> None:
        tally = redrive(f"{server.url}?stream=none")
        assert (tally.redriven, tally.rejected, tally.left) == (0, 0, 0)
        assert client.keys() == []

    @pytest.mark.parametrize("key", ["app", "app:dead-letter"])
    def test_a_key_that_is_no_stream(self, server: RedisServer, client: redis.Redis, key: str) -> None:
        if key == "app":
            fill(client, "app:dead-letter", 3)
        client.set(key, "something else")
        with pytest.raises(FatalError, match="no stream"):
            redrive(f"{server.url}?stream=app")
        assert client.get(key) == b"something else"
        if key == "app":
            assert found(client, "app:dead-letter") == letters(3)

    def test_a_key_that_becomes_something_else_in_the_middle(self, server: RedisServer, client: redis.Redis) -> None:
        """Then the transaction deletes what it could not append, and has to put it back."""
        fill(client, "app:dead-letter", 3)
        place = place_of(f"{server.url}?stream=app")
        source, home = place.dead_letters(look=False), place.home()
        source.open()
        home.prepare()
        taken = source.take()
        client.set("app", "something else")
        outcome = home.deliver(taken)
        assert (outcome.failure is not None, outcome.delivered) == (True, frozenset())
        assert "no stream" in outcome.error
        source.close()
        home.close(clean=False)
        assert found(client, "app:dead-letter") == letters(3)
        assert [entry[b"reason"] for entry in fields(client, "app:dead-letter")] == [b"too large"] * 3
        client.delete("app")
        assert redrive(f"{server.url}?stream=app").redriven == 3

    def test_two_at_once_move_each_event_once(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 900)
        place = place_of(f"{server.url}?stream=app")
        other = Redrive(place.dead_letters(look=False), place.home(), Selection(limit=300))
        work = Redrive(place.dead_letters(look=False), place.home(), Selection())
        done: list[TransportError] = []

        def in_between() -> None:
            if not done:
                try:
                    other.run()
                except TransportError as error:
                    done.append(error)

        home = place.home()
        home.prepare()
        source = place.dead_letters(look=False)
        source.open()
        taken = source.take()
        in_between()
        outcome = home.deliver(taken)
        assert "run it again" in outcome.error
        source.close()
        home.close(clean=False)
        work.run()
        assert sorted(found(client, "app")) == sorted(letters(900))
        assert client.xlen("app:dead-letter") == 0

    @pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
    def test_cut_anywhere_and_run_again(
        self, server: RedisServer, client: redis.Redis, proxy: FaultProxy, direction: str
    ) -> None:
        fill(client, "app:dead-letter", 30)
        before = proxy.passed[direction]
        redrive(through(proxy, "app"))
        length = proxy.passed[direction] - before
        step = max(1, length // 60)
        cuts = 0
        for count in sorted({*range(0, length, step), 1, length - 1}):
            client.flushall()
            fill(client, "app:dead-letter", 30)
            proxy.cut_after(count, direction)
            connections = proxy.accepted
            try:
                redrive(through(proxy, "app"))
            except UnavailableError:
                cuts += 1
                # In one of the two, and in no more than one, at this moment too.
                assert sorted(found(client, "app", "app:dead-letter")) == sorted(letters(30)), f"cut at {count}"
            proxy.heal()
            until_done(through(proxy, "app"))
            assert proxy.accepted > connections
            assert found(client, "app") == letters(30), f"cut at {count}"
            assert client.xlen("app:dead-letter") == 0
        assert cuts > 30

    def test_a_copy_that_comes_late_does_nothing(self, server: RedisServer, client: redis.Redis) -> None:
        """The server is frozen with a batch in its ear, and another run has begun when it wakes up."""
        fill(client, "app:dead-letter", 40)
        place = place_of(f"{server.url}?stream=app&send_timeout=0.3")
        source, home = place.dead_letters(look=False), place.home()
        source.open()
        home.prepare()
        taken = source.take()
        server.freeze()
        outcome = home.deliver(taken)
        assert "did not answer in time" in outcome.error
        source.close()
        server.thaw()
        until_done(f"{server.url}?stream=app")
        assert sorted(found(client, "app")) == sorted(letters(40))
        assert client.xlen("app:dead-letter") == 0

    def test_a_user_without_scripts(self, server: RedisServer, client: redis.Redis) -> None:
        client.acl_setuser("poor", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all", "-@scripting"])
        fill(client, "app:dead-letter", 5)
        url = server.url.replace("redis://", "redis://poor:pw@")
        assert redrive(f"{url}?stream=app").redriven == 5

    def test_a_user_who_may_not_delete_moves_nothing(self, server: RedisServer, client: redis.Redis) -> None:
        client.acl_setuser(
            "keeper", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-xdel"]
        )
        fill(client, "app:dead-letter", 5)
        url = server.url.replace("redis://", "redis://keeper:pw@")
        with pytest.raises(FatalError, match="may not do this") as raised:
            redrive(f"{url}?stream=app")
        assert "pw" not in str(raised.value)
        assert found(client, "app:dead-letter") == letters(5)
        assert client.xlen("app") == 0

    def test_a_full_server_keeps_the_letters(self, own_redis: OwnRedis) -> None:
        server = own_redis()
        with server.client() as client:
            fill(client, "app:dead-letter", 5, size=1_000)
            client.config_set("maxmemory", "1mb")
            with pytest.raises(UnavailableError, match="memory is full"):
                redrive(f"{server.url}?stream=app")
            assert client.xlen("app") == 0
            assert client.xlen("app:dead-letter") == 5
            client.config_set("maxmemory", "0")
            assert redrive(f"{server.url}?stream=app").redriven == 5

    def test_in_a_cluster(self, own_redis: OwnRedis) -> None:
        server = own_redis(cluster=True)
        url = server.url.replace("redis://", "redis+cluster://")
        with server.client() as client:
            fill(client, "{app}:dead-letter", 5)
            with pytest.raises(ConfigurationError, match="name the stream instead"):
                place_of(f"{url}?stream={{app}}:dead-letter")
            assert redrive(f"{url}?stream=app").redriven == 5
            assert found(client, "app") == letters(5)


class TestToAnotherServer:
    def test_everything_goes_there(
        self, server: RedisServer, client: redis.Redis, other: RedisServer, there: redis.Redis
    ) -> None:
        fill(client, "app:dead-letter", 1_100)
        there.set(keys_for("new", "one").fence, 10**6)  # it must not keep what comes late out
        tally = redrive(f"{server.url}?stream=app", f"{other.url}?stream=new")
        assert (tally.redriven, tally.left) == (1_100, 0)
        assert found(there, "new") == letters(1_100)
        assert client.xlen("app:dead-letter") == 0
        assert set(there.keys()) == {keys_for("new", "one").fence, b"new"}  # and no mark

    @pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
    @pytest.mark.parametrize("hurt", ["source", "destination"])
    def test_cut_anywhere_and_run_again(
        self,
        server: RedisServer,
        client: redis.Redis,
        other: RedisServer,
        there: redis.Redis,
        direction: str,
        hurt: str,
    ) -> None:
        target = server if hurt == "source" else other
        with FaultProxy("127.0.0.1", target.port) as proxy:
            url, to = f"{server.url}?stream=app", f"{other.url}?stream=new"
            if hurt == "source":
                url = through(proxy, "app")
            else:
                to = through(proxy, "new")
            fill(client, "app:dead-letter", 30)
            before = proxy.passed[direction]
            redrive(url, to)
            length = proxy.passed[direction] - before
            for count in sorted({*range(0, length, max(1, length // 30)), 1, length - 1}):
                client.flushall()
                there.flushall()
                fill(client, "app:dead-letter", 30)
                proxy.cut_after(count, direction)
                try:
                    redrive(url, to)
                except UnavailableError:
                    kept = found(client, "app:dead-letter")  # first: what is deleted was appended before
                    assert {*kept, *found(there, "new")} == set(letters(30)), f"cut at {count}"
                proxy.heal()
                until_done(url, to)
                assert found(there, "new") == letters(30), f"cut at {count}"
                assert client.xlen("app:dead-letter") == 0

    def test_what_the_server_takes_for_too_long_stays(
        self, server: RedisServer, client: redis.Redis, other: RedisServer, there: redis.Redis
    ) -> None:
        there.config_set("proto-max-bulk-len", 1024 * 1024)
        try:
            fill(client, "app:dead-letter", 4)
            fill(client, "app:dead-letter", 1, size=1_200_000)
            client.xadd(
                "app:dead-letter", {"event": payload("two", 9), "producer": "two", "seq": 9, "reason": "too large"}
            )
            tally = redrive(f"{server.url}?stream=app", f"{other.url}?stream=new")
            assert (tally.redriven, tally.rejected, tally.left) == (5, 1, 0)
            assert found(there, "new") == [*letters(4), ("two", 9)]
            assert found(client, "app:dead-letter") == [("one", 1)]
            assert "longer than the server takes" in next(iter(tally.stayed))
        finally:
            there.config_set("proto-max-bulk-len", 512 * 1024 * 1024)

    def test_nobody_there(self, server: RedisServer, client: redis.Redis) -> None:
        fill(client, "app:dead-letter", 4)
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            redrive(f"{server.url}?stream=app", "redis://user:secret@127.0.0.1:1/0?stream=new")
        assert time.monotonic() - began < 10
        assert found(client, "app:dead-letter") == letters(4)
