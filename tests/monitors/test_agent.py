"""The thread that all tools share: turns, costs, the budget, and a fork."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from math import inf
from time import monotonic, thread_time_ns

import pytest

import streamll
from streamll.monitors.agent import Agent
from streamll.monitors.budget import AGENT, MEMORY, Allowance, budget
from tests.fixtures.waiting import wait_until


class Busy:
    """A task that uses up processor time."""

    tool = MEMORY

    def __init__(self, seconds: float = 0.0, every: float = 0.001) -> None:
        self.turns = 0
        self.threads: set[int] = set()
        self.seconds = seconds
        self.every = every

    def tick(self, now: float) -> float:
        self.turns += 1
        self.threads.add(threading.get_ident())
        until = thread_time_ns() + int(self.seconds * 1e9)
        while thread_time_ns() < until:
            pass
        return now + self.every


@pytest.fixture
def agent() -> Iterator[Agent]:
    made = Agent()
    yield made
    for task in list(made._due):
        made.remove(task)
    assert wait_until(lambda: not made.running)
    budget.allowance = Allowance()


def test_gives_turns_on_one_thread_while_there_is_something_to_do(agent: Agent) -> None:
    assert not agent.running
    one, other = Busy(), Busy()
    agent.add(one)
    agent.add(other)
    assert wait_until(lambda: one.turns > 3 and other.turns > 3)
    assert one.threads == other.threads
    assert threading.get_ident() not in one.threads
    agent.remove(one)
    seen = one.turns
    assert wait_until(lambda: other.turns > 10)
    assert one.turns == seen
    agent.remove(other)
    assert wait_until(lambda: not agent.running)
    agent.add(one)
    assert wait_until(lambda: one.turns > seen)


def test_a_task_without_a_time_waits_until_it_is_woken(agent: Agent) -> None:
    task = Busy(every=inf)
    agent.add(task)
    assert wait_until(lambda: task.turns == 1)
    agent.wake(task)
    assert wait_until(lambda: task.turns == 2)
    agent.remove(task)
    agent.wake(task)
    assert task.turns == 2


def test_a_task_that_is_woken_for_later_has_its_turn_then(agent: Agent) -> None:
    task, often = Busy(every=inf), Busy(every=0.01)
    agent.add(task)
    assert wait_until(lambda: task.turns == 1)
    due = monotonic() + 0.05
    agent.wake(task, due)
    agent.wake(task, due + 3600)  # which changes nothing
    assert wait_until(lambda: task.turns == 2)
    assert monotonic() >= due
    agent.add(often)  # so that nobody has to be woken
    due = monotonic() + 0.05
    agent.wake(task, due)
    assert wait_until(lambda: task.turns == 3)
    assert monotonic() >= due
    agent.remove(often)
    agent.remove(task)


def test_a_turn_under_way_is_over_when_its_task_has_been_removed(agent: Agent) -> None:
    inside, done = threading.Event(), threading.Event()

    class Slow(Busy):
        def tick(self, now: float) -> float:
            inside.set()
            done.wait(0.05)
            done.set()
            return inf

    task = Slow()
    agent.add(task)
    assert inside.wait(30)
    agent.remove(task)
    assert done.is_set()


def test_a_task_may_remove_itself(agent: Agent) -> None:
    class Once(Busy):
        def tick(self, now: float) -> float:
            agent.remove(self)
            return super().tick(now)

    task = Once()
    agent.add(task)
    assert wait_until(lambda: task.turns and not agent.running)
    assert task.turns == 1


def test_a_task_that_fails_is_counted_said_once_and_takes_nobody_s_turn(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Busy):
        def tick(self, now: float) -> float:
            self.turns += 1
            raise ZeroDivisionError

    broken, well = Broken(), Busy()
    with caplog.at_level(logging.WARNING, "streamll"):
        agent.add(broken)
        agent.add(well)
        assert wait_until(lambda: well.turns > 3)
        agent.wake(broken)
        assert wait_until(lambda: agent.stats().errors == 2)
    assert [record.message for record in caplog.records] == ["a monitor (memory) failed; please report it"]


def test_all_that_its_thread_uses_is_charged_to_somebody(agent: Agent) -> None:
    """Not the turns alone, which are often the smaller part."""

    class Auditor(Busy):
        def __init__(self) -> None:
            super().__init__(seconds=0.0005)
            self.found: list[tuple[int, int]] = []

        def tick(self, now: float) -> float:
            self.found.append((thread_time_ns(), sum(budget.costs.read().values())))
            return super().tick(now)

    auditor = Auditor()
    agent.add(auditor)
    assert wait_until(lambda: len(auditor.found) > 50)
    agent.remove(auditor)
    (used_first, charged_first), (used, charged) = auditor.found[0], auditor.found[50]
    assert used - used_first >= 50 * 500_000
    assert charged - charged_first == pytest.approx(used - used_first, rel=0.1)


def test_what_turns_cost_is_charged_and_what_costs_too_much_gives_way(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamll.monitors.agent.DECIDE_EVERY", 0.05)
    before = budget.costs.read().get(MEMORY, 0)
    task = Busy(seconds=0.005, every=0.01)
    with streamll.testing.capture() as events:
        agent.add(task)
        assert wait_until(lambda: agent.stats().changes >= 2)
        stats = agent.stats()
        agent.remove(task)
    assert budget.costs.read()[MEMORY] - before >= task.turns * 5_000_000
    assert agent.stats().seconds[MEMORY] >= task.turns * 0.005
    assert stats.share > stats.target == 0.02
    assert stats.allowance != Allowance()
    assert wait_until(lambda: not agent.running)
    assert budget.allowance == Allowance(), "nobody is there any more to take a step back"
    first = events.of_type("streamll.overhead")[0]
    assert first.level == "warning"
    assert first.data["sampling"] == 2
    assert first.data["share"] > first.data["target"] == 0.02
    assert AGENT in stats.seconds
    assert streamll.stats().monitoring["monitoring"].seconds[MEMORY] >= stats.seconds[MEMORY]


def test_a_target_can_be_set(agent: Agent) -> None:
    agent.target = 0.5
    assert agent.target == agent.stats().target == 0.5


def test_many_threads_that_add_and_remove_leave_nothing_behind(agent: Agent) -> None:
    tasks = [Busy() for _ in range(8)]

    def storm(task: Busy) -> None:
        for _ in range(20):
            agent.add(task, due=monotonic())
            agent.remove(task)

    threads = [threading.Thread(target=storm, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wait_until(lambda: not agent.running)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_has_a_thread_of_its_own() -> None:
    script = """
import os, threading
from streamll.monitors.agent import agent
turns, forked = threading.Semaphore(0), threading.Event()
class Task:
    tool = "memory"
    def tick(self, now):
        turns.release()
        forked.wait(30)  # the fork comes in the middle of a turn
        return now + 0.001
agent.add(Task())
assert turns.acquire(timeout=30)
if os.fork() == 0:
    os._exit(0 if turns.acquire(timeout=30) and agent.running else 1)
forked.set()
_, status = os.wait()
print(os.waitstatus_to_exitcode(status), turns.acquire(timeout=30))
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    flags = ["-W", "ignore::DeprecationWarning"]  # of forking a process that has threads
    done = subprocess.run(
        [sys.executable, *flags, "-c", script], capture_output=True, text=True, timeout=60, env=environ
    )
    assert (done.stdout, done.stderr) == ("0 True\n", "")
