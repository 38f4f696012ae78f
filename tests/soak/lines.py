"""What the soak prints: a line for the application and one for each sink, every few seconds.

What belongs here: the words. What does not: the figures.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamll.views.audit import Counts
from tests.soak.buckets import Buckets
from tests.soak.report import SinkReport
from tests.soak.verdict import Memory

_SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def clock(seconds: float) -> str:
    """A stretch of time, such as 12:07 or 1:00:00."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def times(buckets: Buckets, unit: int, shares: Iterable[str]) -> str:
    """Quantiles, each divided by a unit: p50 3.1, p99 9.6."""
    found = {share: buckets.quantile(_SHARES[share]) for share in shares}
    return ", ".join(f"{share} {'-' if time is None else f'{time / unit:.1f}'}" for share, time in found.items())


def application_line(elapsed: float, emit: Buckets, memory: Memory) -> str:
    """What the host feels."""
    return f"{clock(elapsed)} application: emit {times(emit, 1000, _SHARES)} us; {memory}"


def sink_line(name: str, sink: SinkReport, arrival: Buckets, faults: Iterable[str]) -> str:
    """What a sink says, and what was done to it."""
    counts = {"offered": sink.offered, "accepted": sink.accepted, "delivered": sink.delivered}
    counts |= {"dead letters": sink.dead_lettered}
    counts |= {f"refused ({reason})": count for reason, count in sink.refused.items()}
    counts |= {f"dropped ({reason})": count for reason, count in sink.dropped.items()}
    counts |= {"buffered": sink.buffered, "in flight": sink.in_flight}
    words = [f"{what} {count:,}" for what, count in counts.items()]
    words += ["balanced" if sink.balanced else "DOES NOT BALANCE", f"circuit {sink.circuit}"]
    line = f"      {name}: {', '.join(words)}; arrival {times(arrival, 1000, ('p50', 'p99'))} ms"
    return "\n".join([line, *(f"        fault: {fault}" for fault in faults)])


def read_line(counts: Counts) -> str:
    """What was read back from a sink's broker."""
    return (
        f"        read back: {counts.events:,} events, {counts.dead_letters:,} dead letters, "
        f"{counts.declared:,} declared as dropped, {counts.undeclared:,} lost without a word, "
        f"{counts.doubles + counts.late:,} doubles, {counts.redelivered:,} delivered to the reader again, "
        f"{counts.out_of_order:,} out of order"
    )
