"""What becomes of a user's values before they are encoded: redacted, and made encodable.

What belongs here: one pass over data that comes from the application, which never calls a `repr`, an attribute or any
other code of an object that it meets (a `repr` may run a query), never follows a cycle, and never works longer than the
size limit of an event makes worthwhile. What does not: which keys and texts are secret (privacy), bytes (codec.py).

The usual types keep their meaning; anything else becomes its type's name in angle brackets, and is counted.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import islice
from math import isfinite
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, cast
from uuid import UUID

import msgspec

from streamll.plain import INT_MAX, INT_MIN
from streamll.privacy.keys import REDACTED, SensitiveKeys
from streamll.privacy.kinds import DROP, KEY, MARGIN

MAX_DEPTH = 24
"""Levels of nesting kept; what is deeper becomes `<too deep>`."""

_KEY_DEPTH = 4
_KEY_PARTS = 8
"""A tuple as a key is written in full only so far."""
_PATHS = (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)
_NO_VALUE = object()
_DROPPED: Any = object()
"""What is made of a value that goes, with its key."""

# Looked up on `type` itself: a metaclass may answer for its classes with code of its own. For the same reason a class
# is compared by `is` and looked up by its `id`, and an object's class is asked by `type`, never by `isinstance`.
_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
_mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_dict_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_struct_fields_of: Callable[[type], tuple[str, ...]] = type(msgspec.Struct).__dict__["__struct_fields__"].__get__


@dataclass
class Cleaned:
    """What a pass over a value made of it.

    Attributes:
        value: The value, all of usual types.
        stand_ins: How many parts were replaced because they cannot be encoded.
        redacted: How many values stood under a sensitive key.
        cut: How many strings or collections were shortened, or left out, to keep the size.
        found: How many other things were found and dealt with, by their kind.
    """

    value: Any
    stand_ins: int
    redacted: int
    cut: int
    found: Mapping[str, int] = field(default_factory=dict)


def clean(value: Any, sensitive: SensitiveKeys | None, budget: int, fair: bool = False) -> Cleaned:
    """Make any value encodable, without calling any code of it.

    Args:
        value: Anything; it is never changed.
        sensitive: Decides what is secret; None when nothing is to be redacted.
        budget: About how many encoded bytes to make at most.
        fair: One string may use an eighth of the budget and one collection half of what is left of it, so that one
            long value does not push out the rest.
    """
    walk = _Walk(sensitive, budget, fair)
    made = walk.value(value, 0)
    return Cleaned("" if made is _DROPPED else made, walk.stand_ins, walk.redacted, walk.cut, walk.found)


class _Walk:
    """One pass; holds what is on the way down (to see a cycle) and what is left of the budget."""

    def __init__(self, sensitive: SensitiveKeys | None, budget: int, fair: bool) -> None:
        self.sensitive = sensitive
        self.scanner = sensitive.scanner if sensitive is not None else None
        self.budget = budget
        self.fair = fair
        self.longest = max(64, budget // 8) if fair else budget
        self.on_the_way: set[int] = set()
        self.stand_ins = 0
        self.redacted = 0
        self.cut = 0
        self.found: dict[str, int] = {}

    def value(self, value: Any, depth: int) -> Any:
        self.budget -= 1
        kind = type(value)
        handler = _BY_ID.get(id(kind))
        if handler is not None:
            return handler(self, value, depth)
        for base in _mro_of(kind):
            handler = _BY_ID.get(id(base))
            if handler is not None:
                return handler(self, value, depth)
        return self.foreign(value, kind, depth)

    def stand_in(self, name: str) -> str:
        self.stand_ins += 1
        return self.fit(f"<{name}>")

    def room(self) -> int:
        """How long a string may be."""
        return min(self.longest, max(self.budget, 0))

    def note(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self.found[kind] = self.found.get(kind, 0) + 1

    def text(self, value: str) -> str:
        """A text in which something private may stand: it is looked through before it is cut."""
        room = self.room()
        redacted = None if self.scanner is None else self.scanner.redact(value, room)
        if redacted is None:
            return self.fit(value)
        self.note(redacted.found)
        return _DROPPED if redacted.text is None else self.fit(redacted.text, max(0, len(value) - room))

    def fit(self, value: str, left_out: int = 0) -> str:
        """A text that has nothing private in it, or no more; what was left out of it before is said with the rest."""
        room = self.room()
        if len(value) > room:
            left_out += len(value) - room
            value = value[:room]
        if left_out:
            self.cut += 1
            value = f"{value}<{left_out} more>"
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError:  # lone surrogates, as in file names that are not UTF-8
            self.stand_ins += 1
            value = value.encode("utf-8", "backslashreplace").decode()
            size = len(value)
        self.budget -= size
        return value

    def reach(self) -> slice:
        """How much of bytes is looked at: one more than there is room for, and what may stand astride that place."""
        return slice(self.room() + 1 + (0 if self.scanner is None else MARGIN))

    def binary(self, value: bytes) -> bytes:
        room = self.room()
        if self.scanner is not None:
            try:
                text, encoding = value.decode(), "utf-8"
            except UnicodeDecodeError:
                text, encoding = value.decode("latin-1"), "latin-1"
            redacted = self.scanner.redact(text, room)
            if redacted is not None:
                self.note(redacted.found)
                if redacted.text is None:
                    return cast("bytes", _DROPPED)
                value = redacted.text.encode(encoding, "replace")
        if len(value) > room:
            self.cut += 1
            value = value[:room]
        self.budget -= len(value)
        return value

    def integer(self, value: int) -> Any:
        self.budget -= 8
        if INT_MIN <= value <= INT_MAX:
            return value
        return self.stand_in(f"int of {value.bit_length()} bits")

    def number(self, value: float) -> Any:
        self.budget -= 8
        return value if isfinite(value) else self.stand_in(str(value))

    def moment(self, value: datetime) -> Any:
        """A `datetime` or a subclass's value, read through the base class; a foreign time zone's code is not called."""
        self.budget -= 12
        year, month, day = [field.__get__(value) for field in (datetime.year, datetime.month, datetime.day)]
        hour, minute, second = [field.__get__(value) for field in (datetime.hour, datetime.minute, datetime.second)]
        micro, fold = datetime.microsecond.__get__(value), datetime.fold.__get__(value)
        zone = datetime.tzinfo.__get__(value)
        # Who never imported zoneinfo has no such zone.
        zone_info = getattr(sys.modules.get("zoneinfo"), "ZoneInfo", timezone)
        known = zone is None or type(zone) is timezone or type(zone) is zone_info
        plain = datetime(year, month, day, hour, minute, second, micro, zone if known else None, fold=fold)
        if not known:
            self.stand_ins += 1
            return self.fit(f"{plain.isoformat()} <{_name_of(type(zone))}>")
        if zone is not None and year in (MINYEAR, MAXYEAR):
            try:
                plain.astimezone(timezone.utc)
            except OverflowError:  # in UTC it is in a year that there is not
                return self.fit(plain.isoformat())
        return plain

    def clock(self, value: time) -> str:
        """A `time` without its time zone."""
        hour, minute, second = [field.__get__(value) for field in (time.hour, time.minute, time.second)]
        return self.fit(time(hour, minute, second, time.microsecond.__get__(value)).isoformat())

    def uuid(self, value: UUID) -> str:
        """A UUID's canonical form, from its number: `str` would ask a subclass for it."""
        number = _slot(value, (UUID,), "int")
        if type(number) is not int:
            return self.stand_in("UUID")
        digits = f"{number:032x}"
        return self.fit("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))

    def path(self, value: PurePath) -> str:
        """A path; a subclass's only by its name, since all of a path is Python code that may be overridden."""
        if any(type(value) is known for known in _PATHS):
            return self.text(PurePath.__str__(value))
        return self.stand_in(_name_of(type(value)))

    def interval(self, value: range) -> str:
        """A `range`, as it is written."""
        if all(INT_MIN <= bound <= INT_MAX for bound in (value.start, value.stop, value.step)):
            return self.fit(str(value))
        return self.stand_in("range")

    def member(self, value: Enum, depth: int) -> Any:
        """An enumeration's member, as its value."""
        kind = type(value)
        held = dict.get(_own_attributes(value, _mro_of(kind)), "_value_", _NO_VALUE)
        if depth >= MAX_DEPTH or held is _NO_VALUE:
            return self.stand_in(_name_of(kind))
        return self.value(held, depth + 1)

    def obstacle(self, value: Any, depth: int) -> str:
        """Return why a container is not walked into; empty when it is."""
        if id(value) in self.on_the_way:
            return "cycle"
        return "too deep" if depth >= MAX_DEPTH else ""

    def first(self, items: Iterable[Any]) -> list[Any] | None:
        """What the budget has room for, at most, of a collection; None when it changed its size meanwhile.

        It is one C call, into which another thread or a finaliser gets only by a garbage collection.
        """
        try:
            return list(islice(items, max(self.budget, 0)))
        except RuntimeError:
            return None

    def floor(self, depth: int) -> int:
        """What a collection must leave of the budget."""
        return max(self.budget, 0) // 2 if self.fair and depth else 0

    def mapping(self, value: Any, items: Iterable[tuple[Any, Any]], size: int, depth: int) -> Any:
        obstacle = self.obstacle(value, depth)
        if obstacle:
            return self.stand_in(obstacle)
        taken = self.first(items)
        if taken is None:
            return self.stand_in("changing")
        out: dict[str, Any] = {}
        dropped = 0
        floor = self.floor(depth)
        self.on_the_way.add(id(value))
        try:
            for key, item in taken:
                if self.budget <= floor:
                    break
                name = self.name(key)
                if self.sensitive is not None and self.sensitive(name):
                    dropped += not self.sensitive_entry(self.sensitive, out, name, item, depth)
                    continue
                name = self.free(out, name)
                made = self.value(item, depth + 1)
                if made is _DROPPED:
                    dropped += 1
                else:
                    out[name] = made
        finally:
            self.on_the_way.discard(id(value))
        missing = size - len(out) - dropped
        if missing > 0:
            self.cut += 1
            out["<cut>"] = f"<{missing} more>"
        return out

    def free(self, out: dict[str, Any], name: str) -> str:
        """The name under which a value goes: cut, and another one where it is taken: "1" and 1, two that were cut."""
        name = self.fit(name)
        if name in out:
            name = f"{name}'{len(out)}"
            while name in out:
                name += "'"
        return name

    def sensitive_entry(self, rules: SensitiveKeys, out: dict[str, Any], name: str, item: Any, depth: int) -> bool:
        """Put what may be shown of a key, and of what stands under it, into a map; false when that is nothing."""
        verdict = rules.verdict(name, self.room())
        self.note(verdict.found)
        if verdict.kind == KEY:
            self.redacted += 1
        elif verdict.kind:
            self.note((verdict.kind,))
        if verdict.strategy == DROP:
            return False
        shown = self.free(out, verdict.name)
        if verdict.kind:
            out[shown] = made = rules.replacement(verdict, item)
            self.budget -= len(REDACTED) * (len(made) if type(made) is list else 1)
            return True
        made = self.value(item, depth + 1)
        if made is _DROPPED:
            return False
        out[shown] = made
        return True

    def name(self, key: Any, depth: int = 0) -> str:
        """A key as text, not yet cut: whether it is secret is decided by all of it."""
        kind = type(key)
        if kind is str:
            return cast("str", key)
        bases = _mro_of(kind)
        if any(base is Enum for base in bases):
            own = _own_attributes(key, bases)
            held = dict.get(own, "_value_")
            return held if type(held) is str else self.name(dict.get(own, "_name_"), MAX_DEPTH)
        for base in bases:
            if base is str:
                return str.__str__(key)
            if base is bytes:
                return bytes.decode(key, "utf-8", "backslashreplace")
            if base is tuple and depth < _KEY_DEPTH:
                return ".".join([self.name(part, depth + 1) for part in islice(tuple.__iter__(key), _KEY_PARTS)])
            if base is PurePath and any(kind is known for known in _PATHS):
                return PurePath.__str__(key)
            if id(base) in _KEYS:
                return str(self.value(key, MAX_DEPTH))
        return self.stand_in(_name_of(kind))

    def sequence(self, value: Any, items: Iterable[Any], size: int, depth: int) -> Any:
        obstacle = self.obstacle(value, depth)
        if obstacle:
            return self.stand_in(obstacle)
        taken = self.first(items)
        if taken is None:
            return self.stand_in("changing")
        out: list[Any] = []
        dropped = 0
        floor = self.floor(depth)
        self.on_the_way.add(id(value))
        try:
            for item in taken:
                if self.budget <= floor:
                    break
                made = self.value(item, depth + 1)
                if made is _DROPPED:
                    dropped += 1
                else:
                    out.append(made)
        finally:
            self.on_the_way.discard(id(value))
        missing = size - len(out) - dropped
        if missing > 0:
            self.cut += 1
            out.append(f"<{missing} more>")
        return out

    def foreign(self, value: Any, kind: type, depth: int) -> Any:
        """Dataclasses, and what libraries make that may not be loaded; anything else is named by its type."""
        bases = _mro_of(kind)
        for base in bases:
            fields = _dict_of(base).get("__dataclass_fields__")
            if type(fields) is dict:
                return self.fields(value, bases, fields, depth)
            if base is msgspec.Struct:
                return self.fields(value, bases, _struct_fields_of(kind), depth)
        pydantic_model = getattr(sys.modules.get("pydantic.main"), "BaseModel", kind)
        numpy_scalar = getattr(sys.modules.get("numpy"), "generic", kind)
        for base in bases[1:]:
            if base is pydantic_model:
                own = _own_attributes(value, bases)
                return self.mapping(value, dict.items(own), dict.__len__(own), depth)
            if base is numpy_scalar and _dict_of(kind).get("__module__") in (None, "numpy"):
                item = value.item()
                return self.stand_in(_name_of(kind)) if type(item) is kind else self.value(item, MAX_DEPTH)
        return self.stand_in(_name_of(kind))

    def fields(self, value: Any, bases: tuple[type, ...], names: Iterable[Any], depth: int) -> Any:
        """The fields of an object, from its `__dict__` or its slots; a property in a field's place is not called."""
        own = _own_attributes(value, bases)
        found = {}
        for name in [name for name in names if type(name) is str]:
            found[name] = dict.get(own, name, _NO_VALUE)
            if found[name] is _NO_VALUE:
                found[name] = _slot(value, bases, name)
        found = {name: item for name, item in found.items() if item is not _NO_VALUE}
        return self.mapping(value, found.items(), len(found), depth)


def _own_attributes(value: Any, bases: tuple[type, ...]) -> dict[str, Any]:
    """An object's `__dict__`, without asking its class, which may have a property of that name. May be of a subclass."""
    for base in bases:
        slot = _dict_of(base).get("__dict__")
        if type(slot) is types.GetSetDescriptorType:
            own: dict[str, Any] = slot.__get__(value)
            return own
    return {}


def _slot(value: Any, bases: tuple[type, ...], name: str) -> Any:
    """What is in an object's slot of that name; `_NO_VALUE` when it is empty, or there is none."""
    for base in bases:
        slot = _dict_of(base).get(name)
        if type(slot) is types.MemberDescriptorType or type(slot) is types.GetSetDescriptorType:
            try:
                return slot.__get__(value)
            except AttributeError:
                break
    return _NO_VALUE


def _as_is(walk: _Walk, value: Any, _depth: int) -> Any:
    walk.budget -= 16
    return value


# By base class, in the order of a type's own bases; a subclass's value is read through the base class's own methods.
_HANDLERS: dict[type, Callable[[_Walk, Any, int], Any]] = {
    type(None): _as_is,
    bool: _as_is,
    str: lambda walk, value, _: walk.text(str.__str__(value)),
    int: lambda walk, value, _: walk.integer(int.__int__(value)),
    float: lambda walk, value, _: walk.number(float.__float__(value)),
    complex: lambda walk, value, _: walk.fit(complex.__repr__(value)),
    bytes: lambda walk, value, _: walk.binary(bytes.__getitem__(value, walk.reach())),
    bytearray: lambda walk, value, _: walk.binary(bytes(bytearray.__getitem__(value, walk.reach()))),
    memoryview: lambda walk, value, _: walk.stand_in("memoryview"),
    datetime: lambda walk, value, _: walk.moment(value),
    date: lambda walk, value, _: walk.fit(date.isoformat(value)),
    time: lambda walk, value, _: walk.clock(value),
    timedelta: lambda walk, value, _: walk.number(timedelta.total_seconds(value)),
    Decimal: lambda walk, value, _: walk.fit(Decimal.__str__(value)),
    UUID: lambda walk, value, _: walk.uuid(value),
    PurePath: lambda walk, value, _: walk.path(value),
    Enum: lambda walk, value, depth: walk.member(value, depth),
    dict: lambda walk, value, depth: walk.mapping(value, dict.items(value), dict.__len__(value), depth),
    types.MappingProxyType: lambda walk, value, depth: walk.stand_in("mappingproxy"),
    list: lambda walk, value, depth: walk.sequence(value, list.__iter__(value), list.__len__(value), depth),
    tuple: lambda walk, value, depth: walk.sequence(value, tuple.__iter__(value), tuple.__len__(value), depth),
    set: lambda walk, value, depth: walk.sequence(value, set.__iter__(value), set.__len__(value), depth),
    frozenset: lambda walk, value, depth: walk.sequence(
        value, frozenset.__iter__(value), frozenset.__len__(value), depth
    ),
    deque: lambda walk, value, depth: walk.sequence(value, deque.__iter__(value), deque.__len__(value), depth),
    range: lambda walk, value, _: walk.interval(value),
}
_BY_ID = {id(kind): handler for kind, handler in _HANDLERS.items()}

_KEYS = frozenset(
    id(kind)
    for kind in (type(None), bool, int, float, complex, datetime, date, time, timedelta, Decimal, UUID, PurePath)
)
