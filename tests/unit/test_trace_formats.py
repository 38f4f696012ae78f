"""The files that events are written to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.errors import ConfigurationError
from streamll.monitors.events.formats import FORMATS, as_chrome, lanes_of, write, write_whole
from streamll.monitors.events.traced_events import TracedEvent


def event(event_type: str, at: int, *, thread: int = 1, **more: Any) -> TracedEvent:
    given = {name: more.pop(name, "") for name in ("event_id", "span_id", "parent_span_id", "operation", "level")}
    return TracedEvent(
        event_type,
        given["event_id"],
        "run",
        given["span_id"],
        given["parent_span_id"],
        1_700_000_000_000_000_000 + at,
        at,
        140_000_000_000_000 + thread,
        f"worker-{thread}",
        given["operation"],
        given["level"],
        "",
        more,
    )


spans = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 30), st.integers(0, 15)), max_size=25)


class TestLanes:
    @settings(max_examples=60)
    @given(spans)
    def test_in_each_one_spans_lie_within_each_other_or_apart(self, given_spans: list[tuple[int, int, int]]) -> None:
        lanes = lanes_of(given_spans)
        assert len(lanes) == len(given_spans)
        for thread in (1, 2):
            mine = [lane for lane, span in zip(lanes, given_spans, strict=True) if span[0] == thread]
            assert set(mine) == set(range(len(set(mine))))  # none is left empty
        placed = [(thread, lane, at, at + took) for lane, (thread, at, took) in zip(lanes, given_spans, strict=True)]
        for n, (thread, lane, begin, end) in enumerate(placed):
            for other_thread, other_lane, other_begin, other_end in placed[n + 1 :]:
                if (thread, lane) == (other_thread, other_lane):
                    apart = end <= other_begin or other_end <= begin
                    within = (begin <= other_begin and other_end <= end) or (other_begin <= begin and end <= other_end)
                    assert apart or within

    def test_nested_spans_share_one(self) -> None:
        assert lanes_of([(1, 0, 10), (1, 2, 3), (1, 2, 8), (1, 20, 0)]) == [0, 0, 0, 0]
        assert lanes_of([(1, 0, 10), (1, 5, 10)]) == [0, 1]


class TestChrome:
    def test_has_spans_instants_names_curves_and_arrows(self) -> None:
        document = as_chrome(
            [
                event("checkpoint", 1500, operation="paid", event_id="e1", n=3),
                event("span", 3000, thread=2, operation="child", span_id="c", parent_span_id="p", duration_ns=500),
                event("metric", 4000, operation="queue", name="queue", value=7, unit="items"),
                event("span", 1000, operation="parent", span_id="p", level="error", duration_ns=5000),
                event("span", 2000, operation="inner", span_id="i", parent_span_id="p", duration_ns=10),
                event("span", 2500, operation="no duration", span_id="x"),
            ]
        )
        entries = document["traceEvents"]
        assert json.loads(json.dumps(document)) == document
        assert {(entry["tid"], entry["args"]["name"]) for entry in entries if entry["name"] == "thread_name"} == {
            (1, "worker-1"),
            (2, "worker-2"),
        }
        parent, inner, child = [entry for entry in entries if entry["ph"] == "X"]
        assert (parent["name"], parent["ts"], parent["dur"], parent["tid"], parent["cat"]) == (
            "parent",
            0.0,
            5.0,
            1,
            "error",
        )
        assert (inner["name"], inner["tid"]) == ("inner", 1)
        assert (child["name"], child["ts"], child["dur"], child["tid"]) == ("child", 2.0, 0.5, 2)
        instants = [entry for entry in entries if entry["ph"] == "i"]
        assert [(entry["name"], entry["ts"]) for entry in instants] == [
            ("checkpoint: paid", 0.5),
            ("span: no duration", 1.5),
            ("metric: queue", 3.0),
        ]
        assert instants[0]["args"] == {"n": 3, "event_id": "e1", "execution_id": "run"}
        (curve,) = [entry for entry in entries if entry["ph"] == "C"]
        assert (curve["name"], curve["args"]) == ("queue", {"value": 7})
        leaves, arrives = [entry for entry in entries if entry["ph"] in "sf"]  # the inner one is in the same thread
        assert leaves["id"] == arrives["id"]
        assert (leaves["tid"], leaves["ts"], arrives["tid"], arrives["ts"]) == (1, 2.0, 2, 2.0)
        assert document["otherData"] == {"began_ns": 1_700_000_000_000_001_000}

    def test_tasks_of_one_thread_get_lanes_of_its_name(self) -> None:
        document = as_chrome(
            [
                event("span", 0, operation="a", span_id="a", duration_ns=10),
                event("span", 5, operation="b", span_id="b", duration_ns=10),
                event("span", 7, operation="c", span_id="c", duration_ns=1, thread=2),
                event("in b", 8, span_id="b"),
                event("in a", 8, span_id="a"),
                event("in b, elsewhere", 8, span_id="b", thread=2),
            ]
        )
        tids = {entry["name"]: entry["tid"] for entry in document["traceEvents"] if entry["ph"] == "X"}
        assert tids == {"a": 1, "b": 2, "c": 3}
        places = {entry["name"]: entry["tid"] for entry in document["traceEvents"] if entry["ph"] == "i"}
        assert places == {"in a": 1, "in b": 2, "in b, elsewhere": 3}
        named = [entry for entry in document["traceEvents"] if entry["name"] == "thread_name"]
        assert {entry["tid"]: entry["args"]["name"] for entry in named} == {1: "worker-1", 2: "worker-1", 3: "worker-2"}

    def test_an_arrow_leaves_within_the_parent_also_when_the_child_came_after_its_end(self) -> None:
        document = as_chrome(
            [
                event("span", 0, operation="p", span_id="p", duration_ns=1000),
                event("span", 9000, thread=2, operation="c", span_id="c", parent_span_id="p", duration_ns=1),
            ]
        )
        assert [entry["ts"] for entry in document["traceEvents"] if entry["ph"] in "sf"] == [1.0, 9.0]

    def test_of_nothing_is_a_document_too(self) -> None:
        assert as_chrome([])["traceEvents"] == []


class TestWrite:
    def test_json_has_all_that_is_known(self, tmp_path: Path) -> None:
        write(tmp_path / "trace.json", [event("noted", 5, operation="a", event_id="e", n=[1, {"b": None}])], "json")
        document = json.loads((tmp_path / "trace.json").read_text())
        assert (document["format"], document["version"], document["pid"]) == ("streamll.events", 1, os.getpid())
        (only,) = document["events"]
        assert (only["event_type"], only["monotonic_ns"], only["data"]) == ("noted", 5, {"n": [1, {"b": None}]})
        assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]

    def test_an_unknown_format_is_refused_and_nothing_touched(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=f"'speedscope': must be one of {', '.join(FORMATS)}"):
            write(tmp_path / "trace.json", [], "speedscope")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_is_replaced_as_a_whole_or_stays_as_it_was(self, tmp_path: Path) -> None:
        target, link = tmp_path / "trace.json", tmp_path / "link"
        target.write_text("before")
        link.symlink_to(target)
        with pytest.raises(TypeError):
            write_whole(target, None)  # type: ignore[arg-type]  # fails in the midst of it
        assert target.read_text() == "before"
        write_whole(link, b"after")
        assert target.read_text() == "after"
        assert link.is_symlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "trace.json"]

    def test_a_device_is_written_to_and_not_replaced(self) -> None:
        write_whole(os.devnull, b"{}")
        assert not Path(os.devnull).is_file()
