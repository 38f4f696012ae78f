"""One connection to a Redis server: opened, written to and read from.

What belongs here: redis-py, and the few places where more is needed of it than it offers. What does not: its socket
(redis_tap.py), which server it leads to (redis_dialer.py), or what the commands mean (sinks/, consumers/). redis-py is
imported when the first connection is opened.

redis-py's own retries are always off: a command that it sends again by itself may have been carried out already.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.brokers.redis_tap import READ_SIZE, Tap, tapped_class
from streamll.delivery.outcome import Failure
from streamll.errors import UnavailableError
from streamll.runtime.fork import tell_after_fork
from streamll.wire.redis import Argument

Reply = Any
"""A reply of RESP2: bytes, int, None, a list of replies, or an exception of redis-py for an error."""

_NOT_YET = object()

USUAL = object()
"""Stands for an answer that was as it always is when nothing is wrong."""

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


class RedisConnection:
    """A connection on which requests are answered in order. Once `broken`, nothing is ever sent on it again."""

    def __init__(self, connection: Any, tap: Tap) -> None:
        self._connection = connection
        self._tap = tap
        self._pack = _packer(connection)
        self._parser = _parser()
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
        packed = [self._pack(command) for command in commands]
        return self.exchange_packed(packed, len(packed), deadline)

    def pack(self, command: tuple[Argument, ...]) -> bytes:
        """Return a command as the bytes that a server reads."""
        return self._pack(command)

    def exchange_packed(
        self, requests: Sequence[bytes], count: int, deadline: float, usual: bytes = b"", usual_count: int = 0
    ) -> tuple[list[Reply], Trouble | None]:
        """Send what is packed already in one write, and read the answers.

        Args:
            requests: The bytes.
            count: How many commands they are.
            deadline: When to give up, in monotonic seconds.
            usual: How the answers begin when nothing is wrong. They are compared with it as a whole, and looked at one by
                one only where they differ.
            usual_count: How many answers that is; `USUAL` is returned for each of them.

        Returns:
            As `exchange`.
        """
        if self.broken:  # redis-py would connect again by itself, and what the old connection watched is not watched
            return [], Trouble("", Failure.UNAVAILABLE, "the connection is broken")
        replies: list[Reply] = []
        # Until all answers are read; so too when anything at all comes between, such as Ctrl-C.
        self.broken = True
        self._tap.arm(deadline)
        cut = None
        try:
            try:
                self._write(requests)
            except OSError as error:
                if isinstance(error, (TimeoutError, BlockingIOError)):
                    raise
                cut = error  # a server that cannot read a request says why before it hangs up
            sock = self._tap.socket
            if sock is None or self._parser is None:
                self._read_one_by_one(replies, count)
            else:
                self._read(sock, self._parser, replies, count, usual, usual_count)
        except Exception as error:  # whatever redis-py and the socket may raise
            return replies, self._explain(cut or error)
        self.broken = cut is not None
        return replies, self._explain(cut) if cut else None

    def _write(self, requests: Sequence[bytes]) -> None:
        if self._tap.socket is not None:
            self._tap.write(self._tap.socket, requests)
        else:
            self._connection.send_packed_command([b"".join(requests)], check_health=False)

    def _read(
        self, sock: socket.socket, parser: Any, replies: list[Reply], count: int, usual: bytes, usual_count: int
    ) -> None:
        """Read so many answers, in as few calls as can be: beside a busy thread each waits for the interpreter's lock.

        So the first call waits for as many bytes as the usual answers have, of which no other answer of Redis is shorter.
        redis-py takes about a microsecond of Python for each answer, of which a transaction has two for each event.
        """
        came = b""
        while len(came) < len(usual) and usual.startswith(came):
            data = self._tap.read(sock, least=len(usual) - len(came))
            came += data
            if not data:
                break
        if usual and came.startswith(usual):
            replies += [USUAL] * usual_count
            came = came[len(usual) :]
        parser.feed(came)
        while True:
            while len(replies) < count:
                reply = parser.gets()
                if reply is _NOT_YET:
                    break
                replies.append(reply)
            if len(replies) == count:
                return
            data = self._tap.read(sock)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            parser.feed(data)

    def _read_one_by_one(self, replies: list[Reply], count: int) -> None:
        """The same through redis-py: without hiredis, and where it has a socket that is out of our reach."""
        from redis.exceptions import ResponseError

        while len(replies) < count:
            self._tap.arm_again()
            try:
                replies.append(self._connection.read_response())
            except ResponseError as error:
                replies.append(error.with_traceback(None))  # its traceback would keep the batch alive

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
        return trouble_of_attempt(error)


def import_client() -> None:
    """Import all that a connection needs, also what redis-py and Python's sockets import late."""
    import encodings.idna  # noqa: F401  # for a host's name

    from redis import ConnectionPool

    ConnectionPool().make_connection()  # which connects to nothing, but reads redis-py's version


def connect(base: type[Any], settings: dict[str, Any], deadline: float, tap: Tap) -> RedisConnection:
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
        connection = tapped_class(base)(  # type: ignore[arg-type]  # a class is hashable
            **kept,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            socket_read_size=READ_SIZE,
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
    return trouble_of_attempt(error, [str(settings[name]) for name in ("username", "password") if settings.get(name)])


def trouble_of_attempt(error: BaseException, secrets: Iterable[str] = ()) -> Trouble:
    """As `trouble_of`, but says of a timeout of the kernel what it is."""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, (BlockingIOError, TimeoutError)) or type(cause).__name__ == "TimeoutError":
            return Trouble("", Failure.UNAVAILABLE, "the server did not answer in time")
    return trouble_of(error, secrets=secrets)


def _parser() -> Any:
    """What takes answers apart; None without hiredis."""
    try:
        from hiredis import Reader
    except ImportError:
        return None
    from redis.exceptions import InvalidResponse, ResponseError

    def error(text: str) -> Exception:
        return ResponseError(text.removeprefix("ERR "))

    return Reader(protocolError=InvalidResponse, replyError=error, notEnoughData=_NOT_YET)


def _packer(connection: Any) -> Callable[[tuple[Argument, ...]], bytes]:
    try:
        from hiredis import pack_command
    except ImportError:
        return lambda command: b"".join(connection.pack_command(*command))
    return cast("Callable[[tuple[Argument, ...]], bytes]", pack_command)
