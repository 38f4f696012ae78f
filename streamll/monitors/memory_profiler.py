"""MemoryProfiler: what a program's memory does over time, whether it leaks, and what.

What belongs here: when memory is read, what is kept, and what becomes an event. What does not: the readings
(memory/readings.py), the verdict (memory/leak_verdict.py), and what is looked at on request only (memory/census.py,
memory/allocation_window.py).

The agent's thread takes the readings. No lock is held that a thread of the program could wait for: a finaliser that
runs in the middle of a reading may want one that this thread has.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from math import inf, nan
from time import monotonic, sleep, thread_time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from streamll.monitors import outlet
from streamll.monitors.agent import agent
from streamll.monitors.budget import MEMORY, budget
from streamll.monitors.config import read_options
from streamll.monitors.memory.alerts import Limit, Rate
from streamll.monitors.memory.allocation_window import LOOK_EVERY, AllocationWindow, Site
from streamll.monitors.memory.census import NS_EACH, Census, TypeCount, take_census
from streamll.monitors.memory.gc_watch import GcStats, GcWatch, Pause, cost_ns
from streamll.monitors.memory.leak_verdict import Alarm, Verdict, judge_series
from streamll.monitors.memory.measurements import Measurement, Measurements, word_of
from streamll.monitors.memory.options import MemoryProfilerOptions, MemoryStats
from streamll.monitors.memory.readings import Reader, Reading, allocated_blocks, collections, proportional, read_now
from streamll.monitors.memory.series import BUCKETS, LEVELS, Point, Series
from streamll.monitors.memory.snapshots import MIB, Ring, Snapshot
from streamll.monitors.turn import Turn
from streamll.runtime.fork import tell_after_fork
from streamll.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Self

LABELLED = 256
"""Labelled snapshots that are kept: the newest."""

GROWN = 20
"""Types that a report and an event name."""

LOOKS = 8
"""Times that the readings are judged in `leak_after`."""

SHED = 10
"""While monitoring costs too much, the wanted interval times this."""


class _Turns:
    """The profiler's turns on the agent's thread, which do not keep it alive."""

    tool = MEMORY

    def __init__(self, profiler: MemoryProfiler) -> None:
        self._profiler = ref(profiler)

    def tick(self, now: float) -> float:
        profiler = self._profiler()
        if profiler is None:
            agent.remove(self)
            return inf
        return profiler._look(now)


class MemoryProfiler:
    """Reads memory now and then, keeps what it read, judges whether it leaks, and makes events of what matters.

    Events: "memory" (where it stands), "memory_alert" (a threshold crossed, growth too fast, a long pause of the garbage
    collector) and "leak" (steady growth: of what kind, how sure, which types of objects came to be more). Nothing is ever
    raised into the program but wrong options. It may be used from any thread; a forked child begins anew.

    Args:
        config: Options by name, or `MemoryProfilerOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: An option is unknown or its value is not allowed.

    Example:
        with MemoryProfiler(threshold_mb=512) as memory:
            serve()
        print(memory.verdict.explanation, memory.get_memory_usage()["peak_mb"])
    """

    def __init__(self, config: Mapping[str, Any] | MemoryProfilerOptions | None = None, **options: Any) -> None:
        self.options = read_options(MemoryProfilerOptions, config, options)
        self._gc = GcWatch()
        self._turns: _Turns | None = None
        self._window: AllocationWindow | None = None
        self._noting = 0.0
        self.reset()
        tell_after_fork(self)

    # --- Switching on and off -----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether memory is read by the clock."""
        return self._turns is not None

    def start(self) -> Self:
        """Read memory from now on: at once, and then every `interval`."""
        if self._turns is None:
            self._turns = turns = _Turns(self)
            self._noting = cost_ns()
            self._gc.start()
            self._begin(monotonic())
            agent.add(turns, self._look(monotonic()))
            if self._turns is not turns:  # another thread has stopped it meanwhile
                agent.remove(turns)
        return self

    def stop(self) -> None:
        """Read no more, after one last time; what was read stays."""
        turns, self._turns = self._turns, None
        if turns is None:
            return
        agent.remove(turns)
        turn = self._turn
        if turn.take(1.0):  # else its last turn goes on and on, and is left alone
            try:
                self._read(monotonic())
                self._verdict = self.verdict
                if self._window is not None:
                    self._say_leak([])
                self._say_where_it_stands()
            finally:
                turn.give()
        self._end_window()
        self._gc.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget all that was read and counted; it goes on when it was running."""
        self._end_window()
        options = self.options
        self._turn = Turn()
        self._reader = Reader()
        self._gc.clear()
        self._ring = Ring(options.retain)
        self._labelled: deque[Snapshot] = deque(maxlen=LABELLED)
        self._latest = Reading(0, 0.0)
        self._heap: tuple[int | None, int | None] = (None, None)
        self._highest: int | None = None
        self._measurements = Measurements()
        self._counts, self._events = Tally(), Tally()
        self._census: Census | None = None
        self._grown: list[TypeCount] = []
        self._sites: list[Site] = []
        self._leak: dict[str, Any] = {}
        self._begin(monotonic())

    def after_fork_in_child(self) -> None:
        """Begin anew in a child, whose memory is its own from now on."""
        self.reset()

    def _end_window(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            window.cancel()

    def _begin(self, now: float) -> None:
        """What came before is not compared with what comes now."""
        options = self.options
        self._judged_from = now + options.warmup
        self._series = Series()
        self._verdict = Verdict()
        self._alarm = Alarm(options.leak_after / 2, options.leak_confidence)
        self._limit, self._speed = Limit(options.threshold_mb), Limit(options.growth_mb_per_min)
        self._rate = Rate(options.growth_window)
        self._say_at = now + options.event_interval if options.event_interval else inf
        self._judge_at = self._judged_from + options.leak_after / LOOKS

    # --- By the clock -------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> float:
        """Take a reading, and do what is due; returns when the next is due."""
        allowance = budget.allowance
        due = now + self.options.interval * (1 if allowance.memory else SHED)
        turn = self._turn  # a fork puts another in its place
        if not turn.take():
            return due
        try:
            reading = self._read(now)
            self._alert(reading)
            if now >= self._judge_at:
                self._judge_at = now + self.options.leak_after / LOOKS
                self._judge(now)
            if self._window is not None:
                sites = self._window.poll(now)
                if sites is None:
                    due = min(due, now + LOOK_EVERY)
                else:
                    self._window = None
                    self._say_leak(sites)
            if now >= self._say_at:
                self._say_at = now + self.options.event_interval
                self._say_where_it_stands()
        finally:
            turn.give()
        return due

    def _read(self, now: float) -> Reading:
        before, bound = self._gc.stats().collections, self.options.gc_pause
        pauses = self._gc.take(int(bound * 1e9) if bound is not None else sys.maxsize)
        collected = self._gc.stats()
        budget.costs.charge(MEMORY, int((collected.collections - before) * self._noting))
        self._latest = reading = self._reader.read(now)
        self._counts.add("readings")
        self._ring.add(
            *(reading.timestamp, reading.rss, reading.footprint, reading.peak, reading.swap),
            *(reading.in_use, reading.retained, reading.blocks, collected.collections, collected.total_ms),
        )
        if reading.in_use is not None:
            self._heap = reading.in_use, reading.retained
        if reading.rss is not None:
            self._highest = max(self._highest or 0, reading.rss)
        if now >= self._judged_from:
            known = (reading.footprint, reading.in_use, reading.retained, reading.blocks)
            self._series.add(Point(now, *[nan if value is None else float(value) for value in known]))
        if pauses and bound is not None:
            self._alert_of_pauses(pauses, bound)
        return reading

    def _judge(self, now: float) -> None:
        """Say what the readings come to; look closer while they grow."""
        self._counts.add("looks")
        options = self.options
        self._verdict = verdict = self.verdict
        if not verdict.growing:
            self._census = None
        elif self._census is None and options.census:
            self._census = self._affordable_census()
        if not self._alarm.look(verdict, now):
            return
        self._leak = verdict.to_dict()
        if self._census is not None:
            after = self._affordable_census()
            if after is not None:
                self._grown = after.growth(self._census)[:GROWN]
                self._leak["objects"] = [each._asdict() for each in self._grown]
        if options.trace_allocations and self._window is None:
            window = AllocationWindow(options.trace_allocations)
            if budget.allowance.memory and window.begin(now):
                self._counts.add("windows")
                self._window = window
                return
            self._counts.add("windows_refused")
        self._say_leak([])

    def _affordable_census(self) -> Census | None:
        blocks = self._latest.blocks or allocated_blocks() or 0
        if not budget.allowance.memory or blocks * NS_EACH / 1e9 > self.options.max_stall:
            self._counts.add("censuses_refused")
            return None
        self._counts.add("censuses")
        return take_census()

    # --- Events -------------------------------------------------------------------------------------------------------

    def _send(self, event_type: str, data: dict[str, Any], **fields: Any) -> None:
        if outlet.send(event_type, data, operation="streamll.memory", **fields) is not None:
            self._events.add(event_type)

    def _alert(self, reading: Reading) -> None:
        if reading.rss is None:
            return
        rss_mb = reading.rss / MIB
        if self._limit.crossed(rss_mb):
            data = {"alert": "threshold", "rss_mb": round(rss_mb, 3), "threshold_mb": self._limit.limit}
            self._send("memory_alert", data, level="warning")
        speed = self._rate.add(reading.seconds, rss_mb)
        if speed is not None and self._speed.crossed(speed * 60):
            data = {
                "alert": "growth",
                "rss_mb": round(rss_mb, 3),
                "growth_mb_per_min": round(speed * 60, 3),
                "threshold_mb_per_min": self._speed.limit,
                "seconds": self.options.growth_window,
            }
            self._send("memory_alert", data, level="warning")

    def _alert_of_pauses(self, pauses: list[Pause], bound: float) -> None:
        """One event for the longest of them, so that a program which collects all the time is not one that alerts so."""
        longest = max(pauses, key=lambda pause: pause.duration_ns)
        data = {
            "alert": "gc_pause",
            "duration_ns": longest.duration_ns,
            "generation": longest.generation,
            "collected": longest.collected,
            "uncollectable": longest.uncollectable,
            "pauses": len(pauses),
            "threshold_ms": bound * 1e3,
        }
        self._send("memory_alert", data, level="warning", timestamp=longest.timestamp)

    def _say_leak(self, sites: list[Site]) -> None:
        self._sites = sites
        if sites:
            self._leak["allocations"] = [site._asdict() for site in sites]
        self._send("leak", {**self._leak}, level="warning")

    def _say_where_it_stands(self) -> None:
        reading, collected = self._latest._asdict(), self._gc.stats()
        del reading["timestamp"], reading["seconds"]
        collector = {
            "gc_collections": collected.collections,
            "gc_pause_ms": collected.total_ms,
            "gc_longest_ms": collected.longest_ms,
        }
        known = {name: value for name, value in reading.items() if value is not None}
        self._send("memory", {**known, **collector, "verdict": self._verdict.kind, "growing": self._verdict.growing})

    # --- On request ---------------------------------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict:
        """What the readings so far come to; takes some milliseconds."""
        return judge_series(
            self._series, leak_after=self.options.leak_after, min_growth=self.options.leak_growth_mb * MIB
        )

    @property
    def gc(self) -> GcStats:
        """What the garbage collector took, up to the last reading."""
        return self._gc.stats()

    @property
    def snapshots(self) -> list[Snapshot]:
        """The newest snapshots, from the oldest on: `retain` of those taken by the clock, and those with a label."""
        return sorted([*self._ring.read(), *list(self._labelled)], key=lambda snapshot: snapshot.timestamp)

    def take_snapshot(self, label: str | None = None) -> Snapshot:
        """Take a snapshot now, on this thread, and keep it among `snapshots`; about 40 us."""
        began = thread_time_ns()
        reading, collected = read_now(), self._gc.stats()
        values = reading._asdict()
        del values["seconds"]
        made = Snapshot(
            **values, gc_collections=collected.collections, gc_pause_ms=collected.total_ms, label=word_of(label)
        )
        self._labelled.append(made)
        budget.costs.charge(MEMORY, thread_time_ns() - began)
        return made

    def measure(self, name: str) -> Measurement:
        """Measure what a block of code changes: `with profiler.measure("load"):`; about 40 us.

        What it is in all is in `report()`, by name; each block makes a "memory" event of priority "debug".
        """
        return self._measurements.of(name)

    def census(self) -> Census:
        """Count all objects that the garbage collector tracks, by type, on this thread: 0.3 us for each, of which the
        program has to wait for a third at once."""
        self._counts.add("censuses")
        return take_census()

    def trace_allocations(self, seconds: float = 1.0) -> list[Site]:
        """Find out which lines allocate what stays, with tracemalloc, which makes the program several times slower
        meanwhile; this thread waits. See the option of the same name for what may go wrong.

        Returns:
            Most bytes first; empty when somebody else traces already.
        """
        window = AllocationWindow(seconds)
        if not window.begin(monotonic()):
            self._counts.add("windows_refused")
            return []
        self._counts.add("windows")
        try:
            while True:
                sites = window.poll(monotonic())
                if sites is not None:
                    return sites
                sleep(min(LOOK_EVERY, seconds))
        finally:
            window.cancel()

    def get_memory_usage(self, *, shares: bool = False) -> dict[str, Any]:
        """Return where memory stands, read now.

        Args:
            shares: Ask too what the kernel says of memory that several processes share, which takes 14 ms for each GiB.

        Returns:
            `current_mb` and `peak_mb` (in physical memory, in MiB; None where the platform does not tell), `snapshots`
            (dicts), `rss`, `footprint`, `swap`, `blocks`, and of the last reading by the clock that knew them `in_use` and
            `retained` (see `Reading`), `gc` (a dict for each generation), and `shares` (`pss`, ...), if asked for.
        """
        reading = read_now()
        return {
            **self._sizes(reading),
            "snapshots": [snapshot.to_dict() for snapshot in self.snapshots],
            **{name: getattr(reading, name) for name in ("rss", "footprint", "swap", "blocks")},
            **dict(zip(("in_use", "retained"), self._heap, strict=True)),
            "gc": collections(),
            **({"shares": proportional()} if shares else {}),
        }

    def _sizes(self, reading: Reading) -> dict[str, float | None]:
        peak = max((size for size in (reading.peak, self._highest, reading.rss) if size is not None), default=None)
        return {
            "current_mb": None if reading.rss is None else reading.rss / MIB,
            "peak_mb": None if peak is None else peak / MIB,
        }

    def stats(self) -> MemoryStats:
        """Return what it has done, and left out."""
        return MemoryStats(
            **self._counts.read(),
            **self._measurements.counts(),
            heap_skipped=self._reader.heap.refused,
            blocks_skipped=self._reader.blocks.refused,
            events=self._events.read(),
            collections_missed=self._gc.stats().missed,
        )

    def report(self) -> dict[str, Any]:
        """Return what it saw, in values that JSON has: sizes, the verdict (`verdict`, `confidence`, `explanation`, and all
        of it under `leak`), the garbage collector, what grew, and the floors of memory over the whole time."""
        verdict, collected = self.verdict, asdict(self._gc.stats())
        collected["by_generation"] = {str(name): row for name, row in collected["by_generation"].items()}
        level = next(n for n in range(LEVELS) if self._series.added(n) <= BUCKETS or n == LEVELS - 1)
        history = [
            {name: None if value != value else value for name, value in point._asdict().items()}
            for point in self._series.points(level)
        ]
        return {
            **self._sizes(self._latest),
            "verdict": verdict.kind,
            "confidence": verdict.confidence,
            "explanation": verdict.explanation,
            "leak": verdict.to_dict(),
            "gc": collected,
            "grown": [each._asdict() for each in self._grown],
            "allocations": [site._asdict() for site in self._sites],
            "measured": self._measurements.read(),
            "history": history,
            "stats": asdict(self.stats()),
        }
