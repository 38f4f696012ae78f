"""ActionProfiler: no call is lost, each second is counted once, and what is decorated stays in all else what it was."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from streamll.monitors.action_profiler import ActionProfiler
from streamll.monitors.profiling.frame_owners import marked
from tests.fixtures.waiting import wait_until
from tests.monitors import known_shares
from tests.monitors.profiling import counting, row


@pytest.fixture
def profiler() -> Iterator[ActionProfiler]:
    with counting() as made:
        yield made


class TestKinds:
    """What may be decorated, and that nobody else can tell."""

    def test_function_keeps_name_signature_and_result(self, profiler: ActionProfiler) -> None:
        def add(one: int, *, other: int = 2) -> int:
            """Add."""
            return one + other

        wrapped = profiler.profile(add)
        assert wrapped(1, other=5) == 6
        assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("add", "Add.", add)  # type: ignore[attr-defined]  # functools.wraps
        assert inspect.signature(wrapped) == inspect.signature(add)
        assert row(profiler, f"{__name__}.{add.__qualname__}")["calls"] == 1

    def test_methods_of_all_kinds_and_properties(self, profiler: ActionProfiler) -> None:
        profile = profiler.profile

        class Thing:
            @profile("method")
            def method(self, n: int) -> int:
                return n

            @profile("class")
            @classmethod
            def of_class(cls) -> str:
                return cls.__name__

            @staticmethod
            @profile("static")
            def static(n: int) -> int:
                return -n

            @property
            @profile("get")
            def value(self) -> int:
                return 1

            @profile("both")  # type: ignore[prop-decorator]  # mypy does not support what Python does
            @property
            def other(self) -> int:
                return 2

            @other.setter
            def other(self, _: int) -> None:
                pass

            @profile("cached")  # type: ignore[prop-decorator]  # as above
            @functools.cached_property
            def cached(self) -> int:
                return 3

        class More(Thing):
            pass

        thing = More()
        assert (thing.method(4), More.of_class(), thing.of_class(), Thing.static(2)) == (4, "More", "More", -2)
        assert (thing.value, thing.other, thing.cached, thing.cached) == (1, 2, 3, 3)
        thing.other = 4
        calls = {name: each["calls"] for name, each in profiler.get_profile_data()["profiles"].items()}
        assert calls == {"method": 1, "class": 2, "static": 1, "get": 1, "both": 1, "cached": 1}

    def test_coroutine_is_one_and_waiting_is_its_own_time(self, profiler: ActionProfiler) -> None:
        @profiler.profile("inner")
        async def inner() -> None:
            known_shares.burn("inner", 0.01)
            await asyncio.sleep(0.03)

        @profiler.profile("outer")
        async def outer() -> str:
            known_shares.burn("outer", 0.01)
            await inner()
            await asyncio.sleep(0.03)
            return "done"

        assert inspect.iscoroutinefunction(outer)
        assert asyncio.run(outer()) == "done"
        data = profiler.get_profile_data()
        inside, outside = data["profiles"]["inner"], data["profiles"]["outer"]
        assert 0.04 <= inside["wall_time"] <= outside["wall_time"] - 0.04
        assert outside["self_time"] == pytest.approx(outside["wall_time"] - inside["wall_time"], abs=0.02)
        assert data["total_time"] == pytest.approx(outside["wall_time"], abs=0.02)
        assert 0.01 <= inside["cpu_time"] < 0.03  # not of the time it waited
        assert outside["cpu_time"] >= 0.02

    def test_concurrent_tasks_do_not_get_each_others_time(self, profiler: ActionProfiler) -> None:
        @profiler.profile("sync")
        def sync() -> None:
            known_shares.burn("sync", 0.002)

        @profiler.profile("task")
        async def task(n: int) -> None:
            for _ in range(3):
                sync()
                await asyncio.sleep(0)

        async def main() -> None:
            await asyncio.gather(*(task(n) for n in range(5)))

        asyncio.run(main())
        data = profiler.get_profile_data()
        assert (data["profiles"]["task"]["calls"], data["profiles"]["sync"]["calls"]) == (5, 15)
        assert data["profiles"]["sync"]["wall_time"] >= 0.03
        assert all(0 <= each["self_time"] <= each["wall_time"] for each in data["profiles"].values())

    def test_generator_counts_its_steps_and_not_its_consumer(self, profiler: ActionProfiler) -> None:
        @profiler.profile("numbers")
        def numbers(n: int) -> Generator[int, int | None, int]:
            got = 0
            for each in range(n):
                known_shares.burn("generator", 0.002)
                got += (yield each) or 0
            return got

        @profiler.profile("consumer")
        def consume() -> Any:
            generator = numbers(3)
            next(generator)
            known_shares.burn("consumer", 0.02)
            assert generator.send(5) == 1
            next(generator)
            with pytest.raises(StopIteration) as stop:
                next(generator)
            return stop.value.value

        assert inspect.isgeneratorfunction(numbers)
        assert consume() == 5
        data = profiler.get_profile_data()["profiles"]
        assert 0.006 <= data["numbers"]["wall_time"] <= data["consumer"]["wall_time"] - 0.02
        assert data["consumer"]["self_time"] == pytest.approx(
            data["consumer"]["wall_time"] - data["numbers"]["wall_time"], abs=0.005
        )

    def test_generator_that_is_not_wanted_any_more_is_no_error(self, profiler: ActionProfiler) -> None:
        closed = []

        @profiler.profile("endless")
        def endless() -> Iterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append(True)

        for _ in endless():
            break
        gc.collect()
        assert closed == [True]
        found = row(profiler, "endless")
        assert (found["calls"], found["errors"], found["active"]) == (1, 0, 0)

    def test_async_generator(self, profiler: ActionProfiler) -> None:
        @profiler.profile("stream")
        async def stream() -> AsyncIterator[int]:
            for n in range(3):
                await asyncio.sleep(0.005)
                yield n

        async def main() -> list[int]:
            found = []
            async for n in stream():
                await asyncio.sleep(0.02)
                found.append(n)
            return found

        assert inspect.isasyncgenfunction(stream)
        began = time.perf_counter()
        assert asyncio.run(main()) == [0, 1, 2]
        elapsed = time.perf_counter() - began
        found = row(profiler, "stream")
        assert found["calls"] == 1
        assert 0.015 <= found["wall_time"] <= elapsed - 0.06  # without its consumer

    @pytest.mark.parametrize("what", [int, 3, None])
    def test_others_are_refused(self, profiler: ActionProfiler, what: Any) -> None:
        with pytest.raises(TypeError, match="profile decorates functions, methods and properties, not"):
            profiler.profile(what)

    def test_callable_objects_and_partials(self, profiler: ActionProfiler) -> None:
        class Model:
            def __call__(self, n: int) -> int:
                return n + 1

        assert profiler.profile(Model())(1) == 2
        assert profiler.profile(functools.partial(pow, 2))(3) == 8
        assert {
            name.split(".")[-1]: each["calls"] for name, each in profiler.get_profile_data()["profiles"].items()
        } == {
            "Model": 1,
            "pow": 1,
        }


class TestCounting:
    def test_recursion_counts_calls_and_its_time_once(self, profiler: ActionProfiler) -> None:
        @profiler.profile("down")
        def down(n: int) -> None:
            known_shares.burn("down", 0.002)
            if n:
                down(n - 1)

        began = time.perf_counter()
        down(9)
        elapsed = time.perf_counter() - began
        found = row(profiler, "down")
        assert found["calls"] == 10
        assert 0.02 <= found["wall_time"] <= elapsed
        assert found["self_time"] == pytest.approx(found["wall_time"], abs=0.003)
        assert found["max"] == pytest.approx(found["wall_time"])

    def test_errors_pass_untouched_and_are_counted(self, profiler: ActionProfiler) -> None:
        error = KeyError("x")

        @profiler.profile("failing")
        def failing() -> None:
            raise error

        @profiler.profile("cancelled")
        async def cancelled() -> None:
            await asyncio.sleep(60)

        @profiler.profile("failing later")
        async def failing_later() -> None:
            await asyncio.sleep(0)
            raise error

        async def main() -> None:
            task = asyncio.ensure_future(cancelled())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(KeyError):
                await failing_later()

        with pytest.raises(KeyError) as raised:
            failing()
        assert raised.value is error
        asyncio.run(main())
        counts = {
            name: (each["calls"], each["errors"]) for name, each in profiler.get_profile_data()["profiles"].items()
        }
        assert counts == {"failing": (1, 1), "cancelled": (1, 0), "failing later": (1, 1)}

    def test_a_tree_of_calls_adds_up(self, profiler: ActionProfiler) -> None:
        @profiler.profile("leaf")
        def leaf() -> None:
            known_shares.burn("leaf", 0.001)

        @profiler.profile("middle")
        def middle() -> None:
            leaf()
            with profiler.profile_action("block"):
                known_shares.burn("block", 0.001)
                leaf()

        @profiler.profile("root")
        def root() -> None:
            for _ in range(5):
                middle()

        began = time.perf_counter()
        root()
        elapsed = time.perf_counter() - began
        data = profiler.get_profile_data()
        profiles = data["profiles"]
        assert {name: each["calls"] for name, each in profiles.items()} == {
            "leaf": 10,
            "middle": 5,
            "block": 5,
            "root": 1,
        }
        assert data["total_calls"] == 21
        assert sum(each["self_time"] for each in profiles.values()) == pytest.approx(data["total_time"])
        assert data["total_time"] == pytest.approx(profiles["root"]["wall_time"])
        assert data["total_time"] <= elapsed
        assert 0.005 <= profiles["block"]["self_time"] <= profiles["block"]["wall_time"] - 0.005
        assert (
            0.001
            <= profiles["leaf"]["min"]
            <= profiles["leaf"]["p50"]
            <= profiles["leaf"]["p99"]
            <= profiles["leaf"]["max"]
        )

    @pytest.mark.concurrent
    def test_no_call_is_lost_between_threads_and_readers(self, profiler: ActionProfiler) -> None:
        @profiler.profile("inner")
        def inner() -> None:
            pass

        @profiler.profile("outer")
        def outer() -> None:
            inner()

        def call() -> None:
            for _ in range(1000):
                outer()

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=call) for _ in range(8)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                profiler.get_profile_data()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
        data = profiler.get_profile_data()
        assert {name: each["calls"] for name, each in data["profiles"].items()} == {"inner": 8000, "outer": 8000}
        assert data["total_time"] == pytest.approx(data["profiles"]["outer"]["wall_time"])
        assert len(profiler._recorder.action("inner").notes) < 64

    def test_nor_when_a_signal_handler_comes_between(self, profiler: ActionProfiler) -> None:
        @profiler.profile("work")
        def work() -> None:
            pass

        heard = 0

        def handler(*_: object) -> None:
            nonlocal heard
            heard += 1
            work()
            profiler.get_profile_data()

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            calls = 0
            while heard < 20:
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)).start()
                for _ in range(300):
                    work()
                    calls += 1
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert row(profiler, "work")["calls"] == calls + heard

    def test_calls_that_never_return_are_seen(self, profiler: ActionProfiler) -> None:
        done = threading.Event()

        @profiler.profile("stuck")
        def stuck() -> None:
            done.wait()

        @profiler.profile("waiting")
        async def waiting() -> None:
            await asyncio.sleep(0.2)

        async def look() -> int:
            task = asyncio.ensure_future(waiting())
            await asyncio.sleep(0.01)
            active: int = row(profiler, "waiting")["active"]
            await task
            return active

        threads = [threading.Thread(target=stuck) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert wait_until(
            lambda: row(profiler, "stuck")["active"] == 3 and row(profiler, "stuck")["active_time"] > 0.02
        )
        assert row(profiler, "stuck")["calls"] == 0
        assert asyncio.run(look()) == 1
        done.set()
        for thread in threads:
            thread.join()
        found = row(profiler, "stuck")
        assert (found["calls"], found["active"], found["active_time"]) == (3, 0, 0.0)
        assert profiler.stats().active == 0

    @pytest.mark.parametrize("cpu", ["off", "sampled", "all"])
    def test_processor_time_is_told_apart_from_waiting(self, cpu: str) -> None:
        with ActionProfiler(sampler="off", cpu=cpu) as profiler:

            @profiler.profile("half")
            def half() -> None:
                known_shares.burn("half", 0.001)
                time.sleep(0.001)

            for _ in range(33):
                half()
        found = row(profiler, "half")
        assert found["cpu_calls"] == {"off": 0, "sampled": 3, "all": 33}[cpu]
        if cpu == "off":
            assert found["cpu_time"] is None
        else:
            least = 0.033 if cpu == "all" else 0.003  # from three calls of 33 it is an estimate
            assert least <= found["cpu_time"] < found["wall_time"]

    def test_names_beyond_the_bound_share_one(self) -> None:
        with ActionProfiler(sampler="off", max_actions=3) as profiler:
            for n in range(10):
                with profiler.profile_action(f"action {n}"):
                    pass
        calls = {name: each["calls"] for name, each in profiler.get_profile_data()["profiles"].items()}
        assert calls == {"action 0": 1, "action 1": 1, "action 2": 1, "(other actions)": 7}
        assert profiler.stats().other_actions == 7

    def test_nothing_is_counted_while_it_is_not_started(self) -> None:
        profiler = ActionProfiler(sampler="off")

        @profiler.profile("f")
        def f() -> None:
            pass

        f()
        with profiler.profile_action("f"):
            profiler.start()
        assert profiler.get_profile_data()["profiles"] == {}
        f()
        profiler.stop()
        profiler.stop()
        f()
        assert row(profiler, "f")["calls"] == 1
        with profiler:
            f()
        assert row(profiler, "f")["calls"] == 2
        profiler.reset()
        assert profiler.get_profile_data() == {"profiles": {}, "total_calls": 0, "total_time": 0.0, "sessions": []}

    def test_what_is_decorated_again_and_again_takes_no_more_room(self, profiler: ActionProfiler) -> None:
        for _ in range(50):

            @profiler.profile("closure")
            def closure() -> None:
                pass

            closure()
        assert row(profiler, "closure")["calls"] == 50
        assert [name for _, name in marked.values()].count("closure") == 1

    def test_what_is_not_held_any_more_leaves_nothing(self) -> None:
        gc.collect()
        before = len(marked)

        def use() -> None:
            with ActionProfiler(sampler="off") as profiler:
                profiler.profile("gone")(threading.get_ident)()

        use()
        gc.collect()
        assert len(marked) == before
