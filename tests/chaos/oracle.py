"""The oracle: it sees every event that is offered to a sink, and judges what the sink says became of it.

What belongs here: the rules that hold for every sink after every scenario. What does not: how events get lost on the way
(the scenarios), or how to look into a destination.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from streamll.delivery.gaps import DROPPED_BEFORE_CRASH, LOST_IN_CRASH
from streamll.errors import BufferFullError
from streamll.models import CLOSING, GAP, NOTES, StreamllEvent
from streamll.sinks.base import DeliveryReport, Sink, SinkStats


@dataclass(frozen=True)
class Found:
    """An event, or a sink's note, as it lies at a destination or among its dead letters."""

    producer: str
    seq: int
    event_id: str
    event_type: str
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def is_note(self) -> bool:
        """Whether the sink wrote it of itself."""
        return self.event_type in NOTES

    def ranges(self) -> list[tuple[int, int]]:
        """What a gap note declares."""
        return [(first, last) for first, last in self.data["ranges"]]


@dataclass(frozen=True)
class Place:
    """All that is at a destination in the end, in its order.

    Attributes:
        stored: The events, notes among them.
        dead: The dead letters.
        once: Whether nothing may be there twice.
        ordered: Whether a producer's events must be there in their order.
        fenced: Whether nothing gets in behind something younger, so that notes are in their places too. Without a
            fence the note of what is given up late comes after what is there already.
    """

    stored: Sequence[Found]
    dead: Sequence[Found] = ()
    once: bool = True
    ordered: bool = True
    fenced: bool = True


class Witness:
    """All that was offered to one sink, and all that it reported."""

    def __init__(self) -> None:
        self.offered = 0
        self.refused = 0
        self.reports: list[DeliveryReport] = []
        self.lines: list[list[str]] = [[]]  # ids that were accepted, in order, one line for each emitting thread

    def offer(self, sink: Sink, event: StreamllEvent) -> bool:
        """Hand an event over, and remember what was said."""
        self.offered += 1
        try:
            accepted = sink.handle_event(event)
        except BufferFullError:
            accepted = False
        if accepted:
            self.lines[0].append(event.event_id)
        else:
            self.refused += 1
        return accepted

    def add(self, other: Witness) -> None:
        """Add what another witness saw of the same sink, such as one thread's."""
        self.offered += other.offered
        self.refused += other.refused
        self.lines += other.lines

    @property
    def accepted(self) -> set[str]:
        """The ids of what was accepted."""
        return {event_id for line in self.lines for event_id in line}


class Verdict(list[str]):
    """What is wrong; empty when all is well."""

    def hold(self, condition: object, text: str) -> None:
        """Note what is wrong unless the condition is true."""
        if not condition:
            self.append(text)


def judge(
    witness: Witness,
    stats: SinkStats,
    place: Place,
    closing: bool | None = None,
    defects: int = 0,
    may_miss: int | None = 0,
) -> Verdict:
    """Hold what a stopped sink says against what it was given and what is at the destination.

    Args:
        witness: What it was given, and its reports.
        stats: What it says in the end.
        place: What is at the destination, once nothing of it is in the spool any more.
        closing: Whether its closing record must be there; None: it may.
        defects: How many errors its transport has raised.
        may_miss: Of what it had spooled, how many events those that adopted it have counted as dropped; None: nobody
            knows, since they died too.
    """
    verdict = Verdict()
    hold = verdict.hold
    hold(stats.defects == defects, f"{stats.defects} defects, where the transport raised {defects}: {stats.last_error}")
    _judge_numbers(hold, witness, stats)
    fates = _judge_reports(hold, witness, stats)
    stored = [found for found in place.stored if found.producer == stats.producer]
    dead = [found for found in place.dead if found.producer == stats.producer]
    _judge_place(hold, fates, place, stored, dead)
    left = set(range(1, stats.accepted + 1)) - fates.keys()
    missing = left - {found.seq for found in (*stored, *dead) if not found.is_note}
    hold(may_miss is None or len(missing) <= may_miss, f"spooled, and nowhere: {sorted(missing)}")
    _judge_events(hold, witness, fates, stored, dead)
    _judge_notes(hold, fates, stats, stored, dead, closing, missing)
    return verdict


def _judge_numbers(hold: Any, witness: Witness, stats: SinkStats) -> None:
    hold(stats.balanced, f"the balance does not hold: {stats}")
    hold(stats.offered == witness.offered, f"{witness.offered} were offered, and {stats.offered} counted")
    hold(stats.accepted == len(witness.accepted), f"{len(witness.accepted)} were accepted, {stats.accepted} counted")
    hold(sum(stats.refused.values()) == witness.refused, f"{witness.refused} were refused, counted: {stats.refused}")
    hold((stats.buffered, stats.in_flight) == (0, 0), "a stopped sink holds events in memory")
    hold(stats.bytes_held == 0, f"a stopped sink holds {stats.bytes_held} bytes")


def _judge_reports(hold: Any, witness: Witness, stats: SinkStats) -> dict[int, DeliveryReport]:
    """Each accepted event has one number and one fate, and the counts are those of the fates."""
    fates = {report.seq: report for report in witness.reports}
    hold(len(fates) == len(witness.reports), "an event was reported twice")
    expected = stats.accepted - stats.spooled
    hold(len(fates) == expected, f"{len(fates)} events were reported, not {expected}")
    hold(all(0 < seq <= stats.accepted for seq in fates), "a number was reported that was not given out")
    numbers = {report.event_id: report.seq for report in witness.reports}
    hold(len(numbers) == len(fates), "an event has two numbers")
    hold(numbers.keys() <= witness.accepted, "an event was reported that was not accepted")
    counted = Counter(report.status for report in fates.values())
    hold(
        counted["delivered"] == stats.delivered,
        f"delivered: {counted['delivered']} reported, {stats.delivered} counted",
    )
    hold(counted["dead_lettered"] == stats.dead_lettered, "dead letters are counted and reported differently")
    reasons = Counter(report.reason for report in fates.values() if report.status == "dropped")
    hold(reasons == Counter(stats.dropped), f"dropped: {dict(reasons)} reported, {stats.dropped} counted")
    return fates


def _judge_place(
    hold: Any, fates: dict[int, DeliveryReport], place: Place, stored: Sequence[Found], dead: Sequence[Found]
) -> None:
    """What was confirmed is there, what was given up is not, and nothing is what it should not be."""
    for found in (*stored, *dead):
        fate = fates.get(found.seq)
        if not found.is_note and fate is not None:
            hold(fate.event_id == found.event_id, f"number {found.seq} is that of two events")
    seqs = [found.seq for found in stored]
    events = {found.seq for found in stored if not found.is_note}
    letters = {found.seq for found in dead}
    if place.once:
        doubles = [seq for seq, n in Counter(seqs).items() if n > 1]
        hold(not doubles, f"twice at the destination: {doubles}")
        hold(len(letters) == len(dead), "a dead letter is there twice")
        hold(not events & letters, f"delivered and a dead letter: {sorted(events & letters)}")
    if place.ordered:
        firsts = list(dict.fromkeys(found.seq for found in stored if place.fenced or not found.is_note))
        hold(firsts == sorted(firsts), f"out of order: {[pair for pair in pairwise(firsts) if pair[0] > pair[1]]}")
    for seq, fate in fates.items():
        if fate.status == "delivered":
            hold(seq in events, f"{seq} was reported as delivered, and is not there")
        elif fate.status == "dead_lettered":
            hold(seq in letters, f"{seq} was reported as a dead letter, and is none")
            hold(seq not in events or not place.once, f"{seq} is a dead letter, and delivered too")
        elif fate.reason != "unconfirmed":
            hold(seq not in events | letters, f"{seq} was dropped ({fate.reason}), and is there")


def _judge_events(
    hold: Any, witness: Witness, fates: dict[int, DeliveryReport], stored: Sequence[Found], dead: Sequence[Found]
) -> None:
    """Whatever is there was accepted, and has one number."""
    numbers = {report.event_id: seq for seq, report in fates.items()}
    for found in (*stored, *dead):
        if not found.is_note:
            hold(found.event_id in witness.accepted, f"{found.seq} is there, and was never accepted")
            hold(numbers.setdefault(found.event_id, found.seq) == found.seq, f"{found.seq} has another number too")
    for line in witness.lines:
        seqs = [numbers[event_id] for event_id in line if event_id in numbers]
        hold(seqs == sorted(seqs), "numbers do not rise in the order in which a thread emitted")


def _judge_notes(
    hold: Any,
    fates: dict[int, DeliveryReport],
    stats: SinkStats,
    stored: Sequence[Found],
    dead: Sequence[Found],
    closing: bool | None,
    missing: set[int],
) -> None:
    """Gap notes declare what was dropped and nothing else, and a closing record is the truth."""
    gaps = {found.seq: found for found in stored if found.event_type == GAP}
    closings = [found for found in stored if found.event_type == CLOSING]
    declared: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    for gap in gaps.values():
        ranges = gap.ranges()
        numbers = [seq for first, last in ranges for seq in range(first, last + 1)]
        hold(numbers == sorted(set(numbers)), f"the ranges of a gap are not in order: {ranges}")
        hold(bool(numbers) and numbers[-1] == gap.seq, f"a gap has the number {gap.seq}, and declares {ranges}")
        hold(gap.data["count"] == len(numbers) == sum(gap.data["reasons"].values()), f"a gap miscounts: {gap.data}")
        declared.update(numbers)
        reasons.update(gap.data["reasons"])
    dropped = {seq: fate.reason for seq, fate in fates.items() if fate.status == "dropped"}
    # The next process cannot know whether the last note of one that died has arrived, and tells of it again.
    once = max(declared.values(), default=1) == 1 or DROPPED_BEFORE_CRASH in reasons
    hold(once, f"declared twice: {[seq for seq, n in declared.items() if n > 1]}")
    wrong = sorted(declared.keys() - dropped.keys() - missing)
    hold(not wrong, f"declared as dropped, and not dropped: {wrong}")
    told = Counter(dropped[seq] for seq in declared if seq in dropped)
    named = Counter({reason: n for reason, n in reasons.items() if reason not in (DROPPED_BEFORE_CRASH, LOST_IN_CRASH)})
    hold(
        (named - told).total() <= len(declared.keys() & missing) and reasons.total() == declared.total(),
        f"gaps give other reasons than the reports: {dict(reasons)}, {dict(told)}",
    )
    hold(len({found.seq for found in closings}) <= 1, "there are two closing records")
    hold(not closing or closings, "there is no closing record")
    hold(closing is not False or not closings, "there is a closing record")
    there = {found.seq for found in (*stored, *dead)}
    for last_word in closings:
        hold(last_word.seq == stats.accepted + 1, f"the closing record has number {last_word.seq}")
        hold(last_word.data["last"] == stats.accepted, f"the closing record says {last_word.data}")
        silent = sorted(
            seq for seq, why in dropped.items() if seq not in declared and not (why == "unconfirmed" and seq in there)
        )
        hold(not silent, f"closed, and dropped without a word: {[(seq, dropped[seq]) for seq in silent]}")
        hold(stats.spooled == 0, f"closed, with {stats.spooled} events in the spool")


def failure(
    place: str, seed: int, verdict: Verdict, options: dict[str, Any], history: Sequence[str], sink: Sink
) -> str:
    """What is wrong, how to see it again, and what was done."""
    lines = [f"scenario {seed} on {place}; again: make chaos ON={place} SEED={seed}", *verdict[:20]]
    lines += [f"  {line}" for line in (f"options: {options}", *history, str(sink.stats()))]
    return "\n".join(lines)
