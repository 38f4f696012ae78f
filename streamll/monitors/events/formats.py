"""The files that kept events are written to: JSON, and the trace event format that Perfetto and Chrome open.

What belongs here: from events to a file's contents, and writing a file as a whole or not at all. What does not: which
events (event_tracer.py).

The trace event format is described in "Trace Event Format" by the Chromium project. Spans become complete events ("X"),
which in one thread must lie within each other or apart. Spans of several tasks in one thread do not: those that do not
fit go to further lanes, which look like threads of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamll.errors import ConfigurationError
from streamll.monitors.events.traced_events import TracedEvent

VERSION = 1
"""Of the JSON file's layout."""

_COUNTED = frozenset({"metric", "memory", "counter"})
"""Events of these types are also drawn as curves of the numbers in their data."""


def as_json(events: Sequence[TracedEvent]) -> dict[str, Any]:
    """Return a document with all that is known of events: `{"format", "version", "pid", "events": [...]}`."""
    return {
        "format": "streamll.events",
        "version": VERSION,
        "pid": os.getpid(),
        "events": [event.to_dict() for event in events],
    }


def as_chrome(events: Sequence[TracedEvent]) -> dict[str, Any]:
    """Return a document in the trace event format; times are microseconds since the first event.

    Threads have the numbers 1, 2, ... in the order in which they come up: Perfetto drops what has a number of more than 32
    bits, as Python's own ids are.
    """
    if not events:
        return {"traceEvents": [], "displayTimeUnit": "ms"}
    first = min(events, key=lambda event: event.monotonic_ns)
    spans = [event for event in events if _is_whole_span(event)]
    lanes = lanes_of((span.thread_id, span.monotonic_ns, span.data["duration_ns"]) for span in spans)
    lane_of = {id(span): lane for span, lane in zip(spans, lanes, strict=True)}
    of_spans = {(span.thread_id, span.span_id): lane for span, lane in zip(spans, lanes, strict=True)}
    for event in events:  # what happened in a span stands in its lane
        if id(event) not in lane_of:
            lane_of[id(event)] = of_spans.get((event.thread_id, event.span_id), 0)
    names = {event.thread_id: event.thread_name or f"thread {event.thread_id}" for event in events}
    places = {thread: n for n, thread in enumerate(names)}
    tracks = sorted({(places[event.thread_id], lane_of[id(event)]) for event in events})
    numbers = {track: n for n, track in enumerate(tracks, 1)}
    chart = _Chart(first.monotonic_ns)
    for thread, name in names.items():
        for (place, _), number in numbers.items():
            if place == places[thread]:
                chart.name_thread(number, name)
    drawn: dict[str, tuple[int, TracedEvent]] = {}
    for event in events:
        number = numbers[places[event.thread_id], lane_of[id(event)]]
        if _is_whole_span(event):
            drawn[event.span_id] = (number, event)
            chart.span(number, event)
        else:
            chart.instant(number, event)
    for number, span in drawn.values():
        parent = drawn.get(span.parent_span_id)
        if parent is not None and parent[0] != number:
            chart.arrow(parent, (number, span))
    chart.entries.sort(key=lambda entry: float(entry.get("ts", -1.0)))
    return {"traceEvents": chart.entries, "displayTimeUnit": "ms", "otherData": {"began_ns": first.timestamp}}


def _is_whole_span(event: TracedEvent) -> bool:
    duration = event.data.get("duration_ns")
    return event.event_type == "span" and type(duration) is int and duration >= 0


class _Chart:
    """The entries of a document in the trace event format."""

    def __init__(self, origin: int) -> None:
        self.entries: list[dict[str, Any]] = []
        self._origin = origin
        self._pid = os.getpid()
        self._arrows = 0

    def _at(self, ns: int) -> float:
        return (ns - self._origin) / 1000

    def _add(self, phase: str, name: str, tid: int, **more: Any) -> None:
        self.entries.append({"ph": phase, "name": name, "pid": self._pid, "tid": tid, **more})

    def name_thread(self, tid: int, name: str) -> None:
        self._add("M", "thread_name", tid, args={"name": name})
        self._add("M", "thread_sort_index", tid, args={"sort_index": tid})

    def span(self, tid: int, span: TracedEvent) -> None:
        kind = "error" if span.level in ("error", "critical") else "span"
        times = {"ts": self._at(span.monotonic_ns), "dur": span.data["duration_ns"] / 1000}
        self._add("X", span.operation or "span", tid, cat=kind, **times, args=_arguments(span))

    def instant(self, tid: int, event: TracedEvent) -> None:
        name = f"{event.event_type}: {event.operation}" if event.operation else event.event_type
        at = self._at(event.monotonic_ns)
        self._add("i", name, tid, s="t", cat=event.event_type, ts=at, args=_arguments(event))
        if event.event_type in _COUNTED:
            numbers = {key: value for key, value in event.data.items() if type(value) in (int, float)}
            label = event.data.get("name")
            if numbers:
                self._add("C", label if type(label) is str else name, tid, ts=at, args=numbers)

    def arrow(self, parent: tuple[int, TracedEvent], child: tuple[int, TracedEvent]) -> None:
        """An arrow from a span to one that it is the parent of."""
        self._arrows += 1
        (from_tid, outer), (to_tid, span) = parent, child
        # An end belongs to the span that is open there at its time, so the beginning may not lie behind the parent's end.
        last = outer.monotonic_ns + outer.data["duration_ns"]
        leaves = min(max(span.monotonic_ns, outer.monotonic_ns), last)
        self._add("s", "child", from_tid, cat="flow", id=self._arrows, ts=self._at(leaves))
        self._add("f", "child", to_tid, cat="flow", id=self._arrows, ts=self._at(span.monotonic_ns), bp="e")


def _arguments(event: TracedEvent) -> dict[str, Any]:
    ids = {
        name: getattr(event, name)
        for name in ("event_id", "execution_id", "span_id", "parent_span_id", "level", "priority")
        if getattr(event, name)
    }
    return {**msgspec.to_builtins(event.data), **ids}


def lanes_of(spans: Iterable[tuple[int, int, int]]) -> list[int]:
    """Put spans in lanes, so that of two in the same lane one lies within the other, or they do not overlap.

    Args:
        spans: Each one's thread, start and duration.

    Returns:
        A lane for each span, in their order; 0 is the first one's of each thread.
    """
    given = list(spans)
    order = sorted(range(len(given)), key=lambda n: (given[n][1], -given[n][2]))
    open_spans: dict[int, list[list[int]]] = {}
    lanes = [0] * len(given)
    for n in order:
        thread, start, duration = given[n]
        end = start + duration
        stacks = open_spans.setdefault(thread, [])
        for stack in stacks:
            while stack and stack[-1] <= start:
                stack.pop()
        lane = next((k for k, stack in enumerate(stacks) if not stack or stack[-1] >= end), len(stacks))
        if lane == len(stacks):
            stacks.append([])
        stacks[lane].append(end)
        lanes[n] = lane
    return lanes


FORMATS: dict[str, Callable[[Sequence[TracedEvent]], dict[str, Any]]] = {"json": as_json, "chrome": as_chrome}


def write(path: str | os.PathLike[str], events: Sequence[TracedEvent], format: str) -> None:
    """Write events to a file, which is there as a whole or, after an error, as it was before.

    Args:
        path: The file.
        events: What to write, in order.
        format: "json" or "chrome".

    Raises:
        ConfigurationError: There is no such format.
        OSError: The file cannot be written.
    """
    if format not in FORMATS:
        raise ConfigurationError(f"export: format={format!r}: must be one of {', '.join(FORMATS)}")
    write_whole(path, msgspec.json.encode(FORMATS[format](events)))


def write_whole(path: str | os.PathLike[str], contents: bytes) -> None:
    """Write a file so that whoever opens it finds all of it, or what was there before.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        Path(path).write_bytes(contents)  # a pipe or a device, such as /dev/stdout, cannot be replaced
        return
    unfinished = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    try:
        unfinished.write_bytes(contents)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
