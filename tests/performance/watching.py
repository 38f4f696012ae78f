"""Ways to watch a program: streamll's tools, all or each alone, and other profilers; each is begun, and ended.

What belongs here: beginning and ending them, the one place that knows how. What does not: the programs (workloads.py), or
what watching them costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import streamll

End = Callable[[], object]
"""Ends it; what a profiler of ours returns is how many samples it has taken."""


def nothing(url: str) -> End:
    """The plain program, in which nothing is configured."""
    return lambda: None


def _configure(url: str) -> None:
    """Have events go somewhere, and wait until one has: what a sink does with its first event is not its cost."""
    streamll.configure(sinks=[url])
    streamll.emit("begin")
    assert streamll.flush(30)


def everything(url: str) -> End:
    """All tools, as an application turns them on."""
    _configure(url)
    monitoring = streamll.monitor(profile=True, memory=True)

    def end() -> int:
        monitoring.stop()
        streamll.shutdown(10)
        return int(monitoring.tools["profiler"].stats().sampler.looks)

    return end


def sink_alone(url: str) -> End:
    """A sink, and no tool: what only the program's own events and spans cost."""
    _configure(url)
    return lambda: streamll.shutdown(10)


def _tool(module: str, name: str) -> Callable[[str], End]:
    def begin(url: str) -> End:
        _configure(url)
        tool = getattr(import_module(f"streamll.monitors.{module}"), name)().start()
        return lambda: (tool.stop(), streamll.shutdown(10))

    return begin


def pyinstrument(url: str) -> End:
    profiler = import_module("pyinstrument").Profiler()
    profiler.start()
    end: End = profiler.stop
    return end


def cprofile(url: str) -> End:
    profiler = import_module("cProfile").Profile()
    profiler.enable()
    end: End = profiler.disable
    return end


def tracemalloc(url: str) -> End:
    traces = import_module("tracemalloc")
    traces.start()
    end: End = traces.stop
    return end


WAYS: Mapping[str, tuple[Callable[[str], End], str]] = {
    "null": (nothing, "nothing, once more (the null arm)"),
    "everything": (everything, "all tools on"),
    "sink": (sink_alone, "a sink alone"),
    "profiler": (_tool("action_profiler", "ActionProfiler"), "ActionProfiler alone"),
    "memory": (_tool("memory_profiler", "MemoryProfiler"), "MemoryProfiler alone"),
    "metrics": (_tool("metrics", "Metrics"), "Metrics alone"),
    "loops": (_tool("loop_watch", "LoopWatch"), "LoopWatch alone"),
    "pyinstrument": (pyinstrument, "pyinstrument"),
    "cprofile": (cprofile, "cProfile"),
    "tracemalloc": (tracemalloc, "tracemalloc"),
}
"""How each is begun, given where events go, and what it is called."""


def begin(way: str, url: str) -> End:
    """Begin to watch this process; what is returned ends it."""
    return WAYS[way][0](url)
