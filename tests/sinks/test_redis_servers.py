"""The Redis transport on every kind of server and connection that it can be pointed at."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, UnavailableError
from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from streamll.wire.redis import hash_slot
from tests.fixtures.process import free_port
from tests.fixtures.redis import SENTINEL_SERVICE, RedisSentinel, RedisServer
from tests.fixtures.tls import TLSFiles
from tests.fixtures.waiting import wait_until
from tests.sinks.redis_fixtures import OwnRedis
from tests.sinks.redis_tools import deliver, entries, numbers, opened, read, soon, stored, through, transport

pytestmark = [pytest.mark.redis, pytest.mark.integration]

_sentinel: Any = Sentinel  # redis-py leaves it without types
OwnSentinel = Callable[..., RedisSentinel]


@pytest.fixture
def server(own_redis: OwnRedis) -> RedisServer:
    return own_redis(repl_diskless_sync_delay="0")  # a replica need not wait for others that might come


def follows(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")


# Unix sockets and TLS


def test_a_unix_socket(own_redis: OwnRedis, way: str) -> None:
    server = own_redis(unixsocket=True)
    sender = opened(server.unix_url, fence=way)
    deliver(sender, entries(1, 600))
    server.freeze()
    assert sender.send(entries(601, 700), soon(0.2)).failure is Failure.UNAVAILABLE
    server.thaw()
    deliver(sender, entries(601, 700))
    with server.client() as client:
        assert stored(client) == numbers(1, 700)


def test_a_unix_socket_that_is_not_there(own_redis: OwnRedis) -> None:
    server = own_redis(unixsocket=True)
    server.stop()
    with pytest.raises(UnavailableError, match=r"redis\.sock"):
        opened(server.unix_url)


@pytest.fixture
def secure(own_redis: OwnRedis, tls_files: TLSFiles) -> RedisServer:
    return own_redis(tls=tls_files)


def test_tls(secure: RedisServer, way: str) -> None:
    sender = opened(secure.tls_url, fence=way)
    deliver(sender, entries(1, 600))
    deliver(sender, entries(601, 610, size=300_000))
    secure.freeze()
    began = time.monotonic()
    assert sender.send(entries(611, 700, size=100_000), soon(0.3)).failure is Failure.UNAVAILABLE
    assert time.monotonic() - began < 2.0
    secure.thaw()
    deliver(sender, entries(611, 700))
    assert sender.is_open
    with secure.client() as client:
        assert stored(client) == numbers(1, 700)


def test_tls_cut_inside_a_batch(secure: RedisServer, tls_files: TLSFiles) -> None:
    with FaultProxy("127.0.0.1", secure.tls_port) as proxy, secure.client() as client:
        sender = opened(f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={tls_files.authority}")
        last = 0
        for direction in (TO_SERVER, TO_CLIENT):
            for count in (0, 1, 50, 2000):
                proxy.cut_after(count, direction)
                deliver(sender, entries(last + 1, last + 50))
                last += 50
                proxy.heal()
        assert stored(client) == numbers(1, last)


def test_tls_is_interrupted_while_it_connects(secure: RedisServer) -> None:
    sender = transport(secure.tls_url)
    secure.freeze()
    timer = threading.Timer(0.2, sender.interrupt)
    timer.start()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="interrupted"):
        sender.open(soon(30.0))
    assert time.monotonic() - began < 5.0
    timer.join()
    secure.thaw()


def test_a_certificate_that_nobody_vouches_for(secure: RedisServer) -> None:
    with pytest.raises(FatalError, match="ssl_ca_certs"):
        opened(f"rediss://localhost:{secure.tls_port}/0")
    sender = opened(f"rediss://localhost:{secure.tls_port}/0?ssl_cert_reqs=none&ssl_check_hostname=false")
    assert sender.send(entries(1, 5), soon()).failure is None


def test_tls_to_a_server_without_it(server: RedisServer) -> None:
    with pytest.raises(UnavailableError):
        transport(f"rediss://127.0.0.1:{server.port}/0").open(soon(1.0))


# Replicas


def test_replicas_must_have_a_batch(server: RedisServer, own_redis: OwnRedis, way: str) -> None:
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    assert wait_until(lambda: follows(replica))
    sender = opened(server.url, fence=way, wait_replicas=1)
    deliver(sender, entries(1, 10))
    with replica.client() as client:
        assert stored(client) == numbers(1, 10)
    replica.freeze()
    for _ in range(2):
        outcome = sender.send(entries(11, 20), soon(0.5))
        assert outcome.failure is Failure.UNAVAILABLE
        assert "only 0 of 1 replicas" in outcome.error
        assert not outcome.delivered
    # A new connection has written nothing that a replica could be behind with, and must not take that for success.
    sender.open(soon())
    assert sender.send(entries(11, 20), soon(0.5)).failure is Failure.UNAVAILABLE
    replica.thaw()
    outcomes = deliver(sender, entries(11, 20))
    assert sum(outcome.lost_after_ack for outcome in outcomes) == 0
    for one in (server, replica):
        with one.client() as client:
            assert stored(client) == numbers(1, 20)


def test_what_replicas_have_is_not_known_when_their_answer_is_cut(
    server: RedisServer, own_redis: OwnRedis, way: str
) -> None:
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    assert wait_until(lambda: follows(replica))
    with FaultProxy("127.0.0.1", server.port) as proxy:
        sender = opened(through(proxy), fence=way, wait_replicas=1)
        # So few that the ids which a transaction is answered with have the same length each time.
        deliver(sender, entries(11, 13))
        before = proxy.passed[TO_CLIENT]
        deliver(sender, entries(14, 16))
        proxy.cut_after(proxy.passed[TO_CLIENT] - before - len(":1\r\n"), TO_CLIENT)
        outcome = sender.send(entries(17, 19), soon())
        assert (outcome.failure, outcome.delivered) == (Failure.UNAVAILABLE, frozenset())
        deliver(sender, entries(17, 19))
    with replica.client() as client:
        assert stored(client) == numbers(11, 19)


# Clusters


def test_a_cluster(own_redis: OwnRedis, way: str) -> None:
    node = own_redis(cluster=True)
    sender = opened(node.url.replace("redis://", "redis+cluster://"), fence=way)
    deliver(sender, entries(1, 20, dead=(5,)))
    deliver(sender, entries(11, 30))
    with node.client() as client:
        assert stored(client) == [*numbers(1, 4), *numbers(6, 30)]
        assert [entry.seq for entry in read(client, "{events}:dead-letter")] == [5]
    node.restart()
    deliver(sender, entries(31, 40))


def test_a_cluster_whose_first_node_is_down(own_redis: OwnRedis) -> None:
    node = own_redis(cluster=True)
    sender = opened(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{node.port}")
    deliver(sender, entries(1, 20))
    node.stop()
    with pytest.raises(UnavailableError, match="refused"):
        sender.open(soon())
    node.start()


def test_the_node_of_the_stream_is_another_one(own_redis: OwnRedis) -> None:
    one, two = own_redis(cluster=True), own_redis(cluster_enabled="yes")
    with one.client() as client, two.client() as other:
        own_id = other.execute_command("CLUSTER", "MYID").decode()
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port)
        assert wait_until(lambda: own_id in str(client.execute_command("CLUSTER", "NODES")))
        for node in (other, client):
            node.execute_command("CLUSTER", "SETSLOT", hash_slot(b"events"), "NODE", own_id)
        assert wait_until(lambda: "cluster_state:ok" in str(other.execute_command("CLUSTER", "INFO")))
        sender = opened(one.url.replace("redis://", "redis+cluster://"))
        deliver(sender, entries(1, 20))
        assert stored(other) == numbers(1, 20)
        # And back again, which the node says by MOVED.
        other.flushall()
        my_id = client.execute_command("CLUSTER", "MYID").decode()
        for node in (client, other):
            node.execute_command("CLUSTER", "SETSLOT", hash_slot(b"events"), "NODE", my_id)
        outcomes = deliver(sender, entries(21, 40))
        assert "MOVED" in outcomes[0].error
        assert stored(client) == numbers(21, 40)


def test_a_cluster_in_which_the_dead_letters_are_elsewhere(own_redis: OwnRedis, way: str) -> None:
    node = own_redis(cluster=True)
    sender = opened(node.url, fence=way)
    # Said of the first batch, and not when the first dead letter is written.
    outcome = sender.send(entries(1, 5), soon())
    assert outcome.failure is Failure.FATAL
    assert "use redis+cluster://" in outcome.error
    with node.client() as client:
        assert client.dbsize() == 0


def test_a_server_that_is_no_cluster(server: RedisServer) -> None:
    with pytest.raises(FatalError, match="use redis:// instead"):
        opened(server.url.replace("redis://", "redis+cluster://"))


# Sentinels


def sentinel_url(*sentinels: RedisSentinel, service: str = SENTINEL_SERVICE) -> str:
    return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in sentinels)}/{service}/0"


def test_sentinels_and_a_failover(own_redis: OwnRedis, own_sentinel: OwnSentinel, server: RedisServer) -> None:
    replica = own_redis(replicaof=f"127.0.0.1 {server.port}")
    assert wait_until(lambda: follows(replica))
    sentinel = own_sentinel(server, down_after=0.5)
    with sentinel.client() as client:
        assert wait_until(lambda: bool(client.sentinel_slaves(SENTINEL_SERVICE)))
    sender = opened(sentinel_url(sentinel), wait_replicas=1)
    deliver(sender, entries(1, 50))
    sender.close(clean=False)
    sender = opened(sentinel_url(sentinel))
    server.kill()
    lost = [outcome.lost_after_ack for outcome in deliver(sender, entries(1, 80), seconds=1.0)]
    assert sum(lost) == 0
    with replica.client() as client:
        assert stored(client) == numbers(1, 80)


def test_sentinels_that_cannot_help(own_sentinel: OwnSentinel, server: RedisServer) -> None:
    sentinel = own_sentinel(server)
    with pytest.raises(UnavailableError, match=r"refused.*knows no service 'other'"):
        opened(sentinel_url(sentinel, service="other").replace("//", f"//127.0.0.1:{free_port()},"))
    with pytest.raises(UnavailableError, match=r"no sentinel names a primary.*password"):
        opened(sentinel_url(sentinel) + "?sentinel_password=guess")
    with server.client() as client:
        client.replicaof("127.0.0.1", free_port())
    with pytest.raises(UnavailableError, match="not the primary"):
        opened(sentinel_url(sentinel))


# Clients that are given


def test_a_given_client_lends_its_settings_and_none_of_its_retries(server: RedisServer, way: str) -> None:
    client = redis.Redis(
        host="127.0.0.1",
        port=server.port,
        db=3,
        client_name="app",
        decode_responses=True,
        protocol=3,
        socket_timeout=30.0,
        health_check_interval=1,
        retry=Retry(ConstantBackoff(5.0), 50),
    )
    sender = opened(client=client, fence=way)
    deliver(sender, entries(1, 10))
    with server.client() as plain:
        assert [one["db"] for one in plain.client_list() if one["name"] == "app"] == ["3"]
    server.freeze()
    began = time.monotonic()
    assert sender.send(entries(11, 110), soon(0.3)).failure is Failure.UNAVAILABLE
    with pytest.raises(UnavailableError):
        sender.open(soon(0.3))
    assert time.monotonic() - began < 3.0
    server.thaw()
    deliver(sender, entries(11, 110))
    client.close()
    raw = redis.Redis(host="127.0.0.1", port=server.port, db=3)
    assert stored(raw) == numbers(1, 110)
    raw.close()


def test_a_given_client_of_tls_and_of_a_unix_socket(own_redis: OwnRedis, tls_files: TLSFiles) -> None:
    server = own_redis(tls=tls_files, unixsocket=True)
    first = 1
    for url in (server.tls_url, server.unix_url):
        with redis.Redis.from_url(url) as client:
            deliver(opened(client=client), entries(first, first + 9))
        first += 10
    with server.client() as client:
        assert stored(client) == numbers(1, 20)


def test_a_given_client_of_a_cluster(own_redis: OwnRedis) -> None:
    node = own_redis(cluster=True)
    client = redis.RedisCluster(host="127.0.0.1", port=node.port)
    deliver(opened(client=client), entries(1, 10))
    client.close()
    with node.client() as plain:
        assert stored(plain) == numbers(1, 10)


def test_a_given_client_of_sentinels(own_sentinel: OwnSentinel, server: RedisServer) -> None:
    sentinel = own_sentinel(server)
    finder: Any = _sentinel([("127.0.0.1", sentinel.port)], socket_timeout=1.0)
    client = finder.master_for(SENTINEL_SERVICE)
    deliver(opened(client=client), entries(1, 10))
    client.close()
    with server.client() as plain:
        assert stored(plain) == numbers(1, 10)
    nobody = finder.master_for("nobody")
    with pytest.raises(UnavailableError):
        opened(client=nobody)
    nobody.close()
    for one in finder.sentinels:
        one.close()


def test_a_connection_class_that_connects_by_itself(server: RedisServer, way: str) -> None:
    """What a future redis-py might do: the socket is out of our reach, and batches are delivered all the same."""

    class Own(redis.Connection):
        def connect(self: Any) -> None:
            if self._sock is None:
                self._sock = socket.create_connection((self.host, self.port), timeout=self.socket_timeout)
                self.on_connect()

    pool = redis.ConnectionPool(connection_class=Own, host="127.0.0.1", port=server.port)
    with redis.Redis(connection_pool=pool) as client:
        sender = opened(client=client, fence=way)
        deliver(sender, entries(1, 700))
        assert sender.is_open
        sender.interrupt()
        sender.close(clean=True)
    with server.client() as plain:
        assert stored(plain) == numbers(1, 700)


# Networks


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port where nobody accepts, and the queue is full: connecting takes for ever."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.1)
        yield port


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse where the queue is full")
def test_connecting_is_interrupted(full_port: int) -> None:
    sender = transport(f"redis://127.0.0.1:{full_port}/0")
    timer = threading.Timer(0.2, sender.interrupt)
    timer.start()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="interrupted"):
        sender.open(soon(30.0))
    assert time.monotonic() - began < 5.0
    timer.join()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse where the queue is full")
def test_connecting_keeps_its_deadline(full_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="in time"):
        transport(f"redis://127.0.0.1:{full_port}/0").open(soon(0.3))
    assert 0.2 < time.monotonic() - began < 3.0


def test_a_network_that_stalls_and_refuses(server: RedisServer, way: str) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy, server.client() as client:
        sender = opened(through(proxy), fence=way)
        deliver(sender, entries(1, 10))
        proxy.stall()
        assert sender.send(entries(11, 20), soon(0.3)).failure is Failure.UNAVAILABLE
        proxy.heal()
        deliver(sender, entries(11, 20))
        proxy.refuse()
        assert sender.send(entries(21, 30), soon(1.0)).failure is Failure.UNAVAILABLE
        with pytest.raises(UnavailableError):
            sender.open(soon(1.0))
        proxy.heal()
        deliver(sender, entries(21, 30))
        assert stored(client) == numbers(1, 30)


def test_a_proxy_whose_server_is_down() -> None:
    with FaultProxy("127.0.0.1", free_port()) as proxy:
        with pytest.raises(UnavailableError):
            opened(through(proxy))
        proxy.close()


def test_answers_that_trickle_in_do_not_move_the_deadline(server: RedisServer, way: str) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy, server.client() as client:
        sender = opened(through(proxy), fence=way)
        deliver(sender, entries(1, 5))
        proxy.trickle(0.02)
        began = time.monotonic()
        outcome = sender.send(entries(6, 5005), soon(0.5))
        assert time.monotonic() - began < 2.0
        assert outcome.failure is Failure.UNAVAILABLE
        assert "in time" in outcome.error
        # What was answered is known to be delivered: chunks of the script, but nothing of a transaction.
        assert (500 <= len(outcome.delivered) < 5000) if way == "script" else not outcome.delivered
        proxy.heal()
        deliver(sender, entries(len(outcome.delivered) + 6, 5005))
        assert stored(client) == numbers(1, 5005)


def test_without_hiredis(server: RedisServer, way: str) -> None:
    program = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from tests.sinks.redis_tools import *\n"
        f"sender = opened({server.url!r}, fence={way!r})\n"
        "deliver(sender, entries(1, 700, dead=(3,)))\n"
        "close_all()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    with server.client() as client:
        assert stored(client) == [1, 2, *numbers(4, 700)]


def test_no_descriptor_is_left_behind(server: RedisServer) -> None:
    if not os.path.isdir("/proc/self/fd"):  # noqa: PTH112  # what it lists is what is counted
        pytest.skip("no /proc")

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    sender = opened(server.url)
    nobody = transport(f"redis://127.0.0.1:{free_port()}/0")
    before = descriptors()
    for seq in range(1, 30):
        sender.open(soon())
        assert sender.send(entries(seq, seq), soon()).failure is None
        with pytest.raises(UnavailableError):
            nobody.open(soon())
    assert descriptors() == before
    sender.close(clean=True)
    assert descriptors() < before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_connection_of_its_parent_alone(server: RedisServer, way: str) -> None:
    sender = opened(server.url, fence=way)
    deliver(sender, entries(1, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the test runner may have threads; the child uses none
        child = os.fork()
    if child == 0:
        sender.interrupt()
        sender.close(clean=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    outcome = sender.send(entries(11, 20), soon())
    assert (outcome.failure, outcome.error) == (None, "")
    with server.client() as client:
        assert stored(client) == numbers(1, 20)


def test_many_writers_at_once_on_a_network_that_is_cut(server: RedisServer) -> None:
    with FaultProxy("127.0.0.1", server.port) as proxy, server.client() as client:
        failures: list[BaseException] = []

        def write(name: str, way: str) -> None:
            try:
                sender = transport(through(proxy), producer=name, fence=way)
                for first in range(1, 400, 20):
                    deliver(sender, entries(first, first + 19))
            except BaseException as error:
                failures.append(error)

        writers = [
            threading.Thread(target=write, args=(f"w{number}", "script" if number % 2 else "transaction"))
            for number in range(4)
        ]
        for writer in writers:
            writer.start()
        for count in range(25):
            proxy.cut_after(count * 397 % 4000, TO_SERVER if count % 2 else TO_CLIENT)
            time.sleep(0.01)
        proxy.heal()
        for writer in writers:
            writer.join(30.0)
        assert not failures
        for number in range(4):
            assert stored(client, producer=f"w{number}") == numbers(1, 400)
