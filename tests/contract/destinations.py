"""For each sink: where it writes to in a test, how to see what is really there, and how to hurt that place and mend it.

To put a further sink under the contract, write a `Destination` for it and name it in conftest.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pika.exceptions

from examples.sqlite_sink import SQLiteSink
from streamll.codec import decode
from streamll.models import NOTES, Record, StreamllEvent
from streamll.options import MIB, PipelineOptions
from streamll.pipeline import Pipeline
from streamll.sinks.base import Sink
from streamll.sinks.file import DEAD_LETTER_SUFFIX, FileSink
from streamll.sinks.memory import MemorySink
from streamll.sinks.rabbitmq import RabbitMQSink
from streamll.sinks.redis import RedisSink
from streamll.sinks.terminal import TerminalSink
from streamll.testing.proxy import FaultProxy
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import decode_messages
from streamll.wire.redis import decode_entries
from tests.fixtures.rabbitmq import RabbitMQEndpoint, RabbitMQServer
from tests.fixtures.redis import RedisEndpoint, RedisServer

if sys.platform != "win32":
    import fcntl

NOT_FOUND = 404


@dataclass(frozen=True)
class Stored:
    """An event, or a sink's note, as it lies at its destination; a place that shows no more than an id leaves the rest
    empty.
    """

    event_id: str
    producer: str
    seq: int
    payload: bytes
    event_type: str = ""

    @property
    def is_note(self) -> bool:
        """Whether the sink wrote it of itself."""
        return self.event_type in NOTES

    @property
    def data(self) -> dict[str, Any]:
        """What it says."""
        return decode(self.payload).data


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter as it lies at its destination."""

    seq: int
    payload: bytes
    reason: str


class Destination:
    """One place that sinks write to during one test."""

    name: ClassVar[str]
    exactly_once: ClassVar[bool] = True
    """False where a broken connection may leave doubles, and what is refused may come later."""
    shows_numbers: ClassVar[bool] = True
    keeps_notes: ClassVar[bool] = True
    """Whether sinks write here what they dropped, and that they ended."""
    keeps_dead_letters: ClassVar[bool] = True
    """Whether dead letters can be read back with their bytes."""
    keeps_rejected: ClassVar[bool] = True
    """Whether what the place itself rejects can still be kept there as a dead letter."""
    secrets: tuple[str, ...] = ()

    def sink(self, **options: Any) -> Sink:
        """A sink that writes here."""
        raise NotImplementedError

    def url(self) -> str:
        """This place as a URL, where one leads back to it."""
        raise NotImplementedError

    def everything(self) -> list[Stored]:
        """All that is there, in its order: events, and what sinks say of them in notes."""
        raise NotImplementedError

    def stored(self) -> list[Stored]:
        """All events that are there, in their order."""
        return [stored for stored in self.everything() if not stored.is_note]

    def notes(self, producer: str = "") -> list[Stored]:
        """All notes that are there, or those of one producer, in their order."""
        return [note for note in self.everything() if note.is_note and producer in ("", note.producer)]

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters that are there."""
        raise NotImplementedError

    def sink_for_poison(self, **options: Any) -> Sink:
        """A sink that writes here, and for which `poison` is poison."""
        return self.sink(**options)

    def poison(self, sink: Sink) -> bytes:
        """Hand over one event that this place rejects; returns its bytes."""
        # No event at all, which only what does not look into its events would store.
        payload = b"\xc1 no event"
        now = time.monotonic_ns()
        record = Record(payload, "application/msgpack", "poison", "poison", "", "", "", "", "", 0, now)
        assert sink.handle_record(record)
        return payload

    def close(self) -> None:
        """Remove what was made."""


class MemoryDestination(Destination):
    name = "memory"
    keeps_notes = False

    def __init__(self) -> None:
        self._sinks: list[MemorySink] = []

    def sink(self, **options: Any) -> Sink:
        sink = MemorySink(**options)
        self._sinks.append(sink)
        return sink

    def everything(self) -> list[Stored]:
        return [
            Stored(event.event_id, sink.producer, entry.seq, entry.record.payload, event.event_type)
            for sink in self._sinks
            for event, entry in zip(sink.events, sink.records, strict=True)
        ]

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(entry.seq, entry.record.payload, entry.dead_letter)
            for sink in self._sinks
            for entry in sink.dead_letters
        ]


class FileDestination(Destination):
    name = "file"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "made for it" / "events.jsonl"
        self._lock: int | None = None
        self._moved = 0

    def sink(self, **options: Any) -> Sink:
        return FileSink(self.path, **options)

    def url(self) -> str:
        return self.path.as_uri()

    def everything(self) -> list[Stored]:
        found = []
        parts = [self.path.with_name(f"{self.path.name}.moved-{n}") for n in range(1, self._moved + 1)]
        for path in (*parts, self.path):
            for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
                assert line.endswith(b"\n"), "a torn line"
                try:
                    fields = json.loads(line)
                except ValueError:  # torn by a kill, and ended by whoever opened the file next; it is written again
                    continue
                kind = fields["event_type"]
                found.append(Stored(fields["event_id"], fields["producer"], fields["seq"], line, kind))
        return found

    def dead_letters(self) -> list[DeadLetter]:
        path = self.path.with_name(self.path.name + DEAD_LETTER_SUFFIX)
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            fields = json.loads(line)
            if "payload_base64" in fields:
                payload = base64.b64decode(fields["payload_base64"])
            else:
                payload = line.rpartition(b',"producer":')[0] + b"}"
            found.append(DeadLetter(fields["seq"], payload, fields["reason"]))
        return found

    def lock(self) -> None:
        """Be the other process that holds the lock."""
        self.path.parent.mkdir(exist_ok=True)
        self._lock = os.open(self.path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def put_a_folder_there(self) -> None:
        """Move the file away, and make a folder of its name."""
        while True:
            if self.path.exists():
                self._moved += 1
                self.path.rename(self.path.with_name(f"{self.path.name}.moved-{self._moved}"))
            with contextlib.suppress(FileExistsError):  # the sink was faster, and has begun a new file
                self.path.mkdir(parents=True)
                return

    def take_the_folder_away(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()

    def close(self) -> None:
        self.unlock()
        self.take_the_folder_away()


class TerminalDestination(Destination):
    """A pipe, with a thread that reads it."""

    name = "terminal"
    shows_numbers = False
    keeps_notes = False
    keeps_dead_letters = False

    def __init__(self) -> None:
        self._reading_end, writing_end = os.pipe()
        os.set_blocking(writing_end, False)  # the test writes into it too, and must not be waited for
        self.stream: IO[str] = os.fdopen(writing_end, "w", encoding="utf-8")
        self._text = bytearray()
        self._taking = threading.Lock()
        self._reads = threading.Event()
        self._reads.set()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def sink(self, **options: Any) -> Sink:
        return TerminalSink(self.stream, **options)  # type: ignore[arg-type]  # what fdopen returns is a TextIOWrapper

    def _read(self) -> None:
        while not self._ended:
            self._reads.wait()
            select.select([self._reading_end], [], [], 0.01)
            self._take()

    def _take(self) -> None:
        """Take what is in the pipe, unless nobody looks."""
        with self._taking:
            while self._reads.is_set() and select.select([self._reading_end], [], [], 0)[0]:
                self._text += os.read(self._reading_end, 65_536)

    def _lines(self) -> list[bytes]:
        self._take()
        return [line for line in bytes(self._text).split(b"\n") if line]

    def everything(self) -> list[Stored]:
        found = []
        for line in self._lines():
            match = re.search(rb" id=(\w+)", line)
            if match and b"dead letter" not in line:
                found.append(Stored(match[1].decode(), "", 0, line))
        return found

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(int(match[1]), b"", match[2].decode())
            for line in self._lines()
            if (match := re.match(rb"dead letter (\d+): .*bytes\): (.*)", line))
        ]

    def stop_reading(self) -> None:
        """Nobody looks, and the pipe is full."""
        self._reads.clear()
        with self._taking:
            for size in (select.PIPE_BUF, 1):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(self.stream.fileno(), b"\n" * size)

    def read_again(self) -> None:
        self._reads.set()

    def close(self) -> None:
        self._ended = True
        self._reads.set()
        self._thread.join()
        self.stream.close()
        os.close(self._reading_end)


class SQLiteDestination(Destination):
    """The third-party sink of docs/writing-a-sink.md."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.db"
        self._locker: sqlite3.Connection | None = None

    def sink(self, **options: Any) -> Sink:
        return SQLiteSink(str(self.path), **options)

    def url(self) -> str:
        return f"sqlite://{self.path}"

    def _rows(self, table: str, columns: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            try:
                return connection.execute(f"SELECT {columns} FROM {table} ORDER BY rowid").fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def everything(self) -> list[Stored]:
        return [Stored(*row) for row in self._rows("events", "event_id, producer, seq, event, event_type")]

    def dead_letters(self) -> list[DeadLetter]:
        return [DeadLetter(*row) for row in self._rows("events_dead_letters", "seq, event, reason")]

    def sink_for_poison(self, **options: Any) -> Sink:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(
                "CREATE TABLE events (producer TEXT, seq INTEGER, event_id TEXT, event_type TEXT, timestamp INTEGER, "
                "event BLOB, reason TEXT, UNIQUE (producer, seq), CHECK (event_type <> 'poison'))"
            )
        return self.sink(**options)

    def lock(self) -> None:
        """Be the other program that writes for a long time."""
        self._locker = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        self._locker.execute("BEGIN EXCLUSIVE")

    def unlock(self) -> None:
        if self._locker is not None:
            self._locker.close()
            self._locker = None

    def close(self) -> None:
        self.unlock()


class RedisDestination(Destination):
    """A stream. With a proxy between, the connection can be hurt without hurting a server that others use."""

    name = "redis"
    keeps_rejected = False  # what is too long for the server is so as a dead letter too

    def __init__(self, server: RedisEndpoint, proxied: bool = False, framing: str = "single") -> None:
        self.server = server
        self.framing = framing
        self.stream = f"streamll-test:{uuid4().hex}"
        parts = urlsplit(server.url)
        self.secrets = tuple(filter(None, (parts.username, parts.password)))
        self.proxy = FaultProxy(parts.hostname or "localhost", parts.port or 6379) if proxied else None
        self._url = _through(server.url, self.proxy)

    def sink(self, **options: Any) -> Sink:
        return RedisSink(self._url, stream_key=self.stream, framing=self.framing, **options)

    def url(self) -> str:
        return f"{self._url}?stream={self.stream}&framing={self.framing}"

    def _entries(self, key: str) -> list[Any]:
        with self.server.client() as client:
            entries: Any = client.xrange(key)
            return [entry for _, fields in entries for entry in decode_entries(fields)]

    def everything(self) -> list[Stored]:
        return [_stored(entry) for entry in self._entries(self.stream)]

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(entry.seq, entry.payload, entry.reason) for entry in self._entries(f"{self.stream}:dead-letter")
        ]

    def sink_for_poison(self, **options: Any) -> Sink:
        return self.sink(pipeline=Pipeline(PipelineOptions(max_event_bytes=4 * MIB)), **options)

    def poison(self, sink: Sink) -> bytes:
        """Longer than the server's proto-max-bulk-len: it ends the connection without having read it."""
        event = StreamllEvent(event_type="poison", data={"text": "x" * (MIB + 1000)})
        assert sink.handle_event(event)
        return b""

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.close()
        if isinstance(self.server, RedisServer):
            return  # ours alone, or ended with the tests
        with self.server.client() as client:
            for key in client.scan_iter(match=f"*{self.stream}*", count=1000):
                client.delete(key)


class RabbitMQDestination(Destination):
    """An exchange with a queue. Reading takes the messages, so they are remembered."""

    name = "rabbitmq"
    exactly_once = False

    def __init__(self, server: RabbitMQEndpoint, proxied: bool = False, framing: str = "single") -> None:
        self.server = server
        self.framing = framing
        self.exchange = f"streamll-test-{uuid4().hex}"
        self._seen: dict[str, list[WireEntry]] = {}
        parts = urlsplit(server.url)
        self.secrets = (parts.password or "",)
        self.proxy = FaultProxy(parts.hostname or "localhost", parts.port or 5672) if proxied else None
        self._url = _through(server.url, self.proxy)

    def sink(self, **options: Any) -> Sink:
        return RabbitMQSink(self._url, exchange=self.exchange, queue=self.exchange, framing=self.framing, **options)

    def url(self) -> str:
        return f"{self._url}?exchange={self.exchange}&queue={self.exchange}&framing={self.framing}"

    def _entries(self, queue: str) -> list[WireEntry]:
        seen = self._seen.setdefault(queue, [])
        connection = self.server.connection()
        try:
            channel = connection.channel()
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None or properties is None or body is None:
                    break
                seen += decode_messages(body, properties.headers, properties.message_id)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:  # else nothing has come that far yet
                raise
        finally:
            connection.close()
        return seen

    def everything(self) -> list[Stored]:
        return [_stored(entry) for entry in self._entries(self.exchange)]

    def dead_letters(self) -> list[DeadLetter]:
        return [
            DeadLetter(entry.seq, entry.payload, entry.reason)
            for entry in self._entries(f"{self.exchange}.dead-letter")
        ]

    def sink_for_poison(self, **options: Any) -> Sink:
        with self.server.connection() as connection:
            channel = connection.channel()
            channel.exchange_declare(self.exchange, "topic", durable=True)
            channel.queue_declare(self.exchange, durable=True)
            channel.queue_bind(self.exchange, self.exchange, "streamll.*")  # notes are no poison
        return self.sink(binding_key="test", **options)

    def poison(self, sink: Sink) -> bytes:
        """For no queue."""
        event = StreamllEvent(event_type="poison")
        assert sink.handle_event(event)
        return sink.pipeline.encode(event).payload

    def close(self) -> None:
        if self.proxy is not None:
            self.proxy.close()
        if isinstance(self.server, RabbitMQServer) and not self.server.running:
            return
        connection = self.server.connection()
        channel = connection.channel()
        for name in (self.exchange, f"{self.exchange}.dead-letter"):
            channel.queue_delete(name)
            channel.exchange_delete(name)
        connection.close()


def _stored(entry: WireEntry) -> Stored:
    event = decode(entry.payload)
    return Stored(event.event_id, entry.producer, entry.seq, entry.payload, event.event_type)


def _through(url: str, proxy: FaultProxy | None) -> str:
    """The URL, with the proxy's address in the place of the server's."""
    if proxy is None:
        return url
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{proxy.host}:{proxy.port}"))


class Outage:
    """A destination, and one way to make it unavailable and available again."""

    def __init__(
        self, destination: Destination, begin: Callable[[], None], end: Callable[[], None], fatal: bool = False
    ) -> None:
        """`fatal`: it looks like something that waiting does not mend."""
        self.destination = destination
        self.is_fatal = fatal
        self._begin = begin
        self._end = end
        self.under_way = False

    def begin(self) -> None:
        self._begin()
        self.under_way = True

    def end(self) -> None:
        if self.under_way:
            self._end()
            self.under_way = False
