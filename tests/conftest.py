"""Fixtures for all tests: real servers, and nothing that touches the network by itself."""

pytest_plugins = ["tests.fixtures.redis", "tests.fixtures.rabbitmq", "tests.fixtures.tls"]
