"""The scope goes along into threads, by asking for it once; the processes' part is in tests/integration."""

from __future__ import annotations

import asyncio
import multiprocessing.pool
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from streamll.context import ROOT, bind, bind_context, current
from streamll.errors import ConfigurationError
from streamll.models import StreamllEvent
from streamll.monitors.propagate import Carried, Propagator, propagate
from streamll.spans import span


def here(*_: object) -> tuple[str, dict[str, Any]]:
    scope = current()
    return scope.span_id, dict(scope.attributes)


class TestThreads:
    def test_belong_to_the_span_that_something_was_handed_over_in(self, events: list[StreamllEvent]) -> None:
        with propagate() as propagator, ThreadPoolExecutor(1) as pool, multiprocessing.pool.ThreadPool(1) as old_pool:
            assert pool.submit(here).result() == ("", {})
            with span("request") as request, bind(user=5):
                there = request.span_id, {"user": 5}
                assert pool.submit(here).result() == there
                assert list(pool.map(here, "ab")) == [there, there]
                assert old_pool.apply(here) == old_pool.apply_async(func=here).get() == there
                assert old_pool.map(here, "ab") == list(old_pool.imap(here, "ab")) == [there, there]
                assert old_pool.starmap(here, ["ab"]) == [there]
            with pytest.raises(ZeroDivisionError):
                pool.submit(lambda: 1 / 0).result()
            assert pool.submit(here).result() == ("", {})
            with span("fails"), pytest.raises(TypeError, match="submit"):
                pool.submit()  # type: ignore[call-arg]
        assert propagator.stats().calls == propagator.report()["calls"] == 8

    def test_of_a_loop_too(self, events: list[StreamllEvent]) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with span("request") as request:
                assert (await loop.run_in_executor(None, here))[0] == request.span_id
                with span("inner") as inner:
                    both = asyncio.gather(loop.run_in_executor(None, here), asyncio.to_thread(here))
                assert {found[0] for found in await both} == {inner.span_id}

        with propagate():
            asyncio.run(main())

    def test_without_it_one_function_can_be_bound(self, events: list[StreamllEvent]) -> None:
        async def main(pool: Executor) -> None:
            with span("request") as request:
                bound = bind_context(here)
                assert pool.submit(bound).result()[0] == request.span_id
                loop = asyncio.get_running_loop()
                assert (await loop.run_in_executor(pool, bound))[0] == request.span_id
                assert (await loop.run_in_executor(pool, here))[0] == ""

        with ThreadPoolExecutor(1) as pool:
            asyncio.run(main(pool))


class TestTool:
    def test_puts_everything_back(self) -> None:
        methods = [(ThreadPoolExecutor, "submit"), (multiprocessing.pool.Pool, "map"), (BaseProcess, "start")]
        before = [vars(owner)[name] for owner, name in methods]
        propagator = Propagator(processes=False)
        for _ in range(2):
            assert propagator.start() is propagator.start()
            assert [vars(owner)[name] is not found for (owner, name), found in zip(methods, before, strict=True)] == [
                True,
                False,
                False,
            ]
            stopper = threading.Thread(target=propagator.stop)
            stopper.start()
            stopper.join()
            propagator.stop()
            assert [vars(owner)[name] for owner, name in methods] == before
        assert propagator.stats().changed == 0
        propagator.reset()

    def test_two_at_once_carry_once(self, events: list[StreamllEvent]) -> None:
        before = ThreadPoolExecutor.submit
        with ThreadPoolExecutor(1) as pool, propagate() as outer, propagate() as inner, span("request") as request:
            assert pool.submit(here).result()[0] == request.span_id
        assert (outer.stats().calls, inner.stats().calls) == (0, 1)
        assert ThreadPoolExecutor.submit is before

    def test_leaves_what_somebody_else_has_put_there(
        self, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = ThreadPoolExecutor.submit
        monkeypatch.setattr(ThreadPoolExecutor, "submit", original)  # puts it back afterwards
        propagator = propagate()
        ours = ThreadPoolExecutor.submit

        def theirs(self: Any, *args: Any) -> Any:
            return ours(self, *args)

        monkeypatch.setattr(ThreadPoolExecutor, "submit", theirs)
        propagator.stop()
        assert vars(ThreadPoolExecutor)["submit"] is theirs
        assert propagator.stats().changed == 1
        with ThreadPoolExecutor(1) as pool, span("request"):
            assert pool.submit(here).result() == ("", {})

    def test_unknown_options(self) -> None:
        with pytest.raises(ConfigurationError, match="propagator unknown option"):
            propagate(fibers=True)

    def test_a_function_runs_in_its_scope_and_nothing_stays(self, events: list[StreamllEvent]) -> None:
        with span("request") as request:
            carried = Carried(here, current())
        with span("elsewhere") as elsewhere:
            assert carried()[0] == request.span_id
            assert current().span_id == elsewhere.span_id
        assert current() is ROOT
