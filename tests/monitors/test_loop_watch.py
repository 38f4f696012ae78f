"""Event loops that are blocked for real, and what is told of it: by what, for how long, and on whose behalf."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import streamll
from streamll.errors import ConfigurationError
from streamll.models import StreamllEvent
from streamll.monitors.loop_watch import MAX_LOOPS, LoopWatch, watch_loop
from streamll.monitors.loops.births import Births
from streamll.monitors.uncaught import running_loop
from tests.fixtures.waiting import PATIENCE, wait_until

QUICK: dict[str, Any] = {"threshold": 0.04, "interval": 0.01}


def block(seconds: float) -> None:
    time.sleep(seconds)


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def blocked(events: list[StreamllEvent]) -> list[StreamllEvent]:
    return [event for event in events if event.event_type == "loop_blocked" and not event.data.get("ongoing")]


async def beating(watch: LoopWatch) -> None:
    """Wait until the loop has its heart."""
    before = watch.stats().beats
    while watch.stats().beats < before + 3:  # noqa: ASYNC110  # nobody tells of a beat
        await asyncio.sleep(0.002)


async def until_told(events: list[StreamllEvent], name: str, again: Callable[[], Awaitable[object]]) -> StreamllEvent:
    """Block the loop until it was told of that frame: on a machine with other things to do, nobody may have looked."""
    deadline = time.monotonic() + PATIENCE
    while True:
        await again()
        await asyncio.sleep(0.03)
        for event in blocked(events):
            if event.data.get("frame", "").endswith(f"in {name}"):
                return event
        assert time.monotonic() < deadline


@pytest.mark.parametrize("how", [block, spin])
def test_a_blocked_loop_is_told_of_with_the_frame_that_blocked_it(how: Any, events: list[StreamllEvent]) -> None:
    async def handler() -> None:
        with streamll.span("answer") as span:
            spans.append(span.span_id)
            how(0.15)

    spans: list[str] = []

    async def main() -> tuple[LoopWatch, StreamllEvent]:
        with watch_loop(**QUICK) as watch:
            await beating(watch)
            began = time.time_ns()
            event = await until_told(events, how.__name__, lambda: asyncio.create_task(handler(), name="request 7"))
            assert abs(event.timestamp - began) < 60e9
            return watch, event

    watch, event = asyncio.run(main())
    assert 0.04e9 <= event.data["duration_ns"] < 60e9
    assert event.data["frame"].startswith(f"{__file__}:")
    assert event.data["frame"].endswith(f"in {how.__name__}")
    assert event.data["stack"][-1].endswith(f"in {how.__name__}")
    assert event.data["stack"][0].split(".")[-1].endswith("handler")
    assert (event.module_name, event.method_name) == (__name__, how.__name__)
    assert event.operation.endswith("handler")
    assert (event.data["task"], event.level) == ("request 7", "warning")
    assert event.span_id in spans if sys.version_info >= (3, 12) else event.span_id == ""
    stats, report = watch.stats(), watch.report()
    assert stats.loops == 0
    assert stats.blocked >= 1
    assert 0.04 <= stats.longest <= stats.blocked_seconds < 60
    assert event.data["frame"] in [blocker["frame"] for blocker in report["blockers"]]
    assert report["lag_ms"]["max"] >= 40


def test_a_callback_outside_of_any_task_is_named_too(events: list[StreamllEvent]) -> None:
    async def main() -> StreamllEvent:
        async def again() -> None:
            asyncio.get_running_loop().call_soon(block, 0.15)
            await asyncio.sleep(0)

        with watch_loop(**QUICK) as watch:
            await beating(watch)
            return await until_told(events, "block", again)

    event = asyncio.run(main())
    assert event.operation == "block"
    assert "task" not in event.data


def test_one_that_lasts_is_told_of_while_it_does(events: list[StreamllEvent]) -> None:
    async def main() -> None:
        with watch_loop(**QUICK, ongoing_after=0.05) as watch:
            await beating(watch)
            assert wait_until(lambda: any(event.data.get("ongoing") for event in events))
            assert await asyncio.to_thread(wait_until, lambda: len(blocked(events)) > 0)

    asyncio.run(main())
    ongoing = next(event for event in events if event.data.get("ongoing"))
    over = min(blocked(events), key=lambda event: abs(event.timestamp - ongoing.timestamp))
    assert over.data["duration_ns"] > ongoing.data["duration_ns"] >= 0.05e9
    assert abs(over.timestamp - ongoing.timestamp) < 1e9  # two clocks, read one after the other
    assert over.data["samples"] >= ongoing.data["samples"]


def test_more_than_are_wanted_in_a_minute_are_counted_only(events: list[StreamllEvent]) -> None:
    async def main() -> LoopWatch:
        with watch_loop(**QUICK, per_minute=1) as watch:
            await beating(watch)
            deadline = time.monotonic() + PATIENCE
            while not watch.stats().rate and time.monotonic() < deadline:
                block(0.06)
                await asyncio.sleep(0.02)
            return watch

    stats = asyncio.run(main()).stats()
    assert stats.blocked == stats.rate + 1
    assert len(blocked(events)) == 1


def test_several_loops_in_several_threads_are_told_apart(events: list[StreamllEvent]) -> None:
    watch = LoopWatch(**QUICK, new_loops=True).start()

    async def main(name: str) -> None:
        await beating(watch)
        while not any(event.data.get("task") == name for event in blocked(events)):
            await asyncio.create_task(busy(), name=name)
            await asyncio.sleep(0.02)

    async def busy() -> None:
        block(0.1)

    threads = [threading.Thread(target=lambda name=name: asyncio.run(main(name))) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wait_until(lambda: watch.stats().loops == 0)
    watch.stop()
    tasks = {event.data["task"] for event in blocked(events) if event.data.get("frame", "").endswith("in block")}
    assert tasks == {"one", "two"}


def test_a_loop_that_is_blocked_from_its_start_is_told_of(events: list[StreamllEvent]) -> None:
    async def main() -> None:
        block(0.2)
        await asyncio.sleep(0.03)

    deadline = time.monotonic() + PATIENCE
    with LoopWatch(**QUICK, new_loops=True):
        while not any(event.data.get("frame", "").endswith("in block") for event in blocked(events)):
            asyncio.run(main())
            assert time.monotonic() < deadline


def test_loops_that_are_gone_at_once_make_no_room_scarce(events: list[StreamllEvent]) -> None:
    with LoopWatch(interval=60, threshold=60, new_loops=True) as watch:
        for _ in range(2 * MAX_LOOPS):
            asyncio.run(asyncio.sleep(0))
        gc.collect()
        asyncio.run(asyncio.sleep(0))
        assert watch.stats().refused == 0
        assert watch.stats().loops <= MAX_LOOPS


def test_loops_that_end_or_rest_are_let_go_and_not_late(events: list[StreamllEvent]) -> None:
    with LoopWatch(**QUICK) as watch:
        loop = asyncio.new_event_loop()
        watch.watch_loop(loop)
        watch.watch_loop(loop)
        loop.run_until_complete(beating(watch))
        beats = watch.stats().beats
        time.sleep(0.05)
        resting = time.time_ns()  # it does not run: it has nothing to be late for
        time.sleep(0.05)
        loop.run_until_complete(beating(watch))
        assert watch.stats().beats > beats
        loop.close()
        assert wait_until(lambda: watch.stats().loops == 0)
        assert watch.stats().beats > beats  # what was seen stays
        gone = weakref.ref(loop)
        del loop
        gc.collect()
        assert gone() is None
    for event in blocked(events):  # there may be some, on a machine with other things to do
        assert not event.timestamp <= resting <= event.timestamp + event.data["duration_ns"]


def test_a_loop_with_a_clock_of_its_own_is_left_alone() -> None:
    class Virtual(asyncio.SelectorEventLoop):  # of which nothing sleeps: time passes as it is wanted
        now = 0.0

        def time(self) -> float:
            return self.now

        def call_at(self, when: float, *args: Any, **options: Any) -> Any:  # type: ignore[override]  # passes all on
            self.now = max(self.now, when)
            return super().call_at(when, *args, **options)

    async def main() -> float:
        await asyncio.to_thread(wait_until, lambda: watch.stats().refused == 1)
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    with LoopWatch(QUICK, new_loops=True) as watch:
        loop = Virtual()
        assert loop.run_until_complete(main()) == 3600
        assert watch.stats().beats == 0
        loop.close()
        assert asyncio.run(asyncio.sleep(0.01, "another")) == "another"
        assert watch.stats().refused == 1


def test_ten_thousand_tasks_cost_no_more_beats(events: list[StreamllEvent]) -> None:
    async def main() -> LoopWatch:
        with watch_loop() as watch:
            waiting = asyncio.Event()
            tasks = [asyncio.create_task(waiting.wait()) for _ in range(10_000)]
            await beating(watch)
            began, beats = time.monotonic(), watch.stats().beats
            await asyncio.sleep(0.2)
            assert watch.stats().beats - beats <= (time.monotonic() - began) / 0.05 + 1
            waiting.set()
            await asyncio.gather(*tasks)
            return watch

    assert asyncio.run(main()).stats().loops == 0


def test_stops_and_starts_again_from_any_thread(events: list[StreamllEvent]) -> None:
    async def main() -> None:
        watch = LoopWatch(QUICK)
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(asyncio.get_running_loop)
        watch.start().start()
        await beating(watch)
        await asyncio.to_thread(watch.stop)
        beats = watch.stats().beats
        await asyncio.sleep(0.05)
        assert watch.stats().beats <= beats + 1
        watch.start()
        await beating(watch)
        watch.reset()
        assert watch.stats().beats <= 1
        watch.stop()

    asyncio.run(main())


def test_what_cannot_be_watched_is_refused_when_it_is_set_up() -> None:
    assert running_loop() is None
    with pytest.raises(ConfigurationError, match="watch_loop"):
        watch_loop()
    with pytest.raises(ConfigurationError, match="at most threshold"):
        LoopWatch(threshold=0.01)


PROGRAM = """
import sys, time
import streamll
from streamll.monitors.loops.births import Births
from streamll.monitors.loop_watch import LoopWatch
watch = LoopWatch(threshold=0.04, interval=0.01, new_loops=True).start()
assert "asyncio" not in sys.modules
import asyncio
untouched = asyncio.BaseEventLoop.__init__.__wrapped__
async def main():
    while watch.stats().beats < 3:
        await asyncio.sleep(0.01)
    time.sleep(0.1)
    while not watch.stats().blocked:
        await asyncio.sleep(0.01)
    raise LookupError
try:
    asyncio.run(main())
except LookupError as error:
    traceback, files = error.__traceback__, []
    while traceback:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    assert not any("streamll" in file for file in files[1:]), files
watch.stop()
assert asyncio.BaseEventLoop.__init__ is untouched
assert not any("streamll" in type(finder).__module__ for finder in sys.meta_path)
assert "exec_module" not in vars(asyncio.base_events.__loader__)
print(watch.report()["blockers"][0]["frame"].split()[-1])
"""


def test_loops_of_a_program_that_imports_asyncio_later_are_found() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, env=environ)
    assert (done.stdout, done.returncode) == ("main\n", 0), done.stderr


def test_loops_of_another_kind_are_found_where_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvloop.py").write_text("class Base:\n    pass\n\nclass Loop(Base):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "uvloop", None)  # so that it is taken away afterwards
    del sys.modules["uvloop"]
    finders = list(sys.meta_path)
    told: list[Any] = []
    births = Births()
    births.add(told.append)
    module = importlib.import_module("uvloop")
    made = module.Loop()
    assert told == [made]
    births.remove(told.append)
    module.Loop()
    assert told == [made]
    assert "__init__" not in vars(module.Loop)
    assert sys.meta_path == finders
