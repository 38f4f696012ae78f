"""The timer of processor time that interrupts the main thread: ITIMER_PROF, with its signal SIGPROF.

What belongs here: having it, giving it up, and not hurting the host with either. What does not: what is done when it
goes off (stack_sampler.py).

Four things could hurt. A system call of the host's that a signal interrupts: the kernel is told to restart it. Another
program in this process's place: the timer would go on there, and its signal kill it. So it is stopped before
`os.exec*`, and not started in a child that `subprocess` has forked, which runs a `preexec_fn` and calls no `os.exec*`
after it. The end of the interpreter, which puts every signal's default action back: the timer is stopped first. And a
host that wants signal or timer for itself: whatever it sets replaces ours at once, and for good.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from types import FrameType
from typing import Any

from streamll.monitors.hooks import Hook

_AFTER_EXEC = 1.0
"""Seconds after an `os.exec*` that failed until the timer may run again: it may be tried with the next folder of PATH."""

_NOT_OURS_TO_INTERRUPT = ("gevent", "eventlet", "uwsgi")
"""Hosts that run the main thread in ways of their own, or put another program in its place without asking Python."""

_set_handler = signal.signal
_set_timer: Any = getattr(signal, "setitimer", None)

_armed: ProfTimer | None = None

_lock = threading.RLock()
"""Nobody sets the timer between another's look at whose it is and what is done about that. It may be taken again by a
signal handler of the host's that sets the timer."""


def _on_signal(_: int, frame: FrameType | None) -> None:
    timer = _armed
    if timer is not None:
        timer.on_tick(frame)


def _see_signal(*args: Any, **kwargs: Any) -> None:
    number = args[0] if args else kwargs.get("signalnum")
    if _armed is not None and number == signal.SIGPROF:
        _armed.give_way("the program set a handler for SIGPROF")


def _see_timer(*args: Any, **_: Any) -> None:
    if _armed is not None and args and args[0] == signal.ITIMER_PROF:
        _armed.give_way("the program set ITIMER_PROF")


def _see_exec(*_: Any, **__: Any) -> None:
    if _armed is not None:
        _armed.pause(monotonic() + _AFTER_EXEC)


def _hooks() -> list[tuple[Hook, Callable[..., None]]]:
    global _hooked
    if not _hooked:
        _hooked = [
            (Hook(signal, "signal"), _see_signal),
            (Hook(signal, "setitimer"), _see_timer),
            (Hook(os, "execv"), _see_exec),
            (Hook(os, "execve"), _see_exec),
        ]
    return _hooked


_hooked: list[tuple[Hook, Callable[..., None]]] = []


def why_not() -> str:
    """Return what stands against the timer here and now; empty when it may be had."""
    if not hasattr(signal, "setitimer") or not hasattr(signal, "SIGPROF"):
        return "the system has no ITIMER_PROF"
    if threading.current_thread() is not threading.main_thread():
        return "not started in the main thread"
    for name in _NOT_OURS_TO_INTERRUPT:
        if name in sys.modules:
            return f"{name} is in use"
    if signal.getsignal(signal.SIGPROF) not in (signal.SIG_DFL, _on_signal):
        return "SIGPROF has a handler"
    if _armed is not None or signal.getitimer(signal.ITIMER_PROF) != (0.0, 0.0):
        return "ITIMER_PROF is in use"
    return ""


def _is_for_subprocess(frame: FrameType | None) -> bool:
    """Whether a child was forked by `subprocess`, to run a `preexec_fn` and then another program."""
    while frame is not None and frame.f_globals.get("__name__") != "subprocess":
        frame = frame.f_back
    return frame is not None


class ProfTimer:
    """The process's timer of processor time, while it is had.

    Args:
        on_tick: Called in the main thread, with the frame that it was in, whenever `interval` seconds of processor time
            have passed in the process. It must not raise, and not wait.

    Attributes:
        on_tick: As given.
        reason: Why the timer is not running, if it was given up; empty before.
    """

    def __init__(self, on_tick: Callable[[FrameType | None], None]) -> None:
        self.on_tick = on_tick
        self.reason = ""
        self._interval = 0.0
        self._paused_until = 0.0
        self._running = self._watching = False

    @property
    def had(self) -> bool:
        """Whether it is this one that has the timer."""
        return _armed is self

    def arm(self, interval: float) -> str:
        """Start the timer, in the main thread.

        Returns:
            Why it was not started; empty when it was.
        """
        global _armed
        self.reason = why_not()
        if self.reason:
            return self.reason
        try:
            _set_handler(signal.SIGPROF, _on_signal)
            signal.siginterrupt(signal.SIGPROF, False)
        except ValueError:  # a subinterpreter's main thread
            self.reason = "not in the main interpreter"
            return self.reason
        self._watching = True
        atexit.register(self.disarm)
        for hook, see in _hooks():
            hook.add(see)
        self._interval = interval
        with _lock:
            _armed = self
            self._set(interval)
        return ""

    def keep(self, interval: float) -> bool:
        """See to it, now and then and from any thread, that the timer runs as wanted, or is given up.

        Returns:
            Whether it is still had.
        """
        with _lock:
            if not self.had or monotonic() < self._paused_until:
                return self.had
            if signal.getsignal(signal.SIGPROF) is not _on_signal:
                self.give_way("the program set a handler for SIGPROF")
            elif not self._running or interval != self._interval:
                self._interval = interval
                self._set(interval)
            return self.had

    def pause(self, until: float) -> None:
        """Stop the timer until a time by the monotonic clock; `keep` starts it again."""
        with _lock:
            if self.had:
                self._paused_until = until
                self._set(0.0)

    def give_way(self, reason: str) -> None:
        """Leave timer and signal to somebody else, for good; from any thread."""
        global _armed
        with _lock:
            if self.had:
                self.reason = reason
                self._set(0.0)
                _armed = None

    def disarm(self) -> None:
        """Stop the timer, from any thread. In the main thread the signal is as it was, too; else its handler stays, and
        does nothing."""
        global _armed
        if self._watching:
            self._watching = False
            atexit.unregister(self.disarm)
            for hook, see in _hooks():
                hook.remove(see)
        with _lock:
            if not self.had:
                return
            self._set(0.0)
            _armed = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGPROF) is _on_signal:
            # One that is on its way to another thread would kill the process; being ignored for a moment it is discarded.
            _set_handler(signal.SIGPROF, signal.SIG_IGN)
            _set_handler(signal.SIGPROF, signal.SIG_DFL)

    def after_fork_in_child(self) -> None:
        """Know that the timer is the parent's; `keep` starts one for the child, unless that is to be another program."""
        global _lock
        _lock = threading.RLock()  # whoever held it is not in the child
        self._running = False
        if _is_for_subprocess(sys._getframe()):
            self._paused_until = inf

    def _set(self, interval: float) -> None:
        _set_timer(signal.ITIMER_PROF, interval, interval)
        self._running = interval > 0
