"""The sink beside what Redis can take: redis-benchmark with entries of the same shape and size, in turn."""

from __future__ import annotations

from functools import partial
from statistics import median

import pytest

from streamll.sinks.redis_options import RedisOptions
from tests.fixtures.redis import RedisServer
from tests.performance.measuring import Arm, Race
from tests.performance.results import Aim, Findings
from tests.performance.sending import Sent, record, through_sink, with_query
from tests.performance.sending_redis import STREAM, Appender, find_redis_benchmark, redis_benchmark, server_cpu

PIPELINES = (1, 16, 128)
SINK = "streamll's Redis sink"
FRAMES = "streamll's Redis sink, framing=batch"
REDIS_PY = "redis-py's pipeline, 500"


def test_limit_of_redis(redis_here: RedisServer, race: Race, findings: Findings, quick: bool) -> None:
    findings.about("limit", "Redis: beside redis-benchmark with the same payload")
    program = find_redis_benchmark(redis_here.program)
    if program is None:
        pytest.skip("redis-benchmark is not installed")
    payload = record().payload
    n = 20_000 if quick else 200_000
    url = with_query(redis_here.url, stream=STREAM)
    appender = Appender(redis_here.url, payload)
    inspector = redis_here.client()

    def by_benchmark(pipeline: int) -> Sent:
        count = n // 4 if pipeline == 1 else n
        return Sent(count, count / redis_benchmark(program, redis_here.port, len(payload), count, pipeline))

    def watched(arm: Arm, least: int) -> Arm:
        """Run it into an empty stream; returns what was sent, and the server's CPU microseconds an event."""

        def lap() -> tuple[Sent, float]:
            inspector.delete(STREAM)
            before = server_cpu(inspector)
            sent: Sent = arm()
            cpu = server_cpu(inspector) - before
            assert inspector.xlen(STREAM) >= least
            return sent, cpu / sent.n * 1e6

        return lap

    arms = {
        f"redis-benchmark -P {pipeline}": watched(partial(by_benchmark, pipeline), n // 4) for pipeline in PIPELINES
    }
    limits = list(arms)
    arms[REDIS_PY] = watched(partial(appender.pipelined, n // 4, batch=500), n // 4)
    if "framing" in RedisOptions.names():
        arms[FRAMES] = watched(partial(through_sink, with_query(url, framing="batch"), n), 1)
    arms[SINK] = watched(partial(through_sink, url, n), n)
    try:
        laps = race(arms, rounds=2 if quick else 5, warm_up=0 if quick else 1)
    finally:
        appender.close()
        inspector.close()

    rates = {name: [lap.value[0].rate for lap in own] for name, own in laps.items()}
    best = [max(those) for those in zip(*(rates[name] for name in limits), strict=True)]
    for name in limits:
        note = "50 connections; it encodes nothing, and nothing guards against a double"
        findings.row(f"{name}: rate", rates[name], "events/s", note=note)
    for name in (REDIS_PY, SINK, FRAMES):
        if name not in rates:
            continue
        ours = name == SINK
        to = ("redis-benchmark's best", best)
        note = {
            REDIS_PY: "encoded already; a pipeline that is sent again is there twice",
            SINK: "from the first emit until flush returns, batch_size and all else at its default; each event once",
            FRAMES: "the same, many events in an entry",
        }[name]
        findings.row(f"{name}: rate", rates[name], "events/s", aim=Aim(at_least=250_000) if ours else None, note=note)
        share = Aim(at_least=0.5, of_ratio=True) if ours else None
        findings.row(f"{name}: share of the limit", rates[name], "events/s", to=to, aim=share)
        cpu = [lap.value[0].cpu_each for lap in laps[name]]
        least = Aim(at_most=3.0) if ours else None
        findings.row(f"{name}: client CPU an event", cpu, "us", aim=least, note="all threads of this process")
    for name, own in laps.items():
        findings.row(f"{name}: server CPU an event", [lap.value[1] for lap in own], "us", note="INFO cpu")
    share_of_best = median(one / limit for one, limit in zip(rates[SINK], best, strict=True))
    findings.say(
        f"{n:,} events of {len(payload)} bytes a lap, one thread that only emits, on loopback: the sink carries "
        f"{median(rates[SINK]):,.0f} events/s, {share_of_best:.0%} of redis-benchmark's best ({median(best):,.0f}/s). It shares "
        "the machine with the server, as redis-benchmark does."
    )
    findings.series["limit"] = rates
