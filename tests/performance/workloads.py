"""Programs that stand for what users run, in pieces that can be repeated: what monitoring adds to them is measured.

What belongs here: the programs. What does not: monitoring, or measuring. Those of pyperformance are called where that
package keeps them (of the extra `performance`); the others are what samplers and tracers are known to find hard.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter
from typing import Any

import streamll

Run = Callable[[], object]

TREE_LEVELS = 4
"""Of async_tree: 6 branches on each, so 1,555 tasks in a piece, instead of 55,987 in one that lasts seconds."""

TABLE_SIZE = 30
"""Of django_template's table, rows and columns, instead of 100: pieces of some ms."""

TOKENS_A_SECOND = 1_000


@dataclass(frozen=True)
class Program:
    """One of them.

    Attributes:
        run: One piece of its work.
        is_paced: Whether a piece lasts about as long whatever it costs, since the program waits for most of it.
        beside: What is there beside it for as long as it is measured; called once.
    """

    run: Run
    is_paced: bool = False
    beside: Callable[[], object] | None = None


def benchmark(name: str) -> Any:
    """Load one of pyperformance's benchmarks as a module."""
    package = import_module("pyperformance")
    file = Path(str(package.__file__)).parent / "data-files" / "benchmarks" / f"bm_{name}" / "run_benchmark.py"
    spec = spec_from_file_location(f"bm_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def nbody() -> Program:
    bench = benchmark("nbody")
    return Program(lambda: bench.bench_nbody(1, bench.DEFAULT_REFERENCE, 1_000))


def deltablue() -> Program:
    bench = benchmark("deltablue")
    return Program(lambda: bench.delta_blue(100))


def richards() -> Program:
    bench = benchmark("richards")
    return Program(lambda: bench.Richards().run(1))


def json_dumps() -> Program:
    bench = benchmark("json_dumps")
    data = [(bench.SIMPLE_DATA, range(500)), (bench.NESTED_DATA, range(500))]
    return Program(lambda: bench.bench_json_dumps(data))


def _tree(kind: str) -> Run:
    bench = benchmark("async_tree")
    bench.NUM_RECURSE_LEVELS = TREE_LEVELS
    return lambda: asyncio.run(bench.BENCHMARKS[kind]().run())


def async_tree() -> Program:
    return Program(_tree("none"))


def async_tree_io() -> Program:
    return Program(_tree("io"), is_paced=True)


def django_template() -> Program:
    bench, django = benchmark("django_template"), import_module("django")
    import_module("django.conf").settings.configure(
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    )
    django.setup()
    found: list[Run] = []

    class Taker:
        """Takes what the benchmark would have a runner time."""

        def bench_func(self, name: str, call: Callable[..., object], *arguments: Any) -> None:
            found.append(lambda: call(*arguments))

    bench.bench_django_template(Taker(), TABLE_SIZE)
    return Program(found[0])


def idle_threads() -> Program:
    """A thread that computes beside 50 that wait."""

    def wait_in(depth: int) -> None:
        if depth:
            wait_in(depth - 1)
        else:
            threading.Event().wait()

    def start_them() -> None:
        for _ in range(50):
            threading.Thread(target=wait_in, args=(20,), daemon=True).start()

    return Program(nbody().run, beside=start_them)


def many_tasks() -> Program:
    """An asyncio program with 10,000 tasks alive at once, which take turns."""

    async def turn() -> int:
        await asyncio.sleep(0)
        return sum(range(20))

    async def all_of_them() -> None:
        await asyncio.gather(*(turn() for _ in range(10_000)))

    return Program(lambda: asyncio.run(all_of_them()))


def token_stream() -> Program:
    """A language model's stream, an event for each token; where nothing is configured, `emit` does nothing."""
    seconds = 0.1

    async def tokens() -> AsyncIterator[str]:
        start = perf_counter()
        for number in range(int(seconds * TOKENS_A_SECOND)):
            await asyncio.sleep(max(0.0, start + number / TOKENS_A_SECOND - perf_counter()))
            yield f"token{number} "

    async def answer() -> str:
        text: list[str] = []
        with streamll.span("answer", model="a model"):
            async for token in tokens():
                streamll.emit("token", {"text": token, "index": len(text), "cached": False}, operation="generate")
                text.append(token)
        return "".join(text)

    return Program(lambda: asyncio.run(answer()), is_paced=True)


def c_call() -> Program:
    """Calls into C of some 20 ms each that never let go of the interpreter."""
    base, exponent, modulus = 3**1_600, (1 << 1_300) - 1, (1 << 2_600) - 9
    return Program(lambda: pow(base, exponent, modulus))


PROGRAMS: Mapping[str, tuple[Callable[[], Program], str]] = {
    "nbody": (nbody, "pyperformance: floats in loops"),
    "deltablue": (deltablue, "pyperformance: many small methods"),
    "richards": (richards, "pyperformance: many small methods"),
    "json_dumps": (json_dumps, "pyperformance: C code called in loops"),
    "async_tree": (async_tree, "pyperformance: 1,555 tasks that do nothing"),
    "async_tree_io": (async_tree_io, "pyperformance: the same, each of whose leaves waits for 50 ms"),
    "django_template": (django_template, "pyperformance: a table of 900 cells"),
    "idle_threads": (idle_threads, "nbody beside 50 threads that wait, 20 calls deep"),
    "many_tasks": (many_tasks, "10,000 asyncio tasks alive at once"),
    "token_stream": (token_stream, "1,000 events/s, one for each token"),
    "c_call": (c_call, "C calls that hold the GIL for some 20 ms"),
}
"""How each is made, and what it stands for."""
