"""The program's threads by their identifiers: their names, and how much processor time each has had.

What belongs here: those two questions, and the two private things they are answered with, each checked before it is
used. What does not: what is made of the answers.

The clock of another thread is asked for by the thread's number in the kernel, in the form that Linux gives such clocks,
and not through `time.pthread_getcpuclockid`: that one reads the memory of a thread that may have ended, while the
kernel answers for a number that nobody has any more with an error. Elsewhere there is no such clock. The threads are
looked up where `threading` keeps them, since this is also done in a signal handler, which must not wait for the lock of
`threading.enumerate`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

_NAME_BOUND = 100

# Read through the base class: a subclass may answer with code of its own.
_name_of: Any = threading.Thread.name.fget  # type: ignore[attr-defined]  # mypy does not know that it is a property
_number_of: Any = getattr(getattr(threading.Thread, "native_id", None), "fget", None)


def _clock(number: int) -> int:
    """The processor clock of the thread with a number, as Linux names it: MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED)."""
    return (~number << 3) | 6


def _check() -> bool:
    """Whether threads have such clocks here: asked for this one, both ways."""
    try:
        here = _clock(threading.get_native_id())
        return time.pthread_getcpuclockid(threading.get_ident()) == here and time.clock_gettime_ns(here) > 0
    except (AttributeError, OSError):  # another system
        return False


HAVE_CLOCKS = _check()
"""Whether the processor time of other threads can be read."""


def _known() -> Mapping[int, threading.Thread]:
    found = getattr(threading, "_active", None)
    return found if isinstance(found, dict) else {}


def look_up(ident: int) -> tuple[str, int]:
    """Return a thread's name, and its clock for `read_clock`; 0 when it has none that is known.

    Takes no lock, so it may be called in a signal handler.
    """
    thread = _known().get(ident)
    if not isinstance(thread, threading.Thread):
        return f"thread {ident}", 0  # made elsewhere, and not seen by `threading` yet
    try:
        name = _name_of(thread)
        number = _number_of(thread) if HAVE_CLOCKS else None
    except Exception:  # a subclass that has not called `Thread.__init__`
        return f"thread {ident}", 0
    return str.__str__(name)[:_NAME_BOUND] if isinstance(name, str) else "", _clock(number) if number else 0


def read_clock(clock: int) -> int | None:
    """Return the processor time of a thread so far, in nanoseconds; None when it has ended."""
    try:
        return time.clock_gettime_ns(clock)
    except OSError:
        return None
