"""The examples of docs/testing.md, run as they stand there, on a Redis of the tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from streamll.testing.proxy import FaultProxy
from tests.fixtures.redis import RedisEndpoint

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "testing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
NAMES = [
    (place, name) for place, block in enumerate(BLOCKS) for name in re.findall(r"^def (test_\w+)", block, re.MULTILINE)
]


def example(place: int, name: str, port: int = 6379) -> Callable[[], None]:
    """One of the tests in a block, for a Redis on a port."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(BLOCKS[place].replace("6379", str(port)), f"docs/testing.md, block {place}", "exec"), names)
    found: Callable[[], None] = names[name]
    return found


def test_there_are_examples_of_each_part() -> None:
    assert len(BLOCKS) == 4
    faults = {name for name in vars(FaultProxy) if not name.startswith("_")}
    shown = {name.removeprefix("test_") for _, name in NAMES} | {"heal", "close", "after_fork_in_child"}
    assert faults <= shown


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, name in NAMES if "6379" not in BLOCKS[place]])
def test_examples_without_a_server(place: int, name: str) -> None:
    example(place, name)()


@pytest.mark.redis
@pytest.mark.integration
@pytest.mark.parametrize(("place", "name"), [(place, name) for place, name in NAMES if "6379" in BLOCKS[place]])
def test_examples_with_a_network(place: int, name: str, redis_server: RedisEndpoint) -> None:
    url = urlsplit(redis_server.url)
    if url.hostname not in ("127.0.0.1", "localhost") or url.password:
        pytest.skip("the examples want a Redis on this machine that asks for no password")
    example(place, name, url.port or 6379)()
