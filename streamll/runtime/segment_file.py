"""A segment being written: a file that has all of its bytes from the beginning, mapped into memory.

What belongs here: making the file, storing frames in it, having the disk take it. What does not: which segment is next
(segment_chain.py), or what the bytes mean (segment.py).

Storing cannot fail for want of room, because the room is taken when the file is made. Only somebody who cuts the file
short while it is written (it is this user's, in a folder that nobody else may enter) could kill the process (SIGBUS).
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from contextlib import suppress
from typing import cast

from streamll.runtime.lease import Folder
from streamll.runtime.segment import FRAME_BYTES, HEADER_BYTES, frame_length

if sys.platform != "win32":
    import fcntl

_UNMAPPED = cast("mmap.mmap", b"")
_CHUNK = 1 << 20
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})


class SegmentFile:
    """A segment of a producer: known by its name and numbers, and mapped while it is written.

    Attributes:
        name: Its name in the producer's folder.
        size: Its bytes.
        salt: Begins the CRC of its frames.
        last: The highest number of an entry in it; 0 when there is none.
        last_at: Where the frame of that entry begins, once it was stored by this process.
        end: Where the next frame goes; what is below holds whole frames only.
        limit: Entries go below it; the bytes above are kept for settlements.
        dirty: Whether something was stored since the last sync began.
        is_syncing: Whether that is not over yet.
        retired: Whether nothing will be stored in it any more.
    """

    __slots__ = (
        "descriptor",
        "dirty",
        "end",
        "is_syncing",
        "last",
        "last_at",
        "limit",
        "map",
        "name",
        "retired",
        "salt",
        "size",
    )

    def __init__(self, name: str, size: int, salt: int = 0, limit: int = -1) -> None:
        self.name = name
        self.size = size
        self.salt = salt
        self.limit = limit
        self.end = HEADER_BYTES
        self.last = self.last_at = 0
        self.dirty = self.is_syncing = self.retired = False
        self.descriptor = -1
        self.map = _UNMAPPED

    def make(self, folder: Folder) -> None:
        """Make the file, all of it, and map it.

        Raises:
            OSError: When the disk does not take it; then nothing of it is left.
        """
        descriptor = folder.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            _allocate(descriptor, self.size)
            self.map = mmap.mmap(descriptor, self.size)
        except BaseException as error:
            os.close(descriptor)
            folder.unlink(self.name)
            if isinstance(error, ValueError):  # somebody cut the file meanwhile
                raise OSError(errno.EIO, "the file is not as long as it was made") from error
            raise
        self.descriptor = descriptor

    def write(self, folder: Folder, data: bytes, sync: bool) -> None:
        """Make the file with all that will ever be in it, and have the disk take it if `sync` says so.

        Raises:
            OSError: When it does not; then nothing of it is left.
        """
        descriptor = folder.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        except BaseException:
            folder.unlink(self.name)
            raise
        finally:
            os.close(descriptor)
        self.end = self.size
        self.retired = True

    def wipe(self) -> None:
        """Remove a frame that was stored by a call that an exception ended before it could say so."""
        if self.end >= self.size or not self.map[self.end]:
            return
        length = min(frame_length(self.map[self.end : self.end + FRAME_BYTES]), self.size - self.end)
        self.map[self.end : self.end + length] = bytes(length)

    def unwrite(self, above: int) -> None:
        """Remove the entry that was stored last, if its number is above that one and nothing stands behind it."""
        at = self.last_at
        if self.last > above and at and self.end in (at, at + frame_length(self.map[at : at + FRAME_BYTES])):
            self.last, self.last_at, self.end = above, 0, at
            self.wipe()

    def sync(self) -> None:
        """Have the disk take what was stored so far; raises OSError."""
        self.is_syncing = True
        self.dirty = False  # before: what is stored meanwhile makes it dirty again
        try:
            _sync(self.descriptor, self.map)
        except (OSError, ValueError) as error:
            if self.descriptor < 0:  # it was closed meanwhile
                return
            # The kernel may take for written what it could not write; stored anew, it has to try once more.
            end = self.end
            with suppress(TypeError, ValueError):  # it is closed at this moment
                self.map[:end] = self.map[:end]
            self.dirty = True
            code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise OSError(code, os.strerror(code)) from error
        finally:
            self.is_syncing = False

    def close(self) -> None:
        """Unmap and close it; never raises."""
        descriptor, self.descriptor = self.descriptor, -1
        buffer, self.map = self.map, _UNMAPPED
        if buffer is not _UNMAPPED:
            with suppress(BufferError):  # a thread stores something at this moment: then it goes with the object
                buffer.close()
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Give a new file its bytes, so that storing something cannot fail for want of room later (with SIGBUS)."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    zeros = bytes(_CHUNK)
    at = 0
    while at < size:
        at += os.pwrite(descriptor, zeros[: size - at], at)


if hasattr(os, "fdatasync"):

    def _sync(descriptor: int, buffer: mmap.mmap) -> None:
        # It lets other threads run meanwhile, which mmap.flush does not; on Linux it takes what was stored by a mapping.
        os.fdatasync(descriptor)

else:

    def _sync(descriptor: int, buffer: mmap.mmap) -> None:
        buffer.flush()
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync there ends in the drive's own memory
        else:
            os.fsync(descriptor)
