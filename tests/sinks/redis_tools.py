"""What the tests of the Redis transport share: making one, batches for it, and what is really in the stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from streamll.brokers.redis_dialer import Dialer
from streamll.brokers.redis_url import parse_redis_url
from streamll.codec import decode
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import UnavailableError
from streamll.models import NOTES, Record
from streamll.sinks.redis_options import RedisOptions
from streamll.sinks.redis_transport import RedisTransport
from streamll.testing.proxy import FaultProxy
from streamll.wire.entry import WireEntry
from streamll.wire.redis import decode_entries, keys_for

PRODUCER = "p1"

_open: list[RedisTransport] = []


def record(payload: bytes) -> Record:
    return Record(payload, "application/msgpack", "id", "token", "generate", "mod", "fn", "info", "ex", 0, 0)


def entries(first: int, last: int, size: int = 20, dead: Sequence[int] = ()) -> list[Entry]:
    """Entries `first` to `last`, whose payloads say their number; those in `dead` are dead letters."""
    return [
        Entry(seq, record(b"%d:" % seq + b"x" * size), "told so" if seq in dead else "")
        for seq in range(first, last + 1)
    ]


def transport(
    url: str = "", stream: str = "events", *, client: Any = None, producer: str = PRODUCER, **options: Any
) -> RedisTransport:
    address = parse_redis_url(url) if url else None
    cluster = address.kind == "cluster" if address is not None else hasattr(client, "get_node_from_key")
    made = RedisOptions(stream=stream, **options)
    keys = keys_for(stream, producer, made.dead_letter_stream, cluster=cluster)
    sender = RedisTransport(Dialer(address, client, keys.stream), keys, producer, made)
    _open.append(sender)
    return sender


def close_all() -> None:
    """Close every transport that was made here; conftest.py does it after each test."""
    while _open:
        _open.pop().close(clean=False)


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def opened(url: str = "", stream: str = "events", **options: Any) -> RedisTransport:
    made = transport(url, stream, **options)
    made.open(soon())
    return made


def through(proxy: FaultProxy) -> str:
    return f"redis://{proxy.host}:{proxy.port}/0"


def deliver(sender: RedisTransport, batch: Sequence[Entry], seconds: float = 5.0) -> list[BatchOutcome]:
    """Send until everything is delivered, as the worker would: opening again, and sending what is left."""
    left = list(batch)
    outcomes: list[BatchOutcome] = []
    end = time.monotonic() + 20.0
    while left:
        assert time.monotonic() < end, outcomes[-3:]
        if not sender.is_open:
            try:
                sender.open(soon(seconds))
            except UnavailableError:
                time.sleep(0.02)
                continue
        outcome = sender.send(left, soon(seconds))
        outcomes.append(outcome)
        assert outcome.failure in (None, Failure.UNAVAILABLE), outcome
        assert not outcome.rejected
        kept = enumerate(left)
        left = [] if outcome.failure is None else [e for place, e in kept if place not in outcome.delivered]
    return outcomes


def read(client: Any, stream: str) -> list[WireEntry]:
    """All events of a stream, as a reader sees them."""
    return [entry for _, fields in client.xrange(stream) for entry in decode_entries(fields)]


def read_apart(client: Any, stream: str) -> tuple[list[WireEntry], list[WireEntry]]:
    """The events of a stream, and the notes that sinks left among them."""
    events: list[WireEntry] = []
    notes: list[WireEntry] = []
    for entry in read(client, stream):
        (notes if decode(entry.payload).event_type in NOTES else events).append(entry)
    return events, notes


def stored(client: Any, stream: str = "events", producer: str = PRODUCER) -> list[int]:
    """A producer's numbers in the stream, in its order, having checked that each payload is that of its number."""
    found = [entry for entry in read(client, stream) if entry.producer == producer]
    for entry in found:
        assert entry.payload.startswith(b"%d:" % entry.seq)
    return [entry.seq for entry in found]


def numbers(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))
