"""Being told when an attribute of one object is set: by its class's own `__setattr__`, for as long as anybody watches.

What belongs here: that mechanism. What does not: what becomes of a change (event_tracer.py).

While an object of a class is watched, the class has a `__setattr__` and a `__delattr__` that look whether the object at
hand is meant, and then do what would have been done. So the object stays what it is: its class, its `__dict__`, its
slots, how it is compared, copied and pickled. A class made for it, as the other way would be, is another class to
whoever asks for `type(obj)`; a descriptor in the attribute's place would make each reading pay. What it costs: setting
any attribute of any object of that class takes some 0.3 us more, until the last one watched is let go of or gone.

Not seen are changes that go around the class: `obj.__dict__[...]`, `object.__setattr__`, C code, and changes within a
value, such as an appended item.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from typing import Any
from weakref import ref

from streamll.runtime.fork import tell_after_fork

UNSET = object()
"""Stands for the value of an attribute that is not there."""

Notice = Callable[[str, Any, Any], bool]
"""Is told an attribute's name, its value before and its value now (`UNSET` where there is none), in the thread that sets
it. Never raises; False when nobody wants to hear any more."""

# Looked up on `type` itself: a metaclass may answer for its classes with code of its own.
_name_of: Callable[[type], str] = type.__dict__["__name__"].__get__
_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__
_mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_dict_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__

_METHODS = ("__setattr__", "__delattr__")
_CALLABLE_AS_FUNCTION = (types.FunctionType, types.WrapperDescriptorType)
_MARK = "_streamll_watched"

PATIENCE = 1000
"""Attributes that are set in vain before a class of which nothing is watched any more gets back what it had."""


class _Watched(dict[int, "tuple[Watch, ...]"]):
    """Who watches which object, by the object's `id`. In a pickle it is empty, since some pickle a class with all it has."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Watched, ()


class _Class:
    """A class whose objects are watched. It is held by the functions that were put into the class, and by watches.

    Attributes:
        cls: The class, weakly.
        watched: Its watched objects, by their `id`.
        own: What it had itself in the place of those functions; `UNSET` where it had nothing.
        made: The functions.
        in_vain: How often they were called since the last object that was watched is gone.
    """

    def __init__(self, cls: type) -> None:
        self.cls = ref(cls)
        self.watched = _Watched()
        own = _dict_of(cls)
        self.own = {name: own.get(name, UNSET) for name in _METHODS}
        self.made: dict[str, types.FunctionType] = {}
        self.in_vain = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _Class, (object,)

    def watches(self, target: Any) -> tuple[Watch, ...]:
        """Return who watches an object; its `id` may have been another's."""
        return tuple(watch for watch in self.watched.get(id(target), ()) if watch.target() is target)

    def forget(self, key: int) -> Callable[[ref[Any]], None]:
        """Return what is done when an object is gone, by whichever thread finds out: it takes no lock."""

        def forget(gone: ref[Any]) -> None:
            if any(watch.target is gone for watch in self.watched.get(key, ())):
                self.watched.pop(key, None)

        return forget


class Watch:
    """One attribute of one object, and who is told of it."""

    __slots__ = ("attribute", "known", "notice", "target")

    def __init__(self, known: _Class, target: ref[Any], attribute: str, notice: Notice) -> None:
        self.known = known
        self.target = target
        self.attribute = attribute
        self.notice = notice

    @property
    def is_alive(self) -> bool:
        """Whether the object still exists."""
        return self.target() is not None


class _Lock:
    """Held while a class is changed."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        self.held = threading.RLock()  # whoever held it is not in the child


_changing = _Lock()


def watch(target: Any, attribute: str, notice: Notice) -> Watch:
    """Be told whenever an attribute of an object is set or deleted, until the object is gone or `unwatch`.

    Args:
        target: The object, which is held weakly.
        attribute: The attribute's name.
        notice: Is told.

    Raises:
        TypeError: It cannot be watched, and why.
    """
    cls = type(target)
    check(cls, attribute)
    with _changing.held:
        known = _known(cls)
        is_new = known is None
        if known is None:
            known = _Class(cls)
        try:
            weak = ref(target, known.forget(id(target)))
        except TypeError:
            raise TypeError(
                f"a {_name_of(cls)} cannot be traced: there are no weak references to it (it has __slots__ without "
                "'__weakref__', or is of a built-in type)"
            ) from None
        if is_new:
            _take_over(cls, known)
        made = Watch(known, weak, attribute, notice)
        known.watched[id(target)] = (*known.watches(target), made)
        known.in_vain = 0
    return made


def unwatch(watch: Watch, at_once: bool = False) -> None:
    """Be told no more; harmless when that was so before.

    Args:
        watch: What `watch` returned.
        at_once: Give the class back what it had, if this was the last. Else that is done after some more attributes were
            set: each change of a class costs the program, and where one object of it was watched, another may be soon.
    """
    known, target = watch.known, watch.target()
    with _changing.held:
        if target is not None:
            left = tuple(each for each in known.watches(target) if each is not watch)
            if left:
                known.watched[id(target)] = left
            else:
                known.watched.pop(id(target), None)
        if at_once:
            _give_back(known)


def _known(cls: type) -> _Class | None:
    function = _dict_of(cls).get("__setattr__")
    known = getattr(function, _MARK, None) if type(function) is types.FunctionType else None
    # Who wraps a function may have copied its attributes.
    return known if type(known) is _Class and known.made.get("__setattr__") is function else None


def _give_back(known: _Class) -> None:
    """Give a class what it had, if none of its objects is watched any more. It never waits."""
    if known.watched or not _changing.held.acquire(blocking=False):
        return
    try:
        cls = known.cls()
        if known.watched or cls is None or not known.made:
            return
        own = _dict_of(cls)
        if any(own.get(name) is not function for name, function in known.made.items()):
            return  # somebody else has put something there since, which may call ours: it stays, and does nothing
        for name, before in known.own.items():
            if before is UNSET:
                type.__delattr__(cls, name)
            else:
                type.__setattr__(cls, name, before)
    finally:
        _changing.held.release()


def full_name(cls: type) -> str:
    """Return a class's module and qualified name, without any code of the class or its metaclass."""
    module = _module_of(cls)
    return f"{module}.{_qualname_of(cls)}" if type(module) is str else _qualname_of(cls)


def check(cls: type, attribute: str) -> None:
    """Refuse an attribute that cannot be watched without calling code of the class.

    Raises:
        TypeError: It is a property or another descriptor, or no name; or the class's own `__setattr__` is no function.
    """
    if type(attribute) is not str or not attribute.isidentifier():
        raise TypeError("an attribute to trace must be a name")
    for base in _mro_of(cls):
        found = _dict_of(base).get(attribute, UNSET)
        if found is not UNSET:
            if type(found) is not types.MemberDescriptorType and any(
                "__set__" in _dict_of(kind) for kind in _mro_of(type(found))
            ):
                raise TypeError(
                    f"{_name_of(cls)}.{attribute} is a {_name_of(type(found))}, whose reading runs code: trace the "
                    "attribute that it stores its value in"
                )
            break
    for name in _METHODS:
        own = _dict_of(cls).get(name, UNSET)
        if own is not UNSET and not isinstance(own, _CALLABLE_AS_FUNCTION):
            raise TypeError(f"a {_name_of(cls)} cannot be traced: its {name} is a {_name_of(type(own))}")


def value_of(target: Any, attribute: str) -> Any:
    """Return an attribute's value without any code of the object's; `UNSET` where there is none."""
    for_all = UNSET
    bases = _mro_of(type(target))
    for base in bases:
        found = _dict_of(base).get(attribute, UNSET)
        if found is not UNSET:
            if type(found) is types.MemberDescriptorType:
                try:
                    return found.__get__(target)
                except AttributeError:
                    return UNSET
            for_all = found
            break
    for base in bases:
        slot = _dict_of(base).get("__dict__")
        if type(slot) is types.GetSetDescriptorType:
            return dict.get(slot.__get__(target), attribute, for_all)
    return for_all


def _take_over(cls: Any, known: _Class) -> None:
    """Put functions in the place of a class's `__setattr__` and `__delattr__`.

    Raises:
        TypeError: The class cannot be changed.
    """
    watched, own_set, own_delete = known.watched, known.own["__setattr__"], known.own["__delattr__"]

    def set_attribute(self: Any, name: str, value: Any) -> None:
        watches = watched.get(id(self), ())
        before = value_of(self, name) if watches and _is_watched(watches, name) else UNSET
        if own_set is UNSET:
            super(cls, self).__setattr__(name, value)
        else:
            own_set(self, name, value)
        if watches:
            _tell(watches, self, name, before)
        elif not watched:
            known.in_vain += 1
            if known.in_vain >= PATIENCE:
                known.in_vain = 0
                _give_back(known)

    def delete_attribute(self: Any, name: str) -> None:
        watches = watched.get(id(self), ())
        before = value_of(self, name) if watches and _is_watched(watches, name) else UNSET
        if own_delete is UNSET:
            super(cls, self).__delattr__(name)
        else:
            own_delete(self, name)
        if watches:
            _tell(watches, self, name, before)

    setattr(set_attribute, _MARK, known)
    known.made = {"__setattr__": set_attribute, "__delattr__": delete_attribute}  # type: ignore[dict-item]  # what `def` makes
    try:
        for name, function in known.made.items():
            type.__setattr__(cls, name, function)
    except TypeError:
        raise TypeError(f"a {_name_of(cls)} cannot be traced: its class cannot be changed") from None


def _is_watched(watches: tuple[Watch, ...], name: str) -> bool:
    return type(name) is str and any(watch.attribute == name for watch in watches)


def _tell(watches: tuple[Watch, ...], target: Any, name: str, before: Any) -> None:
    for watch in watches:
        is_meant = type(name) is str and watch.attribute == name and watch.is_alive
        if is_meant and not watch.notice(name, before, value_of(target, name)):
            unwatch(watch)
