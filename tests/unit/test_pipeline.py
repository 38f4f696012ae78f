"""From an event to a record: enriched, seen by before_send, redacted, within its limits, encoded."""

from __future__ import annotations

import enum
import os
import re
import socket
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamll import codec
from streamll import pipeline as module
from streamll.api import Route, emit
from streamll.context import bind, execution, muted
from streamll.errors import BufferFullError
from streamll.hub import built_for, hub
from streamll.models import NO_TAGS, Record, StreamllEvent
from streamll.options import KIB, MIB, PipelineOptions
from streamll.pipeline import WHOLE, Pipeline, PipelineStats
from streamll.privacy import REDACTED
from streamll.privacy.kinds import STRATEGIES
from streamll.spans import span
from tests.unit.here import the_same_hub_afterwards
from tests.unit.hostile import armed, hostile_class
from tests.unit.strategies import (
    Level,
    Point,
    Size,
    Word,
    Zone,
    anything,
    plain_maps,
    private_maps,
    private_texts,
    secret_keys,
    texts,
)

CONTENT_TYPES = [codec.MSGPACK, codec.JSON]

KEY = "a key of this test alone"

content_types = st.sampled_from(CONTENT_TYPES)


def event(**fields: Any) -> StreamllEvent:
    return StreamllEvent(**{"event_type": "noted", **fields})


def encoded(options: PipelineOptions | None = None, content_type: str = codec.MSGPACK, **fields: Any) -> StreamllEvent:
    """What a reader gets of an event with these fields."""
    return codec.decode(Pipeline(options).encode(event(**fields), content_type).payload)


@pytest.fixture(autouse=True)
def _nothing_said() -> Iterator[None]:
    """What is logged only once is logged anew in each test."""
    before = set(module._said)
    module._said.clear()
    yield
    module._said.clear()
    module._said.update(before)


class TestEnrich:
    def test_ids_and_attributes_come_from_the_scope(self) -> None:
        with execution("run-1"), bind(user=1, text="outer"):
            prepared = Pipeline().prepare(event(data={"text": "inner"}))
        assert prepared is not None
        assert prepared.execution_id == "run-1"
        assert prepared.data == {"text": "inner"}

    def test_bound_attributes_and_the_span_are_taken_over_while_something_listens(
        self, events: list[StreamllEvent]
    ) -> None:
        with span("outer"), bind(user=1), span("inner") as inner:
            prepared = Pipeline().prepare(event(data={"a": 2}))
        assert prepared is not None
        assert (prepared.execution_id, prepared.span_id) == (inner.execution_id, inner.span_id)
        assert prepared.parent_span_id == next(e.span_id for e in events if e.operation == "outer")
        assert prepared.data == {"user": 1, "a": 2}

    def test_what_the_event_says_itself_is_kept(self, events: list[StreamllEvent]) -> None:
        with span("outer"):
            mine = Pipeline().prepare(event(execution_id="mine"))
            span_of_mine = Pipeline().prepare(event(span_id="s", parent_span_id="p"))
        assert mine is not None
        assert (mine.execution_id, mine.span_id, mine.data) == ("mine", "", {})
        assert span_of_mine is not None
        assert (span_of_mine.span_id, span_of_mine.parent_span_id) == ("s", "p")

    def test_an_id_of_none_is_filled_in_and_a_foreign_one_is_not_asked_for_its_truth(self) -> None:
        foreign = hostile_class(object)()
        with execution("run-1"):
            filled = Pipeline().prepare(event(execution_id=None))
            with armed():
                kept = Pipeline().prepare(event(execution_id=foreign, span_id=foreign, data=foreign))
        assert filled is not None
        assert filled.execution_id == "run-1"
        assert kept is not None
        assert kept.execution_id is foreign

    def test_events_of_muted_code_are_cut_off_and_counted(self) -> None:
        pipeline = Pipeline()
        with muted():
            assert pipeline.prepare(event()) is None
        assert pipeline.stats() == PipelineStats(muted=1)


class TestBeforeSend:
    def test_functions_are_applied_in_order(self) -> None:
        def mark(name: str) -> Any:
            def function(event: StreamllEvent) -> StreamllEvent:
                event.data["seen"] = [*event.data.get("seen", ()), name]
                return event

            return function

        prepared = Pipeline(before_send=[mark("a"), mark("b")]).prepare(event())
        assert prepared is not None
        assert prepared.data == {"seen": ["a", "b"]}

    def test_one_may_return_another_event(self) -> None:
        other = event(operation="other")
        assert Pipeline(before_send=[lambda _event: other]).prepare(event()) is other

    def test_one_may_drop_an_event_which_the_next_then_does_not_see(self) -> None:
        def fail(_event: StreamllEvent) -> StreamllEvent:
            raise AssertionError("called")

        pipeline = Pipeline(before_send=[lambda _event: None, fail])
        assert pipeline.prepare(event()) is None
        assert pipeline.stats() == PipelineStats(filtered=1)

    def test_one_that_raises_drops_the_event_for_what_it_was_to_remove_may_be_in_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(event: StreamllEvent) -> StreamllEvent:
            raise KeyError(event.data["text"])

        pipeline = Pipeline(before_send=[fail])
        assert pipeline.prepare(event(data={"text": "secret"})) is None
        assert pipeline.prepare(event(data={"text": "secret"})) is None
        assert pipeline.stats() == PipelineStats(before_send_errors=2)
        assert len(caplog.records) == 1
        assert "KeyError" in caplog.text
        assert "secret" not in caplog.text

    def test_an_interrupt_is_not_an_error_of_it(self) -> None:
        def interrupt(_event: StreamllEvent) -> StreamllEvent:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Pipeline(before_send=[interrupt]).prepare(event())

    @pytest.mark.parametrize("returned", [True, {"event_type": "x"}, "event", StreamllEvent], ids=repr)
    def test_one_that_returns_no_event_is_an_error_and_raises_nothing(self, returned: Any) -> None:
        pipeline = Pipeline(before_send=[lambda _event: returned])
        assert pipeline.prepare(event()) is None
        assert pipeline.stats() == PipelineStats(before_send_errors=1)

    def test_what_it_changes_is_a_copy_at_every_depth(self) -> None:
        shared: dict[str, Any] = {"x": 1}
        data: dict[str, Any] = {"a": {"b": [shared, shared]}, "t": ({"c": 1},)}
        data["self"] = data
        tags = [["one"]]
        extra = {"e": {"f": 1}}
        resource = {"r": {"s": 1}}
        made = event(data=data, tags=tags, extra=extra, resource=resource)
        before = deepcopy((data, tags, extra, resource))

        def change(event: StreamllEvent) -> StreamllEvent:
            event.data["a"]["b"][0]["x"] = 2
            assert event.data["a"]["b"][1]["x"] == 2, "what stood twice is still one"
            assert event.data["self"] is event.data
            event.data["t"][0]["c"] = 2
            event.data["a"]["b"].append(3)
            event.data["new"] = 1
            assert isinstance(event.tags, list)
            event.tags[0].append("two")
            event.extra["e"].clear()
            event.resource["r"]["s"] = 2
            event.operation = "changed"
            return event

        prepared = Pipeline(before_send=[change]).prepare(made)
        assert prepared is not None
        assert prepared.operation == "changed"
        assert {**data, "self": None} == {**before[0], "self": None}
        assert (tags, extra, resource) == before[1:]

    @given(plain_maps)
    def test_the_copy_is_equal(self, data: dict[str, Any]) -> None:
        prepared = Pipeline(before_send=[lambda event: event]).prepare(event(data=data))
        assert prepared is not None
        assert prepared.data == data

    def test_nesting_may_be_as_deep_as_it_is(self) -> None:
        deep: Any = {}
        for _ in range(100_000):
            deep = {"d": deep}
        assert Pipeline(before_send=[lambda event: event]).prepare(event(data=deep)) is not None
        while deep:  # else its end would be a recursion
            deep = deep["d"]

    def test_foreign_objects_are_handed_over_and_not_called(self) -> None:
        foreign, seen = hostile_class(dict)(a=1), []

        def look(event: StreamllEvent) -> StreamllEvent:
            seen.append(event.data["foreign"])
            return event

        with armed():
            prepared = Pipeline(before_send=[look]).prepare(event(data={"foreign": foreign}, tags=foreign))
        assert prepared is not None
        assert seen[0] is foreign

    def test_what_it_emits_is_cut_off(self) -> None:
        def emit_too(event: StreamllEvent) -> StreamllEvent:
            assert not emit("again")
            assert pipeline.prepare(StreamllEvent(event_type="again")) is None  # as a sink's own handle_event does
            return event

        pipeline = Pipeline(before_send=[emit_too])
        with the_same_hub_afterwards():
            hub.fill(Route(pipeline, []).dispatch)
            emit("first")
        assert pipeline.stats() == PipelineStats(muted=1)

    def test_it_sees_the_data_before_redaction(self) -> None:
        def lengthen(event: StreamllEvent) -> StreamllEvent:
            event.data["length"] = len(event.data["password"])
            return event

        pipeline = Pipeline(before_send=[lengthen])
        prepared = pipeline.prepare(event(data={"password": "hunter2"}))
        assert prepared is not None
        assert codec.decode(pipeline.encode(prepared).payload).data == {"password": REDACTED, "length": 7}


class TestEncode:
    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_a_record_holds_the_labels_and_the_bytes(self, content_type: str) -> None:
        made = event(
            operation="generate",
            module_name="m",
            method_name="f",
            level="info",
            execution_id="x",
            data={"k": 1},
            tags=["t"],
        )
        record = Pipeline().encode(made, content_type)
        assert record == Record(
            record.payload,
            content_type,
            made.event_id,
            "noted",
            "generate",
            "m",
            "f",
            "info",
            "x",
            made.timestamp,
            record.created,
        )
        decoded = codec.decode(record.payload)
        assert decoded.data == {"k": 1}
        assert decoded.tags == ["t"]
        assert decoded.timestamp == made.timestamp
        assert decoded.resource["pid"] == os.getpid()

    @given(anything, anything, content_types, st.sampled_from(["cut", "dead_letter"]))
    def test_anything_is_encoded_and_left_as_it_was(
        self, value: object, other: object, content_type: str, oversize: str
    ) -> None:
        data = {"value": value, "password": value}
        made = event(data=data, tags=[other], extra={"new": value})
        record = Pipeline(PipelineOptions(oversize=oversize)).encode(made, content_type)
        decoded = codec.decode(record.payload)
        assert list(decoded.data) == ["value", "password"]
        assert decoded.data["password"] == REDACTED
        assert len(decoded.tags) == 1
        assert list(decoded.extra) == ["new"]
        assert (made.data, made.resource) == (data, {})
        assert made.data is data

    @given(anything, anything, anything, anything)
    def test_data_tags_resource_and_extra_may_be_anything(
        self, data: object, tags: object, resource: object, extra: object
    ) -> None:
        decoded = encoded(data=data, tags=tags, resource=resource, extra=extra)
        assert decoded.event_type == "noted"

    @given(st.lists(anything, min_size=len(codec.LABELS), max_size=len(codec.LABELS)), content_types)
    def test_labels_may_be_anything_and_become_strings(self, values: list[Any], content_type: str) -> None:
        made = event(**dict(zip(codec.LABELS, values, strict=True)))
        record = Pipeline().encode(made, content_type)
        decoded = codec.decode(record.payload)
        for name in ("event_type", "event_id", "operation", "module_name", "method_name", "level", "execution_id"):
            label = getattr(record, name)
            assert type(label) is str
            assert getattr(decoded, name) == label
        assert decoded.event_type

    def test_labels_of_other_types_keep_their_meaning(self) -> None:
        record = Pipeline().encode(
            event(
                event_type=Level.INFO,
                event_id=UUID(int=1),
                execution_id=17,
                module_name=b"mod\xff",
                method_name=None,
                operation=Word("op"),
                level=Size.SMALL,
            )
        )
        assert record.event_type == "info"
        assert type(record.event_type) is str
        assert record.event_id == "00000000-0000-0000-0000-000000000001"
        assert (record.execution_id, record.module_name, record.method_name) == ("17", "mod\\xff", "")
        assert (record.operation, record.level) == ("op", "1")
        assert type(record.operation) is str

    @pytest.mark.parametrize("name", ["event_type", "operation", "level"])
    def test_a_member_of_a_string_enumeration_is_not_kept(self, name: str) -> None:
        class Name(str, enum.Enum):
            CHAT = "chat"

        assert type(getattr(Pipeline().encode(event(**{name: Name.CHAT})), name)) is str

    @pytest.mark.parametrize("empty", ["", None])
    def test_an_event_without_a_type_is_called_event(self, empty: Any) -> None:
        assert Pipeline().encode(event(event_type=empty)).event_type == "event"

    def test_nothing_of_a_users_objects_is_called(self) -> None:
        pipeline = Pipeline()
        for base in (object, str, dict, list, int):
            foreign = hostile_class(base)()
            for fields in ({"data": {"x": foreign}}, *({name: foreign} for name in StreamllEvent.__struct_fields__)):
                made = event(**fields)
                with armed():
                    prepared = pipeline.prepare(made)
                    assert prepared is not None
                    codec.decode(pipeline.encode(prepared, codec.JSON).payload)
                    codec.decode(pipeline.encode(prepared).payload)

    def test_what_only_the_encoder_finds_is_cleaned(self) -> None:
        broken = UUID.__new__(UUID)
        assert encoded(data={"a": "caf\udce9", "b": broken}).data == {"a": "caf\\udce9", "b": "<UUID>"}
        late = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
        assert encoded(data={"a": late}).data == {"a": late.isoformat()}

    def test_a_map_that_changes_while_it_is_looked_at_is_encoded_as_it_was_once(self) -> None:
        data: dict[str, Any] = {"a": 1, "b": 2}

        def grow(*_: object) -> int:
            for key in data:
                data[f"more than {key}"] = 1
            return 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "room_after", grow)
            assert encoded(data=data).data == data

    def test_bare_values_go_under_a_name(self) -> None:
        decoded = encoded(data="text", tags="tag", resource=5, extra=[1])
        assert decoded.data == {"value": "text"}
        assert decoded.tags == ["tag"]
        assert decoded.resource["name"] == 5
        assert decoded.extra == {"extra": [1]}

    def test_none_is_nothing(self) -> None:
        decoded = encoded(data=None, tags=None, extra=None)
        assert (decoded.data, decoded.tags, decoded.extra) == ({}, [], {})

    @pytest.mark.parametrize("tags", [["a", "b"], {"a": 1}])
    def test_tags_are_kept_as_given(self, tags: Any) -> None:
        assert encoded(tags=tags).tags == tags

    def test_keys_of_newer_versions_go_along(self) -> None:
        decoded = encoded(extra={"v": 2, "links": ["x"], "secret": "y"})
        assert decoded.extra == {"v": 2, "links": ["x"], "secret": REDACTED}


class TestTimestamp:
    @pytest.mark.parametrize("ns", [0, 1, 1_769_851_800_000_000_001, -1, -(2**63), 2**64 - 1])
    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_nanoseconds_of_any_sign_are_kept(self, ns: int, content_type: str) -> None:
        record = Pipeline().encode(event(timestamp=ns), content_type)
        assert record.timestamp == ns
        assert codec.decode(record.payload).timestamp == ns

    def test_a_moment_is_taken_as_one(self) -> None:
        moment = datetime(2026, 1, 31, 9, 30, 0, 1, tzinfo=timezone(timedelta(hours=1)))
        assert encoded(timestamp=moment).timestamp == int(moment.timestamp()) * 10**9 + 1000
        naive = datetime(2026, 1, 31, 9, 30)  # noqa: DTZ001  # what users have; it is local time
        assert encoded(timestamp=naive).timestamp == int(naive.timestamp()) * 10**9

    @given(anything)
    def test_anything_else_is_replaced_by_now_and_counted(self, value: object) -> None:
        pipeline = Pipeline()
        record = pipeline.encode(event(timestamp=value))
        assert -(2**63) <= record.timestamp < 2**64
        if type(value) not in (int, datetime):
            assert pipeline.stats().stand_ins >= 1

    @pytest.mark.parametrize(
        "value",
        [
            *(2**64, -(2**63) - 1, 1.5, "2026-01-31", True, datetime(1, 1, 1), datetime(9999, 12, 31)),  # noqa: DTZ001
            datetime(9999, 12, 31, tzinfo=timezone.utc),
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))),
            datetime(2026, 1, 31, tzinfo=Zone()),
        ],
        ids=[
            "int",
            "low int",
            "float",
            "text",
            "bool",
            "first",
            "last",
            "last in UTC",
            "before the first",
            "foreign zone",
        ],
    )
    def test_what_is_no_time_is_now(self, value: object) -> None:
        pipeline = Pipeline()
        record = pipeline.encode(event(timestamp=value))
        assert abs(record.timestamp - event().timestamp) < 10**12
        assert pipeline.stats().stand_ins == 1


class TestLimit:
    @given(
        st.lists(texts.map(lambda text: text * 100) | texts, min_size=len(codec.LABELS), max_size=len(codec.LABELS)),
        st.dictionaries(st.text(max_size=50), anything | texts.map(lambda text: text * 200), max_size=20),
        st.integers(0, 3),
        content_types,
        st.integers(KIB, 3 * KIB),
        st.sampled_from(["", "service" * 200]),
    )
    def test_a_cut_event_is_never_longer(
        self, labels: list[str], data: dict[str, Any], more: int, content_type: str, limit: int, service: str
    ) -> None:
        pipeline = Pipeline(PipelineOptions(max_event_bytes=limit, service=service))
        made = event(**dict(zip(codec.LABELS, labels, strict=True)), data=data, tags=[data] * more)
        made.extra = {"extra": data} if more > 1 else {}
        made.resource = {"resource": data} if more > 2 else {}
        record = pipeline.encode(made, content_type)
        assert len(record.payload) <= limit
        assert record.poison == ""
        decoded = codec.decode(record.payload)
        assert decoded.event_type == record.event_type
        if pipeline.stats().oversize:
            assert pipeline.stats().cut

    @pytest.mark.parametrize("character", ["x", "\x00", "é", "\U0001f600", '"', "\udc80"])
    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_labels_of_any_characters_are_cut_to_the_least_limit(self, character: str, content_type: str) -> None:
        made = event(**dict.fromkeys(codec.LABELS, character * 5000), data={"k": character * 5000})
        record = Pipeline(PipelineOptions(max_event_bytes=KIB)).encode(made, content_type)
        assert len(record.payload) <= KIB
        decoded = codec.decode(record.payload)
        assert decoded.event_type
        assert decoded.data == {"<cut>": "<all>"}

    def test_the_rest_is_kept_when_one_value_is_too_long(self) -> None:
        pipeline = Pipeline(PipelineOptions(max_event_bytes=2 * KIB))
        made = event(operation="op", data={"a": 1, "long": "x" * 100_000, "b": [1, 2], "c": "kept"}, tags=["t"])
        decoded = codec.decode(pipeline.encode(made).payload)
        assert {**decoded.data, "long": ""} == {"a": 1, "long": "", "b": [1, 2], "c": "kept"}
        assert re.fullmatch(r"x{100,}<[0-9]+ more>", decoded.data["long"])
        assert decoded.tags == ["t"]
        assert decoded.event_id == made.event_id
        assert pipeline.stats() == PipelineStats(cut=1, oversize=1)

    def test_an_event_as_long_as_the_limit_is_not_cut(self) -> None:
        made = event(data={"x": "y" * 3000})
        length = len(Pipeline().encode(made).payload)
        at = Pipeline(PipelineOptions(max_event_bytes=length))
        assert codec.decode(at.encode(made).payload).data == made.data
        assert at.stats() == PipelineStats()
        below = Pipeline(PipelineOptions(max_event_bytes=length - 1))
        assert len(below.encode(made).payload) < length
        assert below.stats().oversize == 1

    def test_what_has_to_be_replaced_may_be_as_long_as_the_limit_too(self) -> None:
        made = event(data={"x": "y" * 3000, "o": object()})
        length = len(Pipeline().encode(made).payload)
        at = Pipeline(PipelineOptions(max_event_bytes=length))
        assert codec.decode(at.encode(made).payload).data == {"x": "y" * 3000, "o": "<object>"}
        assert at.stats() == PipelineStats(stand_ins=1)

    @pytest.mark.parametrize("data", [{"x": "y" * 5000}, {"x": "y" * 5000, "o": object()}], ids=["plain", "other"])
    def test_by_choice_it_is_marked_as_a_dead_letter_and_kept_whole(self, data: dict[str, Any]) -> None:
        pipeline = Pipeline(PipelineOptions(max_event_bytes=2 * KIB, oversize="dead_letter"))
        record = pipeline.encode(event(data=data))
        assert record.poison == f"too large: {len(record.payload)} bytes, max_event_bytes is 2048"
        assert codec.decode(record.payload).data["x"] == "y" * 5000
        assert pipeline.stats().oversize == 1
        assert pipeline.stats().cut == 0

    @pytest.mark.parametrize("oversize", ["cut", "dead_letter"])
    def test_data_that_is_endless_when_written_out_ends(self, oversize: str) -> None:
        data: Any = {"k": "v" * 1000}
        for _ in range(22):
            data = {f"k{n}": data for n in range(100)}
        pipeline = Pipeline(PipelineOptions(max_event_bytes=2 * KIB, oversize=oversize))
        for made in (event(data=data), event(data=data["k0"]["k1"]), event(tags=[[data]])):
            record = pipeline.encode(made)
            assert bool(record.poison) == (oversize == "dead_letter")
            assert len(record.payload) <= 2 * KIB * (1 if oversize == "cut" else 4 * WHOLE)

    def test_a_shared_string_is_counted_each_time(self) -> None:
        text = "x" * MIB
        record = Pipeline().encode(event(data={f"k{n}": text for n in range(10_000)}))
        assert len(record.payload) <= MIB

    def test_many_tags_are_cut_too(self) -> None:
        record = Pipeline(PipelineOptions(max_event_bytes=KIB)).encode(event(tags=["tag"] * 10_000))
        assert len(record.payload) <= KIB
        assert "tag" in codec.decode(record.payload).tags


class TestRedaction:
    @given(secret_keys, st.sampled_from(["data", "tags", "resource", "extra"]), content_types, st.integers(0, 3000))
    def test_holds_in_every_field_whether_cut_or_not(
        self, key: str, name: str, content_type: str, filling: int
    ) -> None:
        value = {"filling": "x" * filling, "deep": [{key: "hunter2"}], key: {"x": "hunter2"}}
        record = Pipeline(PipelineOptions(max_event_bytes=2 * KIB)).encode(event(**{name: value}), content_type)
        assert b"hunter2" not in record.payload

    def test_is_counted(self) -> None:
        pipeline = Pipeline()
        pipeline.encode(event(data={"password": 1, "x": {"token": 2}}, tags={"secret": 3}))
        assert pipeline.stats() == PipelineStats(redacted=3)

    def test_follows_the_options(self) -> None:
        data = {"password": 1, "badge": 2, "next_token": 3}
        assert encoded(PipelineOptions(redact=False), data=data).data == data
        options = PipelineOptions(redact_keys=" badge, ,x", keep_keys="nextToken")
        assert encoded(options, data=data).data == {"password": REDACTED, "badge": REDACTED, "next_token": 3}


class TestResource:
    def test_says_who_speaks(self) -> None:
        options = PipelineOptions(service="shop", environment="test", release="1.2")
        assert encoded(options).resource == {
            "service": "shop",
            "environment": "test",
            "release": "1.2",
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    @pytest.mark.parametrize("content_type", CONTENT_TYPES)
    def test_is_the_same_whether_the_event_is_plain_or_not(self, content_type: str) -> None:
        assert encoded(None, content_type, data={"o": object()}).resource == encoded(None, content_type).resource

    def test_leaves_out_what_is_not_known(self) -> None:
        assert set(encoded().resource) == {"host", "pid"}

    def test_the_service_may_be_named_the_way_of_opentelemetry(self) -> None:
        environ = {"OTEL_SERVICE_NAME": "otel"}
        assert Pipeline(environ=environ).resource["service"] == "otel"
        assert Pipeline(PipelineOptions(service="mine"), environ=environ).resource["service"] == "mine"

    def test_bytes_in_the_environment_that_are_no_text_are_spelled_out(self) -> None:
        environ = {"OTEL_SERVICE_NAME": os.fsdecode(b"caf\xe9")}
        assert Pipeline(environ=environ).resource["service"] == "caf\\udce9"
        assert Pipeline(PipelineOptions(release="\udc80")).resource["release"] == "\\udc80"

    def test_an_event_may_add_to_it_and_win(self) -> None:
        resource = encoded(PipelineOptions(service="shop"), resource={"service": "other", "zone": "a"}).resource
        assert (resource["service"], resource["zone"], resource["pid"]) == ("other", "a", os.getpid())

    def test_a_child_process_takes_its_own_id(self) -> None:
        pipeline = Pipeline()
        pipeline.resource["pid"] = 0
        pipeline.refresh_process()
        for content_type in CONTENT_TYPES:
            assert codec.decode(pipeline.encode(event(), content_type).payload).resource["pid"] == os.getpid()


labels = st.one_of(texts, private_texts, st.sampled_from(["", "critical", "debug", Level.INFO, Word("word"), None, 5]))


def into(made: list[Record]) -> Callable[[Record], bool]:
    """What takes records as a sink does."""

    def put(record: Record) -> bool:
        made.append(record)
        return True

    return put


class TestStraight:
    """The short way of what streamll made itself does what the long way does."""

    @given(
        data=plain_maps | private_maps | st.dictionaries(texts, anything, max_size=3),
        tags=st.just(NO_TAGS)
        | st.lists(private_texts, max_size=3)
        | st.lists(texts, max_size=3)
        | st.dictionaries(texts, anything, max_size=2)
        | anything,
        words=st.lists(labels, min_size=6, max_size=6),
        content_type=content_types,
        redact=st.sampled_from(["keys", "full", "off"]),
        strategy=st.sampled_from(STRATEGIES),
    )
    def test_makes_the_same_record(
        self, data: dict[Any, Any], tags: Any, words: list[Any], content_type: str, redact: str, strategy: str
    ) -> None:
        options = PipelineOptions(redact=redact, redact_strategy=strategy, pseudonym_key=KEY, max_event_bytes=KIB)
        straight, around = (Pipeline(options) for _ in range(2))
        event_type, module_name, method_name, operation, level, priority = words
        frame = ("e" * 32, "x" * 32, "s" * 16, "", 1_700_000_000_000_000_000)
        made: list[Record] = []
        expected: list[Record] = []

        def dispatch(event: StreamllEvent) -> bool:
            expected.append(around.encode(event, content_type))
            return True

        for take in (straight.straight(content_type, into(made)), built_for(dispatch)):
            assert take(event_type, *frame, module_name, method_name, operation, level, data, tags, priority)
        one, other = made[0], expected[0]
        assert codec.decode(one.payload) == codec.decode(other.payload)
        assert replace(one, payload=b"", created=0) == replace(other, payload=b"", created=0)
        assert straight.stats() == around.stats()
        assert NO_TAGS == []

    def test_one_that_looks_at_events_gets_parts_of_its_own(self) -> None:
        data = {"text": "hi"}

        def change(event: StreamllEvent) -> bool:
            event.data["more"] = True
            assert isinstance(event.tags, list)
            event.tags.append("more")
            return True

        with the_same_hub_afterwards():
            hub.fill(change)
            assert emit("noted", data)
        assert data == {"text": "hi"}
        assert NO_TAGS == []

    def test_a_forked_childs_process_id_comes_along(self) -> None:
        pipeline = Pipeline()
        made: list[Record] = []
        take = pipeline.straight(codec.MSGPACK, into(made))
        pipeline.resource["pid"] = 0
        pipeline.refresh_process()
        take("noted", "e", "", "", "", 1, "", "", "", "", {}, NO_TAGS, "")
        assert codec.decode(made[0].payload).resource["pid"] == os.getpid()

    def test_a_full_buffer_is_heard(self) -> None:
        def full(_record: Record) -> bool:
            raise BufferFullError("full")

        with pytest.raises(BufferFullError):
            Pipeline().straight(codec.MSGPACK, full)("x", "e", "", "", "", 1, "", "", "", "", {}, NO_TAGS, "")


class TestStats:
    def test_count_each_thing_done(self) -> None:
        pipeline = Pipeline(PipelineOptions(max_event_bytes=KIB), [lambda event: event if event.operation else None])
        for made in (
            event(operation="plain", data={"a": 1}),
            event(operation="redacted", data={"password": 1}),
            event(operation="stand-ins", data={"a": object(), "b": [Point(object)], "c": float("nan")}),
            event(operation="cut", data={"a": "x" * 2000}),
            event(),
        ):
            prepared = pipeline.prepare(made)
            if prepared is not None:
                pipeline.encode(prepared)
        assert pipeline.stats() == PipelineStats(redacted=1, stand_ins=3, cut=1, oversize=1, filtered=1)
