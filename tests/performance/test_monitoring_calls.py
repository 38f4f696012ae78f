"""What one call of a tool takes, beside those of prometheus_client, OpenTelemetry and Sentry that do the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tests.performance.child import Child, Children
from tests.performance.measuring import Lap, Race
from tests.performance.programs import need
from tests.performance.results import Aim, Findings

BLOCKS = "median of blocks of 100 calls, a call's share, less an empty function's"

ALL = "a call's share of the processor time of all threads, what is put off included, less an empty function's"


def laps_of(
    race: Race, children: Children, names: Mapping[str, str], quick: bool, all_of_it: bool = False, n: int = 10_000
) -> dict[str, list[Lap]]:
    """Laps of calls, each in a process of its own.

    Args:
        names: The calls, and which child's they are.
        all_of_it: Whether to measure, too, what is put off: "cpu" in what a lap returns.
        n: How many calls a lap makes, unless the run is only a look.
    """
    homes: dict[str, Child] = {}
    for name, home in names.items():
        homes[name] = children.start(home, **{"call" if home == "tools" else "name": name})
    n, rounds = (min(n, 500), 2) if quick else (n, 9)
    more = {"all_of_it": True} if all_of_it else {}
    return race({name: partial(child, "lap", n=n, **more) for name, child in homes.items()}, rounds)


def of(laps: list[Lap], name: str = "block") -> list[float]:
    return [lap.value[name] for lap in laps]


def test_a_span(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    need("opentelemetry", "sentry_sdk")
    findings.about("monitoring", "A span, start and end, two attributes")
    ours = dict.fromkeys(("disabled_span_bare", "disabled_span", "root_span", "watched_span", "span"), "tools")
    laps = laps_of(race, children, {"opentelemetry": "peers", "sentry": "peers"} | ours, quick)
    span = of(laps["span"])
    findings.row("A span, before delivery", span, "us", aim=Aim(at_most=1.5), note=f"nobody takes its event; {BLOCKS}")
    findings.row("A span while all tools are on, before delivery", of(laps["watched_span"]), "us", note=BLOCKS)
    findings.row("A span that begins an execution, before delivery", of(laps["root_span"]), "us", note=BLOCKS)
    findings.row("A disabled span", of(laps["disabled_span_bare"]), "us", aim=Aim(at_most=0.1), note=BLOCKS)
    findings.row("A disabled span with two attributes", of(laps["disabled_span"]), "us", note="a dict is made of them")
    notes = {"opentelemetry": "to a BatchSpanProcessor that counts; three attributes", "sentry": "three attributes"}
    peers = {"opentelemetry": "OpenTelemetry SDK span", "sentry": "sentry-sdk span"}
    for name, label in peers.items():
        findings.row(label, of(laps[name]), "us", to=("ours, before delivery", span), note=notes[name])
    ours_too = {"span": "span, before delivery", "disabled_span_bare": "disabled span"}
    findings.series["calls"] = {label: of(laps[name]) for name, label in (ours_too | peers).items()}


def test_metrics(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    need("opentelemetry", "prometheus_client")
    findings.about("monitoring", "A counter and a histogram")
    kinds = {
        "counter": ("A counter's add", Aim(at_most=0.4)),
        "counter_labels": ("A counter's add, two labels", None),
        "histogram": ("A histogram's record", Aim(at_most=0.8)),
    }
    libraries = {"prometheus": "prometheus_client", "otel": "OpenTelemetry SDK"}
    names = [f"{library}_{kind}" for kind in kinds for library in libraries]
    laps = laps_of(race, children, dict.fromkeys((*names, *kinds), "tools"), quick, all_of_it=True)
    for kind, (words, aim) in kinds.items():
        ours = of(laps[kind], "cpu")
        findings.row(words, ours, "us", aim=aim, note=ALL)
        findings.row(f"{words}: the caller's time", of(laps[kind]), "us", note=BLOCKS)
        for library, label in libraries.items():
            findings.row(f"{words}: {label}", of(laps[f"{library}_{kind}"], "cpu"), "us", to=("ours", ours), note=ALL)
    labels = {"": "streamll"} | {f"{library}_": label for library, label in libraries.items()}
    findings.series["calls"] = {
        f"{label}: {kind.replace('_', ', ')}": of(laps[f"{library}{kind}"], "cpu")
        for kind in kinds
        for library, label in labels.items()
        if f"{library}{kind}" in laps
    }


def test_redaction(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    findings.about("monitoring", "Redaction of an event with twelve attributes")
    names = [f"redact_{how}_{what}" for what in ("none", "one", "five") for how in ("off", "keys", "full")]
    laps = laps_of(race, children, dict.fromkeys(names, "tools"), quick, n=2_000)
    # One in the text is nothing to who looks at keys alone, and five are more than events have.
    judged = {("keys", "none"): 0.5, ("full", "none"): 25.0, ("full", "one"): 25.0}
    for what, words in (("none", "nothing"), ("one", "an e-mail address"), ("five", "five")):
        off = of(laps[f"redact_off_{what}"])
        findings.row(f"emit, redact off, {words} to redact", off, "us", note=BLOCKS)
        for how, label in (("keys", "by key"), ("full", "full")):
            took = of(laps[f"redact_{how}_{what}"])
            findings.row(f"emit, redaction {label}, {words} to redact", took, "us", note=BLOCKS)
            added = [this - that for this, that in zip(took, off, strict=True)]
            aim = Aim(at_most=judged[how, what]) if (how, what) in judged else None
            note = "an emit with it less one without, round by round"
            note += "; below 0: what is usual, and so has a shorter way, is with it" if how == "keys" else ""
            findings.row(f"Redaction {label} adds, {words} to redact", added, "us", aim=aim, note=note)


def test_trace_event(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    findings.about("monitoring", "EventTracer.trace_event: kept, and sent out")
    own = laps_of(race, children, {"trace_event": "tools"}, quick, all_of_it=True)["trace_event"]
    note = "three attributes, redacted by key; kept for get_events, and in a sink's buffer"
    findings.row("Event latency: trace_event, median", of(own, "median"), "us", note=note)
    findings.row("Event latency: trace_event, p95", of(own, "p95"), "us", aim=Aim(at_most=5.0), note=note)
    findings.row("Event latency: trace_event, p99", of(own, "p99"), "us")
    findings.row("trace_event: processor time", of(own, "cpu"), "us", note=f"{ALL}; delivery to nowhere is in it")


def test_tracing(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    findings.about("monitoring", "Functions and streams that are traced, before delivery")
    calls = {
        "traced": "A call of a function under @trace",
        "called": "A call of a function",
        "auto_traced": "A call of a function that a pattern names",
        "auto_traced_too_often": "The same, called more often than it is traced",
        "stream_item_bare": "An item of a stream",
        "stream_item": "An item of a stream that is watched",
    }
    laps = laps_of(race, children, dict.fromkeys(calls, "tools"), quick)
    for name, words in calls.items():
        findings.row(words, of(laps[name]), "us", note=BLOCKS)


def test_profile(race: Race, findings: Findings, children: Children, quick: bool) -> None:
    findings.about("monitoring", "@profile on a function")
    own = laps_of(race, children, {"profiled": "tools"}, quick, all_of_it=True)["profiled"]
    findings.row("A profiled call, above a plain one", of(own), "us", note=BLOCKS)
    findings.row("A profiled call, above a plain one: p95", of(own, "p95"), "us")
    findings.row("A profiled call, above a plain one: processor time", of(own, "cpu"), "us", note=ALL)
