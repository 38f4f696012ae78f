"""Data that can be encoded as it is, which nearly all is: found out in one pass.

What belongs here: maps and lists of the usual types, a few levels deep, of a bounded size. What does not: redacting such data
(redaction.py), and all other data, which takes the longer way of values.py.
"""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from math import isfinite
from sys import getsizeof
from typing import Any
from uuid import UUID

from streamll.privacy.keys import SensitiveKeys

INT_MIN, INT_MAX = -(2**63), 2**64 - 1
"""What MessagePack can hold as an integer."""

FAST_DEPTH = 4
ITEM = 16
"""About what an item takes beside its text; what counts is that it is something, so that no data is endless."""
_NONE: frozenset[str] = frozenset()
_DECIMAL_SIZE = 256
"""The memory of a number of some hundred digits; a longer `Decimal` is not plain."""


def room_after(data: dict[Any, Any], sensitive: SensitiveKeys | None, room: int, depth: int = FAST_DEPTH) -> int:
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
    room -= len(data) * ITEM
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
        elif not is_inert(value, kind):
            return -1
    return room


def _plain_list(items: list[Any] | tuple[Any, ...], sensitive: SensitiveKeys | None, room: int, depth: int) -> int:
    room -= len(items) * ITEM
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
        elif not is_inert(value, kind):
            return -1
    return room


def is_inert(value: Any, kind: type) -> bool:
    """Return whether a value that is short and has no parts can be encoded as it is."""
    if value is None or kind is bool or kind is UUID or kind is date:
        return True
    if kind is datetime:
        return value.tzinfo is None or type(value.tzinfo) is timezone
    return kind is Decimal and getsizeof(value) <= _DECIMAL_SIZE


def texts_after(value: Any, texts: list[str], room: int, depth: int = FAST_DEPTH) -> int:
    """Gather all texts in maps and lists, but not those that are keys.

    Args:
        value: A map, a list or a tuple.
        texts: What they are added to.
        room: How much they and the items may be together.
        depth: Levels of maps and lists inside that are looked into.

    Returns:
        What they leave of the room; less than nothing when that is too little, or the depth is.

    Raises:
        RuntimeError: When another thread changes the size of a map meanwhile.
    """
    room -= len(value) * ITEM
    if room < 0:
        return -1
    for item in value.values() if type(value) is dict else value:
        kind = type(item)
        if kind is str:
            room -= len(item)
            texts.append(item)
        elif kind is dict or kind is list or kind is tuple:
            if not depth:
                return -1
            room = texts_after(item, texts, room, depth - 1)
        if room < 0:
            return -1
    return room
