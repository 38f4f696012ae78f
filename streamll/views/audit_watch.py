"""An audit that goes on: what has changed since it was asked last.

What belongs here: which changes are told, and when. What does not: the clock, which is an argument.

A number is not called missing at once. A gap note may come some events behind the holes that it declares, RabbitMQ
delivers late what it had refused first, and a dead letter is read beside the stream. So a hole has a time of grace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from streamll.ranges import RangeSet
from streamll.views.audit import Audit, ProducerAudit
from streamll.views.line import neutral
from streamll.views.notes import shown_ranges, shown_reasons


@dataclass(frozen=True)
class Change:
    """Something that an audit found out.

    Attributes:
        kind: "producer" (a new one), "declared", "undeclared", "found" (seemed lost, and was not), "double",
            "dead_letter", "unread", "malformed" or "closed".
        producer: Whose.
        count: How many numbers, or entries.
        text: In words, harmless to a terminal.
    """

    kind: str
    producer: str
    count: int
    text: str


@dataclass
class _Known:
    """What was told of a producer.

    Attributes:
        row: What was known then.
        told: The undeclared numbers that were called missing.
        waiting: Those that have a time of grace still, by the time at which they were missed.
    """

    row: ProducerAudit | None = None
    told: RangeSet = field(default_factory=RangeSet)
    waiting: dict[float, RangeSet] = field(default_factory=dict)


class Watch:
    """Tells what changes in an audit.

    Args:
        audit: The audit.
        grace: Seconds for which a number may be missing before it is called so.
    """

    def __init__(self, audit: Audit, grace: float) -> None:
        self._audit = audit
        self._grace = grace
        self._known: dict[str, _Known] = {}

    def changes(self, now: float) -> list[Change]:
        """Return what has changed since the last call.

        Args:
            now: The time, in seconds of a clock that never goes back.
        """
        found: list[Change] = []
        names = dict.fromkeys(self._audit.changed())
        for name in [name for name in self._known if not self._audit.knows(name)]:
            del self._known[name]
        names.update((name, None) for name, known in self._known.items() if known.waiting)
        for name in names:
            known = self._known.setdefault(name, _Known())
            row = self._audit.producer(name)
            found += _news(known.row, row)
            found += self._holes(name, known, now)
            known.row = row
        return found

    @property
    def waiting(self) -> int:
        """How many missing numbers have not been called so yet, as of the last call of `changes`."""
        return sum(missing.count() for known in self._known.values() for missing in known.waiting.values())

    def _holes(self, name: str, known: _Known, now: float) -> Iterator[Change]:
        holes = self._audit.holes(name)
        known.told.cut_off(self._audit.settled_to(name))
        back = known.told.without(holes)
        known.told = known.told.within(holes)
        known.waiting[now] = holes.without(known.told.joined(*known.waiting.values()))
        missing = RangeSet()
        for since, waited in list(known.waiting.items()):
            left = known.waiting[since] = waited.within(holes)
            if now - since >= self._grace:
                missing = missing.joined(left)
            if now - since >= self._grace or not left:
                del known.waiting[since]
        known.told = known.told.joined(missing)
        shown = neutral(name)
        if missing:
            text = f"UNDECLARED LOSS: {missing.count():,} missing of {shown}: {shown_ranges(missing)}"
            yield Change("undeclared", name, missing.count(), text)
        if back:
            text = f"{back.count():,} that seemed lost of {shown} accounted for: {shown_ranges(back)}"
            yield Change("found", name, back.count(), text)


def _news(old: ProducerAudit | None, row: ProducerAudit) -> Iterator[Change]:
    """What is new in the counts of a producer."""
    name, counts = row.producer, row.counts
    shown = neutral(name)
    if old is None:
        origin = f", forked from {neutral(row.parent)}" if row.parent else ""
        yield Change("producer", name, 1, f"new producer {shown}{origin}, from number {row.first:,} on")

    def more(of: str) -> int:
        return int(getattr(counts, of)) - (int(getattr(old.counts, of)) if old else 0)

    declared = more("declared") + more("after_all")
    if declared > 0:
        before = old.reasons if old else {}
        reasons = {reason: n - before.get(reason, 0) for reason, n in row.reasons.items() if n > before.get(reason, 0)}
        why = f": {neutral(shown_reasons(reasons))}" if reasons else ""
        yield Change("declared", name, declared, f"{declared:,} declared lost by {shown}{why}")
    for kind, of, text in (
        ("double", "doubles", "there twice"),
        ("dead_letter", "dead_letters", "among the dead letters"),
        ("unread", "unread", "may have gone before we read there"),
        ("malformed", "malformed", "malformed notes"),
    ):
        if more(of) > 0:
            yield Change(kind, name, more(of), f"{more(of):,} of {shown} {text}")
    if row.closed and not (old and old.closed):
        yield Change("closed", name, row.last - 1, f"{shown} closed after {row.last - 1:,} events")
