"""The socket under a connection of redis-py: its deadlines, and its end at the hands of another thread.

What belongs here: how a socket is connected, written to, read and cut, and the classes of redis-py that leave theirs to
us. What does not: requests and answers (redis_connection.py), or which server to go to (redis_dialer.py).
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
from collections.abc import Sequence
from functools import cache
from typing import Any

from streamll.runtime.fork import Descriptors, tell_after_fork

_CONNECTING = (errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS))
_HAS_KERNEL_TIMEOUTS = sys.platform in ("linux", "darwin")

READ_SIZE = 262_144
"""Bytes that one call reads at most: the answers to the longest batch."""

_MOST_PARTS = 1024
"""What Linux and macOS take in one call (IOV_MAX)."""

_ARMED_FOR = 0.05
"""Seconds by which a batch whose answers trickle in may miss its deadline."""


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
        self._armed_at = 0.0
        self._least = 1
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
        self._least = 1
        self.arm(self.deadline)

    def arm(self, deadline: float) -> None:
        """Let everything that happens on the socket from now on end at this instant."""
        self.deadline = deadline
        self._armed_at = time.monotonic()
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

    def write(self, sock: socket.socket, parts: Sequence[bytes]) -> None:
        """Write all of it, in one call as a rule.

        Raises:
            OSError: When the connection breaks, or not all is written at the deadline.
        """
        several = self._kernel and 1 < len(parts) <= _MOST_PARTS
        done = sock.sendmsg(parts) if several else 0  # which spares putting them together
        if several and done == sum(map(len, parts)):
            return
        rest = memoryview(b"".join(parts))[done:]
        while True:
            if done:  # but not all, since the kernel's timeout is over
                self.arm(self.deadline)
                if time.monotonic() >= self.deadline:
                    raise TimeoutError("not all of the batch was taken in time")
            done = sock.send(rest)
            rest = rest[done:]
            if not rest:
                return

    def arm_again(self) -> None:
        """Keep the deadline of several reads: each may take what was left when this was done last.

        Raises:
            TimeoutError: It has passed.
        """
        now = time.monotonic()
        if now - self._armed_at > _ARMED_FOR:
            if now >= self.deadline:
                raise TimeoutError("not all answers came in time")
            self.arm(self.deadline)

    def read(self, sock: socket.socket, least: int = 1) -> bytes:
        """Read what has come; nothing when the other side has closed.

        Args:
            sock: The socket.
            least: Wait for so many bytes, where the kernel can do that in one call; elsewhere fewer may come.

        Raises:
            OSError: When the connection breaks, or nothing comes before the deadline.
        """
        self.arm_again()
        if self._kernel and least != self._least:
            with contextlib.suppress(OSError):  # then fewer come
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._least = least
        return sock.recv(READ_SIZE)

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


@cache
def tapped_class(base: type[Any]) -> type[Any]:
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
