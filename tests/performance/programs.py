"""Programs that are measured, seen from the tests: they see that what was emitted is in Redis, and how long a start takes.

What belongs here: what several tests do with such programs. What does not: what these do (children/), how they are talked
to (child.py), or what is said of it (the tests).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from time import perf_counter

import pytest

from tests.fixtures.process import free_port
from tests.fixtures.redis import RedisServer
from tests.performance.child import ROOT, Child, Children, environment


def need(*modules: str) -> None:
    """Skip the test where one of these is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed, since it comes with the extra `performance`: {', '.join(missing)}")


def dead_url() -> str:
    """The URL of a Redis that is not there."""
    return f"redis://127.0.0.1:{free_port()}/0"


class Emitter:
    """A program that emits, in one of the states that children/host.py knows.

    Args:
        children: What ends it.
        server: Where its events go, unless the broker is to be dead.
        state: The state.
    """

    def __init__(self, children: Children, server: RedisServer, state: str) -> None:
        self._server, self._state = server, state
        self._arrives = not state.startswith("dead")
        self._stream = f"emitter-{state}"
        url = f"{server.url}?stream={self._stream}" if self._arrives else dead_url()
        self._child = children.start("host", url=url)

    @contextmanager
    def ready(self) -> Iterator[Child]:
        """Have it in its state; afterwards, see that all it emitted is in Redis, unless that is dead."""
        self._child("begin", state=self._state)
        if self._state == "frozen":
            self._server.freeze()
        try:
            yield self._child
        finally:
            if self._state == "frozen":
                self._server.thaw()
        end = self._child("end", arrives=self._arrives)
        assert end["balanced"]
        if self._arrives:
            assert end["flushed"]
            assert not end["lost"]
            with self._server.client() as client:
                # And one of the sink's own, which says that this was all, where there was time for it.
                assert client.xlen(self._stream) - end["accepted"] in (0, 1)
                client.delete(self._stream)


def start_up(code: str) -> float:
    """The milliseconds that a new interpreter takes for some code, from its start to its end."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)
    return (perf_counter() - start) * 1e3
