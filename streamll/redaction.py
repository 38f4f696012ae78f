"""Events that are plain but for what is private in them: found out, and copied without it.

What belongs here: the short way of redaction, for maps and lists of the usual types. What does not: the decision about a key
or a text (privacy), and the longer way, which all other data take (values.py). What both make of the same data is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from math import isfinite
from typing import TYPE_CHECKING, Any

from streamll.codec import LABELS
from streamll.ids import has_our_shape
from streamll.models import NO_TAGS, StreamllEvent
from streamll.plain import FAST_DEPTH, INT_MAX, INT_MIN, ITEM, is_inert, texts_after
from streamll.privacy.keys import SensitiveKeys
from streamll.privacy.kinds import DROP, KEY

if TYPE_CHECKING:
    from streamll.hub import Take
    from streamll.privacy.scanner import Redacted, Scanner

IDS = frozenset({"event_id", "execution_id", "span_id", "parent_span_id"})

Known = Mapping[str, "Redacted | None"]
"""Texts that were looked through, and what came of it; None where nothing is to be replaced."""

NOTHING_FOUND: Known = {}
_UNKNOWN: Any = object()
_DROPPED: Any = object()


def is_own_id(label: Any) -> bool:
    """Return whether an id is not to be looked through: it is empty, or of our own making."""
    return type(label) is str and (not label or has_our_shape(label))


def look_through(scanner: Scanner, event: StreamllEvent, room: int) -> Known | None:
    """Look through the texts of an event, whose labels are strings.

    Returns:
        `NOTHING_FOUND` when they may all stay; None when it has to take the longer way.

    Raises:
        Exception: When something in it is not what it seems to be.
    """
    labels = [label for name in LABELS if (label := getattr(event, name)) and (name not in IDS or not is_own_id(label))]
    return _look(scanner, labels, event.data, event.tags, room)


def _look(scanner: Scanner, labels: list[str], data: Any, tags: Any, room: int) -> Known | None:
    texts = labels.copy()
    room = texts_after(data, texts, room)
    if room < 0 or (tags is not NO_TAGS and texts_after(tags, texts, room) < 0):
        return None
    known = scanner.redact_each(texts)
    if known is None:
        return NOTHING_FOUND
    return known if all(known[label] is None for label in labels) else None


def scanned(scanner: Scanner, room: int, take: Take, otherwise: Callable[[StreamllEvent, Known | None], bool]) -> Take:
    """Return a way for events, as their fields, that looks through their texts first.

    Args:
        scanner: Looks through texts.
        room: How much there may be of them.
        take: Takes those in which nothing is found.
        otherwise: Takes the others, as events, with what was found; with None when that is not known.
    """

    def take_scanned(*fields: Any) -> bool:
        event_type, _, execution_id, _, _, _, module_name, method_name, operation, level, data, tags, priority = fields
        known: Known | None = None
        try:
            labels = [event_type, module_name, method_name, operation, level, priority]
            if not is_own_id(execution_id):
                labels.append(execution_id)
            known = _look(scanner, labels, data, tags, room)
        except Exception:  # noqa: S110  # no texts, or a map that changed its size meanwhile: the longer way sees to it
            pass
        if known is NOTHING_FOUND:
            return take(*fields)
        event = StreamllEvent(*fields[:12], {}, priority)  # type: ignore[call-arg]  # mypy cannot count them
        return otherwise(event, known)

    return take_scanned


def redacted(event: StreamllEvent, rules: SensitiveKeys, room: int, known: Known) -> tuple[StreamllEvent, Redaction]:
    """Return a copy of an event without what is private in its data and tags, and what was done.

    Raises:
        NotPlainError: When more is to be done to it.
        RuntimeError: When another thread changes the size of a map meanwhile.
    """
    if type(event.tags) is not list and type(event.tags) is not dict:
        raise NotPlainError
    redaction = Redaction(rules, room, known)
    event = copy(event)
    event.data = redaction.data(event.data)
    event.tags = redaction.data(event.tags)
    return event, redaction


class NotPlainError(Exception):
    """Raised by `Redaction` when data has to take the longer way."""


class Redaction:
    """A copy of plain data in which what is private is replaced.

    Args:
        rules: Decides what is.
        room: As for `room_after`.
        known: What came of looking through its texts; `NOTHING_FOUND` also where that is not wanted.
    """

    def __init__(self, rules: SensitiveKeys, room: int, known: Mapping[str, Redacted | None]) -> None:
        self._rules = rules
        self._harmless = rules.harmless
        self._scanner = rules.scanner
        self._room = room
        self._known = known
        self.redacted = 0
        self.found: list[str] = []

    def data(self, value: Any) -> Any:
        """Return a copy of a map or a list.

        Raises:
            NotPlainError: When something in it is to be replaced for another reason than privacy, or would be cut.
            RuntimeError: When another thread changes the size of a map meanwhile.
        """
        return self._value(value, FAST_DEPTH + 1)

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind is int:
            if INT_MIN <= value <= INT_MAX:
                return value
        elif kind is float:
            if isfinite(value):
                return value
        elif kind is dict:
            if depth:
                self._take(len(value) * ITEM)
                return self._map(value, depth - 1)
        elif kind is list or kind is tuple:
            if depth:
                self._take(len(value) * ITEM)
                made = [self._value(item, depth - 1) for item in value]
                return [item for item in made if item is not _DROPPED]
        elif is_inert(value, kind):
            return value
        raise NotPlainError

    def _map(self, data: dict[Any, Any], depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        harmless, known = self._harmless, self._known
        for key, value in data.items():
            name = key
            if type(key) is str and key in harmless:
                # As in `_value`; written out, since it is nearly always one of these.
                kind = type(value)
                if kind is str and (known is NOTHING_FOUND or known.get(value, _UNKNOWN) is None):
                    self._room -= len(value)
                    made = value
                elif (kind is int and INT_MIN <= value <= INT_MAX) or kind is bool or value is None:
                    made = value
                else:
                    made = self._value(value, depth)
            else:
                name, made = self._entry(key, value, depth)
            if name in out:
                raise NotPlainError
            if made is not _DROPPED:
                out[name] = made
        return out

    def _entry(self, key: Any, value: Any, depth: int) -> tuple[str, Any]:
        if type(key) is not str:
            raise NotPlainError
        self._take(len(key))
        if not self._rules(key):
            return key, self._value(value, depth)
        verdict = self._rules.verdict(key)
        self.found += verdict.found
        if verdict.kind == KEY:
            self.redacted += 1
        elif verdict.kind:
            self.found.append(verdict.kind)
        if verdict.strategy == DROP:
            return verdict.name, _DROPPED
        if verdict.kind:
            return verdict.name, self._rules.replacement(verdict, value)
        return verdict.name, self._value(value, depth)

    def _text(self, text: str) -> Any:
        self._take(len(text))
        if self._known is NOTHING_FOUND:
            return text
        redacted = self._known.get(text, _UNKNOWN)
        if redacted is _UNKNOWN and self._scanner is not None:  # another thread has put it there meanwhile
            redacted = self._scanner.redact(text)
        if redacted is None:
            return text
        self.found += redacted.found
        return _DROPPED if redacted.text is None else redacted.text

    def _take(self, room: int) -> None:
        self._room -= room
        if self._room < 0:
            raise NotPlainError
