"""The budgets that streamll is given: one row each, with what was measured and whether it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.redis import RedisServer
from tests.performance.child import Answer, Child
from tests.performance.measuring import Race
from tests.performance.programs import dead_url, start_up
from tests.performance.results import Aim, Findings

TITLE = "Budgets"


def program(url: str, work: str, **arguments: Any) -> Answer:
    """The answer of a fresh process, which has done one job."""
    with Child("process", url=url) as child:
        return child(work, **arguments)


def figures(race: Race, rounds: int, url: str, work: str, **arguments: Any) -> list[Answer]:
    """The answers of so many fresh processes."""
    laps = race({work: partial(program, url, work, **arguments)}, rounds, warm_up=0)
    return [lap.value for lap in laps[work]]


def of(answers: Sequence[Answer], name: str) -> list[float]:
    return [answer[name] for answer in answers]


def test_generation(race: Race, findings: Findings, quick: bool) -> None:
    findings.about("budgets", TITLE)
    n = 5_000 if quick else 50_000
    rates = of(figures(race, 2 if quick else 5, dead_url(), "generate", events=n), "rate")
    note = f"{n:,} events by one thread; the broker is dead, so none is sent, and all are held"
    findings.row("Events generated with sending off", rates, "events/s", aim=Aim(at_least=5_000), note=note)


def test_memory_of_a_queue(race: Race, findings: Findings, quick: bool) -> None:
    findings.about("budgets", TITLE)
    answers = figures(race, 1 if quick else 3, dead_url(), "memory", events=10_000)
    grown = [answer["after"] - answer["before"] for answer in answers]
    findings.row("10,000 queued events take", grown, "MB", aim=Aim(at_most=20), note="what the process's RSS grows by")


def test_memory_of_a_process(race: Race, findings: Findings, quick: bool) -> None:
    findings.about("budgets", TITLE)
    n = 20_000 if quick else 200_000
    answers = figures(race, 1 if quick else 3, dead_url(), "fullest", events=n)
    assert all(answer["balanced"] for answer in answers)
    note = (
        f"RSS at its peak, interpreter included: all options at their defaults, the broker dead, {n:,} events emitted"
    )
    findings.row("A whole process at its fullest", of(answers, "peak"), "MB", aim=Aim(at_most=100), note=note)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("what", "arguments", "figure", "seconds"),
    [
        ("A flush of 100 events", {"events": 100}, "flush", 1.0),
        ("A burst of 1,000 events, until all are confirmed", {"events": 1_000}, "seconds", 2.0),
        ("10 threads with 100 events each, until all are confirmed", {"events": 100, "threads": 10}, "seconds", 5.0),
    ],
    ids=["flush", "burst", "threads"],
)
def test_in_time(
    race: Race,
    findings: Findings,
    redis_here: RedisServer,
    quick: bool,
    what: str,
    arguments: dict[str, int],
    figure: str,
    seconds: float,
) -> None:
    findings.about("budgets", TITLE)
    answers = figures(race, 2 if quick else 7, f"{redis_here.url}?stream=in-time", "burst", **arguments)
    findings.row(what, of(answers, figure), "s", aim=Aim(at_most=seconds), note="to Redis, each event an entry")


@pytest.mark.redis
def test_sustained(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("budgets", TITLE)
    seconds, rate = (1.0 if quick else 10.0), 1_050
    answers = figures(
        race, 1 if quick else 2, f"{redis_here.url}?stream=sustained", "sustain", rate=rate, seconds=seconds
    )
    note = f"offered at {rate:,}/s for {seconds:g} s, one by one when due; until the last is confirmed"
    note += "; the budget's time is 10 s: this was a look" if quick else ""
    findings.row("Events sustained", of(answers, "rate"), "events/s", aim=Aim(at_least=1_000), note=note)
    emits = [answer["emit"] for answer in answers]
    note = "how long the call of emit holds the program, at that rate"
    findings.row("Latency of an event: emit, mean", of(emits, "mean"), "ms", aim=Aim(at_most=1.0), note=note)
    findings.row("Latency of an event: emit, p95", of(emits, "p95"), "ms", aim=Aim(at_most=1.0), note=note)
    confirmed = [answer["confirmed"] for answer in answers]
    note = "no budget: an event waits for company for up to flush_interval (0.1 s by default) before it is sent"
    findings.row("Latency of an event: emit to confirmed, median", of(confirmed, "p50"), "ms", note=note)
    findings.row("Latency of an event: emit to confirmed, p95", of(confirmed, "p95"), "ms", note=note)
    findings.row("CPU of the whole process at that rate", of(answers, "cpu"), "%", note="of one processor")
    peak = Aim(at_most=100)
    findings.row("A whole process at that rate", of(answers, "peak"), "MB", aim=peak, note="RSS at its peak")


@pytest.mark.redis
def test_start_up(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("budgets", TITLE)
    url = f"{redis_here.url}?stream=start-up"
    # Its end is left out: only what comes before it is to be timed.
    code = f"import os, streamll; streamll.configure(sinks=[{url!r}]); assert streamll.emit('token'); os._exit(0)"
    arms = {"bare": partial(start_up, "pass"), "ready": partial(start_up, code)}
    laps = race(arms, 3 if quick else 11)
    above = [this.value - bare.value for this, bare in zip(laps["ready"], laps["bare"], strict=True)]
    note = (
        "import, configure() with a Redis sink, and the first event accepted: above a bare interpreter, started in turn"
    )
    findings.row("Start-up", above, "ms", aim=Aim(at_most=100), note=note)


@pytest.mark.redis
def test_growth(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("budgets", TITLE)
    seconds = 2.0 if quick else 15.0
    url = f"{redis_here.url}?stream=growth&max_stream_length=10000"
    (answer,) = figures(race, 1, url, "grow", seconds=seconds)
    growth = (answer["late"] / answer["early"] - 1) * 100
    note = (
        f"RSS after {seconds:g} s against a fifth of it, at full speed to Redis, the caller waiting for room: {answer['events']:,} events, "
        f"{answer['early']:.1f} MB, then {answer['late']:.1f} MB; `make soak` is the long run, with faults"
    )
    findings.row("Growth of a process under load", [growth], "%", aim=Aim(at_most=10), note=note)


@pytest.mark.redis
@pytest.mark.rabbitmq
def test_idle(
    race: Race, findings: Findings, redis_here: RedisServer, rabbitmq_here: RabbitMQServer, quick: bool
) -> None:
    findings.about("budgets", TITLE)
    seconds, rounds = (1.0, 1) if quick else (4.0, 3)
    urls = {
        "Redis": f"{redis_here.url}?stream=idle",
        "RabbitMQ": f"{rabbitmq_here.url}?exchange=idle&queue=idle",
    }
    laps = race({name: partial(program, url, "idle", seconds=seconds) for name, url in urls.items()}, rounds, warm_up=0)
    for name in urls:
        used = [lap.value["percent"] for lap in laps[name]]
        note = f"of one processor, over {seconds:g} s, connected, with nothing to do"
        findings.row(f"CPU while idle, {name}", used, "%", aim=Aim(at_most=5.0), note=note)
        findings.row(f"CPU while idle, {name}: the aim", used, "%", aim=Aim(at_most=0.1), note=note)
