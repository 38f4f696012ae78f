"""What an audit found, for people: a table, what there is to say of each producer, and a verdict.

What belongs here: words. What does not: what is counted (audit.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from streamll.views.audit import AuditReport, ProducerAudit
from streamll.views.line import neutral
from streamll.views.notes import shown_ranges, shown_reasons
from streamll.views.table import aligned

_MOST_ROWS = 50
_SHOWN_NAME = 60
_SHOWN_GAPS = 10

_COLUMNS: tuple[str, ...] = (
    *("producer", "events", "doubles", "out of order", "first", "last"),
    *("declared", "dead letters", "undeclared", "end"),
)


def audit_lines(report: AuditReport, waiting: int = 0) -> list[str]:
    """Return what an audit found as lines, the verdict last; no text of an entry can harm a terminal.

    Args:
        report: What it found.
        waiting: How many of the undeclared numbers are not to be judged yet, since they may still come.
    """
    # Whoever lost something is shown, however many there are; a sort keeps the order of the others.
    rows = sorted(report.producers, key=lambda row: -row.counts.undeclared)
    shown, more = rows[:_MOST_ROWS], len(rows) - _MOST_ROWS
    lines = _table(shown)
    if more > 0:
        lines.append(f"and {more:,} more producers, which are in the counts below (--json shows all)")
    for row in shown:
        lines += [f"{_name(row)}: {text}" for text in _remarks(row, report.whole)]
    return [*lines, *_overall(report, waiting), verdict(report, waiting)]


def verdict(report: AuditReport, waiting: int = 0) -> str:
    """Return the outcome in one line; arguments as of `audit_lines`."""
    total = report.total
    lost = total.undeclared - waiting
    if lost > 0:
        losers = sum(row.counts.undeclared > 0 for row in report.producers)
        return f"UNDECLARED LOSS: {_many(lost, 'number')} of {_many(losers, 'producer')} missing, and nothing says why"
    of = _many(len(report.producers) + report.forgotten, "producer")
    declared = f"; {_many(total.declared, 'event')} declared lost" if total.declared else ""
    return f"no undeclared loss: {_many(total.events, 'event')} of {of}{declared}"


def _table(rows: list[ProducerAudit]) -> list[str]:
    table = [_COLUMNS]
    for row in rows:
        counts = row.counts
        numbers = (counts.events, counts.doubles, counts.out_of_order, row.first, row.last)
        losses = (counts.declared, counts.dead_letters, counts.undeclared)
        end = "closed" if row.closed else "open"
        table.append((_name(row), *(f"{n:,}" for n in (*numbers, *losses)), end))
    return aligned(table, left=(0, len(_COLUMNS) - 1))


def _remarks(row: ProducerAudit, whole: bool) -> Iterator[str]:
    """What the table does not say."""
    counts = row.counts
    if row.parent:
        yield f"forked from {neutral(row.parent)[:_SHOWN_NAME]}"
    if counts.undeclared:
        text = shown_ranges(row.ranges, counts.gaps, _SHOWN_GAPS) if row.ranges else "not remembered which"
        yield f"UNDECLARED: {_many(counts.undeclared, 'number')} missing: {text}"
    if row.first > 1 and not whole:
        yield f"begins at {row.first:,}: what came before was trimmed, or not read"
    if row.reasons:
        yield f"declared lost: {neutral(shown_reasons(row.reasons))}"
    if counts.after_all:
        yield f"{_many(counts.after_all, 'declared number')} there after all, which is no loss"
    if counts.unread:
        yield f"{_many(counts.unread, 'number')} may have gone before we read there: not judged"
    if counts.redelivered:
        yield f"{_many(counts.redelivered, 'message')} delivered again: not counted as double"
    if counts.malformed:
        yield f"{_many(counts.malformed, 'note')} malformed: what they declare does not count"
    if counts.late:
        yield f"{_many(counts.late, 'entry', 'entries')} too late to be told from doubles"
    if counts.declared_late:
        yield f"{_many(counts.declared_late, 'number')} declared too late to be remembered: counted as undeclared"


def _overall(report: AuditReport, waiting: int) -> Iterator[str]:
    if report.forgotten:
        yield f"{_many(report.forgotten, 'producer')} set aside after they had closed or fallen silent: in the counts only"
    if report.strangers:
        yield f"{_many(report.strangers, 'entry', 'entries')} without a producer and number: not judged"
    still_open = len(report.producers) + report.forgotten - report.closed
    if still_open:
        yield f"{_many(still_open, 'producer')} not closed: what they sent last cannot be judged"
    if waiting:
        yield f"{_many(waiting, 'number')} missing for a short time only: not judged yet"


def _name(row: ProducerAudit) -> str:
    return neutral(row.producer)[:_SHOWN_NAME]


def _many(number: int, what: str, plural: str = "") -> str:
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
