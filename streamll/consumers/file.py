"""FileConsumer: reads the JSON Lines that FileSink writes, follows them as they grow, through rotation and truncation.

What belongs here: lines, files and their order. What does not: doubles and iteration (base.py).

Rotated files stand beside the file under its name and a number, the highest being the oldest: `events.jsonl.2`,
`events.jsonl.1`, `events.jsonl`. They are one sequence. A file keeps its inode when it is renamed, so that is what a
position names it by.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import threading
import time
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from streamll.consumers.base import Consumer
from streamll.consumers.base_options import BEGINNING, END, ConsumerOptions
from streamll.consumers.received import Received, read_event, read_note
from streamll.errors import ConfigurationError, FatalError, UnavailableError
from streamll.options import SinkOptions, unknown_option
from streamll.wire.file import DEAD_LETTER_SUFFIX, PAYLOAD_BASE64, PRODUCER, REASON, SEQ

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("streamll.consumers")

SINK_OPTIONS = frozenset({"name", "max_bytes", "backups", "fsync"})
"""What only FileSink can be told; its URL serves to read it back, so it is left out."""

_CHUNK = 256 * 1024
_LOOK_AGAIN = 0.1
_SHOWN_OF_LONG_LINE = 1024
_LABELS = frozenset({PRODUCER, SEQ, REASON})
_POSITION = re.compile(r"(\d{1,19})(?:@(\d{1,20}))?", re.ASCII)


@dataclass(frozen=True)
class FileConsumerOptions(ConsumerOptions):
    """What a file consumer can be told."""

    owner: ClassVar[str] = "file consumer "

    def check(self) -> None:
        """Refuse a start that is no place in a file."""
        if self.start not in (None, BEGINNING, END) and not _POSITION.fullmatch(str(self.start)):
            raise ConfigurationError(
                f"{self.owner}option start={self.start!r}: must be beginning, end, or a position such as 1024 or 1024@77"
            )


class FileConsumer(Consumer):
    """Reads events from a file of JSON Lines and the rotated files beside it.

    A last line without its end waits for it; without `follow` it is handed over when it is an event all the same. What
    is no event (a torn line, or one beyond `max_event_bytes`) is handed over as undecodable. A file that does not exist
    yet is waited for, unless `follow` is false. `start="end"` begins with the first line that is not complete now.

    Args:
        path: The file, or its `file:///path?option=value` URL.
        options: Those of ConsumerOptions.

    Raises:
        ConfigurationError: When the URL or an option cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any) -> None:
        place, found = _read_path(path)
        chosen = FileConsumerOptions.from_mapping({**found, **options})
        super().__init__(_FileSource(place, chosen), chosen)

    @classmethod
    def of_dead_letters(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Return a consumer of the dead letters that a sink with such a path or URL writes; arguments as of the class."""
        place, found = _read_path(path)
        return cls(place.with_name(place.name + DEAD_LETTER_SUFFIX), **{**found, **options})


def _read_path(path: str | os.PathLike[str]) -> tuple[Path, dict[str, str]]:
    text = os.fspath(path)
    if not text.startswith("file:"):
        if not text:
            raise ConfigurationError("file consumer: an empty path")
        return Path(text), {}
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigurationError(f"file URL {text!r}: write brackets in a path as %5B and %5D") from None
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise ConfigurationError(f"file URL {text!r}: must be file:///path, with three slashes before an absolute path")
    own: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in FileConsumerOptions.names():
            own[name] = value
        elif name not in SINK_OPTIONS and name not in SinkOptions.names():
            raise unknown_option("file URL: ", name, FileConsumerOptions.names())
    return Path(unquote(parts.path)), own


class _Envelope(msgspec.Struct, gc=False):
    """What FileSink writes beside an event; decoding to this passes over all else."""

    producer: str = ""
    seq: int = 0
    reason: str = ""
    payload_base64: str = ""


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


class _File(NamedTuple):
    path: Path
    inode: int
    size: int


class _FileSource:
    """Lines, from the oldest file to the newest and on."""

    def __init__(self, path: Path, options: FileConsumerOptions) -> None:
        self.shown = f"file {path}"
        self.restarts = 0
        self.cuts = 0
        self.pending_lost = 0
        self.whole = False  # rotated files may have been removed
        self._path = path
        self._options = options
        self._read = read_event if options.decode else read_note
        self._wake = threading.Event()
        self._descriptor = -1
        self._inode = 0
        self._line_at = 0
        """Where the line begins that is not handed over yet; behind it, `_rest` is what was read of it and later ones."""
        self._rest = bytearray()
        self._too_long = 0
        """Bytes of the line at hand that were left out because it is too long."""
        self._last: _File | None = None
        """Without `follow`: the newest file when reading began, and how long it was."""
        self._start = options.start or BEGINNING
        self._begun = False
        self._finished = False

    def open(self) -> None:
        """Open the file at the start, or where reading was."""
        try:
            if self._descriptor >= 0 or self._find():
                return
        except OSError as error:
            raise FatalError(f"{self.shown}: {error.strerror or type(error).__name__}") from error
        if not self._options.follow:
            raise FatalError(f"{self.shown}: does not exist")
        if not self._path.absolute().parent.is_dir():
            raise FatalError(f"{self.shown}: its directory does not exist")
        if not self._begun:
            self._start = BEGINNING  # all that will be in it is new
        logger.warning("%s: does not exist yet, waiting for it", self.shown)

    def read(self, wait: float) -> Sequence[Received] | None:
        """Return the lines that are there, going on to newer files, or waiting for more."""
        deadline = time.monotonic() + wait
        try:
            while True:
                page = self._look()
                if page is None or page:
                    return page
                left = deadline - time.monotonic()
                if left <= 0 or self._wake.is_set():
                    return []
                self._wake.wait(min(left, _LOOK_AGAIN))
        except OSError as error:
            raise UnavailableError(f"{self.shown}: {error.strerror or type(error).__name__}") from error

    def acknowledge(self, done: Sequence[Any], rejected: Sequence[Any]) -> None:
        """A file keeps its lines."""

    def interrupt(self) -> None:
        """End a waiting `read`."""
        self._wake.set()

    def close(self) -> None:
        """Close the file; `open` comes back to where it was."""
        self._rest.clear()
        self._too_long = 0
        self._release()

    def _release(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def _look(self) -> list[Received] | None:
        """Take lines without waiting, going on to newer files; None at the end of what is to be read."""
        while self._descriptor >= 0 or self._find():
            page = self._lines()
            if page:
                return page
            if self._finished:
                return None
            if self._fill() or self._truncated():
                continue
            newer = self._newer()
            if newer is None:
                if self._options.follow:
                    # What is behind the last whole line may still be taken back (a writer that failed does that), so it
                    # is read again then.
                    if len(self._rest) <= _CHUNK:
                        self._rest.clear()
                    return []
                self._finished = True
                return self._rest_of_file(torn=False) or None
            if self._fill():
                continue  # it was written between our last look at it and its rotation
            page = self._rest_of_file(torn=True)
            if page:
                return page
            self._switch(newer, 0)
        return []

    def _find(self) -> bool:
        """Open the file to read: at first where `start` says, then the one that was being read; False when there is none."""
        files = self._files()
        if not files:
            return False
        if self._begun:
            for file in files:
                if file.inode == self._inode:
                    return self._switch(file, self._line_at)
            self.cuts += 1
            return self._switch(files[-1], 0)
        if not self._options.follow:
            self._last = files[0]
        place = _POSITION.fullmatch(self._start)
        file = files[-1] if self._start == BEGINNING else files[0]
        offset = int(place[1]) if place else 0
        if place and place[2]:
            named = [one for one in files if one.inode == int(place[2])]
            if not named:
                logger.warning("%s: the file of position %s is gone, starting at the oldest", self.shown, self._start)
                offset = 0
            file = named[0] if named else files[-1]
        if not self._switch(file, offset):
            return False
        if self._start == END:
            self._line_at = self._end_of_last_line()
        self._begun = True
        return True

    def _files(self) -> list[_File]:
        """The files that are there, newest first.

        Looked for in the direction in which rotation renames, so that none is missed meanwhile; one that is met twice
        counts where it was met last.
        """
        name = self._path.name
        numbers = []
        for sibling in self._path.parent.glob(f"{_escaped(name)}.*"):
            number = sibling.name[len(name) + 1 :]
            if number.isascii() and number.isdigit():
                numbers.append(int(number))
        found: dict[int, _File] = {}
        for path in (self._path, *(self._path.with_name(f"{name}.{number}") for number in sorted(numbers))):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.pop(status.st_ino, None)
            found[status.st_ino] = _File(path, status.st_ino, status.st_size)
        return list(found.values())

    def _switch(self, file: _File, offset: int) -> bool:
        """Read this file from now on; False when it is another one by now."""
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            descriptor = os.open(file.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            return False
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise FatalError(f"{self.shown}: is not a regular file")
        if status.st_ino != file.inode:
            os.close(descriptor)
            return False
        self._release()
        self._descriptor, self._inode, self._line_at = descriptor, file.inode, offset
        self._rest.clear()
        self._too_long = 0
        return True

    @property
    def _read_to(self) -> int:
        return self._line_at + self._too_long + len(self._rest)

    def _fill(self) -> bool:
        """Read on in this file; False at its end."""
        most = _CHUNK
        if self._last is not None and self._last.inode == self._inode:
            most = max(0, min(most, self._last.size - self._read_to))
        os.lseek(self._descriptor, self._read_to, os.SEEK_SET)
        data = os.read(self._descriptor, most)
        self._rest += data
        return bool(data)

    def _truncated(self) -> bool:
        """Whether the file was cut and is read from its beginning again, as after logrotate's copytruncate."""
        size = os.fstat(self._descriptor).st_size
        if size >= self._read_to:
            return False
        self._rest.clear()
        if size >= self._line_at and not self._too_long:
            return False  # no whole line is gone
        logger.warning("%s: was truncated, reading it from its beginning", self.shown)
        self.restarts += 1
        self.cuts += 1
        self._line_at = self._too_long = 0
        return True

    def _newer(self) -> _File | None:
        """The file that follows this one, once there is one."""
        if self._last is not None and self._last.inode == self._inode:
            return None
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                return None
        files = self._files()
        for newer, file in zip([None, *files], files, strict=False):
            if file.inode == self._inode:
                return newer
        if not files:
            return None
        # Ours was deleted, so all that are there are newer; and there may have been others between.
        self.cuts += 1
        return files[-1]

    def _lines(self) -> list[Received]:
        """Take complete lines from what was read."""
        page: list[Received] = []
        begin = 0
        while len(page) < self._options.page_size:
            end = self._rest.find(b"\n", begin)
            if end < 0:
                break
            line = bytes(self._rest[begin:end])
            self._line_at += self._too_long + end + 1 - begin
            begin = end + 1
            if self._too_long or line.strip():
                page.append(self._receive(line))
            self._too_long = 0
        del self._rest[:begin]
        if len(self._rest) > self._options.max_event_bytes and b"\n" not in self._rest:
            self._too_long += len(self._rest)
            self._rest.clear()
        return page

    def _rest_of_file(self, torn: bool) -> list[Received]:
        """Take what is behind the last end of a line, when nobody will complete it (torn), or when it is an event as it is."""
        if not self._rest and not self._too_long:
            return []
        before = self._line_at
        self._line_at = self._read_to
        item = self._receive(bytes(self._rest))
        if item.error and not torn:
            self._line_at = before
            return []
        self._rest.clear()
        self._too_long = 0
        return [item]

    def _receive(self, line: bytes) -> Received:
        """Make an item of the line before `_line_at`."""
        position = f"{self._line_at}@{self._inode}"
        if self._too_long:
            length = self._too_long + len(line)
            error = f"no event: a line of {length:,} bytes; max_event_bytes is {self._options.max_event_bytes:,}"
            return Received(None, error, line[:_SHOWN_OF_LONG_LINE], "", 0, position)
        limit = self._options.max_event_bytes
        event, error = self._read(line, limit)
        decoded = event is not None or error != ""
        if not decoded:
            labels = _labels_alone(line)
            if labels is not None:
                return Received(None, "", line, labels[0], labels[1], position, labels[2])
            event, error = read_event(line, limit)
        if event is not None:
            producer, seq, reason = _labels(event.extra)
            if producer:
                event.extra = {name: value for name, value in event.extra.items() if name not in _LABELS}
            return Received(event if decoded else None, "", line, producer, seq, position, reason)
        payload, producer, seq, reason = _strange_line(line)
        if payload is not line:
            event, error = self._read(payload, limit)
        return Received(event, error, payload, producer, seq, position, reason)

    def _end_of_last_line(self) -> int:
        """Where the last complete line of this file ends."""
        end = os.fstat(self._descriptor).st_size
        while end > 0:
            begin = max(0, end - _CHUNK)
            os.lseek(self._descriptor, begin, os.SEEK_SET)
            newline = os.read(self._descriptor, end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return 0


def _labels_alone(line: bytes) -> tuple[str, int, str] | None:
    """The labels of an event's line, without decoding the event; None where it takes a closer look."""
    try:
        found = _decode_envelope(line)
    except (ValueError, RecursionError):
        return None
    return None if found.payload_base64 else (found.producer, found.seq, found.reason)


def _labels(fields: Mapping[str, Any]) -> tuple[str, int, str]:
    """What FileSink wrote beside the event: producer, number, and in a dead letter the reason; else nothing of it."""
    producer, seq, reason = fields.get(PRODUCER), fields.get(SEQ), fields.get(REASON)
    if not (isinstance(producer, str) and producer and isinstance(seq, int) and seq > 0):
        return "", 0, ""
    return producer, seq, reason if isinstance(reason, str) else ""


def _strange_line(line: bytes) -> tuple[bytes, str, int, str]:
    """What can be known of a line that is no event, such as a dead letter of other bytes: those, and its labels."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        payload = b64decode(fields[PAYLOAD_BASE64], validate=True) if PAYLOAD_BASE64 in fields else line
    except (ValueError, TypeError, RecursionError):
        return line, "", 0, ""
    return payload, *_labels(fields)


def _escaped(name: str) -> str:
    """A file's name as a pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", name)
