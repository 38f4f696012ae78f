"""Seeded scenarios on a real Redis; `make chaos` runs more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.on_redis import RedisScenario, start_redis
from tests.chaos.real import run
from tests.chaos.watch import Watch, watching
from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.redis import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.integration, pytest.mark.timeout(300)]

SCENARIOS = 30
CHUNK = 10


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        started = start_redis()
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    yield started
    started.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watching() as made:
        yield made


@pytest.mark.parametrize("first", range(1, SCENARIOS + 1, CHUNK))
def test_scenarios(first: int, server: RedisServer, watch: Watch) -> None:
    for seed in range(first, first + CHUNK):
        print(seed, run(RedisScenario, seed, server, watch))
