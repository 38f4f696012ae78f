"""One connection to the Redis server that holds the stream: found, opened, written to and read from.

What belongs here: redis-py, and the few places where more is needed of it than it offers, all in `Tap`. What does not:
what the commands mean (sinks/, consumers/). redis-py is imported when the first connection is opened.

redis-py's own retries are always off: a command that it sends again by itself may have been carried out already.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, cast

from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.brokers.redis_url import RedisAddress
from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, UnavailableError
from streamll.runtime.fork import Descriptors, tell_after_fork
from streamll.wire.redis import Argument, hash_slot

Reply = Any
"""A reply of RESP2: bytes, int, None, a list of replies, or an exception of redis-py for an error."""

_READ_SIZE = 65_536
_ARMED_FOR = 0.05
"""Seconds by which a batch whose answers trickle in may miss its deadline."""

_CONNECTING = (errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))
_HAS_KERNEL_TIMEOUTS = sys.platform in ("linux", "darwin")

# Settings of a given client, or redis-py's own, that do not hold for our connection: how it retries and decodes, and
# what ties a connection to its pool.
_LEFT_OUT = frozenset(
    {
        "retry",
        "retry_on_timeout",
        "retry_on_error",
        "health_check_interval",
        "decode_responses",
        "encoding",
        "encoding_errors",
        "socket_timeout",
        "socket_connect_timeout",
        "socket_read_size",
        "protocol",
        "legacy_responses",
        "parser_class",
        "command_packer",
        "connection_pool",
        "event_dispatcher",
        "himport_registry",
    }
)
_LEFT_OUT_PREFIXES = ("maint_notifications", "oss_cluster_maint", "orig_", "maintenance_")


class Tap:
    """The socket under a redis-py connection: its deadlines, and its end at the hands of another thread.

    redis-py gives a timeout for each read and lends its socket to nobody. A batch needs one deadline for all of it, and
    `interrupt` must reach a socket that is still connecting. So our connection classes connect by themselves, and leave
    the socket here. Should a future redis-py no longer ask them to, everything works but for two things: `interrupt`
    cannot reach the socket, and the deadline is kept for each read instead of for the whole.

    On Linux and macOS the kernel keeps the timeouts of a socket without TLS. Python's own ones cost a poll before each
    call, and with it one more wait for the interpreter's lock: beside a thread that never rests, a batch of 100 took
    6 ms with them and takes 3 ms without.
    """

    def __init__(self) -> None:
        # Re-entrant, since a signal handler may interrupt the thread that is in here.
        self._lock = threading.RLock()
        self._twin: socket.socket | None = None
        self._descriptors = Descriptors()
        self._pid = os.getpid()
        self._kernel = False
        self.interrupted = False
        self.deadline = 0.0
        self.socket: socket.socket | None = None
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Whoever held the lock is not in the child."""
        self._lock = threading.RLock()

    def interrupt(self) -> None:
        """End what is blocked on the socket, or will be before the next `reset`."""
        with self._lock:
            self.interrupted = True
            self._cut()

    def connect(self, sock: socket.socket, address: Any, share: float = 1.0) -> None:
        """Connect within this share of the time that is left, in reach of `interrupt`.

        Raises:
            OSError: When it cannot be done.
        """
        with self._lock:
            self._drop_twin()
            # The twin stays ours whatever redis-py or TLS do with the socket, so its number is never another file's.
            self._twin = sock.dup()
            self._pid = os.getpid()
            for each in (self._twin, sock):  # TLS moves the latter into another object, under the same number
                self._descriptors.hold(each.fileno())
        sock.setblocking(False)
        code = sock.connect_ex(address)
        # Only what is on its way can be cut: an interruption that came before is seen here.
        if code in _CONNECTING and not self.interrupted:
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                if not selector.select(self._left() * share):
                    raise TimeoutError("no connection in time")
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if self.interrupted:
            raise OSError(errno.ECONNABORTED, "interrupted")
        sock.settimeout(self._left())

    def ready(self, sock: socket.socket) -> None:
        """Take over the connected socket, TLS and all."""
        self.socket = sock
        self._kernel = _is_plain(sock) and _HAS_KERNEL_TIMEOUTS
        self.arm(self.deadline)

    def arm(self, deadline: float) -> None:
        """Let everything that happens on the socket from now on end at this instant."""
        self.deadline = deadline
        if self.socket is None:
            return
        left = self._left()
        if self._kernel:
            value = struct.pack("@ll", int(left), int(left % 1 * 1e6))
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            except OSError:
                self._kernel = False
        self.socket.settimeout(None if self._kernel else left)

    def write(self, sock: socket.socket, data: bytes) -> None:
        """Write all of it, in one call as a rule.

        Raises:
            OSError: When the connection breaks, or not all is written at the deadline.
        """
        rest = memoryview(data)
        while True:
            rest = rest[sock.send(rest) :]
            if not rest:
                return
            self.arm(self.deadline)
            if time.monotonic() >= self.deadline:
                raise TimeoutError("not all of the batch was taken in time")

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody asked for, such as the end of the connection."""
        if self.socket is None or not _is_plain(self.socket) or not hasattr(socket, "MSG_DONTWAIT"):
            return True  # cannot be told: the next batch will find out
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def release(self) -> None:
        """Let go of the socket."""
        with self._lock:
            self._drop_twin()
            self.socket = None
            self._descriptors.forget()

    def reset(self) -> None:
        """Forget an interruption: what it was to end has ended."""
        self.interrupted = False

    def _left(self) -> float:
        # Zero would mean no timeout to the kernel, and "do not wait" to Python.
        return max(0.001, self.deadline - time.monotonic())

    def _cut(self) -> None:
        # After a fork the connection still belongs to the parent, and would be cut for it.
        if self._twin is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                self._twin.shutdown(socket.SHUT_RDWR)

    def _drop_twin(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


def _is_plain(sock: socket.socket) -> bool:
    """Whether it has neither TLS, nor gevent or eventlet between us and the system's calls."""
    return type(sock).__module__ == socket.__name__


class RedisConnection:
    """A connection on which requests are answered in order. Once `broken`, nothing is ever sent on it again."""

    def __init__(self, connection: Any, tap: Tap) -> None:
        self._connection = connection
        self._tap = tap
        self._pack = _packer(connection)
        self.broken = False
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """It is the parent's."""
        self.broken = True

    def exchange(self, commands: Iterable[tuple[Argument, ...]], deadline: float) -> tuple[list[Reply], Trouble | None]:
        """Send commands in one write, and read an answer to each.

        Returns:
            The answers that came, errors of the server among them; and, when not all came, why: then it is broken.
        """
        from redis.exceptions import ResponseError

        if self.broken:  # redis-py would connect again by itself, and what the old connection watched is not watched
            return [], Trouble("", Failure.UNAVAILABLE, "the connection is broken")
        packed = [self._pack(command) for command in commands]
        replies: list[Reply] = []
        # Until all answers are read; so too when anything at all comes between, such as Ctrl-C.
        self.broken = True
        self._tap.arm(deadline)
        armed = time.monotonic()
        cut = None
        try:
            try:
                self._write(b"".join(packed))
            except OSError as error:
                if isinstance(error, (TimeoutError, BlockingIOError)):
                    raise
                cut = error  # a server that cannot read a request says why before it hangs up
            for _ in packed:
                try:
                    replies.append(self._connection.read_response())
                except ResponseError as error:
                    replies.append(error.with_traceback(None))  # its traceback would keep the batch alive
                now = time.monotonic()
                if now - armed > _ARMED_FOR:
                    # Each read may take what was left when this was done last.
                    if now > deadline and len(replies) < len(packed):
                        raise TimeoutError("not all answers came in time")
                    self._tap.arm(deadline)
                    armed = now
        except Exception as error:  # whatever redis-py and the socket may raise
            return replies, self._explain(cut or error)
        self.broken = cut is not None
        return replies, self._explain(cut) if cut else None

    def _write(self, data: bytes) -> None:
        if self._tap.socket is not None:
            self._tap.write(self._tap.socket, data)
        else:
            self._connection.send_packed_command([data], check_health=False)

    def is_quiet(self) -> bool:
        """Whether it can still be used, as far as can be told without asking the server."""
        return not self.broken and self._tap.is_quiet()

    def close(self) -> None:
        """Close it; never raises."""
        self.broken = True
        with contextlib.suppress(Exception):  # closing is best effort, and nothing is left to be done about a failure
            self._connection.disconnect()
        self._tap.release()

    def _explain(self, error: Exception) -> Trouble:
        if self._tap.interrupted:
            return Trouble("", Failure.UNAVAILABLE, "interrupted")
        return _trouble(error)


def _trouble(error: BaseException, secrets: Iterable[str] = ()) -> Trouble:
    """As `trouble_of`, but says of a timeout of the kernel what it is."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, (BlockingIOError, TimeoutError)) or type(cause).__name__ == "TimeoutError":
            return Trouble("", Failure.UNAVAILABLE, "the server did not answer in time")
    return trouble_of(error, secrets=secrets)


def _packer(connection: Any) -> Callable[[tuple[Argument, ...]], bytes]:
    try:
        from hiredis import pack_command
    except ImportError:
        return lambda command: b"".join(connection.pack_command(*command))
    return cast("Callable[[tuple[Argument, ...]], bytes]", pack_command)


@cache
def _tapped(base: type[Any]) -> type[Any]:
    """A connection class of redis-py that leaves its socket in its attribute `tap`."""
    from redis.connection import Connection, UnixDomainSocketConnection

    root = UnixDomainSocketConnection if issubclass(base, UnixDomainSocketConnection) else Connection
    dial = _dial_unix if root is UnixDomainSocketConnection else _dial_tcp
    # TLS asks the class behind it for a connected socket, so ours stands between the two.
    plain = type(f"Tapped{root.__name__}", (root,), {"_connect": dial})
    bases = (plain,) if base is root else (base, plain)

    def connect(self: Any) -> socket.socket:
        sock: socket.socket = super(tapped, self)._connect()
        self.tap.ready(sock)
        return sock

    tapped: type[Any] = type(f"Tapped{base.__name__}", bases, {"_connect": connect})
    return tapped


def _dial_tcp(connection: Any) -> socket.socket:
    tap: Tap = connection.tap
    found = socket.getaddrinfo(connection.host, connection.port, connection.socket_type, socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if connection.socket_keepalive:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in (connection.socket_keepalive_options or {}).items():
                    sock.setsockopt(socket.IPPROTO_TCP, name, value)
            # One address that swallows everything must not use up the time of the others.
            tap.connect(sock, address, share=1.0 / (len(found) - place))
        except OSError:
            sock.close()
            if place == len(found) - 1:
                raise
        else:
            return sock
    raise OSError("the host has no address")


def _dial_unix(connection: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.tap.connect(sock, connection.path)
    except OSError:
        sock.close()
        raise
    return sock


class Dialer:
    """Finds the server that holds the stream, anew each time, and opens the connection to it.

    Args:
        address: Where it is; None when a client is given.
        client: A ready client of redis-py, whose connection settings are used, but neither its connections nor its
            retries.
        stream: The stream's key, which tells the node of a cluster.
    """

    def __init__(self, address: RedisAddress | None, client: Any, stream: bytes) -> None:
        self._address = address
        self._client = client
        self._slot = hash_slot(stream)
        self._seen: list[tuple[str, int]] = []

    def connect(self, deadline: float, tap: Tap) -> RedisConnection:
        """Open a connection.

        Raises:
            UnavailableError: When no server can be reached, or none serves the stream now.
            FatalError: When it refuses for a reason that waiting does not mend.
        """
        if self._address is None:
            return self._connect_as_client(deadline, tap)
        base, settings = self._parsed(self._address)
        if self._address.kind == "cluster":
            return self._connect_to_cluster(base, settings, list(self._address.nodes), deadline, tap)
        if self._address.kind == "sentinel":
            host, port = self._ask_sentinels(self._address, base, settings, deadline, tap)
            return self._connect_to_primary(base, {**settings, "host": host, "port": port}, deadline, tap)
        return _connect(base, settings, deadline, tap)

    def _parsed(self, address: RedisAddress) -> tuple[type[Any], dict[str, Any]]:
        """What redis-py makes of the URL: a class of connections, and how to make one."""
        from redis import ConnectionPool

        try:
            pool = ConnectionPool.from_url(address.url)
        except Exception as error:  # redis-py raises several kinds for what it cannot read in a URL
            raise FatalError(f"redis-py does not take the URL: {type(error).__name__}") from None
        return pool.connection_class, pool.connection_kwargs

    def _connect_as_client(self, deadline: float, tap: Tap) -> RedisConnection:
        client = self._client
        if hasattr(client, "get_node_from_key"):
            nodes = client.get_nodes()
            pool = client.get_redis_connection(nodes[0]).connection_pool
            settings = {k: v for k, v in pool.connection_kwargs.items() if k != "redis_connect_func"}
            named = [(node.host, node.port) for node in nodes]
            return self._connect_to_cluster(pool.connection_class, settings, named, deadline, tap)
        pool = client.connection_pool
        base, settings = pool.connection_class, pool.connection_kwargs
        if not hasattr(pool, "get_master_address"):
            return _connect(base, settings, deadline, tap)
        from redis.connection import Connection, SSLConnection

        try:
            host, port = pool.get_master_address()
        except Exception as error:  # redis-py's sentinels raise several kinds; none is ours to tell apart
            raise _trouble(error).as_error() from None
        base = SSLConnection if issubclass(base, SSLConnection) else Connection
        return self._connect_to_primary(base, {**settings, "host": host, "port": port}, deadline, tap)

    def _connect_to_primary(
        self, base: type[Any], settings: dict[str, Any], deadline: float, tap: Tap
    ) -> RedisConnection:
        """Connect to the server that the sentinels named, which may have lost its office since."""
        connection = _connect(base, settings, deadline, tap)
        replies, trouble = connection.exchange([(b"ROLE",)], deadline)
        if trouble is None and isinstance(replies[0], list) and replies[0][0] != b"master":
            trouble = Trouble("", Failure.UNAVAILABLE, "the sentinels name a server that is not the primary (yet)")
        if trouble is not None:
            connection.close()
            raise trouble.as_error()
        return connection

    def _ask_sentinels(
        self, address: RedisAddress, base: type[Any], settings: dict[str, Any], deadline: float, tap: Tap
    ) -> tuple[str, int]:
        service, (user, password) = address.service, address.sentinel_credentials
        login = {"username": user or None, "password": password or None}
        common = {**settings, **login, "db": 0, "client_name": None}
        said = []
        for place, (host, port) in enumerate(address.nodes):
            share = _share(deadline, len(address.nodes) - place)
            try:
                sentinel = _connect(base, {**common, "host": host, "port": port}, share, tap)
            except (UnavailableError, FatalError) as error:
                said.append(f"{host}:{port}: {error}")
                if tap.interrupted:
                    break
                continue
            replies, trouble = sentinel.exchange([(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service)], share)
            sentinel.close()
            if trouble is None and isinstance(replies[0], list):
                name, number = replies[0]
                return name.decode(), int(number)
            if trouble is None:
                trouble = trouble_of(replies[0]) if replies[0] is not None else None
            said.append(f"{host}:{port}: {trouble.text if trouble else f'knows no service {service!r}'}")
        raise UnavailableError(f"no sentinel names a primary ({'; '.join(said)})")

    def _connect_to_cluster(
        self, base: type[Any], settings: dict[str, Any], named: list[tuple[str, int]], deadline: float, tap: Tap
    ) -> RedisConnection:
        nodes = list(dict.fromkeys([*self._seen, *named]))
        last: UnavailableError | FatalError = UnavailableError("the cluster has no node")
        for place, (host, port) in enumerate(nodes):
            share = _share(deadline, len(nodes) - place)
            try:
                connection = _connect(base, {**settings, "host": host, "port": port}, share, tap)
                owner = self._find_owner(connection, host, share)
                if owner == (host, port):
                    return connection
                connection.close()
                return _connect(base, {**settings, "host": owner[0], "port": owner[1]}, deadline, tap)
            except (UnavailableError, FatalError) as error:
                last = error
                if tap.interrupted:
                    break
        raise last

    def _find_owner(self, connection: RedisConnection, host: str, deadline: float) -> tuple[str, int]:
        """Ask a node who serves the stream's slot, and remember whom it knows."""
        replies, trouble = connection.exchange([(b"CLUSTER", b"SLOTS")], deadline)
        if trouble is None and isinstance(replies[0], Exception):
            trouble = trouble_of(replies[0])
        if trouble is not None:
            connection.close()
            raise trouble.as_error()
        owner = None
        seen = []
        try:
            for first, last, *nodes in replies[0]:
                for name, port, *_ in nodes:
                    seen.append((name.decode() if name else host, int(port)))
                if first <= self._slot <= last and nodes:
                    name, port, *_ = nodes[0]
                    owner = (name.decode() if name else host, int(port))
        except (TypeError, ValueError, AttributeError):
            connection.close()
            raise FatalError("what answers as a node of the cluster is none") from None
        self._seen = list(dict.fromkeys(seen))
        if owner is None:
            connection.close()
            raise UnavailableError(f"no node of the cluster serves slot {self._slot} of the stream now")
        return owner


def _share(deadline: float, among: int) -> float:
    """An instant that leaves the same time for each of so many tries."""
    now = time.monotonic()
    return now + max(0.0, deadline - now) / among


def import_client() -> None:
    """Import all that a connection needs, also what redis-py and Python's sockets import late."""
    import encodings.idna  # noqa: F401  # for a host's name

    from redis import ConnectionPool

    ConnectionPool().make_connection()  # which connects to nothing, but reads redis-py's version


def _connect(base: type[Any], settings: dict[str, Any], deadline: float, tap: Tap) -> RedisConnection:
    """Open one connection: connect, TLS, log in, choose the database."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    if tap.interrupted:
        raise UnavailableError("interrupted")
    left = max(0.001, deadline - time.monotonic())
    kept = {
        name: value
        for name, value in settings.items()
        if name not in _LEFT_OUT and not name.startswith(_LEFT_OUT_PREFIXES)
    }
    tap.deadline = deadline
    if "path" not in kept:
        kept.setdefault("socket_keepalive", True)
    try:
        connection = _tapped(base)(  # type: ignore[arg-type]  # a class is hashable
            **kept,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            socket_read_size=_READ_SIZE,
            socket_timeout=left,
            socket_connect_timeout=left,
        )
        connection.tap = tap
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
    except Exception as error:  # redis-py, the resolver, TLS and a given client's credential provider: all end here
        tap.release()
        trouble = _why_not(error, kept, tap)
    else:
        return RedisConnection(connection, tap)
    raise trouble.as_error()  # not in the block above: it would carry redis-py's error, which may quote the login


def _why_not(error: Exception, settings: Mapping[str, Any], tap: Tap) -> Trouble:
    """What kept a connection from being opened. What a server says of a login may quote it, and is not repeated then."""
    if tap.interrupted:
        return Trouble("", Failure.UNAVAILABLE, "interrupted")
    return _trouble(error, [str(settings[name]) for name in ("username", "password") if settings.get(name)])
