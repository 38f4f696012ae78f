"""Identifiers in the shape of W3C Trace Context: 32 hex digits for a trace or an event, 16 for a span.

An execution is a trace, so its id is random (Trace Context level 2 asks for that). Events and spans are made far more
often: theirs count up from a random start, which is as unlikely to clash and costs a tenth.
"""

from __future__ import annotations

import os
from itertools import count
from secrets import randbits

_EVENT_SPACE = (1 << 128) - 1
_SPAN_SPACE = (1 << 64) - 1

# One C call each, so that threads cannot be handed the same number and no lock is needed.
_next_event = count(randbits(128)).__next__
_next_span = count(randbits(64)).__next__


def new_event_id() -> str:
    """Return a new event id: 32 lower-case hex digits, unique across processes."""
    return f"{_next_event() & _EVENT_SPACE:032x}"


def new_span_id() -> str:
    """Return a new span id: 16 lower-case hex digits, never all zero."""
    return f"{(_next_span() & _SPAN_SPACE) or 1:016x}"


def new_execution_id() -> str:
    """Return a new execution id, which is also a W3C trace id: 32 random lower-case hex digits, never all zero."""
    return f"{randbits(128) or 1:032x}"


def new_producer_id() -> str:
    """Return a new producer id: 16 random lower-case hex digits; one for each sink of each process."""
    return f"{randbits(64):016x}"


def _reseed() -> None:
    global _next_event, _next_span
    _next_event = count(randbits(128)).__next__
    _next_span = count(randbits(64)).__next__


if hasattr(os, "register_at_fork"):  # Windows has no fork
    # A child would count on from its parent's numbers, and both would make the same ids.
    os.register_at_fork(after_in_child=_reseed)
