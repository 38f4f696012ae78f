"""How a tracer makes an event: kept as it is in this moment, and sent out.

What belongs here: that making, and the two things that end in it beside a plain call: a span, and a change of an
object's state. What does not: what users call (event_tracer.py), and how events are kept (traced_events.py).
"""

from __future__ import annotations

import logging
import threading
from itertools import count
from sys import _getframe
from time import perf_counter_ns, thread_time_ns, time_ns
from typing import TYPE_CHECKING, Any
from weakref import ref

from streamll.context import SCOPE, Scope, current
from streamll.errors import BufferFullError
from streamll.hub import hub
from streamll.ids import new_event_id, new_execution_id, new_span_id
from streamll.models import DEBUG, NO_TAGS
from streamll.monitors.budget import TRACER, budget
from streamll.monitors.events.attribute_watch import UNSET
from streamll.monitors.events.options import EventTracerOptions
from streamll.monitors.events.traced_events import Memory, encode_fields
from streamll.monitors.outlet import withheld
from streamll.plain import room_after
from streamll.privacy.keys import SensitiveKeys
from streamll.spans import Span, surroundings
from streamll.spans import _outcome as outcome_of
from streamll.tally import Tally
from streamll.values import clean

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("streamll")

MEASURE_EVERY = 128
"""One call of so many is measured, and charged for all of them."""

_LABEL = 1024
"""About the longest label that is kept, in characters."""

_KINDS = {"span": "span", "checkpoint": "checkpoint", "state_change": "state_change"}


_here = threading.local()


def _this_thread() -> tuple[int, str]:
    """The thread's id and name, which is looked up once: `threading.current_thread` would register a foreign thread."""
    try:
        known: tuple[int, str] = _here.thread
    except AttributeError:
        ident = threading.get_ident()
        names = [thread.name for thread in threading.enumerate() if thread.ident == ident]
        known = _here.thread = (ident, names[0] if names else "")
    return known


class Recorder:
    """Makes a tracer's events.

    Attributes:
        running: Whether it does.
        generation: Changes when all is forgotten: what began before is not to be ended after.
        memory: What is kept.
        tally: How often what was done.
    """

    def __init__(self, options: EventTracerOptions) -> None:
        self._options = options
        self.running = False
        self.generation = 0
        self.memory = Memory(options.retain, options.retain_bytes)
        self._calls = count()
        self.reset()

    def reset(self) -> None:
        """Forget all events and numbers."""
        self.generation += 1
        self.memory.become_new()
        self.tally = Tally()

    def trace(
        self,
        event_type: str,
        data: Any,
        belongs_to: Scope | None,
        operation: str = "",
        level: str = "info",
        priority: str = "",
        monotonic_ns: int | None = None,
    ) -> str | None:
        """Make an event that belongs to a scope, the present one when None, unless none is to be made."""
        if not self.running:
            self.tally.add("stopped")
            return None
        scope, data = surroundings(data)
        if scope is None:
            self.tally.add("muted")
            return None
        now = perf_counter_ns() if monotonic_ns is None else monotonic_ns
        return self.make(
            belongs_to or scope, event_type, data, operation, level, priority, time_ns(), now, _this_thread()
        )

    def make(
        self,
        scope: Scope,
        event_type: str,
        data: dict[Any, Any],
        operation: str,
        level: str,
        priority: str,
        timestamp: int,
        monotonic_ns: int,
        thread: tuple[int, str],
    ) -> str | None:
        """Keep an event and send it out; never raises."""
        is_measured = not next(self._calls) % MEASURE_EVERY
        began = thread_time_ns() if is_measured else 0
        event_id = new_event_id()
        try:
            self.tally.add(_KINDS.get(event_type, "event") if type(event_type) is str else "event")
            if self._options.retain:
                ids = (event_id, scope.execution_id, scope.span_id, scope.parent_span_id)
                fields = (event_type, *ids, timestamp, monotonic_ns, *thread, operation, level, priority, data)
                self.memory.add(self._encode(fields))
            if not hub.active:
                self.tally.add("inactive")
            elif type(priority) is str and priority == DEBUG and not budget.allowance.debug:
                self.tally.add("debug")
                withheld.add("debug")
            elif not hub.take(
                event_type,
                event_id,
                scope.execution_id,
                scope.span_id,
                scope.parent_span_id,
                timestamp,
                "",
                "",
                operation,
                level,
                data,
                NO_TAGS,
                priority,
            ):
                self.tally.add("refused")
        except BufferFullError:  # the strategy is to raise, for `emit` to do; the sink has counted it
            self.tally.add("refused")
        except Exception:  # this is called in the middle of the program, which a defect of ours is not to hurt
            self.tally.add("errors")
            log.debug("an event was lost to an internal error", exc_info=True)
        if is_measured:
            budget.costs.charge(TRACER, (thread_time_ns() - began) * MEASURE_EVERY)
        return event_id

    def _encode(self, fields: tuple[Any, ...]) -> bytes:
        """Make bytes of the fields of a `TracedEvent`: as they are when nothing needs a change, as nearly always."""
        limit, rules = self._options.event_bytes, hub.rules
        event_type, *ids_and_times, thread_name, operation, level, priority, data = fields
        looks_at_texts = rules is not None and rules.scanner is not None
        if type(event_type) is type(operation) is type(level) is type(priority) is str and not looks_at_texts:
            try:
                if room_after(data, rules, limit) >= 0:
                    event = encode_fields(fields)
                    if len(event) <= limit:
                        return event
            except Exception:  # noqa: S110  # lone surrogates, or another thread changes the data; the slow way looks
                pass
        cleaned = clean(data, rules, limit, fair=True)
        self.tally.add("cut", cleaned.cut)
        self.tally.add("stand_ins", cleaned.stand_ins)
        self.tally.add("redacted", cleaned.redacted + sum(cleaned.found.values()))
        ids = [each if type(each) is int else _label(each, rules) for each in ids_and_times]
        labels = [_label(each, rules) for each in (thread_name, operation, level, priority)]
        return encode_fields((_label(event_type, rules), *ids, *labels, cleaned.value))


class TracerSpan(Span):
    """A span that its tracer keeps, whether or not a sink receives it. See `EventTracer.span`."""

    __slots__ = ("_recorder", "_thread")

    def __init__(self, recorder: Recorder, operation: str, attributes: dict[str, Any]) -> None:
        super().__init__(operation)
        self._attributes = attributes
        self._recorder = recorder

    def __enter__(self) -> Self:
        if self._token is None:
            scope = self._open(current())
            if scope is not None:
                if hub.frames is not None:
                    self._enter_frame(hub.frames, _getframe(1))
                self._token = SCOPE.set(scope)
        return self

    def event(self, name: str, /, **data: Any) -> None:
        """Trace an event that belongs to this span, wherever it is called."""
        self._recorder.trace(name, data, self._scope, operation=self._operation)

    def _open(self, outer: Scope) -> Scope | None:
        """Begin, and return the scope to run in, which is not made current; None where nothing is traced."""
        recorder = self._recorder
        if not recorder.running or outer.muted:
            recorder.tally.add("muted" if outer.muted else "stopped")
            return None
        self._scope = scope = Scope(
            outer.execution_id or new_execution_id(),
            new_span_id(),
            outer.span_id,
            outer.attributes,
            False,
            outer.trace_flags,
            outer.trace_state,
        )
        self._forks = recorder.generation
        self._thread = _this_thread()
        self._timestamp, self._began = time_ns(), perf_counter_ns()
        if self._announced:
            self._report(scope, "span_start", "info", {**scope.attributes, **self._attributes})
        return scope

    def _end(self, ended: int, error: BaseException | None) -> None:
        scope, recorder = self._scope, self._recorder
        if scope is None or self._forks != recorder.generation:
            return  # it is the parent process's, or was forgotten
        if not recorder.running:
            recorder.tally.add("abandoned_spans")
            return
        try:
            data = {**scope.attributes, **self._attributes, "duration_ns": ended - self._began}
            self._report(scope, "span", "info" if error is None else outcome_of(error, data), data)
        except Exception:  # a stack too full for these calls
            recorder.tally.add("errors")

    def _report(self, scope: Scope, event_type: str, level: str, data: dict[str, Any]) -> None:
        self._recorder.make(
            scope,
            event_type,
            data,
            self._operation,
            level,
            self._priority,
            self._timestamp,
            self._began,
            self._thread,
        )


class Notice:
    """What is told of an object's changes. It holds neither the object nor the tracer."""

    __slots__ = ("_name", "_object_id", "_recorder")

    def __init__(self, recorder: ref[Recorder], name: str, object_id: str) -> None:
        self._recorder = recorder
        self._name = name
        self._object_id = object_id

    def __call__(self, attribute: str, old: Any, new: Any) -> bool:
        """Make an event of a change that is one; False when the tracer is gone."""
        recorder = self._recorder()
        if recorder is None:
            return False
        if recorder.running and not _are_same(old, new):
            data: dict[str, Any] = {"object": self._name, "object_id": self._object_id, "attribute": attribute}
            for key, value in (("old", old), ("new", new)):
                if value is not UNSET:
                    _put_as(attribute, key, value, data)
            recorder.trace("state_change", data, None, attribute)
        return True


def _put_as(attribute: str, key: str, value: Any, data: dict[str, Any]) -> None:
    """Put an attribute's value under another key, redacted as it would be under its own."""
    rules = hub.rules
    if rules is not None and rules(attribute):
        data.update((key, redacted) for redacted in clean({attribute: value}, rules, _LABEL).value.values())
    else:
        data[key] = value


def _are_same(old: Any, new: Any) -> bool:
    """Whether a value is the one before, without asking an object of the program's."""
    if old is new:
        return True
    return type(old) is type(new) and type(old) in _COMPARABLE and bool(old == new)


_COMPARABLE = frozenset({str, int, float, bool, bytes})


def _label(value: Any, rules: SensitiveKeys | None) -> str:
    label = clean(value, rules, _LABEL).value
    return label if type(label) is str else str(label)
