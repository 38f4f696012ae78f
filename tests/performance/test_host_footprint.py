"""What streamll takes of a process: memory for what is buffered, and time at its start."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fixtures.redis import RedisServer
from tests.performance.child import Answer, Child
from tests.performance.measuring import Race
from tests.performance.programs import dead_url, start_up
from tests.performance.results import Findings

NAMES = "streamll.configure, streamll.emit, streamll.span, streamll.trace"


def memory(events: int) -> Answer:
    """The memory of a process of its own that holds so many events."""
    with Child("process", url=dead_url()) as child:
        return child("memory", events=events)


def test_memory(race: Race, findings: Findings, quick: bool) -> None:
    findings.about("host", "Memory of a process that buffers events (RSS)")
    counts = (0, 1_000, 10_000) if quick else (0, 10_000, 100_000)
    laps = race({str(count): partial(memory, count) for count in counts}, 1 if quick else 3, warm_up=0)
    for count in counts:
        own = [lap.value for lap in laps[str(count)]]
        note = "the interpreter, streamll and redis-py included; the broker is dead"
        findings.row(f"whole process, {count:,} events buffered", [lap["after"] for lap in own], "MB", note=note)
        if count:
            grown = [lap["after"] - lap["before"] for lap in own]
            findings.row(f"grown by, for {count:,} events", grown, "MB")
            findings.row(f"an event, of {count:,}", [mb / count * 1e6 for mb in grown], "bytes")
            findings.row(f"counted against buffer_bytes, {count:,} events", [lap["held"] for lap in own], "MB")
    findings.series["memory"] = {str(count): [lap.value["after"] for lap in laps[str(count)]] for count in counts}


@pytest.mark.redis
def test_start_up(race: Race, findings: Findings, redis_here: RedisServer, quick: bool) -> None:
    findings.about("host", "Import and start-up, above a bare interpreter")
    url = f"{redis_here.url}?stream=start-up"
    configure = f"import streamll; streamll.configure(sinks=[{url!r}])"
    emit = f"{configure}; assert streamll.emit('token', {{'index': 7}})"
    # Neither waits for its end in order, which `os._exit` leaves out: only what comes before it is to be timed.
    codes = {
        "import streamll": "import streamll",
        "all names that users call": f"import streamll; {NAMES}",
        "configure() with a Redis sink": configure,
        "the first event is accepted": f"{emit}; import os; os._exit(0)",
        "the first event is confirmed by Redis": f"{emit}; assert streamll.flush(30); import os; os._exit(0)",
        "the same, and an end in order": f"{emit}; assert streamll.flush(30)",
    }
    arms = {"bare": "pass", **codes}
    laps = race({name: partial(start_up, code) for name, code in arms.items()}, 3 if quick else 11, subject="bare")
    took = {name: [lap.value for lap in own] for name, own in laps.items()}
    findings.row("the bare interpreter, start to end", took["bare"], "ms")
    for name in codes:
        above = [this - bare for this, bare in zip(took[name], took["bare"], strict=True)]
        findings.row(f"above it: {name}", above, "ms", note="its own end left out" if "_exit" in codes[name] else "")
    findings.say("With compiled files, as after the first start; each is started in turn with the bare interpreter.")
    with redis_here.client() as client:
        assert client.xlen("start-up") >= 2 * len(took["bare"])
