"""What checkpoints tell of a program's flows: where the time between them goes, and what is missing, late or done twice.

What belongs here: that fold over events, which has no thread and no clock. What does not: who makes the events
(event_tracer.py).

A flow is what has the same `flow_id`: one order, one request. Its steps are put in order by the clock that is never
set, so a change of the system's time makes no step happen before the one that it followed. Between two steps that
follow each other there is an edge, and all time belongs to exactly one edge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from streamll.sketch import QuantileSketch

BOTTLENECK_SHARE = 0.5
"""The edges that take the most time, as few as make up this share of all of it, are bottlenecks."""

TAIL_FACTOR = 10
TAIL_COUNT = 20
"""An edge passed so often, whose p95 is so many times its median, is one too: it is slow now and then."""

COMPARED_FLOWS = 3
"""So many flows at least are needed before what most of them do counts as what one should have done."""

LISTED = 100
"""Flows, edges and bottlenecks that are listed one by one in each place of the answer; how many there are is said."""


class Event(Protocol):
    """What is read of an event: a `TracedEvent` or a `StreamllEvent` has it."""

    @property
    def event_type(self) -> str:
        """What kind of event it is; all but "checkpoint" are left out."""

    @property
    def event_id(self) -> str:
        """Its id."""

    @property
    def operation(self) -> str:
        """The step's name."""

    @property
    def timestamp(self) -> int:
        """When it happened, where `data` has no `monotonic_ns`."""

    @property
    def data(self) -> Any:
        """With `flow_id` and `monotonic_ns`."""


class Step(NamedTuple):
    """A checkpoint that was passed.

    Attributes:
        flow: Whose step it is.
        name: The checkpoint.
        at: When, in nanoseconds; of one clock for all steps of a flow.
    """

    flow: str
    name: str
    at: int


def steps_of(events: Iterable[Event]) -> list[Step]:
    """Return the checkpoints among events; those that say nothing of a flow are in the flow without a name."""
    return [step for event in events if (step := _step(event)) is not None]


def flow_with(checkpoint_id: str, events: Iterable[Event]) -> str | None:
    """Return the flow that a checkpoint, by its event's id, belongs to; None when it is not among the events."""
    for event in events:
        if event.event_id == checkpoint_id and (step := _step(event)) is not None:
            return step.flow
    return None


def _step(event: Event) -> Step | None:
    if event.event_type != "checkpoint":
        return None
    data = event.data if isinstance(event.data, Mapping) else {}
    flow, at = data.get("flow_id"), data.get("monotonic_ns")
    flow = flow if isinstance(flow, str) else "" if flow is None else str(flow)
    return Step(flow, event.operation, at if type(at) is int else event.timestamp)


def analyze(steps: Iterable[Step], expected: Sequence[str] = (), only: str | None = None) -> dict[str, Any]:
    """Say where the time between steps goes, and which flows are not as they should be.

    Args:
        steps: Checkpoints that were passed, of any flows, in any order; those of one flow at the same time stay in theirs.
        expected: The steps that each flow should make, in order. Without it, a step is missed that more than half of the
            flows make, and a flow is unfinished that does not end as more than half of them do.
        only: Tell of this flow alone; the others are what it is compared with.

    Returns:
        A dict with
        `found`: whether there is any step to tell of;
        `flows`, `steps`: how many;
        `total_ns`: the time between the first step and the last one of each flow, together;
        `edges`: for each pair of steps that followed each other, the one that took the most time first: `from`, `to`,
        `count`, `total_ns`, `share` (of `total_ns`), `mean_ns`, `p50_ns`, `p95_ns` (to within 1 %), `max_ns`;
        `bottlenecks`: the edges to look at, with `reasons`: "share" (it is one of the few that make up half of the time),
        "tail" (its p95 is ten times its median, or more);
        `missing`: flows that lack steps, as `{flow: [steps]}`; `out_of_order`: flows with steps, as a list, that came
        before one that is expected before them; `repeated`: flows with steps that were made more than once, as
        `{flow: {step: times}}`; `unfinished`: flows that have not made the last step, as a list;
        `counts`: how many there are of each of these six, of which the first 100 are listed.
    """
    flows: dict[str, list[Step]] = {}
    for step in steps:
        flows.setdefault(step.flow, []).append(step)
    paths = {flow: sorted(made, key=lambda step: step.at) for flow, made in flows.items()}
    wanted, last = (list(dict.fromkeys(expected)), {expected[-1]}) if expected else _usual(paths.values())
    if only is not None:
        paths = {flow: path for flow, path in paths.items() if flow == only}
    edges = _edges(paths.values())
    total = sum(edge["total_ns"] for edge in edges)
    bottlenecks = _bottlenecks(edges, total)
    missing: dict[str, list[str]] = {}
    out_of_order: dict[str, list[str]] = {}
    repeated: dict[str, dict[str, int]] = {}
    unfinished: list[str] = []
    for flow, path in paths.items():
        names = [step.name for step in path]
        made = Counter(names)
        if lacking := [name for name in wanted if name not in made]:
            missing[flow] = lacking
        if early := _too_early(names, expected):
            out_of_order[flow] = early
        if more := {name: times for name, times in made.items() if times > 1}:
            repeated[flow] = more
        if last and (not last & made.keys() if expected else names[-1] not in last):
            unfinished.append(flow)
    return {
        "found": bool(paths),
        "flows": len(paths),
        "steps": sum(map(len, paths.values())),
        "total_ns": total,
        "edges": edges[:LISTED],
        "bottlenecks": bottlenecks[:LISTED],
        "missing": _first(missing),
        "out_of_order": _first(out_of_order),
        "repeated": _first(repeated),
        "unfinished": unfinished[:LISTED],
        "counts": {
            "edges": len(edges),
            "bottlenecks": len(bottlenecks),
            "missing": len(missing),
            "out_of_order": len(out_of_order),
            "repeated": len(repeated),
            "unfinished": len(unfinished),
        },
    }


def _first(flows: dict[str, Any]) -> dict[str, Any]:
    return dict(list(flows.items())[:LISTED])


def _usual(paths: Iterable[list[Step]]) -> tuple[list[str], set[str]]:
    """What more than half of the flows do: their steps, and their last step."""
    made: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    flows = 0
    for path in paths:
        flows += 1
        made.update({step.name: 1 for step in path})
        ends[path[-1].name] += 1
    if flows < COMPARED_FLOWS:
        return [], set()
    return (
        [name for name, times in made.items() if times * 2 > flows],
        {name for name, times in ends.items() if times * 2 > flows},
    )


def _too_early(names: list[str], expected: Sequence[str]) -> list[str]:
    """The steps whose first time is before that of a step that is expected before them."""
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    latest = -1
    early = []
    for name in dict.fromkeys(expected):
        at = first.get(name)
        if at is not None:
            if at < latest:
                early.append(name)
            latest = max(latest, at)
    return early


def _edges(paths: Iterable[list[Step]]) -> list[dict[str, Any]]:
    times: dict[tuple[str, str], tuple[QuantileSketch, list[int]]] = {}
    for path in paths:
        for before, after in pairwise(path):
            sketch, sums = times.setdefault((before.name, after.name), (QuantileSketch(), [0, 0, 0]))
            took = after.at - before.at
            sketch.add(took)
            sums[0] += 1
            sums[1] += took
            sums[2] = max(sums[2], took)
    total = sum(sums[1] for _, sums in times.values())
    edges = []
    for (before_name, after_name), (sketch, (passed, together, longest)) in times.items():
        p50, p95 = sketch.quantiles((0.5, 0.95))
        edges.append(
            {
                "from": before_name,
                "to": after_name,
                "count": passed,
                "total_ns": together,
                "share": together / total if total else 0.0,
                "mean_ns": together / passed,
                "p50_ns": p50,
                "p95_ns": p95,
                "max_ns": longest,
            }
        )
    return sorted(edges, key=lambda edge: (-edge["total_ns"], edge["from"], edge["to"]))


def _bottlenecks(edges: list[dict[str, Any]], total: int) -> list[dict[str, Any]]:
    found = []
    passed = 0
    for edge in edges:
        reasons = []
        if len(edges) > 1 and passed < total * BOTTLENECK_SHARE:
            reasons.append("share")
        passed += edge["total_ns"]
        if edge["count"] >= TAIL_COUNT and edge["p95_ns"] > TAIL_FACTOR * edge["p50_ns"]:
            reasons.append("tail")
        if reasons:
            found.append({**edge, "reasons": reasons})
    return found
