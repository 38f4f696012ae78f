"""The segments of one producer, one behind the other: which one is written, when there is another, when one may go.

What belongs here: files, and how much room they take. What does not: what is stored in them and read back (journal.py),
the bytes (segment.py), one file (segment_file.py), or who may touch it all (lease.py).

Nothing here waits for a lock. Two threads, or one and the signal handler that interrupts it, may make a segment at once:
each gets its own. And whatever is interrupted leaves at worst a file without entries, which goes with the others.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import monotonic

from streamll.runtime.lease import Folder, bytes_in, key_of
from streamll.runtime.segment import FRAME_BYTES, HEADER_BYTES, LARGEST_SEGMENT, LEAST_SEGMENT, pack_frame
from streamll.runtime.segment_file import SegmentFile

SEGMENT_SUFFIX = ".segment"
SPARE_PREFIX = ".spare-"

FIRST_INDEX = 1001
"""The number of the first segment; those below are for what is stored last and stands first (`put_first`)."""

_DIGITS = 8
_RETRY_AFTER = 1.0
_LOOK_AFTER = 1.0
_RESERVE_SHARE = 64
_FIRST_SHARE = 8
# Another thread, or what this one interrupted, is about to do it.
_UNDER_WAY = frozenset({errno.EBUSY, errno.EWOULDBLOCK})

MakeHeader = Callable[[int, int, int], bytes]
"""Makes the first bytes of a segment from its index, its size and its salt."""


class NoRoomError(Exception):
    """Raised when nothing can be stored now; its text says why, in one line."""


class SegmentChain:
    """The segments of a producer, in order.

    Args:
        spool_dir: The whole spool.
        destination: Where the events go.
        producer: Whose they are: the name of the folder.
        make_header: Makes the headers.
        segment_bytes: The bytes of a segment; the first ones are smaller.
        spool_bytes: What all files of the spool may take.

    Attributes:
        folder: The producer's folder, leased; None until there is something to store.
        active: The segment that is written; one without room when there is none.
        segments: Those that have a name, the active one included.
        mapped: Those that are open.
        trouble: Why the last segment that was needed could not be had; empty when it could.
        failures: How often one could not be had.
        is_new: Whether the disk may not know yet which segments there are.
    """

    def __init__(
        self,
        spool_dir: Path,
        destination: str,
        producer: str,
        make_header: MakeHeader,
        segment_bytes: int,
        spool_bytes: int,
    ) -> None:
        self.spool_dir = spool_dir
        self.folder: Folder | None = None
        self.nothing = SegmentFile("", 0)
        self.active = self.nothing
        self.segments: deque[SegmentFile] = deque()
        self.mapped: deque[SegmentFile] = deque()
        self.trouble = ""
        self.failures = 0
        self.is_new = False
        self._parent = spool_dir / key_of(destination)
        self._producer = producer
        self._make_header = make_header
        self._segment_bytes = min(max(segment_bytes, LEAST_SEGMENT), LARGEST_SEGMENT)
        self._spool_bytes = max(1, spool_bytes)
        self._spare: SegmentFile | None = None
        self._spares = count(1)
        self._lowest = FIRST_INDEX  # the index of the first segment
        self._highest = FIRST_INDEX - 1  # that of the last one
        self._made = 0
        self._used = 0  # bytes in the whole spool, when it was looked at last
        self._look_at = 0.0
        self._retry_at = 0.0  # when the disk may be asked again
        self._full_until = 0.0  # when it may be looked again whether spool_bytes has room
        self._closed = False
        self._inherited = False

    def inherit(self, folder: Folder, segments: Sequence[SegmentFile]) -> None:
        """Begin with what somebody else left: segments in which nothing is to be stored any more."""
        self.folder = folder
        self._inherited = True
        for segment in segments:
            segment.retired = True
        self.segments.extend(segments)
        self._highest = max(self._highest, max([index_of(segment.name) for segment in segments], default=0))

    # Room to store something

    def room_for(self, size: int, settling: bool = False) -> SegmentFile:
        """The segment in which so many bytes have room: the active one, or a new one, which is active then.

        Args:
            size: The bytes.
            settling: Whether they are a settlement. For these the active one has a reserve, and a new one may be made
                beyond `spool_bytes`: what was settled must not come back to life for want of room to say so.

        Raises:
            NoRoomError: When there is none, and none can be made now.
        """
        segment = self.active
        if segment is not self.nothing:
            segment.wipe()
            if segment.end + size <= (segment.size if settling else segment.limit):
                return segment
        needed = HEADER_BYTES + size
        if needed > _limit_of(self._segment_bytes):
            raise NoRoomError(f"{size:,} bytes are more than a segment holds")
        now = monotonic()
        spare = self._spare  # which has its part of `spool_bytes`, whatever else is full
        has_spare = spare is not None and spare is not segment and needed <= spare.limit
        if self._closed or now < self._retry_at or (now < self._full_until and not settling and not has_spare):
            raise NoRoomError("it is closed" if self._closed else self.trouble)
        made: SegmentFile | None = None
        try:
            if spare is None or not has_spare:
                self._drop_spare(spare)
                spare = made = self._make(needed, beyond=settling)
            self._activate(spare, self._have_folder())
        except OSError as error:
            self._discard(made)
            self._fail(error)
            raise NoRoomError(self.describe(error)) from error
        if self._spare is spare:  # another may have been prepared meanwhile
            self._spare = None
        return spare

    def _drop_spare(self, spare: SegmentFile | None) -> None:
        if self._spare is spare:
            self._spare = None
            self._discard(spare)

    def ask_again(self) -> None:
        """Ask the disk the next time, however short ago it refused."""
        self._retry_at = 0.0

    def _make(self, needed: int, beyond: bool = False) -> SegmentFile:
        """Make a segment in which so many bytes have room, under a name that no adopter looks at; raises OSError."""
        size = max(LEAST_SEGMENT, self._segment_bytes // _FIRST_SHARE << min(self._made, _FIRST_SHARE))
        if beyond:
            size = LEAST_SEGMENT
        while _limit_of(size) < needed:
            size *= 2
        size = min(size, self._segment_bytes)
        folder = self._have_folder()
        if not beyond:
            self._require_room(size)
        segment = SegmentFile(f"{SPARE_PREFIX}{next(self._spares)}", size, limit=_limit_of(size))
        segment.make(folder)
        self.mapped.append(segment)
        return segment

    def _activate(self, segment: SegmentFile, folder: Folder) -> None:
        """Give a segment its name and header, and write to it from now on. After an interrupt, it can be done again."""
        index = self._highest + 1
        segment.salt = new_salt()
        segment.map[:HEADER_BYTES] = self._make_header(index, segment.size, segment.salt)
        self._highest = index
        folder.rename(segment.name, name_of(index))
        segment.name = name_of(index)
        self.is_new = True
        self._made += 1
        self.active = segment  # before it is among the others: those that are not active may be released
        if segment not in self.segments:
            self.segments.append(segment)
        for other in tuple(self.segments):
            other.retired = other is not segment
        if monotonic() >= max(self._retry_at, self._full_until):
            self.trouble = ""

    def _have_folder(self) -> Folder:
        folder = self.folder
        if folder is None:
            try:
                folder = self.folder = Folder.create(self._parent, self._producer)
            except OSError:
                folder = self.folder
                if folder is None:  # else another thread was faster
                    raise
        return folder

    def _require_room(self, size: int) -> None:
        used = bytes_in(self.spool_dir)
        self._used = used
        if used + size > self._spool_bytes:
            self._full_until = monotonic() + _RETRY_AFTER
            raise OSError(errno.EDQUOT, f"spool_bytes is reached: {used:,} of {self._spool_bytes:,} bytes are in use")
        self._used += size

    def _fail(self, error: OSError) -> None:
        self.trouble = self.describe(error)
        if error.errno not in _UNDER_WAY:
            self.failures += 1
            now = monotonic()
            if now >= self._full_until:
                self._retry_at = now + _RETRY_AFTER

    def describe(self, error: OSError) -> str:
        """What the disk said, in one line."""
        return f"{self.spool_dir}: {error.strerror or type(error).__name__}"

    def _discard(self, segment: SegmentFile | None) -> None:
        """Delete a segment that was not used."""
        if segment is not None and segment not in self.segments:
            self._unmap(segment)
            if self.folder is not None:
                self.folder.unlink(segment.name)

    def _unmap(self, segment: SegmentFile) -> None:
        with suppress(ValueError):
            self.mapped.remove(segment)
        segment.close()

    def put_first(self, pieces: Sequence[Sequence[bytes]], sync: bool) -> None:
        """Store bodies before all that is stored; all of them, or none.

        Args:
            pieces: In order, those of a segment each.
            sync: Have the disk take them.

        Raises:
            NoRoomError: When the disk does not take them.
        """
        made: list[SegmentFile] = []
        try:
            # The last one first: each gets its name before all the others.
            made.extend(self._put_first(bodies, sync) for bodies in reversed(pieces))
        except OSError as error:
            for segment in made:
                self.segments.remove(segment)
                self._discard(segment)
            raise NoRoomError(self.describe(error)) from error

    def _put_first(self, bodies: Sequence[bytes], sync: bool) -> SegmentFile:
        """Make a segment that is as long as it must be, and full."""
        if self._closed or self._lowest == 1:
            raise OSError(errno.EBADF, "it is closed" if self._closed else "no further segment can stand first")
        folder = self._have_folder()
        size = HEADER_BYTES + sum([FRAME_BYTES + len(body) for body in bodies])
        # Without regard to spool_bytes: it is what was in memory, once, and the alternative is to lose it.
        index = self._lowest - 1
        segment = SegmentFile(f"{SPARE_PREFIX}{next(self._spares)}", size, new_salt())
        header = self._make_header(index, size, segment.salt)
        segment.write(folder, header + b"".join([pack_frame(body, segment.salt) for body in bodies]), sync)
        try:
            folder.rename(segment.name, name_of(index))
        except BaseException:
            folder.unlink(segment.name)
            raise
        segment.name = name_of(index)
        self._lowest = index
        self.segments.appendleft(segment)
        self.is_new = True
        return segment

    # Keeping house

    def prepare(self) -> None:
        """Make the next segment before it is needed, try again after trouble, and see whether all is still there."""
        active = self.active
        if self._closed or (active is self.nothing and not self.trouble):
            return
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_AFTER
            if active is not self.nothing and not self._is_there():
                self._begin_anew()
                return  # so that it is seen before it is mended
            if self._used > self._spool_bytes // 2:
                self._used = bytes_in(self.spool_dir)  # others may have made room
        if now < max(self._retry_at, self._full_until):
            return
        if self._spare is not None or self.active.end <= self.active.limit // 2:
            if self.active is not self.nothing:
                self.trouble = ""  # whatever went wrong, perhaps by two threads making the same: there is room again
            return
        try:
            spare = self._make(0)
        except OSError as error:
            self._fail(error)
            return
        self.trouble = ""
        self._keep(spare)

    def _keep(self, segment: SegmentFile) -> None:
        """Have a segment for when it is needed."""
        if self._spare is None:
            self._spare = segment
        else:
            self._discard(segment)
        if self._closed:  # meanwhile
            spare, self._spare = self._spare, None
            self._discard(spare)

    def _is_there(self) -> bool:
        """Whether the active segment is where an adopter would look for it."""
        return self.folder is not None and self.folder.is_there() and self.folder.holds(self.active.name)

    def _begin_anew(self) -> None:
        """Somebody has deleted what was stored: what is stored from now on goes to a new segment, and folder at need."""
        self.active = self.nothing
        self._spare = None
        self.failures += 1
        self.trouble = f"{self.spool_dir}: what was kept there was deleted by somebody else"
        for segment in tuple(self.mapped):
            segment.retired, segment.dirty = True, False  # unmapped a little later: a thread may be storing something
        folder = self.folder
        if folder is not None and not folder.is_there():
            self.folder = None
            self.segments.clear()
            folder.close()

    def is_about_to_release(self, floor: int) -> bool:
        """Whether `release` would delete anything."""
        segments = self.segments
        return bool(segments) and segments[0].retired and segments[0].last < floor

    def release(self, floor: int) -> bool:
        """Delete the oldest segments in which every number lies below `floor`; see `Journal.release`."""
        folder = self.folder
        released = False
        while folder is not None and self.segments:
            oldest = self.segments[0]
            # No younger one before an older one: what settles an older one may lie in a younger. And none that is active,
            # or is just about to be.
            if not oldest.retired or oldest.last >= floor or not folder.unlink(oldest.name):
                break
            self.segments.popleft()
            self._unmap(oldest)
            self._used -= oldest.size
            self._retry_at = self._full_until = 0.0  # there is room now
            released = True
        return released

    def close_retired(self, dirty: bool) -> None:
        """Unmap what nothing is stored in any more.

        Args:
            dirty: Also what the disk may not have yet.
        """
        for segment in tuple(self.mapped):
            if segment.retired and (dirty or not segment.dirty):
                self._unmap(segment)

    @property
    def bytes(self) -> int:
        """What its files take on disk."""
        spare = self._spare
        return sum([segment.size for segment in tuple(self.segments)]) + (spare.size if spare is not None else 0)

    @property
    def fill(self) -> float:
        """How much of spool_bytes is in use, from 0 to 1; room in the active segment, and in a prepared one, is not."""
        spare = self._spare
        free = max(0, self.active.limit - self.active.end) + (spare.size if spare is not None else 0)
        return min(1.0, max(0.0, (self._used - free) / self._spool_bytes))

    def close(self, delete: bool) -> None:
        """Give it all up, and the lease; never raises.

        Args:
            delete: Delete everything first.
        """
        self._closed = True
        active, self.active = self.active, self.nothing
        if active is not self.nothing:
            active.wipe()  # what an interrupted call has left was never accepted
        spare, self._spare = self._spare, None
        self._discard(spare)
        for segment in tuple(self.mapped):
            self._unmap(segment)
        folder, self.folder = self.folder, None
        if folder is not None:
            if delete:
                while self.segments and folder.unlink(self.segments[0].name):
                    self.segments.popleft()
                if not self._inherited:  # also what an interrupted call has left
                    with suppress(OSError):
                        folder.clear(_is_ours)
            folder.close(remove=True)

    def forget_in_child(self) -> None:
        """In a forked child: close the copies, and touch nothing on disk."""
        self._closed = True
        self.active = self.nothing
        self._spare = None
        for segment in tuple(self.mapped):
            segment.close()
        self.mapped.clear()
        self.segments.clear()
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.forget()


def _limit_of(size: int) -> int:
    """Up to where entries go in a segment of that size; the rest is kept for settlements."""
    return size - size // _RESERVE_SHARE


def new_salt() -> int:
    """Return a random number to begin the CRCs of a segment with."""
    return int.from_bytes(os.urandom(4), "big")


def name_of(index: int) -> str:
    """The name of a segment's file."""
    return f"{index:0{_DIGITS}d}{SEGMENT_SUFFIX}"


def index_of(name: str) -> int:
    """The index of a segment by its file's name; 0 when it is not one."""
    digits = name.removesuffix(SEGMENT_SUFFIX)
    if name == digits or len(digits) != _DIGITS or not (digits.isascii() and digits.isdecimal()):
        return 0
    return int(digits)


def is_spare(name: str) -> bool:
    """Whether a file of that name was to become a segment."""
    return name.startswith(SPARE_PREFIX)


def _is_ours(name: str) -> bool:
    return is_spare(name) or index_of(name) > 0
