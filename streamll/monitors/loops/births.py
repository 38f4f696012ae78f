"""The event loops that are made: whoever wants to know of them is told, also when asyncio is not imported yet.

What belongs here: that, for the kinds of loop that are told apart by name. What does not: what is done with a loop
(loop_watch.py).

Making a loop is hooked, rather than anything that stays on the stack while it runs, so that no traceback shows us. As
long as a module that defines a kind of loop is not imported, an import hook waits for it, and lets all others pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from streamll.monitors.hooks import Hook

_KINDS = {"asyncio.base_events": "BaseEventLoop", "uvloop": "Loop"}
"""Where kinds of loop are defined, and the class that all of that kind are."""

Born = Callable[[Any], None]


class Births:
    """Tells of loops that are made. One object serves the process."""

    def __init__(self) -> None:
        self._told: tuple[Born, ...] = ()
        self._hooks: dict[str, Hook] = {}
        self._awaiting = _Awaiting(self._arrived)

    def add(self, told: Born) -> None:
        """Call `told` with every loop that is made from now on."""
        self._told = (*self._told, told)
        for name in _KINDS:
            self._arrived(name)
        if len(self._hooks) < len(_KINDS) and self._awaiting not in sys.meta_path:
            sys.meta_path.insert(0, self._awaiting)

    def remove(self, told: Born) -> None:
        """Call it no more."""
        self._told = tuple(one for one in self._told if one != told)
        if not self._told:
            for hook in self._hooks.values():
                hook.remove(self._tell)
            self._hooks = {}
            if self._awaiting in sys.meta_path:
                sys.meta_path.remove(self._awaiting)

    def _arrived(self, name: str) -> None:
        """A module was imported, or may have been."""
        kind = getattr(sys.modules.get(name), _KINDS[name], None)
        if kind is not None and self._told and name not in self._hooks:
            self._hooks[name] = hook = Hook(kind, "__init__", after=True)
            hook.add(self._tell)

    def _tell(self, loop: Any, *_: object, **__: object) -> None:
        for told in self._told:
            told(loop)


class _Awaiting:
    """An import hook that calls a function with the name of each module of loops that has been imported."""

    def __init__(self, arrived: Callable[[str], None]) -> None:
        self._arrived = arrived

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as anybody else would, and have its loader tell when it is there."""
        if name not in _KINDS:
            return None
        for finder in list(sys.meta_path):
            found: Any = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = found(name, path, target) if finder is not self and found is not None else None
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
            self._arrived(module.__name__)

        return exec_module


BIRTHS = Births()
"""The process's one."""
