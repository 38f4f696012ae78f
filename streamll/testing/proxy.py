"""FaultProxy: a TCP proxy that hurts connections on demand, at an exact byte where that matters.

It stands between a client and a real server on loopback, and passes bytes on until told otherwise. It knows no
protocol. What each fault looks like to a client, with an example: docs/testing.md.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from streamll.runtime.fork import tell_after_fork

if TYPE_CHECKING:
    from typing_extensions import Self

TO_SERVER = "to_server"
TO_CLIENT = "to_client"
DIRECTIONS = (TO_SERVER, TO_CLIENT)

_CHUNK = 65_536
_HELD = 64 * 1024 * 1024
"""Bytes of one direction of a connection that are held at most, because they are delayed."""
_PATIENCE = 10.0
"""Seconds until a proxy that does not do what it was told counts as broken."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class _Pipe:
    """One direction of one connection: what was read from one end, and is yet to be written to the other."""

    __slots__ = ("blocked", "chunks", "direction", "ended", "held", "holed", "source", "target")

    def __init__(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        self.source = source
        self.target = target
        self.direction = direction
        self.chunks: deque[tuple[float, bytes]] = deque()  # each with the moment from which on it may be written
        self.held = 0
        self.ended = False  # the source has closed
        self.blocked = False  # the target takes nothing more for now
        self.holed = False  # bytes of it were swallowed


class FaultProxy:
    """A TCP proxy on a free loopback port, served by one thread of its own.

    Each fault is in force when the method that asks for it has returned. Faults add up; `heal` ends all of them. Where a
    direction may be given, None means both.

    Example:
        with FaultProxy("127.0.0.1", 6379) as proxy:
            proxy.cut_after(100, "to_server")  # the server sees 100 bytes more, then nothing
            ...  # a client of proxy.host, proxy.port

    Args:
        target_host, target_port: The server.

    Attributes:
        host, port: Where clients connect to.
        passed: Bytes that were passed on so far, by direction ("to_server", "to_client").
        swallowed: Bytes that `drop` took so far, by direction.
        accepted: Connections of clients so far.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.host: str
        self.port: int
        self.host, self.port = self._listener.getsockname()[:2]
        self.passed = dict.fromkeys(DIRECTIONS, 0)
        self.swallowed = dict.fromkeys(DIRECTIONS, 0)
        self.accepted = 0
        self._pipes: dict[socket.socket, _Pipe] = {}  # by their source; the thread's alone
        self._cut_at: dict[str, tuple[int, bool]] = {}
        self._stalled: set[str] = set()
        self._dropping: set[str] = set()
        self._delay = dict.fromkeys(DIRECTIONS, 0.0)
        self._pace: dict[str, tuple[int, float]] = {}  # so many bytes, and the seconds until the next ones
        self._paced_until = dict.fromkeys(DIRECTIONS, 0.0)
        self._refusing = False
        self._closing = False
        self._asked: deque[tuple[Callable[[], None], threading.Event]] = deque()
        # A byte in this pair wakes the thread up: something was asked from outside.
        self._bell, self._ear = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="streamll-fault-proxy", daemon=True)
        self._thread.start()
        tell_after_fork(self)

    # What is asked of it

    def cut_after(self, count: int, direction: str = TO_SERVER, *, reset: bool = False) -> None:
        """Pass so many more bytes on in that direction, then end that connection on both sides.

        It happens once; connections after it are not hurt.

        Args:
            count: Bytes, counted over all connections from now on; 0 cuts at the next byte.
            direction: "to_server" or "to_client".
            reset: Whether it ends by a reset (RST) instead of a close (FIN).
        """

        (only,) = _those(direction)

        def cut() -> None:
            self._cut_at[only] = self.passed[only] + count, reset

        self._do(cut)

    def reset(self) -> None:
        """End all connections by a reset (RST), as a host does that has crashed and come back; new ones are served."""
        self._do(lambda: self._hang_up_all(reset=True))

    def stall(self, direction: str | None = None) -> None:
        """Pass nothing on; connections stay open, and bytes wait. With both directions stalled, accept nobody."""
        those = _those(direction)
        self._do(lambda: self._stalled.update(those))

    def delay(self, seconds: float, direction: str | None = None) -> None:
        """Pass each byte on so many seconds after it came: latency, which does not make a transfer slower.

        Connecting itself is not delayed: the kernel answers for the proxy.
        """
        delay = dict.fromkeys(_those(direction), seconds)
        self._do(lambda: self._delay.update(delay))

    def throttle(self, bytes_per_second: float, direction: str | None = None) -> None:
        """Pass so many bytes a second on, all connections together, as a narrow line does.

        Raises:
            ValueError: That is none at all; `stall` does that.
        """
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be above 0; stall() passes nothing on")
        piece = max(1, int(bytes_per_second / 100))
        pace = dict.fromkeys(_those(direction), (piece, piece / bytes_per_second))
        self._do(lambda: self._pace.update(pace))

    def trickle(self, pause: float, direction: str | None = TO_CLIENT) -> None:
        """Pass one byte at a time on, with so many seconds after each."""
        pace = dict.fromkeys(_those(direction), (1, pause))
        self._do(lambda: self._pace.update(pace))

    def drop(self, direction: str) -> None:
        """Swallow what comes in that direction, the end of a connection included: the other side is not told.

        A connection that lost bytes this way cannot go on, and is closed by `heal`.
        """
        those = _those(direction)
        self._do(lambda: self._dropping.update(those))

    def refuse(self) -> None:
        """Close all connections, and each new one at once."""

        def refuse() -> None:
            self._refusing = True
            self._hang_up_all(reset=False)

        self._do(refuse)

    def heal(self) -> None:
        """Pass everything on again: the end of all faults, and of a `cut_after` that has not happened.

        What was held back arrives, late and in order.
        """
        self._do(self._heal)

    def close(self) -> None:
        """Close everything and end the thread. Safe to call twice."""
        if not self._closing:
            self._closing = True
            self._ring()
            self._thread.join(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Be closed in a forked child, which must not keep the connections open that the parent closes."""
        self._closing = True
        self._let_go()

    def _do(self, change: Callable[[], None]) -> None:
        """Have the thread do something, and wait until it has: what it did after that would surprise whoever asked.

        Raises:
            RuntimeError: The proxy is closed.
        """
        done = threading.Event()
        self._asked.append((change, done))
        self._ring()
        deadline = monotonic() + _PATIENCE
        while not done.wait(0.05):
            if self._closing or monotonic() > deadline:
                raise RuntimeError("this FaultProxy is closed" if self._closing else "this FaultProxy does not answer")

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    # The thread

    def _run(self) -> None:
        try:
            while not self._closing:
                now = monotonic()
                wake_at = min([self._push(pipe, now) for pipe in list(self._pipes.values())], default=None)
                self._watch()
                for key, _ in self._selector.select(None if wake_at is None else max(0.0, wake_at - monotonic())):
                    sock = key.fileobj
                    if sock is self._ear:
                        self._obey()
                    elif sock is self._listener:
                        self._accept()
                    elif isinstance(sock, socket.socket):
                        self._serve(sock)
        finally:
            self._hang_up_all(reset=False)
            self._let_go()

    def _obey(self) -> None:
        self._ear.recv(_CHUNK)
        while self._asked:
            change, done = self._asked.popleft()
            change()
            done.set()

    def _heal(self) -> None:
        self._cut_at.clear()
        self._stalled.clear()
        self._dropping.clear()
        self._pace.clear()
        self._delay = dict.fromkeys(DIRECTIONS, 0.0)
        self._paced_until = dict.fromkeys(DIRECTIONS, 0.0)
        self._refusing = False
        for pipe in list(self._pipes.values()):
            pipe.chunks = deque((0.0, data) for _, data in pipe.chunks)
            if pipe.holed:
                self._hang_up(pipe)

    def _watch(self) -> None:
        """Bring what the selector looks at in line with what may be done now."""
        still = len(self._stalled) == len(DIRECTIONS)
        wanted: dict[socket.socket, int] = {self._listener: 0 if still else selectors.EVENT_READ}
        for sock, pipe in self._pipes.items():
            # Only what is delayed is read ahead; a line that is slow or stuck makes its sender wait, as a real one does.
            room = _HELD if self._delay[pipe.direction] else _CHUNK
            reads = not pipe.ended and pipe.direction not in self._stalled and pipe.held < room
            wanted[sock] = wanted.get(sock, 0) | (selectors.EVENT_READ if reads else 0)
            wanted[pipe.target] = wanted.get(pipe.target, 0) | (selectors.EVENT_WRITE if pipe.blocked else 0)
        watched = self._selector.get_map()
        for sock, events in wanted.items():
            if sock not in watched:
                if events:
                    self._selector.register(sock, events)
            elif not events:
                self._selector.unregister(sock)
            elif watched[sock].events != events:
                self._selector.modify(sock, events)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it is gone already
            return
        self.accepted += 1
        if self._refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=_PATIENCE)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pipes[client] = _Pipe(client, server, TO_SERVER)
        self._pipes[server] = _Pipe(server, client, TO_CLIENT)

    def _serve(self, sock: socket.socket) -> None:
        """A socket can be read from, or written to."""
        pipe = self._pipes.get(sock)
        if pipe is None:
            return  # it was hung up a moment ago
        self._pipes[pipe.target].blocked = False  # if it is not so, the next attempt to write will say it
        if pipe.ended or pipe.direction in self._stalled:
            return
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            due = monotonic() + self._delay[pipe.direction]
            if pipe.chunks:
                due = max(due, pipe.chunks[-1][0])
            pipe.chunks.append((due, data))
            pipe.held += len(data)
        else:
            pipe.ended = True

    def _push(self, pipe: _Pipe, now: float) -> float:
        """Write what may be written by now; returns when to come back, if nothing happens before."""
        direction = pipe.direction
        while pipe.chunks and not pipe.blocked and direction not in self._stalled and pipe.source in self._pipes:
            due, data = pipe.chunks[0]
            due = max(due, self._paced_until[direction])
            if due > now:
                return due
            self._write(pipe, data, now)
        if pipe.ended and not pipe.chunks and direction not in self._dropping | self._stalled:
            self._hang_up(pipe)
        return now + 3600.0

    def _write(self, pipe: _Pipe, data: bytes, now: float) -> None:
        direction = pipe.direction
        if direction in self._dropping:
            self._shorten(pipe, len(data))
            self.swallowed[direction] += len(data)
            pipe.holed = True
            return
        piece, pause = self._pace.get(direction, (len(data), 0.0))
        cut_at, reset = self._cut_at.get(direction, (None, False))
        if cut_at is not None:
            piece = min(piece, max(0, cut_at - self.passed[direction]))
        piece = min(piece, len(data))
        self.passed[direction] += piece  # before: whoever has the bytes may look at once
        written = 0
        try:
            written = pipe.target.send(data[:piece]) if piece else 0
        except BlockingIOError:
            pipe.blocked = True
            return
        except OSError:
            self._lost(pipe)
            return
        finally:
            self.passed[direction] -= piece - written
        self._shorten(pipe, written)
        if pause:
            self._paced_until[direction] = now + pause
        if cut_at is not None and self.passed[direction] >= cut_at:
            del self._cut_at[direction]
            self._hang_up(pipe, reset)

    def _lost(self, pipe: _Pipe) -> None:
        """The target is there no longer. Its end travels the other way, where it may be swallowed or held up."""
        back = self._pipes[pipe.target]
        if back.direction in self._dropping | self._stalled:
            self._shorten(pipe, len(pipe.chunks[0][1]))
        else:
            self._hang_up(pipe)

    @staticmethod
    def _shorten(pipe: _Pipe, count: int) -> None:
        """Take so many bytes from the front of the first chunk."""
        due, data = pipe.chunks.popleft()
        pipe.held -= count
        if count < len(data):
            pipe.chunks.appendleft((due, data[count:]))

    def _hang_up_all(self, reset: bool) -> None:
        for pipe in list(self._pipes.values()):
            self._hang_up(pipe, reset)

    def _hang_up(self, pipe: _Pipe, reset: bool = False) -> None:
        """End a connection on both sides; what was passed on still arrives, unless it ends by a reset."""
        for sock in (pipe.source, pipe.target):
            if self._pipes.pop(sock, None) is None:
                continue
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                else:
                    sock.shutdown(socket.SHUT_RDWR)  # which a copy in another process cannot put off
            sock.close()

    def _let_go(self) -> None:
        """Close the descriptors of this process."""
        for sock in (*self._pipes, self._listener, self._ear, self._bell):
            sock.close()
        self._selector.close()


def _those(direction: str | None) -> tuple[str, ...]:
    """Raises ValueError when there is no such direction."""
    if direction is None:
        return DIRECTIONS
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction!r} is no direction: {TO_SERVER} or {TO_CLIENT}")
    return (direction,)
