"""Signals that ask the process to end: an opt-in handler, which delivers what is buffered before it lets them.

What belongs here: what is installed for a signal, and how the process dies of it. What does not: the draining (leave.py).

A handler interrupts the main thread wherever it is: in the middle of an import, of a line to a log, of our own `put`,
with locks in its hands that the sinks' threads want. So it waits for nothing. Another thread drains, the interrupted code
goes on meanwhile, and at the end that other thread sends the signal again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any, ClassVar

from streamll.errors import ConfigurationError
from streamll.runtime.fork import tell_after_fork
from streamll.runtime.leave import has_work, leave_elsewhere, running

# Signals that ask nobody to end: their default is to do nothing, to stop or to go on; they cannot be handled; or they
# tell of a crash, at which a Python function is of no use.
_NO_REQUEST = {
    getattr(signal, f"SIG{name}", None)
    for name in "CHLD CLD CONT URG WINCH INFO TSTP TTIN TTOU STOP KILL SEGV BUS FPE ILL SYS TRAP EMT IOT ABRT".split()
}


_Handling = Callable[[int, FrameType | None], Any] | int


def stop_on_signal(*signals: int) -> ExitStack:
    """Deliver what is buffered when the process is asked to end; by default Python ends at SIGTERM without any ado.

    Where nobody handles a signal, the sinks accept nothing more from then on, are drained together, each within its
    `exit_timeout`, and what could not be delivered is said. Then the signal takes its default effect, so that the exit
    status is the signal's. The program goes on meanwhile. A second signal ends it at once.

    Where the program has a handler of its own, it is called as before: whether the program ends is its decision, and the
    end of the program delivers what is left. Deliveries are only hurried. A signal that is ignored stays ignored.

    Call it in the main thread, after whatever else installs handlers. Children of `os.fork` and of multiprocessing's
    `fork` inherit it, and drain their own sinks; others call it themselves. Like all Python handlers it runs when the
    main thread is next in Python code, so a long call into C delays it.

    Args:
        signals: The signals; SIGTERM when none is given.

    Returns:
        What puts the former handlers back: call its `close()`, also in the main thread, or use it as a context manager.

    Raises:
        ConfigurationError: Not in the main thread; or it is no signal that asks a process to end; or its handler was not
            installed from Python, and could not be called; or eventlet has patched Python's threads.

    Example:
        streamll.configure(sinks=["redis://localhost:6379/0"])
        streamll.stop_on_signal()
    """
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise ConfigurationError(
            "stop_on_signal() is of no use with eventlet, whose hub does not wake up for it; "
            "call streamll.shutdown() where your program ends"
        )
    with ExitStack() as installed:
        for number in dict.fromkeys(signals or (signal.SIGTERM,)):
            _install(number, installed)
        return installed.pop_all()


def _install(number: int, installed: ExitStack) -> None:
    name = _name(number)
    if number in _NO_REQUEST:
        raise ConfigurationError(f"{name} does not ask a process to end, so nothing can be stopped on it")
    former = signal.getsignal(number)
    if former is None:
        raise ConfigurationError(
            f"{name} has a handler that was not installed from Python, which could not be called; "
            "have that handler end the program, or call streamll.shutdown() where it does"
        )
    keeps = former is signal.SIG_IGN or isinstance(former, _Handler)
    handler = former if keeps else _Handler(number, former)
    try:
        signal.signal(number, handler)  # also where it changes nothing, to see whether it may be done here
    except ValueError:
        raise ConfigurationError(
            "stop_on_signal() works only in the main thread, as all of Python's signals do"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be handled: {error.strerror}") from None
    if isinstance(handler, _Handler) and not keeps:
        installed.callback(handler.remove)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        if number not in signal.valid_signals():
            raise ConfigurationError(f"{number!r} is no signal") from None
        return f"signal {number}"


class _Handler:
    """What is called for one signal.

    Args:
        number: The signal.
        former: Its handler before, or SIG_DFL.
    """

    asked: ClassVar[set[_Handler]] = set()
    """Those whose signal has come, and is to take its effect when the sinks are drained."""

    def __init__(self, number: int, former: _Handling) -> None:
        self._number = number
        self._former = former
        self._removed = False
        tell_after_fork(self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if callable(self._former):
            if not self._removed:
                for sink in running():
                    sink.request_flush()
            self._former(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)  # once more, and it ends at once
            if self.asked or self._removed or not has_work():
                self._end()
            else:
                self.asked.add(self)
                leave_elsewhere(self._end)

    def remove(self) -> None:
        """Put the former handler back; or if another one was put around this, do from now on what that would."""
        self._removed = True
        in_force = signal.getsignal(self._number) is self
        if in_force:
            signal.signal(self._number, self._former)

    def after_fork_in_child(self) -> None:
        """A child that is forked while its parent is ending was not asked itself."""
        if self in self.asked:
            self.asked.discard(self)
            signal.signal(self._number, self)

    def _end(self) -> None:
        """Die of the signal, as if it had never been handled."""
        if signal.getsignal(self._number) is not signal.SIG_DFL:
            return  # somebody has taken it over meanwhile
        if os.getpid() == 1:  # the first process of a container, which the kernel spares it
            os._exit(128 + self._number)
        os.kill(os.getpid(), self._number)


# CPython forgets in a child what signals have come until it has been set up, and so would such a request be lost. While
# one of ours is installed, they wait until the child is itself. By thread: several may fork at once.
_masks: dict[int, set[signal.Signals | int]] = {}


def _hold_signals() -> None:
    numbers = {number for number in signal.valid_signals() if isinstance(signal.getsignal(number), _Handler)}
    if numbers:
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def _let_signals_come() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    # Registered behind what makes a child itself (fork.py), and so called after it.
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_come, after_in_child=_let_signals_come)
