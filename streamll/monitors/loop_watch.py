"""Watching asyncio's event loops: how late they are, and which frame it is that blocks one while it does.

What belongs here: the heartbeat that each loop is given, and the looking on from the agent's thread. What does not: the
decision what is late (loops/pulse.py), and the reading of stacks (loops/stack.py).

A loop pays one callback each `interval`, however many tasks it has. It is held weakly, and let go when it is closed or
collected. asyncio is not imported: a program without it has no loops.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from math import inf
from time import monotonic, thread_time_ns, time_ns
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from streamll.context import SCOPE, current
from streamll.errors import ConfigurationError
from streamll.monitors.agent import agent
from streamll.monitors.budget import LOOP, budget
from streamll.monitors.config import read_options
from streamll.monitors.hooks import Tool
from streamll.monitors.loops.births import BIRTHS
from streamll.monitors.loops.pulse import Blocked, Notes, Pulse
from streamll.monitors.loops.stack import see
from streamll.monitors.outlet import send
from streamll.monitors.rate import RateBound
from streamll.monitors.uncaught import running_loop
from streamll.options import OptionSet, option
from streamll.runtime.fork import tell_after_fork
from streamll.sketch import QuantileSketch

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

MAX_LOOPS = 256
"""Loops that one tool watches at a time."""

MAX_BLOCKERS = 256
"""Places in the program that are counted as having blocked a loop."""

_OTHER_CLOCK = 1.0
"""Seconds by which a loop's own clock may differ from the monotonic one: beats by any other would say nothing, and would be
time that passes in a program that sets the clock itself."""

_MEASURED = 64
"""The cost of one beat of so many is measured."""

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class LoopOptions(OptionSet):
    """What `LoopWatch` can be told."""

    owner: ClassVar[str] = "loop watch "

    threshold: float = option(
        0.1, "A loop that is kept from its heartbeat for so long is blocked.", at_least=0.005, at_most=3600, unit="s"
    )
    interval: float = option(
        0.05, "How often a loop beats, and a late one is looked at.", at_least=0.001, at_most=3600, unit="s"
    )
    ongoing_after: float = option(5.0, "A block that lasts longer is told of while it does, once.", above=0, unit="s")
    per_minute: int = option(120, "Blocks that become events in a minute, at most.", at_least=1, at_most=1_000_000)
    new_loops: bool = option(
        False, "Watch every loop of asyncio's own kinds, or of uvloop's, that is made from now on."
    )

    def check(self) -> None:
        """Refuse an interval in which a block would go unseen."""
        if self.interval > self.threshold:
            raise ConfigurationError(
                f"loop watch option interval={self.interval!r}: must be at most threshold={self.threshold!r}"
            )


@dataclass(frozen=True)
class LoopStats:
    """What was seen of the loops.

    Attributes:
        loops: So many are watched now.
        beats: Heartbeats so far.
        blocked: How often a loop was blocked.
        blocked_seconds: For how long, all together.
        longest: The longest of them, in seconds.
        unseen: Blocks of which no frame was seen: no other thread ran meanwhile either, as while one of them holds the
            interpreter's lock in C code, or while the whole process was stopped.
        rate: Blocks that became no event, being more than `per_minute`.
        refused: Loops that were not watched, being more than fit, or going by a clock of their own, as in tests.
    """

    loops: int = 0
    beats: int = 0
    blocked: int = 0
    blocked_seconds: float = 0.0
    longest: float = 0.0
    unseen: int = 0
    rate: int = 0
    refused: int = 0


class _Watched:
    """One loop, which it does not hold."""

    def __init__(self, loop: AbstractEventLoop, options: LoopOptions) -> None:
        self.loop = ref(loop)
        self.pulse = Pulse(options.interval, options.threshold)
        self.notes: Notes | None = None
        self.beating = False
        self.dropped = False
        self.thread = 0
        self._interval = options.interval
        self._beats = 0
        # Of its own: else that of whoever is here at the first beat would live as long as the loop.
        self.context = Context()

    def beat(self) -> None:
        """Runs in the loop."""
        now = monotonic()
        loop = self.loop()
        if loop is None or self.dropped:
            return
        self._beats += 1
        began = 0 if self._beats % _MEASURED else thread_time_ns()
        self.thread = threading.get_ident()
        self.pulse.beat(now)
        try:
            loop.call_later(self._interval, self.beat, context=self.context)
        except Exception:  # it is being closed
            self.dropped = True
        if began:
            budget.costs.charge(LOOP, (thread_time_ns() - began) * _MEASURED)


class LoopWatch(Tool):
    """Tells when an event loop is blocked, and by what: event_type "loop_blocked".

    Its timestamp is when the loop should have got to its heartbeat. Its data has `duration_ns` (how late it then was; the
    loop was blocked at least so long, and at most `interval` longer), `frame` and `stack` ("file:line in function") of
    what blocked it, `task`, `samples`, and `frames` and `tasks` with a count each where several were seen. Its
    `operation` is what the loop had called, and `module_name` and `method_name` say which of the program's own functions
    that led to. One that lasts longer than `ongoing_after` is told of while it does, with `ongoing`, and again when it
    is over, with the same timestamp. Without any stack: see `LoopStats.unseen`.

    `start` in a running loop watches that one, `watch_loop` any other, of whatever kind; `new_loops` those to come.

    Args:
        config: Options as a mapping or `LoopOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.
    """

    tool = LOOP

    def __init__(self, config: Mapping[str, Any] | LoopOptions | None = None, **options: Any) -> None:
        self.options = read_options(LoopOptions, config, options)
        super().__init__()
        self._watched: list[_Watched] = []
        self._lock = threading.RLock()
        self.reset()
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """The parent's loops are not the child's, and whoever held the lock is not there."""
        self._lock = threading.RLock()
        self._watched = []

    def reset(self) -> None:
        """Forget the numbers; the loops are watched on."""
        with self._lock:
            self._lag = QuantileSketch()
            self._beats_before = 0
            self._blocked = self._unseen = self._rated = self._refused = 0
            self._seconds = self._longest = 0.0
            self._blockers: dict[str, list[float]] = {}
            self._rate = RateBound(self.options.per_minute)
            for watched in self._watched:
                watched.pulse.beats = 0

    def watch_loop(self, loop: AbstractEventLoop | None = None) -> None:
        """Watch a loop, from when it runs until it is closed.

        Args:
            loop: The loop, of asyncio's kinds or another, such as uvloop's; the running one when None.

        Raises:
            ConfigurationError: When none is given and none runs.
        """
        loop = loop or running_loop()
        if loop is None:
            raise ConfigurationError("watch_loop() without a loop works only where one runs")
        self._add(loop)
        agent.wake(self)

    def _born(self, loop: AbstractEventLoop) -> None:
        """A loop was made. It is looked at in a while, and if it is gone by then, it has cost next to nothing."""
        self._add(loop)
        agent.wake(self, monotonic() + self.options.threshold)

    def _add(self, loop: AbstractEventLoop) -> None:
        with self._lock:
            if any(watched.loop() is loop for watched in self._watched):
                return
            if len(self._watched) >= MAX_LOOPS:
                self._watched = [one for one in self._watched if one.beating or one.loop() is not None]
            if len(self._watched) >= MAX_LOOPS:
                self._refused += 1
                return
            self._watched.append(_Watched(loop, self.options))

    def stats(self) -> LoopStats:
        """Return what was seen since the last `reset`."""
        with self._lock:
            return LoopStats(
                loops=len(self._watched),
                beats=self._beats_before + sum(watched.pulse.beats for watched in self._watched),
                blocked=self._blocked,
                blocked_seconds=self._seconds,
                longest=self._longest,
                unseen=self._unseen,
                rate=self._rated,
                refused=self._refused,
            )

    def report(self) -> dict[str, Any]:
        """Return how late loops were, in milliseconds, and what blocked them, those that did so longest first."""
        stats = self.stats()
        with self._lock:
            lag: dict[str, float | None] = {name: self._lag.quantile(q) for name, q in _QUANTILES.items()}
            lag["max"] = self._lag.maximum
            blockers = sorted(self._blockers.items(), key=lambda item: -item[1][1])
        return {
            "loops": stats.loops,
            "beats": stats.beats,
            "blocked": stats.blocked,
            "blocked_seconds": stats.blocked_seconds,
            "lag_ms": {name: value * 1e3 if value is not None else None for name, value in lag.items()},
            "blockers": [{"frame": frame, "count": int(n), "seconds": spent} for frame, (n, spent) in blockers],
        }

    def _begin(self) -> None:
        agent.add(self)
        if self.options.new_loops:
            BIRTHS.add(self._born)
        if running_loop() is not None:
            self.watch_loop()

    def _end(self) -> None:
        BIRTHS.remove(self._born)
        agent.remove(self)
        for watched in list(self._watched):
            self._count(watched)
            with self._lock:
                self._drop(watched)

    def tick(self, now: float) -> float:
        """Look at every loop, on the agent's thread.

        Args:
            now: Seconds, by `time.monotonic`.

        Returns:
            When to look again.
        """
        following = inf
        for watched in list(self._watched):
            loop = watched.loop()
            if loop is None or watched.dropped or loop.is_closed():
                self._count(watched)
                with self._lock:
                    self._drop(watched)
            elif not loop.is_running():
                watched.pulse.pause()
                watched.notes = None
                self._count(watched)
                following = min(following, now + self.options.threshold)
            else:
                if watched.beating:
                    self._count(watched)
                    self._look(watched, loop)
                else:
                    self._ask(watched, loop)
                following = min(following, watched.pulse.look_next(monotonic()))
            del loop
        return following

    def _ask(self, watched: _Watched, loop: AbstractEventLoop) -> None:
        """Ask a loop for its first beat."""
        watched.beating = True
        if _has_own_clock(loop):
            watched.dropped = True
            with self._lock:
                self._refused += 1
            return
        watched.thread = _thread(loop)
        watched.pulse.expect(monotonic())
        try:
            loop.call_soon_threadsafe(watched.beat, context=watched.context)
        except RuntimeError:  # it was closed meanwhile
            watched.dropped = True

    def _look(self, watched: _Watched, loop: AbstractEventLoop) -> None:
        late = watched.pulse.look(monotonic())
        if late is None:
            return
        seen = see(loop, watched.thread)
        if not watched.pulse.is_due(late.due):
            return  # it came while we looked, and what was seen may be what came next
        notes = watched.notes
        if notes is None or notes.due != late.due:
            notes = watched.notes = Notes(late.due)
        if seen is not None:
            notes.add(seen)
        if late.came - late.due >= self.options.ongoing_after and not notes.told:
            notes.told = True
            self._tell(late, notes, ongoing=True)

    def _count(self, watched: _Watched) -> None:
        """Take in what a loop has noted since the last look."""
        pulse = watched.pulse
        with self._lock:
            for _ in range(len(pulse.lags)):
                self._lag.add(pulse.lags.popleft())
        for _ in range(len(pulse.blocks)):
            block = pulse.blocks.popleft()
            notes = watched.notes
            if notes is None or notes.due != block.due:
                notes = Notes(block.due)
            else:
                watched.notes = None
            self._add_up(block, notes)
            self._tell(block, notes)

    def _add_up(self, block: Blocked, notes: Notes) -> None:
        seconds = block.came - block.due
        with self._lock:
            self._blocked += 1
            self._seconds += seconds
            self._longest = max(self._longest, seconds)
            if not notes.frames:
                self._unseen += 1
                return
            frame = max(notes.frames, key=notes.frames.__getitem__)
            if frame in self._blockers or len(self._blockers) < MAX_BLOCKERS:
                counts = self._blockers.setdefault(frame, [0, 0.0])
                counts[0] += 1
                counts[1] += seconds

    def _tell(self, block: Blocked, notes: Notes, ongoing: bool = False) -> None:
        if not self._rate.allows(block.came):
            with self._lock:
                self._rated += 1
            return
        data: dict[str, Any] = {"duration_ns": int((block.came - block.due) * 1e9), "samples": notes.samples}
        if ongoing:
            data["ongoing"] = True
        first = notes.first
        if first is not None:
            data.update(frame=max(notes.frames, key=notes.frames.__getitem__), stack=first.stack)
            if first.task:
                data["task"] = first.task
            if len(notes.frames) > 1:
                data["frames"] = dict(notes.frames)
            if len(notes.tasks) > 1:
                data["tasks"] = dict(notes.tasks)
        token = SCOPE.set(first.scope if first is not None and first.scope is not None else current())
        try:
            send(
                "loop_blocked",
                data,
                timestamp=time_ns() - int((monotonic() - block.due) * 1e9),
                operation=first.operation if first is not None else "",
                level="warning",
                module_name=first.module_name if first is not None else "",
                method_name=first.method_name if first is not None else "",
            )
        finally:
            SCOPE.reset(token)

    def _drop(self, watched: _Watched) -> None:
        watched.dropped = True  # its next beat is its last
        if watched in self._watched:
            self._watched.remove(watched)
            self._beats_before += watched.pulse.beats


def _thread(loop: AbstractEventLoop) -> int:
    """The thread that a loop runs in, before it has beaten; 0 where only its beat can tell."""
    thread = getattr(loop, "_thread_id", None)
    return thread if type(thread) is int else 0


def _has_own_clock(loop: AbstractEventLoop) -> bool:
    """Whether a loop goes by another time than `time.monotonic`, though it is of asyncio's own kind."""
    kind: Any = getattr(sys.modules.get("asyncio.base_events"), "BaseEventLoop", None)
    if kind is None or not isinstance(loop, kind) or getattr(loop.time, "__func__", None) is kind.time:
        return False
    try:
        return bool(abs(loop.time() - monotonic()) > _OTHER_CLOCK)
    except Exception:  # a clock that cannot be read here is none to go by
        return True


def watch_loop(loop: AbstractEventLoop | None = None, **options: Any) -> LoopWatch:
    """Watch an event loop from now on.

    Args:
        loop: The loop; the running one when None.
        **options: As for `LoopWatch`.

    Returns:
        What undoes it: call its `stop()`, or use it as a context manager.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed, or no loop is given and none runs.

    Example:
        async def main():
            streamll.watch_loop()
            await serve()
    """
    watch = LoopWatch(**options)
    watch.watch_loop(loop)
    return watch.start()
