"""What checkpoints tell of flows, against an answer worked out the plain way."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.models import StreamllEvent
from streamll.monitors.events.flow import LISTED, Step, analyze, flow_with, steps_of

names = st.sampled_from("abcdef")
steps = st.lists(
    st.builds(Step, st.sampled_from(["x", "y", "z", ""]), names, st.integers(-(10**12), 10**12)), max_size=40
)


def path(flow: str, *names: str, every: int = 10) -> list[Step]:
    return [Step(flow, name, n * every) for n, name in enumerate(names)]


class TestAgainstThePlainWay:
    @settings(max_examples=100)
    @given(steps, st.lists(names, max_size=5, unique=True))
    def test_edges(self, given_steps: list[Step], expected: list[str]) -> None:
        answer = analyze(given_steps, expected)
        times: dict[tuple[str, str], list[int]] = {}
        for flow in {step.flow for step in given_steps}:
            mine = sorted((step for step in given_steps if step.flow == flow), key=lambda step: step.at)
            for n in range(len(mine) - 1):
                times.setdefault((mine[n].name, mine[n + 1].name), []).append(mine[n + 1].at - mine[n].at)
        total = sum(map(sum, times.values()))
        assert answer["total_ns"] == total
        assert len(answer["edges"]) == len(times)
        for edge in answer["edges"]:
            took = sorted(times[edge["from"], edge["to"]])
            assert (edge["count"], edge["total_ns"], edge["max_ns"]) == (len(took), sum(took), took[-1])
            assert edge["mean_ns"] == pytest.approx(sum(took) / len(took))
            assert edge["share"] == pytest.approx(sum(took) / total if total else 0)
            for name, q in (("p50_ns", 0.5), ("p95_ns", 0.95)):
                assert edge[name] == pytest.approx(took[ceil(q * len(took)) - 1], rel=0.01)
            assert took[0] >= 0
        totals = [edge["total_ns"] for edge in answer["edges"]]
        assert totals == sorted(totals, reverse=True)

    @settings(max_examples=100)
    @given(steps, st.lists(names, min_size=1, max_size=5, unique=True))
    def test_what_is_not_as_expected(self, given_steps: list[Step], expected: list[str]) -> None:
        answer = analyze(given_steps, expected)
        missing, early, repeated, unfinished = {}, {}, {}, set()
        for flow in {step.flow for step in given_steps}:
            made = [step.name for step in sorted(given_steps, key=lambda step: step.at) if step.flow == flow]
            if set(expected) - set(made):
                missing[flow] = [name for name in expected if name not in made]
            out = [
                name
                for n, name in enumerate(expected)
                if name in made
                and any(before in made and made.index(before) > made.index(name) for before in expected[:n])
            ]
            if out:
                early[flow] = out
            twice = {name: n for name, n in Counter(made).items() if n > 1}
            if twice:
                repeated[flow] = twice
            if expected[-1] not in made:
                unfinished.add(flow)
        assert (answer["missing"], answer["out_of_order"], answer["repeated"]) == (missing, early, repeated)
        assert set(answer["unfinished"]) == unfinished
        assert answer["counts"] == {
            "edges": len(answer["edges"]),
            "bottlenecks": len(answer["bottlenecks"]),
            "missing": len(missing),
            "out_of_order": len(early),
            "repeated": len(repeated),
            "unfinished": len(unfinished),
        }

    @settings(max_examples=50)
    @given(steps)
    def test_one_flow_is_told_of_as_if_it_were_alone_but_for_what_it_is_compared_with(
        self, all_steps: list[Step]
    ) -> None:
        for flow in {step.flow for step in all_steps}:
            alone = analyze([step for step in all_steps if step.flow == flow])
            among = analyze(all_steps, only=flow)
            for key in ("found", "flows", "steps", "total_ns", "edges", "bottlenecks", "out_of_order", "repeated"):
                assert among[key] == alone[key]


class TestWhatMostDo:
    def test_a_step_is_missed_that_most_flows_make(self) -> None:
        answer = analyze([*path("1", "a", "b", "c"), *path("2", "a", "b", "c"), *path("3", "a", "c")])
        assert answer["missing"] == {"3": ["b"]}
        assert answer["unfinished"] == []

    def test_a_flow_is_unfinished_that_does_not_end_as_most_do(self) -> None:
        answer = analyze([*path("1", "a", "b", "c"), *path("2", "a", "b", "c"), *path("3", "a", "b")])
        assert answer["unfinished"] == ["3"]
        assert answer["missing"] == {"3": ["c"]}

    def test_two_flows_are_no_majority(self) -> None:
        answer = analyze([*path("1", "a", "b"), *path("2", "a")])
        assert (answer["missing"], answer["unfinished"]) == ({}, [])

    def test_one_flow_is_compared_with_the_others(self) -> None:
        others = [step for n in range(5) for step in path(str(n), "a", "b")]
        assert analyze([*others, *path("late", "a")], only="late")["missing"] == {"late": ["b"]}


class TestBottlenecks:
    def test_the_few_edges_that_make_up_half_of_the_time(self) -> None:
        steps = [Step("1", name, at) for name, at in (("a", 0), ("b", 10), ("c", 50), ("d", 80), ("e", 100))]
        found = analyze(steps)["bottlenecks"]
        assert [(edge["from"], edge["to"], edge["reasons"]) for edge in found] == [
            ("b", "c", ["share"]),
            ("c", "d", ["share"]),
        ]

    def test_an_edge_whose_tail_is_far_from_its_median(self) -> None:
        steps = []
        for n in range(100):
            slow = 5000 if n % 10 == 0 else 10
            steps += [Step(str(n), "a", 0), Step(str(n), "b", slow), Step(str(n), "c", slow + 20_000)]
        found = {(edge["from"], edge["to"]): edge["reasons"] for edge in analyze(steps)["bottlenecks"]}
        assert found == {("b", "c"): ["share"], ("a", "b"): ["tail"]}

    def test_the_only_edge_is_none(self) -> None:
        assert analyze(path("1", "a", "b"))["bottlenecks"] == []


class TestAnswer:
    def test_of_a_flow_that_is_not_there_is_empty_and_says_so(self) -> None:
        answer = analyze(path("1", "a", "b"), only="2")
        assert (answer["found"], answer["flows"], answer["steps"], answer["edges"]) == (False, 0, 0, [])
        assert answer["missing"] == answer["repeated"] == answer["out_of_order"] == {}

    def test_lists_some_and_counts_all(self) -> None:
        steps = [step for n in range(LISTED + 5) for step in path(str(n), "a", "a")]
        answer = analyze(steps, ["a", "b"])
        assert len(answer["missing"]) == len(answer["repeated"]) == len(answer["unfinished"]) == LISTED
        assert set(answer["counts"].values()) == {LISTED + 5, 1, 0}

    def test_edges_too(self) -> None:
        answer = analyze(path("1", *(str(n) for n in range(LISTED + 10))))
        assert (len(answer["edges"]), answer["counts"]["edges"]) == (LISTED, LISTED + 9)
        assert answer["total_ns"] == (LISTED + 9) * 10

    def test_steps_at_the_same_time_stay_in_their_order(self) -> None:
        edges = analyze([Step("1", "a", 5), Step("1", "b", 5)], ["b", "a"])
        assert edges["out_of_order"] == {"1": ["a"]} or edges["out_of_order"] == {"1": ["b"]}
        assert [(edge["from"], edge["to"]) for edge in edges["edges"]] == [("a", "b")]


class TestStepsOf:
    def test_events_that_say_nothing_of_flow_or_clock(self) -> None:
        events = [
            StreamllEvent("checkpoint", operation="a", timestamp=5),
            StreamllEvent("checkpoint", operation="b", timestamp=9, data={"flow_id": 7, "monotonic_ns": 6}),
            StreamllEvent("other", operation="c", timestamp=7),
        ]
        assert steps_of(events) == [Step("", "a", 5), Step("7", "b", 6)]
        assert flow_with(events[1].event_id, events) == "7"
        assert flow_with("nobody's", events) is None
