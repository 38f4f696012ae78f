"""Thousands of seeded scenarios on the scripted transport."""

from __future__ import annotations

import pytest

from tests.chaos.scripted import run
from tests.chaos.watch import watching

SCENARIOS = 1000
CHUNK = 100


@pytest.mark.parametrize("first", range(1, SCENARIOS + 1, CHUNK))
def test_scenarios(first: int) -> None:
    with watching() as watch:
        for seed in range(first, first + CHUNK):
            run(seed, watch)
    assert watch.reads > CHUNK
