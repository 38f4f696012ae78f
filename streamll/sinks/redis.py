"""RedisSink: streams events into a Redis stream, each once, as long as the server keeps the fence.

What belongs here: the class and what it can be told. The transport is in redis_transport.py, the fence in
redis_fence.py, what a URL means in redis_url.py. Nothing here imports redis-py: the worker does, when it connects.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

from streamll.brokers.redis_url import RedisAddress, parse_redis_url
from streamll.errors import ConfigurationError
from streamll.options import EventFilter, OptionSet, SinkOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import Finding, OnDelivery, Sink, Transport
from streamll.sinks.redis_options import RedisOptions
from streamll.wire.redis import FENCE_TTL, keys_for

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RedisOptions", "RedisSink"]

DEFAULT_URL = "redis://localhost:6379/0"


class RedisSink(Sink):
    """Streams events into a Redis stream: one entry an event, or one for many (`framing`), and one round trip a batch.

    An event is in the stream once, whatever connection is cut when, as long as the server keeps a small key beside the
    stream (the fence); `streamll check URL` says where it may not. Rejected events go to the stream's dead letters.

    Args:
        url: The server: `redis://[[user]:password@]host[:port][/db]`, `rediss://` with TLS,
            `unix://[[user]:password@]/path?db=0`, `redis+cluster://host,host2`, or
            `redis+sentinel://host,host2/service[/db]` (`sentinel_username` and `sentinel_password` are for the
            sentinels themselves). Its query may hold any option of the sink, and of redis-py's those for the database,
            the login, TLS and keepalive. Default: redis://localhost:6379/0.
        stream_key: The stream's key; in a URL, and as an option, its name is `stream`. Default: "streamll".
        client: A ready client of redis-py (`redis.Redis` or `redis.RedisCluster`) instead of a URL: its connection
            settings are used, but neither its connections nor its retries.
        name: The sink's name in stats and logs.
        event_filter, on_delivery, pipeline, retry_wait: As for every sink.
        options: Those of every sink, and of `RedisOptions`; they win over those in the URL.

    Raises:
        ConfigurationError: When the URL or an option cannot be used.

    Example:
        with RedisSink("redis://localhost:6379/0", stream_key="app-events") as sink:
            sink.handle_event(StreamllEvent(event_type="token"))
    """

    own_options: ClassVar[type[OptionSet]] = RedisOptions
    scheme: ClassVar[str] = "redis"
    orphan_age: ClassVar[float] = FENCE_TTL * 0.9

    def __init__(
        self,
        url: str = "",
        stream_key: str = "",
        *,
        client: Any = None,
        name: str = "",
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        address = None
        if client is None:
            address, given = read_url(url or DEFAULT_URL)
            named = given.pop("name", "")
            name = name or named
            options = {**given, **options}
        else:
            _check_client(url, client)
        if stream_key:
            if "stream" in options and options["stream"] != stream_key:
                raise ConfigurationError(
                    f"redis option stream={options['stream']!r}: stream_key={stream_key!r} is given too"
                )
            options["stream"] = stream_key
        own, shared = self.split_options(options)
        cluster = address.kind == "cluster" if address is not None else _is_cluster(client)
        keys_for(own.stream, "", own.dead_letter_stream, cluster)  # refuses keys that cannot be used

        def transport(producer: str) -> Transport:
            # On the worker's thread: what a connection needs takes longer to import than `configure` is to last.
            from streamll.brokers.redis_dialer import Dialer
            from streamll.sinks.redis_transport import RedisTransport

            keys = keys_for(own.stream, producer, own.dead_letter_stream, cluster)
            return RedisTransport(Dialer(address, client, keys.stream), keys, producer, own)

        server = address.shown if address is not None else _shown(client)
        super().__init__(
            destination=f"{server} stream {own.stream}",
            address=_address_of(address, own),
            transport=transport,
            options=shared,
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from a URL; see the class.

        Raises:
            ConfigurationError: When the URL or an option cannot be used.
        """
        return cls(url, **options)

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say whether the server can be reached, whether it takes events from this user, and what it may lose.

        Nothing is left behind on the server.

        Raises:
            ConfigurationError: When the URL or an option in it cannot be used.
        """
        from streamll.sinks.redis_check import check  # imported where needed: a running sink does without it

        cls(url)
        address, given = read_url(url)
        given.pop("name", None)
        own, shared = cls.split_options(given)
        return check(address, own, shared.connect_timeout)


def read_url(url: str) -> tuple[RedisAddress, dict[str, str]]:
    """Take a URL apart: the server, and the sink's options in its query (its name among them).

    Raises:
        ConfigurationError: When the URL cannot be used.
    """
    address = parse_redis_url(url, own={*RedisOptions.names(), *SinkOptions.names(), "name"})
    return address, dict(address.options)


def _address_of(address: RedisAddress | None, own: RedisOptions) -> str:
    """A URL to the same stream and dead letters, without credentials; empty where only the given client knows the way."""
    if address is None:
        return ""
    there = {"stream": own.stream}
    if own.dead_letter_stream:
        there["dead_letter_stream"] = own.dead_letter_stream
    database = parse_qs(urlsplit(address.url).query).get("db")  # a Unix socket's path has no room for it
    if database:
        there["db"] = database[0]
    return f"{address.shown}?{urlencode(there)}"


def _check_client(url: str, client: Any) -> None:
    if url:
        raise ConfigurationError(
            "redis option client: is given together with url; one of them says where the server is"
        )
    execute = getattr(client, "execute_command", None)
    if execute is None or not (hasattr(client, "connection_pool") or _is_cluster(client)):
        raise ConfigurationError(
            f"redis option client: must be a redis.Redis or redis.RedisCluster, not a {type(client).__name__}"
        )
    if inspect.iscoroutinefunction(execute):
        raise ConfigurationError("redis option client: must not be an asyncio client; the sink has a thread of its own")


def _is_cluster(client: Any) -> bool:
    return hasattr(client, "get_node_from_key")


def _shown(client: Any) -> str:
    """The server of a client for people: without credentials."""
    if _is_cluster(client):
        return "redis cluster of the given client"
    pool = client.connection_pool
    if hasattr(pool, "get_master_address"):
        return f"redis sentinel service {pool.service_name}"
    settings = pool.connection_kwargs
    if "path" in settings:
        return f"unix://{settings['path']}"
    return f"redis://{settings.get('host', 'localhost')}:{settings.get('port', 6379)}/{settings.get('db', 0)}"
