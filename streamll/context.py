"""What surrounds the code that runs now: execution, span, bound attributes; and their way across processes.

One context variable holds one immutable `Scope`, so that reading it costs one look-up, asyncio tasks inherit it, and
leaving a block puts back exactly what was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec


class Scope(msgspec.Struct, frozen=True):
    """What an event made now belongs to.

    Attributes:
        execution_id: The execution (W3C: trace); empty outside of any.
        span_id: The innermost span; empty outside of any.
        parent_span_id: The span around that one.
        attributes: What `bind` has bound: goes into the data of every event inside.
        muted: True on threads whose events are cut off, such as a sink's worker: telemetry about telemetry has no end.
        trace_flags: The W3C flags that came with an extracted context, passed on by `inject`.
        trace_state: The W3C tracestate that came with it, passed on untouched.
    """

    execution_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    attributes: Mapping[str, Any] = {}
    muted: bool = False
    trace_flags: str = "01"
    trace_state: str = ""


ROOT = Scope()

SCOPE: ContextVar[Scope] = ContextVar("streamll_scope", default=ROOT)


def mute_this_thread() -> None:
    """Cut off every event that this thread would emit from now on."""
    SCOPE.set(Scope(muted=True))


@contextmanager
def muted() -> Iterator[None]:
    """Cut off every event that is emitted inside, such as by a user's function that an event passes through."""
    token = SCOPE.set(Scope(muted=True))
    try:
        yield
    finally:
        SCOPE.reset(token)
