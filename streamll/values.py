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
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import islice
from math import isfinite
from pathlib import PurePath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from streamll.privacy import REDACTED, SensitiveKeys

MAX_DEPTH = 24
"""Levels of nesting kept; what is deeper becomes `<too deep>`."""

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What MessagePack can hold as an integer."""

_FAST_DEPTH = 4
_INERT = frozenset({bool, type(None), UUID, Decimal, date})

# Looked up on `type` itself: a metaclass may answer for its classes with code of its own.
_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
_mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_dict_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__


def is_plain(data: dict[Any, Any], sensitive: SensitiveKeys | None, limit: int, depth: int = _FAST_DEPTH) -> bool:
    """Return whether a map can be encoded as it is: the test that nearly every event passes.

    Args:
        data: A map from the application.
        sensitive: Decides which keys are secret; None when nothing is to be redacted.
        limit: Strings and lists longer than this are not plain.
        depth: Levels of nesting to look into; what lies deeper is not plain, which also ends a cycle.

    Raises:
        RuntimeError: When another thread changes the size of the map meanwhile.
    """
    known = sensitive.known if sensitive is not None else None
    for key, value in data.items():
        if type(key) is not str:
            return False
        if known is not None:
            verdict = known.get(key)
            if verdict is None:
                verdict = sensitive(key)  # type: ignore[misc]  # not None when `known` is not
            if verdict:
                return False
        kind = type(value)
        if kind is str:
            if len(value) > limit:
                return False
        elif kind is int:
            if not INT_MIN <= value <= INT_MAX:
                return False
        elif kind in _INERT:
            pass
        elif kind is float:
            if not isfinite(value):
                return False
        elif kind is dict:
            if not depth or not is_plain(value, sensitive, limit, depth - 1):
                return False
        elif kind is list or kind is tuple:
            if not depth or len(value) > limit or not _is_plain_list(value, sensitive, limit, depth - 1):
                return False
        elif kind is datetime:
            if value.tzinfo is not None and type(value.tzinfo) is not timezone:
                return False
        else:
            return False
    return True


def _is_plain_list(items: Iterable[Any], sensitive: SensitiveKeys | None, limit: int, depth: int) -> bool:
    for value in items:
        kind = type(value)
        if kind is str:
            if len(value) > limit:
                return False
        elif kind is int:
            if not INT_MIN <= value <= INT_MAX:
                return False
        elif kind is float:
            if not isfinite(value):
                return False
        elif kind is dict:
            if not depth or not is_plain(value, sensitive, limit, depth - 1):
                return False
        elif kind not in _INERT:
            return False
    return True


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
        handler = _HANDLERS.get(kind)
        if handler is not None:
            return handler(self, value, depth)
        for base in _mro_of(kind):
            handler = _HANDLERS.get(base)
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
        known = zone is None or type(zone) in (timezone, ZoneInfo)
        plain = datetime(year, month, day, hour, minute, second, micro, zone if known else None, fold=fold)
        if known:
            return plain
        self.stand_ins += 1
        return self.text(f"{plain.isoformat()} <{_name_of(type(zone))}>")

    def enter(self, value: Any, depth: int) -> str:
        """Return why a container is not walked into; empty when it is, and then it is on the way until `leave`."""
        if id(value) in self.on_the_way:
            return "cycle"
        if depth >= MAX_DEPTH:
            return "too deep"
        self.on_the_way.add(id(value))
        return ""

    def floor(self, depth: int) -> int:
        """What a collection must leave of the budget."""
        return max(self.budget, 0) // 2 if self.fair and depth else 0

    def mapping(self, value: Any, items: Iterable[tuple[Any, Any]], size: int, depth: int) -> Any:
        obstacle = self.enter(value, depth)
        if obstacle:
            return self.stand_in(obstacle)
        out: dict[str, Any] = {}
        floor = self.floor(depth)
        try:
            # One C call: a thread that adds keys meanwhile cannot come between.
            for key, item in list(islice(items, max(self.budget, 0))):
                if self.budget <= floor:
                    break
                name = self.key(key)
                while name in out:  # "1" and 1, or two stand-ins
                    name += "'"
                if self.sensitive is not None and self.sensitive(name):
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

    def key(self, key: Any) -> str:
        kind = type(key)
        if kind is str:
            return self.text(key)
        if kind in (int, bool, float, type(None), UUID, Decimal, date):
            return self.text(str(key))
        bases = _mro_of(kind)
        if any(base in (str, int, float, bytes, datetime, PurePath, Enum) for base in bases):
            return self.text(str(self.value(key, MAX_DEPTH)))
        return self.stand_in(_name_of(kind))

    def sequence(self, value: Any, items: Iterable[Any], size: int, depth: int) -> Any:
        obstacle = self.enter(value, depth)
        if obstacle:
            return self.stand_in(obstacle)
        out: list[Any] = []
        floor = self.floor(depth)
        try:
            for item in list(islice(items, max(self.budget, 0))):
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
            if isinstance(fields, dict):
                return self.fields(value, bases, fields, depth)
            if base is msgspec.Struct:
                return self.fields(value, bases, kind.__struct_fields__, depth)  # type: ignore[attr-defined]
        pydantic_model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
        if pydantic_model in bases:
            return self.fields(value, bases, object.__getattribute__(value, "__dict__"), depth)
        numpy_scalar = getattr(sys.modules.get("numpy"), "generic", None)
        if numpy_scalar in bases and _dict_of(kind).get("__module__", "numpy") == "numpy":
            return self.value(value.item(), MAX_DEPTH)
        return self.stand_in(_name_of(kind))

    def fields(self, value: Any, bases: tuple[type, ...], names: Iterable[str], depth: int) -> Any:
        """The fields of an object, from its `__dict__` or its slots; a property in a field's place is not called."""
        names = list(names)
        own = {}
        for base in bases:
            if "__dict__" in _dict_of(base):
                own = object.__getattribute__(value, "__dict__")
                break
        found = {}
        for name in names:
            if name in own:
                found[name] = own[name]
                continue
            for base in bases:
                slot = _dict_of(base).get(name)
                if isinstance(slot, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                    try:
                        found[name] = slot.__get__(value)
                    except AttributeError:  # a slot that was never filled
                        break
                    break
        return self.mapping(value, found.items(), len(found), depth)


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
    complex: lambda walk, value, _: walk.text(complex.__str__(value)),
    bytes: lambda walk, value, _: walk.binary(bytes.__getitem__(value, slice(None))),
    bytearray: lambda walk, value, _: walk.binary(bytes(memoryview(value)[: walk.longest + 1])),
    memoryview: lambda walk, value, _: walk.stand_in(f"memoryview of {value.nbytes} bytes"),
    datetime: lambda walk, value, _: walk.moment(value),
    date: lambda walk, value, _: walk.text(date.isoformat(value)),
    time: lambda walk, value, _: walk.text(time.isoformat(time.replace(value, tzinfo=None))),
    timedelta: lambda walk, value, _: walk.number(timedelta.total_seconds(value)),
    Decimal: lambda walk, value, _: walk.text(Decimal.__str__(value)),
    UUID: lambda walk, value, _: walk.text(UUID.__str__(value)),
    PurePath: lambda walk, value, _: walk.text(PurePath.__str__(value)),
    Enum: lambda walk, value, depth: walk.value(object.__getattribute__(value, "_value_"), depth + 1),
    dict: lambda walk, value, depth: walk.mapping(value, dict.items(value), dict.__len__(value), depth),
    types.MappingProxyType: lambda walk, value, depth: walk.stand_in("mappingproxy"),
    list: lambda walk, value, depth: walk.sequence(value, list.__iter__(value), list.__len__(value), depth),
    tuple: lambda walk, value, depth: walk.sequence(value, tuple.__iter__(value), tuple.__len__(value), depth),
    set: lambda walk, value, depth: walk.sequence(value, set.__iter__(value), set.__len__(value), depth),
    frozenset: lambda walk, value, depth: walk.sequence(
        value, frozenset.__iter__(value), frozenset.__len__(value), depth
    ),
    deque: lambda walk, value, depth: walk.sequence(value, deque.__iter__(value), deque.__len__(value), depth),
    range: lambda walk, value, _: walk.text(str(value)),
}
