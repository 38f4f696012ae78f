"""The verdict on real programs, each of which does one thing to its memory: what it is called must be what it does.

Their memory is real and their clock is made up, so that a busy machine slows them down but does not change what they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from streamll.monitors.memory_profiler import MemoryProfiler
from tests.fixtures.waiting import wait_until

READINGS = 64

HEAD = f"""
import ctypes, functools, json
from streamll.monitors.memory_profiler import MemoryProfiler

memory = MemoryProfiler(interval=0.5, warmup=2, leak_after=20, event_interval=0)
memory._begin(1000.0)

def steps():
    for step in range({READINGS}):
        yield step
        memory._look(1000.0 + 0.5 * step)
"""

TAIL = """
print(json.dumps(memory.report()))
"""

PROGRAMS = {
    "objects": """
kept = []
for step in steps():
    kept.extend([object()] for _ in range(3000))
""",
    "native": """
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for step in steps():
    for _ in range(5):
        ctypes.memset(libc.malloc(60_000), 1, 60_000)
""",
    "fragments": """
blocks = [bytes(60_000) for _ in range(1000)]
for step in steps():
    if step == 1:
        del blocks[0::4], blocks[0::3], blocks[0::2]  # every fourth remains, with holes between
""",
    "empty arenas": """
blocks = [[n] for n in range(150_000)]
for step in steps():
    if step == READINGS // 2:
        blocks[:] = blocks[::100]
""".replace("READINGS", str(READINGS)),
    "bounded cache": """
@functools.lru_cache(maxsize=30 * 60)
def answer(n):
    return [str(n + i) for i in range(80)]

for step in steps():
    for n in range(60):
        answer(step * 60 + n)
""",
    "nothing wrong": """
for step in steps():
    working = [[n] for n in range(20_000)]
    more = bytes(1_000_000)
    del working, more
""",
}


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, Any]]:
    """What the programs say in the end, which run at the same time."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", HEAD + program + TAIL],
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )
        for name, program in PROGRAMS.items()
    }
    try:
        yield {name: json.loads(process.communicate(timeout=50)[0]) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the heap is known on Linux alone")
@pytest.mark.parametrize(
    ("program", "kind", "growing"),
    [
        ("objects", "objects", True),
        ("native", "native", True),
        ("fragments", "allocator_retention", False),
        ("empty arenas", "allocator_retention", False),
        ("bounded cache", "bounded_cache", False),
        ("nothing wrong", "none", False),
    ],
)
def test_is_called_what_it_is(reports: dict[str, Any], program: str, kind: str, growing: bool) -> None:
    report = reports[program]
    assert (report["verdict"], report["leak"]["growing"]) == (kind, growing), report["explanation"]
    assert report["stats"]["readings"] == READINGS
    assert report["confidence"] > 0.3


def test_a_leak_is_found_by_the_clock_too() -> None:
    kept: list[bytes] = []
    with MemoryProfiler(interval=0.01, warmup=0, leak_after=0.5, leak_growth_mb=1) as memory:

        def leaks() -> bool:
            kept.extend(bytes(500) for _ in range(100))
            return memory.verdict.growing

        assert wait_until(leaks, interval=0.01)
        assert memory.verdict.kind in ("objects", "native", "unknown")  # few readings tell of blocks on a busy machine
    assert len(kept) >= 2000
