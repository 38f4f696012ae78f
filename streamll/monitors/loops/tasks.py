"""Which asyncio task a thread runs, seen from outside: by the frame of its event loop.

What belongs here: that look. What does not: asyncio itself, which is never imported here: where the program has not, it
runs no task.
"""

from __future__ import annotations

import sys
from types import CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

_LONGEST_NAME = 200


def loop_code() -> CodeType | None:
    """What the frame of a running event loop runs; None while the program has not imported asyncio."""
    events = sys.modules.get("asyncio.base_events")
    run = getattr(getattr(events, "BaseEventLoop", None), "run_forever", None)
    code = getattr(run, "__code__", None)
    return code if isinstance(code, CodeType) else None


def task_in(frame: FrameType) -> str:
    """Return the coroutine's name of the task that runs in a loop's frame; empty between tasks.

    Args:
        frame: One that runs `loop_code`, of any thread.
    """
    try:
        return _name_of(frame.f_locals["self"])
    except Exception:  # a loop that is not what the standard library's is
        return ""


def task_here() -> str:
    """Return the same for this thread, whatever loop it runs: those written in C have no such frame."""
    try:
        return _name_of(None)
    except Exception:  # no loop runs here
        return ""


def _name_of(loop: Any) -> str:
    """The name of a loop's present task; of this thread's loop when None.

    Raises:
        RuntimeError: When this thread runs no loop.
    """
    asyncio = sys.modules["asyncio"]
    task = asyncio.current_task(loop)
    if task is None:
        return ""
    coroutine = asyncio.Task.get_coro(task) if isinstance(task, asyncio.Task) else task
    kind = type(coroutine)
    named = coroutine if kind is CoroutineType or kind is GeneratorType else kind
    name: str = named.__qualname__
    return name[:_LONGEST_NAME]
