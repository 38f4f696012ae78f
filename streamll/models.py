"""What flows: `StreamllEvent` in front of the buffer, `Record` behind it.

What belongs here: the two shapes. What does not: how they become bytes (codec.py), what may be in them (values.py), or
who fills them in (pipeline.py).
"""

from __future__ import annotations

from time import time_ns
from typing import Any

import msgspec

from streamll.ids import new_event_id

SCHEMA_VERSION = 1

GAP = "streamll.gap"
"""The event type of a sink's own word that it dropped events: `data` has count, ranges ([[first, last], ...]) and
reasons ({reason: count}). Its sequence number is the last one of the hole."""

CLOSING = "streamll.closing"
"""The event type of a sink's last word after a clean stop: `data` has last, the number of the last event that was
accepted. Its own sequence number is the one behind that."""

NOTES = frozenset({GAP, CLOSING})
"""The event types that a sink keeps for its own words about its events."""

CRITICAL, NORMAL, DEBUG = "critical", "normal", "debug"
PRIORITIES = (CRITICAL, NORMAL, DEBUG)
"""Which events give way under pressure: debug first, critical last. It never decides the order."""


NO_TAGS: list[Any] = []
"""What stands for tags that nobody gave, so that not every event needs a list of its own. It is never changed."""


class StreamllEvent(msgspec.Struct, omit_defaults=True, tag_field="v", tag=SCHEMA_VERSION):
    """Something that happened in the watched program.

    Only `event_type` must be given. Give all else by its name: the order of the fields may change. Ids may be any strings; those that streamll makes are W3C Trace Context shaped.

    Attributes:
        event_type: What kind of thing happened: "span", "token", "error".
        event_id: Unique; 32 hex digits when made here.
        execution_id: The execution (trace) it belongs to; filled in from the context when empty.
        span_id: The span it belongs to; filled in from the context when empty.
        parent_span_id: The span around that span.
        timestamp: When it happened, in integer nanoseconds since the epoch, UTC. A span's is its start.
        module_name: The module whose code it is about.
        method_name: The function or method it is about.
        operation: The name that a person would look for: "retrieve", "generate".
        level: "debug", "info", "warning", "error" or "critical"; empty means not said.
        data: Whatever else is known, by name.
        tags: A list of labels, or a map of them; kept as given.
        resource: Who says it: service, environment, release, host, pid. The pipeline fills it in while encoding.
        priority: "critical", "normal" or "debug": what gives way first under pressure is debug, last critical. Empty
            means normal, and so does any other word.
        extra: Keys of a newer version's events, kept so that they survive a reader that does not know them.
    """

    event_type: str
    event_id: str = msgspec.field(default_factory=new_event_id)
    execution_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    timestamp: int = msgspec.field(default_factory=time_ns)
    module_name: str = ""
    method_name: str = ""
    operation: str = ""
    level: str = ""
    data: dict[str, Any] = {}
    tags: list[Any] | dict[str, Any] = []
    resource: dict[str, Any] = {}
    priority: str = ""
    extra: dict[str, Any] = {}


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An encoded event: immutable bytes, and the few labels that a transport routes by.

    It holds strings, numbers and bytes only, so nothing behind the pipeline keeps an object of the application alive,
    and the garbage collector need not look at it. The order of its fields is that in a journal: new ones come last.

    Attributes:
        payload: The event, encoded.
        content_type: "application/msgpack" or "application/json".
        event_id, event_type, operation, module_name, method_name, level, execution_id: As in the event.
        timestamp: As in the event: nanoseconds since the epoch.
        created: When the record was made, in monotonic nanoseconds; the latency counts from here.
        poison: Why the event must go straight to the dead letters; empty for a good one.
        priority: As in the event; "normal" when that says nothing.
    """

    payload: bytes
    content_type: str
    event_id: str
    event_type: str
    operation: str
    module_name: str
    method_name: str
    level: str
    execution_id: str
    timestamp: int
    created: int
    poison: str = ""
    priority: str = NORMAL
