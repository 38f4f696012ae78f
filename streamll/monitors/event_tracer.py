"""EventTracer: what happened, in order: events, spans, checkpoints and changes of state, kept to be looked at and sent
out.

What belongs here: the making of those events. What does not: how they are kept (events/traced_events.py), how a change
is noticed (events/attribute_watch.py), what is read out of checkpoints (events/flow.py), and the files
(events/formats.py).

It has no thread, and nothing to do but when it is called.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from streamll.context import current
from streamll.monitors.config import read_options
from streamll.monitors.events import flow
from streamll.monitors.events import formats as trace_formats
from streamll.monitors.events.attribute_watch import Watch, full_name, unwatch, watch
from streamll.monitors.events.options import EventTracerOptions, EventTracerStats
from streamll.monitors.events.recorder import Notice, Recorder, TracerSpan
from streamll.monitors.events.traced_events import TracedEvent, decode_all
from streamll.options import SinkOptions
from streamll.runtime.fork import tell_after_fork
from streamll.sketch import QuantileSketch

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("streamll")

REPORTED = 50
"""Event types and operations that a report names at most: those with the most events, and with the most time."""

WATCHED_BOUND = 10_000
"""Attributes of living objects that one tracer traces at most."""


class EventTracer:
    """Keeps what happens, in order, for `get_events`, and sends it out as events.

    Each event goes two ways. It is kept here, within `retain` and `retain_bytes`, as it was in that moment: redacted as
    `configure()` says (before that, by sensitive keys), and encoded, so nothing that happens to the program's objects later changes it. And it goes where `configure()` has
    events go, if anywhere; how many wait there for delivery (`buffer_size`) has nothing to do with what is kept here.

    Nothing it does raises into the program, but wrong options and `trace_state` of what cannot be traced. It may be used
    from any thread, task, signal handler or finaliser. A forked child begins with nothing.

    Args:
        config: Options by name, or `EventTracerOptions`; None for the defaults. So that one dict may serve the tracer and
            `configure()`, options of sinks in it (`buffer_size`, `flush_interval`, ...) are checked, and otherwise left to
            the sinks.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: An option is unknown or its value is not allowed.

    Example:
        tracer = EventTracer().start()
        with tracer.span("order", number=42):
            tracer.checkpoint("paid")
            tracer.trace_event("stock", {"left": 3})
            tracer.checkpoint("packed")
        print(tracer.analyze_flow(expected=["paid", "packed", "sent"])["missing"])
    """

    def __init__(self, config: Mapping[str, Any] | EventTracerOptions | None = None, **options: Any) -> None:
        of_sinks = SinkOptions.names()
        if isinstance(config, Mapping):
            options = {**config, **options}
            config = None
        SinkOptions.from_mapping({name: value for name, value in options.items() if name in of_sinks})
        own = {name: value for name, value in options.items() if name not in of_sinks}
        self.options = chosen = read_options(EventTracerOptions, config, own)
        self._recorder = Recorder(chosen)
        self._lock = threading.RLock()
        self.reset()
        self._watches: list[Watch] = []
        tell_after_fork(self)

    @property
    def running(self) -> bool:
        """Whether calls make events."""
        return self._recorder.running

    def start(self) -> Self:
        """Begin, or go on after `stop`; harmless when it runs."""
        self._recorder.running = True
        return self

    def stop(self) -> None:
        """Make no more events; what is kept stays readable. Open spans are given up, and objects are let go of."""
        self._recorder.running = False
        while self._open_spans:
            self._give_up_a_span()
        with self._lock:
            watches, self._watches = self._watches, []
        for each in watches:
            unwatch(each, at_once=True)

    def reset(self) -> None:
        """Forget all events and numbers; it goes on running if it did."""
        self._recorder.reset()
        self._open_spans: dict[str, TracerSpan] = {}

    def after_fork_in_child(self) -> None:
        """Begin anew in a child: what happened before is the parent's."""
        self._lock = threading.RLock()
        self.reset()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # What happens

    def trace_event(
        self,
        event_type: str,
        data: Any = None,
        *,
        operation: str = "",
        level: str = "info",
        priority: str = "",
    ) -> str | None:
        """Keep an event and send it out; it belongs to the current execution and span.

        Args:
            event_type: What kind of thing happened.
            data: What is known about it, by name. It is read before this returns, and not changed.
            operation: The name that a person would look for.
            level: "debug", "info", "warning", "error" or "critical".
            priority: "critical", "normal" (the default) or "debug": what gives way first on the way out, and while
                monitoring costs too much.

        Returns:
            The event's id; None when nothing was made of it, since the tracer does not run.
        """
        return self._recorder.trace(event_type, data, None, operation, level, priority)

    def checkpoint(self, name: str, /, flow_id: str | None = None, **data: Any) -> str | None:
        """Say that a flow has come to a point: an event of type "checkpoint" with the name as its operation.

        Args:
            name: The point.
            flow_id: The flow, such as an order's number, which may be passed in several threads and processes; the
                current execution when None.
            **data: What else is known.

        Returns:
            The event's id, by which `analyze_flow` finds the flow too; None when the tracer does not run.
        """
        now = perf_counter_ns()
        flow_id = current().execution_id if flow_id is None else flow_id
        data = {**data, "flow_id": flow_id, "monotonic_ns": now}
        return self._recorder.trace("checkpoint", data, None, name, monotonic_ns=now)

    def span(self, name: str, /, **attributes: Any) -> TracerSpan:
        """Trace a piece of work: `with tracer.span("pack", boxes=2) as span:`, or `async with`.

        It is one event, at its end, as with `streamll.span`: what happens inside belongs to it, and spans inside are its
        children, of either kind.

        Args:
            name: The name that a person would look for.
            **attributes: What is known at the start; `span.set` adds to it.
        """
        return TracerSpan(self._recorder, name, attributes)

    def start_span(self, name: str, /, *, parent_id: str | None = None, **attributes: Any) -> str:
        """Begin a span that `end_span` ends, in whichever thread: for code that cannot use `with`.

        It does not become current: what happens meanwhile does not belong to it, unless it says so by `parent_id`.

        Args:
            name: The name that a person would look for.
            parent_id: The id of an open span that it is part of; the current span when None.
            **attributes: What is known at the start.

        Returns:
            The span's id; empty when the tracer does not run.
        """
        span = TracerSpan(self._recorder, name, attributes)
        outer = current()
        if parent_id is not None:
            parent = self._open_spans.get(parent_id)
            if parent is not None and parent._scope is not None:
                outer = parent._scope
        scope = span._open(outer)
        if scope is None:
            return ""
        self._open_spans[scope.span_id] = span
        if len(self._open_spans) > self.options.open_spans:
            self._give_up_a_span()
        return scope.span_id

    def end_span(self, span_id: str, /, *, error: BaseException | None = None, **attributes: Any) -> bool:
        """End a span that `start_span` began.

        Args:
            span_id: What `start_span` returned.
            error: What went wrong, if anything did.
            **attributes: What is known by now.

        Returns:
            Whether it was open. An id that is unknown, or of a span that has ended before, is counted and does no harm.
        """
        ended = perf_counter_ns()
        span = self._open_spans.pop(span_id, None) if type(span_id) is str else None
        if span is None:
            self._recorder.tally.add("unknown_spans")
            log.debug("end_span: no span with this id is open")
            return False
        span.set(**attributes)
        span._end(ended, error)
        return True

    def trace_state(self, target: Any, *attributes: str, label: str = "") -> bool:
        """Trace the changes of an object's attributes, until it is gone: an event of type "state_change" for each.

        An event's data are `object` (the class, or the label), `object_id`, `attribute`, `old` and `new`; without `old`
        when there was no value before, and without `new` when it was deleted. Setting the value that is there already is
        no change. The object is held weakly, and keeps its class, its slots, and the way it is compared, copied and
        pickled; but while an object of a class is traced, setting any attribute of any object of that class takes some
        0.3 us more. Not seen are changes that go around the class (`obj.__dict__[...]`, `object.__setattr__`, C code), and
        changes within a value, such as an appended item.

        Args:
            target: The object.
            *attributes: The attributes' names.
            label: What to call the object; else it is its class's name.

        Returns:
            Whether all of them are traced now; False when too many are.

        Raises:
            TypeError: It cannot be traced: a property (trace what it stores its value in), an object without weak
                references, a class that cannot be changed.
        """
        if not attributes:
            raise TypeError("trace_state: which attributes?")
        notice = Notice(ref(self._recorder), label or full_name(type(target)), f"{id(target):#x}")
        for attribute in attributes:
            with self._lock:
                self._watches = [each for each in self._watches if each.is_alive]
                if any(each.attribute == attribute and each.target() is target for each in self._watches):
                    continue
                if len(self._watches) >= WATCHED_BOUND:
                    self._recorder.tally.add("unwatched")
                    return False
                self._watches.append(watch(target, attribute, notice))
        return True

    def untrace(self, target: Any, *attributes: str) -> bool:
        """Trace an object's attributes no more.

        Args:
            target: The object.
            *attributes: The attributes' names; all that are traced when there are none.

        Returns:
            Whether any of them was.
        """
        with self._lock:
            meant = [
                each
                for each in self._watches
                if each.target() is target and (not attributes or each.attribute in attributes)
            ]
            self._watches = [each for each in self._watches if each not in meant and each.is_alive]
        for each in meant:
            unwatch(each)
        return bool(meant)

    # What has happened

    def get_events(
        self, type: str | None = None, since: int | None = None, limit: int | None = None
    ) -> list[TracedEvent]:
        """Return events that are kept, the oldest first. They are copies: change them as you like.

        Args:
            type: Only those of this event type.
            since: Only those of this time or later, in nanoseconds since the epoch, as an event's `timestamp` is.
            limit: So many at most: the last ones.
        """
        found: Iterable[TracedEvent] = decode_all(self._recorder.memory.read())
        if type is not None:
            found = (event for event in found if event.event_type == type)
        if since is not None:
            found = (event for event in found if event.timestamp >= since)
        return list(found if limit is None else deque(found, maxlen=max(0, limit)))

    def analyze_flow(
        self, flow_id: str | Iterable[flow.Event] | None = None, expected: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Say where the time between checkpoints goes, and what is missing, out of order, repeated or unfinished.

        Args:
            flow_id: A flow, or the id of a checkpoint in it, which is then compared with the others; all flows that are
                kept when None; or events to look at in the place of those that are kept, such as what a consumer has read.
            expected: The steps that each flow should make, in order. Without it, what most flows do is expected.

        Returns:
            A dict, described at `streamll.monitors.events.flow.analyze`; `found` is False when there is no such flow.
        """
        if flow_id is None or isinstance(flow_id, str):
            events: list[flow.Event] = list(self.get_events("checkpoint"))
        else:
            events, flow_id = list(flow_id), None
        steps = flow.steps_of(events)
        if flow_id is not None and all(step.flow != flow_id for step in steps):
            of_checkpoint = flow.flow_with(flow_id, events)
            flow_id = flow_id if of_checkpoint is None else of_checkpoint
        return flow.analyze(steps, expected, flow_id)

    def export(self, path: str | os.PathLike[str], format: str = "json") -> None:
        """Write the events that are kept to a file, as a whole or not at all.

        Args:
            path: The file.
            format: "json" for all that is known of them; "chrome" for a timeline that ui.perfetto.dev and chrome://tracing
                open: spans by thread, events, arrows from a span to its children in other threads, and curves.

        Raises:
            ConfigurationError: There is no such format.
            OSError: The file cannot be written.
        """
        trace_formats.write(path, self.get_events(), format)

    def report(self) -> dict[str, Any]:
        """Return what the kept events say in short, as JSON has it: how many of which type, spans by their operation (the
        one that took the most time first; all times in nanoseconds), and the flows.
        """
        types: dict[str, int] = {}
        spans: dict[str, tuple[QuantileSketch, list[int]]] = {}
        events = self.get_events()
        for event in events:
            types[event.event_type] = types.get(event.event_type, 0) + 1
            duration = event.data.get("duration_ns")
            if event.event_type == "span" and type(duration) is int:
                sketch, errors = spans.setdefault(event.operation, (QuantileSketch(), [0]))
                sketch.add(duration)
                errors[0] += event.level == "error"
        operations: list[dict[str, Any]] = [
            {
                "operation": operation,
                "count": sketch.count,
                "errors": errors[0],
                "total_ns": sketch.total,
                **dict(zip(("p50_ns", "p95_ns", "p99_ns"), sketch.quantiles((0.5, 0.95, 0.99)), strict=True)),
                "max_ns": sketch.maximum,
            }
            for operation, (sketch, errors) in spans.items()
        ]
        return {
            "running": self._recorder.running,
            "stats": asdict(self.stats()),
            "types": dict(sorted(types.items(), key=lambda item: -item[1])[:REPORTED]),
            "spans": sorted(operations, key=lambda row: -row["total_ns"])[:REPORTED],
            "flow": flow.analyze(flow.steps_of(events)),
        }

    def stats(self) -> EventTracerStats:
        """Return what it did so far."""
        counts = self._recorder.tally.read()
        retained, size = self._recorder.memory.held

        def several(*names: str) -> dict[str, int]:
            return {name: counts[name] for name in names if name in counts}

        def one(name: str) -> int:
            return counts.get(name, 0)

        return EventTracerStats(
            events=sum(several("event", "span", "checkpoint", "state_change").values()),
            spans=one("span"),
            checkpoints=one("checkpoint"),
            state_changes=one("state_change"),
            retained=retained,
            retained_bytes=size,
            forgotten=self._recorder.memory.forgotten,
            not_sent=several("inactive", "refused", "debug"),
            not_made=several("stopped", "muted"),
            open_spans=len(self._open_spans),
            abandoned_spans=one("abandoned_spans"),
            unknown_spans=one("unknown_spans"),
            watched=sum(each.is_alive for each in list(self._watches)),
            unwatched=one("unwatched"),
            cut=one("cut"),
            redacted=one("redacted"),
            stand_ins=one("stand_ins"),
            errors=one("errors"),
        )

    def _give_up_a_span(self) -> None:
        try:
            oldest = next(iter(self._open_spans))
        except (StopIteration, RuntimeError):  # another thread was faster
            return
        if self._open_spans.pop(oldest, None) is not None:
            self._recorder.tally.add("abandoned_spans")
