"""The functions of a module, and the places where they stand: as globals, and in the dicts of its classes.

What belongs here: finding them without running any code of the module's, not even that of its metaclasses. What does
not: which are wanted (patterns.py), and what is done to them.

A module's function is one that says so itself, by its `__module__`: what a module imports from elsewhere is found
there. Functions within functions stand in no place and are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

dict_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
"""A class's own dict, whatever its metaclass says."""


def names_in(module: ModuleType) -> Any:
    """A module's dict; one that is loaded lazily stays unloaded."""
    return object.__getattribute__(module, "__dict__")


_OURS = frozenset({"streamll.tracing", "streamll.steps"})

_DEPTH = 10
"""Classes within classes, and decorators around decorators, that are looked through."""


class Place(NamedTuple):
    """Where a function stands.

    Attributes:
        owner: The module or class.
        name: The name it has there.
        value: What stands there: the function, or the classmethod, staticmethod or property that holds it.
        functions: The functions in it: several in a property.
    """

    owner: ModuleType | type
    name: str
    value: Any
    functions: tuple[FunctionType, ...]


def places(module: ModuleType) -> Iterator[Place]:
    """Find what a module defines."""
    held = names_in(module)
    home = held.get("__name__")
    if type(home) is str:
        yield from _in(module, held, home, 0, set())


def _in(owner: ModuleType | type, held: Any, home: str, depth: int, seen: set[int]) -> Iterator[Place]:
    for name, value in list(held.items()):
        kind = type(value)
        if kind is FunctionType:
            functions: tuple[Any, ...] = (value,)
        elif kind is classmethod or kind is staticmethod:
            functions = (value.__func__,)
        elif kind is property:
            functions = (value.fget, value.fset, value.fdel)
        elif issubclass(kind, type):
            inside = dict_of(value)
            if inside.get("__module__") == home and id(value) not in seen and depth < _DEPTH:
                seen.add(id(value))
                yield from _in(value, inside, home, depth + 1, seen)
            continue
        else:
            continue
        ours = tuple(each for each in functions if type(each) is FunctionType and _is_at(each, home))
        if ours and type(name) is str:
            yield Place(owner, name, value, ours)


def _is_at(function: FunctionType, home: str) -> bool:
    if function.__globals__.get("__name__") in _OURS:
        return False  # it is traced already, by decoration
    return function.__module__ == home and "<" not in function.__qualname__


def innermost(function: FunctionType) -> FunctionType:
    """The function that a decorator has wrapped; the given one where none has, or where that is another module's."""
    found = function
    for _ in range(_DEPTH):
        inner = found.__dict__.get("__wrapped__")
        if type(inner) is not FunctionType or inner.__module__ != function.__module__:
            break
        found = inner
    return found
