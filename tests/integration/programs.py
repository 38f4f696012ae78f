"""Programs: scripts in interpreters of their own, and what their sinks have left at a broker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from streamll.codec import decode
from streamll.models import StreamllEvent
from tests.contract.destinations import Destination

HEAD = """
import os, signal, sys, threading, time
import streamll
streamll.configure(sinks=[os.environ["SINK"]])
def emit(n, first=0):
    for i in range(first, first + n):
        streamll.emit("tick", data={"i": i})
def child(work, fork=os.fork):
    '''Do this in a forked child; the status is 0 when all of it was delivered.'''
    pid = fork()
    if pid == 0:
        try:
            work()
            ok = streamll.flush(30) and streamll.stats().balanced
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            ok = False
        sys.stderr.flush()
        os._exit(0 if ok else 9)
    return pid
def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def sink():
    return next(iter(streamll.stats().sinks.values()))
def breathe():
    '''Let the sink keep up: what overflows is not what these programs are about.'''
    time.sleep(0.001)
    while sink().buffered > 2000:
        time.sleep(0.001)
"""

FLAGS = ("-W", "ignore::DeprecationWarning")
"""Python 3.12 warns of forking a process that has threads: that is what these tests are about."""


class Ended(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str
    seconds: float


def start(
    script: str, url: str, *flags: str, folder: Path | None = None, head: str = HEAD, **env: str
) -> subprocess.Popen[str]:
    """A new interpreter that runs a script with that sink; one that forks, or handles signals, is not measured by a
    coverage tool, which has a handler of its own for SIGTERM.

    Args:
        script: What comes behind HEAD.
        url: The sink, for the environment variable SINK.
        flags: Of the interpreter.
        folder: Where to put the script as a file, which spawned children can import; else it is a `-c` script.
        head: What comes first.
        env: More of the environment.
    """
    measured = not any(word in script for word in ("fork", "multiprocessing", "child(", "stop_on_signal", "SIGTERM"))
    kept = {name: value for name, value in os.environ.items() if measured or not name.startswith("COVERAGE")}
    if folder is None:
        command = ["-c", head + script]
    else:
        path = folder / "program.py"
        path.write_text(head + script)
        command = [str(path)]
    return subprocess.Popen(
        [sys.executable, *FLAGS, *flags, *command],
        env={**kept, "SINK": url, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, url: str, *flags: str, folder: Path | None = None, head: str = HEAD, **env: str) -> Ended:
    """Run a script as `start` does, until it ends."""
    began = time.monotonic()
    with start(script, url, *flags, folder=folder, head=head, **env) as process:
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Ended(process.returncode, out, err, time.monotonic() - began)


def with_options(destination: Destination, **options: Any) -> str:
    """The destination's URL with these options, and an exit_timeout that no slow machine exceeds."""
    return "&".join(
        [destination.url(), *(f"{name}={value}" for name, value in ({"exit_timeout": 30} | options).items())]
    )


def by_producer(destination: Destination) -> dict[str, list[StreamllEvent]]:
    """What is at the destination, in the order of each producer's numbers, each of which must be there: once, from 1.

    Where the broker cannot promise that there is no double, one counts once. Notes of the sinks (gaps, closing) are
    numbered like events, and left out.
    """
    found: dict[str, dict[int, StreamllEvent]] = defaultdict(dict)
    for stored in destination.stored():
        seen = found[stored.producer]
        assert stored.seq not in seen or not destination.exactly_once, f"{stored.producer}: {stored.seq} twice"
        seen[stored.seq] = decode(stored.payload)
    for producer, events in found.items():
        assert sorted(events) == list(range(1, len(events) + 1)), f"{producer}: {sorted(events)}"
    return {
        producer: [event for _, event in sorted(events.items()) if not event.event_type.startswith("streamll.")]
        for producer, events in found.items()
    }


def numbers(destination: Destination) -> list[int]:
    """The `i` of every event at the destination, producer by producer."""
    return [event.data["i"] for events in by_producer(destination).values() for event in events]


def hear(process: subprocess.Popen[str]) -> str:
    """The program's next line of output, without its end."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str]) -> None:
    """End the `input()` that the program waits in."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
