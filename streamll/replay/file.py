"""Dead letters in a file, and a file as the place where redriven events go.

While dead letters are moved, the lock that sinks take to write or rotate them is held, so their file and the rotated
ones beside it stay as they are; sinks that have a dead letter to write wait, or try again. Events are appended and
synced, then each file of dead letters is replaced by what is left of it, atomically. A crash in between leaves the
events of that file in both places, under the same producer and number, by which readers drop the double.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from streamll import codec
from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import DecodeError, FatalError, TransportError, UnavailableError
from streamll.options import SinkOptions
from streamll.replay.base import PAGE, PAGE_BYTES, Letter
from streamll.sinks.file import FileOptions, LineFile
from streamll.wire.file import PAYLOAD_BASE64, PRODUCER, REASON, SEQ, event_line, is_object

_COPIED_AT_ONCE = 1024 * 1024
_UNFINISHED = ".redriving"
"""What is behind a file's name while what is left of it is written."""


class FileDeadLetters:
    """The dead letters in a file and in the rotated ones beside it, which are older.

    Args:
        path: The file.
        options: The timeouts; `send_timeout` is for its lock.
        look: Only look at them, without the lock and without making or changing anything.
    """

    def __init__(self, path: Path, options: SinkOptions, *, look: bool = False) -> None:
        self.shown = f"file {path}"
        self._path = path
        self._options = options
        self._look = look
        self._file = LineFile(path, FileOptions())
        self._locked = contextlib.ExitStack()
        self._lock = -1
        """The descriptor of the file whose lock is held."""
        self._to_read: list[Path] = []
        self._reader: BinaryIO | None = None
        self._reading = path
        self._removed: list[tuple[int, int]] = []
        """Where the lines of the present file begin and end that are dead letters no more."""

    def open(self) -> None:
        """See `DeadLetters.open`."""
        with self._translated():
            if not with_rotated(self._path):
                return
            if not self._look:
                deadline = time.monotonic() + self._options.send_timeout
                self._lock = self._locked.enter_context(self._file.held(deadline))
            self._to_read = with_rotated(self._path)
            if not self._look:
                for path in self._to_read:
                    _refuse_strangers(path)

    def take(self) -> list[Letter]:
        """See `DeadLetters.take`."""
        letters: list[Letter] = []
        size = 0
        with self._translated():
            while not letters:
                if self._reader is None:
                    if not self._to_read:
                        break
                    self._reading = self._to_read.pop(0)
                    self._reader = self._reading.open("rb")
                while len(letters) < PAGE and size < PAGE_BYTES:
                    begin = self._reader.tell()
                    line = self._reader.readline()
                    if not line:
                        break
                    size += len(line)
                    if line.strip():
                        letters.append(_letter(line, (begin, begin + len(line))))
                if not letters:
                    self._finish()
        return letters

    def remove(self, letters: Sequence[Letter]) -> None:
        """See `DeadLetters.remove`: the file is replaced when all of it was read, or at the end."""
        self._removed += [letter.handle for letter in letters]

    def count(self) -> int:
        """See `DeadLetters.count`."""
        with self._translated():
            self._finish()
            return sum(_count_lines(path) for path in with_rotated(self._path))

    def close(self) -> None:
        """See `DeadLetters.close`: what was removed is removed, even if something else has failed."""
        with contextlib.suppress(OSError):
            self._finish()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        with contextlib.suppress(OSError):
            # It may have been made for its lock. One that somebody has made since is not ours to remove.
            if self._lock >= 0 and _is(self._path, self._lock) and not os.fstat(self._lock).st_size:
                self._path.unlink()
        self._lock = -1
        self._locked.close()
        self._file.close()

    def _finish(self) -> None:
        """Leave the file at hand: replace it by what is left of it."""
        reader, self._reader = self._reader, None
        removed, self._removed = self._removed, []
        if reader is None:
            return
        with reader:
            if removed:
                _replace(self._reading, reader, removed)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _error(self.shown, error) from error


class FileDestination:
    """A file that redriven events are appended to and synced, rotated as its sinks do it.

    Args:
        path: The file.
        own: How it is rotated.
        options: The timeouts.
    """

    takes_away = False

    def __init__(self, path: Path, own: FileOptions, options: SinkOptions) -> None:
        self.shown = f"file {path}"
        self._file = LineFile(path, FileOptions(max_bytes=own.max_bytes, backups=own.backups, fsync=True))
        self._options = options

    def prepare(self) -> None:
        """See `Destination.prepare`: it is opened when there is something to append."""

    def deliver(self, letters: Sequence[Letter]) -> BatchOutcome:
        """See `Destination.deliver`."""
        rejected: dict[int, str] = {}
        places: list[int] = []
        lines: list[bytes] = []
        for place, letter in enumerate(letters):
            try:
                lines.append(event_line(_json(letter.payload), letter.producer, letter.seq))
            except DecodeError as error:
                rejected[place] = str(error)
            else:
                places.append(place)
        if not lines:
            return BatchOutcome(rejected=rejected)
        written, failed = self._file.append(lines, time.monotonic() + self._options.send_timeout)
        if failed is None:
            return BatchOutcome(rejected=rejected)
        why = str(_error(self.shown, failed))
        return BatchOutcome(Failure.UNAVAILABLE, frozenset(places[:written]), rejected, error=why)

    def close(self, clean: bool) -> None:
        """See `Destination.close`."""
        self._file.close()


def _json(payload: bytes) -> bytes:
    """The event as a JSON object on one line; raises DecodeError when it is none."""
    if is_object(payload):
        return payload
    try:
        return codec.to_json(codec.decode(payload))
    except (TypeError, OverflowError, RecursionError) as error:
        raise DecodeError(f"no event that JSON can hold: {error}") from None


def _letter(line: bytes, place: tuple[int, int]) -> Letter:
    text = line.strip()
    try:
        fields: dict[str, Any] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        producer = msgspec.json.decode(fields[PRODUCER], type=str)
        seq = msgspec.json.decode(fields[SEQ], type=int)
        reason = msgspec.json.decode(fields[REASON], type=str)
    except (ValueError, KeyError, RecursionError):
        return Letter(
            place, "", text, "", 0, "", "no dead letter of ours: no line of JSON with producer, seq and reason"
        )
    identity = f"{producer}:{seq}"
    if PAYLOAD_BASE64 not in fields:
        return Letter(place, identity, _payload(text, fields), producer, seq, reason)
    try:
        payload = b64decode(msgspec.json.decode(fields[PAYLOAD_BASE64], type=str), validate=True)
        codec.decode(payload)
    except ValueError as error:
        return Letter(place, identity, b"", producer, seq, reason, str(error))
    return Letter(place, identity, payload, producer, seq, reason)


def _payload(line: bytes, fields: dict[str, Any]) -> bytes:
    """The event as it was before our labels were put behind it; it may have had keys of the same names."""
    ours = b',"producer":%b,"seq":%b,"reason":%b}' % (
        bytes(fields[PRODUCER]),
        bytes(fields[SEQ]),
        bytes(fields[REASON]),
    )
    if line.endswith(ours):
        return line[: -len(ours)] + b"}"
    return msgspec.json.encode({name: value for name, value in fields.items() if name not in (PRODUCER, SEQ, REASON)})


def with_rotated(path: Path) -> list[Path]:
    """Return the file and the rotated ones beside it, as far as they are there, oldest first."""
    rotated = {}
    with contextlib.suppress(FileNotFoundError):
        for sibling in path.parent.iterdir():
            number = sibling.name.removeprefix(f"{path.name}.")
            if number != sibling.name and number.isascii() and number.isdigit():
                rotated[int(number)] = sibling
    found = [rotated[number] for number in sorted(rotated, reverse=True)]
    return [*found, path] if path.exists() else found


def _refuse_strangers(path: Path) -> None:
    """A file that is replaced becomes ours; only root can give it to whose it was."""
    if sys.platform != "win32" and os.geteuid() not in (0, path.stat().st_uid):
        raise FatalError(
            f"file {path}: belongs to another user, whose sinks could not write to it any more; run as that user"
        )


def _replace(path: Path, reader: BinaryIO, removed: Sequence[tuple[int, int]]) -> None:
    """Replace a file by what is left of it without these parts, which are in their order; by nothing if none is left."""
    if not _is(path, reader.fileno()):
        raise OSError(errno.ESTALE, "was moved by somebody else; what was redriven of it is still there")
    size = os.fstat(reader.fileno()).st_size
    kept = []
    at = 0
    for begin, end in [*removed, (size, size)]:
        if begin > at:
            kept.append((at, begin))
        at = end
    if not kept:
        path.unlink()
    else:
        unfinished = path.with_name(path.name + _UNFINISHED)
        with unfinished.open("wb") as writer:
            _take_over_owner(reader, writer)
            for begin, end in kept:
                reader.seek(begin)
                while (left := end - reader.tell()) > 0:
                    writer.write(reader.read(min(left, _COPIED_AT_ONCE)))
            writer.flush()
            os.fsync(writer.fileno())
        unfinished.replace(path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at the path."""
    return os.path.samestat(path.stat(), os.fstat(descriptor))


def _take_over_owner(reader: BinaryIO, writer: BinaryIO) -> None:
    if sys.platform != "win32":
        status = os.fstat(reader.fileno())
        with contextlib.suppress(PermissionError):  # the owner is the same then; only the group may be another
            os.fchown(writer.fileno(), status.st_uid, status.st_gid)
        os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))


def _count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _error(shown: str, error: OSError) -> TransportError:
    return UnavailableError(f"{shown}: {error.strerror or type(error).__name__}")
