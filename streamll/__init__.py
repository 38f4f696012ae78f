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
    from streamll.propagation import extract, inject
    from streamll.runtime.signals import stop_on_signal
    from streamll.spans import capture_exception, span
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
    "extract": "propagation",
    "inject": "propagation",
    "stop_on_signal": "runtime.signals",
    "capture_exception": "spans",
    "span": "spans",
    "trace": "tracing",
}
_MODULES = ("consumers", "testing")  # `streamll.testing.capture()` needs no import of its own

__all__ = [
    "BufferFullError",
    "CircuitBreaker",
    "ConfigurationError",
    "LifecycleError",
    "Stats",
    "StreamllError",
    "StreamllEvent",
    "__version__",
    "aflush",
    "ashutdown",
    "bind",
    "bind_context",
    "capture_exception",
    "configure",
    "emit",
    "emit_event",
    "execution",
    "extract",
    "flush",
    "inject",
    "shutdown",
    "span",
    "stats",
    "stop_on_signal",
    "trace",
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
