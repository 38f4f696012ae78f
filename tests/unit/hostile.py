"""Objects that notice whatever code of theirs is called: what streamll must never do to a user's object."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

_calls: list[str] = []
_armed = False

_METHODS = (types.FunctionType, types.WrapperDescriptorType, types.MethodDescriptorType)
_ATTRIBUTES = (property, types.GetSetDescriptorType, types.MemberDescriptorType)
_NEEDED_TO_MAKE_ONE = {"__init__", "__class__", "__dict__", "__weakref__"}

# What Python calls of an object without being asked by name, as far as the base class has it or could have it.
_SPECIAL = tuple(
    f"__{name}__"
    for name in (
        "repr str format bytes hash eq ne lt le gt ge bool len length_hint iter next reversed getitem contains missing "
        "getattribute getattr setattr dir int index float complex fspath call enter exit await copy deepcopy reduce "
        "reduce_ex getstate sizeof buffer array instancecheck subclasscheck or add radd rmod replace"
    ).split()
)


class Called(Exception):
    """Raised by a hostile object whose code is called while it must not be."""


def _note(name: str, answer: Any = None) -> Any:
    if _armed:
        _calls.append(name)
        raise Called(name)
    return answer


def _method(name: str, original: Any) -> Callable[..., Any]:
    def tripwire(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note(name)
        if original is None:
            raise AttributeError(name)
        return original(self, *args, **kwargs)

    return tripwire


def _attribute(name: str, original: Any) -> property:
    def get(self: Any) -> Any:
        _note(name)
        return original.__get__(self, type(self))

    def set_(self: Any, value: Any) -> None:
        original.__set__(self, value)

    return property(get, set_)


def _tripwires(base: type) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__class__": property(lambda _self: _note("__class__", base))}
    for name in {*dir(base), *_SPECIAL} - _NEEDED_TO_MAKE_ONE:
        original = getattr_static(base, name, None)
        if isinstance(original, _METHODS) or (original is None and name in _SPECIAL):
            namespace[name] = _method(name, original)
        elif isinstance(original, _ATTRIBUTES):
            namespace[name] = _attribute(name, original)
    return namespace


class HostileMeta(type):
    """A metaclass whose classes notice what is asked of them, and of their instances' class."""

    locals().update(
        {
            name: _method(f"type.{name}", getattr(type, name))
            for name in _SPECIAL
            if getattr(type, name, None) is not None
        }
    )
    __bool__ = _method("type.__bool__", lambda _cls: True)
    __iter__ = _method("type.__iter__", None)


def hostile_class(base: type, **more: Any) -> Any:
    """A subclass of `base` every method and attribute of which, and of whose metaclass, is a tripwire."""
    meta = HostileMeta if type(base) is type else type("Meta", (HostileMeta, type(base)), {})
    return meta(f"Hostile{base.__name__.capitalize()}", (base,), {**_tripwires(base), **more})


@contextmanager
def armed() -> Iterator[None]:
    """While it lasts, hostile objects raise when their code is called; in the end, none has been."""
    global _armed
    _calls.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
    assert _calls == [], f"code of a user's object was called: {_calls}"
