"""Full redaction of events: the short way makes what the long one makes, and nothing private gets out by any."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll import codec
from streamll.errors import BufferFullError
from streamll.models import NO_TAGS, Record, StreamllEvent
from streamll.options import KIB, PipelineOptions
from streamll.pipeline import Pipeline, PipelineStats, _rules_of
from streamll.plain import texts_after
from streamll.privacy.kinds import STRATEGIES
from streamll.privacy.pseudonyms import Pseudonyms
from streamll.redaction import NOTHING_FOUND, NotPlainError, Redaction, look_through, redacted
from streamll.values import clean
from tests.unit.strategies import (
    AROUND,
    FOUND_IN_TEXTS,
    Point,
    Word,
    inert_maps,
    plain_maps,
    private_maps,
    private_texts,
    secret_keys,
)

AMPLE = 1 << 30
KEY = "a key of this test alone"
MARKS = ("example", "hunter2", "QWERTY", "a1B2a1", "MIIE", "eyJhb", "WEST", "123-456", "20 7123", "3782-82", "5500 00")
"""Parts of what is found in the texts of these tests, which no id and no pseudonym has in it."""


def event(**fields: Any) -> StreamllEvent:
    return StreamllEvent(**{"event_type": "noted", **fields})


def full(**options: Any) -> PipelineOptions:
    return PipelineOptions(**{"redact": "full", "pseudonym_key": KEY, **options})


def read(options: PipelineOptions, content_type: str = codec.MSGPACK, **fields: Any) -> StreamllEvent:
    return codec.decode(Pipeline(options).encode(event(**fields), content_type).payload)


class TestShortWay:
    @given(
        plain_maps | private_maps | inert_maps,
        st.dictionaries(secret_keys | st.just("user_id"), st.text() | st.lists(st.text()), max_size=2),
        st.sampled_from(["keys", "full"]),
        st.sampled_from(STRATEGIES),
    )
    @settings(max_examples=120)
    def test_makes_what_the_long_one_makes(
        self, data: dict[str, Any], secrets: dict[str, Any], redact: str, strategy: str
    ) -> None:
        rules = _rules_of(PipelineOptions(redact=redact, redact_strategy=strategy, pseudonym_key=KEY))
        assert rules is not None
        given_ = {**data, **secrets}
        made = event(data=given_, tags=[given_])
        known = NOTHING_FOUND if rules.scanner is None else look_through(rules.scanner, made, AMPLE)
        if known is None:
            return
        try:
            short, redaction = redacted(made, rules, AMPLE, known)
        except NotPlainError:
            return
        expected = [clean(part, rules, AMPLE) for part in (given_, [given_])]
        assert codec.encode(short) == codec.encode(
            event(event_id=made.event_id, timestamp=made.timestamp, data=expected[0].value, tags=expected[1].value)
        )
        assert redaction.redacted == sum(part.redacted for part in expected)
        assert Counter(redaction.found) == sum((Counter(part.found) for part in expected), Counter())

    def test_a_text_that_came_meanwhile_is_looked_at(self) -> None:
        rules = _rules_of(full())
        assert rules is not None
        data = {"note": "bob@example.com", "more": ["x"]}
        known = {"something": None}
        assert Redaction(rules, AMPLE, known).data(data) == {"note": "[redacted:email]", "more": ["x"]}

    @pytest.mark.parametrize(
        "data",
        [
            {"a": float("nan")},
            {"a": 2**64},
            {1: "a"},
            {"a": object()},
            {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}},
            {"a": [[[[[[1]]]]]]},
            {"a": "x" * 100},
            {"bob@example.com": 1, "ann@example.com": 2},
            {"a": Word("x")},
        ],
        ids="nan wide numbers-as-keys object deep-map deep-list long keys subclass".split(),
    )
    def test_leaves_to_the_long_one_what_it_cannot_do(self, data: Any) -> None:
        rules = _rules_of(full())
        assert rules is not None
        with pytest.raises(NotPlainError):
            Redaction(rules, 100, NOTHING_FOUND).data(data)
        with pytest.raises(NotPlainError):
            redacted(event(data={}, tags="tag"), rules, 100, NOTHING_FOUND)

    @pytest.mark.parametrize(("room", "left"), [(100, 31), (69, 0), (68, -1), (40, -1), (31, -1)])
    def test_gathers_texts_as_far_as_there_is_room(self, room: int, left: int) -> None:
        """Four items of 16, and five characters."""
        texts: list[str] = []
        assert texts_after({"k": ["abc", 1], "x": "yz"}, texts, room) == left
        if left >= 0:
            assert texts == ["abc", "yz"]

    def test_gathers_texts_as_deep_as_there_may_be_some(self) -> None:
        texts: list[str] = []
        assert texts_after([[[[["a"]]]]], texts, 1000) > 0
        assert texts == ["a"]
        assert texts_after([[[[[["a"]]]]]], [], 1000) == -1


class TestNothingGetsOut:
    @given(
        st.recursive(
            private_texts | private_texts.map(str.encode),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(private_texts, inner, max_size=3),
                st.builds(Point, inner, inner),
                inner.map(lambda value: (value, object())),
            ),
            max_leaves=6,
        ),
        st.sampled_from(["data", "tags", "resource", "extra", "operation", "event_type", "execution_id", "level"]),
        st.integers(0, 3 * KIB),
        st.sampled_from([codec.MSGPACK, codec.JSON]),
        st.sampled_from(STRATEGIES),
        st.sampled_from(["cut", "dead_letter"]),
    )
    @settings(max_examples=120)
    def test_by_any_field_whether_cut_or_not(
        self, value: Any, name: str, filling: int, content_type: str, strategy: str, oversize: str
    ) -> None:
        options = full(max_event_bytes=2 * KIB, redact_strategy=strategy, oversize=oversize)
        more = {"filling": "x " * (filling // 2)}
        record = Pipeline(options).encode(event(**{"data": more, name: value}), content_type)
        read_back = repr(codec.decode(record.payload)) + repr(record.poison) + record.operation + record.event_type
        for mark in MARKS:
            assert mark not in read_back

    @pytest.mark.parametrize("kind", sorted(FOUND_IN_TEXTS))
    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_at_a_cut_wherever_it_falls(self, kind: str, as_bytes: bool) -> None:
        """What is too long is cut to an eighth of what there is room for; the match is moved over that place."""
        pipeline = Pipeline(full(max_event_bytes=KIB))
        found = AROUND.get(kind, "{}").format(FOUND_IN_TEXTS[kind][0])
        for before in range(1, 600, 13):
            text = "x" * before + " " + found + " " + "y" * 2000
            record = pipeline.encode(event(data={"text": text.encode() if as_bytes else text, "other": 1}))
            left = str(codec.decode(record.payload).data["text"])
            assert not any(mark in left for mark in MARKS), left

    @pytest.mark.parametrize(
        "value",
        [
            "bob@example.com",
            b"bob@example.com",
            b"\xff bob@example.com",
            bytearray(b"bob@example.com"),
            PurePosixPath("/home/bob@example.com/x"),
            Word("bob@example.com"),
            {"bob@example.com": 1},
            {b"bob@example.com": 1},
            {("bob@example.com", 1): 1},
            {PurePosixPath("/bob@example.com"): 1},
            {Word("bob@example.com"): 1},
            ["x" * 10_000, "bob@example.com"],
            Point("bob@example.com", {"bob@example.com"}),
            "\ud800 bob@example.com",
            {"k" * 5000 + " bob@example.com": 1},
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_in_any_shape(self, value: Any) -> None:
        pipeline = Pipeline(full())
        for fields in ({"data": {"v": value}}, {"tags": [value]}, {"data": value}):
            assert b"bob" not in pipeline.encode(event(**fields)).payload
        assert pipeline.stats().redacted_values["email"] >= 3

    def test_as_a_label(self) -> None:
        record = Pipeline(full()).encode(
            event(event_type="bob@example.com", operation="GET /bob@example.com", execution_id="run of bob@example.com")
        )
        assert record.event_type == "[redacted:email]"
        assert record.operation == "GET /[redacted:email]"
        assert record.execution_id == "run of [redacted:email]"
        assert b"bob" not in record.payload
        dropped = Pipeline(full(redact_strategy="drop")).encode(
            event(event_type="bob@example.com", operation="x@example.com")
        )
        assert (dropped.event_type, dropped.operation) == ("event", "")

    def test_in_the_log(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even where the search itself fails: then the event is lost, and what it says is not said."""
        pipeline = Pipeline(full())

        def fail(*_: Any) -> Any:
            raise ValueError("a defect")

        assert pipeline.rules is not None
        monkeypatch.setattr(pipeline.rules, "scanner", Failing())
        take = Pipeline.straight(pipeline, codec.MSGPACK, fail)
        with caplog.at_level(logging.DEBUG, "streamll"):
            fields = ("noted", "e" * 32, "a" * 32, "", "", 1, "", "", "", "")
            assert take(*fields, {"note": "bob@example.com"}, NO_TAGS, "") is False
        assert pipeline.stats() == PipelineStats(internal_errors=1)
        assert "bob" not in caplog.text

    def test_by_the_straight_way(self) -> None:
        made: list[Record] = []

        def put(record: Record) -> bool:
            made.append(record)
            return True

        take = Pipeline(full()).straight(codec.MSGPACK, put)
        take("noted", "e" * 32, "run of bob@example.com", "", "", 1, "", "", "", "", {}, NO_TAGS, "")
        take("noted", "e" * 32, "run 5", "", "", 1, "", "", "", "", {"user_id": 1}, ["bob@example.com"], "")
        take("noted", "e" * 32, "a" * 32, "", "", 1, "", "", "", "", {"a": [[[[[["bob@example.com"]]]]]]}, NO_TAGS, "")
        assert [record.execution_id for record in made] == ["run of [redacted:email]", "run 5", "a" * 32]
        assert not any(b"bob" in record.payload for record in made)

    def test_a_full_buffer_is_heard(self) -> None:
        def put(_record: Record) -> bool:
            raise BufferFullError("full")

        take = Pipeline(full()).straight(codec.MSGPACK, put)
        for text in ("fine", "bob@example.com"):
            with pytest.raises(BufferFullError):
                take("noted", "e" * 32, "a" * 32, "", "", 1, "", "", "", "", {"a": text}, NO_TAGS, "")


class Failing:
    """A scanner with a defect."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("a defect")


class TestIds:
    def test_of_our_own_making_are_never_taken_for_numbers(self) -> None:
        digits = "4111111111111111"
        record = Pipeline(full()).encode(
            event(event_id=digits, execution_id=digits, span_id=digits, parent_span_id=digits)
        )
        read_back = codec.decode(record.payload)
        assert read_back.event_id == read_back.execution_id == read_back.span_id == digits
        other = codec.decode(Pipeline(full()).encode(event(data={"o": object()}, span_id=digits)).payload)
        assert other.span_id == digits

    def test_become_pseudonyms_where_they_are_somebodys(self) -> None:
        data = {"user_id": 5, "user": {"customerId": "c-1"}, "user_ids": [5, None], "count": 1}
        made = read(full(), data=data).data
        assert made == {
            "user_id_hash": Pseudonyms(KEY).of("5"),
            "user": {"customerId_hash": Pseudonyms(KEY).of("c-1")},
            "user_ids_hash": [Pseudonyms(KEY).of("5"), None],
            "count": 1,
        }
        assert read(full(), data={**data, "o": object()}).data == {**made, "o": "<object>"}

    def test_are_kept_unless_asked_for(self) -> None:
        data = {"user_id": 5}
        assert read(PipelineOptions(), data=data).data == data
        assert read(full(redact_rules="user_id=keep"), data=data).data == data
        assert read(full(redact_rules="user_id=drop"), data=data).data == {}
        assert read(full(redact_rules="user_id=redact"), data=data).data == {"user_id": "[redacted]"}
        assert set(read(PipelineOptions(redact_rules="user_id=hash"), data=data).data) == {"user_id_hash"}


DATA: dict[str, Any] = {
    "password": "hunter2",
    "note": "from bob@example.com",
    "date": date(2026, 1, 31),
    "items": ["+1234567890", 1],
    "ok": "fine",
}


class TestOptions:
    @pytest.mark.parametrize("more", [{}, {"o": object()}], ids=["short way", "long way"])
    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            ("redact", {"password": "[redacted]", "note": "from [redacted:email]", "items": ["[redacted:phone]", 1]}),
            ("drop", {"items": [1]}),
            ("truncate", {"password": "[redacted]", "note": "from b…@…", "items": ["…90", 1]}),
            (
                "hash",
                {
                    "password": f"[key:{Pseudonyms(KEY).of('hunter2')}]",
                    "note": f"from [email:{Pseudonyms(KEY).of('bob@example.com')}]",
                    "items": [f"[phone:{Pseudonyms(KEY).of('1234567890')}]", 1],
                },
            ),
        ],
    )
    def test_strategies(self, strategy: str, expected: dict[str, Any], more: dict[str, Any]) -> None:
        pipeline = Pipeline(full(redact_strategy=strategy))
        made = codec.decode(pipeline.encode(event(data={**DATA, **more})).payload).data
        made.pop("o", None)
        assert made.pop("date") == "2026-01-31"
        assert made == {**expected, "ok": "fine"}
        found = {"email": 1, "phone": 1}
        assert pipeline.stats() == PipelineStats(redacted=1, redacted_values=found, stand_ins=len(more))

    def test_with_keys_only_a_strategy_is_for_them(self) -> None:
        data = {"password": "x", "note": "bob@example.com"}
        assert read(PipelineOptions(redact_strategy="drop"), data=data).data == {"note": "bob@example.com"}
        assert read(PipelineOptions(redact_rules="key=keep"), data=data).data == data

    @pytest.mark.parametrize("more", [{}, {"o": object()}], ids=["short way", "long way"])
    def test_what_stands_under_a_private_key_may_be_dropped(self, more: dict[str, Any]) -> None:
        data = {"bob@example.com": "+1234567890", "ann@example.com": {"a": 1}, **more}
        assert read(full(redact_rules="phone=drop"), data=data).data == {
            "[redacted:email]": {"a": 1},
            **dict.fromkeys(more, "<object>"),
        }

    def test_an_empty_map_is_left_of_what_is_dropped(self) -> None:
        assert read(full(redact_strategy="drop"), data={"a": {"token": 1}, "b": ["x@example.com"]}).data == {
            "a": {},
            "b": [],
        }

    @pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON])
    def test_an_event_with_nothing_private_is_the_same_as_without_redaction(self, content_type: str) -> None:
        fields: dict[str, Any] = {
            "event_id": "e",
            "timestamp": 1,
            "data": {"text": "hello", "n": [1, {"a": None}]},
            "tags": ["t"],
        }
        made = Pipeline(full()).encode(event(**fields), content_type)
        assert made.payload == Pipeline(PipelineOptions(redact="off")).encode(event(**fields), content_type).payload


@pytest.fixture(autouse=True)
def _say_again() -> Iterator[None]:
    """What is logged once is logged anew in each test."""
    from streamll import pipeline

    before = set(pipeline._said)
    pipeline._said.clear()
    yield
    pipeline._said.clear()
    pipeline._said.update(before)
