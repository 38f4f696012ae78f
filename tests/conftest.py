"""Fixtures for all tests: real servers, and nothing that touches the network by itself. And how hypothesis searches."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

from tests.fixtures import coverage_lock
from tests.fixtures.process import in_ci

pytest_plugins = ["tests.fixtures.redis", "tests.fixtures.rabbitmq", "tests.fixtures.tls"]

# No deadline for an example: how long one takes is the machine's matter, and no test asserts speed.
settings.register_profile("default", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# In CI the same code gets the same examples, so that a red build is the fault of what was changed. New examples are
# looked for wherever else the tests run, and kept in .hypothesis when they fail.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci() else "default"))


# A shell without job control has what it runs in the background ignore Ctrl-C, and what that starts ignores it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """Measuring begins later than this file is read where xdist runs the tests."""
    coverage_lock.install()
