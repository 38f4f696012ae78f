"""What monitoring takes of a process besides its time: at its start, of its memory, and in the long run."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fixtures.redis import RedisServer
from tests.performance.child import Answer, Child
from tests.performance.measuring import Race
from tests.performance.programs import start_up
from tests.performance.results import Aim, Findings

ALL = "streamll.monitor(profile=True, memory=True)"


def program(work: str, seconds: float, **settings: str) -> Answer:
    """The answer of a fresh process."""
    with Child("monitored", **settings) as child:
        return child(work, seconds=seconds)


def test_start_up_of_all_tools(race: Race, findings: Findings, quick: bool) -> None:
    findings.about("monitoring", "Start-up of all tools, above a bare interpreter")
    configured = "import os, streamll; streamll.configure(sinks=['memory://'])"
    # Its end is left out: only what comes before it is to be timed.
    codes = {
        "bare": "pass",
        "a sink alone": f"{configured}; os._exit(0)",
        "all tools": f"{configured}; {ALL}; os._exit(0)",
    }
    laps = race({name: partial(start_up, code) for name, code in codes.items()}, 3 if quick else 11)
    bare = [lap.value for lap in laps["bare"]]
    for name, aim in (("a sink alone", None), ("all tools", Aim(at_most=100))):
        above = [lap.value - base for lap, base in zip(laps[name], bare, strict=True)]
        note = "import, configure() with a sink in memory, and monitor()" if aim else "import and configure()"
        findings.row(f"Start-up, {name}", above, "ms", aim=aim, note=note)


@pytest.mark.redis
def test_memory_with_all_tools(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("monitoring", "Memory of a process with all tools on (RSS)")
    seconds, rounds = (0.2, 1) if quick else (1.5, 3)
    arms = {way: partial(program, "memory", seconds, way=way) for way in ("sink", "everything")}
    arms["redis"] = partial(
        program, "memory", seconds, way="everything", url=f"{redis_here.url}?stream=memory-with-all-tools"
    )
    laps = race(arms, rounds, subject="everything", warm_up=0)
    note = f"interpreter included, a sink in memory, after {seconds:g} s of spans and events from four threads"
    alone = [lap.value["after"] for lap in laps["sink"]]
    watched = [lap.value["after"] for lap in laps["everything"]]
    findings.row("Whole process, a sink alone", alone, "MB", note=note)
    findings.row("Whole process, all tools on", watched, "MB", aim=Aim(at_most=40), note=note)
    findings.row("Whole process, all tools on, at its fullest", [lap.value["peak"] for lap in laps["everything"]], "MB")
    to_redis = [lap.value["after"] for lap in laps["redis"]]
    findings.row("Whole process, all tools on, to Redis", to_redis, "MB", note="its client takes the rest")
    added = [more - less for more, less in zip(watched, alone, strict=True)]
    findings.row("What the tools add", added, "MB")


@pytest.mark.redis
@pytest.mark.stress
def test_growth_with_all_tools(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("monitoring", "A longer run with all tools on")
    seconds = 1.5 if quick else 21.0
    lasting = {"everything": seconds} if quick else {"sink": seconds / 3, "everything": seconds}
    url = f"{redis_here.url}?max_stream_length=10000&stream=growth-"
    arms = {way: partial(program, "grow", length, way=way, url=url + way) for way, length in lasting.items()}
    laps = race(arms, 1, warm_up=0)
    answer = laps["everything"][0].value
    note = (
        f"RSS after {seconds:g} s against a third of it: four threads, {answer['pieces']:,} pieces of work of seven events each in "
        f"the time between, to Redis; {answer['early']:.1f} MB, then {answer['late']:.1f} MB"
    )
    growth = (answer["late"] / answer["early"] - 1) * 100
    findings.row("Growth with all tools on: memory", [growth], "%", aim=Aim(at_most=10), note=note)
    blocks = (answer["late_blocks"] / answer["early_blocks"] - 1) * 100
    note = f"sys.getallocatedblocks(): {answer['early_blocks']:,}, then {answer['late_blocks']:,}"
    findings.row("Growth with all tools on: allocated blocks", [blocks], "%", aim=Aim(at_most=10), note=note)
    note = "of one processor, meanwhile, the program's own work and its events included"
    for way, words in (("everything", "all tools on"), ("sink", "a sink alone")):
        if way in laps:
            findings.row(f"Processor time, {words}", [laps[way][0].value["cpu"]], "%", note=note)
    note = "of one processor: what the tools have charged themselves in that time, `stats().monitoring`"
    findings.row("Processor time, as monitoring counts it", [answer["charged"]], "%", note=note)
