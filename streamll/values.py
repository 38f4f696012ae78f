"""What becomes of a user's values before they are encoded: redacted by key, and made encodable.

What belongs here: one pass over data that comes from the application, which never calls a `repr`, an attribute or any
other code of an object that it meets (a `repr` may run a query), never follows a cycle, and never works longer than the
size limit of an event makes worthwhile. What does not: which keys are secret (privacy.py), bytes (codec.py).

The usual types keep their meaning; anything else becomes its type's name in angle brackets, and is counted.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import islice
from math import isfinite
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from sys import getsizeof
from typing import Any, cast
from uuid import UUID

import msgspec

from streamll.privacy import REDACTED, SensitiveKeys

MAX_DEPTH = 24
"""Levels of nesting kept; what is deeper becomes `<too deep>`."""

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What MessagePack can hold as an integer."""

_FAST_DEPTH = 4
_ITEM = 16
"""About what an item takes beside its text; what counts is that it is something, so that no data is endless."""
_NONE: frozenset[str] = frozenset()
_DECIMAL_SIZE = 256
"""The memory of a number of some hundred digits; a longer `Decimal` is not plain."""

_KEY_DEPTH = 4
_KEY_PARTS = 8
"""A tuple as a key is written in full only so far."""
_PATHS = (PosixPath, WindowsPath, PurePosixPath, PureWindowsPath)
_NO_VALUE = object()

# Looked up on `type` itself: a metaclass may answer for its classes with code of its own. For the same reason a class
# is compared by `is` and looked up by its `id`, and an object's class is asked by `type`, never by `isinstance`.
_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
_mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_dict_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_struct_fields_of: Callable[[type], tuple[str, ...]] = type(msgspec.Struct).__dict__["__struct_fields__"].__get__


def room_after(data: dict[Any, Any], sensitive: SensitiveKeys | None, room: int, depth: int = _FAST_DEPTH) -> int:
    """Return what a map that can be encoded as it is leaves of the room: the test that nearly every event passes.

    Args:
        data: A map from the application.
        sensitive: Decides which keys are secret; None when nothing is to be redacted.
        room: How much the map's strings and items may be together, which bounds the work also where the same list
            stands in many places.
        depth: Levels of maps and lists inside that are looked at.

    Returns:
        Less than nothing when the map is too large or too deep, or something in it is to be replaced.

    Raises:
        RuntimeError: When another thread changes the size of the map meanwhile.
    """
    harmless = sensitive.harmless if sensitive is not None else _NONE
    room -= len(data) * _ITEM
    if room < 0:
        return -1
    for key, value in data.items():
        if type(key) is not str:
            return -1
        if key not in harmless:
            room -= len(key)  # one that is known is short
            if sensitive is not None and sensitive(key):
                return -1
        kind = type(value)
        if kind is str:
            room -= len(value)
        elif kind is int:
            if value > INT_MAX or value < INT_MIN:
                return -1
        elif kind is bool or value is None:
            pass
        elif kind is float:
            if not isfinite(value):
                return -1
        elif kind is dict:
            if not depth:
                return -1
            room = room_after(value, sensitive, room, depth - 1)
        elif kind is list or kind is tuple:
            if not depth:
                return -1
            room = _plain_list(value, sensitive, room, depth - 1)
        elif not _is_inert(value, kind):
            return -1
    return room


def _plain_list(items: list[Any] | tuple[Any, ...], sensitive: SensitiveKeys | None, room: int, depth: int) -> int:
    room -= len(items) * _ITEM
    if room < 0:
        return -1
    for value in items:
        kind = type(value)
        if kind is str:
            room -= len(value)
        elif kind is int:
            if not INT_MIN <= value <= INT_MAX:
                return -1
        elif kind is float:
            if not isfinite(value):
                return -1
        elif kind is dict:
            if not depth:
                return -1
            room = room_after(value, sensitive, room, depth - 1)
        elif not _is_inert(value, kind):
            return -1
    return room


def _is_inert(value: Any, kind: type) -> bool:
    """Return whether a value that is short and has no parts can be encoded as it is."""
    if value is None or kind is bool or kind is UUID or kind is date:
        return True
    if kind is datetime:
        return value.tzinfo is None or type(value.tzinfo) is timezone
    return kind is Decimal and getsizeof(value) <= _DECIMAL_SIZE


@dataclass
class Cleaned:
    """What a pass over a value made of it.

    Attributes:
        value: The value, all of usual types.
        stand_ins: How many parts were replaced because they cannot be encoded.
        redacted: How many values stood under a sensitive key.
        cut: How many strings or collections were shortened, or left out, to keep the size.
    """

    value: Any
    stand_ins: int
    redacted: int
    cut: int


def clean(value: Any, sensitive: SensitiveKeys | None, budget: int, fair: bool = False) -> Cleaned:
    """Make any value encodable, without calling any code of it.

    Args:
        value: Anything; it is never changed.
        sensitive: Decides which keys are secret; None when nothing is to be redacted.
        budget: About how many encoded bytes to make at most.
        fair: One string may use an eighth of the budget and one collection half of what is left of it, so that one
            long value does not push out the rest.
    """
    walk = _Walk(sensitive, budget, fair)
    return Cleaned(walk.value(value, 0), walk.stand_ins, walk.redacted, walk.cut)


class _Walk:
    """One pass; holds what is on the way down (to see a cycle) and what is left of the budget."""

    def __init__(self, sensitive: SensitiveKeys | None, budget: int, fair: bool) -> None:
        self.sensitive = sensitive
        self.budget = budget
        self.fair = fair
        self.longest = max(64, budget // 8) if fair else budget
        self.on_the_way: set[int] = set()
        self.stand_ins = 0
        self.redacted = 0
        self.cut = 0

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
        return self.text(f"<{name}>")

    def text(self, value: str) -> str:
        room = min(self.longest, max(self.budget, 0))
        if len(value) > room:
            self.cut += 1
            left_out = len(value) - room
            value = f"{value[:room]}<{left_out} more>"
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError:  # lone surrogates, as in file names that are not UTF-8
            self.stand_ins += 1
            value = value.encode("utf-8", "backslashreplace").decode()
            size = len(value)
        self.budget -= size
        return value

    def binary(self, value: bytes) -> bytes:
        room = min(self.longest, max(self.budget, 0))
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
            return self.text(f"{plain.isoformat()} <{_name_of(type(zone))}>")
        if zone is not None and year in (MINYEAR, MAXYEAR):
            try:
                plain.astimezone(timezone.utc)
            except OverflowError:  # in UTC it is in a year that there is not
                return self.text(plain.isoformat())
        return plain

    def clock(self, value: time) -> str:
        """A `time` without its time zone."""
        hour, minute, second = [field.__get__(value) for field in (time.hour, time.minute, time.second)]
        return self.text(time(hour, minute, second, time.microsecond.__get__(value)).isoformat())

    def uuid(self, value: UUID) -> str:
        """A UUID's canonical form, from its number: `str` would ask a subclass for it."""
        number = _slot(value, (UUID,), "int")
        if type(number) is not int:
            return self.stand_in("UUID")
        digits = f"{number:032x}"
        return self.text("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))

    def path(self, value: PurePath) -> str:
        """A path; a subclass's only by its name, since all of a path is Python code that may be overridden."""
        kind = type(value)
        if any(kind is known for known in _PATHS):
            return self.text(PurePath.__str__(value))
        return self.stand_in(_name_of(kind))

    def interval(self, value: range) -> str:
        """A `range`, as it is written."""
        if all(INT_MIN <= bound <= INT_MAX for bound in (value.start, value.stop, value.step)):
            return self.text(str(value))
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
        floor = self.floor(depth)
        self.on_the_way.add(id(value))
        try:
            for key, item in taken:
                if self.budget <= floor:
                    break
                name = self.name(key)
                secret = self.sensitive is not None and self.sensitive(name)
                name = self.text(name)
                if name in out:  # "1" and 1, two that were cut, two stand-ins
                    name = f"{name}'{len(out)}"
                    while name in out:
                        name += "'"
                if secret:
                    self.redacted += 1
                    self.budget -= len(REDACTED)
                    out[name] = REDACTED
                else:
                    out[name] = self.value(item, depth + 1)
        finally:
            self.on_the_way.discard(id(value))
        if len(out) < size:
            self.cut += 1
            out["<cut>"] = f"<{size - len(out)} more>"
        return out

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
        floor = self.floor(depth)
        self.on_the_way.add(id(value))
        try:
            for item in taken:
                if self.budget <= floor:
                    break
                out.append(self.value(item, depth + 1))
        finally:
            self.on_the_way.discard(id(value))
        if len(out) < size:
            self.cut += 1
            out.append(f"<{size - len(out)} more>")
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
    complex: lambda walk, value, _: walk.text(complex.__repr__(value)),
    bytes: lambda walk, value, _: walk.binary(bytes.__getitem__(value, slice(walk.longest + 1))),
    bytearray: lambda walk, value, _: walk.binary(bytes(bytearray.__getitem__(value, slice(walk.longest + 1)))),
    memoryview: lambda walk, value, _: walk.stand_in("memoryview"),
    datetime: lambda walk, value, _: walk.moment(value),
    date: lambda walk, value, _: walk.text(date.isoformat(value)),
    time: lambda walk, value, _: walk.clock(value),
    timedelta: lambda walk, value, _: walk.number(timedelta.total_seconds(value)),
    Decimal: lambda walk, value, _: walk.text(Decimal.__str__(value)),
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
