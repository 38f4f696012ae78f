"""Dead letters in a Redis stream, and a Redis stream as the place where redriven events go.

Events that are redriven are not fenced: the fence of their producer stands above their numbers, and knows only what was
appended in order. What keeps them from being in a stream twice is a mark: a key of the redrive's own beside the stream.
Each batch is a transaction that appends and rewrites the mark, guarded by WATCH on it. So of two copies of a batch,
such as one that a cut connection left under way and the one that is sent after it, the second does nothing.

Within one server (and, in a cluster, one slot) the same transaction deletes the dead letters: each event is in one of
the two streams at any moment. Letters are read after WATCH is armed, so what an earlier copy has moved is not seen.

To another server the batch is deleted after it was appended. The mark names the letters of the last batch, so the next
run knows those that it finds still there; it is removed when a run has come to its end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from streamll.brokers.redis_connection import RedisConnection, Reply
from streamll.brokers.redis_dialer import Dialer
from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.brokers.redis_tap import Tap
from streamll.brokers.redis_url import RedisAddress
from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import DecodeError, TransportError, UnavailableError
from streamll.options import SinkOptions
from streamll.replay.base import PAGE, PAGE_BYTES, Letter
from streamll.wire.redis import Argument, decode_entry, keys_for
from streamll.wire.redis_append import Items, Trim, xadd_commands

_MARK_TTL = 24 * 3600.0
"""Seconds that the mark of a run that was broken off is kept."""
_FIRST_PAGE = 50
_STREAM_OR_NONE = (b"stream", b"none")
_UNTRIMMED = Trim(0)
_CONTENDED = "somebody else moves the same dead letters, or an earlier run's last batch came late; run it again"


class _Server:
    """One connection, on which every answer that is an error is one."""

    def __init__(self, address: RedisAddress, key: bytes, options: SinkOptions) -> None:
        self._dialer = Dialer(address, None, key)
        self._tap = Tap()
        self._options = options
        self._key = key.decode("utf-8", "backslashreplace")
        self.shown = f"{address.shown} stream {self._key}"
        self._connection: RedisConnection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None and not self._connection.broken

    def open(self) -> None:
        self.close()
        try:
            self._connection = self._dialer.connect(time.monotonic() + self._options.connect_timeout, self._tap)
        except TransportError as error:
            raise type(error)(f"{self.shown}: {error}") from error

    def ask(self, *commands: tuple[Argument, ...]) -> list[Reply]:
        """Return an answer for each command; raises UnavailableError or FatalError."""
        replies, trouble = self.exchange(*commands)
        for reply in replies:
            if trouble is None and isinstance(reply, Exception):
                trouble = self.trouble(reply)
        if trouble is not None:
            error = trouble.as_error()
            raise type(error)(f"{self.shown}: {error}")
        return replies

    def exchange(self, *commands: tuple[Argument, ...]) -> tuple[list[Reply], Trouble | None]:
        """As `RedisConnection.exchange`."""
        if self._connection is None:
            raise UnavailableError(f"{self.shown}: not connected")
        return self._connection.exchange(commands, time.monotonic() + self._options.send_timeout)

    def trouble(self, error: BaseException) -> Trouble:
        return trouble_of(error, self._key)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class RedisDeadLetters:
    """The dead letters in a stream.

    Args:
        address: The server.
        key: The key of the dead letters' stream.
        options: The timeouts.
    """

    def __init__(self, address: RedisAddress, key: bytes, options: SinkOptions) -> None:
        self._server = _Server(address, key, options)
        self.shown = self._server.shown
        self._key = key
        self._after = b"0-0"
        self._until = (0, 0)
        self._per_letter = PAGE_BYTES / _FIRST_PAGE

    def open(self) -> None:
        """See `DeadLetters.open`."""
        self._server.open()
        (last,) = self._server.ask((b"XREVRANGE", self._key, b"+", b"-", b"COUNT", 1))
        self._until = _number(last[0][0]) if last else (0, 0)

    def take(self) -> list[Letter]:
        """See `DeadLetters.take`."""
        count = max(1, min(PAGE, int(PAGE_BYTES / self._per_letter)))
        (reply,) = self._server.ask((b"XREAD", b"COUNT", count, b"STREAMS", self._key, self._after))
        entries = [entry for entry in reply[0][1] if _number(entry[0]) <= self._until] if reply else []
        if not entries:
            return []
        self._after = entries[-1][0]
        letters = [_letter(ident, flat) for ident, flat in entries]
        self._per_letter = max(1.0, sum(len(letter.payload) for letter in letters) / len(letters))
        return letters

    def remove(self, letters: Sequence[Letter]) -> None:
        """See `DeadLetters.remove`."""
        self._server.ask((b"XDEL", self._key, *(letter.handle for letter in letters)))

    def count(self) -> int:
        """See `DeadLetters.count`."""
        (length,) = self._server.ask((b"XLEN", self._key))
        return int(length)

    def close(self) -> None:
        """See `DeadLetters.close`."""
        self._server.close()


class RedisDestination:
    """A stream that redriven events are appended to. It is never trimmed here: its sinks know how long it may get.

    Args:
        address: The server.
        stream: The stream's key.
        source: What names the place of the dead letters; each has a mark of its own.
        options: The timeouts.
        dead_letters: The key of the dead letters, when they are to be deleted in the same step; else empty.
    """

    def __init__(
        self, address: RedisAddress, stream: str, source: str, options: SinkOptions, dead_letters: bytes = b""
    ) -> None:
        from hashlib import sha256  # only here, and it takes milliseconds to import

        name = "redrive-" + sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._keys = keys_for(stream, name, dead_letters.decode("utf-8", "surrogateescape"), address.kind == "cluster")
        self._mark = self._keys.fence
        self._server = _Server(address, self._keys.stream, options)
        self.shown = self._server.shown
        self.takes_away = bool(dead_letters)
        self._armed = False
        self._known: frozenset[str] = frozenset()
        """The letters of the last batch of a run that was broken off: appended, and perhaps not deleted yet."""

    def prepare(self) -> None:
        """See `Destination.prepare`."""
        if not self._server.is_open:
            self._armed = False
            self._server.open()
        if not self._armed:
            self._armed = self._take_note(self._server.ask(*self._arming()))
        if not self._armed:
            error = trouble_of(
                "WRONGTYPE the key is no stream", self._keys.stream.decode("utf-8", "replace")
            ).as_error()
            raise type(error)(f"{self.shown}: {error}")

    def deliver(self, letters: Sequence[Letter]) -> BatchOutcome:
        """See `Destination.deliver`."""
        self.prepare()
        new = [
            (place, letter)
            for place, letter in enumerate(letters)
            if self.takes_away or letter.identity not in self._known
        ]
        if not new:
            return BatchOutcome()
        appends = [self._append(letter) for _, letter in new]
        named = msgspec.msgpack.encode([letter.identity for letter in letters if letter.identity])
        commands: list[tuple[Argument, ...]] = [(b"MULTI",), *appends]
        if self.takes_away:
            commands.append((b"XDEL", self._keys.dead_letters, *(letter.handle for letter in letters)))
        commands.append((b"SET", self._mark, named, b"PX", int(_MARK_TTL * 1000)))
        commands.append((b"EXEC",))
        end = len(commands)
        self._armed = False
        replies, trouble = self._server.exchange(*commands, *self._arming())
        rejected = self._rejected(new, replies[1:])
        if rejected is not None:
            self._server.close()
            return rejected
        if len(replies) < end:
            self._server.close()
            return self._failed(trouble)
        queued, result = replies[1 : end - 1], replies[end - 1]
        if isinstance(result, Exception):
            first = next((reply for reply in queued if isinstance(reply, Exception)), result)
            self._server.close()  # whether an old server has ended the transaction is not known
            return self._failed(self._server.trouble(first))
        if result is None:
            self._server.close()
            return BatchOutcome(Failure.UNAVAILABLE, error=f"{self.shown}: {_CONTENDED}")
        failed = [place for place in range(len(new)) if isinstance(result[place], Exception)]
        if failed:
            return self._put_back([new[place] for place in failed], len(letters), result[failed[0]])
        arming = replies[end:]
        if len(arming) == len(self._arming()) and not any(isinstance(reply, Exception) for reply in arming):
            self._armed = self._take_note(arming)
        return BatchOutcome()

    def close(self, clean: bool) -> None:
        """See `Destination.close`."""
        if clean and self._server.is_open:
            self._server.exchange((b"DEL", self._mark))
        self._server.close()

    def _append(self, letter: Letter, reason: str = "") -> tuple[Argument, ...]:
        producer = letter.producer.encode("utf-8", "surrogateescape")
        return xadd_commands(self._keys, producer, _UNTRIMMED, Items([letter.seq], [letter.payload], [reason]))[0]

    def _arming(self) -> tuple[tuple[Argument, ...], ...]:
        return (b"WATCH", self._mark), (b"GET", self._mark), (b"TYPE", self._keys.stream)

    def _take_note(self, replies: Sequence[Reply]) -> bool:
        """Of the answers to `_arming`; returns whether the key can be appended to: a transaction is not undone where an
        append fails.
        """
        _, known, kind = replies
        try:
            self._known = frozenset(msgspec.msgpack.decode(known, type=list[str])) if known else frozenset()
        except msgspec.DecodeError:  # whatever it is, it names no letters
            self._known = frozenset()
        return kind in _STREAM_OR_NONE

    def _rejected(self, new: Sequence[tuple[int, Letter]], replies: Sequence[Reply]) -> BatchOutcome | None:
        """When the server takes one of the events for too long, which ends the transaction: say which."""
        for (place, _), reply in zip(new, replies, strict=False):
            if isinstance(reply, Exception):
                trouble = self._server.trouble(reply)
                if trouble.failure is Failure.REJECTED:
                    return BatchOutcome(Failure.REJECTED, rejected={place: trouble.text}, error=trouble.text)
                return None
        return None

    def _put_back(self, failed: Sequence[tuple[int, Letter]], count: int, error: Exception) -> BatchOutcome:
        """Some appends failed although the key was a stream a moment ago: let nobody believe that they were done."""
        letters = [letter for _, letter in failed]
        undo = [self._append(letter, letter.reason or "unknown") for letter in letters] if self.takes_away else []
        self._server.ask(*undo, (b"DEL", self._mark))
        outcome = self._failed(self._server.trouble(error))
        lost = {place for place, _ in failed}
        return BatchOutcome(outcome.failure, frozenset(range(count)) - lost, error=outcome.error)

    def _failed(self, trouble: Trouble | None) -> BatchOutcome:
        if trouble is None:
            trouble = Trouble("", Failure.UNAVAILABLE, "no answer")
        failure = Failure.FATAL if trouble.failure is Failure.FATAL else Failure.UNAVAILABLE
        return BatchOutcome(failure, error=f"{self.shown}: {trouble.text}")


def _letter(ident: bytes, flat: Sequence[bytes]) -> Letter:
    identity = ident.decode()
    try:
        entry = decode_entry(dict(zip(flat[::2], flat[1::2], strict=False)))  # a dead letter stands alone
    except DecodeError as error:
        return Letter(ident, identity, b"", "", 0, "", str(error))
    return Letter(ident, identity, entry.payload, entry.producer, entry.seq, entry.reason)


def _number(ident: bytes) -> tuple[int, int]:
    first, _, second = ident.partition(b"-")
    return int(first), int(second)
