"""Fixtures of the tests of the Redis transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.fixtures.redis import RedisServer

OwnRedis = Callable[..., RedisServer]


@pytest.fixture(params=["script", "transaction"])
def way(request: pytest.FixtureRequest) -> str:
    """The two ways of the fence."""
    name: str = request.param
    return name


@pytest.fixture
def server(own_redis: OwnRedis) -> RedisServer:
    """One that the test may hurt."""
    return own_redis()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """A client of that one."""
    with server.client() as made:
        yield made
