"""Seeded scenarios on a real RabbitMQ; `make chaos` runs more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.on_rabbitmq import RabbitMQScenario, start_rabbitmq
from tests.chaos.real import run
from tests.chaos.watch import Watch, watching
from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.rabbitmq import RabbitMQServer

pytestmark = [pytest.mark.rabbitmq, pytest.mark.integration, pytest.mark.timeout(300)]

SCENARIOS = 10
CHUNK = 5


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitMQServer]:
    try:
        started = start_rabbitmq()
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
def test_scenarios(first: int, server: RabbitMQServer, watch: Watch) -> None:
    for seed in range(first, first + CHUNK):
        print(seed, run(RabbitMQScenario, seed, server, watch))
