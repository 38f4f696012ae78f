"""What an event loop's thread does at this moment, seen from another thread, in words.

What belongs here: reading the thread's stack and the loop's present task, which runs no code of the program's and keeps
nothing of it. What does not: when that is done (loop_watch.py).

`sys._current_frames` is the documented way to another thread's stack, for debuggers and the like; where a Python has
none, nothing is seen.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, CoroutineType, FrameType
from typing import TYPE_CHECKING, Any

from streamll.context import SCOPE, Scope
from streamll.monitors.loops.pulse import Seen
from streamll.spans import STACK_BOUND

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_LOOPS_OWN = frozenset({"_run", "_run_once", "run_forever", "run_until_complete", "run"})
_STDLIB = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120  # a prefix to compare text with
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def see(loop: AbstractEventLoop, thread: int) -> Seen | None:
    """Return what the loop's thread is doing; None when it cannot be told.

    Args:
        loop: A running loop.
        thread: The identifier of the thread that runs it.
    """
    frame: FrameType | None = getattr(sys, "_current_frames", dict[int, FrameType])().get(thread)
    if frame is None:
        return None
    stack: list[str] = []
    own: tuple[str, str] | None = None
    innermost = outermost = frame.f_code
    module_name = _module_of(frame)
    while frame is not None and len(stack) < STACK_BOUND:
        code, module = frame.f_code, _module_of(frame)
        if module.startswith("asyncio.") and code.co_name in _LOOPS_OWN:
            break
        stack.append(f"{code.co_filename}:{frame.f_lineno} in {_name_of(code)}")
        outermost = code
        if own is None and is_own(code.co_filename):
            own = module, _name_of(code)
        frame = frame.f_back
    if not stack:
        return None  # the loop is about its own work
    module_name, method_name = own or (module_name, _name_of(innermost))
    task, coroutine, scope = _task_of(loop)
    return Seen(stack[0], stack[::-1], module_name, method_name, coroutine or _name_of(outermost), task, scope)


def is_own(filename: str) -> bool:
    """Whether code is the program's own, as far as a file's name can tell: not Python's, nor an installed package's."""
    return not filename.startswith((_STDLIB, "<frozen ")) and not any(part in filename for part in _INSTALLED)


def _task_of(loop: AbstractEventLoop) -> tuple[str, str, Scope | None]:
    """The running task's name, its coroutine's, and where it is in the program."""
    asyncio = sys.modules["asyncio"]
    try:
        task: Any = asyncio.current_task(loop)
        if type(task) is not asyncio.Task:  # another kind may answer with code of its own
            return "", "", None
        coroutine = task.get_coro()
        operation = coroutine.__qualname__ if type(coroutine) is CoroutineType else f"<{type(coroutine).__name__}>"
        context = getattr(task, "get_context", None)
        scope = context().get(SCOPE) if context is not None else None
        return task.get_name(), operation, scope
    except Exception:  # it has ended meanwhile
        return "", "", None


def _module_of(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) else ""


def _name_of(code: CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)
    return name
