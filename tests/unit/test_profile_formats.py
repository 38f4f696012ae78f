"""Profiles in files: each format has all of the time, and the form that its viewers read."""

from __future__ import annotations

import json
import pstats
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamll.errors import ConfigurationError
from streamll.monitors.profiling.formats import FORMATS, Profile, write_profile
from streamll.monitors.profiling.stacks import Function, Owner, Sample, Samples

FUNCTIONS = (
    Function("(other functions)", "", 0),
    *(Function(f"f{n}; of\n{n}", f"/app/module_{n % 3}.py", n) for n in range(1, 6)),
)
OWNERS = (Owner("MainThread"), Owner("worker", "handle", "load", "query"), Owner("worker"))


@st.composite
def some_samples(draw: st.DrawFn) -> Samples:
    stacks = draw(
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6).map(tuple), min_size=1, max_size=8, unique=True)
    )
    kinds = st.tuples(st.integers(0, 2), st.integers(0, len(stacks) - 1), st.integers(1, 3))
    keys = draw(st.lists(kinds, max_size=15, unique=True))
    weights = st.integers(1000, 10**10)
    return Samples(
        FUNCTIONS, OWNERS, stacks, [Sample(*key, draw(st.integers(1, 9)), draw(weights), draw(weights)) for key in keys]
    )


PROFILES = st.builds(
    Profile,
    st.sampled_from(["cpu", "wall"]),
    some_samples(),
    st.just({"profiles": {}, "total_calls": 0, "total_time": 0.0}),
)


def total(profile: Profile) -> int:
    return sum(each.cpu_ns if profile.mode == "cpu" else each.wall_ns for each in profile.samples.samples)


class TestFormats:
    @given(PROFILES)
    @settings(max_examples=40)
    def test_json_has_everything(self, profile: Profile) -> None:
        found = json.loads(FORMATS["json"](profile))
        assert [tuple(stack) for stack in found["stacks"]] == list(profile.samples.stacks)
        assert [Sample(**each) for each in found["samples"]] == list(profile.samples.samples)
        assert (found["format"], found["version"], found["total_calls"]) == ("streamll-profile", 1, 0)

    @given(PROFILES)
    @settings(max_examples=40)
    def test_collapsed_has_a_line_for_each_stack(self, profile: Profile) -> None:
        lines = FORMATS["collapsed"](profile).decode().splitlines()
        weights = [int(line.rsplit(" ", 1)[1]) for line in lines]
        assert sum(weights) == pytest.approx(total(profile) / 1000, abs=1 + len(lines))
        assert all(line.split(";")[0] in ("MainThread", "worker") for line in lines)
        assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines)

    @given(PROFILES)
    @settings(max_examples=40)
    def test_speedscope_is_as_its_schema_wants_it(self, profile: Profile) -> None:
        found = json.loads(FORMATS["speedscope"](profile))
        assert found["$schema"] == "https://www.speedscope.app/file-format-schema.json"
        frames = found["shared"]["frames"]
        assert all(set(frame) <= {"name", "file", "line", "col"} and frame["name"] for frame in frames)
        for each in found["profiles"]:
            assert (each["type"], each["unit"], each["startValue"]) == ("sampled", "nanoseconds", 0)
            assert len(each["samples"]) == len(each["weights"])
            assert sum(each["weights"]) == each["endValue"]
            assert all(0 <= place < len(frames) for stack in each["samples"] for place in stack)
        assert sum(each["endValue"] for each in found["profiles"]) == total(profile)
        assert len({each["name"] for each in found["profiles"]}) == len(found["profiles"])

    @given(PROFILES)
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_pstats_is_loaded_by_pstats(self, tmp_path: Path, profile: Profile) -> None:
        path = tmp_path / "profile.pstats"
        write_profile(profile, path, "pstats")
        if not profile.samples.samples:
            return  # pstats refuses a file without calls
        loaded = pstats.Stats(str(path))
        assert loaded.total_tt == pytest.approx(total(profile) / 1e9)  # type: ignore[attr-defined]  # unknown to typeshed
        own: dict[str, int] = defaultdict(int)
        whole: dict[str, int] = defaultdict(int)
        for each in profile.samples.samples:
            weight = each.cpu_ns if profile.mode == "cpu" else each.wall_ns
            stack = [FUNCTIONS[place].name for place in profile.samples.stacks[each.stack]]
            own[stack[-1]] += weight
            for name in set(stack):
                whole[name] += weight
        for (_, _, name), (_, _, self_time, total_time, callers) in loaded.stats.items():  # type: ignore[attr-defined]  # as above
            assert self_time == pytest.approx(own[name] / 1e9)
            assert total_time == pytest.approx(whole[name] / 1e9)
            assert sum(caller[3] for caller in callers.values()) <= total_time * 1.0001

    @given(PROFILES)
    @settings(max_examples=40)
    def test_chrome_has_events_that_lie_within_each_other(self, profile: Profile) -> None:
        events = json.loads(FORMATS["chrome"](profile))["traceEvents"]
        lanes: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for event in events:
            if event["ph"] == "X":
                open_ones = lanes[event["tid"]]
                while open_ones and event["ts"] >= open_ones[-1][1] - 0.01:
                    open_ones.pop()
                if open_ones:
                    assert event["ts"] + event["dur"] <= open_ones[-1][1] + 0.01
                open_ones.append((event["ts"], event["ts"] + event["dur"]))
        names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
        assert names == {OWNERS[each.owner].thread for each in profile.samples.samples}

    def test_pstats_of_what_was_not_sampled_has_the_actions(self, tmp_path: Path) -> None:
        row = {"calls": 3, "self_time": None, "wall_time": 1.5}
        write_profile(Profile("cpu", Samples(), {"profiles": {"load": row}}), tmp_path / "p", "pstats")
        assert pstats.Stats(str(tmp_path / "p")).stats == {("~", 0, "load"): (3, 3, 0.0, 1.5, {})}  # type: ignore[attr-defined]  # as above


class TestWriting:
    def test_leaves_what_was_there_when_it_fails(self, tmp_path: Path) -> None:
        path = tmp_path / "profile.json"
        path.write_text("before")
        with pytest.raises(TypeError):
            write_profile(Profile("cpu", Samples(), {"what": object()}), path, "json")
        assert [each.name for each in tmp_path.iterdir()] == ["profile.json"]
        assert path.read_text() == "before"

    def test_refuses_a_format_there_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="no format 'svg'; the formats are: json, speedscope, collapsed"):
            write_profile(Profile("cpu", Samples()), tmp_path / "x", "svg")
        assert list(tmp_path.iterdir()) == []
