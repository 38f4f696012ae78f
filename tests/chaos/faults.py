"""Faults: what can be done to a server of ours and to the wire to it, and how all of it is made well again.

What belongs here: the ways to hurt that need no knowledge of the broker. What does not: those that do (on_redis.py,
on_rabbitmq.py), or when something is hurt (scenarios, and the soak's schedule).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from streamll.testing.proxy import DIRECTIONS, TO_CLIENT, TO_SERVER, FaultProxy

Rule = Callable[[], str]
"""Does something, and returns what it did."""


def through(proxy: FaultProxy, url: str) -> str:
    """The URL of a server, by way of a proxy in front of it."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{proxy.host}:{proxy.port}"))


class Faults:
    """What can be done to one server and its wire.

    Args:
        server: A running server of ours (RedisServer or RabbitMQServer).
        proxy: Stands in front of it.
        rng: Decides the details.
        meanwhile: What goes on while the server is away; returns what that was.
        patience: Seconds of latency that who uses it notices.

    Attributes:
        well: Whether nothing is wrong with server and wire just now.
    """

    def __init__(
        self, server: Any, proxy: FaultProxy, rng: Random, meanwhile: Callable[[], str], patience: float
    ) -> None:
        self.server = server
        self.proxy = proxy
        self.rng = rng
        self.well = True
        self._meanwhile = meanwhile
        self._patience = patience

    def menu(self) -> list[tuple[float, Rule]]:
        """All of them, each with its weight."""
        return [
            (4.0, self.cut),
            (1.0, self.reset),
            (1.0, self.delay),
            (1.0, self.throttle),
            (1.0, self.swallow),
            (1.0, self.stall),
            (0.5, self.refuse),
            *self.on_server(),
        ]

    def on_server(self) -> list[tuple[float, Rule]]:
        """Those that hurt the server; each ends by itself, once what goes on meanwhile is over."""
        raise NotImplementedError

    def mend(self) -> None:
        """Undo what those did to the server, which runs."""

    def started(self) -> None:
        """The server has just been started again; wait until it is whole."""

    def get_well(self) -> None:
        """Have everything work again."""
        self.proxy.heal()
        if self.server.running:
            self.server.thaw()
        else:
            self.server.start()
            self.started()
        self.mend()
        self.well = True

    def meanwhile(self) -> str:
        """Have go on what goes on while something is away."""
        was_well, self.well = self.well, False
        done = self._meanwhile()
        self.well = was_well
        return done

    # The wire

    def cut(self) -> str:
        """The wire, after so many bytes."""
        self.well = False
        count, direction = self.rng.randrange(self.rng.choice([50, 1000, 30_000])), self.rng.choice(DIRECTIONS)
        reset = self.rng.random() < 0.3
        self.proxy.cut_after(count, direction, reset=reset)
        return f"after {count} bytes {direction}{', by a reset' if reset else ''}"

    def reset(self) -> str:
        """All connections, at once."""
        self.proxy.reset()
        return "all connections"

    def delay(self) -> str:
        """Latency, which a sink has to live with: all goes well."""
        seconds = self.rng.choice([0.001, 0.01, 0.03])
        self.proxy.delay(seconds, self.rng.choice([None, *DIRECTIONS]))
        self.well = self.well and seconds < self._patience
        return f"{seconds} s"

    def throttle(self) -> str:
        """A narrow line."""
        self.well = False
        rate = self.rng.choice([2_000, 50_000, 1_000_000])
        self.proxy.throttle(rate, self.rng.choice([None, *DIRECTIONS]))
        return f"{rate} bytes/s"

    def swallow(self) -> str:
        """The acknowledgements, or what they would be for."""
        self.well = False
        direction = self.rng.choice([TO_CLIENT, TO_CLIENT, TO_SERVER])
        self.proxy.drop(direction)
        return direction

    def stall(self) -> str:
        """Nothing is passed on, and arrives late."""
        self.well = False
        direction = self.rng.choice([None, *DIRECTIONS])
        self.proxy.stall(direction)
        return str(direction or "both directions")

    def refuse(self) -> str:
        """No connection is to be had."""
        self.well = False
        self.proxy.refuse()
        return "all connections"

    # The process of the server

    def kill(self) -> str:
        """SIGKILL for the server; what it has confirmed is on its disk."""
        self.server.kill()
        done = self.meanwhile()
        self.server.start()
        self.started()
        return done

    def restart(self) -> str:
        """The server, in its own good way."""
        self.server.stop()
        done = self.meanwhile()
        self.server.start()
        self.started()
        return done

    def freeze(self) -> str:
        """SIGSTOP, and SIGCONT after a while: what was sent meanwhile is taken late."""
        self.server.freeze()
        done = self.meanwhile()
        self.server.thaw()
        return done
