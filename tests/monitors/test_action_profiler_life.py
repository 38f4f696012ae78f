"""ActionProfiler: blocks, sessions, whose samples are whose, and its life from start to stop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pstats
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import streamll
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.monitors import action_profiler
from streamll.monitors.action_profiler import ActionProfiler, ProfilerOptions
from tests.fixtures.waiting import wait_until
from tests.monitors import known_shares
from tests.monitors.profiling import counting, row


@pytest.fixture
def profiler() -> Iterator[ActionProfiler]:
    with counting() as made:
        yield made


class TestBlocks:
    def test_in_coroutines_have_their_own_time_where_nothing_is_around_them(self, profiler: ActionProfiler) -> None:
        async def plain() -> None:
            async with profiler.profile_action("plain"):
                await asyncio.sleep(0.01)

        @profiler.profile("profiled")
        async def profiled() -> None:
            with profiler.profile_action("within"):
                await asyncio.sleep(0.01)

        async def main() -> None:
            await asyncio.gather(plain(), plain(), profiled())

        asyncio.run(main())
        data = profiler.get_profile_data()["profiles"]
        assert data["plain"]["calls"] == 2
        assert data["plain"]["self_time"] == data["plain"]["wall_time"] >= 0.02
        assert data["within"]["self_time"] is None
        assert data["within"]["wall_time"] >= 0.01

    def test_may_be_left_by_another_way_or_twice(self, profiler: ActionProfiler) -> None:
        block = profiler.profile_action("odd")
        block.__exit__(None, None, None)
        block.__enter__()
        block.__enter__()
        block.__exit__(ValueError, ValueError(), None)
        block.__exit__(None, None, None)
        found = row(profiler, "odd")
        assert (found["calls"], found["errors"], found["active"]) == (1, 1, 0)


class TestSessions:
    def test_have_phases_with_what_was_called_in_them(self, profiler: ActionProfiler) -> None:
        @profiler.profile("f")
        def f() -> None:
            pass

        with profiler.session("job") as session_id:
            with profiler.phase("one"):
                f()
            profiler.phase("two")
            f()
            f()
        told = profiler.get_session(session_id)
        assert told is not None
        assert (told["name"], told["open"], told["profiles"]["f"]["calls"]) == ("job", False, 3)
        assert [(each["name"], each["profiles"]["f"]["calls"]) for each in told["phases"]] == [("one", 1), ("two", 2)]
        assert profiler.get_profile_data()["sessions"] == [told]

    def test_by_hand_and_unknown_ones(self) -> None:
        profiler = ActionProfiler(sampler="off")
        session_id = profiler.start_session("s")
        assert profiler.running
        phase = profiler.phase("p")
        phase.end()
        phase.end()
        ended = profiler.end_session(session_id)
        assert ended is not None
        assert ended["id"] == session_id
        assert profiler.end_session(session_id) is None
        assert profiler.end_session("no such") is None
        assert profiler.get_session("no such") is None
        with profiler.phase("nowhere"):
            pass
        assert profiler.stats().unknown_sessions == 3
        profiler.stop()


class TestSamples:
    def test_belong_to_the_action_and_not_to_the_wrapper(self, tmp_path: Path) -> None:
        profiler = ActionProfiler(interval=0.002)

        @profiler.profile("burning")
        def burning() -> None:
            known_shares.half(0.1)

        @profiler.profile("later")
        async def later() -> None:
            known_shares.third(0.1)
            await asyncio.sleep(0)

        async def block() -> None:
            async with profiler.profile_action("an async block"):
                known_shares.rest(0.08)

        with profiler:
            burning()
            with profiler.profile_action("a block"):
                known_shares.rest(0.1)
            asyncio.run(later())
            asyncio.run(block())
            with ExitStack() as stack:
                stack.enter_context(profiler.profile_action("a stacked block"))
                known_shares.rest(0.08)
        owners = {each["action"]: each for each in profiler.report()["owners"]}
        assert {"burning", "a block", "later", "an async block", "a stacked block"} <= owners.keys()
        assert owners["later"]["task"].endswith("later")
        spots = profiler.hot_spots(3)
        assert spots[0]["function"].endswith("burn")
        assert spots[0]["self_share"] > 0.5
        functions = {each["function"].split(".")[-1] for each in profiler.hot_spots(None)}
        assert {"half", "third", "rest"} <= functions
        assert "wrapper" not in functions
        assert "_drive" not in functions
        for name in ("json", "speedscope", "collapsed", "pstats", "chrome"):
            profiler.export(tmp_path / name, name)
        assert json.loads((tmp_path / "json").read_text())["profiles"]["burning"]["calls"] == 1
        assert pstats.Stats(str(tmp_path / "pstats")).total_tt > 0.1  # type: ignore[attr-defined]  # unknown to typeshed
        with pytest.raises(ConfigurationError, match="no format"):
            profiler.export(tmp_path / "x", "xml")
        json.dumps(profiler.report())

    def test_a_block_whose_frame_died_misleads_nobody(self) -> None:
        profiler = ActionProfiler(interval=0.002, sampler="agent")
        left_open = profiler.profile_action("left open")

        def enter() -> None:
            left_open.__enter__()

        with profiler:
            enter()
            known_shares.half(0.1)
            left_open.__exit__(None, None, None)
            assert hub.frames == {}
        assert {each["action"] for each in profiler.report()["owners"]} == {""}

    def test_are_sent_as_an_event_at_the_stop_and_now_and_then(self) -> None:
        with streamll.testing.capture() as events:
            profiler = ActionProfiler(sampler="off", report_interval=0.1)

            @profiler.profile("f")
            def f() -> None:
                pass

            with profiler:
                f()
                assert wait_until(lambda: [event for event in events if event.event_type == "profile"])
            sent = [event for event in events if event.event_type == "profile"]
        assert len(sent) >= 2
        assert sent[-1].operation == "streamll.profile"
        assert sent[-1].data["profiles"]["f"]["calls"] == 1
        assert sent[-1].data["total_calls"] == 1


class TestLife:
    def test_options_are_read_in_every_form_and_refused_when_wrong(self) -> None:
        options = ProfilerOptions(interval=0.5)
        assert ActionProfiler(options).options == ActionProfiler({"interval": 0.5}).options == options
        assert ActionProfiler(options, mode="wall").options.mode == "wall"
        with pytest.raises(ConfigurationError, match="profiler option interval"):
            ActionProfiler(interval=0)
        with pytest.raises(ConfigurationError, match="did you mean interval"):
            ActionProfiler(intervall=1)

    def test_other_options_leave_what_is_decorated(self) -> None:
        profiler = ActionProfiler(sampler="off")

        @profiler.profile("f")
        def f() -> None:
            pass

        with profiler:
            f()
            assert profiler.reconfigure(sampler="off", cpu="all") is profiler
            assert not profiler.running
            with profiler:
                f()
                f()
        assert (row(profiler, "f")["calls"], row(profiler, "f")["cpu_calls"]) == (3, 3)
        with pytest.raises(ConfigurationError):
            profiler.reconfigure(cpu="some")

    def test_one_that_nobody_holds_stops(self) -> None:
        ActionProfiler().start()
        gc.collect()
        assert hub.frames is None
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)

    def test_what_was_sampled_before_other_options_is_not_held_for_ever(self) -> None:
        profiler = ActionProfiler()
        before = weakref.ref(profiler._sampler)
        profiler.reconfigure()
        gc.collect()
        assert before() is None

    def test_two_at_once_count_each_their_own(self) -> None:
        with ActionProfiler() as one, ActionProfiler() as other:

            def nothing() -> None:
                pass

            both: Callable[[], None] = one.profile("both")(other.profile("both")(nothing))
            both()
            other.profile("other")(nothing)()
            assert row(one, "both")["calls"] == row(other, "both")["calls"] == 1
            assert "other" not in one.get_profile_data()["profiles"]
        assert hub.frames is None

    def test_may_be_stopped_from_another_thread_and_in_the_middle_of_calls(self) -> None:
        profiler = ActionProfiler()
        profiler.start()

        @profiler.profile("f")
        def f() -> None:
            thread = threading.Thread(target=profiler.stop)
            thread.start()
            thread.join()

        f()
        assert not profiler.running
        assert row(profiler, "f")["calls"] == 1
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)

    def test_a_forked_child_begins_from_zero(self) -> None:
        program = """
import os
from streamll.monitors.action_profiler import ActionProfiler
profiler = ActionProfiler().start()
@profiler.profile("f")
def f(fork=False):
    return os.fork() if fork else None
f()
pid = f(True)
f()
if pid:
    status = os.waitpid(pid, 0)[1]
    print(status, profiler.get_profile_data()["total_calls"])
else:
    os._exit(profiler.get_profile_data()["total_calls"])
profiler.stop()
"""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, env=environ)
        assert done.stdout == f"{1 << 8} 3\n", done.stderr

    def test_conveniences_belong_to_one_profiler(self) -> None:
        calls = action_profiler.profile("convenient")(threading.get_ident)
        with action_profiler.default_profiler:
            calls()
            with action_profiler.profile_action("convenient"):
                pass
        assert row(action_profiler.default_profiler, "convenient")["calls"] == 2
        action_profiler.default_profiler.reset()
