"""What `streamll check redis://...` finds out about a server, in words that say what to do.

It asks, and tries what can be tried without leaving anything behind: a command whose arguments are wrong is refused for
them only if the user may use it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streamll.brokers.redis_connection import RedisConnection, Reply
from streamll.brokers.redis_dialer import Dialer
from streamll.brokers.redis_errors import NOT_PERMITTED, Trouble, trouble_of
from streamll.brokers.redis_tap import Tap
from streamll.brokers.redis_url import RedisAddress
from streamll.errors import FatalError, UnavailableError
from streamll.sinks.base import Finding
from streamll.sinks.redis_options import RedisOptions
from streamll.wire.redis import Argument, Keys, keys_for
from streamll.wire.redis_append import Items, Trim, probing_commands, script_command

OLDEST = (5, 0)
"""The first version with streams, and with scripts that may append to them."""

_OK, _WARNING, _ERROR = "ok", "warning", "error"
_PROBE = "check"


def check(address: RedisAddress, options: RedisOptions, timeout: float) -> list[Finding]:
    """Look at a server.

    Args:
        address: Where it is.
        options: What the sink would be told.
        timeout: Seconds for connecting, and again for all questions.
    """
    keys = keys_for(options.stream, _PROBE, options.dead_letter_stream, address.kind == "cluster")
    began = time.monotonic()
    try:
        connection = Dialer(address, None, keys.stream).connect(began + timeout, Tap())
    except UnavailableError as error:
        return [Finding(_ERROR, f"{address.shown} cannot be used now: {error}", "see that it runs and can be reached")]
    except FatalError as error:
        return [Finding(_ERROR, f"{address.shown} refuses: {error}", "mend the URL, or what it names on the server")]
    try:
        look = _Look(connection, keys, options, address.kind == "cluster", time.monotonic() + timeout)
        return list(look.findings(address.shown))
    except _SilentError as silent:
        return [
            Finding(
                _ERROR, f"{address.shown} does not serve us: {silent}", "mend that and try again; see the server's log"
            )
        ]
    finally:
        connection.close()


class _SilentError(Exception):
    """The server does not answer our questions, or hung up."""


class _Look:
    """One connection, and what has been seen through it."""

    def __init__(
        self, connection: RedisConnection, keys: Keys, options: RedisOptions, cluster: bool, deadline: float
    ) -> None:
        self._cluster = cluster
        self._connection = connection
        self._keys = keys
        self._options = options
        self._deadline = deadline

    def findings(self, shown: str) -> Iterator[Finding]:
        """Everything there is to say, the basics first."""
        began = time.monotonic()
        (pong,) = self._ask((b"PING",))
        milliseconds = (time.monotonic() - began) * 1000
        trouble = self._trouble(pong)
        if trouble is not None and trouble.code not in NOT_PERMITTED:
            raise _SilentError(trouble.text)
        (info_reply,) = self._ask((b"INFO",))
        info = _parse_info(info_reply)
        yield from self._version(shown, info, milliseconds)
        yield from self._role(info)
        yield from self._stream()
        yield from self._permissions()
        if info:
            yield from self._memory(info)
            yield from self._persistence(info)
            yield from self._replication(info)
        else:
            text = f"version, memory and persistence could not be seen: {trouble_of(info_reply).text}"
            yield Finding(_WARNING, text, "run this once as a user who may use INFO and CONFIG GET")

    def _ask(self, *commands: tuple[Argument, ...]) -> list[Reply]:
        replies, trouble = self._connection.exchange(commands, self._deadline)
        if trouble is not None:
            raise _SilentError(trouble.text)
        return replies

    def _trouble(self, reply: Reply) -> Trouble | None:
        return trouble_of(reply, self._options.stream) if isinstance(reply, Exception) else None

    def _version(self, shown: str, info: Mapping[str, str], milliseconds: float) -> Iterator[Finding]:
        product, version = "Redis", info.get("redis_version", "")
        if "valkey_version" in info:
            product, version = "Valkey", info["valkey_version"]
        if version and product == "Redis" and _numbers(version) < OLDEST:
            yield Finding(
                _ERROR, f"{shown} is Redis {version}, which has no streams", "use Redis 5 or newer, or Valkey"
            )
        else:
            yield Finding(
                _OK, f"{shown} is {product} {version or '(unknown version)'} and answers in {milliseconds:.1f} ms"
            )

    def _role(self, info: Mapping[str, str]) -> Iterator[Finding]:
        if info.get("redis_mode") == "cluster" and not self._cluster:
            text = "this server is a node of a cluster, whose keys may be on, or move to, another"
            yield Finding(_WARNING, text, "use redis+cluster:// to follow them")
        if info.get("role") == "slave":
            remedy = "name the primary, or use redis+sentinel:// or redis+cluster:// to follow it"
            yield Finding(_ERROR, "this server is a replica, which takes no events", remedy)

    def _stream(self) -> Iterator[Finding]:
        stream = self._options.stream
        (kind,) = self._ask((b"TYPE", self._keys.stream))
        if kind == b"none":
            yield Finding(_OK, f"the stream {stream} does not exist yet; the first event creates it")
        elif kind == b"stream":
            length, groups = self._ask((b"XLEN", self._keys.stream), (b"XINFO", b"GROUPS", self._keys.stream))
            entries = f"{length:,} entries" if isinstance(length, int) else "entries that could not be counted"
            yield Finding(_OK, f"the stream {stream} has {entries}{_groups(groups)}")
            limit = self._options.max_stream_length
            if limit and isinstance(length, int) and length > 2 * limit:
                text = f"the first batch trims it to about {limit:,} entries (max_stream_length)"
                yield Finding(_WARNING, text, "set max_stream_length higher, or to 0, if they are to stay")
        elif isinstance(kind, Exception):
            yield Finding(_WARNING, f"the stream {stream} could not be looked at: {trouble_of(kind).text}")
        else:
            text = f"the key {stream} exists and is a {kind.decode()}, not a stream"
            yield Finding(_ERROR, text, "choose another key with stream=")

    def _permissions(self) -> Iterator[Finding]:
        """Whether this user may do what a batch does."""
        keys = self._keys
        # None of these has an effect: the id, the time and the number of entries are such that nothing can be done.
        wrong_id = (b"no-id", b"event", b"x")
        appended, dead, fence = self._ask(
            (b"XADD", keys.stream, *wrong_id),
            (b"XADD", keys.dead_letters, *wrong_id),
            (b"SET", keys.fence, b"0", b"PX", b"0"),
        )
        named = {
            f"append to {self._options.stream}": appended,
            f"append to its dead letters, {keys.dead_letters.decode('utf-8', 'backslashreplace')}": dead,
            f"write the fence, {keys.fence.decode('utf-8', 'backslashreplace')}": fence,
        }
        refused = False
        for action, reply in named.items():
            trouble = self._trouble(reply)
            if trouble is None or "invalid" in trouble.text.lower():
                continue
            refused = True
            yield Finding(
                _ERROR, f"this user cannot {action}: {trouble.text}", _allow(keys) if trouble.code == "NOPERM" else ""
            )
        if not refused:
            yield Finding(_OK, f"this user may append to {self._options.stream} and to its dead letters")
        yield from self._ways()

    def _ways(self) -> Iterator[Finding]:
        keys, wanted = self._keys, self._options.fence
        trying = probing_commands(keys)
        tried = self._ask(*trying, (b"WATCH", keys.fence), (b"UNWATCH",))
        refused = [self._trouble(reply) for reply in tried]
        if refused[len(trying) - 1] is not None and refused[0] is None:
            self._ask((b"DISCARD",))
        transaction = next((found for found in refused[: len(trying) + 1] if found is not None), None)
        probe = script_command(keys, _PROBE.encode(), 0, Trim(0), Items((), ()), whole=True)
        by_hash = script_command(keys, _PROBE.encode(), 0, Trim(0), Items((), ()))
        scripted, hashed = (self._trouble(reply) for reply in self._ask(probe, by_hash))
        script = scripted or hashed
        if wanted != "script" and transaction is None:
            yield Finding(_OK, "transactions are permitted: each batch is stored once, in one step")
        elif wanted == "transaction" and transaction is not None:
            yield Finding(_ERROR, f"batches cannot be fenced: {transaction.text}", _allow(keys))
        elif script is not None:
            yield Finding(_ERROR, f"batches cannot be fenced: {script.text}", _allow(keys))
        else:
            why = "" if wanted == "script" else ", since transactions are not permitted"
            yield Finding(_OK, f"each batch is stored once, by a script{why}")

    def _memory(self, info: Mapping[str, str]) -> Iterator[Finding]:
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory", "0") == "0":
            yield Finding(_OK, "no memory limit is set (maxmemory 0)")
        elif policy == "noeviction":
            yield Finding(_OK, "when memory is full the server refuses events, and they wait in the sink (noeviction)")
        else:
            lost = (
                "the stream and its fence" if policy.startswith("allkeys") else "the fence, which has a time to live,"
            )
            text = f"when memory is full the server throws keys away ({policy}): {lost} can vanish"
            yield Finding(_WARNING, text, "set maxmemory-policy noeviction, or use a server of its own for events")

    def _persistence(self, info: Mapping[str, str]) -> Iterator[Finding]:
        if info.get("aof_enabled") == "1":
            sync = self._setting(b"appendfsync")
            if sync == "always":
                yield Finding(_OK, "every write is on disk before it is acknowledged (appendfsync always)")
            else:
                said = f"appendfsync {sync}" if sync else "appendfsync could not be seen"
                text = (
                    f"writes reach the disk soon after they are acknowledged ({said}); a crash can lose the last ones"
                )
                yield Finding(_OK, text)
            return
        save = self._setting(b"save")
        if save is None:
            yield Finding(
                _WARNING,
                "no append-only file is kept; whether snapshots are could not be seen",
                "see appendonly and save",
            )
        elif save:
            text = "a restart loses what came after the last snapshot (appendonly no)"
            yield Finding(
                _WARNING, text, "set appendonly yes where events must survive it; the loss is counted as lost_after_ack"
            )
        else:
            text = "a restart loses all events in the server (appendonly no, no snapshots)"
            yield Finding(
                _WARNING, text, "set appendonly yes where events must survive it; the loss is counted as lost_after_ack"
            )

    def _replication(self, info: Mapping[str, str]) -> Iterator[Finding]:
        replicas, wanted = int(info.get("connected_slaves", "0")), self._options.wait_replicas
        if wanted > replicas and info.get("role") == "master":
            text = f"wait_replicas={wanted}, but {replicas} replicas are connected: no batch would count as delivered"
            yield Finding(_ERROR, text, "connect replicas, or lower wait_replicas")
        elif wanted:
            yield Finding(_OK, f"a batch counts as delivered when {wanted} of {replicas} replicas have it")
        elif replicas:
            text = f"{replicas} replicas follow a little later: a failover can lose events that were acknowledged"
            yield Finding(
                _WARNING, text, "set wait_replicas=1 where that matters; the loss is counted as lost_after_ack"
            )

    def _setting(self, name: bytes) -> str | None:
        """A setting of the server; None when it may not be seen."""
        (reply,) = self._ask((b"CONFIG", b"GET", name))
        if not isinstance(reply, list) or len(reply) < 2:
            return None
        value: bytes = reply[1]
        return value.decode("utf-8", "replace")


def _allow(keys: Keys) -> str:
    """The ACL rules that a sink needs."""
    patterns: Iterable[bytes] = (keys.stream, keys.fence.removesuffix(_PROBE.encode()) + b"*", keys.dead_letters)
    rules = " ".join(f"~{pattern.decode('utf-8', 'backslashreplace')}" for pattern in patterns)
    return f"ACL SETUSER <user> {rules} +xadd +get +set +pexpire +watch +multi +exec +type (or +eval +evalsha)"


def _groups(reply: Reply) -> str:
    """What XINFO GROUPS says, in a few words."""
    if not isinstance(reply, list):
        return ""
    if not reply:
        return " and no consumer group"
    told = []
    for group in reply:
        found: dict[Any, Any] = dict(zip(group[0::2], group[1::2], strict=False))
        told.append(f"{found.get(b'name', b'?').decode('utf-8', 'replace')} ({found.get(b'pending', 0)} pending)")
    return f", consumer groups: {', '.join(told)}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _parse_info(reply: Reply) -> dict[str, str]:
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
