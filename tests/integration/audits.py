"""What tests of `streamll audit` share: running it, and the notes that sinks write."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamll.models import CLOSING, GAP, StreamllEvent
from tests.fixtures.waiting import PATIENCE

STREAMLL = [sys.executable, "-c", "import sys; from streamll.cli import main; sys.exit(main())", "audit"]
EVENT = StreamllEvent(event_type="t", data={"text": "Hi"})


def gap(*ranges: tuple[int, int], reason: str = "overflow") -> StreamllEvent:
    """A note, as a sink makes it."""
    total = sum(last - first + 1 for first, last in ranges)
    return StreamllEvent(event_type=GAP, data={"count": total, "ranges": ranges, "reasons": {reason: total}})


def closing(last: int) -> StreamllEvent:
    """A closing record; its number is last + 1."""
    return StreamllEvent(event_type=CLOSING, data={"last": last})


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUTF8": "1"}


def audit(*words: str, code: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end, and see that it ends as it should."""
    done = subprocess.run([*STREAMLL, *words], capture_output=True, text=True, timeout=50.0, env=environment())
    assert "Traceback" not in done.stderr
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def outcome(*words: str, code: int) -> Any:
    """Run it to its end, and read what it says as JSON."""
    done = audit("--json", *words, code=code)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["status"] == code
    return found


def counted(row: Any) -> dict[str, int]:
    """What is not zero."""
    return {name: number for name, number in row["counts"].items() if number}


class Following:
    """`streamll audit --follow --json`: its changes as they come, and its end."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*STREAMLL, "--follow", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._found: queue.Queue[Any] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(
                target=self._read, args=(self.process.stdout, lambda text: self._found.put(json.loads(text)))
            ),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: Any, keep: Callable[[str], object]) -> None:
        for line in pipe:
            keep(line)
        pipe.close()

    def change(self, kind: str, timeout: float = PATIENCE) -> Any:
        """The next change, which must be of this kind."""
        found = self._found.get(timeout=timeout)
        assert found.get("change") == kind, found
        return found

    def until(self, kind: str) -> Any:
        """The next change of this kind; others are passed over."""
        while True:
            found = self._found.get(timeout=PATIENCE)
            if found.get("change") == kind:
                return found

    def quiet(self, seconds: float) -> bool:
        """Whether nothing changes for so long."""
        with contextlib.suppress(queue.Empty):
            self._found.get(timeout=seconds)
            return False
        return True

    def end(self, sig: int = signal.SIGINT) -> tuple[int, Any]:
        """Send a signal; returns the exit code and the outcome, or the last change."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        last = None
        while not self._found.empty():
            last = self._found.get()
        return code, last


@pytest.fixture
def following() -> Iterator[Callable[..., Following]]:
    """Start audits that go on; all end with the test."""
    with contextlib.ExitStack() as commands:

        def start(*words: str) -> Following:
            command = Following(*words)
            commands.callback(command.end, signal.SIGKILL)
            return command

        yield start
