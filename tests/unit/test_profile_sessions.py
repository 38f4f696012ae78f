"""Sessions and phases: what was called in each, by readings of a counter that only rises."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.monitors.profiling.sessions import MAX_PHASES, Reading, Sessions


def reading(n: int) -> dict[str, Reading]:
    return {"load": Reading(n, n // 2, n * 10, n * 5), "save": Reading(0, 0, 0, 0)}


class TestSessions:
    @given(st.lists(st.integers(0, 20), min_size=1, max_size=10))
    @settings(max_examples=50)
    def test_phases_share_what_the_session_held(self, steps: list[int]) -> None:
        sessions = Sessions()
        calls = now = 0
        sessions.start("s", "name", 2_000_000_000, now, reading(calls))
        for n, step in enumerate(steps):
            assert sessions.begin_phase(f"phase {n}", None, now, reading(calls)) == ("s", n)
            calls, now = calls + step, now + 10
        assert sessions.end(None, now, reading(calls)) == "s"
        told = sessions.describe("s", now + 99, reading(calls + 99))
        assert told is not None
        assert (told["open"], told["duration"], told["started"]) == (False, now / 1e9, 2.0)
        held = told["profiles"].get("load", {"calls": 0, "wall_time": 0})
        assert held["calls"] == sum(steps)
        assert [phase["profiles"].get("load", {"calls": 0})["calls"] for phase in told["phases"]] == steps
        assert all(phase["duration"] == 10 / 1e9 and not phase["open"] for phase in told["phases"])
        assert "save" not in told["profiles"]

    def test_that_there_are_not_are_harmless_and_counted(self) -> None:
        sessions = Sessions()
        assert sessions.end(None, 1, {}) is None
        assert sessions.end("never", 1, {}) is None
        assert sessions.begin_phase("p", None, 1, {}) is None
        assert sessions.describe("never", 1, {}) is None
        sessions.start("s", "s", 0, 0, {})
        assert sessions.end("s", 1, {}) == "s"
        assert sessions.end("s", 2, {}) is None
        assert sessions.begin_phase("p", "s", 2, {}) is None
        sessions.end_phase(("gone", 3), 2, {})
        assert sessions.unknown == 5

    def test_nest_and_end_in_any_order(self) -> None:
        sessions = Sessions()
        sessions.start("a", "a", 0, 0, reading(0))
        sessions.start("b", "b", 0, 0, reading(0))
        phase = sessions.begin_phase("in b", None, 1, reading(1))
        assert phase == ("b", 0)
        assert sessions.begin_phase("in a", "a", 1, reading(1)) == ("a", 0)
        assert sessions.end("a", 5, reading(2)) == "a"
        assert sessions.open == 1
        sessions.end_phase(phase, 6, reading(3))
        sessions.end_phase(phase, 9, reading(9))
        told = sessions.describe("b", 9, reading(9))
        assert told is not None
        assert told["open"]
        assert told["profiles"]["load"]["calls"] == 9
        assert told["phases"][0]["profiles"]["load"]["calls"] == 2

    def test_are_bounded(self) -> None:
        sessions = Sessions(max_sessions=2)
        for name in "abc":
            sessions.start(name, name, 0, 0, {})
            if name == "b":
                sessions.end("b", 1, {})
        assert sessions.ids() == ["a", "c"]  # the one that had ended gave way
        sessions.start("d", "d", 0, 0, {})
        assert (sessions.ids(), sessions.forgotten, len(sessions)) == (["c", "d"], 2, 2)
        for _ in range(MAX_PHASES + 3):
            sessions.begin_phase("p", "d", 1, {})
        told = sessions.describe("d", 1, {})
        assert told is not None
        assert (len(told["phases"]), told["more_phases"]) == (MAX_PHASES, 3)
