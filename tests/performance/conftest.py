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
from tests.performance.child import Children
from tests.performance.measuring import Race
from tests.performance.results import KEY, Findings

unmeasured: list[dict[str, str]] = []
"""The tests of this run that were skipped or failed."""
servers: dict[str, str] = {}
"""The versions of the servers that this run has started."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmarks: fewer rounds of less")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/performance/" in item.path.as_posix():
            item.add_marker(pytest.mark.performance)
    # The report tells things in the order in which they ran, and Redis first.
    items.sort(
        key=lambda item: item.path.as_posix().endswith("_rabbitmq.py") and "tests/performance/" in item.path.as_posix()
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say what else the figures depend on: the libraries, and how many processors there are."""
    from importlib.metadata import PackageNotFoundError, version
    from os import cpu_count

    names = ("streamll", "redis", "hiredis", "pika", "msgspec", "msgpack", "opentelemetry-sdk", "structlog", "loguru")
    found = {}
    peers = ("sentry-sdk", "aio-pika", "prometheus-client", "pyinstrument", "pyperformance", "django")
    for name in (*names, *peers):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    machine_info["versions"] = {"python": platform.python_version(), **found}
    machine_info["processors"] = cpu_count()
    machine_info["quick"] = bool(config.getoption("--quick", default=False))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what could not be measured: a report that leaves it out says so."""
    if "tests/performance/" in report.nodeid and report.outcome != "passed":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext.rpartition("\n")[2]
        unmeasured.append({"test": report.nodeid.rpartition("/")[2], "outcome": report.outcome, "why": str(reason)})


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Store with the figures which servers they come from, and what there are no figures of."""
    output_json[KEY] = {"servers": dict(servers), "unmeasured": list(unmeasured)}


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether this run is a look rather than a measurement; always so where benchmarks are disabled."""
    option = request.config.getoption
    # pyproject.toml disables them for all runs; --benchmark-enable, which wins, does not take that away.
    disabled = option("benchmark_disable") and not option("benchmark_enable")
    return bool(option("--quick", default=False) or disabled)


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


@pytest.fixture
def children() -> Iterator[Children]:
    """Starts processes that do laps when they are asked to, and ends them with the test."""
    with Children() as started:
        yield started


@pytest.fixture(scope="module")
def redis_here() -> Iterator[RedisServer]:
    """A Redis of the benchmarks' own, empty for each file of them; it listens on a unix socket too."""
    try:
        server = RedisServer(unixsocket=True)
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    with server:
        with server.client() as client:
            servers["Redis"] = client.info("server")["redis_version"]
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
        if "RabbitMQ" not in servers:
            servers["RabbitMQ"] = server.ctl("version").split()[-1]
        yield server
