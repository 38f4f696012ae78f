"""The event loops that are made: whoever wants to know of them is told, also when asyncio is not imported yet.

What belongs here: that. What does not: what is done with a loop (loop_watch.py).

A loop of one of asyncio's kinds is made by `BaseEventLoop.__init__`, which is hooked rather than anything that stays on
the stack while the loop runs, so that no traceback shows us. As long as asyncio is not imported, an import hook waits for
the one module that defines it; it is in the way of no other import, and gone after that one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from streamll.monitors.hooks import Hook

_MODULE = "asyncio.base_events"

Born = Callable[[Any], None]


class Births:
    """Tells of loops that are made. One object serves the process."""

    def __init__(self) -> None:
        self._told: tuple[Born, ...] = ()
        self._hook: Hook | None = None
        self._awaiting = _Awaiting(self._arrived)

    def add(self, told: Born) -> None:
        """Call `told` with every loop that is made from now on."""
        self._told = (*self._told, told)
        if self._hook is not None:
            self._hook.add(self._tell)
        elif hasattr(sys.modules.get(_MODULE), "BaseEventLoop"):
            self._arrived()
        elif self._awaiting not in sys.meta_path:
            sys.meta_path.insert(0, self._awaiting)

    def remove(self, told: Born) -> None:
        """Call it no more."""
        self._told = tuple(one for one in self._told if one != told)
        if not self._told:
            if self._hook is not None:
                self._hook.remove(self._tell)
            if self._awaiting in sys.meta_path:
                sys.meta_path.remove(self._awaiting)

    def _arrived(self) -> None:
        if self._hook is None:
            self._hook = Hook(sys.modules[_MODULE].BaseEventLoop, "__init__", after=True)
        if self._told:
            self._hook.add(self._tell)

    def _tell(self, loop: Any, *_: object, **__: object) -> None:
        for told in self._told:
            told(loop)


class _Awaiting:
    """An import hook that waits for one module, and calls a function when it has been imported."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        self._arrived = arrived

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as anybody else would, and have its loader tell when it is there."""
        if name != _MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                loader: Any = spec.loader
                if loader is not None:
                    loader.exec_module = self._around(loader, loader.exec_module)
                return spec
        return None

    def _around(self, loader: Any, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            self._arrived()

        return exec_module


BIRTHS = Births()
"""The process's one."""
