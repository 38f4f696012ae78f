"""Whether the frames of all threads may be looked at from here: not where their owners do not wait for us meanwhile.

What belongs here: that question, and the module of CPython's own that it is put to. What does not: looking at frames.

`sys._current_frames` returns those of all interpreters of the process. From Python 3.12 on an interpreter may have a
lock of its own, and its threads run while another one's frames are read.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from typing import Any

_MAY_HAVE_LOCKS_OF_THEIR_OWN = tuple(sys.version_info[:2]) >= (3, 12)
_NAMES = ("_interpreters", "_xxsubinterpreters")
"""What the module has been called: from 3.13 on, and before."""


@functools.cache
def _module() -> Any:
    for name in _NAMES:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def is_alone() -> bool:
    """Whether no other interpreter may be running at the same time; True where that cannot be told."""
    if not _MAY_HAVE_LOCKS_OF_THEIR_OWN:
        return True
    try:
        return len(_module().list_all()) == 1
    except Exception:  # there is no such module, or it is not what it was
        return True


def why_no_look() -> str:
    """Return why frames must not be looked at from here; empty when they may."""
    is_locked = getattr(sys, "_is_gil_enabled", None)
    if is_locked is not None and not is_locked():
        return "threads of this interpreter run at the same time"
    if not hasattr(sys, "_current_frames"):
        return "this Python does not show the frames of its threads"
    try:
        module = _module()
        if module.get_current() != module.get_main():
            return "it is not the main interpreter"
    except Exception:  # noqa: S110  # as above
        pass
    return "" if is_alone() else "another interpreter runs in the process"
