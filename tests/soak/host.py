"""The host: the application in a process of its own, as the soak sees it.

What belongs here: starting and ending it, hearing its reports, and its memory. What does not: what it does (application.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tests.soak.report import Order, Report, read_report, to_line

_SAID = 50
"""Lines that are kept of what it says, which should be nothing."""

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = (sys.executable, "-m", "tests.soak.application")


def rss_of(pid: int) -> int:
    """The bytes that a process has in memory; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:  # no Linux, or no process
        shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(shown.stdout.strip() or 0) * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


class Host:
    """The process.

    Args:
        order: What it is to do.
        command: What is run instead of the application.

    Attributes:
        latest: Its last report.
        emit: Durations of `emit`, of reports that nobody has taken yet.
        held: The most that the buffers of all sinks held at one time, by their own count in bytes.
        wrong: What was wrong by its own reports.
    """

    def __init__(self, order: Order, command: Sequence[str] = APPLICATION) -> None:
        self.latest = Report()
        self.emit: deque[dict[int, int]] = deque()
        self.held = 0
        self.wrong: list[str] = []
        self._said: list[str] = []
        self._process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            # What measures coverage would be measured with it, and is not the host's memory.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the soak's, which ends it in order
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._hear, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._overhear, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._tell(to_line(order))

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    @property
    def is_well(self) -> bool:
        """Whether it is there, and has neither cried out nor found anything wrong."""
        return self.running and not self._said and not self.wrong

    def rss(self) -> int:
        """The bytes that it has in memory; 0 when it is gone."""
        return rss_of(self._process.pid) if self.running else 0

    def stop(self, patience: float) -> None:
        """Have it deliver what is left, and end; says what is wrong with that in `wrong`."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.wrong.append(f"the application did not end within {patience:.0f} s")
            status = 0
        self.close()
        if status or self._said:
            said = "\n".join(self._said)
            self.wrong.append(f"the application ended with status {status}, and said: {said}")
        if not self.latest.last:
            self.wrong.append("the application ended without a last report")

    def close(self) -> None:
        """See to it that it is gone."""
        if self.running:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _hear(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            report = read_report(line)
            self.wrong += report.wrong
            self.wrong += [
                f"the balance of {name} does not hold: {sink}"
                for name, sink in report.sinks.items()
                if not sink.balanced and len(self.wrong) < 10
            ]
            self.held = max(self.held, sum(sink.bytes_held for sink in report.sinks.values()))
            self.emit.append(report.emit)
            self.latest = report

    def _overhear(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            if len(self._said) < _SAID:
                self._said.append(line.decode(errors="replace").rstrip())
