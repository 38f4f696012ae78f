"""A producer's folder in a spool, and the lease on it: whoever holds it may touch what is inside, and nobody else.

What belongs here: folders, the lock, and access to files by their names in a folder, without following links. What does
not: what is in the files (segment.py), or which folder to look at (spool.py).

    spool_dir/                            may be anybody's
      0123456789abcdef/                   0700; one for each destination
        9f0c2d4e6a8b1c3d/                 0700; one for each producer, locked by the process that owns it
          00001001.segment                0600
          .spare-1                        0600; a segment to be
        .9f0c2d4e6a8b1c3d.new/            a folder that is being made

The lease is a lock (flock) on the producer's folder itself, so it cannot be deleted without what it protects, and
programs that clean temporary folders leave a locked one alone. A folder gets its name only after it is locked, so nobody
can come between. The kernel gives the lock back when the last copy of the descriptor is closed, however a process ends:
so a forked child closes its copies at once, before any other code runs in it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from streamll.errors import ConfigurationError

if sys.platform != "win32":
    import fcntl

_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_BUSY = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
_NOT_OURS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.EPERM})

_PRIVATE = 0o700
_KEY_LENGTH = 16

_being_opened: list[Path] = []
"""Folders that some thread is opening at this moment; see `_forget_in_child`."""

_open_folders: WeakSet[Folder] = WeakSet()


def require_support() -> None:
    """Raise a ConfigurationError where events cannot be kept on disk safely; for the constructor of a sink."""
    if sys.platform == "win32":
        raise ConfigurationError(
            "durability needs file locks that end with the process (flock), which this system does not have; "
            "use durability='memory'"
        )


def key_of(destination: str) -> str:
    """The name of a destination's folder in a spool: 16 hex digits."""
    import hashlib  # takes milliseconds, and only who keeps events on disk needs it

    return hashlib.sha256(destination.encode()).hexdigest()[:_KEY_LENGTH]


def folders_in(spool_dir: Path) -> Iterator[Path]:
    """The folders of all producers in a spool, and those that are being made; nothing else is looked at."""
    for key in _subfolders(spool_dir):
        if len(key) == _KEY_LENGTH and not key.strip("0123456789abcdef"):
            yield from folders_of(spool_dir / key)


def folders_of(parent: Path) -> Iterator[Path]:
    """The folders of the producers of one destination."""
    return map(parent.joinpath, _subfolders(parent))


def _subfolders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def bytes_in(spool_dir: Path) -> int:
    """The bytes of all files of a spool, as far as they can be seen."""
    total = 0
    for folder in folders_in(spool_dir):
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


class Folder:
    """A producer's folder, leased. Made by `create` and `lease`; until `close`, it is this process's alone.

    Attributes:
        path: Where it is.
        descriptor: The open folder, which holds the lock; -1 when closed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        _open_folders.add(self)

    @classmethod
    def create(cls, parent: Path, name: str) -> Folder:
        """Make a new folder and lease it.

        Args:
            parent: The folder of the destination; it and what is above it are made when missing.
            name: The folder's name: the producer.

        Raises:
            OSError: When that cannot be done.
        """
        _make_above(parent.parent)
        _make_private(parent)
        unnamed = parent / f".{name}.new"
        _make_private(unnamed)
        folder = _open(unnamed)
        is_locked = False
        try:
            is_locked = folder.lock()
            if not is_locked:
                raise OSError(errno.EWOULDBLOCK, "the folder is being made by somebody else")
            os.rename(unnamed, parent / name)  # noqa: PTH104  # beside the other calls of os here
        except BaseException:
            folder.close(remove=is_locked)
            raise
        folder.path = parent / name
        return folder

    @classmethod
    def lease(cls, path: Path) -> Folder | None:
        """Lease a folder that exists; None when a living process has it, or when it is gone or not this user's.

        Raises:
            OSError: When it cannot be opened or locked for another reason.
        """
        folder = cls.look(path)
        if folder is None:
            return None
        try:
            if folder.lock():
                return folder
        except BaseException:
            folder.close()
            raise
        folder.close()
        return None

    @classmethod
    def look(cls, path: Path) -> Folder | None:
        """Open a folder without leasing it, to look what is in it; None when it is gone or not this user's.

        Raises:
            OSError: When it cannot be opened for another reason.
        """
        try:
            return _open(path)
        except OSError as error:
            if error.errno in _NOT_OURS:
                return None
            raise

    def lock(self) -> bool:
        """Lease it; False when another process has it, or when it is not at its path any more. Raises OSError."""
        return _lock(self.descriptor) and self.is_there()

    def is_there(self) -> bool:
        """Whether it is at its path still."""
        return _is_at(self.path, self.descriptor)

    def holds(self, name: str) -> bool:
        """Whether a file of that name is in it."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """The names in it, in order; raises OSError."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208  # a descriptor has no path

    def open(self, name: str, flags: int) -> int:
        """Open a regular file of this user in it, which a link is not; returns the descriptor.

        Raises:
            OSError: When there is none, or something else of that name (EINVAL), or another user's (EPERM).
        """
        descriptor = os.open(name, flags | _FILE_FLAGS, 0o600, dir_fd=self.descriptor)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            _require_own(found)
            if flags & os.O_CREAT:
                os.fchmod(descriptor, 0o600)  # whatever the umask
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def rename(self, old: str, new: str) -> None:
        """Rename a file in it; raises OSError."""
        os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> bool:
        """Delete a file in it; returns whether it is gone."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def clear(self, which: Callable[[str], bool]) -> None:
        """Delete the regular files of this user for whose names `which` says so; raises OSError."""
        for name in filter(which, self.names()):
            found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                self.unlink(name)

    def sync(self) -> None:
        """Have the disk know which files are in it, and that it is there; raises OSError."""
        os.fsync(self.descriptor)
        parent = os.open(self.path.parent, _FOLDER_FLAGS)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def close(self, remove: bool = False) -> None:
        """Give the lease back; never raises.

        Args:
            remove: Delete the folder first, if nothing is in it.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        if remove:
            with suppress(OSError):
                os.rmdir(self.path)  # noqa: PTH106  # beside the other calls of os here
        with suppress(OSError):
            _unlock(descriptor)  # a child that is forked at this moment has a copy of it
        with suppress(OSError):
            os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: close the copy, and leave the lease to the parent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def _make_above(path: Path) -> None:
    """Make the folders that are missing, so that only this user may enter them; those that exist may be anybody's."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        _make_private(folder)


def _make_private(path: Path) -> None:
    """Make a folder that only this user may enter.

    Raises:
        OSError: When it cannot be made, or when one of that name is not this user's.
    """
    try:
        os.mkdir(path, _PRIVATE)  # noqa: PTH102  # beside the other calls of os here
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is no folder") from None
        _require_own(found)
        if stat.S_IMODE(found.st_mode) == _PRIVATE:
            return
    os.chmod(path, _PRIVATE)  # noqa: PTH101  # whatever the umask


def _require_own(found: os.stat_result) -> None:
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "belongs to another user")


def _open(path: Path) -> Folder:
    """Open a folder of this user, which a link is not; raises OSError."""
    _being_opened.append(path)
    try:
        folder = Folder(path, os.open(path, _FOLDER_FLAGS))
    finally:
        _being_opened.remove(path)
    try:
        _require_own(os.fstat(folder.descriptor))
    except BaseException:
        folder.close()
        raise
    return folder


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open folder: it may have been deleted before it was locked."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


if sys.platform != "win32":

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

else:

    def _unlock(descriptor: int) -> None:
        pass

    def _lock(descriptor: int) -> bool:
        raise OSError(errno.ENOSYS, "this system has no flock")


def _forget_in_child() -> None:
    """Close the copies of all leases, also of one that another thread was opening: they would outlive the parent's."""
    for folder in list(_open_folders):
        folder.forget()
    opening = list(_being_opened)
    _being_opened.clear()
    if opening:
        with suppress(OSError):
            for name in os.listdir("/dev/fd"):  # noqa: PTH208  # names are all that is wanted
                with suppress(OSError):
                    if any(_is_at(path, int(name)) for path in opening):
                        os.close(int(name))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_in_child)
