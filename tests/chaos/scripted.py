"""A scenario on a scripted transport: a seed decides what is emitted, what a broker in memory answers, and how it ends.

The broker keeps what it takes, so that in the end the oracle can compare what the sink says with what really got there.
Nothing here sleeps: every wait of the sink is set to nothing or next to it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from random import Random
from typing import Any

from streamll.models import PRIORITIES, StreamllEvent
from streamll.options import PipelineOptions, SinkOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import DeliveryReport
from streamll.testing.scripted import ScriptedSink
from tests.chaos.brokers import Broker, ConfirmingBroker, FencedBroker, MuteBroker
from tests.chaos.children import full_disk, left_in
from tests.chaos.oracle import Place, Verdict, Witness, failure, judge
from tests.chaos.watch import Watch
from tests.fixtures.waiting import PATIENCE, wait_until


def draw_options(rng: Random) -> dict[str, Any]:
    """Options of a sink that waits for nothing, and decides as the seed says."""
    often = rng.random() < 0.6
    return {
        "buffer_size": rng.choice([2, 3, 5, 10, 50, 1000]),
        "buffer_bytes": rng.choice([64 << 20, 64 << 20, 64 << 20, 4096, 20_000]),
        "buffer_overflow_strategy": rng.choice(["drop_oldest", "drop_oldest", "drop_newest", "block", "raise_error"]),
        "block_timeout": rng.choice([0.0, 0.0005]),
        "batch_size": rng.choice([1, 2, 5, 20, 100]),
        "batch_bytes": rng.choice([1 << 20, 1 << 20, 1000, 1]),
        "batch_growth": rng.choice([1, 3, 10]),
        "flush_interval": rng.choice([0.0, 0.0005, 3600.0]),
        "delivery_deadline": rng.choice([None, None, None, None, 1e-9, 0.001, 0.005, 3600.0]),
        "retry_base": 0.0,
        "retry_bound": 0.0,
        "circuit_breaker": rng.random() < 0.85,
        "failure_threshold": rng.randint(1, 4),
        "recovery_timeout": 1e-4 if often else 3600.0,
        "recovery_bound": 2e-4 if often else 3600.0,
        "connect_timeout": 0.001,
        "send_timeout": rng.choice([0.001, 0.003]),
        "dead_letter": rng.random() < 0.8,
        "encoding": rng.choice(["msgpack", "msgpack", "json"]),
    }


class Scenario:
    """One scenario. `run` returns what is wrong.

    Attributes:
        history: What was done, for people.
    """

    def __init__(self, seed: int, watch: Watch | None = None) -> None:
        self.seed = seed
        self.history: list[str] = []
        self.witness = Witness()
        self._watch = watch
        self._rng = rng = Random(seed)
        self.options = draw_options(rng)
        checked = SinkOptions.from_mapping(self.options)
        limit = max(1, min(checked.batch_size * checked.batch_growth, checked.buffer_size // 2))
        kind = rng.choice([FencedBroker, FencedBroker, ConfirmingBroker, MuteBroker])
        # What the broker draws happens on the worker's thread: with dice of its own the plan is the same every time.
        self.broker: Broker = kind(Random(rng.random()), limit)
        self.spool = ""
        if rng.random() < 0.3:
            self.spool = tempfile.mkdtemp(prefix="streamll-chaos-")
            self.options |= {"spool_dir": self.spool, "durability": rng.choice(["memory", "process", "disk"])}
            self.options |= {"spool_bytes": rng.choice([128 << 10, 8 << 20]), "segment_bytes": 64 << 10}
            if self.options["durability"] == "memory" or rng.random() < 0.3:
                self.options["buffer_overflow_strategy"] = "spill"
        self.sink = ScriptedSink(
            lambda producer: self.broker.transport(),
            name=f"chaos-{seed}",
            on_delivery=self._told if rng.random() < 0.9 else self._told_and_raises,
            event_filter=lambda event: event.event_type != "unwanted",
            pipeline=Pipeline(PipelineOptions(max_event_bytes=2048, oversize="dead_letter")),
            **self.options,
        )
        self.broker.sink = self.sink
        self._emitted = 0
        self._wrong = Verdict()

    def _told(self, report: DeliveryReport) -> None:
        self.witness.reports.append(report)
        balance = self.sink.balance()
        if not balance.balanced:
            self._wrong.append(f"the balance does not hold in a callback: {balance}")

    def _told_and_raises(self, report: DeliveryReport) -> None:
        self._told(report)
        raise KeyError(report.seq)

    def run(self) -> Verdict:
        """Do all of it."""
        if self._watch is not None:
            self._watch.look_at(self.sink)
        steps = [self.emit, self.emit, self.burst, self.burst, self.many_threads, self.flush, self.release, self.pester]
        if self.spool:
            steps.append(self.fill_disk)
        try:
            for _ in range(self._rng.randint(3, 20)):
                self._rng.choice(steps)()
                self._check_balance()
            calm = self.end()
            if self._watch is not None:
                self._wrong += self._watch.look_at(None)
            return self.verdict(calm, self.adopt() if self.spool else 0)
        finally:
            if self.spool:
                shutil.rmtree(self.spool)

    def event(self, rng: Random) -> StreamllEvent:
        """An event as the dice make it."""
        self._emitted += 1
        operation = rng.choices(["", "bad", "hopeless"], [20, 1, 0.5])[0]
        size = rng.choices([0, 200, 1500, 3000, 40_000], [10, 3, 1, 0.3, 0.03])[0]
        kind = "unwanted" if rng.random() < 0.02 else "test"
        event = StreamllEvent(event_type=kind, operation=operation, priority=rng.choice(["", *PRIORITIES]))
        event.data = {"n": self._emitted, "fill": "x" * size}
        return event

    def note(self, what: str) -> None:
        """Remember what was done."""
        self.history.append(what)

    def emit(self) -> None:
        """One event."""
        accepted = self.witness.offer(self.sink, self.event(self._rng))
        self.note(f"emit: {accepted}")

    def burst(self) -> None:
        """Many, one after the other."""
        count = self._rng.choice([5, 15, 60])
        accepted = sum(self.witness.offer(self.sink, self.event(self._rng)) for _ in range(count))
        self.note(f"burst of {count}: {accepted} accepted")

    def many_threads(self) -> None:
        """Some threads at the same time."""
        plans = [
            [self.event(self._rng) for _ in range(self._rng.randint(1, 15))] for _ in range(self._rng.randint(2, 3))
        ]
        witnesses = [Witness() for _ in plans]

        def work(witness: Witness, events: list[StreamllEvent]) -> None:
            for event in events:
                witness.offer(self.sink, event)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(witnesses, plans, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        for one in witnesses:
            self.witness.add(one)
        self.note(f"{len(threads)} threads: {sum(len(one.accepted) for one in witnesses)} accepted")

    def flush(self) -> None:
        """Wait a little for what was accepted."""
        timeout = self._rng.choice([0.0, 0.0, 0.002, 0.005])
        before = self.sink.stats()
        flushed = self.sink.flush(timeout)
        after = self.sink.stats()
        if flushed:
            settled = after.delivered + after.dead_lettered + sum(after.dropped.values())
            self._wrong.hold(
                settled + after.spooled >= before.accepted,
                f"flush said that all {before.accepted} were settled, and {settled} are",
            )
        self.note(f"flush({timeout}): {flushed}")

    def fill_disk(self) -> None:
        """A burst while the disk takes nothing."""
        with full_disk():
            self.burst()
        self.note("... while the disk was full")

    def adopt(self) -> int:
        """The next process delivers what is in the spool; returns how many events it has dropped."""
        spooled = self.sink.stats().spooled
        successor = ScriptedSink(
            lambda producer: self.broker.transport(),
            name=f"successor-{self.seed}",
            **self.options | {"delivery_deadline": None, "durability": "process"},
        )
        successor.start()
        gone = wait_until(lambda: not left_in(self.spool), PATIENCE, 0.0005)
        stats = successor.stop(PATIENCE)
        self._wrong.hold(gone, f"what is in the spool stays there: {stats}")
        adopted = sum(one.accepted for one in stats.adopted)
        self._wrong.hold(adopted == spooled, f"{spooled} were spooled, {adopted} adopted")
        self._wrong.hold(all(one.balanced for one in stats.adopted), f"an adoption does not balance: {stats.adopted}")
        return sum(sum(one.dropped.values()) for one in stats.adopted)

    def release(self) -> None:
        """Let what hangs go on."""
        for hang in self.broker.hangs:
            hang.release()
        self.note("released what hangs")

    def pester(self) -> None:
        """Calls that must not disturb: a start, a probe, something that is no event."""
        nothing: Any = "not an event"
        self.witness.offered += 1
        self.witness.refused += 1
        self._wrong.hold(self.sink.handle_event(nothing) is False, "what is no event was accepted")
        self.sink.start()
        self.sink.request_flush()
        self.note("pestered")

    def end(self) -> bool:
        """Stop it in one of several ways; returns whether it had all the time it needed."""
        way = self._rng.choice(["calm", "calm", "calm", "now", "now", "soon", "twice"])
        if self.broker.stubborn:
            self.hang_now()
            way = "now"
        calm = way == "calm"
        if calm:
            self.broker.calm()
        timeout = PATIENCE if calm else 0.002 if way == "soon" else 0.0
        if way == "twice":
            other = threading.Thread(target=self.sink.stop, args=(0.001,))
            other.start()
            self.sink.stop(0.0)
            other.join(PATIENCE)
        stats = self.sink.stop(timeout)
        self._wrong.hold(stats.phase == "stopped", f"after stop it is {stats.phase}")
        self._wrong.hold(not self.witness.offer(self.sink, StreamllEvent(event_type="late")), "accepted after stop")
        self.note(f"stop ({way})")
        self.broker.calm()
        name = f"streamll-chaos-{self.seed}"
        over = wait_until(lambda: name not in {thread.name for thread in threading.enumerate()}, interval=0.0002)
        self._wrong.hold(over, "the worker does not end")
        return calm

    def hang_now(self) -> None:
        """Have a batch under way whose answer does not come in time."""
        hanging = len(self.broker.hangs)
        self.broker.faults = 0
        for hang in self.broker.hangs:
            hang.release()
        self.broker.hang_next = True
        self.emit()
        self.sink.request_flush()
        wait_until(lambda: len(self.broker.hangs) > hanging or self.sink.event_queue.empty(), 0.05, 0.0002)
        self.note(f"a batch hangs: {len(self.broker.hangs) > hanging}")

    def verdict(self, calm: bool, may_miss: int) -> Verdict:
        """What is wrong in the end, where adopters have dropped so many events."""
        broker = self.broker
        stats = self.sink.stats()
        place = Place(broker.stored, broker.dead, broker.once, broker.ordered, broker.fenced)
        if calm:
            self._wrong.hold("shutdown" not in stats.dropped, f"there was time, and: {stats.dropped}")
        early = [
            report.seq
            for report in self.witness.reports
            if report.reason == "expired" and report.latency < (self.options["delivery_deadline"] or 0.0)
        ]
        self._wrong.hold(not early, f"expired too early: {early}")
        verdict = judge(self.witness, stats, place, defects=broker.errors, may_miss=may_miss)
        return Verdict([*self._wrong, *broker.wrong, *verdict])

    def _check_balance(self) -> None:
        balance = self.sink.balance()
        self._wrong.hold(balance.balanced, f"after {self.history[-1]}: the balance does not hold: {balance}")


def run(seed: int, watch: Watch | None = None) -> str:
    """Run one scenario; returns one line about it.

    Raises:
        AssertionError: Something is wrong; it says what, and how to see it again.
    """
    scenario = Scenario(seed, watch)
    logging.getLogger("streamll").setLevel(logging.CRITICAL)  # a sink says what goes wrong, and here all does
    try:
        verdict = scenario.run()
    finally:
        logging.getLogger("streamll").setLevel(logging.NOTSET)
    if verdict:
        raise AssertionError(failure("scripted", seed, verdict, scenario.options, scenario.history, scenario.sink))
    return str(scenario.sink.stats())
