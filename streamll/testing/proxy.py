"""FaultProxy: a TCP proxy that hurts connections at an exact byte, for tests of what a broken network does.

It stands between a client and a real server on loopback, and passes bytes on until told otherwise. It knows no
protocol.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

TO_SERVER = "to_server"
TO_CLIENT = "to_client"

_CHUNK = 65_536


class FaultProxy:
    """A TCP proxy on a free loopback port, served by one thread of its own.

    Example:
        with FaultProxy("127.0.0.1", 6379) as proxy:
            proxy.cut_after(100, "to_server")  # the server sees 100 bytes more, then nothing
            ...  # a client of proxy.host, proxy.port

    Args:
        target_host, target_port: The server.

    Attributes:
        host, port: Where clients connect to.
        passed: Bytes that were passed on so far, by direction.
        accepted: Connections of clients so far.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host: str
        self.port: int
        self.host, self.port = self._listener.getsockname()[:2]
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self.accepted = 0
        self._lock = threading.Condition()
        self._asked = self._obeyed = 0  # how often the thread was told to do otherwise, and how often it did so
        self._cut_at: dict[str, int] = {}
        self._pause = 0.0
        self._stalled = False
        self._refusing = False
        self._partners: dict[socket.socket, tuple[socket.socket, str]] = {}
        # A byte in this pair wakes the thread up: something was changed from outside.
        self._bell, self._ear = socket.socketpair()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="streamll-fault-proxy", daemon=True)
        self._thread.start()

    def cut_after(self, count: int, direction: str = TO_SERVER) -> None:
        """Pass so many more bytes on in that direction, then close that connection on both sides.

        It happens once; connections after it are not hurt.

        Args:
            count: Bytes, counted over all connections from now on; 0 cuts at the next byte.
            direction: "to_server" or "to_client".
        """
        with self._lock:
            self._cut_at[direction] = self.passed[direction] + count

    def stall(self) -> None:
        """Pass nothing on, and accept nobody; connections stay open."""
        self._set(stalled=True)

    def trickle(self, pause: float) -> None:
        """Pass on to clients one byte at a time, with so many seconds after each."""
        with self._lock:
            self._pause = pause

    def refuse(self) -> None:
        """Close all connections, and each new one at once."""
        self._set(refusing=True)

    def heal(self) -> None:
        """Pass everything on again: the end of all of these, and of a `cut_after` that has not happened."""
        with self._lock:
            self._cut_at.clear()
            self._pause = 0.0
        self._set(stalled=False, refusing=False)

    def close(self) -> None:
        """Close everything and end the thread. Safe to call twice."""
        if not self._closing:
            self._closing = True
            self._ring()
            self._thread.join(10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set(self, stalled: bool | None = None, refusing: bool | None = None) -> None:
        with self._lock:
            self._stalled = self._stalled if stalled is None else stalled
            self._refusing = self._refusing if refusing is None else refusing
            self._asked += 1
            mine = self._asked
            self._ring()
            # What is passed on after this returns would surprise whoever asked.
            self._lock.wait_for(lambda: self._obeyed >= mine or self._closing, timeout=10.0)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, _ in self._selector.select():
                    sock = key.fileobj
                    if sock is self._ear:
                        self._ear.recv(_CHUNK)
                        self._obey()
                    elif self._stalled:
                        continue  # it was ready when that was asked for
                    elif sock is self._listener:
                        self._accept()
                    elif isinstance(sock, socket.socket) and sock in self._partners:
                        self._pass_on(sock)
        finally:
            for sock in list(self._partners):
                self._hang_up(sock)
            for sock in (self._listener, self._ear, self._bell):
                sock.close()
            self._selector.close()

    def _obey(self) -> None:
        """Bring what is watched in line with what was asked for."""
        with self._lock:
            stalled, refusing, asked = self._stalled, self._refusing, self._asked
        if refusing:
            for sock in list(self._partners):
                self._hang_up(sock)
        for sock in (self._listener, *self._partners):
            watched = sock in self._selector.get_map()
            if stalled and watched:
                self._selector.unregister(sock)
            elif not stalled and not watched:
                self._selector.register(sock, selectors.EVENT_READ)
        with self._lock:
            self._obeyed = asked
            self._lock.notify_all()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        if self._refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.settimeout(10.0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ)
        self._partners[client] = server, TO_SERVER
        self._partners[server] = client, TO_CLIENT

    def _pass_on(self, sock: socket.socket) -> None:
        partner, direction = self._partners[sock]
        pause = self._pause if direction == TO_CLIENT else 0.0
        try:
            data = sock.recv(1 if pause else _CHUNK)
            with self._lock:
                cut_at = self._cut_at.get(direction)
                room = len(data) if cut_at is None else max(0, cut_at - self.passed[direction])
                cut = bool(data) and cut_at is not None and room <= len(data)
                if cut:
                    del self._cut_at[direction]
                    data = data[:room]
                self.passed[direction] += len(data)
            partner.sendall(data)
            time.sleep(pause)
        except OSError:
            data, cut = b"", True
        if cut or not data:
            self._hang_up(sock)

    def _hang_up(self, sock: socket.socket) -> None:
        """Close a connection on both sides; what was passed on still arrives."""
        if sock not in self._partners:
            return
        partner, _ = self._partners.pop(sock)
        self._partners.pop(partner, None)
        for end in (sock, partner):
            if end in self._selector.get_map():
                self._selector.unregister(end)
            end.close()
