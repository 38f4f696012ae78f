"""A round trip of a wished length: a TCP proxy in a process of its own, and a measure of what it really is.

What belongs here: both ends of that process. What does not: faults; streamll.testing.FaultProxy has those, and waits by
epoll, which knows whole milliseconds only.

`select` waits to the microsecond, once the kernel is told not to gather timers. What is passed on comes later by the
delay, whatever its size: latency, which does not make a transfer slower. The proxy itself takes some 0.1 ms for a round
trip, so the delay is set by trying: until a PING through it takes as much longer than one without it as was wished.
"""

from __future__ import annotations

import ctypes
import select
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"

_CHUNK = 1 << 20
_PR_SET_TIMERSLACK = 29
_PING = b"*1\r\n$4\r\nPING\r\n"
_TRIALS = 4
_FEW = 15


def round_trips(port: int, n: int) -> list[float]:
    """Return the seconds of so many PINGs to a Redis behind that port, with nothing of a client library in them."""
    times = []
    with socket.create_connection((HOST, port), 5.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(n + 5):  # the first ones find everything cold
            start = perf_counter()
            connection.sendall(_PING)
            connection.recv(64)
            times.append(perf_counter() - start)
    return times[5:]


class DelayingProxy:
    """The proxy, seen from the test; a context manager.

    Args:
        redis_port: A Redis on loopback, by which the round trip is measured.
        more_ports: Other servers on loopback to stand before, with the same delay.

    Attributes:
        host: Loopback.
        ports: Where the proxy listens: for the Redis first, then for the others.
        loopback: Seconds of a PING without it.
    """

    host = HOST

    def __init__(self, redis_port: int, *more_ports: int) -> None:
        from tests.performance.child import ROOT, environment

        targets = [str(port) for port in (redis_port, *more_ports)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.performance.delay", *targets],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._delays: dict[float, float] = {}
        self._redis_port = redis_port
        self.ports = [int(port) for port in self._read().split()]
        self.loopback = median(round_trips(redis_port, 200))

    def set_delay(self, seconds: float) -> None:
        """Delay by so much in each direction what is passed on from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds!r}\n")
        self._process.stdin.flush()
        self._read()

    def calibrate(self, rtt: float) -> float:
        """Find the delay for a round trip that is so many seconds longer than loopback's; returns how much it really is.

        Where that is less than the proxy takes by itself, it is the proxy's.
        """
        delay = measured = 0.0
        for _ in range(_TRIALS):
            self.set_delay(delay)
            measured = self.measure()
            if abs(measured - rtt) < 0.02 * rtt or (delay == 0 and measured > rtt):
                break
            self._delays[rtt] = delay
            delay = max(0.0, delay + (rtt - measured) / 2)
        self._delays[rtt] = delay
        return measured

    def measure(self, n: int = 60) -> float:
        """Return by how many seconds a round trip is longer than loopback's, as the delay is now; the median of n."""
        return max(0.0, median(round_trips(self.ports[0], n)) - self.loopback)

    def use(self, rtt: float) -> None:
        """Set the delay that was found for a round trip."""
        self.set_delay(self._delays[rtt])

    def renew(self, rtt: float) -> float:
        """Correct the delay for a round trip, as the machine is now; returns how much longer than loopback's it is."""
        self.use(rtt)
        self._delays[rtt] = max(0.0, self._delays[rtt] + (rtt - self.measure(_FEW)) / 2)
        self.use(rtt)
        return self.measure(_FEW)

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the delaying proxy ended with {self._process.wait(10)}")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # which is how it learns that this was all
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


# The process itself


@dataclass
class _Line:
    """One direction of a connection: what was read from one end, and the moments from which on the other may have it."""

    source: socket.socket
    target: socket.socket
    chunks: deque[tuple[float, memoryview]] = field(default_factory=deque)
    ended: bool = False
    blocked: bool = False

    def read(self, delay: float) -> None:
        try:
            data = self.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.ended = not data
        if data:
            self.chunks.append((perf_counter() + delay, memoryview(data)))

    def write(self, now: float) -> None:
        """Pass on what is due; when all is, and the source has closed, close too."""
        self.blocked = False
        try:
            while self.chunks and self.chunks[0][0] <= now:
                due, data = self.chunks[0]
                sent = self.target.send(data)
                if sent < len(data):
                    self.chunks[0] = (due, data[sent:])
                    self.blocked = True
                    return
                self.chunks.popleft()
            if self.ended and not self.chunks:
                self.target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            self.blocked = True
        except OSError:
            self.ended = True
            self.chunks.clear()

    @property
    def over(self) -> bool:
        return self.ended and not self.chunks


class _Proxy:
    def __init__(self, targets: list[int]) -> None:
        self._listeners = {socket.create_server((HOST, 0)): target for target in targets}
        self._lines: list[_Line] = []
        self._delay = 0.0
        print(*(listener.getsockname()[1] for listener in self._listeners), flush=True)

    def run(self) -> None:
        """Serve until standard input ends."""
        while True:
            now = perf_counter()
            waiting = [line for line in self._lines if line.chunks and not line.blocked]
            pause = max(0.0, min(line.chunks[0][0] for line in waiting) - now) if waiting else None
            readers = {line.source: line for line in self._lines if not line.ended}
            writers = [line.target for line in self._lines if line.blocked]
            ready, writable, _ = select.select([sys.stdin, *self._listeners, *readers], writers, [], pause)
            if sys.stdin in ready:
                asked = sys.stdin.readline()
                if not asked:
                    return
                self._delay = float(asked)
                print("set", flush=True)
            for source in readers.keys() & set(ready):
                readers[source].read(self._delay)
            for listener in self._listeners.keys() & set(ready):
                self._accept(listener)
            now = perf_counter()
            for line in self._lines:
                if line.over or (line.chunks and (not line.blocked or line.target in writable)):
                    line.write(now)
            self._forget()

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        server = socket.create_connection((HOST, self._listeners[listener]))
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines += [_Line(client, server), _Line(server, client)]

    def _forget(self) -> None:
        """Close connections of which both directions have ended."""
        over = {line.source for line in self._lines if line.over}
        for line in [line for line in self._lines if line.source in over and line.target in over]:
            line.source.close()
            self._lines.remove(line)


def main() -> None:
    """Be the proxy before the given ports of loopback, with the delays that standard input asks for, in seconds."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)
    with suppress(KeyboardInterrupt):
        _Proxy([int(port) for port in sys.argv[1:]]).run()


if __name__ == "__main__":
    main()
