"""Finds the server that holds the stream, anew each time: by its address, by sentinels, or in a cluster.

What belongs here: which server to connect to. What does not: the connection itself (redis_connection.py).
"""

from __future__ import annotations

import time
from typing import Any

from streamll.brokers.redis_connection import RedisConnection, connect, trouble_of_attempt
from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.brokers.redis_tap import Tap
from streamll.brokers.redis_url import RedisAddress
from streamll.delivery.outcome import Failure
from streamll.errors import FatalError, UnavailableError
from streamll.wire.redis import hash_slot


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
        return connect(base, settings, deadline, tap)

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
            return connect(base, settings, deadline, tap)
        from redis.connection import Connection, SSLConnection

        try:
            host, port = pool.get_master_address()
        except Exception as error:  # redis-py's sentinels raise several kinds; none is ours to tell apart
            raise trouble_of_attempt(error).as_error() from None
        base = SSLConnection if issubclass(base, SSLConnection) else Connection
        return self._connect_to_primary(base, {**settings, "host": host, "port": port}, deadline, tap)

    def _connect_to_primary(
        self, base: type[Any], settings: dict[str, Any], deadline: float, tap: Tap
    ) -> RedisConnection:
        """Connect to the server that the sentinels named, which may have lost its office since."""
        connection = connect(base, settings, deadline, tap)
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
                sentinel = connect(base, {**common, "host": host, "port": port}, share, tap)
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
                connection = connect(base, {**settings, "host": host, "port": port}, share, tap)
                owner = self._find_owner(connection, host, share)
                if owner == (host, port):
                    return connection
                connection.close()
                return connect(base, {**settings, "host": owner[0], "port": owner[1]}, deadline, tap)
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
