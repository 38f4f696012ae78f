"""RedisSink as a user meets it, and what `streamll check` says of real servers."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from streamll import codec
from streamll.models import StreamllEvent
from streamll.sinks.base import Finding
from streamll.sinks.redis import RedisSink
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from tests.fixtures.process import free_port
from tests.fixtures.redis import RedisEndpoint, RedisServer
from tests.fixtures.waiting import wait_until
from tests.sinks.redis_fixtures import OwnRedis
from tests.sinks.redis_tools import read, read_apart

pytestmark = [pytest.mark.redis, pytest.mark.integration]

# The sink


def test_events_are_read_back_from_the_stream(redis_server: RedisEndpoint) -> None:
    stream = f"streamll-test-sink-{time.time_ns()}"
    with redis_server.client() as client:
        try:
            with RedisSink(redis_server.url, stream_key=stream) as sink:
                for number in range(1200):
                    assert sink.handle_event(StreamllEvent(event_type="token", data={"number": number}))
                assert sink.flush(10.0)
                stats = sink.stats()
            assert stats.balanced
            assert (stats.delivered, stats.lost_after_ack, stats.failed_batches) == (1200, 0, 0)
            found, notes = read_apart(client, stream)
            assert [codec.decode(entry.payload).data["number"] for entry in found] == list(range(1200))
            assert [entry.seq for entry in found] == list(range(1, 1201))
            assert [closing.seq for closing in notes] == [1201]
            assert {entry.producer for entry in (*found, *notes)} == {sink.producer}
        finally:
            client.delete(stream, f"{{{stream}}}:fence:{sink.producer}")


def test_everything_in_the_url(server: RedisServer) -> None:
    url = server.url + "?stream=app&max_stream_length=50&trim=exact&create_group=readers&encoding=json&name=events"
    with RedisSink.from_url(url) as sink:
        for _ in range(120):
            sink.handle_event(StreamllEvent(event_type="token"))
        assert sink.flush(10.0)
        assert (sink.name, sink.destination) == ("events", f"redis://127.0.0.1:{server.port}/0 stream app")
    with server.client() as client:
        assert client.xlen("app") == 50
        assert all(entry.payload.startswith(b"{") for entry in read(client, "app"))


def test_a_given_client_and_its_password_stay_out_of_sight(own_redis: OwnRedis) -> None:
    server = own_redis(requirepass="hush")
    with redis.Redis(host="127.0.0.1", port=server.port, password="hush") as client:
        with RedisSink(client=client, stream_key="app") as sink:
            sink.handle_event(StreamllEvent(event_type="token"))
            assert sink.flush(10.0)
            assert "hush" not in repr(sink)
            assert sink.destination == f"redis://127.0.0.1:{server.port}/0 stream app"
        found, notes = read_apart(client, "app")
        assert ([entry.seq for entry in found], [closing.seq for closing in notes]) == ([1], [2])


def test_a_dead_server_that_comes_back(server: RedisServer) -> None:
    server.stop()
    sink = RedisSink(server.url, stream_key="app", recovery_timeout=0.2, retry_bound=0.05)
    sink.start()
    for number in range(50):
        assert sink.handle_event(StreamllEvent(event_type="token", data={"number": number}))
    assert not sink.flush(0.3)
    assert sink.stats().balanced
    assert "Connection refused" in sink.stats().last_error
    server.start()
    assert sink.flush(10.0)
    with server.client() as client:
        assert len(read(client, "app")) == 50  # it has not ended yet, and has dropped nothing: no notes
    assert sink.stop().balanced


def test_an_event_that_the_server_cannot_take_does_not_stop_the_others(own_redis: OwnRedis) -> None:
    server = own_redis(proto_max_bulk_len="1mb")
    from streamll.options import PipelineOptions
    from streamll.pipeline import Pipeline

    pipeline = Pipeline(PipelineOptions(max_event_bytes=4 * 1024 * 1024))
    with RedisSink(server.url, stream_key="app", pipeline=pipeline, retry_bound=0.05) as sink:
        for size in (10, 2_000_000, 10):
            sink.handle_event(
                StreamllEvent(event_type="token", data={f"n{n}": "x" * 1000 for n in range(size // 1000)})
            )
        assert sink.flush(10.0)
        stats = sink.stats()
    assert stats.balanced
    assert stats.delivered == 2
    assert dict(stats.dropped) == {"dead_letter_failed": 1}  # even its dead letter is too long
    with server.client() as client:
        found, notes = read_apart(client, "app")
        assert [entry.seq for entry in found] == [1, 3]
        gap, closing = notes
        assert codec.decode(gap.payload).data == {"count": 1, "ranges": [[2, 2]], "reasons": stats.dropped}
        assert (gap.seq, closing.seq) == (2, 4)
        assert [entry.seq for entry in read(client, "app")] == [1, 2, 3, 4]


def test_events_from_many_threads_over_a_network_that_is_cut_again_and_again(server: RedisServer) -> None:
    dice = random.Random(7)
    with FaultProxy("127.0.0.1", server.port) as proxy:
        sink = RedisSink(
            f"redis://127.0.0.1:{proxy.port}/0?stream=app",
            buffer_size=100_000,
            flush_interval=0.0,
            retry_bound=0.01,
            circuit_breaker=False,
        )
        sink.start()

        def emit(thread: int) -> None:
            for number in range(5000):
                sink.handle_event(StreamllEvent(event_type="token", data={"thread": thread, "number": number}))

        threads = [threading.Thread(target=emit, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(150):
            proxy.cut_after(dice.randrange(60_000), dice.choice([TO_SERVER, TO_CLIENT]))
            assert sink.stats().balanced
            time.sleep(0.01)
        for thread in threads:
            thread.join()
        proxy.heal()
        assert sink.flush(20.0)
        stats = sink.stop()
    assert stats.balanced
    assert (stats.delivered, stats.lost_after_ack) == (15_000, 0)
    assert stats.failed_batches > 0
    with server.client() as client:
        found, notes = read_apart(client, "app")
    assert [entry.seq for entry in found] == list(range(1, 15_001))
    assert [closing.seq for closing in notes] == [15_001]
    told = [codec.decode(entry.payload).data for entry in found]
    for thread_number in range(3):
        mine = [data["number"] for data in told if data["thread"] == thread_number]
        assert mine == list(range(5000))


@pytest.mark.parametrize("fence", ["script", "transaction"])
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
def test_notes_are_there_once_wherever_the_connection_is_cut(server: RedisServer, fence: str, direction: str) -> None:
    options: dict[str, Any] = {
        "buffer_size": 12,
        "flush_interval": 0.0,
        "retry_bound": 0.01,
        "circuit_breaker": False,
        "fence": fence,
    }
    with FaultProxy("127.0.0.1", server.port) as proxy, server.client() as client:
        for number, count in enumerate(range(0, 3000, 150) if direction == TO_SERVER else range(0, 200, 10)):
            proxy.refuse()
            sink = RedisSink(f"redis://127.0.0.1:{proxy.port}/0", stream_key=f"app{number}", **options)
            assert sink.handle_event(StreamllEvent(event_type="token"))
            assert wait_until(lambda sink=sink: sink.stats().in_flight == 1)  # type: ignore[misc]
            for priority in ("critical", "debug", "debug") * 6:  # 2 to 19, of which 7 debug ones give way
                sink.handle_event(StreamllEvent(event_type="token", priority=priority))
            proxy.heal()
            proxy.cut_after(count, direction)
            stats = sink.stop(20.0)
            assert (stats.delivered, stats.dropped, stats.declared) == (12, {"overflow": 7}, 7)
            events, (gap, *closing) = read_apart(client, f"app{number}")
            ranges = [[3, 4], [6, 7], [9, 10], [12, 12]]
            assert codec.decode(gap.payload).data == {"count": 7, "ranges": ranges, "reasons": {"overflow": 7}}
            assert (gap.seq, len(events)) == (12, 12)
            assert [one.seq for one in closing] in ([20], [])  # where the cut was in that, it is not tried again
            seqs = [entry.seq for entry in read(client, f"app{number}")]
            assert seqs == sorted(set(seqs))


# The check


def texts(findings: list[Finding], level: str = "") -> str:
    return "\n".join(f"{found.text} -> {found.remedy}" for found in findings if not level or found.level == level)


def checked(server: RedisServer, query: str = "stream=app", user: str = "") -> list[Finding]:
    """Check a server, and see that nothing is left behind on it."""
    with server.client() as client:
        before = sorted(client.keys())
        findings = RedisSink.check_url(f"redis://{user}127.0.0.1:{server.port}/0?{query}")
        assert sorted(client.keys()) == before
    return findings


def test_a_good_server(own_redis: OwnRedis) -> None:
    server = own_redis(appendonly="yes", appendfsync="always", maxmemory="100mb")
    findings = checked(server)
    assert [found.level for found in findings] == ["ok"] * len(findings)
    with server.client() as client:
        version = client.info("server")["redis_version"]
    for part in (
        f"Redis {version}",
        "app does not exist yet",
        "may append to app",
        "transactions are permitted",
        "noeviction",
        "on disk before it is acknowledged",
    ):
        assert part in texts(findings)


def test_a_stream_with_readers(server: RedisServer) -> None:
    with server.client() as client:
        for _ in range(30):
            client.xadd("app", {"event": "x"})
    assert "has 30 entries and no consumer group" in texts(checked(server), "ok")
    with server.client() as client:
        client.xgroup_create("app", "readers", "0")
        untyped: Any = client
        untyped.xreadgroup("readers", "one", {"app": ">"}, count=7)
    assert "consumer groups: readers (7 pending)" in texts(checked(server), "ok")
    assert "the first batch trims it to about 10 entries" in texts(checked(server, "stream=app&max_stream_length=10"))


def test_persistence(own_redis: OwnRedis, server: RedisServer) -> None:
    assert "a restart loses all events" in texts(checked(server), "warning")
    with server.client() as client:
        client.config_set("save", "3600 1")
        assert "after the last snapshot" in texts(checked(server), "warning")
        client.config_set("appendonly", "yes")
        assert "appendfsync everysec" in texts(checked(server), "ok")


@pytest.mark.parametrize(
    ("policy", "lost"), [("allkeys-lru", "the stream and its fence"), ("volatile-ttl", "the fence, which")]
)
def test_a_policy_that_evicts(server: RedisServer, policy: str, lost: str) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        assert "no memory limit" in texts(checked(server), "ok")
        client.config_set("maxmemory", "100mb")
    assert lost in texts(checked(server), "warning")
    assert "maxmemory-policy noeviction" in texts(checked(server), "warning")


def test_a_full_server(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1000")
        assert "cannot append to app: OOM" in texts(checked(server), "error")


def test_a_replica_and_its_primary(own_redis: OwnRedis, server: RedisServer) -> None:
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    assert "is a replica" in texts(checked(replica), "error")
    deadline = time.monotonic() + 10.0
    while "1 replicas follow a little later" not in texts(checked(server), "warning"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "when 1 of 1 replicas have it" in texts(checked(server, "wait_replicas=1"), "ok")
    assert "no batch would count as delivered" in texts(checked(server, "wait_replicas=2"), "error")


def test_a_key_of_another_kind(server: RedisServer) -> None:
    with server.client() as client:
        client.lpush("app", "x")
    assert "the key app exists and is a list" in texts(checked(server), "error")


def test_a_user_without_transactions(server: RedisServer) -> None:
    with server.client() as client:
        for missing in ("@transaction", "exec"):
            client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", f"-{missing}")
            found = texts(checked(server, user="app:pw@"), "ok")
            assert "by a script, since transactions are not permitted" in found
    refused = texts(checked(server, "stream=app&fence=transaction", user="app:pw@"), "error")
    assert "batches cannot be fenced: NOPERM" in refused
    assert "+multi" in refused
    assert "stored once, by a script" in texts(checked(server, "stream=app&fence=script", user="app:pw@"), "ok")
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "-@scripting")
    assert "batches cannot be fenced" in texts(checked(server, user="app:pw@"), "error")
    assert "batches cannot be fenced" in texts(checked(server, "fence=script", user="app:pw@"), "error")


def test_a_user_who_may_do_little(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~other", "+xadd", "+evalsha", "+eval")
    findings = checked(server, user="app:pw@")
    errors = texts(findings, "error")
    for action in (
        "append to app:",
        "append to its dead letters, app:dead-letter",
        "write the fence, {app}:fence:check",
    ):
        assert f"cannot {action}" in errors
    assert "ACL SETUSER <user> ~app ~{app}:fence:* ~app:dead-letter" in errors
    assert "could not be seen" in texts(findings, "warning")
    assert "could not be looked at" in texts(findings, "warning")


def test_the_rules_that_are_recommended_are_enough(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~nothing")
        remedy = next(
            found.remedy for found in checked(server, user="app:pw@") if found.remedy.startswith("ACL SETUSER")
        )
        rules = remedy.removeprefix("ACL SETUSER <user> ").partition(" (or")[0].split()
        client.execute_command("ACL", "SETUSER", "app", *rules)
        assert not texts(checked(server, user="app:pw@"), "error")
        with RedisSink(f"redis://app:pw@127.0.0.1:{server.port}/0?stream=app") as sink:
            sink.handle_event(StreamllEvent(event_type="token"))
            assert sink.flush(10.0), sink.stats().last_error
        assert [len(part) for part in read_apart(client, "app")] == [1, 1]
        assert 0 < client.ttl(f"{{app}}:fence:{sink.producer}") <= 60


def test_a_user_who_may_not_look_around(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-config", "-xinfo", "-xlen", "-ping"
        )
        client.xadd("app", {"event": "x"})
        findings = checked(server, user="app:pw@")
        assert "whether snapshots are could not be seen" in texts(findings, "warning")
        assert "has entries that could not be counted" in texts(findings, "ok")
        client.config_set("appendonly", "yes")
        assert "appendfsync could not be seen" in texts(checked(server, user="app:pw@"), "ok")


def test_servers_that_cannot_be_used(own_redis: OwnRedis, server: RedisServer, tmp_path: Path) -> None:
    secret = own_redis(requirepass="hush")
    for url, part in {
        f"redis://127.0.0.1:{free_port()}": "Connection refused",
        f"redis://127.0.0.1:{secret.port}": "wants a password",
        f"redis://:guess@127.0.0.1:{secret.port}": "user or password is wrong",
        f"redis+cluster://127.0.0.1:{server.port}": "is no cluster",
        f"unix://{tmp_path}/none.sock": "No such file",
    }.items():
        findings = RedisSink.check_url(url)
        assert [found.level for found in findings] == ["error"]
        assert part in findings[0].text
        assert findings[0].remedy
        assert "guess" not in texts(findings)


def test_a_server_that_stops_answering(server: RedisServer) -> None:
    server.freeze()
    began = time.monotonic()
    findings = RedisSink.check_url(f"{server.url}?connect_timeout=0.3")
    assert time.monotonic() - began < 3.0
    assert [found.level for found in findings] == ["error"]
    assert "in time" in findings[0].text


def test_a_cluster(own_redis: OwnRedis) -> None:
    node = own_redis(cluster=True, appendonly="yes")
    findings = RedisSink.check_url(node.url.replace("redis://", "redis+cluster://"))
    assert not texts(findings, "error")
    assert "transactions are permitted" in texts(findings)
    # The same node as if it were no cluster: the dead letters are in another slot.
    findings = RedisSink.check_url(node.url)
    assert "use redis+cluster://" in texts(findings, "warning")
    assert "CROSSSLOT" in texts(findings, "error")
