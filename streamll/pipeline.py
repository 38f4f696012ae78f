"""From an event to a `Record`: enrich, before_send, redact, limits, encode.

What belongs here: the way that every event takes, by `emit` or by a sink's own `handle_event`, so that no way in goes
around redaction or limits. What does not: where records go (sinks), which values are encodable (values.py).

Nearly every event is plain: nothing to redact, nothing to replace. It is checked in one pass and encoded as it is. What
only has to be redacted is copied; all else takes the slower way through `values.clean`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import isfinite
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any

import msgspec

from streamll import codec
from streamll.context import current, muted
from streamll.errors import BufferFullError
from streamll.hub import Take
from streamll.models import NO_TAGS, NORMAL, PRIORITIES, Record, StreamllEvent
from streamll.options import KIB, BeforeSend, PipelineOptions
from streamll.plain import INT_MAX, INT_MIN, room_after
from streamll.privacy.kinds import HASH, read_rules
from streamll.privacy.rules import Rules
from streamll.redaction import IDS, NOTHING_FOUND, Known, is_own_id, look_through, redacted, scanned
from streamll.sampling import Sampling
from streamll.tally import Tally
from streamll.values import clean

if TYPE_CHECKING:
    from streamll.privacy.pseudonyms import Pseudonyms

log = logging.getLogger("streamll")

_NOTHING: dict[str, Any] = {}

_FOUND = "found:"
"""What the names of counters begin with that count what was found in texts."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

WHOLE = 16
"""A dead letter for its length is kept whole up to so many times max_event_bytes; data may be as good as endless."""

_LABEL_BOUND = 1024
"""The longest label (id, name, operation) of an event that has to be cut, in characters."""

_KEPT_OF_LABELS = (32, 8)
"""Characters of a label that are left when nothing else is; eight of each always fit, six bytes for a character."""

_ENVELOPE = 256
"""What an event's own keys need at least, in bytes; values get the rest."""


@dataclass(frozen=True)
class PipelineStats:
    """What the pipeline did to events, each counted once for each kind of thing done to it.

    Attributes:
        redacted: Values that stood under a sensitive key.
        redacted_values: What else was found and dealt with, by its kind: "user_id", "email", "card". See docs/privacy.md.
        stand_ins: Values that could not be encoded and were replaced by a readable stand-in.
        cut: Values that were shortened, because the event was longer than max_event_bytes.
        oversize: Events that were longer than max_event_bytes.
        filtered: Events that a before_send function dropped.
        before_send_errors: Events dropped because a before_send function raised: what it was to remove may be in them.
        muted: Events emitted on a worker thread of streamll, which are cut off: telemetry about telemetry has no end.
        internal_errors: Events lost to a defect of streamll; report it.
        sampled_out: Events that sampling left out. They were not offered to any sink.
        tail_captured: Such events that were offered after all, since something went wrong soon after them.
        tail_expired: Such events that were held for that and had to go. With `tail_events`, `sampled_out` is the sum of
            these two and `tail_held`; else they are all gone.
        tail_held: Such events that are held at present.
    """

    redacted: int = 0
    redacted_values: Mapping[str, int] = field(default_factory=dict)
    stand_ins: int = 0
    cut: int = 0
    oversize: int = 0
    filtered: int = 0
    before_send_errors: int = 0
    muted: int = 0
    internal_errors: int = 0
    sampled_out: int = 0
    tail_captured: int = 0
    tail_expired: int = 0
    tail_held: int = 0


class Pipeline:
    """Turns events into records. One object serves all sinks of a configuration, from any thread.

    Args:
        options: Limits, redaction and the resource's names.
        before_send: Functions from event to event, or to None to drop it; applied in order, before redaction. They get
            a copy and may change it.
        environ: Where the service's name is looked for when `options` does not give it (`OTEL_SERVICE_NAME`).
    """

    def __init__(
        self,
        options: PipelineOptions | None = None,
        before_send: Sequence[BeforeSend] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.options = options = options or PipelineOptions()
        self._before_send = tuple(before_send)
        self._limit = options.max_event_bytes
        self.rules = _rules_of(options)
        self.sampling = Sampling.wanted(options)
        self.resource = describe_resource(options, environ or {})
        self._resource: dict[str, msgspec.Raw] = {}
        self._encode_resource()
        self.tally = Tally()

    @property
    def shows_events(self) -> bool:
        """Whether before_send functions see events."""
        return bool(self._before_send)

    def stats(self) -> PipelineStats:
        """Return what was done to events so far."""
        counts: dict[str, Any] = self.tally.read()
        found = {name.partition(":")[2]: counts.pop(name) for name in sorted(counts) if name.startswith(_FOUND)}
        if self.sampling is not None:
            counts |= self.sampling.counts()
        return PipelineStats(redacted_values=found, **counts)

    def note_defect(self, error: Exception) -> None:
        """Count an event that was lost to a defect of streamll itself."""
        self.tally.add("internal_errors")
        _say_once("defect", "an event was lost to an internal error (%s); please report it", error)
        log.debug("an event was lost to an internal error", exc_info=error)

    def refresh_process(self) -> None:
        """Begin anew in a forked child: its process id, and its own counts."""
        self.resource["pid"] = os.getpid()
        self.tally = Tally()
        if self.sampling is not None:
            self.sampling.become_new()
        self._encode_resource()

    def _encode_resource(self) -> None:
        for kind in codec.CONTENT_TYPES.values():
            self._resource[kind] = codec.encode_resource(self.resource, kind)

    def prepare(self, event: StreamllEvent) -> StreamllEvent | None:
        """Enrich an event, and let the before_send functions see it.

        Args:
            event: An event that nobody else will change any more; it may be changed here.

        Returns:
            The event to encode; None when it is dropped, which is counted.
        """
        scope = current()
        if scope.muted:
            self.tally.add("muted")
            return None
        if _is_missing(event.execution_id):
            event.execution_id = scope.execution_id
            if scope.span_id and _is_missing(event.span_id):
                event.span_id = scope.span_id
            if scope.parent_span_id and _is_missing(event.parent_span_id):
                event.parent_span_id = scope.parent_span_id
            if scope.attributes and type(event.data) is dict:
                event.data = {**scope.attributes, **event.data}
        return self._ask_before_send(event) if self._before_send else event

    def _ask_before_send(self, event: StreamllEvent) -> StreamllEvent | None:
        for name in ("data", "tags", "resource", "extra"):
            setattr(event, name, _copied(getattr(event, name)))
        for function in self._before_send:
            with muted():  # what they emit would come back here
                try:
                    changed = function(event)
                    if changed is not None and not issubclass(type(changed), StreamllEvent):
                        raise TypeError(f"it returned a {type(changed).__name__}")
                except Exception as error:
                    self.tally.add("before_send_errors")
                    _say_once("before_send", "a before_send function raised %s; its events are dropped", error)
                    return None
            if changed is None:
                self.tally.add("filtered")
                return None
            event = changed
        return event

    def encode(self, event: StreamllEvent, content_type: str = codec.MSGPACK) -> Record:
        """Redact, limit and encode a prepared event. Its maps and lists are not changed; never raises for its values."""
        if self._is_plain(event):
            try:
                payload = codec.encode(event, content_type, self._resource[content_type])
                if len(payload) <= self._limit:
                    return _record(event, payload, content_type)
            except Exception:  # noqa: S110  # lone surrogates, for one; the slow way finds what it was
                pass
        return self._encode_any(event, content_type)

    def _encode_any(self, event: StreamllEvent, content_type: str, known: Known | None = None) -> Record:
        """Encode an event with whatever may be in it; with what was found in its texts, if that is known."""
        record = self._encode_redacted(event, content_type, known)
        if record is not None:
            return record
        # Twice the limit, so that what is only a little too long is measured rather than cut.
        ready, cleaning = self._clean(event, self._limit * (2 if self.options.oversize == "cut" else WHOLE))
        payload = codec.encode(ready, content_type, self._resource[content_type])
        poison = ""
        if len(payload) > self._limit:
            self.tally.add("oversize")
            if self.options.oversize == "cut":
                ready, payload, cleaning = self._cut(event, content_type)
            else:
                poison = f"too large: {len(payload)} bytes, max_event_bytes is {self._limit}"
        self._count(cleaning.redacted, cleaning.found)
        self.tally.add("stand_ins", cleaning.stand_ins)
        self.tally.add("cut", cleaning.cut)
        return _record(ready, payload, content_type, poison)

    def _encode_redacted(self, event: StreamllEvent, content_type: str, known: Known | None) -> Record | None:
        """Encode an event to which nothing is to be done but to redact its data; None when there may be more to do."""
        rules = self.rules
        if rules is None or not _has_plain_frame(event):
            return None
        try:
            if known is None:
                known = NOTHING_FOUND if rules.scanner is None else look_through(rules.scanner, event, self._limit)
            if known is None:
                return None
            ready, redaction = redacted(event, rules, self._limit, known)
            payload = codec.encode(ready, content_type, self._resource[content_type])
        except Exception:  # the slow way finds what it was
            return None
        if len(payload) > self._limit:
            return None
        self._count(redaction.redacted, Counter(redaction.found))
        return _record(ready, payload, content_type)

    def _count(self, redacted: int, found: Mapping[str, int]) -> None:
        self.tally.add("redacted", redacted)
        for kind, count in found.items():
            self.tally.add(f"{_FOUND}{kind}", count)

    def straight(self, content_type: str, put: Callable[[Record], bool]) -> Take:
        """Return the shortest way of an event of streamll's own making: from its fields, as for `Hub.take`, to `put`.

        It is a closure, and does in one piece what `prepare` and `encode` do for events from elsewhere: nearly every
        event comes this way, and each call and each look-up on it would be paid for by the host.
        """
        sensitive, limit, resource, encode = self.rules, self._limit, self._resource, codec.ENCODE[content_type]
        harmless: Set[str] = frozenset() if sensitive is None else sensitive.harmless

        def take(
            event_type: str,
            event_id: str,
            execution_id: str,
            span_id: str,
            parent_span_id: str,
            timestamp: int,
            module_name: str,
            method_name: str,
            operation: str,
            level: str,
            data: dict[Any, Any],
            tags: Any,
            priority: str,
        ) -> bool:
            try:
                payload = b""
                # As in `_is_plain`; only what a user has given is looked at.
                if (
                    type(event_type) is type(operation) is type(level) is type(module_name) is type(method_name) is str
                    and type(priority) is str
                    and event_type
                    and (tags is NO_TAGS or _are_plain(tags, sensitive, limit))
                ):
                    try:
                        room = limit
                        for key, value in data.items():
                            if type(key) is str and key in harmless:
                                kind = type(value)
                                if kind is str:
                                    room -= len(value)
                                    continue
                                if kind is int:
                                    if INT_MIN <= value <= INT_MAX:
                                        continue
                                elif kind is bool or value is None or (kind is float and isfinite(value)):
                                    continue
                            room = room_after(data, sensitive, limit)  # it is not as simple as most
                            break
                        if room >= 0:
                            payload = encode(
                                StreamllEvent(
                                    event_type,
                                    event_id,
                                    execution_id,
                                    span_id,
                                    parent_span_id,
                                    timestamp,
                                    module_name,
                                    method_name,
                                    operation,
                                    level,
                                    data,
                                    tags,
                                    resource[content_type],  # type: ignore[arg-type]  # the bytes of such a map
                                    priority,
                                    _NOTHING,
                                )
                            )
                    except Exception:  # noqa: S110  # as in `encode`
                        pass
                if payload and len(payload) <= limit:
                    return put(
                        Record(
                            payload,
                            content_type,
                            event_id,
                            event_type,
                            operation,
                            module_name,
                            method_name,
                            level,
                            execution_id,
                            timestamp,
                            monotonic_ns(),
                            "",
                            priority if priority and priority in PRIORITIES else NORMAL,
                        )
                    )
                event = StreamllEvent(
                    event_type,
                    event_id,
                    execution_id,
                    span_id,
                    parent_span_id,
                    timestamp,
                    module_name,
                    method_name,
                    operation,
                    level,
                    data,
                    tags,
                    {},
                    priority,
                )
                # Where texts are looked through, that has been done, or this would not have got here.
                return put(self._encode_any(event, content_type, NOTHING_FOUND))
            except BufferFullError:
                raise
            except Exception as error:  # whatever it is, the host is not to be hurt by it
                self.note_defect(error)
                return False

        if sensitive is None or sensitive.scanner is None:
            return take

        def take_otherwise(event: StreamllEvent, known: Known | None) -> bool:
            try:
                return put(self._encode_any(event, content_type, known))
            except BufferFullError:
                raise
            except Exception as error:  # whatever it is, the host is not to be hurt by it
                self.note_defect(error)
                return False

        return scanned(sensitive.scanner, limit, take, take_otherwise)

    def encode_note(self, note: StreamllEvent, content_type: str) -> Record:
        """Encode a sink's own word about its events: it is for a machine to read, so nothing is redacted or cut."""
        return _record(note, codec.encode(note, content_type, self._resource[content_type]), content_type)

    def _is_plain(self, event: StreamllEvent) -> bool:
        try:
            rules, limit = self.rules, self._limit
            if not _has_plain_frame(event) or room_after(event.data, rules, limit) < 0:
                return False
            if not _are_plain(event.tags, rules, limit):
                return False
            return rules is None or rules.scanner is None or look_through(rules.scanner, event, limit) is NOTHING_FOUND
        except RuntimeError:  # a map changed its size meanwhile
            return False

    def _clean(self, event: StreamllEvent, budget: int, fair: bool = False) -> tuple[StreamllEvent, _Cleaning]:
        """The same event with encodable values only, and what was done to get there."""
        cleaning = _Cleaning(self.rules, budget, fair)
        event = copy(event)
        for name in codec.LABELS:
            label = getattr(event, name)
            if name not in IDS or not is_own_id(label):
                setattr(event, name, cleaning.label(label, _LABEL_BOUND if fair else self._limit))
        event.event_type = event.event_type or "event"
        event.timestamp = cleaning.timestamp(event.timestamp)
        event.data = cleaning.map(event.data, "value")
        event.tags = cleaning.tags(event.tags)
        resource = cleaning.map(event.resource, "name")
        event.resource = {**self.resource, **resource} if resource else {}
        event.extra = cleaning.map(event.extra, "extra")
        return event, cleaning

    def _cut(self, event: StreamllEvent, content_type: str) -> tuple[StreamllEvent, bytes, _Cleaning]:
        """Shorten values until the event fits; the budget halves, since how long bytes become is known only then."""
        budget = self._limit - _ENVELOPE
        while budget > 16:
            smaller, cleaning = self._clean(event, budget, fair=True)
            payload = codec.encode(smaller, content_type, self._resource[content_type])
            if len(payload) <= self._limit:
                return smaller, payload, cleaning
            budget //= 2
        # Not even the labels fit: keep the start of each.
        smaller, cleaning = self._clean(event, 0, fair=True)
        cleaning.cut += 1
        smaller.data, smaller.tags, smaller.extra, smaller.resource = {"<cut>": "<all>"}, [], {}, {}
        payload = codec.encode(smaller, content_type)
        for kept in _KEPT_OF_LABELS:
            if len(payload) > self._limit:
                for name in codec.LABELS:
                    setattr(smaller, name, getattr(smaller, name)[:kept])
                payload = codec.encode(smaller, content_type)
        return smaller, payload, cleaning


def _has_plain_frame(event: StreamllEvent) -> bool:
    """Return whether nothing is to be done to an event but, may be, to its data and tags."""
    # A subclass of str is refused too, such as a member of an enumeration: a record keeps its labels.
    event_type = event.event_type
    if not (
        type(event_type) is type(event.event_id) is type(event.execution_id) is type(event.span_id) is str
        and type(event.parent_span_id) is type(event.module_name) is type(event.method_name) is str
        and type(event.operation) is type(event.level) is type(event.priority) is str
        and event_type
    ):
        return False
    timestamp = event.timestamp
    if type(timestamp) is not int or not 0 <= timestamp <= INT_MAX:
        return False
    # Whatever a user puts there, its truth is not asked for: that may be code, and raise.
    if type(resource := event.resource) is not dict or type(extra := event.extra) is not dict:
        return False
    return not resource and not extra and type(event.data) is dict


def _are_plain(tags: Any, sensitive: Rules | None, limit: int) -> bool:
    if type(tags) is not list and type(tags) is not dict:
        return False
    return not tags or room_after({"": tags}, sensitive, limit) >= 0


def _record(event: StreamllEvent, payload: bytes, content_type: str, poison: str = "") -> Record:
    return Record(
        payload,
        content_type,
        event.event_id,
        event.event_type,
        event.operation,
        event.module_name,
        event.method_name,
        event.level,
        event.execution_id,
        event.timestamp,
        monotonic_ns(),
        poison,
        event.priority if event.priority in PRIORITIES else NORMAL,
    )


class _Cleaning:
    """One event's way through `values.clean`, field by field, and the count of what was done."""

    def __init__(self, sensitive: Rules | None, budget: int, fair: bool) -> None:
        self._sensitive = sensitive
        self._budget = budget
        self._fair = fair
        self.stand_ins = 0
        self.redacted = 0
        self.cut = 0
        self.found: Counter[str] = Counter()

    def clean(self, value: Any, budget: int) -> Any:
        result = clean(value, self._sensitive, budget, self._fair)
        self.stand_ins += result.stand_ins
        self.redacted += result.redacted
        self.cut += result.cut
        self.found.update(result.found)
        return result.value

    def map(self, value: Any, name: str) -> dict[str, Any]:
        """A map as a map, nothing as an empty one, and anything else as a map of one under `name`."""
        if value is None:
            return {}
        cleaned = self.clean(value, self._budget)
        return cleaned if isinstance(cleaned, dict) else {name: cleaned}

    def tags(self, value: Any) -> list[Any] | dict[str, Any]:
        cleaned = self.clean([] if value is None else value, self._budget)
        return cleaned if isinstance(cleaned, (list, dict)) else [cleaned]

    def label(self, value: Any, bound: int) -> str:
        if value is None:
            return ""
        label = self.clean(value, bound)
        if isinstance(label, bytes):
            return label.decode("utf-8", "backslashreplace")
        return label if isinstance(label, str) else str(label)

    def timestamp(self, value: Any) -> int:
        if type(value) is int and INT_MIN <= value <= INT_MAX:
            return value
        if type(value) is datetime and (value.tzinfo is None or type(value.tzinfo) is timezone):
            try:
                since = value.astimezone(timezone.utc) - _EPOCH
            except (OverflowError, ValueError, OSError):
                pass  # at the ends of the calendar
            else:
                ns = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
                if INT_MIN <= ns <= INT_MAX:
                    return ns
        self.stand_ins += 1
        return time_ns()


def _rules_of(options: PipelineOptions) -> Rules | None:
    """What is to be redacted; None when nothing is."""
    if options.redact == "off":
        return None
    texts = options.redact == "full"
    strategies = read_rules(options.redact_rules, options.redact_strategy, texts)
    pseudonyms: Pseudonyms | None = None
    if options.pseudonym_key or HASH in strategies.values():
        from streamll.privacy.process_key import ProcessPseudonyms
        from streamll.privacy.pseudonyms import Pseudonyms  # imports hashlib

        pseudonyms = Pseudonyms(options.pseudonym_key) if options.pseudonym_key else ProcessPseudonyms()
    return Rules(_names(options.redact_keys), _names(options.keep_keys), strategies, texts, pseudonyms)


def describe_resource(options: PipelineOptions, environ: Mapping[str, str]) -> dict[str, Any]:
    """Say who speaks: service, environment and release as configured, host and process id as they are."""
    resource: dict[str, Any] = {
        "service": options.service or environ.get("OTEL_SERVICE_NAME", ""),
        "environment": options.environment,
        "release": options.release,
        "host": _hostname(),
        "pid": os.getpid(),
    }
    known = {name: value for name, value in resource.items() if value}
    described: dict[str, Any] = clean(known, None, 64 * KIB).value  # the environment may hold bytes that are no text
    return described


def _hostname() -> str:
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # on Windows; elsewhere it is left to the workers to import

    return socket.gethostname()


def _is_missing(label: Any) -> bool:
    """Return whether an id is to be filled in. It may be of any type, and its truth is not asked for."""
    return label is None or (type(label) is str and not label)


def _copied(value: Any) -> Any:
    """A copy of maps and lists in each other, for functions that may change them; all else is handed over as it is.

    A tuple becomes a list, as it does when it is encoded. What stands in several places, or in itself, is copied once.
    """
    copies: dict[int, tuple[Any, Any]] = {}  # by the id of the original, which is held so that it stays unique
    unfinished: list[Any] = []

    def copy_of(item: Any) -> Any:
        kind = type(item)
        if kind is not dict and kind is not list and kind is not tuple:
            return item
        if id(item) not in copies:
            made = dict(item) if kind is dict else list(item)
            copies[id(item)] = (item, made)
            unfinished.append(made)
        return copies[id(item)][1]

    top = copy_of(value)
    while unfinished:
        made = unfinished.pop()
        for key, item in made.items() if type(made) is dict else enumerate(made):
            own = copy_of(item)
            if own is not item:
                made[key] = own
    return top


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


_said: set[str] = set()


def _say_once(topic: str, message: str, error: Exception) -> None:
    """Log something that may happen for every event the first time only."""
    if topic not in _said:
        _said.add(topic)
        log.warning(message, type(error).__name__)
