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
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    try:
        task = asyncio.current_task(frame.f_locals["self"])
        if task is None:
            return ""
        if not isinstance(task, asyncio.Task):
            return type(task).__name__
        return _name(asyncio.Task.get_coro(task))
    except Exception:  # a loop that is not what the standard library's is
        return ""


def _name(coroutine: Any) -> str:
    kind = type(coroutine)
    if kind is CoroutineType or kind is GeneratorType:
        name: str = coroutine.__qualname__
        return name[:_LONGEST_NAME]
    return kind.__name__[:_LONGEST_NAME]
