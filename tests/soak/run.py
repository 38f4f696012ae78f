"""One soak from its beginning to its end: servers, application, readers, faults, lines, verdict.

What belongs here: the order of things. What does not: any of the things.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from streamll.options import SinkOptions
from tests.chaos.oracle import Verdict
from tests.fixtures.waiting import PATIENCE, wait_until
from tests.soak.brokers import BACKLOG, WHERE, Broker
from tests.soak.buckets import Buckets
from tests.soak.host import APPLICATION, Host
from tests.soak.lines import application_line, clock, read_line, sink_line
from tests.soak.reader import Reader
from tests.soak.report import Order, SinkReport
from tests.soak.schedule import Schedule
from tests.soak.verdict import EARLY, FILLING, LATE, MIDDLE, QUIET, SETTLING, Memory, judge

_LOOK_EVERY = 0.25
_REPORT_EVERY = 0.25
_WARM_UP = (2.0, 60.0)
_BATCH_COPIES = 2
"""How often a batch is in memory beside its events: packed, and once more in what the client library has yet to send."""

SINK_OPTIONS: dict[str, Any] = {
    # A fault is to be noticed, and its end too, within a second or so; all else is as users have it.
    "connect_timeout": 2.0,
    "send_timeout": 1.0,
    "retry_bound": 0.5,
    "recovery_timeout": 0.3,
    "recovery_bound": 1.0,
    # So that dead letters come about.
    "max_event_bytes": 4096,
    "oversize": "dead_letter",
}


@dataclass(frozen=True)
class Plan:
    """What a soak is to be.

    Attributes:
        on: The brokers.
        seconds: How long the load lasts, the warm-up included.
        rate: Events a second that the application emits.
        seed: Decides the faults.
        growth: The share by which the application's memory may grow after the warm-up.
        options: Further options of the sinks, as the query of a URL: "framing=batch&encoding=json".
        line_every: Seconds between two lines.
    """

    on: Sequence[str]
    seconds: float
    rate: float
    seed: int
    growth: float = 0.10
    options: str = ""
    line_every: float = 5.0

    @property
    def longest(self) -> float:
        """Seconds that something is away, at most."""
        return min(4.0, self.seconds / 10)

    @property
    def warm_up(self) -> float:
        """Seconds of load that do not count for the memory, at least."""
        least, most = _WARM_UP
        return min(max(least, self.seconds / 10), most)

    @property
    def buffer_size(self) -> int:
        """A buffer that the longer outages overflow."""
        return max(100, min(10_000, int(self.rate * self.longest * 0.75)))


class Soak:
    """One run.

    Args:
        plan: What it is to be.
        say: Takes each line.
        application: The command that is run instead of the application.
        reader: What reads each broker.
    """

    def __init__(
        self,
        plan: Plan,
        say: Callable[[str], None],
        application: Sequence[str] = APPLICATION,
        reader: Callable[[Broker], Reader] = Reader,
    ) -> None:
        self.stopped = threading.Event()
        """Set from anywhere, a signal handler too, it ends the load."""
        self._plan = plan
        self._say = say
        self._application = application
        self._make_reader = reader
        self._memory = Memory(plan.growth, reserve=len(plan.on) * _BATCH_COPIES * SinkOptions().batch_bytes)
        self._verdict = Verdict()
        self._emit = Buckets()
        self._arrival = {name: Buckets() for name in plan.on}
        self._began = self._line_at = 0.0
        self._phase = QUIET
        self._brokers: dict[str, Broker] = {}
        self._readers: dict[str, Reader] = {}
        self._schedules: dict[str, Schedule] = {}
        self._host: Host

    def run(self) -> Verdict:
        """Run it; returns what is wrong.

        Raises:
            ServerUnavailable: There is no such server on this machine, or it did not come up again.
        """
        plan = self._plan
        with contextlib.ExitStack() as things:
            for name in plan.on:
                self._brokers[name] = things.enter_context(contextlib.closing(WHERE[name]()))
                self._readers[name] = self._make_reader(self._brokers[name])
                self._readers[name].start()
                things.callback(self._readers[name].end)
            self._host = things.enter_context(contextlib.closing(Host(self._order(), self._application)))
            self._began = self._line_at = time.monotonic()
            if self._warm_up():
                self._hurt(things)
            elapsed = time.monotonic() - self._began
            self._finish()
            self._summary(elapsed)
        return self._verdict

    def _order(self) -> Order:
        plan = self._plan
        options = SINK_OPTIONS | {"buffer_size": plan.buffer_size}
        urls = [broker.sink_url(plan.options) for broker in self._brokers.values()]
        return Order(urls, options, plan.rate, _REPORT_EVERY, PATIENCE)

    def _sink(self, name: str) -> SinkReport:
        return self._host.latest.sinks.get(name, SinkReport())

    # The load

    def _warm_up(self) -> bool:
        """Load without faults, but that every buffer is filled once; returns whether it went well."""
        plan, brokers = self._plan, self._brokers
        full = 0.9 * plan.buffer_size
        half = self._began + plan.warm_up / 2
        if not self._watch(lambda: time.monotonic() > half and all(self._sink(name).delivered for name in brokers)):
            return False
        self._phase = FILLING
        for broker in brokers.values():
            broker.proxy.stall()
        filled = self._watch(lambda: all(self._sink(name).held > full for name in brokers))
        for broker in brokers.values():
            broker.proxy.heal()
        rest = time.monotonic() + plan.warm_up / 2
        return filled and self._watch(
            lambda: time.monotonic() > rest and all(self._sink(name).held < full / 2 for name in brokers)
        )

    def _hurt(self, things: contextlib.ExitStack) -> None:
        """Load with faults, until the time is over or something is wrong."""
        plan = self._plan
        for name, broker in self._brokers.items():
            schedule = Schedule(broker, self._readers[name], plan.seed, plan.longest, partial(self._sink, name))
            self._schedules[name] = schedule
            things.callback(schedule.stop)
            schedule.start()
        left = self._began + plan.seconds - time.monotonic()
        ends = [time.monotonic() + left * quarter / 4 for quarter in (1, 2, 3, 4)]
        for self._phase, end in zip((SETTLING, EARLY, MIDDLE, LATE), ends, strict=True):
            if not self._watch(partial(_is_over, end)):
                return

    def _watch(self, done: Callable[[], bool]) -> bool:
        """Look at everything until that is so; returns False when it is to end before, for whatever reason."""
        patience = time.monotonic() + self._plan.warm_up + 2 * PATIENCE
        while not self.stopped.wait(_LOOK_EVERY):
            self._look()
            late = self._phase in (QUIET, FILLING) and time.monotonic() > patience
            self._verdict.hold(not late, "the warm-up does not end: nothing is delivered, or no buffer gets full")
            if self._is_broken():
                return False
            if done():
                return True
        return False

    def _look(self) -> None:
        self._memory.see(self._host.rss(), self._phase)
        self._memory.held = self._host.held
        for name, reader in self._readers.items():
            sink = self._sink(name)
            reader.expect(sink.delivered > 0, sink.dead_lettered > 0)
        if time.monotonic() - self._line_at >= self._plan.line_every:
            self._line_at = time.monotonic()
            self._print_lines()

    def _is_broken(self) -> bool:
        """Whether something is wrong that makes going on pointless; the summary says what."""
        behind = any(self._sink(name).delivered - reader.events > BACKLOG for name, reader in self._readers.items())
        self._verdict.hold(not behind, f"a reader is more than {BACKLOG:,} events behind")
        failed = any(reader.wrong for reader in self._readers.values())
        failed = failed or any(schedule.error or schedule.wrong for schedule in self._schedules.values())
        return bool(self._verdict) or failed or not self._host.is_well or not self._memory.within

    def _print_lines(self) -> None:
        emit = Buckets()
        while self._host.emit:
            emit.join(self._host.emit.popleft())
        self._emit.join(emit.counts)
        self._say(application_line(time.monotonic() - self._began, emit, self._memory))
        for name, reader in self._readers.items():
            taken, reader.arrivals = reader.arrivals, []
            arrival = Buckets()
            arrival.add(taken)
            self._arrival[name].join(arrival.counts)
            schedule = self._schedules.get(name)
            faults = [schedule.said.popleft() for _ in range(len(schedule.said))] if schedule else []
            self._say(sink_line(name, self._sink(name), arrival, faults))

    # The end

    def _finish(self) -> None:
        """Make all well, have everything delivered and read, and judge."""
        for schedule in self._schedules.values():
            schedule.stop()
            if schedule.error is not None:
                raise schedule.error
            self._verdict += [f"{schedule.name}: {text}" for text in schedule.wrong]
        self._host.stop(3 * PATIENCE)
        self._print_lines()
        self._verdict += self._host.wrong
        for name, reader in self._readers.items():
            sink = self._sink(name)
            reader.expect(sink.delivered > 0, sink.dead_lettered > 0)
            if self._host.latest.last:
                wait_until(partial(reader.has_all, sink), PATIENCE, 0.05)
            reader.end()
            self._verdict += [f"{name}: {text}" for text in reader.wrong]
            self._verdict += judge(name, self._host.latest.emitted, sink, reader.account())
        self._verdict += self._memory.judge()

    def _summary(self, elapsed: float) -> None:
        early = ", ended early" if self.stopped.is_set() else ""
        faults = ", ".join(f"{schedule.count} on {name}" for name, schedule in self._schedules.items()) or "none"
        self._say(f"\nthe whole of it: {clock(elapsed)} of load{early}; faults: {faults}")
        self._say(application_line(elapsed, self._emit, self._memory))
        for name, reader in self._readers.items():
            self._say(sink_line(name, self._sink(name), self._arrival[name], []))
            self._say(read_line(reader.audit.report().total))
        self._say("\n".join(["WRONG:", *self._verdict[:20]]) if self._verdict else "all is well")


def _is_over(end: float) -> bool:
    """Whether a moment of the monotonic clock is over."""
    return time.monotonic() > end
