"""What an emit costs its caller: with the worker idle, at full speed, the broker dead or frozen, and from several threads."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fixtures.redis import RedisServer
from tests.performance.child import Answer, Children
from tests.performance.measuring import Lap, Race
from tests.performance.programs import Emitter
from tests.performance.results import Aim, Findings

STATES = {
    "idle": "worker idle",
    "full": "worker at full speed",
    "dead": "broker dead, room in the buffer",
    "dead_full": "broker dead, buffer full: each takes the oldest one's place",
    "frozen": "broker frozen in the middle of a batch",
}
HOW = (
    "Each call stands between two readings of the clock; what these, the loop and an empty function take (the median, in the "
    "same lap) is taken off. The event has three data keys and belongs to a span; ids and redaction by key are on."
)


def lap_of(emitter: Emitter, what: str, n: int, frozen: bool = False) -> Answer:
    """One lap: what so many calls took."""
    with emitter.ready() as child:
        return child("measure", what=what, n=n, frozen=frozen)


def of(laps: list[Lap], name: str) -> list[float]:
    return [lap.value[name] for lap in laps]


@pytest.mark.redis
def test_emit(race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool) -> None:
    findings.about("host", "emit, by what its worker does")
    n, rounds = (3_000, 2) if quick else (20_000, 7)
    emitters = {state: Emitter(children, redis_here, state) for state in STATES}
    arms = {state: partial(lap_of, emitters[state], "emit", n, frozen=state == "frozen") for state in STATES}
    laps = race(arms, rounds, subject="idle")
    idle = of(laps["idle"], "median")
    for state, words in STATES.items():
        aim = Aim(at_most=1.5) if state == "idle" else None
        aim = Aim(at_most=1.2, of_ratio=True) if state.startswith("dead") else aim
        to = None if state == "idle" else ("worker idle", idle)
        findings.row(f"emit, {words}: median", of(laps[state], "median"), "us", to=to, aim=aim)
        to = None if state == "idle" else ("worker idle", of(laps["idle"], "block"))
        aim = aim if state.startswith("dead") else None
        blocks = "median of blocks of 100 calls, a call's share: what only some calls pay is in it too"
        findings.row(f"emit, {words}: in blocks", of(laps[state], "block"), "us", to=to, aim=aim, note=blocks)
        for name, label in (("p99", "p99"), ("p999", "p99.9"), ("max", "maximum")):
            findings.row(f"emit, {words}: {label}", of(laps[state], name), "us")
    findings.say(HOW)
    findings.series["emit"] = {
        state: {name: of(laps[state], name) for name in ("median", "p99", "p999", "max")} for state in STATES
    }


@pytest.mark.redis
def test_emit_beside_a_busy_worker(
    race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool
) -> None:
    findings.about("host", "emit's tail beside a worker at full speed")
    n, rounds = (5_000, 2) if quick else (30_000, 9)
    emitter = Emitter(children, redis_here, "full")

    def beside() -> Answer:
        with emitter.ready() as child:
            return child("beside", n=n)

    laps = race({"beside": beside}, rounds)["beside"]
    tails = {name: [lap.value[name]["p999"] for lap in laps] for name in ("emit", "append", "stretch")}
    appends = laps[-1].value["as_long"]
    findings.row(
        "p99.9 of as many deque.appends as last as long as an emit",
        tails["stretch"],
        "us",
        note=f"{appends} of them in the last lap; a stall meets what lasts long the more often, so this one is a fair equal",
    )
    findings.row("p99.9 of one deque.append", tails["append"], "us")
    aim = Aim(at_most=2.0, of_ratio=True)
    note = "timed in turn in one loop, so all of them beside the same worker, at the same moments"
    findings.row(
        "emit's p99.9, to appends that last as long",
        tails["emit"],
        "us",
        to=("appends", tails["stretch"]),
        aim=aim,
        note=note,
    )
    findings.row(
        "emit's p99.9, to one append", tails["emit"], "us", to=("one append", tails["append"]), aim=aim,
        note="a call that itself takes many times as long as an append meets this only where stalls make up both",
    )  # fmt: skip
    findings.row("emit's maximum", [lap.value["emit"]["max"] for lap in laps], "us")
    longest = [lap.value["stretch"]["max"] for lap in laps]
    findings.row("maximum of appends that last as long", longest, "us", note="what the interpreter's turns alone do")


@pytest.mark.redis
@pytest.mark.concurrent
def test_emit_from_several_threads(
    race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool
) -> None:
    findings.about("host", "emit from several threads at once")
    n, rounds = (4_000, 2) if quick else (32_000, 5)
    emitter = Emitter(children, redis_here, "idle")

    def together(count: int) -> Answer:
        with emitter.ready() as child:
            return child("threads", count=count, n=n)

    counts = (1, 2, 8)
    laps = race({str(count): partial(together, count) for count in counts}, rounds, subject="1")
    alone = laps["1"]
    for count in counts:
        own = laps[str(count)]
        words = f"{count} thread{'s' if count > 1 else ''}"
        for name, label in (("median", "median"), ("p99", "p99"), ("p999", "p99.9"), ("max", "maximum")):
            findings.row(f"emit, {words}: {label}", of(own, name), "us")
        to = ("1 thread", of(alone, "rate")) if count > 1 else None
        findings.row(f"emit, {words}: all together", of(own, "rate"), "events/s", to=to)
        to = ("1 thread", of(alone, "cpu")) if count > 1 else None
        findings.row(f"emit, {words}: CPU an event", of(own, "cpu"), "us", to=to)
    findings.say(
        "Threads take turns at the interpreter, 5 ms each, so a call that loses its turn lasts that much longer."
    )


@pytest.mark.redis
def test_span(race: Race, findings: Findings, redis_here: RedisServer, children: Children, quick: bool) -> None:
    findings.about("host", "A span, start and end")
    n, rounds = (2_000, 2) if quick else (20_000, 7)
    states = ("idle", "full")
    arms = {state: partial(lap_of, Emitter(children, redis_here, state), "span", n) for state in states}
    laps = race(arms, rounds, subject="idle")
    for state in states:
        aim = Aim(at_most=4.0) if state == "idle" else None
        note = "an empty block with two attributes, inside of another span; it makes one event"
        findings.row(f"span, {STATES[state]}: median", of(laps[state], "median"), "us", aim=aim, note=note)
        for name, label in (("block", "in blocks"), ("p99", "p99"), ("p999", "p99.9"), ("max", "maximum")):
            findings.row(f"span, {STATES[state]}: {label}", of(laps[state], name), "us")
