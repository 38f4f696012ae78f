"""The verdict: what the application counted, what the sinks say, and what was read at the brokers, held against each other.

What belongs here: the rules; no thread, clock or server. What does not: how any of it was found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamll.ranges import RangeSet
from streamll.views.audit import AuditReport
from tests.chaos.oracle import Verdict
from tests.soak.report import SinkReport

MIB = 1024 * 1024


@dataclass(frozen=True)
class Read:
    """What was read at one broker, all of it.

    Attributes:
        once: Whether nothing may be there twice, and all must be in order.
        audit: By the sink's numbers.
        sources: By the numbers that the sources gave: those that arrived, dead letters too.
        again: How many of those came more than once.
    """

    once: bool
    audit: AuditReport
    sources: Mapping[str, RangeSet]
    again: int


QUIET, FILLING, SETTLING, EARLY, MIDDLE, LATE = range(6)
"""The phases of a soak: load before any buffer was full, the rest of the warm-up, and the quarters of what comes then."""


@dataclass
class Memory:
    """The resident memory of the application, in bytes, and its two bounds.

    At any moment: what it had under load before any buffer was ever full, `growth` more, what the sinks' buffers have held
    by their own count, and a reserve for batches on their way.

    In the long run: the least that it had in the last quarter is not more than `growth` above the least of the second,
    when all has been used that is loaded on first use. Whatever outages take for a while, a leak lifts the floor.

    Attributes:
        growth: The share by which it may grow.
        reserve: What batches need that are packed and sent.
        held: The most that the buffers held.
        quiet: The most before any buffer was full.
        warm: The last measurement of the warm-up.
        peak: The most since then.
        now: The last measurement.
        floors: The least by phase.
    """

    growth: float
    reserve: int = 0
    held: int = 0
    quiet: int = 0
    warm: int = 0
    peak: int = 0
    now: int = 0
    floors: dict[int, int] = field(default_factory=dict)

    def see(self, rss: int, phase: int) -> None:
        """Take a measurement in."""
        self.now = rss
        self.floors[phase] = min(rss, self.floors.get(phase, rss))
        if phase == QUIET:
            self.quiet = max(self.quiet, rss)
        if phase in (QUIET, FILLING):
            self.warm = rss
        else:
            self.peak = max(self.peak, rss)

    @property
    def bound(self) -> int:
        """What there may be at any moment."""
        return int(self.quiet * (1 + self.growth)) + self.held + self.reserve

    @property
    def within(self) -> bool:
        """Whether that holds so far."""
        return self.peak <= self.bound

    def judge(self) -> Verdict:
        """Say what is wrong at the end."""
        verdict = Verdict()
        verdict.hold(
            self.within,
            f"the application grew to {self.peak / MIB:.1f} MiB, where {self.bound / MIB:.1f} are allowed: "
            f"{self.quiet / MIB:.1f} at first and {self.growth:.0%}, {self.held / MIB:.1f} that the buffers held, "
            f"{self.reserve / MIB:.1f} for batches",
        )
        early, late = self.floors.get(EARLY, 0), self.floors.get(LATE, 0)
        verdict.hold(
            late <= early * (1 + self.growth),
            f"the application never has less than {late / MIB:.1f} MiB in the last quarter, where it had "
            f"{early / MIB:.1f} in the second: more than {self.growth:.0%} above",
        )
        return verdict

    def __str__(self) -> str:
        if not self.peak:
            return f"RSS {self.now / MIB:.1f} MiB (warm-up)"
        floors = ", ".join(f"{self.floors[phase] / MIB:.1f}" for phase in sorted(self.floors) if phase >= SETTLING)
        return (
            f"RSS {self.now / MIB:.1f} MiB ({self.now / self.warm - 1:+.1%} since the warm-up; "
            f"peak {self.peak / MIB:.1f}, bound {self.bound / MIB:.1f}; floor {floors})"
        )


def judge(name: str, emitted: Mapping[str, int], sink: SinkReport, read: Read) -> Verdict:
    """Say what is wrong at the end, when all that could be delivered was.

    Args:
        name: The sink's.
        emitted: How many events each source emitted; they are numbered from 0 on.
        sink: What the stopped sink says.
        read: What was read.
    """
    verdict = Verdict()

    def hold(condition: object, text: str) -> None:
        verdict.hold(condition, f"{name}: {text}")

    total, counts = sum(emitted.values()), read.audit.total
    hold(sink.balanced, f"the balance does not hold: {sink}")
    hold(sink.offered == total, f"the application emitted {total}, and the sink counts {sink.offered} as offered")
    hold(sink.settled == sink.accepted, f"of {sink.accepted} accepted events the fate of {sink.settled} is known")
    hold(sink.delivered > 0, "nothing was delivered")
    hold(not sink.defects and not sink.callback_errors, f"defects: {sink.last_error}")
    hold(not sink.lost_after_ack, f"{sink.lost_after_ack} counted as lost by a server that loses none")

    # By the sink's numbers
    producers = [row.producer for row in read.audit.producers]
    hold(producers == [sink.producer], f"events of {producers}, where the sink is {sink.producer}")
    hold(read.audit.closed == 1, "there is no closing record")
    hold(not counts.undeclared, f"{counts.undeclared} lost without a word: {_ranges(read.audit)}")
    hold(not counts.unread, f"{counts.unread} may have gone before they were read: the reader was too slow")
    hold(not counts.malformed and not read.audit.strangers, "there is what no sink writes")
    # What was given up without an answer may have arrived.
    unsure = sink.dropped.get("unconfirmed", 0)
    most = sink.delivered + unsure
    hold(
        sink.delivered <= counts.events <= most, f"{sink.delivered} were delivered by its word, and {counts.events} are"
    )
    hold(
        sink.dead_lettered <= counts.dead_letters <= sink.dead_lettered + unsure,
        f"{sink.dead_lettered} dead letters by its word, and {counts.dead_letters} are there",
    )
    hold(
        sink.lost - unsure <= counts.declared + counts.declared_late <= sink.lost,
        f"it dropped {sink.lost}, and declared {counts.declared}",
    )
    if read.once:
        hold(not counts.doubles and not counts.late, f"{counts.doubles + counts.late} are there twice")
        hold(not counts.out_of_order, f"{counts.out_of_order} are out of order")

    # By the numbers of the sources
    arrived = sum(numbers.count() for numbers in read.sources.values())
    expected = sink.delivered + sink.dead_lettered
    hold(expected <= arrived <= expected + unsure, f"{expected} have arrived by its word, and {arrived} have")
    strangers = read.sources.keys() - emitted.keys()
    hold(not strangers, f"events of sources that nobody knows: {sorted(strangers)}")
    for source, numbers in read.sources.items():
        beyond = [last for _, last in numbers if last >= emitted.get(source, 0)]
        hold(not beyond, f"{source} emitted {emitted.get(source, 0)}, and these are there too: {beyond[:5]}")
    if read.once:
        hold(not read.again, f"{read.again} of the sources' numbers are there twice")
    by_sink = counts.events + counts.dead_letters
    hold(arrived == by_sink, f"{arrived} have arrived by the sources' numbers, and {by_sink} by the sink's")
    return verdict


def _ranges(report: AuditReport) -> list[tuple[int, int]]:
    return [found for row in report.producers for found in row.ranges][:10]
