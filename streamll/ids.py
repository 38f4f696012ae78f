"""Identifiers in the shape of W3C Trace Context: 32 hex digits for a trace or an event, 16 for a span.

An execution is a trace, so its id is random (Trace Context level 2 asks for that). Events and spans are made far more
often: theirs count up from a random start, which is as unlikely to clash and costs a tenth.
"""

from __future__ import annotations

import os
import re
from itertools import count
from random import Random


def _randbits(n: int) -> int:
    """`secrets.randbits`, whose module takes four milliseconds to import."""
    return int.from_bytes(os.urandom(n // 8 + 1), "big") % (1 << n)


# One C call each, so that threads cannot be handed the same number and no lock is needed. The free top bit is room to
# count for ever without an overflow, and one added to it keeps a span's id from being all zero.
_next_event = count(_randbits(127)).__next__
_next_span = count(_randbits(63) + 1).__next__
_random_bits = Random(_randbits(256)).getrandbits  # noqa: S311  # an id is no secret; one from the system costs a microsecond

_SHAPE = re.compile(r"[0-9a-f]{16}(?:\.?[0-9a-f]{16})?")


def has_our_shape(label: str) -> bool:
    """Return whether an id has the shape of those that are made here, which say nothing of anybody."""
    return _SHAPE.fullmatch(label) is not None


def new_event_id() -> str:
    """Return a new event id: 32 lower-case hex digits, unique across processes."""
    return _next_event().to_bytes(16, "big").hex()


def new_span_id() -> str:
    """Return a new span id: 16 lower-case hex digits, never all zero."""
    return _next_span().to_bytes(8, "big").hex()


def new_execution_id() -> str:
    """Return a new execution id, which is also a W3C trace id: 32 random lower-case hex digits, never all zero."""
    return (_random_bits(128) or 1).to_bytes(16, "big").hex()


def new_producer_id(parent: str = "") -> str:
    """Return a new producer id: 16 random lower-case hex digits; one for each sink of each process.

    Args:
        parent: The id of the producer in the process that this one was forked from. Its own digits then stand before
            the new ones, with a dot between them: `9f0c2d4e6a8b1c3d.0123456789abcdef`.
    """
    own = os.urandom(8).hex()
    return f"{parent[-len(own) :]}.{own}" if parent else own


def parent_of(producer: str) -> str:
    """Return the own digits of the producer that a producer was forked from; empty when it was not forked."""
    return producer.rpartition(".")[0]


def _reseed() -> None:
    global _next_event, _next_span, _random_bits
    _next_event = count(_randbits(127)).__next__
    _next_span = count(_randbits(63) + 1).__next__
    _random_bits = Random(_randbits(256)).getrandbits  # noqa: S311  # as above


if hasattr(os, "register_at_fork"):  # Windows has no fork
    # A child would go on from its parent's numbers, and both would make the same ids.
    os.register_at_fork(after_in_child=_reseed)
