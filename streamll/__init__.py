"""streamll: watches a running Python program and streams what it sees into Redis Streams or RabbitMQ.

    import streamll

    streamll.configure(sinks=["redis://localhost:6379/0?stream=app-events"])

    with streamll.span("retrieve", k=5):
        streamll.emit("cache_miss", data={"key": "a"})

The public names are imported when they are first used, so that `import streamll` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from streamll import consumers as consumers
    from streamll import privacy as privacy
    from streamll import testing as testing
    from streamll.api import (
        Stats,
        aflush,
        ashutdown,
        configure,
        emit,
        emit_event,
        flush,
        shutdown,
        stats,
    )
    from streamll.context import bind, bind_context, execution
    from streamll.delivery.circuit import CircuitBreaker
    from streamll.errors import BufferFullError, ConfigurationError, LifecycleError, StreamllError
    from streamll.models import StreamllEvent
    from streamll.monitoring import monitor
    from streamll.monitors.action_profiler import ActionProfiler, profile, profile_action
    from streamll.monitors.auto_trace import AutoTracer
    from streamll.monitors.event_tracer import EventTracer
    from streamll.monitors.logging_events import LoggingHandler, capture_logging
    from streamll.monitors.loop_watch import watch_loop
    from streamll.monitors.memory_profiler import MemoryProfiler
    from streamll.monitors.metrics import Metrics, counter, gauge, histogram
    from streamll.monitors.propagate import propagate
    from streamll.monitors.stream_span import stream
    from streamll.monitors.telemetry import MetricType, Telemetry
    from streamll.monitors.uncaught import capture_uncaught
    from streamll.monitors.warning_events import capture_warnings
    from streamll.propagation import extract, inject
    from streamll.runtime.signals import stop_on_signal
    from streamll.spans import Span, capture_exception, span
    from streamll.tracing import trace

_HOMES = {
    "Stats": "api",
    "aflush": "api",
    "ashutdown": "api",
    "configure": "api",
    "emit": "api",
    "emit_event": "api",
    "flush": "api",
    "shutdown": "api",
    "stats": "api",
    "bind": "context",
    "bind_context": "context",
    "execution": "context",
    "CircuitBreaker": "delivery.circuit",
    "BufferFullError": "errors",
    "ConfigurationError": "errors",
    "LifecycleError": "errors",
    "StreamllError": "errors",
    "StreamllEvent": "models",
    "monitor": "monitoring",
    "ActionProfiler": "monitors.action_profiler",
    "profile": "monitors.action_profiler",
    "profile_action": "monitors.action_profiler",
    "AutoTracer": "monitors.auto_trace",
    "EventTracer": "monitors.event_tracer",
    "LoggingHandler": "monitors.logging_events",
    "capture_logging": "monitors.logging_events",
    "watch_loop": "monitors.loop_watch",
    "MemoryProfiler": "monitors.memory_profiler",
    "Metrics": "monitors.metrics",
    "counter": "monitors.metrics",
    "gauge": "monitors.metrics",
    "histogram": "monitors.metrics",
    "propagate": "monitors.propagate",
    "stream": "monitors.stream_span",
    "MetricType": "monitors.telemetry",
    "Telemetry": "monitors.telemetry",
    "capture_uncaught": "monitors.uncaught",
    "capture_warnings": "monitors.warning_events",
    "extract": "propagation",
    "inject": "propagation",
    "stop_on_signal": "runtime.signals",
    "Span": "spans",
    "capture_exception": "spans",
    "span": "spans",
    "trace": "tracing",
}
_MODULES = ("consumers", "privacy", "testing")  # `streamll.testing.capture()` needs no import of its own

__all__ = [
    "ActionProfiler",
    "AutoTracer",
    "BufferFullError",
    "CircuitBreaker",
    "ConfigurationError",
    "EventTracer",
    "LifecycleError",
    "LoggingHandler",
    "MemoryProfiler",
    "MetricType",
    "Metrics",
    "Span",
    "Stats",
    "StreamllError",
    "StreamllEvent",
    "Telemetry",
    "__version__",
    "aflush",
    "ashutdown",
    "bind",
    "bind_context",
    "capture_exception",
    "capture_logging",
    "capture_uncaught",
    "capture_warnings",
    "configure",
    "counter",
    "emit",
    "emit_event",
    "execution",
    "extract",
    "flush",
    "gauge",
    "histogram",
    "inject",
    "monitor",
    "profile",
    "profile_action",
    "propagate",
    "shutdown",
    "span",
    "stats",
    "stop_on_signal",
    "stream",
    "trace",
    "watch_loop",
]


if not TYPE_CHECKING:  # with it in sight, a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, *_MODULES})
