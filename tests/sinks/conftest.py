"""Fixtures of the tests of single sinks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sinks.rabbitmq_fixtures import (  # noqa: F401 - fixtures are found by being here
    broker,
    hurt_broker,
    hurt_rabbitmq,
    make_rabbitmq,
    rabbitmq_to_hurt,
)
from tests.sinks.redis_fixtures import client, server, way  # noqa: F401 - as above
from tests.sinks.redis_tools import close_all


@pytest.fixture(autouse=True)
def _close_redis_transports() -> Iterator[None]:
    yield
    close_all()
