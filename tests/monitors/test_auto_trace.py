"""Automatic tracing: that it makes the spans that decorating makes, and leaves everything as it was."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamll.context import ROOT, current
from streamll.errors import ConfigurationError
from streamll.hub import hub
from streamll.models import StreamllEvent
from streamll.monitors.agent import agent
from streamll.monitors.auto_trace import AutoTracer, AutoTracerOptions
from streamll.monitors.budget import Allowance, budget
from streamll.monitors.tracing.wrapping import MEASURE_EVERY
from streamll.spans import span
from streamll.tracing import trace
from tests.fixtures.waiting import wait_until

ENGINES = ["wrapping", "monitoring"] if sys.version_info >= (3, 12) else ["wrapping"]
engines = pytest.mark.parametrize("engine", ENGINES)

SHOP = '''
"""A module as users write them."""
import functools
import streamll

def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

def price(n):
    return n * 2

@logged
def decorated(n):
    return price(n)

@functools.lru_cache
def cached(n):
    return n

def counted(n):
    for i in range(n):
        yield price(i)

async def fetched(n):
    return price(n)

def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

def forever(waiting):
    waiting()
    return price(1)

@streamll.trace("by hand")
def by_hand():
    return price(2)

class Basket:
    def __init__(self):
        self.items = [1]
    def total(self):
        return sum(price(n) for n in self.items)
    @classmethod
    def empty(cls):
        return cls()
    @staticmethod
    def tax(n):
        return n
    @property
    def first(self):
        """The first."""
        return self.items[0]
    @first.setter
    def first(self, n):
        self.items[0] = n
    class Inner:
        def deep(self):
            return 1

class Strict(type):
    def __setattr__(cls, name, value):
        raise AttributeError(name)
    def __getattribute__(cls, name):
        raise RuntimeError("no code of mine is to run")

class Sealed(metaclass=Strict):
    def open(self):
        return "open"

alias = price
'''


class Shops:
    """Modules with the same source, each under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def stock(self, source: str = SHOP) -> str:
        """Put one there that can be imported."""
        name = f"shop_{self.folder.name}_{len(self.names)}".replace("-", "_")
        (self.folder / f"{name}.py").write_text(source)
        self.names.append(name)
        importlib.invalidate_caches()
        return name

    def open(self) -> Any:
        return importlib.import_module(self.stock())


@pytest.fixture
def shops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shops]:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Shops(tmp_path)
    yield found
    for name in found.names:
        sys.modules.pop(name, None)


def told(events: list[StreamllEvent]) -> list[tuple[str, str, str, str]]:
    """Each span's function, what it is within, its level, and how else it ended."""
    by_id = {event.span_id: event.method_name for event in events}
    return [
        (
            event.method_name,
            by_id.get(event.parent_span_id, ""),
            event.data.get("error", {}).get("type", event.level),
            ", ".join(f"{name}={event.data[name]}" for name in ("items", "closed", "cancelled") if name in event.data),
        )
        for event in events
        if event.event_type == "span"
    ]


def program(seed: int) -> str:
    """A module of functions of all kinds that call each other, raise and stop early, the same for the same seed."""
    random = Random(seed)
    kinds = [random.choice(["plain", "generator", "coroutine", "async_generator"]) for _ in range(8)]
    lines = ["import asyncio", ""]

    def call(caller: str, n: int) -> list[str]:
        kind = kinds[n]
        if kind == "plain":
            return [f"f{n}()"]
        if kind == "generator":
            early = random.random() < 0.3
            return [f"for item in f{n}():", "    break" if early else "    pass"]
        if not caller.startswith(("coroutine", "async")):
            return ["pass"]
        if kind == "coroutine":
            return random.choice([[f"await f{n}()"], [f"await asyncio.gather(f{n}(), f{n}(), return_exceptions=True)"]])
        if random.random() < 0.3:
            return [f"items = f{n}()", "await items.__anext__()", "await items.aclose()"]
        return [f"async for item in f{n}():", "    pass"]

    for n, kind in reversed(list(enumerate(kinds))):
        body: list[str] = []
        for _ in range(random.randrange(1, 4)):
            pick = random.random()
            if pick < 0.12:
                body += [f"raise {random.choice(['ValueError', 'KeyError'])}({n})"]
            elif pick < 0.3 and "generator" in kind:
                body += [f"yield {n}"]
            elif pick < 0.4 and kind in ("coroutine", "async_generator"):
                body += ["await asyncio.sleep(0)"]
            elif n < 7:
                made = call(kind, random.randrange(n + 1, 8))
                if random.random() < 0.6:
                    made = ["try:", *(f"    {line}" for line in made)]
                    made += ["except (Exception, StopAsyncIteration):", "    pass"]
                body += made
        if "generator" in kind:
            body += [f"yield {n}"]
        head = "async def" if kind in ("coroutine", "async_generator") else "def"
        lines += [f"{head} f{n}():", *(f"    {line}" for line in body or ["pass"]), ""]
    lines += ["async def main():"]
    for n in range(8):
        made = call("coroutine", n)
        lines += ["    try:", *(f"        {line}" for line in made)]
        lines += ["    except (Exception, StopAsyncIteration):", "        pass"]
    return "\n".join(lines)


def run_as(source: str, tracer: AutoTracer | None) -> list[tuple[str, str, str, str]]:
    """Run a program as a module, watched by a tracer or else decorated, and return what it told."""
    events: list[StreamllEvent] = []

    def keep(event: StreamllEvent) -> bool:
        events.append(event)
        return True

    module = ModuleType("random_program")
    exec(source, module.__dict__)
    sys.modules[module.__name__] = module
    try:
        with hub.instead(keep):
            if tracer is None:
                decorate(module)
                asyncio.run(module.main())
            else:
                with tracer:
                    asyncio.run(module.main())
                assert tracer.stats().unfinished == tracer.stats().errors == 0
    finally:
        del sys.modules[module.__name__]
    return told(events)


def decorate(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if inspect.isfunction(value):
            setattr(module, name, trace(value))


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_makes_the_spans_that_decorating_makes(seed: int) -> None:
    source = program(seed)
    expected = run_as(source, None)
    for engine in ENGINES:
        assert run_as(source, AutoTracer("random_program", engine=engine)) == expected
    assert current() is ROOT


@engines
class TestFunctions:
    def test_of_a_module_that_is_there_and_of_one_that_comes(
        self, engine: str, shops: Shops, events: list[StreamllEvent]
    ) -> None:
        before, later = shops.open(), shops.stock()
        with AutoTracer([before.__name__, later], engine=engine) as tracer:
            after: Any = importlib.import_module(later)
            for shop in (before, after):
                events.clear()
                shop.decorated(1)
                list(shop.counted(1))
                asyncio.run(shop.fetched(1))
                basket = shop.Basket.empty()
                basket.first = 5
                assert (basket.total(), basket.first, basket.tax(2), basket.Inner().deep()) == (10, 5, 2, 1)
                shop.by_hand()
                assert shop.Sealed().open() == "open"
                assert [(one, within) for one, within, _, _ in told(events)] == [
                    ("price", "decorated"),
                    ("decorated", ""),
                    ("price", "counted"),
                    ("counted", ""),
                    ("price", "fetched"),
                    ("fetched", ""),
                    ("Basket.empty", ""),
                    ("Basket.first", ""),
                    ("price", "Basket.total"),
                    ("Basket.total", ""),
                    ("Basket.first", ""),
                    ("Basket.tax", ""),
                    ("Basket.Inner.deep", ""),
                    ("price", "by_hand"),
                    ("by_hand", ""),
                    ("Sealed.open", ""),
                ]
                assert {event.module_name for event in events} == {shop.__name__}
            stats = tracer.stats()
            assert (stats.engine, stats.modules, stats.errors) == (engine, 2, 0)
            assert tracer.report()["most_called"][0]["function"] == "price"
        events.clear()
        assert after.decorated(1) == 2
        assert events == []

    def test_are_what_they_were_afterwards(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        names = dict(vars(shop))
        inside = dict(vars(shop.Basket))
        spec, loader = shop.__spec__, shop.__loader__
        with AutoTracer(shop.__name__, engine=engine):
            assert pickle.loads(pickle.dumps(shop.price)) is shop.price
            assert str(inspect.signature(shop.price)) == "(n)"
            assert shop.Basket.first.__doc__ == "The first."
            assert shop.Basket().first == 1
        assert all(value is names[name] for name, value in vars(shop).items())
        assert all(value is inside[name] for name, value in vars(shop.Basket).items())
        assert (shop.__spec__, shop.__loader__) == (spec, loader)

    def test_that_somebody_else_has_replaced_stay_so(
        self, engine: str, shops: Shops, events: list[StreamllEvent]
    ) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine) as tracer:
            shop.counted = mine = len
        assert shop.counted is mine
        assert tracer.stats().changed == 1

    def test_of_a_module_that_is_reloaded(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        name = shops.stock()
        with AutoTracer(name, engine=engine):
            shop: Any = importlib.import_module(name)
            assert type(shop.__loader__).__name__ == type(shop.__spec__.loader).__name__ == "SourceFileLoader"
            assert importlib.reload(shop) is shop
            assert type(shop.__loader__).__name__ == "SourceFileLoader"
            shop.decorated(1)
            assert [each[0] for each in told(events)] == ["price", "decorated"]

    def test_of_a_module_that_warns_and_raises_while_it_is_imported(
        self, engine: str, shops: Shops, events: list[StreamllEvent]
    ) -> None:
        name = shops.stock("import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n{}['key']")
        tracer = AutoTracer(name, engine=engine)
        with tracer, pytest.warns(DeprecationWarning, match="old") as warned, pytest.raises(KeyError) as raised:
            __import__(name)
        assert [each.filename for each in warned] == [__file__]
        assert [Path(entry.path).name for entry in raised.traceback] == [Path(__file__).name, f"{name}.py"]

    def test_that_raise_and_that_are_left_early(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine):
            with pytest.raises(TypeError) as caught:
                shop.decorated(None)
            waiting = shop.fetched(1)
            waiting.close()  # before it began
            generator = shop.counted(3)
            next(generator)
            generator.close()
        assert caught.value.__context__ is None
        assert told(events)[:2] == [("price", "decorated", "TypeError", ""), ("decorated", "", "TypeError", "")]
        assert told(events)[-1] == ("counted", "", "info", "items=1, closed=True")

    def test_called_too_often_are_left_alone_and_told_of(
        self, engine: str, shops: Shops, events: list[StreamllEvent]
    ) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine, max_rate=10) as tracer:
            agent.remove(tracer)  # the seconds are counted here
            for _ in range(50):
                shop.price(1)
            assert (tracer.stats().calls, tracer.stats().paused) == (10, 1)
            for now in range(4):
                tracer.tick(float(now))
            assert tracer.stats().paused == 0
            shop.price(1)
            stats = tracer.stats()
        assert (stats.calls, stats.pauses) == (11, 1)
        assert [event.event_type for event in events] == ["span"] * 10 + ["trace_paused", "span"]
        assert (events[10].method_name, events[10].data["max_rate"]) == ("price", 10)

    def test_are_traced_less_while_the_budget_is_short(
        self, engine: str, shops: Shops, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = shops.open()
        traced = []
        for priority, allowance in (("normal", Allowance(sampling=4)), ("debug", Allowance(debug=False))):
            with AutoTracer(shop.__name__, engine=engine, max_rate=20, priority=priority) as tracer:
                agent.remove(tracer)
                shop.price(1)
                monkeypatch.setattr(budget, "allowance", allowance)
                tracer.tick(0.0)
                for _ in range(30):
                    shop.price(1)
                traced.append(tracer.stats().calls - 1)
        assert traced == [5, 0]
        assert [event.priority for event in events if event.event_type == "span"] == ["normal"] * 6 + ["debug"]

    def test_are_bounded_in_number(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine, max_functions=3) as tracer:
            stats = tracer.stats()
        assert stats.functions == 3
        assert stats.beyond > 3

    def test_whose_call_outlives_the_tracing(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        tracer = AutoTracer(shop.__name__, engine=engine).start()
        shop.forever(tracer.stop)
        assert current() is ROOT
        (event,) = events
        assert event.method_name == "forever"
        assert event.data.get("unfinished", False) is (engine == "monitoring")
        assert tracer.stats().unfinished == (engine == "monitoring")

    def test_that_call_themselves_very_often_become_silent(
        self, engine: str, shops: Shops, events: list[StreamllEvent]
    ) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine, max_rate=10) as tracer:
            agent.remove(tracer)
            assert shop.fibonacci(20) == 6765
            assert tracer.stats().unfinished == len([event for event in events if "unfinished" in event.data])
            assert current() is ROOT
        assert len(events) == 10
        assert any("unfinished" in event.data for event in events) is (engine == "monitoring")

    def test_whose_frames_are_told(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        hub.frames = {}
        told_of: list[str] = []

        def look() -> None:
            frame, inside = inspect.currentframe(), []
            assert hub.frames is not None
            while frame is not None:
                inside += [hub.frames[id(frame)].operation] if id(frame) in hub.frames else []
                frame = frame.f_back
            told_of.extend(inside)

        try:
            with AutoTracer(shop.__name__, engine=engine), span("around") as around:
                for _ in range(MEASURE_EVERY):
                    shop.forever(look)
                assert told_of == ["forever", around.operation] * MEASURE_EVERY
                assert list(hub.frames.values()) == [around]
        finally:
            hub.frames = None

    def test_in_threads(self, engine: str, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        with AutoTracer(shop.__name__, engine=engine):
            threads = [threading.Thread(target=lambda: [shop.decorated(1) for _ in range(50)]) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert (
            sorted(told(events)) == [("decorated", "", "info", "")] * 200 + [("price", "decorated", "info", "")] * 200
        )


class TestTool:
    def test_may_be_started_and_stopped_at_will(self, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        tracer = AutoTracer({"patterns": [shop.__name__]})
        tracer.stop()
        assert tracer.start() is tracer.start()
        assert [tracer.running] == [True]
        shop.price(1)
        stopper = threading.Thread(target=tracer.stop)
        stopper.start()
        stopper.join()
        assert [tracer.running] == [False]
        with tracer:
            shop.price(1)
        assert len(events) == 2
        assert tracer.stats().calls == 1
        tracer.reset()
        assert tracer.stats().calls == 0

    def test_two_at_once_do_not_know_of_each_other(
        self, shops: Shops, events: list[StreamllEvent], caplog: pytest.LogCaptureFixture
    ) -> None:
        shop, name = shops.open(), shops.stock()
        first, second = AutoTracer(f"{shop.__name__},{name}").start(), AutoTracer([shop.__name__, name]).start()
        third = AutoTracer(shop.__name__).start()  # for whom no tool id is left
        assert ("wraps functions" in caplog.text) is (sys.version_info >= (3, 12))
        later: Any = importlib.import_module(name)
        later.price(1)
        made = len(events)
        first.stop()
        second.stop()
        third.stop()
        events.clear()
        shop.price(1)
        later.price(1)
        assert events == []
        assert made == (2 if sys.version_info >= (3, 12) else 1)  # a wrapper is not wrapped again

    def test_who_looks_for_a_module_finds_what_there_is(self, shops: Shops) -> None:
        name = shops.stock()
        with AutoTracer(name):
            spec: Any = importlib.util.find_spec(name)
            assert isinstance(spec.loader, SourceFileLoader)
            assert spec.loader.get_source(name) == SHOP
            assert importlib.util.module_from_spec(spec).__spec__ is spec
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"{name}.missing")

    def test_does_nothing_while_nothing_is_configured(self, shops: Shops) -> None:
        shop = shops.open()
        with hub.instead(lambda event: False):
            hub.empty()
            with AutoTracer(shop.__name__) as tracer:
                assert shop.decorated(1) == 2
                assert list(shop.counted(1)) == [0]
            assert tracer.stats().calls == 0

    def test_options(self) -> None:
        options = AutoTracerOptions(patterns="a.*,b.*", max_rate=5)
        assert AutoTracer(options).options == options
        with pytest.raises(ConfigurationError, match="must say what is wanted"):
            AutoTracer()
        with pytest.raises(ConfigurationError, match="config: must be a dict or AutoTracerOptions, not int"):
            AutoTracer(5)  # type: ignore[arg-type]
        if sys.version_info < (3, 12):
            with pytest.raises(ConfigurationError, match=r"needs Python 3\.12"):
                AutoTracer("a", engine="monitoring").start()

    def test_the_main_program_is_looked_at_again(
        self, events: list[StreamllEvent], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        main: Any = ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        with AutoTracer("__main__:run") as tracer:
            assert tracer.stats().functions == 0
            exec("def run(): return 1", vars(main))
            assert wait_until(lambda: tracer.stats().functions == 1)
            main.run()
        assert [event.operation for event in events] == ["run"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_child_goes_on_and_ends_nothing_of_its_parents(self, shops: Shops, events: list[StreamllEvent]) -> None:
        shop = shops.open()
        answers, answer = os.pipe()

        def in_a_child() -> None:
            if os.fork() == 0:  # pragma: no cover  # it leaves without a word to anybody
                events.clear()
                shop.price(1)
                os.write(answer, f"{[event.operation for event in events]} {events[0].parent_span_id!r}".encode())
                os._exit(0)
            os.wait()

        with AutoTracer(shop.__name__):
            shop.forever(in_a_child)
        assert os.read(answers, 100) == b"['price'] ''"
        os.close(answers)
        os.close(answer)
        assert [event.operation for event in events] == ["price", "forever"]

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
    def test_a_program_that_is_about_to_run(self, events: list[StreamllEvent]) -> None:
        code = compile("class A:\n def run(self):\n  return help()\ndef help():\n return 1\nA().run()", "a.py", "exec")
        with AutoTracer("__main__") as tracer:
            tracer.expect(code)
            exec(code, {"__name__": "__main__"})
        assert [each[:2] for each in told(events)] == [("help", "A.run"), ("A.run", "")]
