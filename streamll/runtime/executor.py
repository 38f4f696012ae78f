"""Waiting for something that blocks, from a coroutine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_executor(call: Callable[[], T]) -> T:
    """Run a blocking call on the event loop's default executor, and return what it returns."""
    import asyncio  # an application that comes here has it already; importing it costs others 15 ms

    return await asyncio.get_running_loop().run_in_executor(None, call)
