"""A Python program, found and run as `python` itself would: as `__main__`, with its own arguments, path and traceback.

What belongs here: finding the code, making the module, and telling how it ended. What does not: watching it (run.py).

`runpy` does nearly this, but puts the former `__main__` back when the main code ends, while the program's threads and
exit functions still run.
"""

from __future__ import annotations

import builtins
import io
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from streamll.errors import ConfigurationError


class Interrupted(Exception):
    """Raised when Ctrl-C ended the program, which has been said: the interpreter is to end by that signal."""


@dataclass(frozen=True)
class Program:
    """What is to be run.

    Attributes:
        name: What the user called it: a path, or a module's name.
        code: Its main code.
        module: The module that it is to be run in, to become `__main__`.
        argv: Its arguments, with what it is called by first.
    """

    name: str
    code: CodeType
    module: ModuleType
    argv: list[str]

    def run(self) -> None:
        """Run it in the place of the present main program; what it raises comes through."""
        sys.modules["__main__"] = self.module
        sys.argv = self.argv
        exec(self.code, self.module.__dict__)  # noqa: S102  # running a program is what this is for

    def own_traceback(self, error: BaseException) -> TracebackType | None:
        """An error's traceback from the program's first line on, as if nobody had run it but `python`."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code is not self.code:
            traceback = traceback.tb_next
        return traceback


def find_script(path: str, arguments: Sequence[str]) -> Program:
    """Find a script, or the `__main__.py` in a folder or a zip file; `sys.path` begins with where it is, from now on.

    Raises:
        ConfigurationError: There is none.
        SyntaxError: Its code is none.
    """
    argv = [path, *arguments]
    absolute = str(Path(path).absolute())
    if pkgutil.get_importer(absolute) is not None:
        _begin_path_with(absolute)
        return _program(path, _spec_in("__main__", absolute), argv, "__main__")
    try:
        with io.open_code(absolute) as file:
            source = file.read()
    except OSError as error:
        raise ConfigurationError(f"cannot open {path!r}: {error.strerror or error}") from None
    _begin_path_with(str(Path(path).resolve().parent))
    module = _main_module(file=absolute, loader=SourceFileLoader("__main__", absolute))
    return Program(path, compile(source, absolute, "exec", dont_inherit=True), module, argv)


def find_module(name: str, arguments: Sequence[str]) -> Program:
    """Find a module, or the `__main__` of a package; `sys.path` begins with the working folder, from now on.

    Raises:
        ConfigurationError: There is none, or it has no code.
        Exception: What importing the packages around it raises.
    """
    _begin_path_with(str(Path.cwd()))
    spec = _spec_of(name)
    if spec.submodule_search_locations is not None:
        spec = _spec_of(f"{name}.__main__")
    return _program(name, spec, [spec.origin or name, *arguments], spec.name)


def _spec_of(name: str) -> ModuleSpec:
    try:
        spec = find_spec(name)
    except (ModuleNotFoundError, ValueError) as error:
        parent = name.rpartition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name and not f"{parent}.".startswith(f"{error.name}."):
            raise  # a package around it could not be imported
        spec = None
    if spec is None:
        raise ConfigurationError(f"no module named {name}")
    return spec


def _spec_in(name: str, place: str) -> ModuleSpec:
    importer: Any = pkgutil.get_importer(place)
    spec: ModuleSpec | None = importer.find_spec(name)
    if spec is None:
        raise ConfigurationError(f"cannot find {name!r} in {place!r}")
    return spec


def _program(name: str, spec: ModuleSpec, argv: list[str], main: str) -> Program:
    code = getattr(spec.loader, "get_code", lambda _: None)(spec.name)
    if code is None:
        raise ConfigurationError(f"{main} has no Python code to run")
    module = _main_module(file=spec.origin or "", loader=spec.loader, spec=spec)
    return Program(name, code, module, argv)


def _main_module(*, file: str, loader: object, spec: ModuleSpec | None = None) -> ModuleType:
    module = ModuleType("__main__")
    module.__dict__.update(
        __file__=file,
        __builtins__=builtins,
        __loader__=loader,
        __spec__=spec,
        __package__=None if spec is None else spec.parent,
        __cached__=None if spec is None else spec.cached,
    )
    return module


def _begin_path_with(place: str) -> None:
    """Put a folder where Python puts the one of the program that it starts: in the place of our own."""
    if not getattr(sys.flags, "safe_path", False):  # from Python 3.11 on; then Python has put none there
        sys.path[0] = place
