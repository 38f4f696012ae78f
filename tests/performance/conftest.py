"""Fixtures of the benchmarks: servers of their own, the race, and where what was found is kept.

`--quick` (`make test-performance QUICK=1`) runs fewer rounds of less: for a look, and to see that everything runs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.performance.measuring import Race
from tests.performance.results import KEY, Findings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: fewer rounds of less")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/performance/" in item.path.as_posix():
            item.add_marker(pytest.mark.performance)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say what else the figures depend on: the libraries, and how many processors there are."""
    from importlib.metadata import PackageNotFoundError, version
    from os import cpu_count

    names = ("streamll", "redis", "hiredis", "pika", "msgspec", "msgpack", "opentelemetry-sdk", "structlog", "loguru")
    found = {}
    for name in (*names, "sentry-sdk", "aio-pika"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    machine_info["versions"] = {"python": platform.python_version(), **found}
    machine_info["processors"] = cpu_count()
    machine_info["quick"] = bool(config.getoption("--quick", default=False))


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether this run is a look rather than a measurement; always so where benchmarks are disabled."""
    return bool(request.config.getoption("--quick", default=False) or request.config.getoption("benchmark_disable"))


@pytest.fixture
def race(benchmark: Any) -> Race:
    """Runs arms in turn."""
    return Race(benchmark)


@pytest.fixture
def findings(benchmark: Any) -> Iterator[Findings]:
    """What the test found; it is stored with the benchmark when the test is over."""
    found = Findings()
    yield found
    benchmark.extra_info[KEY] = found.to_json()


@pytest.fixture(scope="module")
def redis_here() -> Iterator[RedisServer]:
    """A Redis of the benchmarks' own, empty for each file of them; it listens on a unix socket too."""
    try:
        server = RedisServer(unixsocket=True)
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    with server:
        yield server


@pytest.fixture(scope="module")
def rabbitmq_here() -> Iterator[RabbitMQServer]:
    """A RabbitMQ of the benchmarks' own, empty for each file of them."""
    try:
        server = RabbitMQServer()
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    with server:
        yield server
