"""The FaultProxy: what each fault looks like to plain sockets, and to a client of a real server."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from streamll.testing.proxy import TO_CLIENT, TO_SERVER, FaultProxy
from tests.fixtures.redis import RedisEndpoint, connect
from tests.fixtures.waiting import PATIENCE, wait_until


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.got = bytearray()
        self.endings: list[str] = []
        self.connections: list[socket.socket] = []
        self.replies = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65_536):
                self.got += data
                if self.replies:
                    connection.sendall(data)
            self.endings.append("closed")
        except ConnectionResetError:
            self.endings.append("reset")
        except OSError as error:
            self.endings.append(type(error).__name__)

    def close(self) -> None:
        self.listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as made:
        yield made


@pytest.fixture
def dial(proxy: FaultProxy) -> Iterator[Callable[[], socket.socket]]:
    """Connections through the proxy."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE))


Dial = Callable[[], socket.socket]


def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or those that come before the end."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def exchange(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return receive(sock, len(data))


def silent(sock: socket.socket, seconds: float = 0.15) -> bool:
    """Whether nothing comes for a while: no byte, and no end."""
    return not select.select([sock], [], [], seconds)[0]


def ending(sock: socket.socket) -> str:
    """How a connection ends, once the bytes that still come are read."""
    try:
        while sock.recv(65_536):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


def test_it_passes_on_much_in_both_directions_and_counts_it(proxy: FaultProxy, dial: Dial) -> None:
    data = os.urandom(3_000_000)
    sock = dial()
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    assert receive(sock, len(data)) == data
    sender.join(PATIENCE)
    assert proxy.passed == {TO_SERVER: len(data), TO_CLIENT: len(data)}
    assert proxy.accepted == 1


def test_a_connection_that_ends_ends_on_the_other_side(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    assert exchange(sock, b"hello") == b"hello"
    sock.close()
    assert wait_until(lambda: echo.endings == ["closed"])
    sock = dial()
    assert exchange(sock, b"hello") == b"hello"
    echo.connections[-1].shutdown(socket.SHUT_RDWR)
    assert ending(sock) == "closed"


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_after_to_the_server(proxy: FaultProxy, echo: Echo, dial: Dial, reset: bool) -> None:
    echo.replies = False
    sock, bystander = dial(), dial()
    sock.sendall(b"12345")
    assert wait_until(lambda: echo.got == b"12345")
    proxy.cut_after(3, TO_SERVER, reset=reset)
    sock.sendall(b"6789")
    how = "reset" if reset else "closed"
    assert ending(sock) == how
    assert wait_until(lambda: echo.endings == [how])
    assert bytes(echo.got) == b"12345678" or reset  # a reset may overtake what it follows
    echo.replies = True
    assert exchange(bystander, b"on") == b"on"  # it happens once
    assert exchange(dial(), b"new") == b"new"


def test_cut_after_to_the_client(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    proxy.cut_after(4, TO_CLIENT)
    sock = dial()
    sock.sendall(b"123456")
    assert receive(sock, 6) == b"1234"
    assert wait_until(lambda: len(echo.endings) == 1)
    assert bytes(echo.got) == b"123456"


def test_cut_after_nothing_waits_for_a_byte(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    assert exchange(sock, b"x") == b"x"
    proxy.cut_after(0)
    assert silent(sock)
    sock.sendall(b"more")
    assert ending(sock) == "closed"
    assert bytes(echo.got) == b"x"


def test_a_cut_that_is_healed_does_not_happen(proxy: FaultProxy, dial: Dial) -> None:
    sock = dial()
    proxy.cut_after(2)
    proxy.heal()
    assert exchange(sock, b"hello") == b"hello"


def test_reset(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    socks = [dial(), dial()]
    for sock in socks:
        assert exchange(sock, b"hello") == b"hello"
    proxy.reset()
    assert [ending(sock) for sock in socks] == ["reset", "reset"]
    assert wait_until(lambda: echo.endings == ["reset", "reset"])
    assert exchange(dial(), b"new") == b"new"


def test_stall(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    assert exchange(sock, b"one") == b"one"
    proxy.stall()
    sock.sendall(b"two")
    late = dial()  # the kernel answers; the proxy does not
    late.sendall(b"three")
    assert silent(sock)
    assert proxy.accepted == 1
    proxy.heal()
    assert receive(sock, 3) == b"two"
    assert receive(late, 5) == b"three"


def test_stalled_answers_come_late(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    proxy.stall(TO_CLIENT)
    sock.sendall(b"one")
    assert wait_until(lambda: bytes(echo.got) == b"one")
    assert silent(sock)
    proxy.heal()
    assert receive(sock, 3) == b"one"


def test_delay_is_latency_and_not_a_narrow_line(proxy: FaultProxy, dial: Dial) -> None:
    sock = dial()
    proxy.delay(0.1)
    began = time.monotonic()
    assert exchange(sock, b"x") == b"x"
    assert time.monotonic() - began >= 0.2
    data = os.urandom(1_000_000)
    sender = threading.Thread(target=sock.sendall, args=(data,))
    began = time.monotonic()
    sender.start()
    assert receive(sock, len(data)) == data
    # A line that carried one chunk at a time would need 16 times 0.1 seconds in each direction.
    assert 0.2 <= time.monotonic() - began < 16 * 0.1
    sender.join(PATIENCE)


def test_delay_in_one_direction(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    proxy.delay(30.0, TO_CLIENT)
    sock.sendall(b"asked")
    assert wait_until(lambda: bytes(echo.got) == b"asked")
    assert silent(sock)
    proxy.delay(0.0, TO_CLIENT)  # nothing overtakes what waits
    sock.sendall(b" again")
    assert wait_until(lambda: bytes(echo.got) == b"asked again")
    assert silent(sock)
    proxy.heal()
    assert receive(sock, 11) == b"asked again"


def test_throttle(proxy: FaultProxy, dial: Dial) -> None:
    proxy.throttle(50_000, TO_CLIENT)
    sock = dial()
    began = time.monotonic()
    data = os.urandom(20_000)
    assert exchange(sock, data) == data
    assert time.monotonic() - began >= 0.35
    proxy.heal()
    assert exchange(sock, data) == data


def test_a_throttled_line_makes_its_sender_wait(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    proxy.throttle(1, TO_SERVER)
    sock = dial()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.sendall(b"x" * 50_000_000)
    assert len(echo.got) < 10


def test_throttle_wants_a_rate(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="above 0"):
        proxy.throttle(0)


def test_trickle(proxy: FaultProxy, dial: Dial) -> None:
    proxy.trickle(0.02)
    sock = dial()
    sock.sendall(b"0123456789")
    pieces = [sock.recv(100) for _ in range(3)]
    assert pieces == [b"0", b"1", b"2"]
    proxy.heal()
    assert receive(sock, 7) == b"3456789"


def test_drop_to_the_client(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock, other = dial(), dial()
    assert exchange(sock, b"one") == b"one"
    assert exchange(other, b"one") == b"one"
    proxy.drop(TO_CLIENT)
    sock.sendall(b"two")
    assert wait_until(lambda: bytes(echo.got).endswith(b"two"))
    assert wait_until(lambda: proxy.swallowed == {TO_SERVER: 0, TO_CLIENT: 3})
    assert silent(sock)
    echo.connections[0].shutdown(socket.SHUT_RDWR)  # not even that is heard of
    echo.connections[1].shutdown(socket.SHUT_RDWR)
    assert silent(sock)
    sock.sendall(b"three")  # nor that there is nobody any more
    assert silent(sock)
    assert silent(other)
    proxy.heal()
    assert ending(sock) == "closed"
    assert ending(other) == "closed"


def test_drop_to_the_server(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock, untouched = dial(), dial()
    assert exchange(sock, b"one") == b"one"
    proxy.drop(TO_SERVER)
    sock.sendall(b"two")
    assert wait_until(lambda: proxy.swallowed[TO_SERVER] == 3)
    sock.close()
    proxy.heal()
    assert wait_until(lambda: echo.endings == ["closed"])  # a stream with a hole cannot go on
    assert bytes(echo.got) == b"one"
    assert exchange(untouched, b"two") == b"two"


def test_refuse(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    assert exchange(sock, b"one") == b"one"
    proxy.refuse()
    assert ending(sock) == "closed"
    assert ending(dial()) in ("closed", "reset")
    proxy.heal()
    assert exchange(dial(), b"two") == b"two"


def test_faults_add_up_and_heal_ends_them_all(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    proxy.delay(0.02)
    proxy.throttle(1000, TO_CLIENT)
    proxy.cut_after(50, TO_CLIENT)
    began = time.monotonic()
    sock.sendall(b"x" * 100)
    assert receive(sock, 100) == b"x" * 50
    assert time.monotonic() - began >= 0.04 + 0.03
    proxy.stall(TO_SERVER)
    proxy.drop(TO_CLIENT)
    proxy.refuse()
    proxy.heal()
    assert exchange(dial(), b"well") == b"well"


def test_a_server_that_is_not_there_is_not_there() -> None:
    with socket.socket() as taken, contextlib.ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))  # and nobody listens: a port that is free might become the proxy's own
        proxy = stack.enter_context(FaultProxy(*taken.getsockname()))
        with socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE) as sock:
            assert ending(sock) in ("closed", "reset")
        assert proxy.accepted == 1


def test_a_direction_must_be_one(proxy: FaultProxy, dial: Dial) -> None:
    for fault in (proxy.stall, proxy.drop, lambda where: proxy.cut_after(1, where)):
        with pytest.raises(ValueError, match="'sideways' is no direction"):
            fault("sideways")
    assert exchange(dial(), b"x") == b"x"


def test_closed_it_says_so(echo: Echo) -> None:
    proxy = FaultProxy("127.0.0.1", echo.port)
    sock = socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE)
    assert exchange(sock, b"x") == b"x"
    proxy.close()
    proxy.close()
    assert ending(sock) == "closed"
    sock.close()
    with pytest.raises(RuntimeError, match="closed"):
        proxy.stall()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_keeps_no_connection_open(proxy: FaultProxy, echo: Echo, dial: Dial) -> None:
    sock = dial()
    assert exchange(sock, b"x") == b"x"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)  # live until the parent is done
        os._exit(0)
    os.close(reading)
    try:
        proxy.reset()
        assert ending(sock) == "reset"
        assert wait_until(lambda: echo.endings == ["reset"])
        assert exchange(dial(), b"on") == b"on"
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


@pytest.mark.redis
@pytest.mark.integration
class TestRedis:
    """The same, as a client of a real server meets it."""

    @pytest.fixture
    def between(self, redis_server: RedisEndpoint) -> Iterator[FaultProxy]:
        with redis_server.client() as client:
            address = client.connection_pool.connection_kwargs
        with FaultProxy(address.get("host", "127.0.0.1"), address.get("port", 6379)) as proxy:
            yield proxy

    @pytest.fixture
    def client(self, redis_server: RedisEndpoint, between: FaultProxy) -> Iterator[redis.Redis]:
        with redis_server.client() as direct:
            pool = direct.connection_pool.connection_kwargs
        login = f":{pool['password']}@" if pool.get("password") else ""
        with connect(f"redis://{login}{between.host}:{between.port}/{pool.get('db', 0)}", socket_timeout=0.3) as made:
            made.ping()
            yield made

    def test_a_lost_answer_is_a_timeout_though_it_was_done(
        self, between: FaultProxy, client: redis.Redis, cleanup_key: str
    ) -> None:
        between.drop(TO_CLIENT)
        with pytest.raises(redis.TimeoutError):
            client.incr(cleanup_key)
        between.heal()
        assert client.get(cleanup_key) == b"1"

    def test_a_lost_question_is_a_timeout_and_was_not_done(
        self, between: FaultProxy, client: redis.Redis, cleanup_key: str
    ) -> None:
        between.drop(TO_SERVER)
        with pytest.raises(redis.TimeoutError):
            client.incr(cleanup_key)
        between.heal()
        assert client.get(cleanup_key) is None

    def test_cut_in_the_middle_of_the_answer(self, between: FaultProxy, client: redis.Redis, cleanup_key: str) -> None:
        between.cut_after(2, TO_CLIENT)
        with pytest.raises(redis.ConnectionError):
            client.incr(cleanup_key)
        assert client.incr(cleanup_key) == 2

    def test_latency_is_added_to_each_round_trip(self, between: FaultProxy, client: redis.Redis) -> None:
        between.delay(0.03)
        began = time.monotonic()
        for _ in range(3):
            client.ping()
        assert time.monotonic() - began >= 3 * 2 * 0.03
        began = time.monotonic()
        with client.pipeline(transaction=False) as pipe:
            for _ in range(1000):
                pipe.ping()
            assert pipe.execute() == [True] * 1000
        assert time.monotonic() - began < 1000 * 2 * 0.03

    @pytest.fixture
    def cleanup_key(self, redis_server: RedisEndpoint) -> Iterator[str]:
        key = f"streamll-test:proxy:{os.urandom(8).hex()}"
        yield key
        with redis_server.client() as client:
            client.delete(key)
