"""An ActionProfiler for tests that count calls, and what it says of one action."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from streamll.monitors.action_profiler import ActionProfiler


@contextmanager
def counting() -> Iterator[ActionProfiler]:
    """One that is started, and samples nothing."""
    with ActionProfiler(sampler="off") as made:
        yield made


def row(profiler: ActionProfiler, name: str) -> dict[str, Any]:
    """What it has counted of an action."""
    found: dict[str, Any] = profiler.get_profile_data()["profiles"][name]
    return found
