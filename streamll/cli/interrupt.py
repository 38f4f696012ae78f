"""Ctrl-C, also where it comes to nothing.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a finaliser or a callback of the garbage
collector that is printed and forgotten, and a command that runs until it is interrupted would run for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed since; KeyboardInterrupt is raised as ever.

    Where Ctrl-C is ignored (a job in the background), or in another thread than the main one, nothing is changed.
    """
    pressed = False
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: pressed
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def say(unraisable: UnraisableHookArgs) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            said_before(unraisable)

    said_before = sys.unraisablehook
    sys.unraisablehook = say
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = said_before


@contextmanager
def postponed_interruptions(words: str, terminations: bool = False) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed; only when it is pressed again, KeyboardInterrupt is raised.

    For work that is to end between two steps. Where Ctrl-C is ignored, or in another thread than the main one, nothing
    is changed.

    Args:
        words: What to say on standard error when it is pressed; empty: nothing.
        terminations: Whether SIGTERM is to count as Ctrl-C.
    """
    pressed = False
    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)[: 1 + terminations]}
    # Nobody but the command's own process is concerned, so whoever else handles them (a tool that measures it) waits.
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(number, former[number])
        if words:
            os.write(sys.stderr.fileno(), f"{words}\n".encode())  # print is not for signal handlers

    for number in former:
        signal.signal(number, note)
    try:
        yield lambda: pressed
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
