"""A scenario on a real server: what both brokers have in common.

What belongs here: a sink behind a proxy, what its application does (emit, flush, fork), and the verdict. What does not:
what is done to the wire and the server (faults.py), or how one looks into a broker (on_redis.py, on_rabbitmq.py).
"""

from __future__ import annotations

import logging
import threading
import time
from random import Random
from typing import Any, ClassVar

from streamll.models import PRIORITIES, StreamllEvent
from streamll.options import PipelineOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import DeliveryReport, Sink, SinkStats
from streamll.testing.proxy import FaultProxy
from tests.chaos.children import FORK, Child, Left, Stopped, emit_in_child, end, is_over, quiet_fork
from tests.chaos.faults import Faults, Rule
from tests.chaos.oracle import Place, Verdict, Witness, failure, judge
from tests.chaos.watch import Watch
from tests.fixtures.waiting import PATIENCE


class RealScenario:
    """One scenario on a server of our own, which it may hurt and leaves well.

    Args:
        seed: Decides everything but the timing.
        server: A running server.
        watch: Reads the balance meanwhile.

    Attributes:
        history: What was done, for people.
        wrong: What is wrong so far.
        children: The processes that were started, whose verdicts come in the end.
    """

    name: ClassVar[str]
    faults_kind: ClassVar[type[Faults]]
    patience: ClassVar[float] = PATIENCE
    rounds: ClassVar[tuple[int, int]] = (4, 16)

    def __init__(self, seed: int, server: Any, watch: Watch) -> None:
        self.seed = seed
        self.server = server
        self.rng = Random(seed)
        self.witness = Witness()
        self.history: list[str] = []
        self.wrong = Verdict()
        self.children: list[Child] = []
        self._watch = watch
        self._emitted = 0
        self.proxy = FaultProxy("127.0.0.1", server.port)
        self.options = self.draw_options()
        patience = self.options["send_timeout"] / 10
        self.faults = self.faults_kind(server, self.proxy, self.rng, self._meanwhile, patience)
        self.name_places()
        self.sink = self.make_sink(
            name=f"chaos-{seed}",
            on_delivery=self._told,
            pipeline=Pipeline(PipelineOptions(max_event_bytes=4096, oversize="dead_letter")),
            **self.options,
        )

    # What a broker's scenario brings

    def name_places(self) -> None:
        """Choose where this scenario's events go."""
        raise NotImplementedError

    def make_sink(self, **options: Any) -> Sink:
        """A sink that writes through the proxy, to a place of this scenario's own."""
        raise NotImplementedError

    def more_work(self) -> list[tuple[float, Rule]]:
        """Further things that applications do, each with its weight; a rule returns what it did."""
        return []

    def more_faults(self) -> list[tuple[float, Rule]]:
        """Further ways to hurt something."""
        return []

    def look(self) -> Place:
        """All that is at the destination, once nothing is under way to it."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Remove what this scenario made."""

    # The scenario

    def draw_options(self) -> dict[str, Any]:
        """Options under which a fault is noticed within a fraction of a second."""
        rng = self.rng
        strategies = ["drop_oldest", "drop_oldest", "drop_newest", "block", "raise_error"]
        return {
            "buffer_size": rng.choice([10, 100, 1000, 10_000, 10_000]),
            "buffer_overflow_strategy": rng.choice(strategies),
            "block_timeout": 0.01,
            "batch_size": rng.choice([5, 50, 500]),
            "batch_growth": rng.choice([1, 10]),
            "flush_interval": rng.choice([0.0, 0.005, 0.05]),
            "delivery_deadline": rng.choice([None, None, None, None, 0.3, 3600.0]),
            "retry_base": 0.002,
            "retry_bound": 0.02,
            "failure_threshold": rng.randint(1, 5),
            "recovery_timeout": 0.02,
            "recovery_bound": 0.05,
            "connect_timeout": 0.5,
            "send_timeout": rng.choice([0.1, 0.3, 1.0]),
            "exit_timeout": self.patience,
            "encoding": rng.choice(["msgpack", "json"]),
        }

    def run(self) -> Verdict:
        """Do all of it, and leave the server well."""
        self._watch.look_at(self.sink)
        work: list[tuple[float, Rule]] = [
            (3.0, self.emit),
            (2.0, self.many_threads),
            (2.0, self.flush),
            (1.0, self.fork),
            *self.more_work(),
        ]
        faults = [*self.faults.menu(), *self.more_faults()]
        try:
            for _ in range(self.rng.randint(*self.rounds)):
                for rules in (faults, work, [(1.0, self.emit)], [(1.0, self.flush)], [(1.0, self.heal)]):
                    if self.rng.random() < 0.7:
                        self._do(*rules)
            closing = self.end()
            self.wrong += self._watch.look_at(None)
            return self._verdict(closing)
        finally:
            self._watch.look_at(None)
            self.faults.get_well()
            self.sink.stop(0)
            self.proxy.close()
            self.clean_up()

    def _do(self, *rules: tuple[float, Rule]) -> None:
        """Follow one of the rules, and see whether the numbers hold."""
        (rule,) = self.rng.choices([rule for _, rule in rules], [weight for weight, _ in rules])
        self.note(f"{rule.__name__}: {rule()}")
        balance = self.sink.balance()
        self.wrong.hold(balance.balanced, f"after {self.history[-1]}: the balance does not hold: {balance}")

    def note(self, text: str) -> None:
        """Remember what was done."""
        self.history.append(text)

    def end(self) -> bool | None:
        """Stop the sink; returns whether a closing record must be there."""
        if self.rng.random() < 0.7:
            self.faults.get_well()
            self.emit()  # after whatever has happened, it goes on
            stats = self.sink.stop(self.patience)
            self.wrong.hold("shutdown" not in stats.dropped, f"there was time, and: {stats.dropped}")
            self.note("stop, with time")
            return self.closes(stats)
        timeout = self.rng.choice([0.0, 0.05, 0.2])
        stats = self.sink.stop(timeout)
        self.note(f"stop({timeout}): {sum(stats.dropped.values())} dropped")
        self.faults.get_well()
        return None

    def closes(self, stats: SinkStats) -> bool | None:
        """Whether the closing record of a sink that ended while all was well must be there.

        It is sent once, over a connection that is open: one that nothing was delivered over lately may not be.
        """
        return True if stats.accepted and stats.circuit == "closed" and not self.options["delivery_deadline"] else None

    def _verdict(self, closing: bool | None) -> Verdict:
        self.wrong.hold(is_over(self.sink, PATIENCE), "the worker does not end")
        place = self.look()
        self.wrong += judge(self.witness, self.sink.stats(), place, closing, may_miss=self.may_miss(self.sink.producer))
        for child in self.children:
            self.wrong += child.judge(place, self.may_miss(child.producer))
        known = {self.sink.producer, *(child.producer for child in self.children)}
        strangers = {found.producer for found in place.stored} - known
        self.wrong.hold(not strangers, f"events of producers that nobody knows: {strangers}")
        return self.wrong

    def hear(self, stats: SinkStats, whole: bool = True) -> None:
        """Hear what a sink says in the end, or, when it is not the whole of it, what it said last."""

    def may_miss(self, producer: str) -> int | None:
        """See `oracle.judge`."""
        return 0

    def _told(self, report: DeliveryReport) -> None:
        self.witness.reports.append(report)

    # The rules

    def event(self) -> StreamllEvent:
        """An event; few are so long that they become dead letters at once."""
        self._emitted += 1
        size = self.rng.choices([0, 300, 2000, 10_000], [20, 5, 1, 0.3])[0]
        event = StreamllEvent(event_type="test", priority=self.rng.choice(["", *PRIORITIES]))
        event.data = {"n": self._emitted, "fill": "x" * size}
        return event

    def emit(self) -> str:
        """Some events, one after the other."""
        count = self.rng.choice([1, 5, 30, 150])
        accepted = sum(self.witness.offer(self.sink, self.event()) for _ in range(count))
        return f"{accepted} of {count} accepted"

    def many_threads(self) -> str:
        """Some threads at the same time."""
        plans = [[self.event() for _ in range(self.rng.randint(1, 40))] for _ in range(3)]
        witnesses = [Witness() for _ in plans]

        def work(witness: Witness, events: list[StreamllEvent]) -> None:
            for event in events:
                witness.offer(self.sink, event)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(witnesses, plans, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        for witness in witnesses:
            self.witness.add(witness)
        return f"{sum(len(witness.accepted) for witness in witnesses)} accepted"

    def flush(self) -> str:
        """Wait for what was accepted: for long when all is well, else for a moment."""
        timeout = self.patience if self.faults.well else self.rng.choice([0.0, 0.05, 0.2])
        before = self.sink.balance()
        flushed = self.sink.flush(timeout)
        after = self.sink.balance()
        settled = after.delivered + after.dead_lettered + sum(after.dropped.values())
        self.wrong.hold(
            not flushed or settled >= before.accepted, f"flush said that {before.accepted} are settled: {settled} are"
        )
        self.wrong.hold(flushed or not self.faults.well, f"all is well, and flush({timeout}) failed")
        return f"{timeout} s: {flushed}"

    def heal(self) -> str:
        """The end of all faults."""
        self.faults.get_well()
        return "all is well"

    def _meanwhile(self) -> str:
        """What the application does while the server is away."""
        rules = self.rng.choices([self.emit, self.flush, self.many_threads], k=self.rng.randint(0, 2))
        return ", ".join(rule() for rule in (self.emit, *rules))

    # Children

    def fork(self) -> str:
        """A child emits and ends: it stops its sink, or just ends, or jumps through time before."""
        way = self.rng.choice(["stop", "stop", "clock", *(["leave", "leave"] if self.faults.well else [])])
        events = [self.event() for _ in range(self.rng.choice([1, 5, 40]))]
        receiving, sending = FORK.Pipe(duplex=False)
        timeout = self.patience if self.faults.well else 0.3
        with quiet_fork():
            process = FORK.Process(target=self._in_child, args=(sending, events, way, timeout))
            process.start()
        sending.close()
        try:
            told = receiving.recv() if receiving.poll(2 * self.patience) else None
        except EOFError:
            told = None
        receiving.close()
        end(process, 2 * self.patience)
        if told is None or process.exitcode != 0:
            self.wrong.append(f"a child ({way}) ended with {process.exitcode}, and told {told}")
            return "failed"
        witness, producer, stats = told
        self.hear(stats, whole=way != "leave")
        if way == "leave":
            self.children.append(Left(witness, producer, self.options["buffer_size"]))
        else:
            self.children.append(Stopped(witness, producer, stats, self.closes(stats) if self.faults.well else None))
        return f"{way}: {len(witness.accepted)} of {len(events)} accepted"

    def _in_child(self, sending: Any, events: list[StreamllEvent], way: str, timeout: float) -> None:
        self.witness = Witness()  # which hears the reports of the sink in this process
        emit_in_child(self.sink, self.witness, sending, events, way, timeout)


def run(kind: type[RealScenario], seed: int, server: Any, watch: Watch) -> str:
    """Run one scenario; returns one line about it.

    Raises:
        AssertionError: Something is wrong; it says what, and how to see it again.
    """
    began = time.monotonic()
    levels = {logger: logger.level for logger in map(logging.getLogger, ("streamll", "pika"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)  # they say what goes wrong, and here all does
    scenario = kind(seed, server, watch)
    try:
        verdict = scenario.run()
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
    if verdict:
        raise AssertionError(failure(kind.name, seed, verdict, scenario.options, scenario.history, scenario.sink))
    stats = scenario.sink.stats()
    counts = f"{stats.offered} offered, {stats.delivered} delivered, {stats.dead_lettered} dead-lettered"
    counts += f", {sum(stats.dropped.values())} dropped, {sum(stats.refused.values())} refused"
    return f"{counts}, {stats.retries} retries, {len(scenario.children)} children, {time.monotonic() - began:.1f} s"
