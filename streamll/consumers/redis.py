"""RedisConsumer: reads a Redis stream back, alone or as a member of a consumer group.

What belongs here: which command reads what, and what follows from its answer. What does not: the connection
(redis_connection.py), the fields of an entry (wire), doubles and iteration (base.py).

Alone, it asks for what is behind the last entry it read (XREAD), so it goes on after a reconnect by itself. In a group,
the server remembers who got what (XREADGROUP): after a reconnect come the entries that were delivered to this name
before, then what others left unacknowledged for `claim_idle` (XAUTOCLAIM, or XPENDING and XCLAIM before Redis 6.2), then
what is new.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from streamll.brokers.redis_connection import RedisConnection
from streamll.brokers.redis_dialer import Dialer
from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.brokers.redis_tap import Tap
from streamll.brokers.redis_url import parse_redis_url
from streamll.consumers.base import Consumer
from streamll.consumers.base_options import BEGINNING, END, ConsumerOptions
from streamll.consumers.received import Coming, Received, Sheaf, Ticket, read_event, read_note
from streamll.delivery.outcome import Failure
from streamll.errors import ConfigurationError, DecodeError, FatalError, TransportError, UnavailableError
from streamll.options import MIB, SinkOptions, option
from streamll.wire.redis import FIELD_EVENT, Argument, decode_fields, keys_for

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("streamll.consumers")

SINK_OPTIONS = frozenset(
    {"name", "max_stream_length", "trim", "dead_letter_stream", "fence", "framing", "create_group", "wait_replicas"}
)
"""What only RedisSink can be told; its URL serves to read the stream back, so it is left out."""

_PAGE_BYTES = 4 * MIB
_FIRST_PAGE = 50
_CLAIM_INTERVAL = 30.0
_SHOWN_OF_STRANGE_ENTRY = 1024
_LOOK_FOR_RECREATION = 1.0
_FIRST = "0-0"
_LAST_OF_A_MILLISECOND = 2**64 - 1
_POSITION = re.compile(r"\d{1,20}(-\d{1,20})?", re.ASCII)


@dataclass(frozen=True)
class RedisConsumerOptions(ConsumerOptions):
    """What a Redis consumer can be told."""

    owner: ClassVar[str] = "redis consumer "

    stream: str = option("streamll", "The key of the stream.")
    group: str = option("", "The consumer group to read as a member of; empty: read alone, everything.")
    consumer: str = option(
        "",
        "This member's name in the group. One that stays the same gets back what it had not acknowledged when it ended. "
        "Empty: one that is made up, and taken off the group at the end when nothing is pending.",
    )
    make_group: bool = option(True, "Create the group, beginning at start, where it does not exist.")
    claim_idle: float | None = option(
        300.0,
        "Take over what any member got so long ago and did not acknowledge; longer than working off a page takes. None: "
        "never.",
        above=0,
        unit="s",
    )

    def check(self) -> None:
        """Refuse a start that is no place in a stream, and names that cannot be used."""
        if self.start not in (None, BEGINNING, END) and not _POSITION.fullmatch(str(self.start)):
            raise ConfigurationError(
                f"{self.owner}option start={self.start!r}: must be beginning, end, or an entry id such as 1700000000000-0"
            )
        if not self.stream:
            raise ConfigurationError(f"{self.owner}option stream='': must be the key of a stream")
        if self.consumer and not self.group:
            raise ConfigurationError(f"{self.owner}option consumer={self.consumer!r}: needs a group too")


class RedisConsumer(Consumer):
    """Reads events from a Redis stream.

    Without a group it reads everything, acknowledges nothing and disturbs nobody. In a group every entry goes to one
    member, which acknowledges it; what was not acknowledged comes again. A stream that was trimmed goes on with what is
    left; one that was deleted and made anew is read from its beginning.

    Args:
        url: The server, as for RedisSink: `redis://`, `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://`.
            Its query may hold options; those that only a sink can be told are left out.
        stream_key: The stream, when the URL does not name it.
        client: A ready client of redis-py, whose connection settings are used instead of the URL.
        options: Those of RedisConsumerOptions.

    Raises:
        ConfigurationError: When the URL or an option cannot be used.
    """

    def __init__(
        self, url: str = "redis://localhost:6379/0", stream_key: str = "", *, client: Any = None, **options: Any
    ) -> None:
        ours = RedisConsumerOptions.names()
        address = None
        if client is None:
            address = parse_redis_url(url, own={*ours, *SINK_OPTIONS, *SinkOptions.names()})
            options = {**{name: value for name, value in address.options.items() if name in ours}, **options}
        if stream_key:
            options["stream"] = stream_key
        chosen = RedisConsumerOptions.from_mapping(options)
        shown = f"{address.shown if address else 'redis'} stream {chosen.stream}"
        super().__init__(_RedisSource(Dialer(address, client, chosen.stream.encode()), shown, chosen), chosen)

    @classmethod
    def of_dead_letters(cls, url: str, **options: Any) -> Self:
        """Return a consumer of the dead letters that a sink with such a URL writes; arguments as of the class."""
        ours = RedisConsumerOptions.names()
        address = parse_redis_url(url, own={*ours, *SINK_OPTIONS, *SinkOptions.names()})
        given = {"stream": RedisConsumerOptions().stream, **address.options, **options}
        keys = keys_for(given["stream"], "", given.get("dead_letter_stream", ""), address.kind == "cluster")
        return cls(url, **{**options, "stream": keys.dead_letters.decode("utf-8", "surrogateescape")})


class _RedisSource:
    """Pages of entries over one connection."""

    def __init__(self, dialer: Dialer, shown: str, options: RedisConsumerOptions) -> None:
        self.shown = shown
        self.restarts = 0
        self.cuts = 0
        self.pending_lost = 0
        self.whole = False
        self._dialer = dialer
        self._options = options
        self._read = read_event if options.decode else read_note
        self._key = options.stream.encode("utf-8", "surrogateescape")
        self._group = options.group.encode("utf-8", "surrogateescape")
        self._name = (options.consumer or _new_name()).encode("utf-8", "surrogateescape")
        self._tap = Tap()
        self._connection: RedisConnection | None = None
        self._after = ""
        """The last entry that was read; empty before the first connection."""
        self._has_begun = False
        self._until: str | None = None
        """Without `follow`: the last entry when reading began."""
        self._per_entry = _PAGE_BYTES / _FIRST_PAGE
        self._looked_at = 0.0
        self._own_after: str | None = _FIRST
        """How far our own pending entries were read again on this connection; None: all of them."""
        self._claim_after = _FIRST
        self._claim_at = 0.0
        self._has_autoclaim = True

    def open(self) -> None:
        """Connect, and find out where to start or whether what was read last is still there."""
        try:
            self._connection = self._dialer.connect(time.monotonic() + self._options.connect_timeout, self._tap)
        except TransportError as error:
            raise type(error)(f"{self.shown}: {error}") from error
        last = self._last_id()
        start = self._options.start or BEGINNING
        if not self._after:
            named = {BEGINNING: _FIRST, END: last or _FIRST}
            self._after = named.get(start, start)
            if not self._options.follow:
                self._until = last or _FIRST
            if last is None and not self._group:
                logger.warning("%s: does not exist (yet)", self.shown)
            if self._group:
                self._make_group(b"$" if start == END else self._after.encode())
        else:
            self._compare(last)
        self._own_after = _FIRST

    def read(self, wait: float) -> Sequence[Received] | None:
        """Return the next entries."""
        if self._group:
            return self._read_own() or self._claim() or self._read_new(wait)
        return self._read_alone(wait)

    def acknowledge(self, done: Sequence[Any], rejected: Sequence[Any]) -> None:
        """Take entries off the group's pending list."""
        self._ask(b"XACK", self._key, self._group, *done, *rejected)

    def interrupt(self) -> None:
        """Cut the connection."""
        self._tap.interrupt()

    def close(self) -> None:
        """Close the connection; a made-up name leaves the group first, when nothing is pending under it."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._group and not self._options.consumer and not connection.broken:
            pending = (b"XPENDING", self._key, self._group, b"-", b"+", 1, self._name)
            deadline = time.monotonic() + self._options.read_timeout
            replies, _ = connection.exchange([pending], deadline)
            if replies == [[]]:
                connection.exchange([(b"XGROUP", b"DELCONSUMER", self._key, self._group, self._name)], deadline)
        connection.close()

    def _ask(self, *command: Argument, wait: float = 0.0) -> Any:
        """Send a command and return its answer.

        Raises:
            UnavailableError: The connection broke, or the server cannot serve now.
            FatalError: The server refuses for good.
            _Refused: It refuses for a reason that callers may know what to do about.
        """
        if self._connection is None or self._connection.broken:
            raise UnavailableError(f"{self.shown}: not connected")
        deadline = time.monotonic() + wait + self._options.read_timeout
        replies, trouble = self._connection.exchange([command], deadline)
        if trouble is None and isinstance(replies[0], Exception):
            trouble = trouble_of(replies[0], self._options.stream)
            if trouble.failure is not Failure.UNAVAILABLE:
                raise _Refused(self.shown, trouble)
        if trouble is not None:
            kind = FatalError if trouble.failure is Failure.FATAL else UnavailableError
            raise kind(f"{self.shown}: {trouble.text}")
        return replies[0]

    def _read_alone(self, wait: float) -> list[Received] | None:
        block = (b"BLOCK", _milliseconds(wait)) if self._until is None else ()
        count = self._count()
        try:
            reply = self._ask(b"XREAD", b"COUNT", count, *block, b"STREAMS", self._key, self._after, wait=wait)
        except _Refused as error:
            if error.code != "UNBLOCKED":
                raise
            return []  # the server has become a replica, or somebody has ended the wait: the next one will tell
        if not reply:
            if self._until is not None:
                return None
            if time.monotonic() - self._looked_at >= _LOOK_FOR_RECREATION:
                self._compare(self._last_id())
            return []
        entries = reply[0][1]
        if len(entries) == count or not self._has_begun:
            # Who reads less than that has all there is, and is not overtaken by trimming.
            self._look_behind()
        if self._until is not None:
            entries = [entry for entry in entries if _number(entry[0].decode()) <= _number(self._until)]
            if not entries:
                return None
        self._after = entries[-1][0].decode()
        return self._receive(entries, None)

    def _read_own(self) -> list[Received]:
        """What was delivered to this name before, and not acknowledged."""
        while self._own_after is not None:
            entries = self._read_as_member((), self._own_after)
            if not entries:
                self._own_after = None
                break
            self._own_after = entries[-1][0].decode()
            trimmed = [entry[0] for entry in entries if entry[1] is None]
            if trimmed:
                self.pending_lost += len(trimmed)
                self.acknowledge(trimmed, ())
            items = self._receive(entries, Coming.RETURNED)
            if items:
                return items
        return []

    def _read_new(self, wait: float) -> list[Received] | None:
        block = (b"BLOCK", _milliseconds(wait)) if self._until is None else ()
        entries = self._read_as_member(block, ">", wait)
        if not entries:
            return None if self._until is not None else []
        self._after = entries[-1][0].decode()
        return self._receive(entries, Coming.NEW)

    def _read_as_member(self, block: tuple[Argument, ...], after: str, wait: float = 0.0) -> list[Any]:
        member = (b"XREADGROUP", b"GROUP", self._group, self._name, b"COUNT", self._count())
        try:
            reply = self._ask(*member, *block, b"STREAMS", self._key, after, wait=wait)
        except _Refused as error:
            if error.code not in ("NOGROUP", "UNBLOCKED"):
                raise
            # The stream or the group was deleted.
            self._compare(self._last_id())
            self._make_group(self._after.encode())
            return []
        return reply[0][1] if reply else []

    def _claim(self) -> list[Received]:
        """Take over entries that nobody acknowledged for too long, a page at a time, a round now and then."""
        idle = self._options.claim_idle
        if idle is None or time.monotonic() < self._claim_at:
            return []
        while True:
            try:
                self._claim_after, entries = self._autoclaim(idle) if self._has_autoclaim else self._claim_by_hand(idle)
            except _Refused as error:
                if error.code == "NOGROUP":
                    return []  # reading deals with it
                if error.code not in ("UNKNOWN", "NOPERM") or not self._has_autoclaim:
                    raise
                self._has_autoclaim = False
                continue
            if self._claim_after == _FIRST:
                self._claim_at = time.monotonic() + min(idle / 2, _CLAIM_INTERVAL)
            if entries or self._claim_after == _FIRST:
                return self._receive(entries, Coming.EXPIRED)

    def _autoclaim(self, idle: float) -> tuple[str, list[Any]]:
        reply = self._ask(
            b"XAUTOCLAIM",
            self._key,
            self._group,
            self._name,
            _milliseconds(idle),
            self._claim_after,
            b"COUNT",
            self._count(),
        )
        if len(reply) > 2:
            self.pending_lost += len(reply[2])  # since Redis 7, which takes them off the list
        return reply[0].decode(), [entry for entry in reply[1] if entry is not None]

    def _claim_by_hand(self, idle: float) -> tuple[str, list[Any]]:
        count = self._count()
        pending = self._ask(b"XPENDING", self._key, self._group, _behind(self._claim_after), b"+", count)
        after = pending[-1][0].decode() if len(pending) == count else _FIRST
        expired = [ident for ident, _, waited, _ in pending if waited >= idle * 1000]
        if not expired:
            return after, []
        claim = (b"XCLAIM", self._key, self._group, self._name, _milliseconds(idle))
        return after, [entry for entry in self._ask(*claim, *expired) if entry is not None]

    def _make_group(self, start: bytes) -> None:
        if not self._options.make_group:
            reply = self._ask(b"EXISTS", self._key)
            groups = self._ask(b"XINFO", b"GROUPS", self._key) if reply else []
            if self._group not in [dict(zip(group[::2], group[1::2], strict=False))[b"name"] for group in groups]:
                raise FatalError(f"{self.shown}: has no group {self._options.group!r}, and make_group is false")
            return
        try:
            self._ask(b"XGROUP", b"CREATE", self._key, self._group, start, b"MKSTREAM")
        except _Refused as error:
            if error.code != "BUSYGROUP":
                raise

    def _look_behind(self) -> None:
        """Find out whether entries behind our place have gone, before we read on or just now."""
        first_page, self._has_begun = not self._has_begun, True
        try:
            facts = self._facts()
        except _Refused:
            return  # we may not ask, or it is gone by now
        if first_page:
            # Since Redis 7 it says how many there ever were.
            begins = (self._options.start or BEGINNING) == BEGINNING
            self.whole = begins and facts.get(b"entries-added") == facts[b"length"]
            return
        oldest = facts[b"first-entry"]
        trimmed = oldest is not None and _number(oldest[0].decode()) > _number(self._after)
        if trimmed or _number(facts.get(b"max-deleted-entry-id", b"0-0").decode()) > _number(self._after):
            self.cuts += 1

    def _last_id(self) -> str | None:
        """The last id that the stream gave out; None when there is no stream."""
        self._looked_at = time.monotonic()
        try:
            return str(self._facts()[b"last-generated-id"].decode())
        except _Refused as error:
            if error.code in ("UNKNOWN", "NOPERM"):
                entries = self._ask(b"XREVRANGE", self._key, b"+", b"-", b"COUNT", 1)
                return entries[0][0].decode() if entries else self._after or None
            if "no such key" in str(error):
                return None
            raise

    def _facts(self) -> dict[bytes, Any]:
        """What the server tells of the stream."""
        reply = self._ask(b"XINFO", b"STREAM", self._key)
        if not isinstance(reply, list):
            raise FatalError(f"{self.shown}: is not Redis: it answers XINFO with a {type(reply).__name__}")
        return dict(zip(reply[::2], reply[1::2], strict=False))

    def _compare(self, last: str | None) -> None:
        """Begin anew when the stream has not given out yet what we have read: then it is another one."""
        if self._after == _FIRST or (last is not None and _number(last) >= _number(self._after)):
            return
        logger.warning("%s: was deleted or made anew, reading from its beginning", self.shown)
        self.restarts += 1
        self.cuts += 1
        self._after = _FIRST

    def _count(self) -> int:
        """Entries to ask for: a page, or as many as its bytes allow for judging by the last ones."""
        return max(1, min(self._options.page_size, int(_PAGE_BYTES / self._per_entry)))

    def _receive(self, entries: Sequence[Any], coming: Coming | None) -> list[Received]:
        items = [item for entry in entries if entry[1] is not None for item in self._items(entry, coming)]
        if items:
            self._per_entry = max(1.0, sum(len(item.payload) for item in items) / len(entries))
        return items

    def _items(self, entry: Any, coming: Coming | None) -> list[Received]:
        """The event of an entry, or the events of its frame."""
        ident, flat = entry
        position = ident.decode()
        try:
            found = decode_fields(flat)
        except DecodeError as error:
            fields = dict(zip(flat[::2], flat[1::2], strict=False))
            shown = fields.get(FIELD_EVENT) or b" ".join(b"%b=%b" % pair for pair in fields.items())
            ticket = None if coming is None else Ticket(ident, position, coming)
            return [Received(None, str(error), shown[:_SHOWN_OF_STRANGE_ENTRY], "", 0, position, ticket=ticket)]
        last = len(found) - 1
        token = Sheaf(ident, len(found)) if last else ident
        items = []
        for place, wire in enumerate(found):
            event, error_text = self._read(wire.payload, self._options.max_event_bytes)
            ticket = None if coming is None else Ticket(token, (position, place) if last else position, coming)
            # Who goes on after any but the last event of a frame must get the frame again.
            at = position if place == last else _before(position)
            items.append(Received(event, error_text, wire.payload, wire.producer, wire.seq, at, wire.reason, ticket))
        return items


class _Refused(FatalError):
    """Raised when the server refuses a command for a reason of the command's own."""

    def __init__(self, shown: str, trouble: Trouble) -> None:
        super().__init__(f"{shown}: {trouble.text}")
        self.code = trouble.code


def _new_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _milliseconds(seconds: float) -> int:
    """At least one: to Redis, zero means for ever."""
    return max(1, int(seconds * 1000))


def _number(ident: str) -> tuple[int, int]:
    first, _, second = ident.partition("-")
    return int(first), int(second or 0)


def _before(ident: str) -> str:
    """The highest id below this one."""
    first, second = _number(ident)
    return f"{first}-{second - 1}" if second else f"{max(0, first - 1)}-{_LAST_OF_A_MILLISECOND if first else 0}"


def _behind(ident: str) -> str:
    """The lowest id above this one."""
    first, second = _number(ident)
    return f"{first}-{second + 1}"
