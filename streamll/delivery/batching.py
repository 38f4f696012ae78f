"""What goes in a batch, and how a rejected one is divided."""

from __future__ import annotations

from collections.abc import Sequence

from streamll.delivery.outcome import Entry
from streamll.options import SinkOptions


def batch_limit(options: SinkOptions) -> int:
    """The events that make a batch full: batch_size, but at most half of the buffer, which stays free to accept."""
    return max(1, min(options.batch_size, options.buffer_size // 2))


def byte_limit(options: SinkOptions) -> int:
    """The payload bytes that a batch may hold: batch_bytes, but at most half of the buffer's."""
    return min(options.batch_bytes, options.buffer_bytes // 2)


def next_size(waiting: int, options: SinkOptions) -> int:
    """How many events the next batch may hold while so many wait.

    A batch grows with the backlog, up to batch_growth times its size: a host that keeps the interpreter busy lets the
    worker run a few hundred times a second only, so when events come faster, each run must carry more of them.
    """
    limit = batch_limit(options)
    grown = min(waiting, limit * options.batch_growth, options.buffer_size // 2)
    return max(limit, grown)


def halves(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Divide a batch of two or more entries, to find the one that is rejected; the first half is never the smaller."""
    middle = (len(entries) + 1) // 2
    return list(entries[:middle]), list(entries[middle:])
