"""What becomes of users' values: always encodable, never called, never endless, never a secret."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Any, ClassVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll.plain import INT_MAX, INT_MIN, room_after
from streamll.privacy import REDACTED, SensitiveKeys
from streamll.values import MAX_DEPTH, Cleaned, clean
from tests.unit.hostile import armed, hostile_class
from tests.unit.strategies import (
    Color,
    Level,
    Point,
    Size,
    SlottedPoint,
    Struct,
    Word,
    Zone,
    anything,
    inert_maps,
    plain_maps,
    secret_keys,
)

AMPLE = 1 << 40


def is_plain(data: dict[Any, Any], sensitive: SensitiveKeys | None, room: int) -> bool:
    return room_after(data, sensitive, room) >= 0


Pair = namedtuple("Pair", "a b")

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [1, inner],
    "dict": lambda inner: {"k": inner},
    "tuple": lambda inner: (inner,),
    "point": Point,
    "struct": Struct,
}

encode_msgpack = msgspec.msgpack.Encoder().encode
encode_json = msgspec.json.Encoder().encode


def cleaned(value: object, budget: int = AMPLE, fair: bool = False) -> Any:
    return clean(value, SensitiveKeys(), budget, fair).value


def stand_ins(value: object) -> int:
    return clean(value, None, AMPLE).stand_ins


def safe_repr(value: object) -> str:
    """A `repr` also of integers longer than Python writes by default."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:1000]
    finally:
        sys.set_int_max_str_digits(limit)


class TestAnything:
    @given(anything)
    def test_becomes_encodable_and_is_not_changed(self, value: object) -> None:
        before = safe_repr(value)
        result = clean(value, SensitiveKeys(), AMPLE)
        encode_msgpack(result.value)
        json.loads(encode_json(result.value))
        assert safe_repr(value) == before
        assert result.cut == 0

    @given(anything, st.integers(0, 300), st.booleans())
    def test_becomes_encodable_within_any_budget(self, value: object, budget: int, fair: bool) -> None:
        result = clean(value, SensitiveKeys(), budget, fair).value
        # A character has up to four bytes (six in JSON), and each of the containers on the way down says what it left out.
        assert len(encode_msgpack(result)) <= 4 * budget + 1500
        assert len(encode_json(result)) <= 6 * budget + 2500

    @given(anything)
    def test_needs_no_second_cleaning(self, value: object) -> None:
        once = clean(value, SensitiveKeys(), AMPLE)
        twice = clean(once.value, SensitiveKeys(), AMPLE)
        assert encode_msgpack(twice.value) == encode_msgpack(once.value)
        assert (twice.stand_ins, twice.cut) == (0, 0)

    @given(anything)
    def test_is_cleaned_the_same_again(self, value: object) -> None:
        assert encode_msgpack(cleaned(value)) == encode_msgpack(cleaned(value))

    @given(plain_maps)
    def test_plain_data_is_left_as_it_is(self, data: dict[str, Any]) -> None:
        assert clean(data, None, AMPLE) == Cleaned(data, 0, 0, 0)

    @given(inert_maps)
    def test_what_is_plain_is_encoded_as_if_it_had_been_cleaned(self, data: dict[str, Any]) -> None:
        if is_plain(data, SensitiveKeys(), AMPLE):
            result = clean(data, SensitiveKeys(), AMPLE)
            assert (result.stand_ins, result.redacted, result.cut) == (0, 0, 0)
            assert encode_json(result.value) == encode_json(data)
            try:
                direct = encode_msgpack(data)
            except (
                OverflowError,
                ValueError,
            ):  # the first or last year of the calendar, which the pipeline then cleans
                return
            assert encode_msgpack(result.value) == direct


class TestUsualTypes:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            (True, True),
            (INT_MIN, INT_MIN),
            (INT_MAX, INT_MAX),
            (2.5, 2.5),
            ("text", "text"),
            (b"bytes", b"bytes"),
            (bytearray(b"bytes"), b"bytes"),
            (1 + 2j, "(1+2j)"),
            (date(2026, 1, 31), "2026-01-31"),
            (time(9, 30, tzinfo=timezone.utc), "09:30:00"),
            (time(9, 30, 1, 5), "09:30:01.000005"),
            (timedelta(minutes=1), 60.0),
            (Decimal("1.50"), "1.50"),
            (Decimal("sNaN"), "sNaN"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (PurePosixPath("a/b"), "a/b"),
            (Path("a"), "a"),
            (Color.RED, "red"),
            (Color.NESTED, {"a": [1]}),
            (Level.INFO, "info"),
            (Size.SMALL, 1),
            (Word("word"), "word"),
            ((1, (2,)), [1, [2]]),
            (Pair(1, 2), [1, 2]),
            ({3}, [3]),
            (frozenset({3}), [3]),
            (deque([1, 2]), [1, 2]),
            (range(3), "range(0, 3)"),
            (OrderedDict(a=1), {"a": 1}),
            (defaultdict(list, a=[1]), {"a": [1]}),
            (Counter("aab"), {"a": 2, "b": 1}),
            (Point(1, SlottedPoint(2)), {"x": 1, "y": {"x": 2}}),
            (Struct({"a": 1}), {"x": {"a": 1}, "y": 1}),
        ],
        ids=safe_repr,
    )
    def test_keep_their_meaning(self, value: object, expected: object) -> None:
        result = clean(value, None, AMPLE)
        assert result.value == expected
        assert type(result.value) is type(expected)
        assert (result.stand_ins, result.cut) == (0, 0)

    def test_a_moment_is_kept_with_its_zone(self) -> None:
        for zone in (None, timezone.utc, timezone(timedelta(hours=-3)), ZoneInfo("UTC")):
            moment = datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=zone)
            assert cleaned(moment) == moment

    def test_a_moment_of_a_subclass_is_read_past_it(self) -> None:
        stamp = hostile_class(datetime)(2026, 1, 31, 9, fold=1)
        with armed():
            result = cleaned(stamp)
        assert type(result) is datetime
        assert (result.isoformat(), result.fold) == ("2026-01-31T09:00:00", 1)

    def test_a_foreign_zone_is_named_and_counted(self) -> None:
        result = clean(datetime(2026, 1, 31, tzinfo=Zone()), None, AMPLE)
        assert result.value == "2026-01-31T00:00:00 <Zone>"
        assert result.stand_ins == 1

    @pytest.mark.parametrize("moment", [datetime(1, 1, 1), datetime(9999, 12, 31, 23)], ids=["first", "last"])  # noqa: DTZ001
    @pytest.mark.parametrize("hours", [-14, 14])
    def test_the_ends_of_the_calendar_are_encodable_in_every_zone(self, moment: datetime, hours: int) -> None:
        moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
        beyond = (moment.year == 1) == (hours > 0)
        assert cleaned(moment) == (moment.isoformat() if beyond else moment)
        encode_msgpack(cleaned(moment))


class TestStandIns:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (float("nan"), "<nan>"),
            (float("-inf"), "<-inf>"),
            (2**64, "<int of 65 bits>"),
            (-(10**5000), "<int of 16610 bits>"),
            (range(10**5000), "<range>"),
            (memoryview(b"abc"), "<memoryview>"),
            (object(), "<object>"),
            (object, "<type>"),
            (len, "<builtin_function_or_method>"),
            (lambda: 0, "<function>"),
            ((n for n in "x"), "<generator>"),
            (ValueError("secret"), "<ValueError>"),
            (types.MappingProxyType({"a": 1}), "<mappingproxy>"),
            ({"a": 1}.keys(), "<dict_keys>"),
            (Zone(), "<Zone>"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_name_what_cannot_be_encoded(self, value: object, expected: str) -> None:
        result = clean([value], None, AMPLE)
        assert result.value == [expected]
        assert result.stand_ins == 1

    def test_a_released_memoryview_too(self) -> None:
        view = memoryview(b"abc")
        view.release()
        assert cleaned(view) == "<memoryview>"

    def test_lone_surrogates_are_spelled_out_in_values_and_keys(self) -> None:
        result = clean({"\udc80": "caf\udce9"}, None, AMPLE)
        assert result.value == {"\\udc80": "caf\\udce9"}
        assert result.stand_ins == 2

    def test_a_cycle_is_cut_where_it_closes(self) -> None:
        data: dict[str, Any] = {"a": 1}
        data["self"] = data
        data["list"] = [data]
        result = clean(data, None, AMPLE)
        assert result.value == {"a": 1, "self": "<cycle>", "list": ["<cycle>"]}
        assert result.stand_ins == 2

    def test_a_cycle_through_objects_too(self) -> None:
        point = Point(1)
        point.y = Struct([point])
        assert cleaned(point) == {"x": 1, "y": {"x": ["<cycle>"], "y": 1}}

    def test_what_stands_twice_is_no_cycle(self) -> None:
        shared = [1]
        assert cleaned([shared, shared]) == [[1], [1]]

    def test_what_is_too_deep_is_named(self) -> None:
        deep: Any = "bottom"
        for _ in range(MAX_DEPTH - 1):
            deep = [deep]
        assert "bottom" in str(cleaned(deep))
        assert "bottom" in str(cleaned([deep]))
        assert str(cleaned([[deep]])).strip("[]") == "'<too deep>'"

    def test_a_hundred_thousand_levels_are_no_trouble(self) -> None:
        deep: Any = {}
        for _ in range(100_000):
            deep = {"d": deep}
        assert stand_ins(deep) == 1
        while deep:  # else its end would be a recursion
            deep = deep["d"]

    def test_an_enumeration_that_is_its_own_value_ends(self) -> None:
        class Odd(enum.Enum):
            ONE = 1

        Odd.ONE._value_ = Odd.ONE  # type: ignore[assignment]
        assert cleaned(Odd.ONE) == "<Odd>"

    def test_objects_that_are_not_finished_are_no_trouble(self) -> None:
        uuid = UUID.__new__(UUID)
        assert cleaned([uuid, SlottedPoint.__new__(SlottedPoint), Point.__new__(Point)]) == ["<UUID>", {}, {}]
        object.__setattr__(uuid, "int", Word("1"))
        assert cleaned(uuid) == "<UUID>"

    def test_an_enumeration_whose_member_lost_its_value_is_named(self) -> None:
        class Odd(enum.Enum):
            ONE = 1

        del Odd.ONE.__dict__["_value_"]
        assert cleaned({"v": Odd.ONE}) == {"v": "<Odd>"}


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("text", "text"),
            (Word("word"), "word"),
            (1, "1"),
            (True, "True"),
            (None, "None"),
            (1.5, "1.5"),
            (b"\xffab", "\\xffab"),
            (10**5000, "<int of 16610 bits>"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (Decimal("1.5"), "1.5"),
            (date(2026, 1, 31), "2026-01-31"),
            (datetime(2026, 1, 31), "2026-01-31 00:00:00"),  # noqa: DTZ001  # what users have
            (PurePosixPath("a/b"), "a/b"),
            (Color.RED, "red"),
            (Color.NUMBER, "NUMBER"),
            (Size.SMALL, "SMALL"),
            (Level.INFO, "info"),
            (("a", 1), "a.1"),
            (((("a",),),), "a"),
            ((((((("a",),),),),),), "<tuple>"),
            (frozenset({1}), "<frozenset>"),
            (len, "<builtin_function_or_method>"),
        ],
        ids=safe_repr,
    )
    def test_become_text(self, key: object, name: str) -> None:
        assert cleaned({key: 0}) == {name: 0}

    def test_that_become_the_same_text_stay_apart(self) -> None:
        result = cleaned({1: "a", "1": "b", "1'1": "c", b"1": "d", "1'1'2": "e"})
        assert list(result.values()) == ["a", "b", "c", "d", "e"]
        assert cleaned({"1'2": "a", "1": "b", 1: "c"}) == {"1'2": "a", "1": "b", "1'2'": "c"}

    def test_many_that_become_the_same_text_take_no_longer_than_others(self) -> None:
        result = cleaned({frozenset({n}): n for n in range(100_000)})
        assert sorted(result.values()) == list(range(100_000))
        assert max(len(key) for key in result) < 30

    def test_a_long_tuple_is_a_key_by_its_start(self) -> None:
        assert cleaned({tuple(range(1_000_000)): 0}) == {"0.1.2.3.4.5.6.7": 0}


class TestRedaction:
    MARK = "hunter2"

    def leaks(self, value: object, budget: int = AMPLE, fair: bool = False) -> bool:
        result = clean({"outer": value}, SensitiveKeys(), budget, fair).value
        return self.MARK.encode() in encode_msgpack(result) or self.MARK.encode() in encode_json(result)

    @given(secret_keys, st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=6), st.data())
    def test_holds_in_every_spelling_and_at_every_depth(
        self, key: str, nesting: list[str], draw: st.DataObject
    ) -> None:
        wrapped: Any = draw.draw(st.sampled_from([self.MARK, [self.MARK], {"x": self.MARK}, Point(self.MARK)]))
        wrapped = {"harmless": 1, key: wrapped}
        for kind in nesting:
            wrapped = WRAPPERS[kind](wrapped)
        assert not self.leaks(wrapped)
        assert not self.leaks(wrapped, budget=draw.draw(st.integers(0, 100)), fair=draw.draw(st.booleans()))

    @pytest.mark.parametrize(
        "key",
        [
            *(
                Word("password"),
                b"password",
                ("db", "password"),
                ("db", ("x", Word("password"))),
                ("user", b"password"),
            ),
            PurePosixPath("etc/password"),
        ],
        ids=safe_repr,
    )
    def test_holds_for_keys_that_are_no_strings(self, key: object) -> None:
        assert cleaned({key: self.MARK}).popitem()[1] == REDACTED

    def test_holds_for_members_of_enumerations(self) -> None:
        class Field(enum.Enum):
            PASSWORD = 1
            OTHER = "api_key"

        class Number(enum.IntEnum):
            PASSWORD = 1

        result = clean(dict.fromkeys((*Field, *Number), self.MARK), SensitiveKeys(), AMPLE)
        assert set(result.value.values()) == {REDACTED}
        assert result.redacted == 3

    def test_holds_for_the_fields_of_objects(self) -> None:
        credentials = dataclasses.make_dataclass("Credentials", ["user", "password"])
        assert cleaned(credentials("me", self.MARK)) == {"user": "me", "password": REDACTED}

    @pytest.mark.parametrize("fair", [False, True])
    @pytest.mark.parametrize("budget", range(80))
    def test_holds_when_the_key_itself_has_to_be_cut(self, budget: int, fair: bool) -> None:
        result = clean({"the_password_of_the_customer": 123_456_789}, SensitiveKeys(), budget, fair)
        assert "123456789" not in str(result.value)

    def test_is_counted_and_can_be_turned_off(self) -> None:
        data = {"token": "a", "x": [{"api_key": "b"}, {"safe_key": "c"}]}
        assert clean(data, SensitiveKeys(), AMPLE) == Cleaned(
            {"token": REDACTED, "x": [{"api_key": REDACTED}, {"safe_key": "c"}]}, 0, 2, 0
        )
        assert clean(data, None, AMPLE).value == data


class TestBudget:
    def test_a_long_string_is_cut_and_says_by_how_much(self) -> None:
        result = clean("x" * 1000, None, 100)
        assert result == Cleaned("x" * 99 + "<901 more>", 0, 0, 1)

    def test_bytes_are_cut(self) -> None:
        for value in (b"x" * 1000, bytearray(b"x" * 1000)):
            assert clean(value, None, 100) == Cleaned(b"x" * 99, 0, 0, 1)

    @pytest.mark.parametrize("kind", [list, tuple, set, frozenset, deque])
    def test_a_million_items_are_cut_to_what_there_is_room_for(self, kind: Callable[[Any], Any]) -> None:
        result = clean(kind(range(1_000_000)), None, 10_000)
        assert result.cut == 1
        assert 1000 < len(result.value) < 1200
        assert result.value[-1] == f"<{1_000_001 - len(result.value)} more>"

    def test_a_million_keys_are_cut_to_what_there_is_room_for(self) -> None:
        result = clean({str(n): n for n in range(1_000_000)}, None, 10_000)
        assert result.cut == 1
        assert len(encode_msgpack(result.value)) < 20_000
        assert result.value["<cut>"] == f"<{1_000_001 - len(result.value)} more>"

    @pytest.mark.parametrize("fair", [False, True])
    def test_data_that_is_endless_when_written_out_is_not_walked_through(self, fair: bool) -> None:
        doubling: Any = ["x" * 50]
        for _ in range(60):
            doubling = [doubling, doubling]
        wide: Any = {"k": "v" * 100}
        for _ in range(10):
            wide = {f"k{n}": wide for n in range(1000)}
        for value in (doubling, wide):
            assert len(encode_msgpack(clean(value, None, 100_000, fair).value)) < 400_000

    def test_a_fair_budget_leaves_room_for_the_others(self) -> None:
        data = {"long": "x" * 100_000, "list": [{"y": "z" * 100}] * 10_000, "short": "kept", "n": 5}
        greedy = clean(data, None, 1000).value
        fair = clean(data, None, 1000, fair=True).value
        assert "short" not in greedy
        assert (fair["short"], fair["n"]) == ("kept", 5)
        assert len(encode_msgpack(fair)) < 1300

    @given(plain_maps, st.integers(0, 400))
    def test_nothing_is_counted_as_cut_that_is_not(self, data: dict[str, Any], budget: int) -> None:
        result = clean(data, None, budget)
        assert (result.cut == 0) == (result.value == data)


BASES: tuple[tuple[type, tuple[Any, ...], object], ...] = (
    (object, (), "<HostileObject>"),
    (str, ("abc",), "abc"),
    (int, (5,), 5),
    (float, (2.5,), 2.5),
    (complex, (1, 2), "(1+2j)"),
    (bytes, (b"ab",), b"ab"),
    (bytearray, (b"ab",), b"ab"),
    (list, ([1],), [1]),
    (tuple, ([1],), [1]),
    (dict, ({"a": 1},), {"a": 1}),
    (OrderedDict, ({"a": 1},), {"a": 1}),
    (set, ([1],), [1]),
    (frozenset, ([1],), [1]),
    (deque, ([1],), [1]),
    (date, (2026, 1, 31), "2026-01-31"),
    (time, (9, 30, 0, 0, Zone()), "09:30:00"),
    (timedelta, (1,), 86400.0),
    (Decimal, ("1.5",), "1.5"),
    (UUID, ("12345678123456781234567812345678",), "12345678-1234-5678-1234-567812345678"),
    (PurePosixPath, ("a",), "<HostilePureposixpath>"),
    (ValueError, ("x",), "<HostileValueerror>"),
)

# The others have no hash; a time with a zone asks the zone for it.
NO_KEYS = (bytearray, list, dict, OrderedDict, set, deque, time)
KEYS = [case for case in BASES if case[0] not in NO_KEYS]


class TestNothingIsCalled:
    @pytest.mark.parametrize(("base", "arguments", "expected"), BASES, ids=lambda value: getattr(value, "__name__", ""))
    def test_of_a_subclass_whose_every_method_is_its_own(
        self, base: type, arguments: tuple[Any, ...], expected: object
    ) -> None:
        value = hostile_class(base)(*arguments)
        with armed():
            result = clean({"v": value, "list": [value]}, SensitiveKeys(), AMPLE)
            plain = is_plain({"v": value}, None, AMPLE), is_plain({"v": [value]}, None, AMPLE)
        assert result.value == {"v": expected, "list": [expected]}
        assert plain == (False, False)
        encode_msgpack(result.value)

    @pytest.mark.parametrize(("base", "arguments", "expected"), KEYS, ids=lambda value: getattr(value, "__name__", ""))
    def test_of_such_a_key(self, base: type, arguments: tuple[Any, ...], expected: object) -> None:
        value = hostile_class(base)(*arguments)
        data = {value: 1, "x": {value: 2}}
        with armed():
            result = cleaned(data)
            plain = is_plain(data, SensitiveKeys(), AMPLE)
        assert list(result.values()) == [1, {next(iter(result)): 2}]
        assert plain is False

    def test_of_a_class_of_a_hostile_metaclass(self) -> None:
        kind = hostile_class(object)
        with armed():
            assert cleaned([kind]) == ["<HostileMeta>"]

    def test_of_members_of_an_enumeration(self) -> None:
        class Odd(enum.Enum):
            ONE = "one"

        data = {Odd.ONE: Odd.ONE}

        def fail(*_: object) -> Any:
            raise AssertionError("code of a user's object was called")

        for name in ("__repr__", "__str__", "__hash__", "__eq__", "__getattribute__", "__format__", "__bool__"):
            setattr(Odd, name, fail)
        for name in ("_value_", "value", "_name_", "name"):
            type.__setattr__(Odd, name, property(fail))
        assert cleaned(data) == {"one": "one"}

    @pytest.mark.parametrize("slots", [False, True])
    def test_of_a_dataclass(self, slots: bool) -> None:
        def fail(*arguments: object) -> Any:
            raise AssertionError(f"code of a user's object was called: {arguments[1:]}")

        methods = {"__getattribute__": fail, "__repr__": fail}
        kind = dataclasses.make_dataclass("Data", ["kept", "other"], namespace=methods, slots=slots, repr=False)
        assert cleaned(kind(1, 2)) == {"kept": 1, "other": 2}

    def test_of_a_dataclass_with_properties_in_the_place_of_fields(self) -> None:
        class Base:
            @property
            def computed(self) -> int:
                raise AssertionError("a property was called")

        @dataclasses.dataclass(init=False)
        class Data(Base):
            computed: int

            @property
            def __dict__(self) -> Any:  # type: ignore[override]
                raise AssertionError("a property was called")

        assert cleaned(Data()) == {}

    def test_of_what_only_looks_like_a_dataclass(self) -> None:
        class Fields(dict[str, Any]):
            def __iter__(self) -> Iterator[str]:
                raise AssertionError("asked for its fields")

        class Looks:
            __dataclass_fields__ = Fields(x=1)

        class Named:
            __dataclass_fields__: ClassVar[Any] = {hostile_class(object)(): 1, "x": 2}

            def __init__(self) -> None:
                self.x = 3

        looks, named = Looks(), Named()
        with armed():
            assert cleaned([looks, named]) == ["<Looks>", {"x": 3}]

    def test_of_an_object_with_a_dict_of_its_own_kind(self) -> None:
        point = Point(1, 2)
        point.__dict__ = hostile_class(dict)(point.__dict__)
        with armed():
            assert cleaned(point) == {"x": 1, "y": 2}

    def test_of_a_struct_with_a_hostile_metaclass(self) -> None:
        class Meta(type(msgspec.Struct)):  # type: ignore[misc]  # it has no public name
            def __getattribute__(cls, name: str) -> Any:
                if name == "__struct_fields__":
                    raise AssertionError(f"asked for {name}")
                return super().__getattribute__(name)

        kind: Any = Meta("Data", (msgspec.Struct,), {"__annotations__": {"x": int}, "__module__": __name__})
        assert cleaned(kind(x=1)) == {"x": 1}

    def test_of_lazy_objects(self) -> None:
        class Lazy:
            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"asked for {name}")

            @property  # type: ignore[misc]  # which a proxy does
            def __class__(self) -> Any:
                raise AssertionError("asked for its class")

        class Referent:
            pass

        referent = Referent()
        values = [Lazy(), weakref.proxy(referent)]
        del referent
        assert cleaned(values) == ["<Lazy>", "<ProxyType>"] or cleaned(values) == ["<Lazy>", "<weakproxy>"]

    def test_of_descriptors_that_stand_where_fields_are_looked_for(self) -> None:
        class Descriptor:
            @property  # type: ignore[misc]  # which a proxy does
            def __class__(self) -> Any:
                raise AssertionError("asked for its class")

            def __get__(self, *_: object) -> Any:
                raise AssertionError("called")

        class Looks:
            __dataclass_fields__: ClassVar[Any] = {"x": 1}
            x = Descriptor()

        assert cleaned([Looks()]) == [{}]


class TestLibraries:
    """Objects of libraries that streamll does not import: it knows them when they are loaded."""

    def test_pydantic_models_are_read_from_their_dict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pydantic = types.ModuleType("pydantic.main")
        model = pydantic.BaseModel = type("BaseModel", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pydantic.main", pydantic)
        user = type("User", (model,), {"__getattribute__": None})()
        object.__setattr__(user, "name", "me")
        object.__setattr__(user, "password", "hunter2")
        assert cleaned(user) == {"name": "me", "password": REDACTED}

    def test_numpy_scalars_become_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        numpy = types.ModuleType("numpy")

        class Generic:
            def item(self) -> object:
                return {"int64": 7, "longdouble": self, "void": (1, 2)}[type(self).__name__]

        numpy.generic = Generic  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "numpy", numpy)
        scalars = [type(name, (Generic,), {"__module__": "numpy"})() for name in ("int64", "longdouble", "void")]
        mine = type("int64", (Generic,), {"__module__": "mine"})()
        assert cleaned([*scalars, mine]) == [7, "<longdouble>", "<too deep>", "<int64>"]

    def test_real_pydantic(self) -> None:
        pydantic = pytest.importorskip("pydantic")
        user = pydantic.create_model("User", name=(str, ...), password=(str, ...))(name="me", password="hunter2")
        assert cleaned({"user": user}) == {"user": {"name": "me", "password": REDACTED}}

    def test_real_numpy(self) -> None:
        numpy = pytest.importorskip("numpy")
        values = [numpy.int32(7), numpy.float32(0.5), numpy.float64(1.5), numpy.bool_(True), numpy.str_("x")]
        values += [numpy.longdouble(1), numpy.zeros(3), numpy.datetime64("2026-01-31")]
        assert cleaned(values) == [7, 0.5, 1.5, True, "x", "<longdouble>", "<ndarray>", "2026-01-31"]


class TestMeanwhile:
    """Other threads may change what is being read."""

    @contextmanager
    def calling(self, function: str, action: Callable[[], object]) -> Iterator[None]:
        """Do something whenever a function of values.py is entered, as another thread might."""

        def profile(frame: FrameType, event: str, _argument: object) -> None:
            if event == "call" and frame.f_code.co_name == function:
                sys.setprofile(None)
                action()
                sys.setprofile(profile)

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(before)

    @pytest.mark.parametrize("kind", [deque, set])
    def test_a_collection_that_changes_its_size_is_named(self, kind: type) -> None:
        numbers = iter(range(100, 200))
        values = kind([1, 2, 3])
        add = values.append if kind is deque else values.add
        with self.calling("first", lambda: add(next(numbers))):
            result = cleaned({"v": values, "w": 1})
        assert result == {"v": "<changing>", "w": 1}

    def test_a_map_too(self) -> None:
        data = {str(n): n for n in range(10)}
        numbers = iter(range(100, 200))

        def items() -> Iterator[Any]:
            for item in data.items():
                data[str(next(numbers))] = 0
                yield item

        from streamll.values import _Walk

        walk = _Walk(None, AMPLE, False)
        assert walk.mapping(data, items(), 10, 0) == "<changing>"

    @pytest.mark.parametrize("function", ["first", "name", "text", "value"])
    def test_a_map_that_grows_and_shrinks_is_read_as_it_was_once(self, function: str) -> None:
        numbers = iter(range(100, 10_000))
        data: dict[Any, Any] = {str(n): [n] for n in range(10)}

        def change() -> None:
            data.pop(next(iter(data)))
            data[next(numbers)] = 1
            data[next(numbers)] = 1

        with self.calling(function, change):
            encode_msgpack(cleaned({"d": data, "l": [data]}))

    def test_a_list_that_is_emptied_is_read_as_it_was_once(self) -> None:
        values = list(range(10))
        with self.calling("value", values.clear):
            encode_msgpack(cleaned([values, values]))


class TestIsPlain:
    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"a": 1, "b": 1.5, "c": "x", "d": None, "e": True, "f": UUID(int=1), "g": date(2026, 1, 31)},
            {"a": INT_MIN, "b": INT_MAX, "c": Decimal("1.5"), "d": datetime(2026, 1, 31, tzinfo=timezone.utc)},
            {"a": [1, 1.5, "x", None, True, {"b": (1, 2)}], "c": {"d": {"e": {"f": {}}}}},
            {"a": datetime(2026, 1, 31)},  # noqa: DTZ001  # what users have
        ],
        ids=range(5),
    )
    def test_what_needs_nothing_done_to_it(self, data: dict[str, Any]) -> None:
        assert is_plain(data, SensitiveKeys(), 10_000)
        assert is_plain(data, None, 10_000)

    @pytest.mark.parametrize(
        "value",
        [
            *(
                INT_MIN - 1,
                INT_MAX + 1,
                float("nan"),
                float("inf"),
                b"x",
                {1},
                object(),
                Word("x"),
                time(9),
                Size.SMALL,
            ),
            *(datetime(2026, 1, 31, tzinfo=ZoneInfo("UTC")), Decimal(10**5000), {1: 2}, {"password": 1}, Path("a")),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_not_plain_is_not_in_any_place(self, value: object) -> None:
        for data in ({"v": value}, {"v": [value]}, {"v": {"w": value}}, {"v": ({"w": value},)}, {"v": {"w": [value]}}):
            assert not is_plain(data, SensitiveKeys(), 10_000_000)

    def test_secret_keys_only_while_something_is_to_be_redacted(self) -> None:
        assert is_plain({"password": "x"}, None, 10_000)
        assert not is_plain({"a": {"password": "x"}}, SensitiveKeys(), 10_000)

    @pytest.mark.parametrize(
        "data",
        [
            {"v": "x" * 10_001},
            {"v": ["x" * 5001] * 2},
            {"v": list(range(10_001))},
            {"x" * 10_001: 1},
            {str(n): n for n in range(10_001)},
            {"v": [{"x" * 300: 1}] * 100},
        ],
        ids=["string", "strings", "list", "key", "map", "same key"],
    )
    def test_what_is_long_altogether_is_not(self, data: dict[str, Any]) -> None:
        assert not is_plain(data, SensitiveKeys(), 10_000)
        assert not is_plain(data, None, 10_000)

    def test_what_is_endless_when_written_out_is_not(self) -> None:
        wide: dict[str, Any] = {"k": "v"}
        for _ in range(4):
            wide = {f"k{n}": wide for n in range(1000)}
        assert not is_plain(wide, SensitiveKeys(), 1_000_000)
        assert not is_plain({"v": [wide] * 10}, SensitiveKeys(), 1_000_000)

    def test_what_is_deeply_nested_is_not(self) -> None:
        assert is_plain({"a": {"b": {"c": {"d": {"e": 1}}}}}, None, AMPLE)
        ends: list[Any] = [{"e": {}}, [], {"e": []}, [{}]]
        for deep in ends:
            assert not is_plain({"a": {"b": {"c": {"d": {"e": deep}}}}}, None, AMPLE)
        assert is_plain({"a": {"b": {"c": [1]}}}, None, AMPLE)
        assert not is_plain({"a": {"b": {"c": {"d": [{}]}}}}, None, AMPLE)

    def test_a_cycle_is_not(self) -> None:
        data: dict[str, Any] = {}
        data.update({f"k{n}": data for n in range(1000)})
        assert not is_plain(data, SensitiveKeys(), AMPLE)
        data = {"list": [], "a": 1}
        data["list"].append(data)
        assert not is_plain(data, SensitiveKeys(), AMPLE)
