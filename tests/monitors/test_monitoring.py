"""monitor(): all tools at once, and what they say together."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import streamll
from streamll import monitoring
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.monitoring import Monitor, Operations, monitor
from streamll.monitors.agent import OVERHEAD_TARGET, agent
from tests.fixtures.waiting import wait_until


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    if monitoring._monitor is not None:
        monitoring._monitor.stop()
    agent.target = OVERHEAD_TARGET
    streamll.shutdown()
    assert not hub.active
    assert wait_until(lambda: not agent.running)


def rows(watch: Monitor) -> dict[str, dict[str, Any]]:
    return {row["operation"]: row for row in watch.report()["operations"]["operations"]}


def test_operations_of_many_threads_are_all_counted() -> None:
    threads, calls = 6, 3000

    def work() -> None:
        for n in range(calls):
            try:
                with streamll.span("step"):
                    if n % 10 == 0:
                        raise ValueError
            except ValueError:
                streamll.emit("note", operation="step")

    with monitor() as watch:
        running = [threading.Thread(target=work) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        step = rows(watch)["step"]
        assert (step["calls"], step["errors"], step["events"]) == (
            threads * calls,
            threads * calls // 10,
            threads * calls // 10,
        )
    streamll.emit("note", operation="too late")
    assert "too late" not in rows(watch)


def test_labels_that_are_no_words_hurt_nobody() -> None:
    with monitor(["memory://"]) as watch:
        assert streamll.emit("note", operation=5)  # type: ignore[arg-type]
        assert streamll.emit(["note"], operation="x")  # type: ignore[arg-type]
        assert streamll.emit("note", operation="well")
    assert set(rows(watch)) == {"well"}


def test_a_report_is_what_json_can_say_while_it_runs_and_afterwards() -> None:
    with monitor(["memory://"], profile=True, memory=True, service="shop") as watch:
        with streamll.span("pay"):
            pass
        early = json.loads(json.dumps(watch.report()))
    late = json.loads(json.dumps(watch.report()))
    assert rows(watch)["pay"]["calls"] == 1
    assert early["seconds"] <= late["seconds"] == watch.report()["seconds"]
    assert late["balanced"]
    assert late["sinks"]["memory"]["accepted"] >= 1
    assert late["monitoring"]["target"] == 0.02
    assert set(watch.tools) <= set(late)
    assert set(watch.tools) < set(streamll.stats().monitoring)


def test_what_is_decorated_for_the_process_belongs_to_it() -> None:
    @streamll.profile("answer")
    def answer() -> None:
        with streamll.profile_action("look up"):
            pass

    with monitor(profile={"sampler": "off"}) as watch:
        answer()
        assert watch.profiler is not None
        profiles = watch.profiler.get_profile_data()["profiles"]
    assert (profiles["answer"]["calls"], profiles["look up"]["calls"]) == (1, 1)
    watch.profiler.reset()


def test_a_tool_s_wrong_option_is_named_with_its_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"monitor option memory: .*unknown option 'intervall'"):
        monitor(memory={"intervall": 1})
    assert monitoring._monitor is None or not monitoring._monitor.running


def test_a_second_one_takes_the_place_of_the_first() -> None:
    first = monitor(overhead_target=0.1)
    assert agent.target == 0.1
    second = monitor()
    assert (first.running, second.running) == (False, True)
    streamll.emit("seen", operation="once")
    assert "once" in rows(second)
    assert "once" not in rows(first)
    second.stop()
    second.stop()
    assert not second.running


def test_when_one_tool_cannot_start_none_runs() -> None:
    class Broken(Operations):
        def start(self) -> Broken:
            raise ConfigurationError("broken")

    watch = Monitor({"operations": Operations(), "broken": Broken()})
    with pytest.raises(ConfigurationError, match="broken"):
        watch.start()
    assert not watch.running
    assert not hub.active


@pytest.mark.parametrize("target", [0, -1, 1.5, float("nan")])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(ConfigurationError, match="overhead_target"):
        monitor(overhead_target=target)
