"""What dead processes left in a spool: finding it, adopting it, and putting aside what cannot be read.

What belongs here: the folders of a spool. What does not: one producer's folder and the lease on it (lease.py), its
segments (journal.py), or where its events are sent.

Only folders and regular files of this user are touched; links are not followed. A file with a segment's name that is none
is renamed to `NAME.set-aside`, counted, and said once. One that cannot be read stays where it is; one that a newer version
wrote too, and with it all else in its folder: what it says about the other segments cannot be read.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import time

from streamll.delivery.outcome import Entry
from streamll.runtime.journal import Identity, Journal
from streamll.runtime.journal_reader import JournalReader, read_bytes
from streamll.runtime.lease import Folder, folders_in, folders_of, key_of
from streamll.runtime.segment import (
    FOREIGN,
    HEADER_BYTES,
    LEAST_SEGMENT,
    NEWER,
    Header,
    SegmentError,
    Survey,
    read_header,
)
from streamll.runtime.segment_chain import FIRST_INDEX, index_of, is_spare
from streamll.runtime.segment_file import SegmentFile
from streamll.tally import Tally

log = logging.getLogger("streamll")

SET_ASIDE_SUFFIX = ".set-aside"

UNREADABLE = "unreadable"

set_aside = Tally()
"""Files that this process found unfit for adoption, by kind: empty, foreign and damaged (renamed), newer and unreadable
(left alone)."""

_UNBOUNDED = 1 << 62
_STALE = 60.0
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.ESTALE})

_said: set[tuple[str, str]] = set()


def orphans(spool_dir: Path, destination: str | None = None) -> Iterator[Path]:
    """The folders in a spool that hold segments, the oldest first, each for `adopt`: some may be those of living processes.

    Args:
        spool_dir: The spool; nothing is in one that does not exist.
        destination: Where the events go, as `Identity` has it; None: anywhere.
    """
    folders = folders_in(spool_dir) if destination is None else folders_of(spool_dir / key_of(destination))
    found = [(created, folder) for folder in folders if (created := _look(folder)) is not None]
    for _, folder in sorted(found):
        yield folder


def _look(path: Path) -> int | None:
    """When the first segment in a producer's folder was made; None when nothing of use is in it.

    0 stands for a time that cannot be read. A folder that was left empty long ago is removed.
    """
    try:
        folder = Folder.look(path)
        if folder is None:
            return None
        try:
            names = [name for name in folder.names() if index_of(name)]
            if not names or path.name.startswith("."):
                if time() - os.fstat(folder.descriptor).st_mtime > _STALE and folder.lock():
                    folder.clear(is_spare)
                    folder.close(remove=True)
                return None
            for name in names:
                try:
                    return read_header(read_bytes(folder, name, 0, HEADER_BYTES)).created
                except SegmentError as error:
                    if error.kind == NEWER:
                        _tell(folder, name, NEWER, str(error))
                        return None
                except OSError:
                    pass
            return 0
        finally:
            folder.close()
    except OSError:
        return None


def _tell(folder: Folder, name: str, kind: str, what: str) -> None:
    path = str(folder.path / name)
    if (kind, path) not in _said:
        _said.add((kind, path))
        set_aside.add(kind)
        log.warning("the spool's file %s is not read: %s", path, what)


def adopt(path: Path) -> AdoptedJournal | None:
    """Lease a producer's folder, and find out what is to be delivered from it. Files in it that are no segments are put
    aside; none of them is an error.

    Args:
        path: The folder, as `orphans` has it.

    Returns:
        The journal; None when a living process has it, or when it is gone, or nothing in it can be read.
    """
    try:
        folder = Folder.lease(path)
    except OSError as error:
        _tell_unreadable(path, error)
        return None
    if folder is None:
        return None
    try:
        journal = _adopt(folder)
    except OSError as error:
        _tell_unreadable(path, error)
        journal = None
    except BaseException:
        folder.close()
        raise
    if journal is None:
        folder.close(remove=True)
    return journal


def _tell_unreadable(path: Path, error: OSError) -> None:
    if (UNREADABLE, str(path)) not in _said:
        _said.add((UNREADABLE, str(path)))
        log.warning("the spool's folder %s cannot be read: %s", path, error.strerror)


def _adopt(folder: Folder) -> AdoptedJournal | None:
    headers: dict[str, Header] = {}
    unfit: dict[str, tuple[str, str]] = {}
    newest = 0.0
    for name in filter(index_of, folder.names()):
        try:
            header = read_header(read_bytes(folder, name, 0, HEADER_BYTES))
            if header.producer != folder.path.name:
                raise SegmentError(FOREIGN, "it belongs to another producer")
            headers[name] = header
            newest = max(newest, os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_mtime)
        except SegmentError as error:
            unfit[name] = error.kind, str(error)
        except OSError as error:
            _raise_if_passing(error)
            unfit[name] = UNREADABLE, error.strerror or type(error).__name__
    for name, (kind, what) in unfit.items():
        if kind == NEWER:
            _tell(folder, name, kind, what)
            return None
    for name, (kind, what) in unfit.items():
        _tell(folder, name, kind, what)
        if kind != UNREADABLE:
            with suppress(OSError):
                folder.rename(name, name + SET_ASIDE_SUFFIX)
    folder.clear(is_spare)
    return AdoptedJournal(folder, headers, newest) if headers else None


def _raise_if_passing(error: OSError) -> None:
    """Raise an error that says nothing about the file: later it may be read, so it must not count as unfit."""
    if error.errno in _PASSING:
        raise error


class AdoptedJournal(Journal):
    """The journal of a dead process: its unsettled entries can be read, settled and released; nothing is appended.

    What it settles stands in a new segment of the same folder. Where none can be made, a segment is deleted as soon as
    all of it is settled, and what was delivered of the others would be delivered again after this process's death.

    Attributes:
        unsettled: How many entries were to be delivered when it was adopted. Those that turn out to be undecodable (no
            damage does that) are among them, and are not read.
        first, last: The lowest and the highest number that is stored; 0 when none is.
        missing: Ranges between them that are neither stored nor settled: lost by damage, or never stored.
        undeclared: Ranges that the dead process had dropped, and of which it could tell no reader.
        age: Seconds since the last file was changed, when it was adopted.
    """

    def __init__(self, folder: Folder, headers: dict[str, Header], newest: float) -> None:
        header = next(iter(headers.values()))
        super().__init__(
            folder.path.parent.parent,
            Identity(header.destination, header.url, header.producer, header.durability),
            segment_bytes=LEAST_SEGMENT,
            spool_bytes=_UNBOUNDED,
        )
        self.age = max(0.0, time() - newest)
        self._survey = survey = Survey()
        self._reader = JournalReader(survey.settled)
        segments = []
        for name, header in headers.items():
            try:
                data = read_bytes(folder, name, HEADER_BYTES, header.size)
            except OSError as error:
                _raise_if_passing(error)
                survey.damage.add(header.size)
                continue
            if len(data) < header.size - HEADER_BYTES:
                survey.damage.add(header.size - HEADER_BYTES - len(data))
            survey.add(data, 0, header.salt)
            segment = SegmentFile(name, header.size, header.salt)
            segment.end = HEADER_BYTES + len(data)
            segment.last = survey.last
            segments.append(segment)
        self._chain.inherit(folder, segments)
        self.unsettled = survey.unsettled()
        self.first, self.last = survey.first, survey.last
        self.missing = survey.missing(whole=index_of(min(headers)) <= FIRST_INDEX)
        self.undeclared = list(survey.undeclared)

    @property
    def damaged(self) -> int:
        """Places in its segments that cannot be read."""
        return self._survey.damage.places + self._reader.undecodable

    def append(self, entry: Entry) -> bool:
        """Return False: nothing is added to what a dead process left."""
        return self._refuse("the journal was adopted")

    def settle(self, ranges: Sequence[tuple[int, int]], undeclared: bool = False) -> None:
        """As `Journal.settle`; what is settled is not read again either."""
        for first, last in ranges:
            self._survey.settled.add(first, last)
        super().settle(ranges, undeclared)
