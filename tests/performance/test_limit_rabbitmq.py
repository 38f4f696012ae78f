"""The sink beside what RabbitMQ can take: the best of several raw publishers of the same message, in turn."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from statistics import median

from streamll.sinks.rabbitmq_options import RabbitMQOptions
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.performance.measuring import Arm, Race
from tests.performance.results import Aim, Findings
from tests.performance.sending import Sent, record, through_sink
from tests.performance.sending_rabbitmq import NAME, ByHand, OneByOne, Queue, Windowed, process_cpu, url_to

WINDOWS = (1000, 2000)
SINK = "streamll's RabbitMQ sink"
FRAMES = "streamll's RabbitMQ sink, framing=batch"
ONE_BY_ONE = "pika's BlockingConnection, a confirm for each"

NOTES = {
    SINK: "from the first emit until flush returns, all at its default; at least once, doubles named",
    FRAMES: "the same, many events in a message",
}


def test_limit_of_rabbitmq(rabbitmq_here: RabbitMQServer, race: Race, findings: Findings, quick: bool) -> None:
    findings.about("limit", "RabbitMQ: beside raw publishers, persistent and confirmed")
    event, port = record(), rabbitmq_here.port
    n = 3_000 if quick else 15_000
    broker_cpu = process_cpu(rabbitmq_here.pid)
    with ExitStack() as stack:
        queue = Queue(port)
        alone, windowed, by_hand = OneByOne(port, event), Windowed(port, event), ByHand(port, event)
        for one in (queue, alone, windowed, by_hand):
            stack.callback(one.close)

        def watched(arm: Arm, least: int) -> Arm:
            """Publish into an empty queue; returns what was sent, and the broker's CPU microseconds an event."""

            def lap() -> tuple[Sent, float]:
                queue.purge()
                before = broker_cpu() if broker_cpu else 0.0
                sent: Sent = arm()
                used = broker_cpu() - before if broker_cpu else 0.0
                assert len(queue) >= least
                return sent, used / sent.n * 1e6

            return lap

        arms = {ONE_BY_ONE: watched(partial(alone.send, n // 20), n // 20)}
        for window in WINDOWS:
            arms[f"pika's SelectConnection, window {window:,}"] = watched(partial(windowed.send, n, window), n)
            arms[f"frames made by hand, window {window:,}"] = watched(partial(by_hand.send, n, window), n)
        limits = list(arms)
        there = {"exchange": NAME, "queue": NAME}
        if "framing" in RabbitMQOptions.names():
            arms[FRAMES] = watched(partial(through_sink, url_to(port, **there, framing="batch"), n), 1)
        arms[SINK] = watched(partial(through_sink, url_to(port, **there), n), n)
        laps = race(arms, rounds=2 if quick else 5, warm_up=0 if quick else 1)

    rates = {name: [lap.value[0].rate for lap in own] for name, own in laps.items()}
    best = [max(those) for those in zip(*(rates[name] for name in limits), strict=True)]
    for name, own in laps.items():
        ours = name == SINK
        to = None if name in limits else ("the best raw publisher", best)
        share = Aim(at_least=0.9, of_ratio=True) if ours else None
        findings.row(f"{name}: rate", rates[name], "events/s", to=to, aim=share, note=NOTES.get(name, ""))
        cpu = [lap.value[0].cpu_each for lap in own]
        findings.row(f"{name}: client CPU an event", cpu, "us", aim=Aim(at_most=5.0) if ours else None)
        if broker_cpu:
            findings.row(f"{name}: broker CPU an event", [lap.value[1] for lap in own], "us", note="its whole process")
    winner = max(limits, key=lambda name: median(rates[name]))
    share_of_best = median(one / limit for one, limit in zip(rates[SINK], best, strict=True))
    findings.say(
        f"{n:,} events of {len(event.payload)} bytes a lap to a durable classic queue, on loopback; the broker has one "
        f"scheduler. The sink carries {median(rates[SINK]):,.0f} events/s, {share_of_best:.0%} of the best raw publisher of "
        f"each round ({median(best):,.0f}/s; most often {winner}). What is made by hand is the same bytes again and again: it "
        "encodes nothing, and could tell no message from another."
    )
    if not broker_cpu:
        findings.say("The broker's CPU was not measured: psutil is not installed.")
    findings.series["limit"] = rates
