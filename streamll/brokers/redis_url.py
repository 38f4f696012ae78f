"""A Redis URL, taken apart and checked without importing redis.

What belongs here: which server a URL means, and which of its options are whose. What does not: connecting to it
(redis_connection.py). No message from here shows a credential.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from streamll.errors import ConfigurationError
from streamll.options import unknown_option

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)
DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26_379

_ESCAPES = "in a password, `/`, `?`, `#`, `@` and `%` are written %2F, %3F, %23, %40 and %25"
_WORDS = ("true", "false", "yes", "no", "1", "0")
_NUMBER = ("a whole number",)
_TEXT: tuple[str, ...] = ()

# What of redis-py's own URL options may be given, and the values each takes (none listed: any text).
CLIENT_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "db": _NUMBER,
    "username": _TEXT,
    "password": _TEXT,
    "client_name": _TEXT,
}
TCP_OPTIONS: Mapping[str, tuple[str, ...]] = {"socket_keepalive": _WORDS}
TLS_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "ssl_keyfile": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_password": _TEXT,
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_ca_certs": _TEXT,
    "ssl_ca_path": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_check_hostname": _WORDS,
    "ssl_min_version": _NUMBER,
    "ssl_ciphers": _TEXT,
}
SENTINEL_OPTIONS: Mapping[str, tuple[str, ...]] = {"sentinel_username": _TEXT, "sentinel_password": _TEXT}

# redis-py's options that would change what only the sink can decide, with what to use instead.
REFUSED_OPTIONS: Mapping[str, str] = {
    "socket_timeout": "use send_timeout",
    "socket_connect_timeout": "use connect_timeout",
    "timeout": "use connect_timeout",
    "retry_on_timeout": "the sink retries by itself; see retry_base and retry_bound",
    "retry_on_error": "the sink retries by itself; see retry_base and retry_bound",
    "health_check_interval": "the sink notices a broken connection by itself; leave it out",
    "max_connections": "the sink uses one connection; leave it out",
    "decode_responses": "it makes no difference to a sink; leave it out",
    "protocol": "it makes no difference to a sink; leave it out",
}


@dataclass(frozen=True)
class RedisAddress:
    """Where a Redis is and how to get in.

    Attributes:
        kind: "single", "cluster" or "sentinel".
        url: What redis-py is to parse, with credentials: the server itself, or the first node or sentinel.
        nodes: Host and port of each node of a cluster, or of each sentinel, that the URL names.
        service: The name that sentinels know the primary by.
        options: What the URL's query says that is not redis-py's: options of the sink, as text.
        sentinel_credentials: User name and password for the sentinels themselves; each may be empty.
        shown: The server for people: without credentials and options.
    """

    kind: str
    url: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...]
    service: str
    options: Mapping[str, str]
    sentinel_credentials: tuple[str, str] = field(repr=False)
    shown: str


def parse_redis_url(url: str, own: Collection[str] = ()) -> RedisAddress:
    """Take a URL apart.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `redis+cluster://host,host2` or `redis+sentinel://host,host2/service/db`.
        own: The names of the sink's own options, which are taken out of the query.

    Raises:
        ConfigurationError: When the URL cannot be used; says which part of it, and what is allowed.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"url: must be a string, not a {type(url).__name__}")
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ConfigurationError("url: the host is not well formed (an IPv6 address needs its brackets)") from None
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(f"url scheme {parts.scheme!r}: must be one of {', '.join(SCHEMES)}")
    if parts.fragment or ("@" in parts.path and parts.scheme != "unix"):
        raise ConfigurationError(f"url: ends too early to hold a host; {_ESCAPES}")
    base, _, kind = parts.scheme.partition("+")
    options, client = _split_query(parts, own, tls=base == "rediss", sentinel=kind == "sentinel")
    sentinel_credentials = (client.pop("sentinel_username", ""), client.pop("sentinel_password", ""))
    userinfo, _, hosts = parts.netloc.rpartition("@")
    login = f"{userinfo}@" if userinfo else ""
    query = f"?{urlencode(client)}" if client else ""

    if base == "unix":
        if not parts.path.strip("/") or hosts:
            raise ConfigurationError(
                "url: must name the socket's path after three slashes, such as unix:///run/redis.sock"
            )
        _database(client.get("db", "0"))
        shown = f"unix://{unquote(parts.path)}"
        return RedisAddress("single", f"unix://{login}{parts.path}{query}", (), "", options, ("", ""), shown)

    port = DEFAULT_SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT
    nodes = tuple(_node(host, port) for host in hosts.split(","))
    if len(nodes) > 1 and not kind:
        raise ConfigurationError("url: names several hosts, which takes redis+cluster:// or redis+sentinel://")
    path = [unquote(part) for part in parts.path.strip("/").split("/")] if parts.path.strip("/") else []
    service = ""
    if kind == "sentinel":
        if not path:
            raise ConfigurationError(
                "url: must name the service that the sentinels watch: redis+sentinel://host/service/db"
            )
        service = path.pop(0)
    if len(path) > 1:
        raise ConfigurationError(f"url path {'/'.join(path)!r}: must be the number of a database")
    database = _database(client.pop("db", "") or (path[0] if path else "0"))
    if kind == "cluster" and database:
        raise ConfigurationError(f"url db={database}: a cluster has database 0 only")
    query = f"?{urlencode(client)}" if client else ""
    host, number = nodes[0]
    named = ",".join(f"{_bracketed(host)}:{number}" for host, number in nodes)
    return RedisAddress(
        kind=kind or "single",
        url=f"{base}://{login}{_bracketed(host)}:{number}/{database}{query}",
        nodes=nodes,
        service=service,
        options=options,
        sentinel_credentials=sentinel_credentials,
        shown=f"{parts.scheme}://{named}/{f'{service}/' if service else ''}{database}",
    )


def _split_query(
    parts: SplitResult, own: Collection[str], tls: bool, sentinel: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Divide the query into the sink's options and redis-py's, and refuse what is neither."""
    ours: dict[str, str] = {}
    client: dict[str, str] = {}
    tcp = parts.scheme != "unix"
    allowed = {
        **CLIENT_OPTIONS,
        **(TCP_OPTIONS if tcp else {}),
        **(TLS_OPTIONS if tls else {}),
        **(SENTINEL_OPTIONS if sentinel else {}),
    }
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ours or name in client:
            raise ConfigurationError(f"url option {name!r}: is given twice")
        if name in own:
            ours[name] = value
        elif name in allowed:
            _check_client_option(name, value, allowed[name])
            client[name] = value
        elif name in REFUSED_OPTIONS:
            raise ConfigurationError(f"url option {name!r}: {REFUSED_OPTIONS[name]}")
        elif name in TLS_OPTIONS:
            raise ConfigurationError(f"url option {name!r}: needs TLS, that is rediss:// instead of {parts.scheme}://")
        elif not name.isidentifier() or "@" in parts.query:  # it may be a part of a password
            raise ConfigurationError(f"url: the name of an option is not well formed; {_ESCAPES}")
        else:
            raise unknown_option("url: ", name, {*own, *allowed})
    return ours, client


def _check_client_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if name == "db":
        _database(value)
    elif allowed is _NUMBER and not (value.isascii() and value.isdigit()):
        raise ConfigurationError(f"url option {name}={value!r}: must be a whole number")
    elif allowed and allowed is not _NUMBER and value.lower() not in allowed:
        raise ConfigurationError(f"url option {name}={value!r}: must be one of {', '.join(allowed)}")


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigurationError(f"url db={text!r}: must be the number of a database, 0 or more")
    return int(text)


def _node(text: str, default_port: int) -> tuple[str, int]:
    """Read `host`, `host:port` or `[address]:port`."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port_text = rest.removeprefix(":")
    else:
        host, _, port_text = text.partition(":")
    if not host:
        raise ConfigurationError("url: names no host")
    if not port_text:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:9]) < 65_536):
        # It is not shown: without its `@`, or with an unescaped `/` in it, a password stands where a port is looked for.
        raise ConfigurationError(f"url: the port must be a number from 1 to 65535; {_ESCAPES}")
    return host, int(port_text)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
