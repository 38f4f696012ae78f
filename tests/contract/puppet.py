"""A process of its own with one sink, which does what it is told, and ends in any way there is.

What belongs here: the program, and its strings. It imports as little as an application would, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from streamll.models import StreamllEvent
from streamll.registry import make_sink
from streamll.runtime import adoption
from streamll.sinks.base import Sink

if sys.platform != "win32":
    import resource

ROOT = Path(__file__).resolve().parents[2]

KILLED, EXITED, SEGFAULT = "killed", "exited", "segfault"
DEATHS = {KILLED: -signal.SIGKILL, EXITED: 7, SEGFAULT: -signal.SIGSEGV}
"""The ways to end without a word, and the status that each leaves."""


class Puppet:
    """The strings.

    Args:
        url: The sink's URL.
        options: Its options.
    """

    def __init__(self, url: str, **options: Any) -> None:
        # A coverage tool writes its data when a program ends, and this one does not end well.
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.puppet", url, json.dumps(options)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.said = ""
        """What it wrote to its standard error, once it has ended."""
        words = self.hear()
        if not words:
            self.end()
        self.producer = str(words[-1])

    def hear(self) -> list[Any]:
        """The words until the end of an answer, or until its death."""
        assert self.process.stdout is not None
        words = []
        for line in self.process.stdout:
            word = json.loads(line)
            if word == "done":
                break
            words.append(word)
        return words

    def hear_a_word(self) -> Any:
        """The next word that it says."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def order(self, command: str, *arguments: Any) -> None:
        """Tell it what to do, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def tell(self, command: str, *arguments: Any) -> list[Any]:
        """Have it do something; returns what it says."""
        self.order(command, *arguments)
        return self.hear()

    def emit(self, count: int, **fields: Any) -> list[int]:
        """Have it emit events with the next numbers in their data; returns those of the accepted ones."""
        return self.tell("emit", count, fields)

    def stats(self) -> dict[str, Any]:
        """A few of its sink's numbers."""
        (found,) = self.tell("stats")
        assert found["balanced"], found
        return dict(found)

    def freeze(self) -> None:
        """Stop it where it stands; it holds what it holds."""
        self.process.send_signal(signal.SIGSTOP)
        # On a busy machine it may run on for a while.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def die(self, how: str = KILLED) -> list[Any]:
        """End it without a word; returns what it had still said, if it was busy."""
        if how == KILLED:
            self.process.kill()
        else:
            self.order(how)
        return self.end(DEATHS[how])

    def end(self, status: int = 0) -> list[Any]:
        """Wait for its end, which must be that one and must not be noisy; returns what it had still said."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        assert self.process.stdin is not None
        words = [json.loads(line) for line in self.process.stdout if line.endswith(b"\n")]
        self.said = self.process.stderr.read().decode()
        found = self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        assert found == status, (found, self.said)
        assert "Traceback" not in self.said, self.said
        return words

    def close(self) -> None:
        """See to it that it is gone."""
        if self.process.returncode is None:
            self.process.kill()
            self.end(-signal.SIGKILL)


def say(word: Any) -> None:
    os.write(1, json.dumps(word).encode() + b"\n")


def make(url: str, options: dict[str, Any]) -> Sink:
    if url.startswith("sqlite:"):
        from examples.sqlite_sink import SQLiteSink

        return SQLiteSink.from_url(url, **options)
    return make_sink(url, **options)


def emit(sink: Sink, first: int, count: int, fields: dict[str, Any]) -> None:
    """Emit, and say each number as soon as it was accepted."""
    for n in range(first, first + count):
        event = StreamllEvent(event_type="test", event_id=f"{sink.producer}-{n}", **fields)
        event.data = {"n": n}
        if sink.handle_event(event):
            say(n)


def numbers(sink: Sink) -> dict[str, Any]:
    stats = sink.stats()
    journal = sink._shelf.journal.numbers() if sink._shelf is not None else None
    kept = "delivered dead_lettered dropped refused buffered in_flight spooled unprotected spool_trouble".split()
    return {
        **{name: getattr(stats, name) for name in kept},
        "balanced": stats.balanced and all(one.balanced for one in stats.adopted),
        "adopted": [[one.producer, one.accepted, one.delivered, one.spooled] for one in stats.adopted],
        "unsynced": journal is not None and journal.unsynced,
    }


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    adoption.LOOK_AGAIN = 0.05
    sink = make(sys.argv[1], json.loads(sys.argv[2]))
    say(sink.producer)
    say("done")
    emitted = 0
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        if command == "emit":
            emit(sink, emitted + 1, *arguments)
            emitted += arguments[0]
        elif command == "start":
            sink.start()
        elif command == "flush":
            say(sink.flush(*arguments))
        elif command == "stop":
            sink.stop(*arguments)
            say(numbers(sink))
        elif command == "stats":
            say(numbers(sink))
        elif command == "limit":  # the length of files, in bytes: what a full disk looks like
            resource.setrlimit(resource.RLIMIT_FSIZE, (arguments[0], resource.RLIM_INFINITY))
        elif command == "fork":
            pid = os.fork()
            if pid == 0:
                say(sink.producer)
                emit(sink, 1, *arguments)
                os._exit(0)
            os.waitpid(pid, 0)
        elif command == "end":
            break
        elif command == EXITED:
            os._exit(DEATHS[EXITED])
        elif command == SEGFAULT:
            ctypes.string_at(0)
        say("done")


if __name__ == "__main__":
    main()
