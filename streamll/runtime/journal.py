"""Journal: the segments of one producer, so that what was accepted outlives the process.

What belongs here: which segment is written, when there is another, when one may go, and when the disk takes what was
stored. What does not: the bytes (segment.py), one file (segment_file.py), reading back (journal_reader.py), whose
segments these are (lease.py), and what a dead process left behind (spool.py).

Threads: `append` and `settle` are called under the lock of the sink's buffer, from any thread, and an exception out of a
signal handler may end them between any two steps. `read`, `seek`, `release`, `prepare` and `sync` need no lock; the first
four are for one thread at a time, the sink's worker.

What a death can cost. The process alone (SIGKILL, a segfault, the OOM killer): nothing; what `append` has stored is the
kernel's. The machine (a power cut, a kernel panic), durability "process": anything that the kernel has not written by
itself yet, usually the last 30 seconds. Durability "disk": what was stored after the last sync began; one begins at most
`sync_interval` seconds after something is stored, unless a thread of the host keeps the interpreter's lock for longer, and
is over when the drive says so. So an event is at risk for sync_interval and the time of two syncs, if the drive tells the
truth and the disk is not failing (`trouble` says that it is).
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic, time_ns

from streamll.delivery.outcome import Entry
from streamll.errors import ConfigurationError
from streamll.options import MIB
from streamll.runtime import lease
from streamll.runtime.journal_reader import JournalReader
from streamll.runtime.lease import Folder
from streamll.runtime.ranges import RangeSet
from streamll.runtime.segment import (
    FRAME_BYTES,
    HEADER_BYTES,
    LARGEST_SEGMENT,
    LEAST_SEGMENT,
    MOST_RANGES_A_FRAME,
    Header,
    encode_entry,
    header_fits,
    pack_frame,
    pack_header,
    pack_settlement,
)
from streamll.runtime.segment_file import SegmentFile
from streamll.runtime.syncer import Syncer

require_support = lease.require_support
"""Raise a ConfigurationError where a journal cannot be had; for the constructor of a sink."""

PROCESS, DISK = "process", "disk"

SEGMENT_SUFFIX = ".segment"
SPARE_PREFIX = ".spare-"

_RETRY_AFTER = 1.0
_LOCK_PATIENCE = 1.0
_RESERVE_SHARE = 64
_FIRST_SHARE = 8
_PENDING_RANGES = 10_000
_FIRST_INDEX = 1001
"""The number of the first segment; those below are for what is stored last and stands first (`put_first`)."""


@dataclass(frozen=True)
class Identity:
    """Whose journal it is, and where its events go; it stands in the header of each segment.

    Attributes:
        destination: As it is shown, without credentials. Orphans are found by it.
        url: One that a replay can use, without credentials; empty when there is none.
        producer: The producer's id.
        durability: "process" or "disk".
    """

    destination: str
    url: str
    producer: str
    durability: str = PROCESS


@dataclass(frozen=True)
class JournalNumbers:
    """A journal at a glance.

    Attributes:
        bytes: On disk: all of its segments, and one that may be prepared.
        segments: How many there are.
        unsynced: Whether something is stored that the disk may not have yet.
        trouble: Why an entry was not stored, or not synced, in one line; empty when all is well.
        failures: How often the disk refused something.
        refused: Entries that were not stored.
        damaged: Places in its segments that could not be read back.
    """

    bytes: int
    segments: int
    unsynced: bool
    trouble: str
    failures: int
    refused: int
    damaged: int


def key_of(destination: str) -> str:
    """The name of a destination's folder in a spool: 16 hex digits."""
    import hashlib  # takes milliseconds, and only who keeps a journal needs it

    return hashlib.sha256(destination.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Journal:
    """The segments of one producer. It touches no disk until something is to be stored.

    Args:
        spool_dir: The spool; made when missing.
        identity: Whose journal it is.
        segment_bytes: The bytes of a segment; the first ones are smaller. No longer entry can be stored.
        spool_bytes: What all that is in the spool may take, that of other processes included. Each process looks when
            it makes a segment, so several at once may exceed it by one segment each.
        sync_interval: Seconds from something stored to the beginning of its sync at most; for durability "disk".

    Raises:
        ConfigurationError: Where the system cannot, or when the identity is too long for a header.
    """

    def __init__(
        self,
        spool_dir: Path,
        identity: Identity,
        segment_bytes: int = 8 * MIB,
        spool_bytes: int = 256 * MIB,
        sync_interval: float = 0.1,
    ) -> None:
        require_support()
        self.identity = identity
        self.spool_dir = spool_dir
        self.failures = 0
        self.refused = 0
        self._segment_bytes = min(max(segment_bytes, LEAST_SEGMENT), LARGEST_SEGMENT)
        self._spool_bytes = spool_bytes
        self._host = os.uname().nodename if hasattr(os, "uname") else ""
        if not header_fits(self._header(1, self._segment_bytes, 0)):
            raise ConfigurationError("durability: the destination's name or URL is too long for a segment's header")
        self._trouble = self._sync_trouble = ""
        self._folder: Folder | None = None
        self._active = self._nothing = SegmentFile("", 0)
        self._segments: deque[SegmentFile] = deque()
        self._open: deque[SegmentFile] = deque()  # those that are mapped
        self._spare: SegmentFile | None = None
        self._spares = count(1)
        self._index = _FIRST_INDEX - 1  # of the last segment
        self._lowest = _FIRST_INDEX  # of the first one
        self._used = 0  # bytes in the whole spool, when it was looked at last
        self._made = 0
        self._retry_at = 0.0
        self._closed = False
        self._pending = RangeSet(limit=_PENDING_RANGES)  # settlements that are not stored yet
        self._making = threading.RLock()
        self._is_making = False
        self._syncing = threading.Lock()
        self._folder_dirty = False
        self._syncer = Syncer(self.sync, sync_interval) if identity.durability == DISK else None
        self._reader = JournalReader()

    @property
    def trouble(self) -> str:
        """Why something could not be stored or synced, in one line; empty when all is well."""
        return self._trouble or self._sync_trouble

    # Storing

    def append(self, entry: Entry) -> bool:
        """Store an entry.

        Returns:
            Whether it is stored. When it is not, `trouble` says why, and the next attempt is a second away at most.
        """
        try:
            body = encode_entry(entry)
        except (UnicodeError, ValueError, TypeError) as error:
            return self._refuse(f"the entry cannot be encoded: {error}")
        segment = self._active
        at = segment.end
        end = at + FRAME_BYTES + len(body)
        if end > segment.limit or segment.map[at]:
            return self._append_slowly(entry.seq, body)
        segment.last = entry.seq
        segment.map[at:end] = pack_frame(body, segment.salt)
        segment.end = end
        if not segment.dirty:
            segment.dirty = True
            if self._syncer is not None:
                self._syncer.due()
        return True

    def _append_slowly(self, seq: int, body: bytes) -> bool:
        """Store it where the last segment has no room, or where an interrupted call has left something."""
        try:
            segment = self._room_for(FRAME_BYTES + len(body))
            segment.first = segment.first or seq
            segment.last = seq
            self._store(segment, pack_frame(body, segment.salt))
        except OSError as error:
            return self._refuse(self._describe(error))
        return True

    def _refuse(self, why: str) -> bool:
        self._trouble = why
        self.refused += 1
        return False

    def _store(self, segment: SegmentFile, frame: bytes) -> None:
        end = segment.end + len(frame)
        segment.map[segment.end : end] = frame
        segment.end = end
        segment.dirty = True
        if self._syncer is not None:
            self._syncer.due()

    def _room_for(self, size: int, above: int = 0) -> SegmentFile:
        """The segment in which so many bytes have room: the active one, or a new one; raises OSError.

        Args:
            size: The bytes.
            above: How far into the reserve it may go.
        """
        segment = self._active
        if segment is not self._nothing:
            if segment.end < segment.size and segment.map[segment.end]:
                segment.wipe()
            if segment.end + size <= segment.limit + above:
                return segment
        needed = HEADER_BYTES + size
        if needed > self._segment_bytes - self._segment_bytes // _RESERVE_SHARE:
            raise OSError(errno.EMSGSIZE, f"an entry of {size} bytes is longer than a segment")
        if self._closed:
            raise OSError(errno.EBADF, "the journal is closed")
        now = monotonic()
        if now < self._retry_at:
            raise OSError(0, self._trouble)
        spare, self._spare = self._spare, None
        try:
            if spare is None or needed > spare.limit:
                self._discard(spare)
                spare = self._make(needed)
            return self._activate(spare, self._have_folder())
        except OSError as error:
            self._discard(spare)
            self._fail(error, now)
            raise

    def _activate(self, segment: SegmentFile, folder: Folder) -> SegmentFile:
        """Give a prepared segment its name and header, and write to it from now on."""
        self._index += 1
        name = f"{self._index:08d}{SEGMENT_SUFFIX}"
        segment.salt = int.from_bytes(os.urandom(4), "big")
        segment.map[:HEADER_BYTES] = pack_header(self._header(self._index, segment.size, segment.salt))
        folder.rename(segment.name, name)
        segment.name = name
        self._folder_dirty = True
        self._made += 1
        old = self._active
        self._segments.append(segment)
        self._active = segment
        old.retired = True
        self._trouble = ""
        return segment

    def _header(self, index: int, size: int, salt: int) -> Header:
        who = self.identity
        return Header(
            producer=who.producer,
            destination=who.destination,
            url=who.url,
            durability=who.durability,
            index=index,
            size=size,
            salt=salt,
            pid=os.getpid(),
            host=self._host,
            created=time_ns(),
        )

    def _make(self, needed: int) -> SegmentFile:
        """Make a segment in which so many bytes have room, under a name that no adopter looks at; raises OSError."""
        if not self._making.acquire(timeout=_LOCK_PATIENCE):
            raise OSError(errno.EBUSY, "the disk takes long to make a segment")
        try:
            if self._is_making:  # this thread, in the middle of it
                raise OSError(errno.EBUSY, "a segment is being made")
            self._is_making = True
            try:
                size = min(self._segment_bytes, max(LEAST_SEGMENT, self._segment_bytes // _FIRST_SHARE << self._made))
                while size - size // _RESERVE_SHARE < needed:
                    size = min(size * 2, self._segment_bytes)
                folder = self._have_folder()
                self._require_room(size)
                segment = SegmentFile(f"{SPARE_PREFIX}{next(self._spares)}", size, limit=size - size // _RESERVE_SHARE)
                segment.make(folder)
                self._open.append(segment)
                return segment
            finally:
                self._is_making = False
        finally:
            self._making.release()

    def _have_folder(self) -> Folder:
        if self._folder is None:
            self._folder = Folder.create(self.spool_dir / key_of(self.identity.destination), self.identity.producer)
        return self._folder

    def _require_room(self, size: int) -> None:
        used = bytes_in(self.spool_dir)
        if used + size > self._spool_bytes:
            raise OSError(errno.EDQUOT, f"spool_bytes is reached: {used:,} of {self._spool_bytes:,} bytes are in use")
        self._used = used + size

    def _fail(self, error: OSError, now: float) -> None:
        self._trouble = self._describe(error)
        if error.errno != errno.EBUSY:
            self.failures += 1
            self._retry_at = now + _RETRY_AFTER

    def _describe(self, error: OSError) -> str:
        if not error.errno:
            return str(error.args[1])
        return f"{self.spool_dir}: {error.strerror or type(error).__name__}"

    def _discard(self, segment: SegmentFile | None) -> None:
        """Delete a segment that holds nothing."""
        if segment is not None and segment not in self._segments:
            segment.retired = True
            self._drop_open(segment)
            if self._folder is not None:
                self._folder.unlink(segment.name)

    def _drop_open(self, segment: SegmentFile) -> None:
        with suppress(ValueError):
            self._open.remove(segment)
        segment.close()

    def settle(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Record that the fate of these numbers is known: nobody shall deliver them again.

        What cannot be stored now is kept and stored with the next. In a journal that holds nothing, nothing is recorded.

        Args:
            ranges: Inclusive (first, last) pairs.
        """
        if not self._segments:
            return
        lowest = self._segments[0].first
        for first, last in ranges:
            if last >= lowest:
                self._pending.add(first, last)
        self._store_pending()

    def _store_pending(self) -> None:
        while self._pending:
            batch = [pair for pair, _ in zip(self._pending, range(MOST_RANGES_A_FRAME), strict=False)]
            try:
                size = len(pack_settlement(batch, 0))
                segment = self._room_for(size, above=self._active.size - self._active.limit)
                self._store(segment, pack_settlement(batch, segment.salt))
            except OSError as error:
                self._trouble = self._describe(error)
                return
            for first, last in batch:
                self._pending.remove(first, last)

    def put_first(self, entries: Sequence[Entry]) -> bool:
        """Store entries, in order, whose numbers lie below all that is stored; returns whether all are, else none is.

        For the end of a process that had the older events in memory and the younger ones here. Slower than `append`.
        """
        pieces: list[list[bytes]] = [[]]
        size = HEADER_BYTES
        made: list[SegmentFile] = []
        try:
            for entry in entries:
                body = encode_entry(entry)
                if pieces[-1] and size + FRAME_BYTES + len(body) > self._segment_bytes:
                    pieces.append([])
                    size = HEADER_BYTES
                pieces[-1].append(body)
                size += FRAME_BYTES + len(body)
            # The last one first: where it ends in the middle, what is there begins with a gap, and has none inside.
            made.extend(map(self._write_first, reversed(pieces)))
        except (OSError, UnicodeError, ValueError, TypeError) as error:
            self._trouble = self._describe(error) if isinstance(error, OSError) else f"cannot be encoded: {error}"
            for segment in made:
                self._segments.remove(segment)
                self._discard(segment)
            return False
        return True

    def _write_first(self, piece: Sequence[bytes]) -> SegmentFile:
        """Store bodies in a segment before the first one, as long as it must be; raises OSError."""
        if self._closed:
            raise OSError(errno.EBADF, "the journal is closed")
        folder = self._have_folder()
        size = HEADER_BYTES + sum(FRAME_BYTES + len(body) for body in piece)
        self._require_room(size)
        salt = int.from_bytes(os.urandom(4), "big")
        header = pack_header(self._header(self._lowest - 1, size, salt))
        segment = SegmentFile(f"{SPARE_PREFIX}{next(self._spares)}", size, salt)
        segment.write(folder, header + b"".join([pack_frame(body, salt) for body in piece]))
        name = f"{self._lowest - 1:08d}{SEGMENT_SUFFIX}"
        try:
            folder.rename(segment.name, name)
        except BaseException:
            folder.unlink(segment.name)
            raise
        self._lowest -= 1
        segment.name = name
        self._segments.appendleft(segment)
        self._folder_dirty = True
        return segment

    # Keeping house

    def prepare(self) -> None:
        """Make the next segment before it is needed, so that `append` need not; try again after trouble; close files
        that are done with. For the worker, every now and then.
        """
        active = self._active
        if self._closed or (active is self._nothing and not self._trouble):
            return
        if self._syncer is None:
            self._close_retired()
        if self._spare is None and active.end > active.limit // 2 and monotonic() >= self._retry_at:
            try:
                spare = self._make(0)
            except OSError as error:
                self._fail(error, monotonic())
                return
            self._spare = spare
            self._discard_if_closed()
        if self._spare is not None or active.end <= active.limit // 2:
            self._trouble = ""

    def _discard_if_closed(self) -> None:
        if self._closed:  # by another thread, which did not see the spare
            spare, self._spare = self._spare, None
            self._discard(spare)

    def release(self, floor: int) -> None:
        """Delete the segments in which every number lies below `floor`: all of these are settled. The active one stays."""
        folder = self._folder
        while folder is not None and len(self._segments) > 1:
            oldest = self._segments[0]
            # The oldest first, and no younger one before it: what settles an older one may lie in a younger.
            if oldest is self._active or oldest.last >= floor or not folder.unlink(oldest.name):
                break
            self._segments.popleft()
            oldest.retired, oldest.dirty = True, False
            self._drop_open(oldest)
            self._used -= oldest.size
            self._retry_at = 0.0  # there is room now

    def sync(self) -> bool:
        """Have the disk take what was stored before this call; returns whether it did, else `trouble` says why."""
        with self._syncing:
            try:
                if self._folder_dirty and self._folder is not None:
                    self._folder_dirty = False
                    try:
                        self._folder.sync()
                    except OSError:
                        self._folder_dirty = True
                        raise
                for segment in tuple(self._open):
                    if segment.dirty:
                        segment.sync()
            except OSError as error:
                self.failures += 1
                self._sync_trouble = f"{self.spool_dir}: not synced: {os.strerror(error.errno or 0)}"
                return False
        self._sync_trouble = ""
        self._close_retired()
        return True

    def _close_retired(self) -> None:
        for segment in tuple(self._open):
            if segment.retired and not (self._syncer is not None and segment.dirty):
                self._drop_open(segment)

    # Reading back

    def read(self, max_events: int, max_bytes: int, through: int | None = None) -> list[Entry]:
        """The next stored entries at or above the cursor, in order, which moves behind them.

        Args:
            max_events: At most so many.
            max_bytes: At most so many bytes of payload, but always one entry.
            through: None with a higher number. Needed while the journal is written: what was stored last may belong to
                a call that was interrupted, and its number be given to another event.

        Returns:
            The entries; none when there are none now.
        """
        if self._folder is None:
            return []
        return self._reader.read(self._folder, self._segments, max_events, max_bytes, through)

    def seek(self, seq: int) -> None:
        """Go on reading at a number, or at the next one above it that is stored."""
        self._reader.seek(seq)

    # Seeing and ending

    @property
    def fill(self) -> float:
        """How much of spool_bytes is in use, from 0 to 1: by all processes when the last segment was made, and by what
        was stored in it since.
        """
        active = self._active
        free = max(0, active.limit - active.end)
        return max(0.0, (self._used - free) / self._spool_bytes)

    def numbers(self) -> JournalNumbers:
        """Return what there is to be said about it."""
        segments = tuple(self._segments)
        spare = self._spare
        return JournalNumbers(
            bytes=sum(segment.size for segment in segments) + (spare.size if spare is not None else 0),
            segments=len(segments),
            unsynced=any(segment.dirty for segment in segments),
            trouble=self.trouble,
            failures=self.failures,
            refused=self.refused,
            damaged=self._reader.damage.places,
        )

    def close(self, *, keep: bool) -> None:
        """Give the journal up: nothing is stored after it. Never raises.

        Args:
            keep: True leaves what is stored for whoever adopts it (synced, for durability "disk"). False deletes it all,
                and the producer's folder: the fate of everything is known.
        """
        if self._closed:
            return
        if keep:
            self._store_pending()
        self._closed = True
        self._active = self._nothing
        spare, self._spare = self._spare, None
        self._discard(spare)
        if self._syncer is not None:
            if keep:
                self.sync()
            self._syncer.stop()
        for segment in tuple(self._open):
            self._drop_open(segment)
        folder, self._folder = self._folder, None
        if folder is None:
            return
        if not keep:
            self._delete(folder)
        folder.close(remove=True)

    def _delete(self, folder: Folder) -> None:
        with suppress(OSError):
            for name in folder.names():  # in the order of the segments
                if is_segment(name) or name.startswith(SPARE_PREFIX):
                    folder.unlink(name)

    def forget_in_child(self) -> None:
        """In a forked child: let go of everything, and touch nothing on disk; the parent goes on with it.

        Closing the copies neither ends the parent's lease nor keeps it alive when the parent dies.
        """
        self._closed = True
        self._active = self._nothing
        self._spare = None
        self._syncer = None
        self._making = threading.RLock()
        self._syncing = threading.Lock()
        for segment in tuple(self._open):
            segment.close()
        self._open.clear()
        self._segments.clear()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()


def is_segment(name: str) -> bool:
    """Whether a file has a segment's name."""
    return name.endswith(SEGMENT_SUFFIX) and name.removesuffix(SEGMENT_SUFFIX).isdecimal()


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder and those below it, as far as they can be seen."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_in(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
