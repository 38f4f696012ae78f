"""RedisConsumer on a real Redis: start positions, groups, claims, doubles, lost connections, lost streams."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.consumers import Consumer, RedisConsumer
from streamll.errors import ConsumerError
from streamll.models import StreamllEvent
from streamll.sinks.redis import RedisSink
from tests.fixtures.redis import RedisEndpoint, RedisSentinel, RedisServer
from tests.fixtures.tls import TLSFiles
from tests.integration.conftest import IntegrationTestBase

pytestmark = [pytest.mark.integration, pytest.mark.redis]

wait_for_condition = IntegrationTestBase.wait_for_condition


def fields(seq: int, producer: str = "p") -> Any:
    """An entry as RedisSink writes it."""
    event = StreamllEvent(event_type="t", operation=f"op {seq}")
    return {"event": codec.encode(event), "producer": producer, "seq": seq}


def add(client: redis.Redis, stream: str, numbers: Iterable[int], producer: str = "p") -> list[str]:
    """Append events; returns their ids."""
    pipe = client.pipeline(transaction=False)
    for number in numbers:
        pipe.xadd(stream, fields(number, producer))
    return [ident.decode() for ident in pipe.execute()]


def seqs(consumer: Consumer) -> list[int]:
    return [item.seq for item in consumer]


def pending(client: redis.Redis, stream: str, group: str) -> int:
    found: Any = client.xpending(stream, group)
    return int(found["pending"])


class TestAlone(IntegrationTestBase):
    def test_what_a_sink_wrote_is_read_back(self, redis_server: RedisEndpoint, cleanup_stream: str) -> None:
        events = [self.create_test_event(data={"n": n}, tags={"team": "blue"}) for n in range(1200)]
        with RedisSink(url=redis_server.url, stream_key=cleanup_stream) as sink:
            assert all(sink.handle_event(event) for event in events)
            assert sink.flush()
            producer = sink.stats().producer
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            items = list(consumer)
        assert [item.seq for item in items] == list(range(1, 1201))
        assert {item.producer for item in items} == {producer}
        for item, event in zip(items, events, strict=True):
            assert item.event is not None
            item.event.resource = {}
            assert item.event == event
        stats = consumer.stats()
        assert (stats.received, stats.undecodable, stats.duplicates) == (1200, 0, 0)
        assert stats.bytes == sum(len(item.payload) for item in items)
        with RedisConsumer(redis_server.url, cleanup_stream, start=stats.position, follow=False) as consumer:
            assert seqs(consumer) == []

    def test_start_positions(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        ids = add(redis_client, cleanup_stream, range(1, 6))

        def read(start: str | None, follow: bool = False) -> list[int]:
            with RedisConsumer(redis_server.url, cleanup_stream, start=start, follow=follow, timeout=0.0) as consumer:
                return seqs(consumer)

        assert read(None) == read("beginning") == [1, 2, 3, 4, 5]
        assert read(ids[2]) == [4, 5]
        assert read("end") == read("end", follow=True) == []

    def test_from_the_end_on(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        add(redis_client, cleanup_stream, range(1, 6))
        with RedisConsumer(redis_server.url, cleanup_stream, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []
            add(redis_client, cleanup_stream, range(6, 9))
            assert seqs(consumer) == [6, 7, 8]

    def test_waiting_for_what_comes(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        with RedisConsumer(redis_server.url, cleanup_stream, timeout=20.0) as consumer:
            writer = threading.Timer(0.4, add, (redis_client, cleanup_stream, [1]))
            writer.start()
            assert next(consumer).seq == 1
            writer.join()

    def test_without_following_it_ends_at_what_was_there(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 1001))
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False, page_size=100) as consumer:
            assert next(consumer).seq == 1
            add(redis_client, cleanup_stream, [1001])
            assert seqs(consumer) == list(range(2, 1001))

    def test_a_restart_in_the_middle(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 1001))
        with RedisConsumer(redis_server.url, cleanup_stream) as consumer:
            first = [next(consumer).seq for _ in range(333)]
            position = consumer.stats().position
        with RedisConsumer(redis_server.url, cleanup_stream, start=position, follow=False) as consumer:
            assert first + seqs(consumer) == list(range(1, 1001))

    def test_doubles_are_dropped(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 3, 2, 3, 4])
        add(redis_client, cleanup_stream, [1, 2], producer="another")
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3, 4, 1, 2]
            assert consumer.stats().duplicates == 2

    def test_what_is_no_event_is_handed_over(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        strange: list[Any] = [
            {"event": b"\x81\xa1", "producer": "p", "seq": 1},
            {"temperature": "21"},
            {"event": b"x" * 5000, "seq": "1", "producer": "q"},
            {"event": codec.encode(StreamllEvent(event_type="t")), "seq": "-1"},
            {"events": b"many"},
            {b"\xff": b"\x00"},
        ]
        for one in strange:
            redis_client.xadd(cleanup_stream, one)
        add(redis_client, cleanup_stream, [7])
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False, max_event_bytes=4000) as consumer:
            items = list(consumer)
        assert [item.event is None for item in items] == [True] * 6 + [False]
        assert all(item.error for item in items[:6])
        assert items[1].payload == b"temperature=21"
        assert "5,000 bytes" in items[2].error
        assert consumer.stats().undecodable == 6

    def test_dead_letters_say_why(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        redis_client.xadd(cleanup_stream, {**fields(1), "reason": "too large"})
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            assert [item.dead_letter for item in consumer] == ["too large"]

    def test_a_trimmed_stream_goes_on_with_what_is_left(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 301))
        with RedisConsumer(redis_server.url, cleanup_stream, page_size=100, timeout=0.0) as consumer:
            first = [next(consumer).seq for _ in range(50)]
            redis_client.xtrim(cleanup_stream, maxlen=100, approximate=False)
            rest = seqs(consumer)
        assert first == list(range(1, 51))
        assert rest[-100:] == list(range(201, 301))
        assert rest == sorted(rest)

    def test_a_stream_made_anew_is_read_from_its_beginning(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 4))
        with RedisConsumer(redis_server.url, cleanup_stream, timeout=20.0) as consumer:
            assert [next(consumer).seq for _ in range(3)] == [1, 2, 3]
            redis_client.delete(cleanup_stream)
            redis_client.xadd(cleanup_stream, fields(1, "another"), id="1-1")  # below what was read
            item = next(consumer)
            assert (item.producer, item.position) == ("another", "1-1")
            assert consumer.stats().reconnects == 1

    def test_a_stream_that_is_not_there_yet(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        with RedisConsumer(redis_server.url, cleanup_stream, start="end", timeout=0.0) as consumer:
            assert seqs(consumer) == []
            add(redis_client, cleanup_stream, [1])
            assert seqs(consumer) == [1]
        with RedisConsumer(redis_server.url, f"{cleanup_stream}:none", follow=False) as consumer:
            assert seqs(consumer) == []

    def test_a_key_that_is_no_stream(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        redis_client.set(cleanup_stream, "x")
        with (
            RedisConsumer(redis_server.url, cleanup_stream) as consumer,
            pytest.raises(ConsumerError, match="no stream"),
        ):
            next(consumer)

    def test_large_entries_come_in_small_pages(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        payload = codec.encode(StreamllEvent(event_type="t", data={"text": "x" * 1_000_000}))
        for seq in range(1, 61):
            redis_client.xadd(cleanup_stream, {"event": payload, "producer": "p", "seq": seq})
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False) as consumer:
            in_memory = []
            for item in consumer:
                in_memory.append(len(consumer._ready))
                if item.seq == 60:
                    break
        assert max(in_memory[50:]) <= 4  # after the first page it knows how large they are


class TestServers(IntegrationTestBase):
    def test_nobody_there(self) -> None:
        with (
            RedisConsumer("redis://user:secret@127.0.0.1:1/0") as consumer,
            pytest.raises(ConsumerError, match=r"127\.0\.0\.1:1") as caught,
        ):
            next(consumer)
        assert "secret" not in str(caught.value)

    def test_a_wrong_password(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(requirepass="right")
        with (
            RedisConsumer(server.url.replace("right", "wrong-secret")) as consumer,
            pytest.raises(ConsumerError) as caught,
        ):
            next(consumer)
        assert "wrong-secret" not in str(caught.value)
        assert "password" in str(caught.value)

    def test_a_user_who_may_only_read(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        with server.client() as client:
            add(client, "app", range(1, 4))
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~app", "+xread", "+xrevrange")
        url = f"redis://reader:pw@127.0.0.1:{server.port}/0?stream=app"
        with RedisConsumer(url, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3]
        with RedisConsumer(url, group="g") as consumer, pytest.raises(ConsumerError, match="may not"):
            next(consumer)

    def test_a_restarted_server(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(appendonly="yes", appendfsync="always")
        with server.client() as client:
            add(client, "app", range(1, 101))
        with RedisConsumer(server.url, "app", page_size=50, timeout=30.0, retry_bound=0.2) as consumer:
            read = [next(consumer).seq for _ in range(60)]
            server.kill()
            back = threading.Timer(0.5, server.start)
            back.start()
            read += [next(consumer).seq for _ in range(40)]
            back.join()
            with server.client() as client:
                add(client, "app", [101])
            read.append(next(consumer).seq)
            stats = consumer.stats()
        assert read == list(range(1, 102))
        assert stats.reconnects == 1
        assert stats.last_error

    def test_a_server_that_lost_everything(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        with server.client() as client:
            client.xadd("app", fields(1), id="9999999999999-0")
        with RedisConsumer(server.url, "app", timeout=30.0, retry_bound=0.2) as consumer:
            assert next(consumer).seq == 1
            server.restart(keep_data=False)
            with server.client() as client:
                add(client, "app", [2])  # its id is below the one that was read last
            assert next(consumer).seq == 2

    def test_a_frozen_server(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        with server.client() as client:
            add(client, "app", range(1, 4))
        with RedisConsumer(server.url, "app", timeout=30.0, read_timeout=0.3, retry_bound=0.2) as consumer:
            assert [next(consumer).seq for _ in range(3)] == [1, 2, 3]
            server.freeze()
            thaw = threading.Timer(1.0, server.thaw)
            writer = threading.Timer(1.2, lambda: add(client, "app", [4]))
            thaw.start()
            writer.start()
            assert next(consumer).seq == 4
            thaw.join()
            writer.join()
            assert consumer.stats().reconnects >= 1

    @pytest.mark.parametrize("group", ["", "readers"])
    def test_a_reader_outlives_the_servers_turn_as_a_replica(
        self, own_redis: Callable[..., RedisServer], group: str
    ) -> None:
        """Which the server tells those who wait there: UNBLOCKED."""
        server = own_redis()
        got: list[int] = []
        with server.client() as client:
            consumer = RedisConsumer(server.url, "app", group=group, retry_bound=0.2)
            reader = threading.Thread(target=lambda: got.extend(item.seq for item in consumer))
            reader.start()
            assert wait_for_condition(lambda: client.info("clients")["blocked_clients"] > 0)
            client.replicaof("127.0.0.1", "1")
            client.replicaof("NO", "ONE")
            assert wait_for_condition(lambda: client.info("clients")["blocked_clients"] > 0)
            add(client, "app", [1, 2])
            assert wait_for_condition(lambda: got == [1, 2])
        consumer.close()
        reader.join(4.0)
        assert not reader.is_alive()

    def test_closing_does_not_wait_for_a_frozen_server(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        consumer = RedisConsumer(server.url, "app")
        reader = threading.Thread(target=lambda: seqs(consumer))
        reader.start()
        with server.client() as client:
            assert wait_for_condition(lambda: client.info("clients")["blocked_clients"] > 0)
        server.freeze()
        time.sleep(0.5)  # long enough for the reader to wait for an answer that does not come
        began = time.monotonic()
        consumer.close()
        assert time.monotonic() - began < 4.0  # read_timeout is 5 s
        reader.join(4.0)
        assert not reader.is_alive()
        server.thaw()

    def test_a_given_client(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        add(redis_client, cleanup_stream, range(1, 4))
        with RedisConsumer(stream_key=cleanup_stream, client=redis_client, follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3]

    def test_a_unix_socket_and_tls(self, own_redis: Callable[..., RedisServer], tls_files: TLSFiles) -> None:
        server = own_redis(unixsocket=True, tls=tls_files)
        with server.client() as client:
            add(client, "app", range(1, 4))
        for url in (server.unix_url, server.tls_url):
            with RedisConsumer(url, "app", follow=False) as consumer:
                assert seqs(consumer) == [1, 2, 3]

    def test_a_cluster(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(cluster=True)
        with server.client() as client:
            add(client, "app", range(1, 4))
        url = server.url.replace("redis://", "redis+cluster://").removesuffix("/0")
        with RedisConsumer(url, "app", follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3]

    def test_sentinels(self, own_redis: Callable[..., RedisServer], own_sentinel: Callable[..., RedisSentinel]) -> None:
        server = own_redis()
        sentinel = own_sentinel(server)
        with server.client() as client:
            add(client, "app", range(1, 4))
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/streamll-primary/0"
        with RedisConsumer(url, "app", follow=False) as consumer:
            assert seqs(consumer) == [1, 2, 3]


class TestGroups(IntegrationTestBase):
    def test_every_entry_goes_to_one_member(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 401))
        options: dict[str, Any] = {"group": "g", "follow": False, "page_size": 10}
        with (
            RedisConsumer(redis_server.url, cleanup_stream, consumer="a", **options) as first,
            RedisConsumer(redis_server.url, cleanup_stream, consumer="b", **options) as second,
        ):
            read: list[int] = []
            for one, other in zip(first, second, strict=True):
                read += [one.seq, other.seq]
                one.ack()
                other.ack()
        assert sorted(read) == list(range(1, 401))
        assert pending(redis_client, cleanup_stream, "g") == 0

    def test_the_group_is_made_where_it_is_to_start(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        ids = add(redis_client, cleanup_stream, range(1, 6))
        for start, expected in (("beginning", [1, 2, 3, 4, 5]), ("end", []), (ids[2], [4, 5])):
            with RedisConsumer(
                redis_server.url, cleanup_stream, group=f"g {start}", start=start, follow=False
            ) as consumer:
                assert seqs(consumer) == expected

    def test_a_group_that_must_exist(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        options: dict[str, Any] = {"group": "g", "make_group": False, "follow": False}
        for number in (1, 2):
            with (
                RedisConsumer(redis_server.url, cleanup_stream, **options) as consumer,
                pytest.raises(ConsumerError, match="has no group 'g'"),
            ):
                next(consumer)
            add(redis_client, cleanup_stream, [number])
        redis_client.xgroup_create(cleanup_stream, "g", "0")
        with RedisConsumer(redis_server.url, cleanup_stream, **options) as consumer:
            assert seqs(consumer) == [1, 2]

    def test_what_was_not_acknowledged_comes_back_to_the_same_name(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 301))
        options: dict[str, Any] = {"group": "g", "consumer": "a", "page_size": 100}
        with RedisConsumer(redis_server.url, cleanup_stream, **options) as consumer:
            for item in consumer:
                if item.seq % 2:
                    item.ack()
                if item.seq == 120:
                    break
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False, **options) as consumer:
            items = list(consumer)
            for item in items:
                item.ack()
        again = [item.seq for item in items if item.redelivered]
        assert again == [*range(2, 121, 2), *range(121, 151)]
        assert [item.seq for item in items if not item.redelivered] == list(range(151, 301))
        assert pending(redis_client, cleanup_stream, "g") == 0

    @pytest.mark.parametrize("renamed", [[], ['XAUTOCLAIM ""']])
    def test_what_a_dead_member_had_is_claimed(self, own_redis: Callable[..., RedisServer], renamed: list[str]) -> None:
        server = own_redis(rename_command=renamed)  # without XAUTOCLAIM it is a server before 6.2
        with server.client() as client:
            add(client, "app", range(1, 301))
            client.xgroup_create("app", "g", "0")
            client.xreadgroup("g", "dead", {"app": ">"}, count=120)
            options: dict[str, Any] = {"group": "g", "claim_idle": 0.2, "page_size": 50, "timeout": 20.0}
            with RedisConsumer(server.url, "app", **options) as consumer:
                items = []
                for item in consumer:
                    items.append(item)
                    item.ack()
                    if len(items) == 300:
                        break
                assert sorted(item.seq for item in items) == list(range(1, 301))
                assert {item.seq for item in items if item.redelivered} == set(range(1, 121))
            assert pending(client, "app", "g") == 0

    def test_nothing_is_claimed_when_it_is_not_to_be(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 6))
        redis_client.xgroup_create(cleanup_stream, "g", "0")
        redis_client.xreadgroup("g", "other", {cleanup_stream: ">"}, count=3)
        for claim_idle in (None, 300.0):
            with RedisConsumer(
                redis_server.url, cleanup_stream, group="g", consumer="a", claim_idle=claim_idle, follow=False
            ) as consumer:
                assert seqs(consumer) == [4, 5]

    def test_doubles_are_acknowledged(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, [1, 2, 2, 1, 3])
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", follow=False) as consumer:
            assert len(list(consumer.events())) == 3
            assert consumer.stats().duplicates == 2
        assert pending(redis_client, cleanup_stream, "g") == 0

    def test_what_is_no_event_does_not_stay_pending(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        redis_client.xadd(cleanup_stream, {"temperature": "21"})
        add(redis_client, cleanup_stream, [1])
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", follow=False) as consumer:
            assert [event.operation for event in consumer.events()] == ["op 1"]
            assert consumer.stats().undecodable == 1
        assert pending(redis_client, cleanup_stream, "g") == 0
        assert redis_client.xlen(cleanup_stream) == 2

    def test_entries_that_were_trimmed_while_they_were_pending(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 21))
        options: dict[str, Any] = {"group": "g", "consumer": "a"}
        with RedisConsumer(redis_server.url, cleanup_stream, page_size=10, **options) as consumer:
            next(consumer)
        redis_client.xtrim(cleanup_stream, maxlen=15, approximate=False)
        with RedisConsumer(redis_server.url, cleanup_stream, follow=False, **options) as consumer:
            items = list(consumer)
            for item in items:
                item.ack()
        assert [item.seq for item in items] == list(range(6, 21))
        assert consumer.stats().pending_lost == 5
        assert pending(redis_client, cleanup_stream, "g") == 0

    def test_entries_that_were_trimmed_before_they_could_be_claimed(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 11))
        redis_client.xgroup_create(cleanup_stream, "g", "0")
        redis_client.xreadgroup("g", "dead", {cleanup_stream: ">"})
        redis_client.xtrim(cleanup_stream, maxlen=4, approximate=False)
        time.sleep(0.05)
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", claim_idle=0.01, follow=False) as consumer:
            read = []
            for item in consumer:
                read.append(item.seq)
                item.ack()
        assert read == [7, 8, 9, 10]
        assert consumer.stats().pending_lost in (6, 0)  # Redis 6.2 does not say

    def test_a_made_up_name_leaves_the_group(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 3))
        for acknowledges, left in ((False, 1), (True, 1)):
            with RedisConsumer(redis_server.url, cleanup_stream, group="g", follow=False, claim_idle=None) as consumer:
                for item in consumer:
                    if acknowledges:
                        item.ack()
            found: Any = redis_client.xinfo_consumers(cleanup_stream, "g")
            assert len(found) == left  # the first one left something pending, so its name must stay
            add(redis_client, cleanup_stream, [3])

    def test_a_stream_that_is_deleted_while_a_group_reads_it(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 4))
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", timeout=20.0) as consumer:
            events = consumer.events()
            assert [next(events).operation for _ in range(3)] == ["op 1", "op 2", "op 3"]
            remover = threading.Timer(0.3, redis_client.delete, (cleanup_stream,))
            writer = threading.Timer(0.8, add, (redis_client, cleanup_stream, [4]))
            remover.start()
            writer.start()
            assert next(events).operation == "op 4"
            remover.join()
            writer.join()

    def test_a_group_that_is_destroyed_goes_on_where_it_was(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        add(redis_client, cleanup_stream, range(1, 4))
        with RedisConsumer(redis_server.url, cleanup_stream, group="g", timeout=20.0) as consumer:
            assert [next(consumer).seq for _ in range(3)] == [1, 2, 3]
            redis_client.xgroup_destroy(cleanup_stream, "g")
            add(redis_client, cleanup_stream, [4])
            assert next(consumer).seq == 4
            assert consumer.stats().duplicates == 0

    def test_a_server_killed_in_the_middle(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(appendonly="yes", appendfsync="always")
        with server.client() as client:
            add(client, "app", range(1, 201))
        options: dict[str, Any] = {"group": "g", "page_size": 50, "timeout": 30.0, "retry_bound": 0.2}
        with RedisConsumer(server.url, "app", **options) as consumer:
            read = []
            for item in consumer:
                read.append(item.seq)
                if item.seq == 75:
                    server.restart()  # with items of the page at hand, and acknowledgements that were not sent
                item.ack()
                if item.seq == 200:
                    break
            assert consumer.stats().reconnects == 1
        assert read == list(range(1, 201))
        with server.client() as client:
            assert pending(client, "app", "g") == 0


class TestAsync(IntegrationTestBase):
    def test_reading_while_the_loop_does_other_things(
        self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str
    ) -> None:
        async def main() -> tuple[list[int], int]:
            ticks = 0
            done = asyncio.Event()

            async def tick() -> None:
                nonlocal ticks
                while not done.is_set():
                    await asyncio.sleep(0.01)
                    ticks += 1

            async def write() -> None:
                for number in range(1, 21):
                    await asyncio.to_thread(add, redis_client, cleanup_stream, [number])
                    await asyncio.sleep(0.02)

            read: list[int] = []
            async with RedisConsumer(redis_server.url, cleanup_stream, timeout=20.0) as consumer:
                others = [asyncio.ensure_future(tick()), asyncio.ensure_future(write())]
                async for item in consumer:
                    read.append(item.seq)
                    if item.seq == 20:
                        break
                done.set()
                await asyncio.gather(*others)
            return read, ticks

        read, ticks = asyncio.run(main())
        assert read == list(range(1, 21))
        assert ticks >= 10

    def test_cancelling_while_the_server_is_frozen(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()

        async def main() -> float:
            async with RedisConsumer(server.url, "app", timeout=0.0) as first:
                assert [item async for item in first] == []
            consumer = RedisConsumer(server.url, "app")
            waiting = asyncio.ensure_future(anext(consumer))
            await asyncio.sleep(0.1)
            server.freeze()
            await asyncio.sleep(0.5)
            began = time.monotonic()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await consumer.aclose()
            return time.monotonic() - began

        assert asyncio.run(main()) < 4.0  # read_timeout is 5 s
        server.thaw()

    def test_a_group(self, redis_server: RedisEndpoint, redis_client: redis.Redis, cleanup_stream: str) -> None:
        add(redis_client, cleanup_stream, range(1, 301))

        async def main() -> int:
            async with RedisConsumer(redis_server.url, cleanup_stream, group="g", follow=False) as consumer:
                return len([event async for event in consumer.events()])

        assert asyncio.run(main()) == 300
        assert pending(redis_client, cleanup_stream, "g") == 0
