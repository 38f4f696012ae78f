"""Who must be told in a forked child: a registry of weak references; and what a fork must not cut in two.

A fork copies memory, not threads: in the child a sink's worker is gone, its lock may be held by nobody, and its socket
is the parent's. So the child builds everything anew, and touches nothing of what it inherited.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol
from weakref import WeakSet


class ForkAware(Protocol):
    """Something that holds locks, threads or connections."""

    def after_fork_in_child(self) -> None:
        """Become what a new object would be, in the child, before any other code runs there."""


_aware: WeakSet[ForkAware] = WeakSet()

_importing = threading.RLock()
_PATIENCE = 5.0
"""Seconds that a fork waits for an import at most: should two threads' imports wait for each other, it goes on."""


def tell_after_fork(thing: ForkAware) -> None:
    """Call `thing.after_fork_in_child()` in every child that is forked while `thing` lives."""
    _aware.add(thing)


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
