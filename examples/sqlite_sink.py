"""SQLiteSink: events as rows of a SQLite database. A complete sink in one file, with the standard library only."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import ConfigurationError, FatalError, UnavailableError
from streamll.options import OptionSet, option
from streamll.sinks.base import Finding, Sink, Transport

# A fork in the middle of a transaction would copy SQLite's belief to hold a lock, and the child would wait for it for
# ever. So a fork waits for the end of a transaction. What the sink itself has is made anew in a child anyway.
using_sqlite = threading.Lock()
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=using_sqlite.acquire, after_in_parent=using_sqlite.release, after_in_child=using_sqlite.release
    )


@dataclass(frozen=True)
class SQLiteOptions(OptionSet):
    """What only this kind of sink can be told. Declaring it here gives validation, messages and URLs."""

    owner: ClassVar[str] = "SQLite "

    table_name: str = option("events", "The table; dead letters go to the one with _dead_letters behind its name.")

    def check(self) -> None:
        """Refuse what could break out of its quotes."""
        if not self.table_name.isidentifier():
            raise ConfigurationError(f"SQLite option table_name={self.table_name!r}: must be letters, digits and _")


class SQLiteSink(Sink):
    """Writes events into a SQLite database, each exactly once.

    Args:
        path: The database's file; it is made when it does not exist.
        options: Those of every sink, and `table_name`.
    """

    own_options = SQLiteOptions
    scheme = "sqlite"

    def __init__(
        self,
        path: str,
        *,
        name: str = "",
        event_filter: Callable[..., bool] | None = None,
        on_delivery: Callable[..., None] | None = None,
        pipeline: Any = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        own, shared = self.split_options(options)
        super().__init__(
            destination=f"sqlite://{path}",  # for people: never put a credential here
            transport=lambda producer: SQLiteTransport(path, own.table_name, producer),
            options=shared,
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteSink:
        """Make a sink from `sqlite:///path/events.db?table_name=events`."""
        path, found = read_url(url)
        return cls(path, **{**found, **options})

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """What `streamll check` says: it tries what a sink would do first."""
        path, found = read_url(url)
        found.pop("name", None)
        own, _ = cls.split_options(found)
        transport = SQLiteTransport(path, own.table_name, "check")
        try:
            transport.open(monotonic() + 5)
        except (UnavailableError, FatalError) as error:
            return [Finding("error", str(error), "look at the file, its folder, and who may write there")]
        transport.close(clean=True)
        return [Finding("ok", f"{path} can be written, by SQLite {sqlite3.sqlite_version}")]


def read_url(url: str) -> tuple[str, dict[str, str]]:
    """Divide a URL into the path and the options in its query."""
    parts = urlsplit(url)
    if parts.netloc or len(parts.path) < 2:
        raise ConfigurationError("sqlite URL: must be sqlite:///path, with three slashes before an absolute path")
    return unquote(parts.path), SQLiteSink.query_options(parts.query)


class SQLiteTransport(Transport):
    """All that knows SQLite. It retries nothing and decides nothing: it says what happened."""

    service_interval: float | None = None  # an idle connection needs no care

    def __init__(self, path: str, table: str, producer: str) -> None:
        self._path = path
        self._table = table
        self._producer = producer
        self._connection: sqlite3.Connection | None = None
        self._interrupted = False

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called."""
        return self._connection is not None

    def open(self, deadline: float) -> None:
        """Connect, and make the tables. Raises UnavailableError or FatalError, and nothing else."""
        self._interrupted = False
        try:
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            # The thread that drives a transport may change, so SQLite must not insist on one.
            self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
            self._patiently(self._make_tables, deadline)
        except (sqlite3.Error, OSError) as error:
            self.close(clean=False)
            kind = UnavailableError if is_temporary(error) else FatalError
            raise kind(f"{self._path}: {error}") from error

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        """Write a batch in one transaction: all of it or nothing."""
        try:
            self._patiently(lambda: self._write(batch), deadline)
            return BatchOutcome()  # every entry is stored; dead letters in their table
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, UnicodeEncodeError) as error:
            # Something in the batch is bad. Which one it is, the sink finds out by halving.
            return BatchOutcome(Failure.REJECTED, error=str(error))
        except sqlite3.Error as error:
            self.close(clean=False)
            failure = Failure.UNAVAILABLE if is_temporary(error) else Failure.FATAL
            # `sent=False`: it is certain that nothing of the batch got there.
            return BatchOutcome(failure, sent="locked" not in str(error), error=f"{self._path}: {error}")

    def _patiently(self, work: Callable[[], None], deadline: float) -> None:
        """Do it again while another program holds the lock. SQLite's own waiting could not be interrupted."""
        while True:
            try:
                with using_sqlite:
                    return work()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or monotonic() >= deadline or self._interrupted:
                    raise
            sleep(0.01)

    def _make_tables(self) -> None:
        assert self._connection is not None
        for table in (self._table, f"{self._table}_dead_letters"):
            self._connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{table}" (producer TEXT, seq INTEGER, event_id TEXT, event_type TEXT, '
                "timestamp INTEGER, event BLOB, reason TEXT, UNIQUE (producer, seq))"
            )

    def _write(self, batch: Sequence[Entry]) -> None:
        assert self._connection is not None
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for entry in batch:
                record = entry.record
                table = f"{self._table}_dead_letters" if entry.dead_letter else self._table
                # Producer and number name an event for good, so one that is sent again is not stored twice.
                self._connection.execute(
                    f'INSERT INTO "{table}" VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (producer, seq) DO NOTHING',
                    (
                        self._producer,
                        entry.seq,
                        record.event_id,
                        record.event_type,
                        record.timestamp,
                        record.payload,
                        entry.dead_letter or None,
                    ),
                )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def idle(self, seconds: float) -> None:
        """Serve the connection: nothing to do here; a broker's heartbeats would be answered."""

    def close(self, clean: bool) -> None:
        """Give the connection up; never raises."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """End a `send` that waits for a lock; called by another thread."""
        self._interrupted = True


def is_temporary(error: Exception) -> bool:
    """Whether waiting may mend it: a lock, a full disk; but not a missing permission or a file that is no database."""
    return any(words in str(error) for words in ("locked", "full", "disk I/O error", "No space"))
