"""A program that knows itself what share of its processor time each of its functions takes: the judge of the sampler.

Stretches of work are of random length, so that no interval of the sampler's is in step with them, and each is measured by
the processor clock of its own thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from math import sqrt

from streamll.monitors.profiling.stacks import Stacks

SIGMAS = 5
"""A share may be off by so many standard deviations of what chance does to so many samples."""

TRUTH: dict[str, float] = defaultdict(float)
"""Seconds of processor time by name."""


def burn(name: str, seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        for _ in range(40):
            pass
    TRUTH[name] += time.thread_time() - began


def half(seconds: float) -> None:
    burn("half", seconds)


def third(seconds: float) -> None:
    burn("third", seconds)


def rest(seconds: float) -> None:
    burn("rest", seconds)


def recursive(seconds: float, depth: int = 8) -> None:
    if depth:
        recursive(seconds, depth - 1)
    else:
        burn("recursive", seconds)


def generated(seconds: float) -> Iterator[int]:
    for n in range(3):
        burn("generated", seconds / 3)
        yield n


def holding_the_lock(seconds: float) -> None:
    """Calls into C that let no other thread run, of some milliseconds each."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        sum(range(60_000))
        hashlib.sha256(b"x" * 2000).digest()
    TRUTH["holding_the_lock"] += time.thread_time() - began


def work(seconds: float, seed: int = 0) -> None:
    """Do everything, in stretches in random order."""
    chance = random.Random(seed)
    parts = {half: 5, third: 3, rest: 2, recursive: 4, holding_the_lock: 4}
    while seconds > 0:
        part = chance.choices([*parts, generated], weights=[*parts.values(), 2])[0]
        stretch = min(0.012, chance.expovariate(1 / 0.004))
        seconds -= stretch
        if part is generated:
            for _ in generated(stretch):
                pass
        else:
            part(stretch)


async def light(seconds: float) -> None:
    burn("light", seconds)


async def heavy(seconds: float) -> None:
    burn("heavy", seconds)


async def one_task(part: Callable[[float], Awaitable[None]], seconds: float, shortest: float, seed: int) -> None:
    chance = random.Random(seed)
    while seconds > 0:
        stretch = shortest + min(0.012, chance.expovariate(1 / 0.004))
        seconds -= stretch
        await part(stretch)
        await asyncio.sleep(0)


async def light_task(seconds: float, shortest: float) -> None:
    await one_task(light, seconds, shortest, 1)


async def heavy_task(seconds: float, shortest: float) -> None:
    await one_task(heavy, seconds, shortest, 2)


def tasks(seconds: float, shortest: float) -> None:
    """Two kinds of tasks, of which one takes three times the time of the other; each step takes `shortest` and more."""

    async def both() -> None:
        await asyncio.gather(light_task(seconds / 4, shortest), heavy_task(seconds * 3 / 4, shortest))

    asyncio.run(both())


def in_threads(*seconds: float) -> list[threading.Thread]:
    """A thread for each number, working for so long."""
    threads = [threading.Thread(target=work, args=(each, n), name=f"worker-{n}") for n, each in enumerate(seconds)]
    for thread in threads:
        thread.start()
    return threads


class Weighed(Stacks):
    """A count that also keeps each sample's weight."""

    def clear(self) -> None:
        super().clear()
        self.weights: list[tuple[int, int, int, int]] = []

    def add(self, owner: int, stack: int, line: int, *, cpu_ns: int, wall_ns: int) -> None:
        super().add(owner, stack, line, cpu_ns=cpu_ns, wall_ns=wall_ns)
        self.weights.append((owner, stack, cpu_ns, wall_ns))


def judge(stacks: Weighed, truth: dict[str, float], by: str = "function") -> float:
    """Raise an AssertionError unless the samples' shares are the true ones, within what chance allows.

    Of n samples, a share p is off by sqrt(p (1 - p) / n); where they weigh differently, n is the square of the sum of the
    weights over the sum of their squares (Kish). What does not stand in `truth` is left out on both sides.

    Returns:
        Seconds of processor time that the samples stand for, of those in `truth`.
    """
    samples = stacks.read()
    seen: Counter[str] = Counter()
    squares = 0.0
    for owner, stack, weight, _ in stacks.weights:
        if by == "function":
            found = {samples.functions[place].name.split(".")[-1] for place in samples.stacks[stack]} & truth.keys()
        else:
            found = {getattr(samples.owners[owner], by)} & truth.keys()
        if found:
            assert len(found) == 1, found
            seen[found.pop()] += weight
            squares += weight**2
    whole_seen, whole = sum(seen.values()), sum(truth.values())
    n = whole_seen**2 / squares
    for name, seconds in truth.items():
        share = seconds / whole
        allowed = SIGMAS * sqrt(share * (1 - share) / n)
        assert abs(seen[name] / whole_seen - share) < allowed, (name, seen[name] / whole_seen, share, allowed, n)
    return whole_seen / 1e9
