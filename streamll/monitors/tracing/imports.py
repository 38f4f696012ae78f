"""Modules that are imported later: a finder that finds nothing of its own, and says when a module has been executed.

What belongs here: that. What does not: what is then done to the module.

A module keeps the spec and the loader that it would have: the loader is stood in for only until the module's code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportWatch:
    """Says when modules have been executed, also when they are reloaded.

    Args:
        wants: Whether a module of a name is of interest.
        executed: Is told of a module whose code has run. It must not raise.
    """

    def __init__(self, wants: Callable[[str], bool], executed: Callable[[ModuleType], None]) -> None:
        self._wants = wants
        self._executed = executed

    def start(self) -> None:
        """Begin. Whoever puts a finder in front of this one later is asked for such modules in its turn."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """End it."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Have the others find a module, and listen."""
        if not self._wants(name):
            return None
        finders: list[Any] = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find = getattr(finder, "find_spec", None)
            if find is None:
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Listening(spec.loader, self._executed)  # type: ignore[assignment]  # it acts as one
                return spec
        return None


class _Listening:
    """Stands in for a loader until the module's code runs."""

    def __init__(self, loader: Any, executed: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._executed = executed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    # For those who find a module's spec themselves, and look at what its loader is.
    __class__ = property(lambda self: type(self._loader))

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader
        try:
            create = getattr(self._loader, "create_module", None)
            made: ModuleType | None = None if create is None else create(spec)
        finally:
            spec.loader = self  # type: ignore[assignment]  # it is asked to execute the module next
        return made

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        loader: Any = None if spec is None else spec.loader
        if spec is not None and loader is self:
            spec.loader = self._loader
        if module.__dict__.get("__loader__") is self:
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._executed(sys.modules.get(module.__name__, module))

    # Tracebacks leave out the import system's frames, and a warning's stacklevel does not count them, by the file that
    # they name; with another one between them, both would show us, and all of them.
    exec_module.__code__ = exec_module.__code__.replace(co_filename="<frozen importlib._bootstrap>")
