"""monitor(): the process's one set of tools that watch the program, started and stopped together.

What belongs here: which tools there are, in what order they start and stop, and what they say together. What does not:
what each of them does (monitors), or where their events go (api.py).
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import import_module
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from streamll import api
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.monitors.agent import OVERHEAD_TARGET, agent
from streamll.options import OptionSet
from streamll.runtime.fork import tell_after_fork
from streamll.runtime.leave import call_at_leave, do_not_call_at_leave
from streamll.views.summary import Summary

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from streamll.monitors.action_profiler import ActionProfiler
    from streamll.monitors.auto_trace import AutoTracer
    from streamll.monitors.event_tracer import EventTracer
    from streamll.monitors.memory_profiler import MemoryProfiler
    from streamll.sinks.base import Sink

log = logging.getLogger("streamll")

FOLD_AT = 512
"""Events that are noted before they are folded into the summary: a fraction of a millisecond's work."""


class Tool(Protocol):
    """What every tool can do."""

    def start(self) -> Any:
        """Begin to watch; does nothing when it has begun."""

    def stop(self) -> None:
        """Stop watching; what was seen stays readable."""

    def stats(self) -> Any:
        """Return its numbers, a dataclass."""

    def report(self) -> dict[str, Any]:
        """Return what it saw, in values that JSON has."""


Setting = bool | Mapping[str, Any] | OptionSet | Tool
"""Whether a tool is wanted, its options (a mapping or its options object), or the tool itself."""


OUR_OWN = frozenset({"metric", "memory", "profile"})
"""Types of events that sum up: they are no operation of the program's."""


class Operations:
    """What each operation did, folded from the events that come by, whether they go anywhere or not.

    Attributes:
        running: Whether it watches.
    """

    def __init__(self) -> None:
        self.running = False
        self.after_fork_in_child()
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Begin from zero in a child: what was seen before is its parent's."""
        self._summary = Summary()
        self._noted: deque[tuple[str, str, bool, Any]] = deque()
        self._folding = threading.Lock()

    def start(self) -> Self:
        """Watch events from now on."""
        self.running = True
        hub.tap(self._note)
        return self

    def stop(self) -> None:
        """Watch no more."""
        if self.running:
            self.running = False
            hub.tap(None)

    def stats(self) -> dict[str, int]:
        """Return how many operations are told apart."""
        return {"operations": len(self._read().operations())}

    def report(self) -> dict[str, Any]:
        """Return a row for each operation, those that took most time first."""
        return {"operations": [asdict(row) for row in self._read().operations()]}

    def _note(
        self, event_type: str, operation: str, module_name: str, method_name: str, level: str, data: dict[Any, Any]
    ) -> None:
        """Take down what an event says, in one step that nothing can come between."""
        if event_type in OUR_OWN or event_type.startswith("streamll."):
            return
        is_span = event_type == "span" and type(data) is dict
        name = operation or f"{module_name}.{method_name}".strip(".") or event_type
        if type(name) is not str:
            return  # an operation of another type; the pipeline makes a word of it
        failed = level == "error" or level == "critical" or (is_span and "error" in data)
        self._noted.append((name, event_type, failed, data.get("duration_ns") if is_span else None))
        if len(self._noted) >= FOLD_AT:
            self._fold()

    def _read(self) -> Summary:
        self._fold()
        return self._summary

    def _fold(self) -> None:
        if self._folding.acquire(blocking=False):  # else somebody does it at this moment
            try:
                groups: dict[tuple[str, str, bool], list[Any]] = {}
                for _ in range(len(self._noted)):
                    name, event_type, failed, duration = self._noted.popleft()
                    groups.setdefault((name, event_type, failed), []).append(duration)
                for (name, event_type, failed), durations in groups.items():
                    self._summary.count(name, event_type, failed, durations)
            finally:
                self._folding.release()


class Monitor:
    """The tools that `monitor` has started; also a context manager, which stops them.

    Args:
        tools: By the names that they have in `stats()` and in reports.
    """

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.tools = dict(tools)
        self.running = False
        self._began = self._ended = 0.0
        self._cpu_began = self._cpu_ended = 0.0
        self._started = ""

    @property
    def profiler(self) -> ActionProfiler | None:
        """The profiler, if there is one."""
        return cast("ActionProfiler | None", self.tools.get("profiler"))

    @property
    def memory(self) -> MemoryProfiler | None:
        """The memory profiler, if there is one."""
        return cast("MemoryProfiler | None", self.tools.get("memory"))

    @property
    def events(self) -> EventTracer | None:
        """The event tracer, if there is one."""
        return cast("EventTracer | None", self.tools.get("events"))

    @property
    def tracing(self) -> AutoTracer | None:
        """The automatic tracer, if there is one."""
        return cast("AutoTracer | None", self.tools.get("tracing"))

    def start(self) -> Self:
        """Start all tools; none of them when one cannot be."""
        if self.running:
            return self
        self.running = True
        self._began, self._cpu_began = monotonic(), process_time()
        self._started = datetime.now(timezone.utc).isoformat()
        call_at_leave(self.stop)
        try:
            for name, tool in self.tools.items():
                tool.start()
                hub.sources[name] = tool.stats
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all tools, which say what they have left to say; what they saw can still be read."""
        if not self.running:
            return
        self.running = False
        do_not_call_at_leave(self.stop)
        for tool in reversed(self.tools.values()):
            try:
                tool.stop()
            except Exception:  # the others must stop all the same, and the program is not to be hurt
                log.warning("a monitor could not be stopped; please report it", exc_info=True)
        self._ended, self._cpu_ended = monotonic(), process_time()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def report(self) -> dict[str, Any]:
        """Return what all tools saw, what watching cost, and what the sinks did, in values that JSON has."""
        ended, cpu_ended = (monotonic(), process_time()) if self.running else (self._ended, self._cpu_ended)
        stats = api.stats()
        return {
            "started": self._started,
            "seconds": ended - self._began,
            "cpu_seconds": cpu_ended - self._cpu_began,
            **{name: tool.report() for name, tool in self.tools.items()},
            "monitoring": msgspec.to_builtins(agent.stats()),
            "sinks": {name: msgspec.to_builtins(sink) for name, sink in stats.sinks.items()},
            "balanced": stats.balanced,
        }


# By their names in `monitor()`: the name in `stats()` and reports, and where the tool is. They are imported when wanted.
_TOOLS = {
    "profile": ("profiler", "action_profiler", "ActionProfiler"),
    "memory": ("memory", "memory_profiler", "MemoryProfiler"),
    "metrics": ("metrics", "metrics", "Metrics"),
    "events": ("events", "event_tracer", "EventTracer"),
    "trace": ("tracing", "auto_trace", "AutoTracer"),
    "loops": ("loops", "loop_watch", "LoopWatch"),
    "errors": ("errors", "uncaught", "UncaughtCapture"),
    "logs": ("logs", "logging_events", "LoggingCapture"),
    "warnings": ("warnings", "warning_events", "WarningsCapture"),
}


# What a tool that is only switched on is told: a monitor watches the whole process.
_WHEN_TRUE: dict[str, dict[str, Any]] = {"loops": {"new_loops": True}}


def _make(setting_name: str, setting: Setting) -> dict[str, Tool]:
    """The tool that a setting asks for, by its name in reports; none when it asks for none."""
    if setting is False or setting is None:
        return {}
    name, module, class_name = _TOOLS[setting_name]
    home = import_module(f"streamll.monitors.{module}")
    kind = getattr(home, class_name)
    if isinstance(setting, kind):
        return {name: setting}
    options = _WHEN_TRUE.get(setting_name) if setting is True else setting
    try:
        if setting_name == "profile":  # what `streamll.profile` decorates belongs to this one
            return {name: home.default_profiler.reconfigure(options)}
        return {name: kind(options)}
    except ConfigurationError as error:
        raise ConfigurationError(f"monitor option {setting_name}: {error}") from None


_monitor: Monitor | None = None
_starting = threading.RLock()


def _unlock_in_child() -> None:
    global _starting
    _starting = threading.RLock()  # whoever held it is not in the child


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_unlock_in_child)


def monitor(
    sinks: Iterable[str | Sink] | str | None = None,
    *,
    profile: Setting = False,
    memory: Setting = False,
    metrics: Setting = True,
    events: Setting = True,
    loops: Setting = True,
    errors: Setting = True,
    trace: Iterable[str] | str | Setting = (),
    logs: Setting = False,
    warnings: Setting = False,
    overhead_target: float = OVERHEAD_TARGET,
    **options: Any,
) -> Monitor:
    """Watch this process from now on, with several tools at once. Called again, it stops those and starts others.

    Each tool is wanted (True), not wanted (False), or given: its options, as a mapping or as its options object, or the tool
    itself. What they cost together is kept below `overhead_target` of one processor: sampling gives way first, then
    memory, then events of priority "debug"; `stats().monitoring` shows it.

    Args:
        sinks: As for `configure`, which is called when these or `options` are given, or when nothing is configured yet and
            STREAMLL_SINKS is set. Without any, `report()` of what this returns is all there is.
        profile: Samples of stacks, and the timing of profiled actions: `ActionProfiler`.
        memory: Readings of memory, pauses of the garbage collector, a verdict on leaks: `MemoryProfiler`.
        metrics: What `counter`, `gauge` and `histogram` count is emitted every interval: `Metrics`.
        events: An `EventTracer`, for `trace_event`, checkpoints and changes of state.
        loops: Blocked asyncio event loops, with the frame that blocks: `LoopWatch`.
        errors: Errors that nobody caught, in any thread or task: `UncaughtCapture`.
        trace: Patterns of functions that become spans without a change of code, such as "shop.*": `AutoTracer`.
        logs: Records of the standard library's logging: `LoggingCapture`.
        warnings: Python's warnings: `WarningsCapture`.
        overhead_target: The share of one processor that watching may take, above 0 and at most 1.
        **options: As for `configure`.

    Returns:
        What stops it, and tells what was seen; also a context manager. The end of the process stops it by itself, before
        the sinks are drained.

    Raises:
        ConfigurationError: When an option is wrong, or a tool cannot start; nothing is watched then.

    Example:
        streamll.monitor(["redis://localhost:6379/0"], profile=True, memory=True)
    """
    global _monitor
    if not 0 < overhead_target <= 1:
        raise ConfigurationError(f"monitor option overhead_target={overhead_target}: must be above 0 and at most 1")
    if isinstance(trace, str) or (isinstance(trace, Iterable) and not isinstance(trace, Mapping)):
        patterns = [trace] if isinstance(trace, str) else list(trace)
        trace = {"patterns": patterns} if patterns else False
    settings = {
        "profile": profile,
        "memory": memory,
        "metrics": metrics,
        "events": events,
        "loops": loops,
        "errors": errors,
        "trace": trace,
        "logs": logs,
        "warnings": warnings,
    }
    made: dict[str, Tool] = {"operations": Operations()}
    for name, setting in settings.items():
        made |= _make(name, setting)
    if sinks is not None or options or (not api.sinks() and os.environ.get("STREAMLL_SINKS")):
        api.configure(sinks, **options)
    with _starting:
        if _monitor is not None:
            _monitor.stop()
        agent.target = overhead_target
        _monitor = Monitor(made).start()
    return _monitor
