"""The sampler's answer, judged by programs that know the true one; and that it does its host no harm."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from streamll.api import configure
from streamll.hub import hub
from streamll.monitors.budget import Allowance, budget
from streamll.monitors.loops.tasks import task_here
from streamll.monitors.profiling.prof_timer import ProfTimer
from streamll.monitors.profiling.stacks import by_owner
from streamll.monitors.profiling.thread_clocks import HAVE_CLOCKS
from streamll.monitors.stack_sampler import SIGNAL, StackSampler
from tests.fixtures.waiting import wait_until
from tests.monitors import known_shares

needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no ITIMER_PROF")
needs_clocks = pytest.mark.skipif(not HAVE_CLOCKS, reason="threads have no clocks here")

FAST = 0.002


@pytest.fixture(autouse=True)
def truth() -> Iterator[dict[str, float]]:
    known_shares.TRUTH.clear()
    yield known_shares.TRUTH
    assert hub.frames is None
    assert not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def sampled(
    by_signal: bool, what: Callable[..., None], *args: object, mode: str = "cpu", clocks: bool = HAVE_CLOCKS
) -> tuple[StackSampler, known_shares.Weighed]:
    stacks = known_shares.Weighed()
    sampler = StackSampler(mode, FAST, by_signal, stacks, clocks)
    sampler.start()
    try:
        assert not by_signal or sampler.stats().way == SIGNAL, sampler.stats()
        what(*args)
    finally:
        sampler.stop()
    assert sampler.stats().errors == 0
    return sampler, stacks


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """The sampling thread waits for 1 ms rather than for 5, so that there are more samples to judge by."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    yield
    sys.setswitchinterval(before)


WAYS = pytest.mark.parametrize(
    "by_signal", [pytest.param(True, marks=needs_timer, id="signal"), pytest.param(False, id="agent")]
)


class TestOracle:
    @WAYS
    def test_main_thread(self, by_signal: bool, truth: dict[str, float]) -> None:
        """Plain functions, recursion, a generator, and calls into C that hold the interpreter's lock."""
        sampler, stacks = sampled(by_signal, known_shares.work, 0.4)
        assert set(truth) == {"half", "third", "rest", "recursive", "generated", "holding_the_lock"}
        assert 0.3 < known_shares.judge(stacks, truth) < 0.45
        assert bool(sampler.stats().ticks_by_signal) == by_signal

    @WAYS
    @pytest.mark.usefixtures("quick_switches")
    def test_threads_while_the_main_thread_waits(self, by_signal: bool, truth: dict[str, float]) -> None:
        def run() -> None:
            for thread in known_shares.in_threads(0.24, 0.12):
                thread.join()

        sampler, stacks = sampled(by_signal, run)
        seen = known_shares.judge(stacks, truth)
        known_shares.judge(stacks, {"worker-0": 0.24, "worker-1": 0.12}, by="thread")
        assert seen < 0.41
        assert sampler.stats().unseen_seconds == pytest.approx(0.36 - seen, abs=0.1)

    @WAYS
    def test_tasks(self, by_signal: bool, truth: dict[str, float]) -> None:
        # The loop lets others run between any two steps, and only a step of 5 ms is interrupted for the agent's thread.
        _, stacks = sampled(by_signal, known_shares.tasks, 0.3, 0.0 if by_signal else 0.006)
        known_shares.judge(stacks, truth)
        known_shares.judge(stacks, {"light_task": truth["light"], "heavy_task": truth["heavy"]}, by="task")

    @pytest.mark.usefixtures("quick_switches")
    def test_threads_that_have_no_clock(self, truth: dict[str, float]) -> None:
        _, stacks = sampled(False, known_shares.work, 0.25, clocks=False)
        known_shares.judge(stacks, truth)

    def test_time_by_the_clock_has_waiting_in_it(self) -> None:
        def work_and_wait() -> None:
            known_shares.half(0.1)
            began = time.monotonic()
            threading.Event().wait(0.2)
            waited.append(time.monotonic() - began)

        waited: list[float] = []
        sampler, _ = sampled(False, work_and_wait, mode="wall")
        samples = sampler.read()
        waiting = sum(
            each.wall_ns
            for each in samples.samples
            if not each.cpu_ns
            and "work_and_wait"
            in {samples.functions[place].name.split(".")[-1] for place in samples.stacks[each.stack]}
        )
        assert waiting / 1e9 == pytest.approx(waited[0], abs=0.05 + 0.1 * waited[0])


class TestWhose:
    @needs_timer
    def test_a_span_and_its_end(self) -> None:
        import streamll

        configure("memory://")
        try:

            def run() -> None:
                with streamll.span("outer"):
                    known_shares.half(0.15)
                    with streamll.span("inner"):
                        known_shares.half(0.3)
                known_shares.half(0.15)

            sampler, _ = sampled(True, run)
            here = threading.current_thread().name
            rows = [row for row in by_owner(sampler.read()) if row["thread"] == here]
            owners = {row["operation"]: row["seconds"] for row in rows}
        finally:
            streamll.shutdown()
        assert owners["inner"] < 0.45
        assert min(owners[operation] for operation in ("inner", "outer", "")) > 0.01

    def test_a_task_whose_loop_has_no_frame(self) -> None:
        async def asking() -> str:
            return task_here()

        assert asyncio.run(asking()).endswith("asking")
        assert task_here() == ""


class TestThreads:
    @needs_clocks
    def test_that_are_idle_cost_no_walk(self) -> None:
        done = threading.Event()
        threads = [threading.Thread(target=done.wait) for _ in range(40)]
        for thread in threads:
            thread.start()
        sampler = StackSampler("wall", FAST)
        sampler.start()
        try:
            assert wait_until(lambda: sampler.stats().idle > 200)
        finally:
            sampler.stop()
            done.set()
            for thread in threads:
                thread.join()
        stats = sampler.stats()
        assert stats.deferred > 0
        assert stats.looks <= 25 * (stats.ticks + 1)
        assert stats.seen_seconds < 0.2

    def test_that_come_and_go_leave_nothing(self) -> None:
        sampler = StackSampler("cpu", FAST, by_signal=False)
        sampler.start()
        try:
            for n in range(30):
                thread = threading.Thread(target=known_shares.half, args=(0.003,), name=f"short-{n}")
                thread.start()
                thread.join()
            ticks = sampler.stats().ticks
            assert wait_until(lambda: sampler.stats().ticks > ticks)
            assert len(sampler._looks) <= threading.active_count() + 1
        finally:
            sampler.stop()
        stats = sampler.stats()
        assert stats.seen_seconds + stats.unseen_seconds > 0.07

    def test_may_start_and_stop_it_as_they_like(self) -> None:
        sampler = StackSampler("cpu", FAST)

        def play() -> None:
            for _ in range(20):
                sampler.start()
                sampler.stats()
                sampler.read()
                sampler.stop()

        threads = [threading.Thread(target=play) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sampler.stop()
        assert not sampler.running
        assert sampler.stats().errors == 0


@needs_timer
class TestSignal:
    def test_is_as_it_was_afterwards(self) -> None:
        sampled(True, known_shares.half, 0.02)
        assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL
        assert "hooked" not in f"{signal.signal!r} {os.execv!r}"

    @pytest.mark.parametrize("how", ["handler", "timer"])
    def test_is_left_to_the_host_that_wants_it(self, how: str) -> None:
        heard: list[int] = []
        sampler = StackSampler("cpu", FAST)
        sampler.start()
        try:
            if how == "timer":
                signal.setitimer(signal.ITIMER_PROF, 0.005, 0.005)
                assert signal.getitimer(signal.ITIMER_PROF)[1] == pytest.approx(0.005, abs=0.003)
            signal.signal(signal.SIGPROF, lambda *_: heard.append(1))
            if how == "handler":
                assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)

            def is_heard() -> bool:
                known_shares.half(0.05)
                return len(heard) > 1

            # One that was on its way when the handler changed may still arrive.
            assert wait_until(is_heard) if how == "timer" else not is_heard()
            assert sampler.stats().way == "agent"
            assert "SIGPROF" in sampler.stats().why or "ITIMER_PROF" in sampler.stats().why
            ticks = sampler.stats().ticks
            assert wait_until(lambda: sampler.stats().ticks > ticks + 2)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            sampler.stop()
            assert signal.getsignal(signal.SIGPROF) not in (signal.SIG_DFL, signal.SIG_IGN)
            signal.signal(signal.SIGPROF, signal.SIG_IGN)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)

    @pytest.mark.parametrize("how", ["the host's", "stopped"])
    def test_that_is_not_ours_any_more_is_not_set_by_the_agent_at_the_same_moment(self, how: str) -> None:
        intervals = itertools.cycle([1000.0, 2000.0])
        timer = ProfTimer(lambda _: None)
        over = threading.Event()

        def keep() -> None:
            while not over.is_set():
                timer.keep(next(intervals))

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        agent = threading.Thread(target=keep)
        agent.start()
        try:
            for _ in range(2000):
                assert timer.arm(next(intervals)) == ""
                if how == "stopped":
                    timer.disarm()
                    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
                else:
                    signal.setitimer(signal.ITIMER_PROF, 500.0, 500.0)
                    assert signal.getitimer(signal.ITIMER_PROF)[1] == pytest.approx(500.0)
                    signal.setitimer(signal.ITIMER_PROF, 0.0)
                    timer.disarm()
        finally:
            over.set()
            agent.join()
            sys.setswitchinterval(before)
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            timer.disarm()
            signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def test_of_the_host_is_never_taken(self) -> None:
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        try:
            sampler = StackSampler("cpu", FAST)
            sampler.start()
            assert sampler.stats().way == "agent"
            assert sampler.stats().why == "SIGPROF has a handler"
            sampler.stop()
            assert signal.getsignal(signal.SIGPROF) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)

    @pytest.mark.parametrize("name", ["gevent", "uwsgi"])
    def test_is_not_used_beside_hosts_that_would_not_bear_it(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
        sampler = StackSampler("cpu", FAST)
        sampler.start()
        assert (sampler.stats().way, sampler.stats().why) == ("agent", f"{name} is in use")
        sampler.stop()

    def test_does_not_interrupt_a_system_call_of_the_hosts(self) -> None:
        """Not one that a library in C makes, which may not know what to do then."""
        libc = ctypes.CDLL(None, use_errno=True)
        reader, writer = os.pipe()
        main = threading.get_ident()

        def interrupt_and_write() -> None:
            for _ in range(3):
                time.sleep(0.01)
                signal.pthread_kill(main, signal.SIGPROF)
            time.sleep(0.01)
            os.write(writer, b"x")

        sampler = StackSampler("cpu", FAST)
        sampler.start()
        try:
            thread = threading.Thread(target=interrupt_and_write)
            thread.start()
            assert libc.read(reader, ctypes.create_string_buffer(1), 1) == 1, os.strerror(ctypes.get_errno())
            thread.join()
        finally:
            sampler.stop()
            os.close(reader)
            os.close(writer)

    def test_at_the_end_of_the_stack_hurts_neither_side(self) -> None:
        def down(n: int) -> int:
            return 0 if not n else 1 + down(n - 1)

        sampler = StackSampler("cpu", FAST)
        sampler.start()
        try:
            until = time.thread_time() + 0.15
            while time.thread_time() < until:
                with suppress(RecursionError):
                    down(10**6)
            before = sampler.stats()

            def goes_on() -> bool:
                known_shares.half(0.01)
                now = sampler.stats()
                return now.ticks_by_signal > before.ticks_by_signal and now.looks > before.looks

            assert wait_until(goes_on)
        finally:
            sampler.stop()
        assert sampler.stats().errors == 0

    def test_comes_less_often_while_monitoring_costs_too_much(self) -> None:
        sampler = StackSampler("cpu", FAST)
        sampler.start()

        def is_slower() -> bool:
            budget.allowance = Allowance(sampling=8)
            return signal.getitimer(signal.ITIMER_PROF)[1] > 4 * FAST

        try:
            assert signal.getitimer(signal.ITIMER_PROF)[1] == pytest.approx(FAST, rel=0.5)
            assert wait_until(is_slower)
        finally:
            budget.allowance = Allowance()
            sampler.stop()

    def test_serves_one_sampler_of_two(self) -> None:
        one, other = StackSampler("cpu", FAST), StackSampler("cpu", FAST)
        one.start()
        other.start()
        try:
            known_shares.half(0.05)
            assert (one.stats().way, other.stats().way) == ("signal", "agent")
            one.stop()
            assert hub.frames is not None
        finally:
            one.stop()
            other.stop()


PROGRAM = """
import os, signal, sys, time
from streamll.monitors.stack_sampler import StackSampler

def burn(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass

sampler = StackSampler("cpu", 0.002)
sampler.start()
burn(0.05)
assert sampler.stats().ticks_by_signal, sampler.stats()
"""

BURN = "import time\nwhile time.process_time() < 0.15: pass\nprint('alive')"


def run(program: str, expected: int = 0) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, env=environ)
    assert done.returncode == expected, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@needs_timer
class TestProcesses:
    def test_a_bare_timer_would_kill_the_next_program(self) -> None:
        program = "import os, signal, sys; signal.signal(signal.SIGPROF, lambda *_: 0)\n"
        program += "signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)\n"
        run(f"{program}os.execv(sys.executable, [sys.executable, '-c', {BURN!r}])", -signal.SIGPROF)

    @pytest.mark.parametrize(
        "leave",
        [
            f"os.execv(sys.executable, [sys.executable, '-c', {BURN!r}])",
            f"""
os.environ['PATH'] = '/nowhere:' + os.path.dirname(sys.executable)
os.execlp(os.path.basename(sys.executable), 'python', '-c', {BURN!r})
""",
        ],
        ids=["execv", "execlp"],
    )
    def test_another_program_in_the_place_of_this_one_lives(self, leave: str) -> None:
        assert run(PROGRAM + leave) == "alive\n"

    def test_an_exec_that_fails_costs_a_second_of_signals(self) -> None:
        program = """
try: os.execv("/nowhere/at-all", ["x"])
except FileNotFoundError: pass
assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
from time import monotonic
until = monotonic() + 20
while signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0) and monotonic() < until: time.sleep(0.05)
print(sampler.stats().way, signal.getitimer(signal.ITIMER_PROF)[1] > 0)
"""
        assert run(PROGRAM + program) == "signal True\n"

    def test_a_forked_child_samples_itself(self) -> None:
        program = """
pid = os.fork()
if not pid:
    def in_child(): burn(0.2)
    in_child()
    seen = {sample for sample in sampler.read().samples}
    functions = {function.name for function in sampler.read().functions}
    stats = sampler.stats()
    os._exit(0 if stats.ticks_by_signal > 3 and "in_child" in functions and stats.seen_seconds < 0.6 else 1)
print(os.waitpid(pid, 0)[1])
"""
        assert run(PROGRAM + program) == "0\n"

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="all interpreters share one lock")
    def test_frames_of_other_interpreters_are_not_touched(self) -> None:
        program = """
from streamll.monitors.profiling import interpreters
module = interpreters._module()
before = sampler.stats().ticks
sampler.stop()
other = module.create()
sampler.start()
print(sampler.running, sampler.stats().why)
"""
        assert run(PROGRAM + program) == "False another interpreter runs in the process\n"
