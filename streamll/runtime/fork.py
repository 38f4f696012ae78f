"""What a fork does to us: who must be told in the child, which descriptors it lets go of, what must not be cut in two.

A fork copies memory, not threads: in the child a sink's worker is gone, its lock may be held by nobody, and its socket
is the parent's. So the child builds everything anew, and of what it inherited it only closes its copies of descriptors:
without a word to the other end, which goes on talking to the parent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol
from weakref import WeakSet

from streamll.runtime.wakeup import Wakeup


class ForkAware(Protocol):
    """Something that holds locks, threads or connections."""

    def after_fork_in_child(self) -> None:
        """Become what a new object would be, in the child, before any other code runs there."""


_aware: WeakSet[ForkAware] = WeakSet()

_importing = threading.RLock()
_PATIENCE = 5.0
"""Seconds that a fork waits for an import at most: should two threads' imports wait for each other, it goes on."""
_LONG = 3600.0


def tell_after_fork(thing: ForkAware) -> None:
    """Call `thing.after_fork_in_child()` in every child that is forked while `thing` lives."""
    _aware.add(thing)


class Descriptors:
    """Open files and sockets that are this process's alone: a forked child closes its copies at once.

    Else a connection would live for as long as any child of the process that has made it. The number of a copy goes on
    to lead nowhere: objects in the child that believe to own it would later close what somebody else has opened there.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[int, int]] = {}
        tell_after_fork(self)

    def hold(self, descriptor: int) -> None:
        """Close this one's copy in a child, unless it was closed before the fork, by whomever."""
        with suppress(OSError):  # it is closed already; or this is Windows, which has no fork
            self._held[descriptor] = _identity(descriptor)

    def forget(self) -> None:
        """They have been closed."""
        self._held = {}

    def after_fork_in_child(self) -> None:
        """Close the copies. Of one that was closed just before the fork the number may be somebody else's by now."""
        held, self._held = self._held, {}
        nowhere = os.open(os.devnull, os.O_RDWR) if held else -1
        for descriptor, identity in held.items():
            with suppress(OSError):
                if _identity(descriptor) == identity:
                    os.dup2(nowhere, descriptor, inheritable=False)
        if held:
            os.close(nowhere)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def rest_in_child() -> None:
    """For a thread of the parent's that runs in a forked child: keep it from ending, if it is a greenlet.

    gevent and eventlet copy their threads, which `threading` does not know there: one that ends prints an error. Of
    other threads only the one that forks gets there; it is the main thread then, and may end.
    """
    while threading.current_thread() is not threading.main_thread():
        Wakeup().wait(_LONG)


@contextmanager
def whole_import() -> Iterator[None]:
    """Imports in this block are made whole before the process forks.

    A child that was forked in the middle of another thread's import would have half a module, and no way to get the rest.
    """
    with _importing:
        yield


def _before_fork() -> None:
    _importing.acquire(timeout=_PATIENCE)


def _in_parent() -> None:
    with suppress(RuntimeError):  # it was not to be had in time
        _importing.release()


def _in_child() -> None:
    global _importing
    _importing = threading.RLock()
    for thing in list(_aware):
        thing.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
