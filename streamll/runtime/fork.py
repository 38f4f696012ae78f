"""Who must be told in a forked child: a registry of weak references.

A fork copies memory, not threads: in the child a sink's worker is gone, its lock may be held by nobody, and its socket
is the parent's. So the child builds everything anew, and touches nothing of what it inherited.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class ForkAware(Protocol):
    """Something that holds locks, threads or connections."""

    def after_fork_in_child(self) -> None:
        """Become what a new object would be, in the child, before any other code runs there."""


_aware: WeakSet[ForkAware] = WeakSet()


def tell_after_fork(thing: ForkAware) -> None:
    """Call `thing.after_fork_in_child()` in every child that is forked while `thing` lives."""
    _aware.add(thing)


def _in_child() -> None:
    for thing in list(_aware):
        thing.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
