"""Fixtures of the tests of what watches the program."""

from __future__ import annotations

from tests.fixtures.monitoring import all_allowed
from tests.unit.conftest import events

__all__ = ["all_allowed", "events"]
