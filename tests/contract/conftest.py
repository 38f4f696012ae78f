"""The destinations and outages that the contract is shown for, and what its tests share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamll.delivery.gaps import ranges_of
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.sinks.base import Sink
from tests.contract.destinations import (
    Destination,
    FileDestination,
    MemoryDestination,
    Outage,
    RabbitMQDestination,
    RedisDestination,
    SQLiteDestination,
    TerminalDestination,
)
from tests.fixtures.process import ServerUnavailable, skip_or_fail
from tests.fixtures.rabbitmq import RabbitMQServer
from tests.fixtures.waiting import PATIENCE

FRAMED = "-framed"
"""Behind the name of a destination or an outage: many events may share an entry or message there."""

DESTINATIONS = ("memory", "file", "terminal", "sqlite", "redis", "redis-framed", "rabbitmq", "rabbitmq-framed")

OUTAGES = (
    *("file-folder", "file-locked", "terminal-unread", "sqlite-locked"),
    *("redis-refused", "redis-refused-framed", "rabbitmq-refused", "rabbitmq-refused-framed"),
)
"""One quick one for each destination that can be hurt; two for the file, since one looks lasting and one does not."""

SILENT_OUTAGES = (
    *("redis-stalled", "redis-frozen", "redis-frozen-framed"),
    *("rabbitmq-stalled", "rabbitmq-frozen", "rabbitmq-frozen-framed"),
)
"""Connections stay open, and nothing answers; for tests of waiting."""

CRASHES = ("redis-killed", "redis-killed-framed", "rabbitmq-killed", "rabbitmq-killed-framed")
"""A server that has to start again: for the tests that are about the outage itself."""


QUICK = {
    "flush_interval": 0.01,
    "retry_base": 0.01,
    "retry_bound": 0.05,
    "recovery_timeout": 0.1,
    "recovery_bound": 0.2,
    "connect_timeout": 1.0,
    "send_timeout": 0.4,
}
"""Options under which an outage is noticed, and its end too, within a second or two."""


def make_event(n: int = 0, **fields: Any) -> StreamllEvent:
    """An event whose id is in its data too, for destinations that show no more than that."""
    event = StreamllEvent(event_type="test", operation="contract", execution_id="0af7651916cd43dd8448eb211c80319c")
    event.data = {"id": event.event_id, "n": n, "password": "hunter2", **fields}
    return event


def emit(sink: Sink, count: int) -> list[str]:
    """Hand events over, each of which must be accepted; returns their ids."""
    events = [make_event(n) for n in range(count)]
    for event in events:
        assert sink.handle_event(event)
    return [event.event_id for event in events]


def ids_at(destination: Destination) -> list[str]:
    """The ids of the events that are there, in order, without the doubles that this destination may have."""
    ids = [stored.event_id for stored in destination.stored()]
    if destination.exactly_once:
        assert len(set(ids)) == len(ids), "a double"
        return ids
    return list(dict.fromkeys(ids))


@dataclass(frozen=True)
class Told:
    """What the notes of one producer tell a reader.

    Attributes:
        gaps: First and last number of each range that was declared as dropped, in order, however many notes say it.
        reasons: How many numbers for which reason.
        last: The number of the last event, as its closing record has it; None when there is no such record.
    """

    gaps: tuple[tuple[int, int], ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    last: int | None = None


def told(destination: Destination, producer: str) -> Told:
    """What the notes of a producer say, each of which must be well made, in its place, and true as far as is to be seen."""
    there = [stored for stored in destination.everything() if stored.producer == producer]
    if destination.exactly_once:
        seqs = [stored.seq for stored in there]
        assert seqs == sorted(set(seqs)), "out of order, or a note in the place of an event"
    there = list({stored.seq: stored for stored in reversed(there)}.values())[::-1]
    declared: list[int] = []
    reasons: Counter[str] = Counter()
    last = None
    for note in filter(lambda stored: stored.is_note, there):
        if note.event_type == CLOSING:
            last = note.data["last"]
            assert note.seq == last + 1
            assert note is there[-1], "it goes on behind the closing record"
            continue
        assert note.event_type == GAP
        ranges = [(first, last) for first, last in note.data["ranges"]]
        assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))
        numbers = [seq for first, last in ranges for seq in range(first, last + 1)]
        assert note.seq == numbers[-1]
        assert note.data["count"] == len(numbers) == sum(note.data["reasons"].values())
        declared += numbers
        reasons.update(note.data["reasons"])
    assert len(declared) == len(set(declared)), "declared twice"
    if "unconfirmed" not in reasons:  # which may be there all the same
        assert not set(declared) & {stored.seq for stored in there if not stored.is_note}, "declared, and there"
    return Told(tuple(ranges_of(sorted(declared))), dict(reasons), last)


def assert_told(
    destination: Destination,
    producer: str,
    last: int | None,
    gaps: Sequence[tuple[int, int]] = (),
    reasons: Mapping[str, int] | None = None,
) -> None:
    """The notes of a producer must be these, where notes are kept; else there must be none."""
    expected = Told(tuple(gaps), reasons or {}, last) if destination.keeps_notes else Told()
    assert told(destination, producer) == expected


class BalanceWatch:
    """Reads the stats of a sink all the time, and keeps the first that do not add up."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="balance-watch", daemon=True)
        self.wrong: object = None
        self._thread.start()

    def _watch(self) -> None:
        last = self._sink.stats()
        while not self._ended.wait(0.0005):
            stats = self._sink.stats()
            settled = stats.delivered + stats.dead_lettered
            went_back = stats.offered < last.offered or settled < last.delivered + last.dead_lettered
            if self.wrong is None and (not stats.balanced or went_back):
                self.wrong = stats
            last = stats

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)
        assert self.wrong is None, self.wrong
        assert self._sink.stats().balanced


@pytest.fixture
def watch() -> Iterator[Callable[[Sink], BalanceWatch]]:
    """Have the balance of a sink read all the time, and be right each time."""
    watches: list[BalanceWatch] = []

    def begin(sink: Sink) -> BalanceWatch:
        watches.append(BalanceWatch(sink))
        return watches[-1]

    yield begin
    for one in watches:
        one.end()


@pytest.fixture(scope="session")
def hurt_rabbitmq() -> Iterator[RabbitMQServer]:
    """A RabbitMQ that tests of this process may freeze and kill, one after the other: a start takes too long for each."""
    try:
        server = RabbitMQServer()
    except ServerUnavailable as error:
        skip_or_fail(str(error))
        raise
    try:
        server.start()
        yield server
    finally:
        server.close()


def marked(names: tuple[str, ...]) -> list[Any]:
    """Parameters with the marks of the servers they need."""
    params = []
    for name in names:
        service = name.partition("-")[0]
        marks = [getattr(pytest.mark, service), pytest.mark.integration] if service in ("redis", "rabbitmq") else []
        params.append(pytest.param(name, marks=marks))
    return params


def framing_of(name: str) -> str:
    """The option `framing` for a destination or an outage of that name."""
    return "batch" if name.endswith(FRAMED) else "single"


def make_destination(name: str, request: pytest.FixtureRequest, folder: Path) -> Destination:
    """The destination of that name, on servers that others use too."""
    if name.removesuffix(FRAMED) == "redis":
        return RedisDestination(request.getfixturevalue("redis_server"), framing=framing_of(name))
    if name.removesuffix(FRAMED) == "rabbitmq":
        return RabbitMQDestination(request.getfixturevalue("rabbitmq_server"), framing=framing_of(name))
    if name == "file":
        return FileDestination(folder)
    if name == "sqlite":
        return SQLiteDestination(folder)
    return TerminalDestination() if name == "terminal" else MemoryDestination()


def make_outage(name: str, request: pytest.FixtureRequest, folder: Path) -> Outage:
    """The destination and the way to hurt it of that name."""
    service, _, way = name.removesuffix(FRAMED).partition("-")
    framing = framing_of(name)
    if service == "file":
        file = FileDestination(folder)
        if way == "locked":
            return Outage(file, file.lock, file.unlock)
        return Outage(file, file.put_a_folder_there, file.take_the_folder_away, fatal=True)
    if service == "sqlite":
        sqlite = SQLiteDestination(folder)
        return Outage(sqlite, sqlite.lock, sqlite.unlock)
    if service == "terminal":
        terminal = TerminalDestination()
        return Outage(terminal, terminal.stop_reading, terminal.read_again)
    if way in ("refused", "stalled"):
        shared = request.getfixturevalue(f"{service}_server")
        kind = RedisDestination if service == "redis" else RabbitMQDestination
        proxied = kind(shared, proxied=True, framing=framing)
        assert proxied.proxy is not None
        return Outage(proxied, proxied.proxy.refuse if way == "refused" else proxied.proxy.stall, proxied.proxy.heal)
    if service == "redis":
        server = request.getfixturevalue("own_redis")(appendonly="yes", appendfsync="always")
        destination: Destination = RedisDestination(server, framing=framing)
    else:
        server = request.getfixturevalue("hurt_rabbitmq")
        destination = RabbitMQDestination(server, framing=framing)
    if way == "frozen":
        return Outage(destination, server.freeze, server.thaw)
    return Outage(destination, server.kill, server.start)


@pytest.fixture(params=marked(DESTINATIONS))
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    """Each destination."""
    made = make_destination(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=marked(DESTINATIONS))
def poisonable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    """Each destination, on a server of its own where only a setting of the server makes it reject anything."""
    if request.param.removesuffix(FRAMED) == "redis":
        server = request.getfixturevalue("own_redis")(proto_max_bulk_len="1mb")
        made: Destination = RedisDestination(server, framing=framing_of(request.param))
    else:
        made = make_destination(request.param, request, tmp_path)
    yield made
    made.close()


@pytest.fixture(params=marked(OUTAGES))
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    """Each destination that can be hurt, with a quick way to do so."""
    made = make_outage(request.param, request, tmp_path)
    yield made
    made.end()
    made.destination.close()


@pytest.fixture(params=marked(OUTAGES + SILENT_OUTAGES))
def silent_outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    """Each destination that can be hurt, with those ways too in which nothing answers."""
    made = make_outage(request.param, request, tmp_path)
    yield made
    made.end()
    made.destination.close()


@pytest.fixture(params=marked(OUTAGES + SILENT_OUTAGES + CRASHES))
def any_outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    """Each destination that can be hurt, with every way to do so."""
    made = make_outage(request.param, request, tmp_path)
    yield made
    made.end()
    made.destination.close()
