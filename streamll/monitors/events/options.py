"""What an event tracer can be told, and the numbers that it tells.

What belongs here: the options and the numbers. What does not: what they do (event_tracer.py, recorder.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamll.options import KIB, MIB, OptionSet, option


@dataclass(frozen=True)
class EventTracerOptions(OptionSet):
    """What an event tracer keeps. How its events are delivered is for the sinks to be told."""

    owner = "event tracer "

    retain: int = option(
        10_000, "Events kept for get_events, the newest ones.", at_least=0, at_most=10_000_000, unit="events"
    )
    retain_bytes: int = option(16 * MIB, "Bytes of memory that they may take.", at_least=0, unit="bytes")
    event_bytes: int = option(
        64 * KIB,
        "About the longest event that is kept whole; values of a longer one are cut.",
        at_least=256,
        unit="bytes",
    )
    open_spans: int = option(
        10_000, "Spans begun by start_span that may be open; beyond that the oldest is given up.", at_least=1
    )


@dataclass(frozen=True)
class EventTracerStats:
    """What an event tracer did.

    Attributes:
        events: How many it made, of all kinds.
        spans, checkpoints, state_changes: How many of them were such.
        retained: How many are kept.
        retained_bytes: The memory that those take.
        forgotten: How many had to give way to newer ones.
        not_sent: Events that are (or were) kept and went to no sink, by why: `inactive` (nothing is configured to receive
            events), `refused` (no sink accepted it, or sampling left it out), `debug` (the budget had no room for it).
        not_made: Calls that made no event, by why: `stopped` (the tracer was not running), `muted` (on a worker thread of
            streamll).
        open_spans: Spans that were started by start_span and have not ended.
        abandoned_spans: Spans that were given up: too many were open, or the tracer was stopped before their end.
        unknown_spans: Ids given to end_span that are of no open span: never given out, ended before, or abandoned.
        watched: Attributes of living objects that are traced.
        unwatched: Attributes that were not, since too many are.
        cut: Values that were shortened in what is kept, because the event was longer than event_bytes.
        redacted: Values and pieces of text that were made unreadable there.
        stand_ins: Values that could not be encoded and were replaced by a readable stand-in there.
        errors: Events lost to a defect of streamll; report it.
    """

    events: int = 0
    spans: int = 0
    checkpoints: int = 0
    state_changes: int = 0
    retained: int = 0
    retained_bytes: int = 0
    forgotten: int = 0
    not_sent: Mapping[str, int] = field(default_factory=dict)
    not_made: Mapping[str, int] = field(default_factory=dict)
    open_spans: int = 0
    abandoned_spans: int = 0
    unknown_spans: int = 0
    watched: int = 0
    unwatched: int = 0
    cut: int = 0
    redacted: int = 0
    stand_ins: int = 0
    errors: int = 0
