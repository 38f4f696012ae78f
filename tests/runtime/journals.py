"""Journals for tests: made, written, adopted and read back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from streamll.delivery.outcome import Entry
from streamll.models import Record
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.spool import AdoptedJournal, adopt, orphans
from tests.unit.deliveries import untraced

ROOT = Path(__file__).resolve().parents[2]
DESTINATION = "redis://h/0?stream=s"
EVERYTHING = 1 << 40
SMALL = 64 * 1024

# What the scripts of tests begin with.
HEAD = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.runtime.journals import *
spool = Path(sys.argv[1])
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


def entry(seq: int, size: int = 20) -> Entry:
    payload = b"%d " % seq + b"x" * size
    return Entry(seq, Record(payload, "application/msgpack", f"e{seq}", "tick", "", "", "", "", "", seq, 1))


def make(spool: Path, producer: str = "p", durability: str = "process", **options: Any) -> Journal:
    identity = Identity(DESTINATION, DESTINATION, producer, durability)
    return Journal(spool, identity, **{"segment_bytes": SMALL, **options})


def fill(journal: Journal, first: int, last: int, size: int = 20) -> None:
    for seq in range(first, last + 1):
        assert journal.append(entry(seq, size)), journal.trouble


def adopt_one(spool: Path) -> AdoptedJournal:
    """Adopt the one orphan that is in a spool."""
    (found,) = [journal for folder in orphans(spool) if (journal := adopt(folder)) is not None]
    return found


def drain(journal: Journal, n: int = 100, through: int | None = None) -> list[int]:
    """The numbers of all that can be read, whose payloads are theirs."""
    found: list[int] = []
    while batch := journal.read(n, EVERYTHING, through):
        assert len(batch) <= n
        assert all(item.record.payload.startswith(b"%d " % item.seq) for item in batch)
        found += [item.seq for item in batch]
    return found


def files(spool: Path) -> list[str]:
    """The names of all files in a spool."""
    return sorted(path.name for path in spool.rglob("*") if not path.is_dir())


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs a script; no coverage tool measures it, because these fork, or are killed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: object) -> str:
    """What a script prints."""
    process = start(script, *arguments)
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    return out


@contextmanager
def interrupted_at(step: int, where: Callable[[str], bool]) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt before the step with that number, from 1, in the files for which `where` says so.

    A step is a line or a bytecode; from 3.12 on, the first call of a function may tell of its lines only.

    Yields:
        A list that holds how many there were until then.
    """
    steps = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "call":
            if not where(frame.f_code.co_filename):
                return None
            frame.f_trace_opcodes = True
        elif event in ("line", "opcode"):
            steps[0] += 1
            if steps[0] == step:
                raise KeyboardInterrupt
        return trace

    with untraced():
        sys.settrace(trace)
        try:
            yield steps
        finally:
            sys.settrace(None)
