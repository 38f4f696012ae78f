"""Headers: what is read from them, what is written into them."""

from __future__ import annotations

import re
from http.client import HTTPMessage
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.consumers.received import Received
from streamll.context import ROOT, current, execution
from streamll.models import StreamllEvent
from streamll.propagation import extract, inject
from streamll.spans import span

pytestmark = pytest.mark.usefixtures("no_scope_left_behind")

bounded = settings(max_examples=100, deadline=None)  # the machine may be busy

TRACE = "12345678901234567890123456789012"
PARENT = "1234567890123456"
VALID = f"00-{TRACE}-{PARENT}-01"


def continues(carrier: Any) -> bool:
    """Whether the trace in the carrier is continued; a new execution begins if not."""
    with extract(carrier) as execution_id:
        assert current().execution_id == execution_id
        assert re.fullmatch("[0-9a-f]{32}", execution_id)
        assert (current().span_id == PARENT) is (execution_id == TRACE)
    assert current() is ROOT
    return execution_id == TRACE


def state_of(*headers: str) -> str:
    with extract([("traceparent", VALID), *(("tracestate", header) for header in headers)]) as execution_id:
        assert execution_id == TRACE
        return current().trace_state


class TestTraceparent:
    @pytest.mark.parametrize(
        "value",
        [
            VALID,
            f" \t{VALID}\t ",
            f"00-{TRACE}-{PARENT}-00",
            f"00-{TRACE}-{PARENT}-ff",
            f"cc-{TRACE}-{PARENT}-01",
            f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
            f"01-{TRACE}-{PARENT}-01-",
        ],
    )
    def test_understood(self, value: str) -> None:
        assert continues({"traceparent": value})

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "-",
            "no",
            f"{VALID}.",
            f"{VALID}-more",
            f"{VALID}-",
            f"{VALID}\n",
            f"cc-{TRACE}-{PARENT}-01.what-the-future-will-be-like",
            f"cc-{TRACE}-{PARENT}-01-\x00",
            f"ff-{TRACE}-{PARENT}-01",
            f"0-{TRACE}-{PARENT}-01",
            f"000-{TRACE}-{PARENT}-01",
            f".0-{TRACE}-{PARENT}-01",
            f"00-{'0' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"00-{'A' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'A' * 16}-01",
            f"00-{TRACE}0-{PARENT}-01",
            f"00-{TRACE[1:]}-{PARENT}-01",
            f"00-{TRACE}-{PARENT}0-01",
            f"00-{TRACE}-{PARENT[1:]}-01",
            f"00-.{TRACE[1:]}-{PARENT}-01",
            f"00-{TRACE}-{PARENT}-1",
            f"00-{TRACE}-{PARENT}-001",
            f"00-{TRACE}-{PARENT}-.0",
            f"00-{TRACE}-{PARENT}",
            f"{VALID},{VALID}",
            f"00-{chr(0x0661) * 32}-{PARENT}-01",
        ],
    )
    def test_not_understood(self, value: str) -> None:
        assert not continues({"traceparent": value})

    @bounded
    @given(st.text() | st.binary() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
    def test_whatever_comes_in_it_is_an_execution(self, value: str | bytes) -> None:
        with extract({"traceparent": value, "tracestate": value}) as execution_id:
            assert re.fullmatch("[0-9a-f]{32}", execution_id)
            assert set(execution_id) != {"0"}
            sent = inject({})
            assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", sent["traceparent"])

    @bounded
    @given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255), st.integers(0, 254))
    def test_a_round_trip(self, trace_id: int, span_id: int, flags: int, version: int) -> None:
        came = f"{version:02x}-{trace_id:032x}-{span_id:016x}-{flags:02x}"
        with extract({"traceparent": came}):
            sent = inject({})
        assert sent == {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-{flags & 3:02x}"}


class TestCarriers:
    @pytest.mark.parametrize("name", ["traceparent", "TraceParent", "TRACEPARENT", "HTTP_TRACEPARENT"])
    def test_names_in_any_case(self, name: str) -> None:
        assert continues({name: VALID})
        assert continues({name.encode(): VALID.encode()})

    @pytest.mark.parametrize("name", ["trace-parent", "trace.parent", "x-traceparent", "HTTP_TRACE_PARENT"])
    def test_other_names(self, name: str) -> None:
        assert not continues({name: VALID})

    @pytest.mark.parametrize(
        "carrier",
        [
            {"traceparent": [VALID]},
            {b"traceparent": (VALID.encode(),)},
            [(b"host", b"x"), (b"traceparent", VALID.encode())],
            iter([("traceparent", VALID)]),
            {"wsgi.version": (1, 0), 5: object(), "HTTP_TRACEPARENT": VALID},
        ],
    )
    def test_headers_as_frameworks_hold_them(self, carrier: Any) -> None:
        assert continues(carrier)

    def test_the_standard_librarys_headers(self) -> None:
        message = HTTPMessage()
        message["TraceParent"] = VALID
        assert continues(message)
        message["traceparent"] = VALID
        assert not continues(message)

    @pytest.mark.parametrize(
        "carrier",
        [
            None,
            5,
            "traceparent",
            b"traceparent",
            [],
            [5],
            [("traceparent",)],
            {"traceparent": None},
            {"traceparent": []},
            {"traceparent": [VALID, VALID]},
            {"traceparent": VALID, "TRACEPARENT": VALID},
            {"traceparent": {"traceparent": VALID}},
        ],
    )
    def test_what_is_no_carrier_or_not_clear(self, carrier: Any) -> None:
        assert not continues(carrier)

    def test_a_carrier_that_raises(self) -> None:
        class Broken(dict[str, str]):
            def items(self) -> Any:
                raise RuntimeError("no")

        assert not continues(Broken(traceparent=VALID))


class TestTracestate:
    def test_is_passed_on(self) -> None:
        with extract({"traceparent": VALID, "tracestate": "foo=1,bar=2"}), span("work"):
            assert inject({})["tracestate"] == "foo=1,bar=2"

    def test_is_nothing_without_a_traceparent(self) -> None:
        with extract({"tracestate": "foo=1"}):
            assert "tracestate" not in inject({})

    @pytest.mark.parametrize(
        ("headers", "state"),
        [
            (["foo=1", "bar=2,baz=3"], "foo=1,bar=2,baz=3"),
            (["", "foo=1", ","], "foo=1"),
            (["\t foo=1 \t,\t bar=2 "], "foo=1,bar=2"),
            (["a b=1"], ""),
            (["foo=1,FOO=1"], ""),
            (["foo.bar=1"], ""),
            (["foo@=1,bar=2"], ""),
            (["@foo=1,bar=2"], ""),
            (["foo@@bar=1,bar=2"], ""),
            (["foo@bar@baz=1,bar=2"], ""),
            (["foo=1,foo=2"], ""),
            (["foo=bar=baz"], ""),
            (["foo=,bar=3"], ""),
            (["foo=1\r\nevil: 2"], ""),
            (["foo=1", f"{'z' * 256}=1"], f"foo=1,{'z' * 256}=1"),
            ([f"{'z' * 257}=1"], ""),
            ([f"{'t' * 241}@{'v' * 14}=1"], f"{'t' * 241}@{'v' * 14}=1"),
            ([f"{'t' * 242}@v=1"], ""),
            ([f"t@{'v' * 15}=1"], ""),
            ([f"foo={'v' * 256}"], f"foo={'v' * 256}"),
            ([f"foo={'v' * 257}"], ""),
        ],
    )
    def test_all_or_nothing(self, headers: list[str], state: str) -> None:
        assert state_of(*headers) == state

    def test_a_bounded_number_of_members(self) -> None:
        members = [f"bar{n}={n}" for n in range(33)]
        assert state_of(",".join(members[:32])) == ",".join(members[:32])
        assert state_of(",".join(members)) == ""

    def test_every_allowed_character(self) -> None:
        value = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
        state = f"abcdefghijklmnopqrstuvwxyz0123456789_-*/={value}"
        assert state_of(state) == state

    @bounded
    @given(st.text(min_size=1) | st.from_regex(r"[a-z]=[ -~]+,?[a-z]=\s*[^,=]+"))
    def test_nothing_that_could_break_a_header_goes_out(self, header: str) -> None:
        assert re.fullmatch(r"[\x20-\x7e]*", state_of(header))


class TestExtract:
    def test_spans_inside_are_children_of_the_remote_one(self, events: list[StreamllEvent]) -> None:
        with span("outside"), extract({"traceparent": VALID}), span("inside") as inside:
            sent = inject({})
        assert events[0].parent_span_id == PARENT
        assert events[0].execution_id == TRACE
        assert sent == {"traceparent": f"00-{TRACE}-{inside.span_id}-01"}
        assert events[1].execution_id != TRACE

    def test_passes_the_trace_on_while_inactive(self, inactive: None) -> None:
        with extract({"traceparent": VALID, "tracestate": "foo=1"}), span("work"):
            assert inject({}) == {"traceparent": VALID, "tracestate": "foo=1"}


class TestInject:
    def test_nothing_outside_of_an_execution(self) -> None:
        carrier = {"host": "x"}
        assert inject(carrier) is carrier
        assert carrier == {"host": "x"}

    def test_names_execution_and_span(self, events: list[StreamllEvent]) -> None:
        with span("work") as work:
            assert inject({"host": "x"}) == {
                "host": "x",
                "traceparent": f"00-{work.execution_id}-{work.span_id}-01",
            }

    def test_outside_of_a_span_the_parent_is_new(self) -> None:
        with execution(TRACE):
            first, second = inject({}), inject({})
        assert first != second
        assert first["traceparent"].startswith(f"00-{TRACE}-")
        assert continues(first | {"traceparent": first["traceparent"].replace(first["traceparent"][36:52], PARENT)})

    @pytest.mark.parametrize("own", ["order-42", "0" * 32, "A" * 32, f"{TRACE}\n", f"{TRACE}\r\nevil: 1", "é"])
    def test_an_id_of_another_shape_does_not_travel(self, events: list[StreamllEvent], own: str) -> None:
        with execution(own), span("work"):
            assert inject({}) == {}


class TestEvents:
    """What a reader got back goes on where it was emitted."""

    @pytest.mark.parametrize("as_received", [False, True])
    def test_are_gone_on_from(self, events: list[StreamllEvent], as_received: bool) -> None:
        sent = StreamllEvent(event_type="order", execution_id="order-42", span_id="2" * 16)
        received = Received(sent, "", b"", "p", 1, "0-1")
        with extract(received if as_received else sent) as execution_id, span("handle"):
            pass
        assert execution_id == "order-42"
        assert (events[0].execution_id, events[0].parent_span_id) == ("order-42", "2" * 16)

    def test_without_an_execution_begin_one(self) -> None:
        for carrier in (StreamllEvent(event_type="x"), Received(None, "broken", b"", "", 0, "0-1")):
            with extract(carrier) as execution_id:
                assert len(execution_id) == 32
