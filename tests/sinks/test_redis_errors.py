"""Every error of Redis that a batch may meet, made by a real server, and what it does to the batch."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streamll.brokers.redis_errors import trouble_of
from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, UnavailableError
from streamll.wire.redis import hash_slot, keys_for
from tests.fixtures.process import free_port
from tests.fixtures.redis import RedisServer
from tests.sinks.redis_fixtures import OwnRedis
from tests.sinks.redis_tools import PRODUCER, deliver, entries, numbers, opened, read, soon, stored, transport

pytestmark = [pytest.mark.redis, pytest.mark.integration]


def user_url(server: RedisServer, name: str = "app", password: str = "s3cret/word") -> str:
    return f"redis://{name}:{password.replace('/', '%2F')}@127.0.0.1:{server.port}/0"


def add_user(client: Any, *rules: str) -> None:
    client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">s3cret/word", *rules)


# What passes by itself


def test_loading(own_redis: OwnRedis) -> None:
    server = own_redis(key_load_delay="500", rdbcompression="no", save="3600 1")
    with server.client() as client:
        client.mset({f"k{number}": "x" * 2000 for number in range(6000)})
        sender = opened(server.url)
        deliver(sender, entries(1, 5))
        client.save()
    server.stop()
    restarting = threading.Thread(target=server.start)
    restarting.start()
    said = set()
    deadline = time.monotonic() + 30.0
    left = entries(6, 10)
    while left and time.monotonic() < deadline:
        try:
            if not sender.is_open:
                sender.open(soon())
            outcome = sender.send(left, soon())
        except UnavailableError as error:
            said.add(str(error).partition(":")[0])
            continue
        assert outcome.failure in (None, Failure.UNAVAILABLE)
        said.add(outcome.error)
        left = [] if outcome.failure is None else left
    restarting.join()
    assert any("loading its data" in text or text.startswith("LOADING") for text in said), said
    with server.client() as client:
        assert stored(client) == numbers(1, 10)


def test_busy(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(lua_time_limit="50")
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 5))
    with server.client(socket_timeout=30.0) as other, server.client() as client:

        def loop() -> None:
            with contextlib.suppress(redis.RedisError):
                other.eval("while true do end", 0)

        looping = threading.Thread(target=loop)
        looping.start()
        deadline = time.monotonic() + 10.0
        with contextlib.suppress(redis.ResponseError):
            while time.monotonic() < deadline:
                client.get("anything")
                time.sleep(0.02)
        outcome = sender.send(entries(6, 10), soon())
        assert "BUSY" in outcome.error
        assert outcome.failure is Failure.UNAVAILABLE
        assert "SCRIPT KILL" in outcome.error
        client.script_kill()
        looping.join()
        deliver(sender, entries(6, 10))
        assert stored(client)[-5:] == numbers(6, 10)


def test_readonly(own_redis: OwnRedis, server: RedisServer, client: Any, way: str) -> None:
    primary = own_redis()
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 5))
    client.replicaof("127.0.0.1", primary.port)
    outcome = sender.send(entries(6, 10), soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "READONLY" in outcome.error or "EXECABORT" in outcome.error
    assert "redis+sentinel://" in outcome.error
    assert not sender.is_open  # the next open looks for the primary anew


def test_masterdown(server: RedisServer, client: Any, way: str) -> None:
    sender = opened(server.url, fence=way)
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", free_port())
    outcome = sender.send(entries(6, 10), soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "lost its primary" in outcome.error


def test_out_of_memory_and_recovery(server: RedisServer, client: Any, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 5))
    client.config_set("maxmemory", "1000")
    client.config_set("maxmemory-policy", "noeviction")
    outcome = sender.send(entries(6, 10), soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "OOM" in outcome.error
    assert "max_stream_length" in outcome.error
    assert not outcome.delivered
    client.config_set("maxmemory", "0")
    deliver(sender, entries(6, 10))
    assert stored(client) == numbers(1, 10)


def test_misconf(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(save="3600 1")
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 5))
    shutil.rmtree(server.data_directory)
    with server.client() as client:
        deadline = time.monotonic() + 10.0
        with contextlib.suppress(redis.RedisError):
            client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] != "err":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        outcome = sender.send(entries(6, 10), soon())
        assert outcome.failure is Failure.UNAVAILABLE
        assert "MISCONF" in outcome.error
        assert "cannot write its data to disk" in outcome.error
        client.config_set("stop-writes-on-bgsave-error", "no")
        deliver(sender, entries(6, 10))
        assert stored(client) == numbers(1, 10)


def test_noreplicas(server: RedisServer, client: Any, way: str) -> None:
    sender = opened(server.url, fence=way)
    client.config_set("min-replicas-to-write", "1")
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.UNAVAILABLE
    assert "min-replicas-to-write" in outcome.error
    client.config_set("min-replicas-to-write", "0")
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


def test_too_many_clients(server: RedisServer, client: Any) -> None:
    client.config_set("maxclients", "1")
    with pytest.raises(UnavailableError, match=r"max number of clients|Connection reset|closed by server"):
        opened(server.url)
    client.config_set("maxclients", "100")
    opened(server.url).close(clean=False)


def test_nobody_listens() -> None:
    sender = transport(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(UnavailableError, match="Connection refused"):
        sender.open(soon())
    assert not sender.is_open
    outcome = sender.send(entries(1, 5), soon())
    assert (outcome.failure, outcome.sent) == (Failure.UNAVAILABLE, False)
    sender.interrupt()
    sender.close(clean=True)


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid"):
        transport("redis://nowhere.invalid:6379/0").open(soon())


# What waiting does not mend


def test_a_password_is_wanted(own_redis: OwnRedis) -> None:
    server = own_redis(requirepass="hush")
    with pytest.raises(FatalError, match="put user and password in the URL"):
        opened(f"redis://127.0.0.1:{server.port}/0")


def test_a_user_who_is_taken_away(server: RedisServer, client: Any, way: str) -> None:
    add_user(client, "~*", "+@all")
    sender = opened(user_url(server), fence=way)
    client.execute_command("ACL", "DELUSER", "app")  # which hangs up on it
    assert sender.send(entries(1, 500), soon()).failure is Failure.UNAVAILABLE
    with pytest.raises(FatalError, match="user or password is wrong"):
        sender.open(soon())


def test_a_wrong_password(own_redis: OwnRedis) -> None:
    server = own_redis(requirepass="hush")
    with pytest.raises(FatalError, match="user or password is wrong") as caught:
        opened(f"redis://:s3cretguess@127.0.0.1:{server.port}/0")
    assert "s3cretguess" not in str(caught.value)
    assert "\n" not in str(caught.value)
    opened(server.url).close(clean=False)


def test_a_password_that_nobody_wants(server: RedisServer) -> None:
    with pytest.raises(FatalError, match="leave it out of the URL"):
        opened(f"redis://:needless@127.0.0.1:{server.port}/0")


def test_a_database_that_is_not_there(server: RedisServer) -> None:
    with pytest.raises(FatalError, match="no database of that number"):
        opened(f"redis://127.0.0.1:{server.port}/99")


def test_a_database_by_number(server: RedisServer) -> None:
    sender = opened(f"redis://127.0.0.1:{server.port}/5")
    deliver(sender, entries(1, 5))
    sender.close(clean=False)
    with server.client(db=5) as client:
        # The database in the URL of the fixture wins, so it is chosen by hand.
        client.execute_command("SELECT", 5)
        assert client.execute_command("DBSIZE") == 2


def test_a_user_who_may_not_append(server: RedisServer, client: Any, way: str) -> None:
    add_user(client, "~*", "+@all", "-xadd")
    sender = opened(user_url(server), fence=way)
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "see its ACL" in outcome.error
    assert client.exists("events") == 0
    add_user(client, "~*", "+@all")
    sender.open(soon())
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


def test_a_user_who_may_not_use_the_key(server: RedisServer, client: Any, way: str) -> None:
    add_user(client, "~other", "+@all")
    sender = opened(user_url(server), fence=way)
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "see its ACL" in outcome.error


def test_a_user_who_may_not_write_the_fence_appends_nothing(server: RedisServer, client: Any, way: str) -> None:
    add_user(client, "~*", "+@all", "-set")
    sender = opened(user_url(server), fence=way)
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert client.exists("events") == 0


def test_the_least_that_a_user_needs(server: RedisServer, client: Any, way: str) -> None:
    keys = ("~events", "~events:dead-letter", "~{events}:fence:*")
    commands = ("+eval", "+evalsha", "+xadd", "+get", "+set") if way == "script" else (
        "+watch", "+multi", "+exec", "+xadd", "+get", "+set"
    )  # fmt: skip
    add_user(client, *keys, *commands)
    sender = opened(user_url(server), fence=way)
    deliver(sender, entries(1, 5, dead=(3,)))
    deliver(sender, entries(1, 8, dead=(3,)))
    assert stored(client) == [1, 2, 4, 5, 6, 7, 8]
    sender.close(clean=True)


@pytest.mark.parametrize("missing", ["watch", "multi", "exec", "@transaction"])
def test_without_transactions_it_goes_by_script(server: RedisServer, client: Any, missing: str) -> None:
    add_user(client, "~*", "+@all", f"-{missing}")
    sender = opened(user_url(server))
    for first in (1, 601):
        for outcome in deliver(sender, entries(first, first + 699)):
            assert outcome.failure in (None, Failure.UNAVAILABLE)
    assert stored(client) == numbers(1, 1300)
    sender.close(clean=False)


@pytest.mark.parametrize("missing", ["watch", "multi", "exec", "@transaction"])
def test_nothing_goes_unfenced_where_a_part_of_a_transaction_is_not_permitted(
    server: RedisServer, client: Any, missing: str
) -> None:
    add_user(client, "~*", "+@all", f"-{missing}")
    sender = opened(user_url(server), fence="transaction")
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "see its ACL" in outcome.error
    assert client.exists("events", keys_for("events", PRODUCER).fence) == 0


def test_without_the_commands_of_transactions_it_goes_by_script(own_redis: OwnRedis) -> None:
    server = own_redis(rename_command=['MULTI ""'])
    deliver(opened(server.url), entries(1, 50))
    with server.client() as client:
        assert stored(client) == numbers(1, 50)


def test_without_scripts_it_goes_by_transaction(server: RedisServer, client: Any) -> None:
    add_user(client, "~*", "+@all", "-@scripting")
    sender = opened(user_url(server))
    deliver(sender, entries(1, 700))
    deliver(sender, entries(601, 900))
    assert stored(client) == numbers(1, 900)
    sender.close(clean=False)
    strict = opened(user_url(server), fence="script", producer="strict")
    outcome = strict.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "see its ACL" in outcome.error


def test_without_the_commands_of_scripts_it_goes_by_transaction(own_redis: OwnRedis) -> None:
    server = own_redis(rename_command=['EVALSHA ""', 'EVAL ""'])
    sender = opened(server.url)
    deliver(sender, entries(1, 50))
    with server.client() as client:
        assert stored(client) == numbers(1, 50)
    sender.close(clean=False)
    strict = opened(server.url, fence="script", producer="strict")
    outcome = strict.send([entries(1, 1, size=10)[0]], soon())
    assert outcome.failure is Failure.FATAL
    assert "unknown command" in outcome.error
    assert "args beginning" not in outcome.error  # they may be an event, or a password


def test_a_script_that_only_exists_by_hash_is_not_permitted(server: RedisServer, client: Any) -> None:
    add_user(client, "~*", "+@all", "-eval")
    sender = opened(user_url(server))
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


@pytest.mark.parametrize("then", [("-@transaction",), ("-@scripting",)])
def test_a_user_who_may_use_neither_way_and_then_one(server: RedisServer, client: Any, then: tuple[str, ...]) -> None:
    add_user(client, "~*", "+@all", "-@scripting", "-@transaction")
    sender = opened(user_url(server))
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "multi" in outcome.error
    add_user(client, "~*", "+@all", *then)
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


def test_a_user_who_may_not_wait_for_replicas(server: RedisServer, client: Any, way: str) -> None:
    add_user(client, "~*", "+@all", "-wait")
    sender = opened(user_url(server), fence=way, wait_replicas=1)
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert not outcome.delivered
    assert "wait" in outcome.error


def test_wrong_type(server: RedisServer, client: Any, way: str) -> None:
    client.set("events", "a string")
    sender = opened(server.url, fence=way)
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "WRONGTYPE" in outcome.error
    assert "the key events" in outcome.error
    assert not outcome.delivered
    client.delete("events")
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


def test_wrong_type_of_the_dead_letters_leaves_the_fence_before_them(
    server: RedisServer, client: Any, way: str
) -> None:
    client.set("events:dead-letter", "a string")
    sender = opened(server.url, fence=way)
    batch = entries(1, 6, dead=(4,))
    outcome = sender.send(batch, soon())
    assert outcome.failure is Failure.FATAL
    assert outcome.delivered <= {0, 1, 2}
    client.delete("events:dead-letter")
    deliver(sender, batch[len(outcome.delivered) :])
    assert stored(client) == [1, 2, 3, 5, 6]
    assert [entry.seq for entry in read(client, "events:dead-letter")] == [4]


def test_a_fence_that_is_none(server: RedisServer, client: Any, way: str) -> None:
    fence = keys_for("events", PRODUCER).fence
    sender = opened(server.url, fence=way)
    for command in ("SET", "LPUSH"):
        client.delete(fence)
        client.execute_command(command, fence, "x")
        outcome = sender.send(entries(1, 5), soon())
        assert outcome.failure is Failure.FATAL
        assert "WRONGTYPE" in outcome.error
        if not sender.is_open:
            sender.open(soon())
    client.delete(fence)
    deliver(sender, entries(1, 5))
    assert stored(client) == numbers(1, 5)


def test_wrong_type_that_comes_about_between_batches(server: RedisServer, client: Any, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 5))
    client.delete("events")
    client.set("events", "a string")
    # By transaction its XADDs fail after they were accepted: the fence must go back.
    assert sender.send(entries(6, 10), soon()).failure is Failure.FATAL
    assert client.get(keys_for("events", PRODUCER).fence) == b"5"
    client.delete("events")
    sender.close(clean=False)
    deliver(sender, entries(6, 10))
    assert stored(client) == numbers(6, 10)


def test_wrong_type_whose_answer_is_lost_is_not_taken_for_success(server: RedisServer, client: Any) -> None:
    sender = opened(server.url, fence="transaction")
    deliver(sender, entries(1, 5))
    client.delete("events")
    client.set("events", "a string")
    # Frozen, the server has the whole transaction, carries it out once thawed, and nobody hears how it went.
    server.freeze()
    assert sender.send(entries(6, 10), soon(0.2)).failure is Failure.UNAVAILABLE
    server.thaw()
    sender.open(soon())
    assert sender.send(entries(6, 10), soon()).failure is Failure.FATAL
    assert client.get(keys_for("events", PRODUCER).fence) == b"10"
    client.delete("events")
    deliver(sender, entries(6, 10))
    assert stored(client) == numbers(6, 10)


# What is the event's own fault


def test_an_event_that_is_too_long_for_the_server(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(proto_max_bulk_len="1mb")
    sender = opened(server.url, fence=way)
    batch = [*entries(1, 3), *entries(4, 4, size=1_200_000), *entries(5, 6)]
    outcome = sender.send(batch, soon())
    assert outcome.failure is Failure.REJECTED
    assert list(outcome.rejected) == [3]
    assert "proto-max-bulk-len" in outcome.rejected[3]
    assert not outcome.delivered
    deliver(sender, [*entries(1, 3), *entries(5, 6)])
    with server.client() as client:
        assert stored(client) == [1, 2, 3, 5, 6]


# Clusters


@pytest.fixture
def cluster(own_redis: OwnRedis) -> RedisServer:
    return own_redis(cluster=True)


@pytest.fixture
def other_node(own_redis: OwnRedis, cluster: RedisServer) -> Iterator[str]:
    """Another node that the cluster knows, without slots; gives its id."""
    node = own_redis(cluster_enabled="yes")
    with cluster.client() as client, node.client() as other:
        own_id = other.execute_command("CLUSTER", "MYID").decode()
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        deadline = time.monotonic() + 10.0
        while own_id not in str(client.execute_command("CLUSTER", "NODES")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield own_id


def test_a_slot_that_nobody_serves(cluster: RedisServer, way: str) -> None:
    sender = opened(cluster.url.replace("redis://", "redis+cluster://"), fence=way)
    with cluster.client() as client:
        client.execute_command("CLUSTER", "DELSLOTS", hash_slot(b"events"))
        outcome = sender.send(entries(1, 5), soon())
        assert "CLUSTERDOWN" in outcome.error
        assert outcome.failure is Failure.UNAVAILABLE
        with pytest.raises(UnavailableError, match="no node of the cluster serves slot"):
            sender.open(soon())
        client.execute_command("CLUSTER", "ADDSLOTS", hash_slot(b"events"))
        deliver(sender, entries(1, 5))
        assert stored(client) == numbers(1, 5)


def test_a_slot_that_moves(cluster: RedisServer, other_node: str, way: str) -> None:
    url = cluster.url.replace("redis://", "redis+cluster://")
    slot = hash_slot(b"events")
    with cluster.client() as client:
        sender = opened(url, fence=way)
        client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", other_node)
        outcome = sender.send(entries(1, 5), soon())
        assert outcome.failure is Failure.UNAVAILABLE
        assert "ASK" in outcome.error
        assert not sender.is_open
        # Some of the keys are here and some are not.
        client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        sender.open(soon())
        deliver(sender, entries(1, 5))
        client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", other_node)
        if way == "script":
            outcome = sender.send(entries(6, 10), soon())
            assert outcome.failure is Failure.UNAVAILABLE
            assert "TRYAGAIN" in outcome.error or "ASK" in outcome.error  # Redis 6 does not look so closely
        client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        deliver(sender, entries(6, 10))
        sender.close(clean=True)
        sender = opened(url, fence=way)
        client.flushall()
        client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", other_node)
        outcome = sender.send(entries(11, 15), soon())
        assert outcome.failure is Failure.UNAVAILABLE
        assert "MOVED" in outcome.error
        assert not sender.is_open
        sender.close(clean=False)


# Words


@pytest.mark.parametrize(
    ("said", "code", "failure"),
    [
        ("ERR Error running script (call to f_1): @user_script:17: -OOM command not allowed", "OOM", Failure.UNAVAILABLE),
        ("-READONLY You can't write against a read only replica.", "READONLY", Failure.UNAVAILABLE),
        ("DENIED Redis is running in protected mode", "DENIED", Failure.FATAL),
        ("ERR unknown command 'AUTH', with args beginning with: 'hush' ", "UNKNOWN", Failure.FATAL),
        ("ERR Protocol error: unauthenticated multibulk length", "NOAUTH", Failure.FATAL),
        ("ERR something else", "ERR", Failure.FATAL),
        ("SOMETHING new", "SOMETHING", Failure.FATAL),
        ("ERR max request size exceeded. Limit: 1048576 bytes", "ERR", Failure.REJECTED),
        (b"EXECABORT Transaction discarded because of: OOM command not allowed", "OOM", Failure.UNAVAILABLE),
        (redis.exceptions.ExecAbortError("Transaction discarded because of previous errors."), "EXECABORT", Failure.UNAVAILABLE),
        (redis.exceptions.TimeoutError("Timeout reading"), "", Failure.UNAVAILABLE),
        (redis.exceptions.InvalidResponse("Protocol Error: b'x'"), "", Failure.UNAVAILABLE),
        (OSError(), "", Failure.UNAVAILABLE),
    ],
)  # fmt: skip
def test_what_servers_of_other_versions_say(said: Any, code: str, failure: Failure) -> None:
    trouble = trouble_of(said, "events")
    assert (trouble.code, trouble.failure) == (code, failure)
    assert trouble.text
    assert "hush" not in trouble.text
    assert isinstance(trouble.as_error(), FatalError if failure is Failure.FATAL else UnavailableError)
