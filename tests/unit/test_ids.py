"""Identifiers: their shape, and that no two are the same, whoever makes them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from streamll.ids import new_event_id, new_execution_id, new_producer_id, new_span_id

MAKERS: dict[str, tuple[Callable[[], str], int]] = {
    "event": (new_event_id, 32),
    "execution": (new_execution_id, 32),
    "span": (new_span_id, 16),
    "producer": (new_producer_id, 16),
}

pytestmark = pytest.mark.parametrize("kind", MAKERS)


def test_are_hex_of_their_length_and_never_all_zero(kind: str) -> None:
    make, length = MAKERS[kind]
    for _ in range(1000):
        made = make()
        assert re.fullmatch(rf"[0-9a-f]{{{length}}}", made)
        assert made.strip("0")


def test_are_unique_also_among_threads(kind: str) -> None:
    make, _ = MAKERS[kind]
    with ThreadPoolExecutor(8) as executor:
        made = [
            identifier
            for part in executor.map(lambda _: [make() for _ in range(2000)], range(8))
            for identifier in part
        ]
    assert len(set(made)) == 16_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_are_unique_among_forked_processes(kind: str) -> None:
    program = f"""
import json, os
from streamll.ids import new_{kind}_id as make
made = [make()]
ends = []
for _ in range(3):
    end, out = os.pipe()
    if os.fork() == 0:
        os.write(out, json.dumps([make() for _ in range(100)]).encode())
        os._exit(0)
    os.close(out)
    ends.append(end)
for end in ends:
    with open(end) as pipe:
        made += json.load(pipe)
print(json.dumps(made + [make() for _ in range(100)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    made = json.loads(done.stdout)
    assert len(set(made)) == len(made) == 401


def test_are_unique_among_processes(kind: str) -> None:
    program = f"from streamll.ids import new_{kind}_id as make; print(*[make() for _ in range(100)])"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [word for process in running for word in process.communicate(timeout=60)[0].split()]
    assert len(set(made)) == len(made) == 200
