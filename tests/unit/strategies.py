"""What users put into events, and what they should not, for hypothesis."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, deque
from datetime import timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import strategies as st

from streamll.privacy import SENSITIVE_TERMS


class Zone(tzinfo):
    """A time zone of somebody's own, whose code is not to be called."""

    def utcoffset(self, _moment: object) -> timedelta:
        raise AssertionError("a time zone's code was called")

    tzname = dst = utcoffset  # type: ignore[assignment]


class Color(enum.Enum):
    RED = "red"
    NESTED = {"a": [1]}  # noqa: RUF012  # a member
    NUMBER = 7


class Level(str, enum.Enum):
    INFO = "info"


class Size(enum.IntEnum):
    SMALL = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Word(str):
    """A subclass of a usual type."""


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True)
class SlottedPoint:
    __slots__ = ("x",)
    x: Any


class Struct(msgspec.Struct):
    x: Any
    y: Any = 1


surrogates = st.text(st.characters(codec=None), max_size=8)
texts = st.one_of(st.text(max_size=12), surrogates)
zones = st.one_of(
    st.none(),
    st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    st.sampled_from([timezone.utc, ZoneInfo("UTC")]),
)

plain_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
)
"""What MessagePack and JSON have themselves."""

inert_scalars = st.one_of(
    plain_scalars,
    st.uuids(),
    st.dates(),
    st.decimals(),
    st.datetimes(timezones=zones),
)
"""What is encoded as it is, beside that."""

foreign_scalars = st.one_of(
    st.sampled_from(
        [*Color, *Level, *Size, Access.READ | Access.WRITE, object(), len, int, ValueError("no"), ..., NotImplemented]
    ),
    st.sampled_from([Word("word"), PurePosixPath("/a/b"), PureWindowsPath("c:/x"), range(3), Zone()]),
    st.integers(4000, 5000).map(lambda digits: range(10**digits)),
    st.datetimes().map(lambda moment: moment.replace(tzinfo=Zone())),
    st.binary(max_size=8).flatmap(lambda value: st.sampled_from([value, bytearray(value), memoryview(value)])),
)

hashable_scalars = st.one_of(
    inert_scalars.filter(lambda value: not (isinstance(value, Decimal) and value.is_snan())),
    texts,
    st.integers(),
    st.floats(),
    st.binary(max_size=8),
    st.times(timezones=zones),
    st.timedeltas(),
    st.complex_numbers(),
    st.sampled_from([*Color, *Level, *Size, object(), Word("password"), PurePosixPath("a"), ZoneInfo("UTC")]),
    st.integers(4000, 5000).map(lambda digits: 10**digits),
    st.tuples(texts, st.integers(-2, 2)),
    st.frozensets(st.integers(), max_size=2),
)

anything = st.recursive(
    st.one_of(hashable_scalars, foreign_scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(hashable_scalars, inner, max_size=4),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.sets(hashable_scalars, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(SlottedPoint, inner),
        st.builds(Struct, inner),
        st.dictionaries(st.text(max_size=4), inner, max_size=2).map(OrderedDict),
        st.dictionaries(st.text(max_size=4), inner, max_size=2).map(MappingProxyType),
    ),
    max_leaves=12,
)
"""Any value that an application may hand over, alone or in containers."""

plain = st.recursive(
    plain_scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)
"""What needs nothing done to it, unless a key is secret."""

plain_maps = st.dictionaries(st.text(max_size=6), plain, max_size=5)

inert_maps = st.recursive(
    st.dictionaries(st.text(max_size=4), inert_scalars, max_size=4),
    lambda inner: st.dictionaries(
        st.text(max_size=4), st.one_of(inert_scalars, inner, st.lists(inert_scalars, max_size=3)), max_size=4
    ),
    max_leaves=6,
)

SEPARATORS = st.sampled_from(["_", "-", ".", " ", ":", "/", "__", "[", " - "])


@st.composite
def spelled(draw: st.DrawFn, term: str) -> str:
    """A term as people write keys: any separator, camelCase, and the case of any word changed as a whole."""
    words = term.split()
    if draw(st.booleans()):
        first = draw(st.sampled_from([str.lower, str.capitalize]))
        return first(words[0]) + "".join(word.capitalize() for word in words[1:])
    case = draw(st.sampled_from([str.lower, str.upper, str.capitalize]))
    return draw(SEPARATORS).join(case(word) for word in words)


secret_keys = st.sampled_from(SENSITIVE_TERMS).flatmap(spelled)
"""Keys that name a secret."""

FOUND_IN_TEXTS = {
    "email": ("alice@example.com", "Ali.ce+tag@sub.example.co.uk", "alice%40example.com", "o'brien@example.ie"),
    "phone": ("+1234567890", "123-456-7890", "(123) 456-7890", "+44 20 7123 4567", "+49 (0)30 1234567"),
    "card": ("4111111111111111", "5500 0000 0000 0004", "3782-822463-10005", "6011111111111117"),
    "iban": ("GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00"),
    "jwt": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",),
    "aws_key": ("AKIA" + "QWERTYUIOPASDF23",),
    "github_token": ("ghp_" + "a1B2" * 9,),
    "private_key": ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",),
    "url_credentials": ("app:hunter2",),
    "credential": ("hunter2",),
}
"""By kind, what stands in texts that is to be found; the last two with `AROUND`."""

AROUND = {"url_credentials": "postgres://{}@db/app", "credential": "password={}"}
"""What makes of a word what it is."""


@st.composite
def _private_text(draw: st.DrawFn) -> str:
    pieces = []
    for kind in draw(st.lists(st.sampled_from(sorted(FOUND_IN_TEXTS)), max_size=3)):
        found = draw(st.sampled_from(FOUND_IN_TEXTS[kind]))
        pieces.append(AROUND.get(kind, "{}").format(found))
        pieces.append(draw(st.sampled_from([" ", ", ", "\n", "; ", " \N{ZERO WIDTH SPACE}", " é "])))
    return draw(st.text(max_size=4)) + " " + "".join(pieces) + draw(st.text(max_size=4))


private_texts = _private_text()
"""Texts with things to be found in them, next to each other and to anything."""

private_maps = st.recursive(
    st.dictionaries(
        st.one_of(st.text(max_size=4), private_texts, st.sampled_from(["user_id", "userId", "password", "note"])),
        st.one_of(private_texts, plain_scalars, private_texts.map(str.encode)),
        max_size=4,
    ),
    lambda inner: st.dictionaries(
        st.text(max_size=4), st.one_of(inner, st.lists(private_texts, max_size=3)), max_size=3
    ),
    max_leaves=5,
)
