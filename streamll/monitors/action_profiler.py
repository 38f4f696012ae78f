"""ActionProfiler: which calls take the time, counted exactly, and which code, seen by sampling.

What belongs here: the tool as users have it: its options, its sessions, and what it answers. What does not: how calls
are counted (profiling/profiled.py, profiling/wrappers.py), how stacks are sampled (stack_sampler.py), and files
(profiling/formats.py).
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf
from time import monotonic, perf_counter_ns, thread_time_ns, time_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from streamll.hub import hub
from streamll.ids import new_span_id
from streamll.monitors.agent import agent
from streamll.monitors.budget import PROFILER
from streamll.monitors.config import read_options
from streamll.monitors.outlet import send
from streamll.monitors.profiling.profiled import Action, ProfiledBlock, Recorder
from streamll.monitors.profiling.sessions import Phase, Reading, Sessions
from streamll.monitors.profiling.stacks import Stacks, StackStats, by_owner, hot_spots, total_seconds
from streamll.monitors.profiling.wrappers import wrap
from streamll.monitors.stack_sampler import SamplerStats, StackSampler
from streamll.options import OptionSet, option
from streamll.runtime.fork import tell_after_fork

if TYPE_CHECKING:
    from typing_extensions import Self

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any] | property")

REPORTED = 200
"""Hot spots, owners and actions in a report, at most."""

_CALIBRATION = 256
"""Calls that are made to measure what counting one takes: some tenths of a millisecond in all."""


@dataclass(frozen=True)
class ProfilerOptions(OptionSet):
    """What an ActionProfiler can be told."""

    owner: ClassVar[str] = "profiler "

    mode: str = option(
        "cpu",
        "What samples of stacks weigh: processor time, of threads that run (cpu), or time by the clock, waiting "
        "included (wall).",
        choices=("cpu", "wall"),
    )
    interval: float = option(
        0.02,
        "How often stacks are sampled; less often while monitoring costs too much.",
        at_least=0.001,
        at_most=60,
        unit="s",
    )
    sampler: str = option(
        "auto",
        "What samples: a timer of processor time that interrupts the main thread, where it may be had, else a thread "
        "(auto); a thread (agent); nothing (off).",
        choices=("auto", "agent", "off"),
    )
    cpu: str = option(
        "sampled",
        "Of which profiled calls processor time is measured, which takes a microsecond: of one in 16, from which that of "
        "all is estimated (sampled), of all, or of none (off).",
        choices=("sampled", "all", "off"),
    )
    report_interval: float | None = option(
        None, 'How often an event of type "profile" is made; one is made at the stop, too.', at_least=0.1, unit="s"
    )
    hot_spots: int = option(20, "Functions and actions in such an event.", at_least=0, at_most=1000)
    max_actions: int = option(1000, "Actions that are told apart by name.", at_least=1, at_most=100_000)
    max_stacks: int = option(10_000, "Stacks that are told apart.", at_least=1, at_most=1_000_000)
    max_sessions: int = option(100, "Sessions that are kept.", at_least=1, at_most=100_000)


@dataclass(frozen=True)
class ProfilerStats:
    """What a profiler does, and what did not fit into its bounds.

    Attributes:
        running: Whether it is started.
        calls: Profiled calls that have ended.
        active: Profiled calls that are under way.
        actions: Names that are told apart.
        other_actions: Times that a name was one too many, and its calls are counted with others.
        sessions, open_sessions: Sessions that are kept, and those of them that have not ended.
        unknown_sessions: Times that a session was named that there is not, or not any more.
        forgotten_sessions: Sessions that gave way to newer ones.
        call_cost_ns: What counting one call takes, as measured.
        sampler: What the sampler did, and what it could not see.
        stacks: How full its count is.
    """

    running: bool = False
    calls: int = 0
    active: int = 0
    actions: int = 0
    other_actions: int = 0
    sessions: int = 0
    open_sessions: int = 0
    unknown_sessions: int = 0
    forgotten_sessions: int = 0
    call_cost_ns: int = 0
    sampler: SamplerStats = field(default_factory=SamplerStats)
    stacks: StackStats = field(default_factory=StackStats)


class ActionProfiler:
    """Counts the calls of what is decorated, and samples the stacks of all threads, while it is started.

    Args:
        config: Options by name, or a `ProfilerOptions`; None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: When an option is unknown or its value is not allowed.

    Example:
        profiler = ActionProfiler(interval=0.01)

        @profiler.profile
        def answer(question): ...

        with profiler:
            serve()
        profiler.export("profile.json", format="speedscope")
    """

    tool = PROFILER

    def __init__(self, config: Mapping[str, Any] | ProfilerOptions | None = None, **options: Any) -> None:
        self.options = read_options(ProfilerOptions, config, options)
        self._recorder = Recorder(self.options.cpu, self.options.max_actions)
        self._sampler = self._make_sampler()
        self._running = False
        self._began = monotonic()
        self._seconds = 0.0  # of the runs before
        self._become_new()
        tell_after_fork(self)

    def _make_sampler(self) -> StackSampler:
        options = self.options
        stacks = Stacks(max_stacks=options.max_stacks, max_records=2 * options.max_stacks)
        sampler = StackSampler(options.mode, options.interval, options.sampler == "auto", stacks)
        # Nobody could read it any more. Not at exit: the timer sees to that itself.
        self._at_my_end = weakref.finalize(self, sampler.stop)
        self._at_my_end.atexit = False
        return sampler

    def reconfigure(self, config: Mapping[str, Any] | ProfilerOptions | None = None, **options: Any) -> Self:
        """Give it other options; it is stopped for that, and forgets what was sampled. What is decorated stays so.

        Args:
            config, options: As when it is made.

        Raises:
            ConfigurationError: When an option is unknown or its value is not allowed.
        """
        wanted = read_options(ProfilerOptions, config, options)
        with self._switching:
            self.stop()
            self.options = wanted
            self._recorder.set(wanted.cpu, wanted.max_actions)
            self._at_my_end.detach()  # it would keep the old sampler, with all that this has seen
            self._sampler = self._make_sampler()
        return self

    def _become_new(self) -> None:
        self._switching = threading.RLock()  # while it is started or stopped; no turn on the agent's thread takes it
        self._lock = threading.RLock()
        self._sessions = Sessions(self.options.max_sessions)

    @property
    def running(self) -> bool:
        """Whether it is started."""
        return self._running

    def start(self) -> Self:
        """Count calls and sample stacks from now on; what it saw before is kept.

        In the main thread the sampler may take the timer of processor time; else it has to use a thread.
        """
        with self._switching:
            if self._running:
                return self
            self._running = True
            self._began = monotonic()
            if not self._recorder.cost_ns:
                self._recorder.cost_ns = _cost_of_a_call()
            self._recorder.on = True
            if self.options.sampler != "off":
                self._sampler.start()
            if self.options.report_interval is not None:
                agent.add(self, self._began + self.options.report_interval)
        return self

    def stop(self) -> None:
        """Count and sample no more, and send what was seen; it stays to be read."""
        with self._switching:
            if not self._running:
                return
            self._running = self._recorder.on = False
            self._seconds += monotonic() - self._began
            self._sampler.stop()
            agent.remove(self)
        self._send()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def reset(self) -> None:
        """Forget all that was counted, sampled, and all sessions. Calls that are under way will not be counted."""
        with self._lock:
            self._recorder.become_new()
            self._sampler.reset()
            self._sessions = Sessions(self.options.max_sessions)
            self._began, self._seconds = monotonic(), 0.0

    def after_fork_in_child(self) -> None:
        """Begin from zero in a child: calls under way, samples and sessions are its parent's."""
        self._become_new()
        self._recorder.become_new()
        self._began, self._seconds = monotonic(), 0.0

    def tick(self, now: float) -> float:
        """Have a turn on the agent's thread: send an event."""
        interval = self.options.report_interval
        if not self._running or interval is None:
            return inf
        self._send()
        return now + interval

    @overload
    def profile(self, function: F, /) -> F: ...

    @overload
    def profile(self, name: str = ..., /) -> Callable[[F], F]: ...

    def profile(self, function: Any = "", /) -> Any:
        """Count the calls of a function: `@profiler.profile`, or `@profiler.profile("name")`.

        It serves functions, coroutine functions, generators and asynchronous generators, methods, class and static
        methods, properties (in either order of the decorators) and callable objects.

        Args:
            function: What to wrap, or the name to count it under; without one, its module and qualified name.

        Raises:
            TypeError: When what is decorated is a class or cannot be called.
        """
        if isinstance(function, str):
            return functools.partial(wrap, name=function, recorder=self._recorder)
        return wrap(function, "", self._recorder)

    def profile_action(self, name: str) -> ProfiledBlock:
        """Return a block that is counted as a call: `with profiler.profile_action("load"):`, or `async with`."""
        return ProfiledBlock(self._recorder.action(name))

    def start_session(self, name: str = "session") -> str:
        """Begin a session, and start the profiler if it is not; sessions may overlap.

        Returns:
            The session's id.
        """
        self.start()
        session_id = new_span_id()
        with self._lock:
            self._sessions.start(session_id, name, time_ns(), perf_counter_ns(), self._readings())
        return session_id

    def end_session(self, session_id: str | None = None) -> dict[str, Any] | None:
        """End a session and its last phase.

        Args:
            session_id: Which; the one that began last when None.

        Returns:
            As `get_session`; None when there is no such session, or it has ended, which `stats()` counts.
        """
        now, readings = perf_counter_ns(), self._readings()
        with self._lock:
            ended = self._sessions.end(session_id, now, readings)
            return None if ended is None else self._sessions.describe(ended, now, readings)

    @contextmanager
    def session(self, name: str = "session") -> Iterator[str]:
        """A session for a block; `as` gives its id."""
        session_id = self.start_session(name)
        try:
            yield session_id
        finally:
            with self._lock:
                if self._sessions.is_open(session_id):
                    self.end_session(session_id)

    def phase(self, name: str, session_id: str | None = None) -> Phase:
        """Begin a phase of a session, here and now, which ends the phase before; also a block, which ends it.

        Args:
            name: What a person would call it.
            session_id: Of which session; of the one that began last when None. Where there is none, nothing happens.
        """
        with self._lock:
            begun = self._sessions.begin_phase(name, session_id, perf_counter_ns(), self._readings())
        return Phase(begun, self._end_phase)

    def _end_phase(self, phase: tuple[str, int]) -> None:
        with self._lock:
            self._sessions.end_phase(phase, perf_counter_ns(), self._readings())

    def get_session(self, session_id: str) -> dict[str, Any] | None:
        """Return what a session held so far: `id`, `name`, `started` (seconds since the epoch), `open`, `duration`
        (seconds), `profiles` (what was called in it), `phases`; None when there is none of that id."""
        with self._lock:
            return self._sessions.describe(session_id, perf_counter_ns(), self._readings())

    def get_profile_data(self) -> dict[str, Any]:
        """Return what was counted.

        Returns:
            `profiles`: for each action by name `calls`, `errors`, `active` (calls under way), `active_time` (of the
            longest of them), `wall_time` (by the clock; a recursive call is not counted twice), `self_time` (without the
            profiled calls inside; None where a block in a coroutine makes that unknown), `cpu_time` (estimated from
            `cpu_calls`, those that were measured; None without any), `mean`, `min`, `max`, `p50`, `p95`, `p99` of a
            call (None without any; quantiles within 1 %). All times are seconds.
            `total_calls`: all calls. `total_time`: seconds in profiled calls, each counted once.
            `sessions`: as `get_session`.
        """
        now = perf_counter_ns()
        profiles = {}
        own = 0
        for action in self._recorder.actions():
            row, own_ns = self._describe(action, now)
            own += own_ns
            if row["calls"] or row["active"]:
                profiles[action.operation] = row
        with self._lock:
            readings = self._readings()
            sessions = [self._sessions.describe(each, now, readings) for each in self._sessions.ids()]
        return {
            "profiles": profiles,
            "total_calls": sum(row["calls"] for row in profiles.values()),
            "total_time": own / 1e9,
            "sessions": sessions,
        }

    def _describe(self, action: Action, now: int) -> tuple[dict[str, Any], int]:
        active, longest = action.active(now)
        totals, spread = self._recorder.read(action)
        cpu = totals.cpu_ns / totals.cpu_wall_ns * totals.wall_ns / 1e9 if totals.cpu_wall_ns else None
        row = {
            "calls": totals.calls,
            "errors": totals.errors,
            "active": active,
            "active_time": longest / 1e9,
            "wall_time": totals.wall_ns / 1e9,
            "self_time": None if totals.own_unknown else totals.own_ns / 1e9,
            "cpu_time": cpu,
            "cpu_calls": totals.cpu_calls,
            "mean": spread.total / totals.calls if totals.calls else None,
            "min": spread.minimum,
            "max": spread.maximum,
            "p50": spread.p50,
            "p95": spread.p95,
            "p99": spread.p99,
        }
        return row, totals.own_ns

    def _readings(self) -> dict[str, Reading]:
        """What all actions have come to."""
        found = {}
        for action in self._recorder.actions():
            totals, _ = self._recorder.read(action)
            found[action.operation] = Reading(totals.calls, totals.errors, totals.wall_ns, totals.own_ns)
        return found

    def hot_spots(self, limit: int | None = 20) -> list[dict[str, Any]]:
        """Return the functions that took the most in their own code: `function`, `file`, `line` (where it was seen most),
        `self_seconds`, `total_seconds`, `self_share`, `total_share`, `samples`.

        Args:
            limit: How many; all that were seen when None.
        """
        return [asdict(spot) for spot in hot_spots(self._sampler.read(), self.options.mode, limit)]

    def export(self, path: str | os.PathLike[str], format: str = "json") -> None:
        """Write what was counted and sampled to a file, all of it or nothing.

        Args:
            path: Where to; what is there is replaced.
            format: "json" (everything), "speedscope", "collapsed" (for flame graphs), "pstats", "chrome" (also for
                Perfetto): these have the samples of stacks.

        Raises:
            ConfigurationError: When there is no such format.
            OSError: When the file cannot be written.
        """
        from streamll.monitors.profiling.formats import Profile, write_profile

        profile = Profile(self.options.mode, self._sampler.read(), self.get_profile_data())
        write_profile(profile, path, format)

    def stats(self) -> ProfilerStats:
        """Return what it does, and what did not fit into its bounds."""
        now = perf_counter_ns()
        actions = self._recorder.actions()
        with self._lock:
            sessions = self._sessions
            return ProfilerStats(
                running=self._running,
                calls=sum(reading.calls for reading in self._readings().values()),
                active=sum(action.active(now)[0] for action in actions),
                actions=len(actions),
                other_actions=self._recorder.others,
                sessions=len(sessions),
                open_sessions=sessions.open,
                unknown_sessions=sessions.unknown,
                forgotten_sessions=sessions.forgotten,
                call_cost_ns=self._recorder.cost_ns,
                sampler=self._sampler.stats(),
                stacks=self._sampler.count(),
            )

    def report(self) -> dict[str, Any]:
        """Return what it saw, in values that JSON has: `get_profile_data()`, with `seconds` (since the start), `mode`,
        `sampled_seconds`, `hot_spots`, `owners` (whose samples they are: thread, task, action and operation) and `stats`."""
        samples = self._sampler.read()
        return {
            "seconds": self._seconds + (monotonic() - self._began if self._running else 0.0),
            "mode": self.options.mode,
            "sampled_seconds": total_seconds(samples, self.options.mode),
            "hot_spots": [asdict(spot) for spot in hot_spots(samples, self.options.mode, REPORTED)],
            "owners": by_owner(samples, self.options.mode, REPORTED),
            **self.get_profile_data(),
            "stats": asdict(self.stats()),
        }

    def _send(self) -> None:
        """Make an event of what was seen, in short."""
        if not hub.active:
            return
        limit = self.options.hot_spots
        report = self.report()
        ranked = sorted(report["profiles"].items(), key=lambda each: -each[1]["wall_time"])
        send(
            "profile",
            {
                "seconds": report["seconds"],
                "mode": report["mode"],
                "sampled_seconds": report["sampled_seconds"],
                "unseen_seconds": report["stats"]["sampler"]["unseen_seconds"],
                "hot_spots": report["hot_spots"][:limit],
                "owners": report["owners"][:limit],
                "profiles": dict(ranked[:limit]),
                "total_calls": report["total_calls"],
                "total_time": report["total_time"],
            },
            operation="streamll.profile",
        )


@functools.cache
def _cost_of_a_call() -> int:
    """Measure what counting one call takes on this machine, in nanoseconds."""
    recorder = Recorder()

    def nothing() -> None:
        pass

    wrapped = wrap(nothing, "calibration", recorder)
    recorder.on = True
    spent = []
    for each in (wrapped, nothing):
        began = thread_time_ns()
        for _ in range(_CALIBRATION):
            each()
        spent.append(thread_time_ns() - began)
    return max(1, (spent[0] - spent[1]) // _CALIBRATION)


default_profiler = ActionProfiler()
"""What `profile` and `profile_action` belong to; nothing is counted until it is started."""

profile = default_profiler.profile
profile_action = default_profiler.profile_action
