"""What monitoring adds to programs: all tools on, each alone, and other profilers beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest

from tests.fixtures.redis import RedisServer
from tests.performance.child import Children
from tests.performance.measuring import Race
from tests.performance.pairs import Figure, Interval, bootstrap, in_turn, middle, worst
from tests.performance.programs import need
from tests.performance.results import Aim, Findings
from tests.performance.watching import WAYS
from tests.performance.workloads import PROGRAMS

TITLE = "What monitoring adds to a program"
HOW = (
    "Pairs of blocks of {seconds:g} s, one plain and one watched, both in one process, in an order that is drawn. A figure is the "
    "median of the pairs, its interval that of a bootstrap (95 %). The watched program has run for up to half a second before "
    "its block; beginning to watch is not in it. What is compared is the processor time of all threads together, "
    "so what happens in the background counts too. The null arm compares the plain program "
    "with itself: what it shows is the method's noise."
)
PACED = "the program waits for most of the time: what is added is a share of one processor"
PEERS = ("pyinstrument", "cprofile", "tracemalloc")
TOOLS = ("profiler", "memory", "metrics", "loops", "sink")
BLOCK = {False: 0.1, True: 0.04}
"""Seconds that a block lasts: in a run that measures, and in one that is only a look."""
SOME = ("deltablue", "async_tree", "token_stream")
"""The programs that stand for the others where not all are measured: calls, tasks, and events of its own."""

Costs = dict[str, dict[str, list[float]]]
"""What was added, by program and way, in percent; each a list with a value for each pair."""


@pytest.fixture(scope="module")
def costs() -> Costs:
    """What the tests of this module found, for the last of them."""
    return {}


class Comparison:
    """One program in a process of its own, compared with itself.

    Args:
        children: What starts and ends it.
        program: Which of PROGRAMS.
        quick: Whether it is only a look.
        seconds: How long a block is to last; else as long as BLOCK says.
        settings: For children/overhead.py.
    """

    def __init__(
        self, children: Children, program: str, quick: bool, seconds: float | None = None, **settings: str
    ) -> None:
        need("pyperformance", "pyperf", "django", "pyinstrument")
        self._child = children.start("overhead", program=program, **settings)
        self._longest = 0.1 if quick else 1.0
        found = self._child("calibrate", seconds=seconds or BLOCK[quick])
        self._pieces, self.is_paced = found["pieces"], found["paced"]

    def run(self, pairs: Mapping[str, int], size: float = 1.0, at_once: bool = False) -> list[dict[str, Any]]:
        """Run pairs of blocks.

        Args:
            pairs: How many, by how the program is watched.
            size: Of the blocks, compared with what they are to be.
            at_once: Whether the blocks come as soon as the program is watched, since nothing is periodical.
        """
        longest = 0.0 if at_once else self._longest
        turns = [(turn.arm, turn.plain_first, turn.phase * longest) for turn in in_turn(pairs, seed=20)]
        done: list[dict[str, Any]] = self._child("run", turns=turns, pieces=max(1, round(self._pieces * size)))["pairs"]
        return done

    def added(self, pairs: list[dict[str, Any]]) -> dict[str, list[float]]:
        """The percent of processor time that each way adds, pair by pair: to what the plain program takes, or of one
        processor where it waits for most of the time."""

        def of(pair: Mapping[str, Any]) -> float:
            plain, watched = pair["plain"], pair["watched"]
            return float((watched["cpu"] - plain["cpu"]) / plain["seconds" if self.is_paced else "cpu"] * 100)

        return by_way(pairs, of)

    @staticmethod
    def slower(pairs: list[dict[str, Any]]) -> dict[str, list[float]]:
        """The percent by which each way makes it last longer by the wall, pair by pair."""
        return by_way(pairs, lambda pair: (pair["watched"]["seconds"] / pair["plain"]["seconds"] - 1) * 100)


def by_way(pairs: list[dict[str, Any]], figure: Callable[[Mapping[str, Any]], float]) -> dict[str, list[float]]:
    """A figure of each pair, in the order in which WAYS names them."""
    present = {pair["way"] for pair in pairs}
    return {way: [figure(pair) for pair in pairs if pair["way"] == way] for way in WAYS if way in present}


def sure(*groups: list[float], figure: Figure = middle) -> Interval | None:
    """The interval of a figure; None where there is but one pair of each, of which a bootstrap knows nothing."""
    return bootstrap(groups, figure) if all(len(group) > 1 for group in groups) else None


def report(findings: Findings, program: str, added: Mapping[str, list[float]], note: str = "") -> None:
    for way, samples in added.items():
        findings.row(f"{program}: {WAYS[way][1]}", samples, "%", interval=sure(samples), note=note)


@pytest.mark.parametrize("program", PROGRAMS)
def test_overhead(race: Race, findings: Findings, children: Children, quick: bool, costs: Costs, program: str) -> None:
    findings.about("monitoring", f"{TITLE}: {program}")
    pairs, null, peers = (1, 1, int(program == "deltablue")) if quick else (24, 12, 3)
    watched = Comparison(children, program, quick)
    (lap,) = race({"pairs": partial(watched.run, {"null": null, "everything": pairs})}, 1, warm_up=0)["pairs"]
    others = watched.run(dict.fromkeys(PEERS, peers), size=0.5, at_once=True)
    added = {**watched.added(lap.value), **watched.added(others)}
    costs.setdefault(program, {}).update(added)
    report(findings, program, added, PACED if watched.is_paced else "")
    for way, samples in watched.slower(lap.value).items():
        findings.row(f"{program}, by the wall: {WAYS[way][1]}", samples, "%", interval=sure(samples))
    findings.say(PROGRAMS[program][1])


@pytest.mark.redis
@pytest.mark.parametrize("program", ["deltablue", "token_stream"])
def test_overhead_with_redis(
    race: Race,
    findings: Findings,
    children: Children,
    redis_here: RedisServer,
    quick: bool,
    costs: Costs,
    program: str,
) -> None:
    findings.about("monitoring", f"{TITLE}, its events going to Redis: {program}")
    pairs = 1 if quick else 8
    watched = Comparison(children, program, quick, url=f"{redis_here.url}?stream=watched-{program}")
    (lap,) = race({"pairs": partial(watched.run, {"everything": pairs})}, 1, warm_up=0)["pairs"]
    added = watched.added(lap.value)
    costs.setdefault(program, {})["redis"] = added["everything"]
    report(findings, program, added, PACED if watched.is_paced else "")
    with redis_here.client() as client:
        arrived = client.xlen(f"watched-{program}")
    assert arrived or program != "token_stream"
    findings.say(f"{arrived:,} events arrived.")


def test_long_blocks(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    """What comes once a second or more rarely is in few short blocks, and at its beginning each tool does more than later."""
    findings.about("monitoring", f"{TITLE}: deltablue, in long blocks")
    seconds, pairs = (0.3, 1) if quick else (1.5, 4)
    watched = Comparison(children, "deltablue", quick, seconds)
    (lap,) = race({"pairs": partial(watched.run, {"everything": pairs})}, 1, warm_up=0)["pairs"]
    assert all(pair["watched"]["samples"] for pair in lap.value), "nothing watched"
    report(findings, f"deltablue, blocks of {seconds:g} s", watched.added(lap.value))
    findings.say("To be compared with the same in short blocks; here the budget's controller has time to decide, too.")


@pytest.mark.parametrize("program", SOME)
def test_each_tool_alone(race: Race, findings: Findings, children: Children, quick: bool, program: str) -> None:
    findings.about("monitoring", f"What each tool adds by itself: {program}")
    pairs = dict.fromkeys(TOOLS[:2], 1) if quick else dict.fromkeys(TOOLS, 5)
    watched = Comparison(children, program, quick)
    (lap,) = race({"pairs": partial(watched.run, pairs)}, 1, warm_up=0)["pairs"]
    report(findings, program, watched.added(lap.value), PACED if watched.is_paced else "")


def test_all_programs(race: Race, findings: Findings, quick: bool, costs: Costs) -> None:
    """What the tests above found, taken together."""
    findings.about("monitoring", TITLE)
    groups = [ways["everything"] for ways in costs.values() if "everything" in ways]
    if not groups:
        pytest.skip("none of the programs was measured")
    medians = [middle([group]) for group in groups]
    race({"bootstrap": partial(sure, *groups)}, 1, warm_up=0)
    findings.row(
        f"All tools on: a typical program (the median of {len(groups)})",
        medians,
        "%",
        aim=Aim(at_most=2.0),
        note="quartiles are those of the programs",
        interval=sure(*groups),
    )
    interval = sure(*groups, figure=worst)
    findings.row("All tools on: the worst of them", [worst(groups)], "%", aim=Aim(at_most=5.0), interval=interval)
    findings.say(HOW.format(seconds=BLOCK[quick]))
    shown = {"everything": "all tools on", "redis": "all tools on, to Redis", "null": "null arm"}
    shown |= {peer: WAYS[peer][1] for peer in PEERS}
    findings.series["overhead"] = {
        program: {name: [1 + end / 100 for end in ends(ways[way])] for way, name in shown.items() if way in ways}
        for program, ways in costs.items()
    }


def ends(samples: list[float]) -> tuple[float, float, float]:
    found = sure(samples) or Interval(*samples * 3)
    return found.figure, found.low, found.high
