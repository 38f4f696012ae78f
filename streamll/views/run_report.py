"""What `streamll run` prints at a program's end, from the report of all tools.

What belongs here: the words and the order: what ended, what took the time, what memory did, what was delivered, and what
watching cost. What does not: the numbers, which come from the tools (monitoring.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streamll.views.line import neutral
from streamll.views.summary import OperationSummary, table_of
from streamll.views.table import aligned

SHOWN = 15
"""Rows of a table at most; the report as JSON has them all."""

_LONGEST_NAME = 80
_MOST_BLOCKERS = 3
_LEAST_SHARE = 0.0005


def format_run(report: Mapping[str, Any]) -> str:
    """Return the summary of a run, in lines for people; no text of the program can harm a terminal.

    Args:
        report: `Monitor.report()`, with "program" (what ran) and "status" (how it ended).
    """
    return "\n".join(_lines(report))


def format_findings(report: Mapping[str, Any]) -> str:
    """Return what the tools of `Monitor.report()` saw, beside the operations, and what watching cost."""
    return "\n".join([*_findings(report), _cost(report["monitoring"])]).lstrip("\n")


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"streamll: {_name(report['program'])} {_ending(report['status'])} after {report['seconds']:,.2f} s, "
        f"{report['cpu_seconds']:,.2f} s of processor time"
    )
    yield from _operations(report["operations"]["operations"])
    yield from _findings(report)
    yield from _events(report["sinks"], report["balanced"])
    yield _cost(report["monitoring"])


def _findings(report: Mapping[str, Any]) -> Iterator[str]:
    if "profiler" in report:
        yield from _hot_spots(report["profiler"])
    if "memory" in report:
        yield from _memory(report["memory"])
    if "loops" in report:
        yield from _loops(report["loops"])


def _ending(status: Any) -> str:
    if status is None or status == 0:
        return "ended"
    if isinstance(status, int):
        return f"ended with {status}"
    return "was ended by a signal" if status == "signal" else "was interrupted"


def _operations(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield from table_of(OperationSummary(**row) for row in rows[:SHOWN])
    yield from _more(rows)


def _hot_spots(report: Mapping[str, Any]) -> Iterator[str]:
    spots = [spot for spot in report["hot_spots"] if spot["self_share"] >= _LEAST_SHARE]
    yield ""
    if not spots:
        yield "no samples: nothing ran for long enough"
        return
    lines = [("hot spot", "self", "total", "where")]
    for spot in spots[:SHOWN]:
        where = f"{_name(spot['file'])}:{spot['line']}"
        lines.append((_name(spot["function"]), f"{spot['self_share']:.1%}", f"{spot['total_share']:.1%}", where))
    yield from aligned(lines, left=(0, 3))
    yield from _more(spots)


def _memory(report: Mapping[str, Any]) -> Iterator[str]:
    sizes = [
        f"{report[name]:,.1f} MiB at {when}"
        for name, when in (("current_mb", "the end"), ("peak_mb", "most"))
        if report[name] is not None
    ]
    sure = f" (confidence {report['confidence']:.0%})" if report["confidence"] else ""
    yield ""
    yield f"memory: {', '.join(sizes) or 'not known here'}; {neutral(str(report['explanation']))}{sure}"


def _loops(report: Mapping[str, Any]) -> Iterator[str]:
    if report["blocked"]:
        yield ""
        yield f"event loops were blocked {report['blocked']:,} times, for {report['blocked_seconds']:,.2f} s, most of it by"
        for blocker in report["blockers"][:_MOST_BLOCKERS]:
            yield f"  {neutral(str(blocker['frame']))}: {blocker['seconds']:,.2f} s, {blocker['count']:,} times"


def _events(sinks: Mapping[str, Mapping[str, Any]], balanced: bool) -> Iterator[str]:
    yield ""
    for name, sink in sinks.items():
        lost = sum(sink["dropped"].values())
        rest = f", {lost:,} dropped" if lost else ""
        rest += f", {sink['dead_lettered']:,} dead letters" if sink["dead_lettered"] else ""
        where = _name(sink["destination"])
        yield f"{_name(name)}: {sink['delivered']:,} of {sink['accepted']:,} events delivered to {where}{rest}"
    if not balanced:
        yield "the numbers do not balance: a defect of streamll, please report it"


def _cost(monitoring: Mapping[str, Any]) -> str:
    tools = sorted(monitoring["seconds"].items(), key=lambda each: -each[1])
    parts = ", ".join(f"{name} {seconds * 1000:,.0f} ms" for name, seconds in tools if seconds >= 0.0005)
    gave_way = "; it left something out to keep within its target" if monitoring["changes"] else ""
    total = sum(monitoring["seconds"].values())
    return f"watching took {total:,.3f} s of processor time{f' ({parts})' if parts else ''}{gave_way}"


def _more(rows: Sequence[object]) -> Iterator[str]:
    if len(rows) > SHOWN:
        yield f"... and {len(rows) - SHOWN:,} more"


def _name(text: object) -> str:
    return neutral(str(text))[:_LONGEST_NAME]
