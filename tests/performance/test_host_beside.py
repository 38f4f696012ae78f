"""What a program that emits does to what runs beside it: an asyncio loop, and a thread that only computes."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fixtures.redis import RedisServer
from tests.performance.child import Answer, Children
from tests.performance.measuring import Race
from tests.performance.programs import Emitter
from tests.performance.results import Findings

RATE = 10_000
"""Events a second: a great many for one process, and far from all that it could emit."""

WITHOUT, WITH = "without streamll", f"with streamll, {RATE:,} events/s to Redis"


def measured(
    race: Race, server: RedisServer, children: Children, quick: bool, what: str
) -> tuple[list[Answer], list[Answer]]:
    """Laps of the same program: where nothing is configured, so that `emit` does nothing, and with a Redis sink."""
    seconds, rounds = (0.3, 2) if quick else (1.0, 7)
    bare = children.start("host")
    emitter = Emitter(children, server, "full")

    def with_streamll() -> Answer:
        with emitter.ready() as child:
            return child(what, rate=RATE, seconds=seconds)

    laps = race({WITHOUT: partial(bare, what, rate=RATE, seconds=seconds), WITH: with_streamll}, rounds)
    return [lap.value for lap in laps[WITHOUT]], [lap.value for lap in laps[WITH]]


@pytest.mark.redis
def test_an_asyncio_ticker(
    race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool
) -> None:
    findings.about("host", "How late an asyncio ticker is woken, due every ms, in the loop that emits")
    without, with_it = measured(race, redis_here, children, quick, "beside_ticker")
    for name, label in (("median", "median"), ("p99", "p99"), ("max", "maximum")):
        base = [lap[name] for lap in without]
        findings.row(f"{label}, {WITHOUT}", base, "us")
        findings.row(f"{label}, {WITH}", [lap[name] for lap in with_it], "us", to=(WITHOUT, base))
    findings.say(
        "Without streamll it is the same program, whose emit is a no-op. asyncio itself wakes by whole milliseconds."
    )
    findings.series["ticker"] = {WITHOUT: without, WITH: with_it}


@pytest.mark.redis
def test_a_thread_that_computes(
    race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool
) -> None:
    findings.about("host", "A thread that only computes, beside one that emits")
    without, with_it = measured(race, redis_here, children, quick, "beside_worker")
    base = [lap["done"] for lap in without]
    findings.row(f"pieces of work a second, {WITHOUT}", base, "1/s", note="a piece is 1,000 additions in a loop")
    findings.row(f"pieces of work a second, {WITH}", [lap["done"] for lap in with_it], "1/s", to=(WITHOUT, base))
    for name, label in (("median", "a piece takes, median"), ("p999", "p99.9"), ("max", "maximum")):
        base = [lap[name] for lap in without]
        findings.row(f"{label}, {WITHOUT}", base, "us")
        findings.row(f"{label}, {WITH}", [lap[name] for lap in with_it], "us", to=(WITHOUT, base))
    findings.say(
        "While a thread computes, the one that emits is woken every 5 ms at best, and then emits what is due at once."
    )
