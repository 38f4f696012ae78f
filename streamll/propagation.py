"""The way of an execution across processes: the headers `traceparent` and `tracestate` of W3C Trace Context.

What belongs here: reading and writing the two headers (https://www.w3.org/TR/trace-context/, both levels), in whatever
way the frameworks hold headers; and going on from an event that was read back, which carries the same. What does not:
transport; the caller puts the headers into a request or a message.

Headers come from outside, so nothing in them is an error: what cannot be understood is as good as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any, Protocol, TypeVar, overload

from streamll.context import Block, Scope, current, execution
from streamll.hub import hub
from streamll.ids import new_span_id
from streamll.models import StreamllEvent

Carrier = TypeVar("Carrier", bound=MutableMapping[str, Any])


class _Items(Protocol):
    def items(self) -> Iterable[tuple[Any, Any]]: ...


class _HasEvent(Protocol):
    """What a consumer gives."""

    @property
    def event(self) -> StreamllEvent | None: ...


Headers = _Items | Iterable[tuple[Any, Any]]

_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]*)?"
)
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")

_KEY = r"[a-z0-9][a-z0-9_\-*/]"
_MEMBER = re.compile(
    rf"({_KEY}{{0,255}}|{_KEY}{{0,240}}@{_KEY}{{0,13}})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_MEMBERS_BOUND = 32

_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03
"""Sampled, and random trace id (level 2); whoever writes a version 00 header must not pass on the others."""


@overload
def inject(carrier: dict[str, str]) -> dict[str, str]: ...


@overload
def inject(carrier: Carrier) -> Carrier: ...


def inject(carrier: Any) -> Any:
    """Put the present execution and span into headers, for another process to `extract`.

    Writes `traceparent`, and `tracestate` when one came in with the execution. Outside of any span, the parent named is
    the one that came in, or else a new id for what is about to be sent. Writes nothing outside of any execution, nor
    when the execution's id is no W3C trace id (32 lower-case hex digits, not all zero), such as one of your own given
    to `execution`: send such an id in a header of your own, and continue with `execution(id)`.

    With a `sample_rate` below 1, the sampled flag says whether this execution's events are sent, and `extract` has the
    next process do the same.

    Args:
        carrier: The headers, as a mapping that can be changed.

    Returns:
        The same carrier.

    Example:
        requests.get(url, headers=streamll.inject({}))
    """
    scope = current()
    if _TRACE_ID.fullmatch(scope.execution_id):
        span_id = scope.span_id if _SPAN_ID.fullmatch(scope.span_id) else new_span_id()
        carrier["traceparent"] = f"00-{scope.execution_id}-{span_id}-{_flags(scope)}"
        if scope.trace_state:
            carrier["tracestate"] = scope.trace_state
    return carrier


def _flags(scope: Scope) -> str:
    """The flags to pass on: those that came in, or else "sampled"; but that bit says what is done here, where that is said."""
    flags = int(scope.trace_flags or "01", 16)
    if hub.is_sampled is not None:
        flags = flags & ~_SAMPLED | hub.is_sampled(scope.execution_id, scope.trace_flags)
    return f"{flags:02x}"


def extract(carrier: Headers | StreamllEvent | _HasEvent | None) -> Block:
    """Continue, for a block, the execution that came in with headers: `with streamll.extract(request.headers):`.

    Spans inside are children of the span that sent the headers, or that an event was emitted in. When there is no valid
    `traceparent`, a new execution begins. Where events are sampled (`sample_rate`), the sampled flag decides; an event
    that arrived counts as sampled. Never raises.

    Args:
        carrier: Anything with `items()`, or pairs of name and value. Names in any case, also as in a WSGI environment
            (`HTTP_TRACEPARENT`) or that of a process; names and values as strings or bytes; values also as lists of them.
            Or an event that was read back, or what a consumer gives.

    Example:
        for received in streamll.consumers.RedisConsumer("redis://localhost:6379/0", "orders"):
            with streamll.extract(received), streamll.span("handle"):
                handle(received.event)
    """
    try:
        event = carrier if type(carrier) is StreamllEvent else getattr(carrier, "event", None)
        found = (event.execution_id, event.span_id, "01", "") if type(event) is StreamllEvent else _read(carrier)
    except Exception:  # a carrier that is none, or whose own code fails
        found = None
    if found is None or not found[0]:
        return execution()
    trace_id, span_id, flags, state = found
    return Block(lambda outer: Scope(trace_id, span_id, "", outer.attributes, outer.muted, flags, state))


def _read(carrier: Any) -> tuple[str, str, str, str] | None:
    """Return trace id, span id, flags and state; None without a valid traceparent."""
    if carrier is None:
        return None
    parents: list[str] = []
    states: list[str] = []
    items = getattr(carrier, "items", None)
    for name, value in items() if callable(items) else carrier:
        header = _text(name).lower().removeprefix("http_")
        if header == "traceparent":
            parents += _texts(value)
        elif header == "tracestate":
            states += _texts(value)
    if len(parents) != 1:
        return None  # a second one leaves open which is meant
    match = _TRACEPARENT.fullmatch(parents[0].strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if more and version == "00":
        return None
    return trace_id, span_id, f"{int(flags, 16) & _KNOWN_FLAGS:02x}", _read_state(states)


def _read_state(headers: list[str]) -> str:
    """Return the tracestate to pass on: all of its members, or nothing when one is wrong."""
    members = [member for header in headers for part in header.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MEMBERS_BOUND or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    return ",".join(members)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, (list, tuple)) else [_text(value)]
