"""FileSink: JSON Lines in a file, rotated by size.

Several processes may append to the same file: each holds a lock on it (flock) while it writes or rotates. Where there is
none (Windows), one process at a time may.

A batch is one write. What is torn does not stay: a batch that fails in the middle is cut back to its last whole line,
and a line that a crashed process left without its end is ended before anything is put behind it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, unquote, urlsplit

from streamll import codec
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import ConfigurationError, DecodeError, FatalError, UnavailableError
from streamll.models import Record
from streamll.options import MIB, EventFilter, OptionSet, option
from streamll.pipeline import Pipeline
from streamll.runtime.fork import tell_after_fork
from streamll.runtime.wakeup import Wakeup
from streamll.sinks.base import Finding, OnDelivery, Sink, Transport
from streamll.wire.file import dead_letter_line, event_line

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("streamll")

DEAD_LETTER_SUFFIX = ".dead-letter.jsonl"

_LITTLE_SPACE = 100 * MIB
_LOCK_POLL = 0.01
_BUSY = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})
# What waiting does not mend. All else may pass: a full disk or quota, too many open files, a device's error.
_LASTING = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENOENT,
        errno.EROFS,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.ENXIO,
    }
)
_OPEN_FLAGS = (
    os.O_RDWR
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True)
class FileOptions(OptionSet):
    """What a file sink can be told beyond what every sink can."""

    owner: ClassVar[str] = "file "

    max_bytes: int = option(
        0,
        "Rotate before the file gets longer: path becomes path.1, path.1 becomes path.2, and so on. Only a batch that is "
        "longer by itself makes a longer file. 0: never rotate.",
        at_least=0,
        unit="bytes",
    )
    backups: int = option(5, "Rotated files kept; the oldest is removed.", at_least=1, at_most=10_000)
    fsync: bool = option(False, "Count a batch as delivered only when the disk has it (fsync).")


class FileSink(Sink):
    """Appends events to a file, one line of JSON each, with `producer` and `seq` as further keys.

    Missing folders are made. The file may be moved or deleted by others at any time (logrotate): the next batch begins
    a new one. Dead letters go to a file beside it, `path.dead-letter.jsonl`, with their `reason`. The option `encoding`
    has no effect: it is always JSON.

    Args:
        path: The file; relative to the working directory of now.
        name: The sink's name in stats and logs.
        event_filter, on_delivery, pipeline, retry_wait: As for every sink.
        options: Those of every sink, and `max_bytes`, `backups`, `fsync`.

    Raises:
        ConfigurationError: When the path or an option cannot be used.
    """

    own_options: ClassVar[type[OptionSet]] = FileOptions
    scheme: ClassVar[str] = "file"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        own, shared = self.split_options(options)
        text = os.fspath(path)
        if type(text) is not str or not text or "\0" in text or text.endswith((os.sep, os.altsep or os.sep)):
            raise ConfigurationError(f"file option path={text!r}: must name a file")
        self.path = place = Path(os.path.abspath(text))  # noqa: PTH100  # Path.resolve would follow the links of now
        super().__init__(
            destination=f"file://{quote(str(place))}",
            transport=lambda producer: _FileTransport(producer, place, own),
            options=replace(shared, encoding="json"),
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from `file:///absolute/path?max_bytes=10000000&backups=5`.

        Raises:
            ConfigurationError: When the URL or an option cannot be used.
        """
        path, found = cls.read_url(url)
        return cls(path, **{**found, **options})

    @classmethod
    def read_url(cls, url: str) -> tuple[str, dict[str, str]]:
        """Take a URL apart: the path, and the options in its query (its name among them).

        Raises:
            ConfigurationError: When the URL cannot be used.
        """
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or parts.fragment:
            raise ConfigurationError(
                "file URL: must be file:///path, with three slashes before an absolute path; in it, write # as %23 and "
                "? as %3F"
            )
        path = unquote(parts.path)
        if os.name == "nt":
            path = path.removeprefix("/")
        return path, cls.query_options(parts.query)

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say whether the file can be written and rotated, and how much room there is; writes nothing."""
        text, options = cls.read_url(url)
        options.pop("name", None)
        own, _ = cls.split_options(options)
        path = cls(text).path
        folder = path.parent
        while not os.path.exists(folder):  # noqa: PTH110  # Path.exists raises where this user may not look
            folder = folder.parent
        if not folder.is_dir():
            return [Finding("error", f"{folder} is no folder, so {path} cannot be made", "choose another path")]
        exists = os.path.exists(path)  # noqa: PTH110  # as above
        if exists and not path.is_file():
            return [Finding("error", f"{path} is no regular file", "choose another path")]
        may_rename = os.access(folder, os.W_OK | os.X_OK)
        may_write = os.access(path, os.R_OK | os.W_OK) if exists else may_rename
        if not may_write:
            return [Finding("error", f"this user may not write {path}", "grant it, or choose another path")]
        findings = [Finding("ok", f"{path} can be written{'' if exists else ' (it does not exist yet)'}")]
        if not own.max_bytes:
            findings.append(
                Finding("warning", "the file grows without bound", "set max_bytes, or rotate it by other means")
            )
        elif not may_rename:
            findings.append(
                Finding("warning", f"this user may not rename files in {folder}, so it cannot be rotated", "grant it")
            )
        free = shutil.disk_usage(folder).free
        text = f"{free // MIB:,} MiB are free for it"
        findings.append(Finding("ok", text) if free >= _LITTLE_SPACE else Finding("warning", text, "make room"))
        return findings


class _FileTransport(Transport):
    """Two files: events, and dead letters, which is opened when the first one comes."""

    service_interval: float | None = None

    def __init__(self, producer: str, path: Path, options: FileOptions) -> None:
        self._producer = producer
        self._events = LineFile(path, options)
        self._dead_letters = LineFile(path.with_name(path.name + DEAD_LETTER_SUFFIX), options)

    @property
    def is_open(self) -> bool:
        return self._events.is_open

    def open(self, deadline: float) -> None:
        self._events.allow_waiting()
        self._dead_letters.allow_waiting()
        try:
            self._events.open()
        except OSError as error:
            kind = FatalError if _failure_of(error) is Failure.FATAL else UnavailableError
            raise kind(self._events.describe(error)) from error

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        rejected: dict[int, str] = {}
        places: tuple[list[int], list[int]] = ([], [])
        lines: tuple[list[bytes], list[bytes]] = ([], [])
        for position, entry in enumerate(batch):
            try:
                line = self._line(entry)
            except DecodeError as error:
                rejected[position] = str(error)
                break  # what is behind it waits, so that a note in its place comes before them
            which = 1 if entry.dead_letter else 0
            places[which].append(position)
            lines[which].append(line)
        delivered: set[int] = set()
        for file, at, what in zip((self._events, self._dead_letters), places, lines, strict=True):
            if not what:
                continue
            written, failed = file.append(what, deadline)
            delivered.update(at[:written])
            if failed is not None:
                self.close(clean=False)
                # What is not delivered was cut off again, so it is certain that it is not there.
                return BatchOutcome(_failure_of(failed), delivered, rejected, sent=False, error=file.describe(failed))
        if rejected:
            return BatchOutcome(Failure.REJECTED, delivered, rejected, error="an event cannot be written as JSON")
        return BatchOutcome()

    def idle(self, seconds: float) -> None:
        """There is no connection to serve."""

    def close(self, clean: bool) -> None:
        self._events.close()
        self._dead_letters.close()

    def interrupt(self) -> None:
        self._events.interrupt()
        self._dead_letters.interrupt()

    def _line(self, entry: Entry) -> bytes:
        record = entry.record
        if entry.dead_letter:
            return dead_letter_line(record.payload, self._producer, entry.seq, entry.dead_letter)
        return event_line(_json_of(record), self._producer, entry.seq)


class LineFile:
    """A file that grows by whole lines, under a lock, and may be moved away by anybody at any time."""

    def __init__(self, path: Path, options: FileOptions) -> None:
        self._path = path
        self._options = options
        self._descriptor = -1
        self._interrupted = False
        self._bell = Wakeup()
        self._said_rotation = False
        tell_after_fork(self)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._descriptor >= 0

    def describe(self, error: OSError) -> str:
        """What went wrong, in words."""
        return f"{self._path}: {error.strerror or type(error).__name__}"

    def open(self) -> None:
        """Open or make the file, and its folder; raises OSError."""
        self.close()
        try:
            descriptor = os.open(self._path, _OPEN_FLAGS, 0o666)
        except FileNotFoundError:
            os.makedirs(self._path.parent, exist_ok=True)  # noqa: PTH103  # beside the other calls of os here
            descriptor = os.open(self._path, _OPEN_FLAGS, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file")
        self._descriptor = descriptor

    def append(self, lines: Sequence[bytes], deadline: float) -> tuple[int, OSError | None]:
        """Append lines, in one write; returns how many of them are in the file for good, and why not all are."""
        try:
            self._enter(deadline)
            try:
                more = sum(map(len, lines))
                while self._is_too_long(more) and self._rotate(deadline):
                    pass
                return self._write(lines)
            finally:
                self._unlock()
        except OSError as error:
            return 0, error

    @contextlib.contextmanager
    def held(self, deadline: float) -> Iterator[int]:
        """Keep everybody else from writing or rotating it: gives the descriptor of the file at the path; raises OSError."""
        self._enter(deadline)
        try:
            yield self._descriptor
        finally:
            self._unlock()

    def close(self) -> None:
        """Close it; never raises."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def allow_waiting(self) -> None:
        """Forget an interrupt."""
        self._interrupted = False

    def interrupt(self) -> None:
        """End the waiting for the lock, until `allow_waiting`."""
        self._interrupted = True
        self._bell.set()

    def after_fork_in_child(self) -> None:
        """Close the copy: a child that kept it would keep the lock of a parent that is killed."""
        self.close()

    def _enter(self, deadline: float) -> None:
        """Have the file that is at the path now, locked; raises OSError."""
        while True:
            if self._descriptor < 0:
                self.open()
            self._lock(deadline)
            if self._is_current():
                return
            self._unlock()
            self.close()

    def _lock(self, deadline: float) -> None:
        while not _try_lock(self._descriptor):
            remaining = deadline - monotonic()
            if remaining <= 0 or self._interrupted:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock")
            self._bell.wait(min(remaining, _LOCK_POLL))

    def _unlock(self) -> None:
        # Not left to the closing: a forked child may have a copy of the descriptor, and with it the lock.
        if self._descriptor >= 0:
            _unlock(self._descriptor)

    def _is_current(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            there = os.stat(self._path)  # noqa: PTH116  # beside the other calls of os here
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def _is_too_long(self, more: int) -> bool:
        size = os.fstat(self._descriptor).st_size
        return size > 0 and 0 < self._options.max_bytes < size + more

    def _rotate(self, deadline: float) -> bool:
        """Rename the file and its predecessors, and begin a new one; False when that cannot be done."""
        name = str(self._path)
        if sys.platform == "win32":
            self.close()  # Windows renames no open file
        try:
            for n in range(self._options.backups - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{name}.{n}", f"{name}.{n + 1}")  # noqa: PTH105  # as above
            os.replace(name, f"{name}.1")  # noqa: PTH105  # as above
        except OSError as error:
            if not self._said_rotation:
                self._said_rotation = True
                log.warning("%s cannot be rotated, so it grows on: %s", name, error.strerror)
            return False
        finally:
            self._unlock()
            self.close()
            self._enter(deadline)
        return True

    def _write(self, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
        descriptor = self._descriptor
        start = os.lseek(descriptor, 0, os.SEEK_END)
        if start:
            os.lseek(descriptor, start - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                lines = [b"\n" + lines[0], *lines[1:]]  # ends the line that somebody left torn
        data = b"".join(lines)
        written = 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:] if written else data)
            if self._options.fsync:
                os.fsync(descriptor)
        except OSError as error:
            return self._cut_back(lines, start, written), error
        return len(lines), None

    def _cut_back(self, lines: Sequence[bytes], start: int, written: int) -> int:
        """Cut what was written back to its last whole line; returns how many lines stay."""
        whole = length = 0
        while whole < len(lines) and length + len(lines[whole]) <= written:
            length += len(lines[whole])
            whole += 1
        try:
            if self._options.fsync:  # whether the disk has any of it is not known
                whole = length = 0
            os.ftruncate(self._descriptor, start + length)
        except OSError:
            pass  # the next line that is written ends the torn one first
        return whole


def _try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it; True also where there are no locks, and appending is all that can be had."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _BUSY
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _json_of(record: Record) -> bytes:
    """The event as a JSON object on one line; raises DecodeError when it is no event."""
    payload = record.payload
    if record.content_type == codec.JSON and payload[-1:] == b"}" and b"\n" not in payload:
        return payload
    try:
        return codec.to_json(codec.decode(payload))
    except (TypeError, OverflowError, RecursionError) as error:
        raise DecodeError(f"no event that JSON can hold: {error}") from None


def _failure_of(error: OSError) -> Failure:
    return Failure.FATAL if error.errno in _LASTING else Failure.UNAVAILABLE
