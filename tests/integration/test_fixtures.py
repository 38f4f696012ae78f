"""The fixtures themselves: what other tests take for granted about the servers they get."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pika
import pika.exceptions
import pytest
import redis

from tests.fixtures.environment import started_at
from tests.fixtures.process import ServerUnavailable, free_port, skip_or_fail
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer, greets
from tests.fixtures.redis import SENTINEL_SERVICE, RedisEndpoint, RedisSentinel, RedisServer, connect, find_redis_server
from tests.fixtures.tls import TLSFiles
from tests.integration.conftest import IntegrationTestBase, is_redis_available

pytestmark = pytest.mark.integration

wait_for_condition = IntegrationTestBase.wait_for_condition


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie that nobody has waited for counts as ended)."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip() in {"", "Z", "Zs"}


class TestBase(IntegrationTestBase):
    def test_an_event_has_its_fields_filled_and_takes_others(self) -> None:
        event = self.create_test_event("token", operation="generate")
        assert (event.event_type, event.operation) == ("token", "generate")
        assert event.execution_id
        assert event.event_id != self.create_test_event().event_id

    def test_waiting_says_whether_it_came_true(self) -> None:
        answers = iter([False, False, True])
        assert self.wait_for_condition(lambda: next(answers), timeout=5.0, interval=0.001)
        began = time.monotonic()
        assert not self.wait_for_condition(lambda: False, timeout=0.05, interval=0.01)
        assert time.monotonic() - began >= 0.05


@pytest.mark.redis
class TestRedis:
    def test_the_shared_server_answers(self, redis_client: redis.Redis, redis_server: RedisEndpoint) -> None:
        assert redis_client.ping()
        assert is_redis_available(redis_server.url)
        assert redis_server.has("XADD")
        assert not redis_server.has("XADD", "NOSUCHCOMMAND")

    def test_a_stream_of_ones_own(self, redis_client: redis.Redis, cleanup_stream: str) -> None:
        redis_client.xadd(cleanup_stream, {"event": "x"})
        assert redis_client.xlen(cleanup_stream) == 1

    def test_frozen_it_keeps_connections_and_answers_nothing(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        with server.client(socket_timeout=0.2) as client:
            client.set("a", "1")
            server.freeze()
            with pytest.raises(redis.TimeoutError):
                client.get("a")
            server.thaw()
            assert client.get("a") == b"1"

    def test_restarted_it_has_its_port_and_its_data(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis()
        port, pid = server.port, server.pid
        with server.client() as client:
            client.set("a", "1")
        server.restart()
        assert server.port == port
        assert server.pid != pid
        with server.client() as client:
            assert client.get("a") == b"1"
        server.restart(keep_data=False)
        with server.client() as client:
            assert client.get("a") is None

    def test_killed_it_keeps_what_it_had_persisted(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(appendonly="yes", appendfsync="always")
        with server.client() as client:
            client.set("a", "1")
        server.kill()
        assert not server.running
        assert not is_redis_available(server.url)
        server.start()
        with server.client() as client:
            assert client.get("a") == b"1"

    def test_it_takes_settings(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(maxmemory="3mb", requirepass="a-password", unixsocket=True)
        with server.client() as client, connect(server.unix_url) as other:
            assert client.config_get("maxmemory") == {"maxmemory": str(3 * 1024 * 1024)}
            assert other.ping()
        with pytest.raises(redis.AuthenticationError), connect(f"redis://127.0.0.1:{server.port}") as stranger:
            stranger.ping()

    def test_a_wrong_setting_shows_what_the_server_said(self) -> None:
        server = RedisServer(no_such_setting="1")
        try:
            with pytest.raises(ServerUnavailable, match="no-such-setting"):
                server.start()
        finally:
            server.close()

    def test_a_port_that_is_taken_is_changed_for_another(self, own_redis: Callable[..., RedisServer]) -> None:
        first = own_redis()
        second = RedisServer()
        try:
            second.port = first.port
            second.start()
            assert second.port != first.port
            assert second.pid != first.pid
        finally:
            second.close()

    def test_tls(self, own_redis: Callable[..., RedisServer], tls_files: TLSFiles) -> None:
        try:
            server = own_redis(tls=tls_files)
        except ServerUnavailable as error:
            pytest.skip(f"this redis-server was built without TLS: {error}")
        with connect(server.tls_url) as client:
            assert client.ping()

    def test_a_cluster_of_one(self, own_redis: Callable[..., RedisServer]) -> None:
        server = own_redis(cluster=True)
        with redis.RedisCluster.from_url(server.url) as client:
            assert client.set("a", "1")
            assert client.get("a") == b"1"

    def test_a_sentinel_knows_its_primary(
        self, own_redis: Callable[..., RedisServer], own_sentinel: Callable[..., RedisSentinel]
    ) -> None:
        primary = own_redis()
        sentinel = own_sentinel(primary)
        with sentinel.client(decode_responses=True) as client:
            assert client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SENTINEL_SERVICE) == [
                "127.0.0.1",
                str(primary.port),
            ]

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_it_ends_with_the_process_that_started_it(self, how: signal.Signals) -> None:
        if find_redis_server() is None:
            pytest.skip("no redis-server")
        program = (
            "import time; from tests.fixtures.redis import RedisServer; server = RedisServer(); server.start();"
            "server.freeze(); print(server.pid, server.directory, flush=True); time.sleep(60)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as child:
            assert child.stdout is not None
            pid, directory = child.stdout.readline().split()
            assert not gone(int(pid))
            child.send_signal(how)
        assert wait_for_condition(lambda: gone(int(pid)), timeout=20.0)
        assert wait_for_condition(lambda: not Path(os.fsdecode(directory)).exists(), timeout=20.0)


@pytest.mark.rabbitmq
class TestRabbitMQ:
    def test_the_shared_server_takes_and_gives(self, rabbitmq_connection: pika.BlockingConnection) -> None:
        channel = rabbitmq_connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_publish("", queue, b"hello")
        assert wait_for_condition(lambda: channel.basic_get(queue, auto_ack=True)[2] == b"hello")

    def test_a_url_names_the_user(self, rabbitmq_server: RabbitMQEndpoint) -> None:
        parameters = pika.URLParameters(rabbitmq_server.url)
        parameters.credentials = pika.PlainCredentials("streamll", "not the password")
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            pika.BlockingConnection(parameters)

    @pytest.mark.timeout(180)
    def test_one_of_ones_own(self, own_rabbitmq: Callable[..., RabbitMQServer]) -> None:
        server = own_rabbitmq(config={"heartbeat": "7"})
        port, pid, epmd = server.port, server.pid, server.epmd_pid

        # The users, and rabbitmqctl.
        assert {line.split("\t")[0] for line in server.ctl("list_users").splitlines()[1:]} == {"streamll", "guest"}
        pika.BlockingConnection(pika.URLParameters(server.guest_url)).close()

        # Something durable.
        connection = server.connection()
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True)
        channel.basic_publish("", "kept", b"x", pika.BasicProperties(delivery_mode=2))

        # Frozen: connections stay, nothing answers, new ones get no handshake.
        server.freeze()
        assert not greets(server.port, timeout=0.5)
        server.thaw()
        assert greets(server.port)
        assert channel.queue_declare("kept", passive=True).method.message_count == 1

        # A memory alarm blocks publishers, and can be lifted.
        server.ctl("set_vm_memory_high_watermark", "0.000001")
        assert "memory" in server.ctl("eval", "rabbit_alarm:get_alarms().")
        server.ctl("set_vm_memory_high_watermark", "0.4")
        assert wait_for_condition(lambda: server.ctl("eval", "rabbit_alarm:get_alarms().").strip() == "[]")
        connection.close()

        # Killed, and back with what was durable, on the same port.
        server.kill()
        assert epmd is not None
        assert gone(pid)
        assert gone(epmd)
        server.start()
        assert (server.port, server.pid == pid) == (port, False)
        connection = server.connection()
        assert connection.channel().queue_declare("kept", passive=True).method.message_count == 1
        connection.close()

        # Closed, it leaves neither a process nor a folder.
        pids = server.pids
        server.close()
        assert all(gone(pid) for pid in pids)
        assert not server.directory.exists()

    @pytest.mark.timeout(120)
    def test_tls(self, own_rabbitmq: Callable[..., RabbitMQServer], tls_files: TLSFiles) -> None:
        import ssl

        server = own_rabbitmq(tls=tls_files)
        parameters = pika.URLParameters(server.tls_url)
        context = ssl.create_default_context(cafile=str(tls_files.authority))
        parameters.ssl_options = pika.SSLOptions(context, "localhost")
        pika.BlockingConnection(parameters).close()


def test_a_missing_server_skips_at_home_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such server"):
        skip_or_fail("no such server")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such server"):
        skip_or_fail("no such server")


@pytest.mark.redis
@pytest.mark.rabbitmq
def test_an_environment_of_given_servers_is_passed_on(
    redis_server: RedisEndpoint, rabbitmq_server: RabbitMQEndpoint
) -> None:
    given = {"REDIS_URL": redis_server.url, "RABBITMQ_URL": rabbitmq_server.url}
    command = [sys.executable, "-m", "tests.fixtures.environment", "run", "--", sys.executable, "-c"]
    program = "import os, sys; print(os.environ['REDIS_URL'], os.environ['RABBITMQ_URL']); sys.exit(7)"
    done = subprocess.run([*command, program], env=os.environ | given, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (7, list(given.values()))
    assert "the one that REDIS_URL gives" in done.stderr

    nobody = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}", "RABBITMQ_URL": rabbitmq_server.url}
    done = subprocess.run([*command, "never runs"], env=os.environ | nobody, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no redis answers there" in done.stderr


def test_a_process_is_known_by_when_it_started() -> None:
    assert started_at(os.getpid()) == started_at(os.getpid()) != ""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert started_at(child.pid) == ""
