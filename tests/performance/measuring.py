"""How things are compared: arms run in turn, so that whatever else the machine does hits all of them alike.

What belongs here: laps, their spread, and ratios between them. What does not: what is measured (the tests), or what is
said of it (results.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any


@dataclass(frozen=True)
class Lap:
    """One run of one arm.

    Attributes:
        seconds: By the wall.
        cpu: Seconds of processor time that this process used meanwhile, all threads together.
        value: What the arm returned: a figure of its own, or anything else that the test wants to see.
    """

    seconds: float
    cpu: float
    value: Any = None


Arm = Callable[[], Any]


def lap(arm: Arm) -> Lap:
    """Run an arm once."""
    cpu, start = process_time(), perf_counter()
    value = arm()
    return Lap(perf_counter() - start, process_time() - cpu, value)


@dataclass(frozen=True)
class Spread:
    """What repeated measurements of one thing say: the median, and the quartiles around it.

    Attributes:
        median, low, high: The median, and the lower and upper quartile.
        n: How many measurements there were.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Describe some measurements, at least one."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0], 1)
        low, _, high = quantiles(samples, n=4, method="inclusive")
        return cls(median(samples), low, high, len(samples))


def ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Divide round by round, since only what was measured in the same round is comparable.

    Raises:
        ValueError: When the rounds are not the same.
    """
    return [this / that for this, that in zip(these, those, strict=True)]


class Race:
    """Runs arms in turn, each once a round, in an order that is drawn anew for each round.

    pytest-benchmark keeps the time of one of them, the subject, so that its storage and its comparison of runs work.

    Args:
        benchmark: pytest-benchmark's fixture.
        seed: Of the orders.
    """

    def __init__(self, benchmark: Any, seed: int = 20) -> None:
        self._benchmark = benchmark
        self._random = Random(seed)

    def __call__(
        self, arms: Mapping[str, Arm], rounds: int, subject: str | None = None, warm_up: int = 1
    ) -> dict[str, list[Lap]]:
        """Run every arm so many times, after rounds that do not count.

        Args:
            arms: What to run, by name.
            rounds: How many times each, at least 1.
            subject: The one that pytest-benchmark keeps; the last one by default. It runs last in each round.
            warm_up: Rounds that do not count.

        Returns:
            Each arm's laps, in the order of the rounds.
        """
        subject = subject or list(arms)[-1]
        others = [name for name in arms if name != subject]
        laps: dict[str, list[Lap]] = {name: [] for name in arms}

        def run_others() -> None:
            for name in self._random.sample(others, len(others)):
                laps[name].append(lap(arms[name]))

        def run_subject() -> None:
            laps[subject].append(lap(arms[subject]))

        self._benchmark.pedantic(run_subject, setup=run_others, rounds=rounds, warmup_rounds=warm_up)
        return {name: done[-rounds:] for name, done in laps.items()}
