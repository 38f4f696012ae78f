"""Being told of an object's changes, and what stays as it was for the object, its class and its kind."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from typing import Any

import msgspec
import pytest

from streamll.monitors.events.attribute_watch import PATIENCE, UNSET, unwatch, value_of, watch
from tests.unit.hostile import armed, hostile_class


class Plain:
    kind: Any = "default"

    def __init__(self, state: Any = "new") -> None:
        self.state = state

    @property
    def doubled(self) -> Any:
        raise AssertionError("a property was read")

    @doubled.setter
    def doubled(self, value: Any) -> None:
        self.state = value * 2


class Slotted:
    __slots__ = ("__weakref__", "state")


class NoWeakref:
    __slots__ = ("state",)


@dataclasses.dataclass
class Data:
    state: Any = dataclasses.field(default_factory=int)


@dataclasses.dataclass(frozen=True)
class Frozen:
    state: Any = 1


class Own:
    """Has a `__setattr__` itself, which changes what it is given."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, ("own", value))


class Child(Plain):
    pass


class Struct(msgspec.Struct, weakref=True):
    state: Any = 1


class Changes(list[tuple[str, Any, Any]]):
    """What was told; wants to hear more."""

    def __call__(self, name: str, before: Any, now: Any) -> bool:
        self.append((name, before, now))
        return True


@pytest.fixture
def changes() -> Changes:
    return Changes()


def methods(cls: type) -> dict[str, Any]:
    return {name: vars(cls)[name] for name in ("__setattr__", "__delattr__") if name in vars(cls)}


@pytest.mark.parametrize("kind", [Plain, Slotted, Data, Child, Struct])
def test_each_change_is_told_in_the_moment_it_is_made_and_the_class_gets_back_what_it_had(
    kind: Any, changes: Changes
) -> None:
    before = methods(kind)
    target, other = kind(), kind()
    target.state = 1
    watching = watch(target, "state", changes)
    target.state = 2
    other.state = 9
    target.state = 3
    if kind is not Struct:  # whose fields cannot be deleted
        del target.state
        assert changes.pop() == ("state", 3, UNSET)
        target.state = 4
        assert changes.pop() == ("state", UNSET, 4)
    assert changes == [("state", 1, 2), ("state", 2, 3)]
    assert type(target) is kind
    unwatch(watching, at_once=True)
    target.state = 5
    assert len(changes) == 2
    assert methods(kind) == before


def test_other_attributes_are_not_told_and_a_default_of_the_class_is_the_value_before(changes: Changes) -> None:
    target = Plain()
    watching = watch(target, "kind", changes)
    target.state = "x"
    target.kind = "own"
    del target.kind
    assert changes == [("kind", "default", "own"), ("kind", "own", "default")]
    unwatch(watching, at_once=True)


def test_a_class_with_a_setattr_of_its_own_goes_on_to_use_it(changes: Changes) -> None:
    own, target = Own.__setattr__, Own()
    watching = watch(target, "state", changes)
    target.state = 1
    assert target.state == ("own", 1)  # type: ignore[attr-defined]
    assert changes == [("state", UNSET, ("own", 1))]
    unwatch(watching, at_once=True)
    assert vars(Own)["__setattr__"] is own
    assert "__delattr__" not in vars(Own)


def test_an_error_of_the_class_is_the_programs_and_no_change(changes: Changes) -> None:
    target = Frozen()
    watching = watch(target, "state", changes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.state = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del target.state
    unwatch(watching, at_once=True)
    plain = Plain()
    watching = watch(plain, "absent", changes)
    with pytest.raises(AttributeError):
        del plain.absent  # type: ignore[attr-defined]
    unwatch(watching, at_once=True)
    assert changes == []


def test_a_base_class_and_a_subclass_at_once(changes: Changes) -> None:
    base, child = Plain(), Child()
    watching = [watch(base, "state", changes), watch(child, "state", changes)]
    child.state = "c"
    base.state = "b"
    assert changes == [("state", "new", "c"), ("state", "new", "b")]
    for each in watching:
        unwatch(each, at_once=True)
    assert methods(Plain) == methods(Child) == {}


def test_the_object_is_compared_copied_and_pickled_as_before(changes: Changes) -> None:
    target = Data(1)
    watching = watch(target, "state", changes)
    assert target == Data(1)
    for other in (copy.copy(target), copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert type(other) is Data
        assert other == target
        other.state = 7
    assert changes == []
    assert vars(target) == {"state": 1}
    unwatch(watching, at_once=True)


def test_who_pickles_the_class_with_all_it_has_gets_one_that_watches_nothing(changes: Changes) -> None:
    class Local:
        state: Any = None

    target = Local()
    watching = watch(target, "state", changes)
    function = vars(Local)["__setattr__"]
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    known, watched = pickle.loads(pickle.dumps([cells["known"].cell_contents, cells["watched"].cell_contents]))
    assert (known.watched, watched) == ({}, {})
    unwatch(watching, at_once=True)


def test_a_property_is_not_called_and_what_it_stores_its_value_in_can_be_watched(changes: Changes) -> None:
    target = Plain()
    with pytest.raises(TypeError, match=r"Plain\.doubled is a property.* trace the attribute that it stores"):
        watch(target, "doubled", changes)
    watching = watch(target, "state", changes)
    target.doubled = 2
    assert changes == [("state", "new", 4)]
    unwatch(watching, at_once=True)


@pytest.mark.parametrize("target", [[], 5, "text", object(), NoWeakref(), (), {}])
def test_what_has_no_weak_references_is_refused(target: Any, changes: Changes) -> None:
    with pytest.raises(TypeError, match=r"cannot be traced: there are no weak references to it"):
        watch(target, "state", changes)
    assert "__setattr__" not in vars(NoWeakref)


@pytest.mark.parametrize("target", [set(), Plain, gc, len])
def test_a_class_that_cannot_be_changed_is_refused(target: Any, changes: Changes) -> None:
    with pytest.raises(TypeError, match=r"cannot be traced: its class cannot be changed"):
        watch(target, "state", changes)


def test_what_is_no_name_is_refused(changes: Changes) -> None:
    for name in ("", "a b", 5, None):
        with pytest.raises(TypeError, match="must be a name"):
            watch(Plain(), name, changes)  # type: ignore[arg-type]


def test_an_object_is_held_weakly_and_its_place_may_be_taken_by_another(changes: Changes) -> None:
    target = Plain()
    gone = weakref.ref(target)
    watching = watch(target, "state", changes)
    known = watching.known
    del target
    gc.collect()
    assert gone() is None
    assert not watching.is_alive
    assert known.watched == {}
    for _ in range(100):
        Plain().state = "other"
    assert changes == []
    unwatch(watching)
    unwatch(watching, at_once=True)
    assert methods(Plain) == {}


def test_a_class_gets_back_what_it_had_when_long_nothing_was_watched(changes: Changes) -> None:
    target = Plain()
    unwatch(watch(target, "state", changes))
    for n in range(PATIENCE + 1):
        target.state = n
    assert methods(Plain) == {}
    assert changes == []


def test_what_somebody_else_has_put_around_it_since_stays_and_works(changes: Changes) -> None:
    class Wrapped:
        state = 0

    target = Wrapped()
    watching = watch(target, "state", changes)
    inner = Wrapped.__setattr__

    def outer(self: Any, name: str, value: Any) -> None:
        inner(self, name, value * 10)

    outer.__dict__.update(vars(inner))  # as functools.wraps does
    Wrapped.__setattr__ = outer  # type: ignore[method-assign]
    target.state = 1
    unwatch(watching, at_once=True)
    target.state = 2
    assert vars(Wrapped)["__setattr__"] is outer
    assert (target.state, changes) == (20, [("state", 0, 10)])
    again = watch(target, "state", changes)
    target.state = 3
    assert changes == [("state", 0, 10), ("state", 20, 30)]
    unwatch(again, at_once=True)
    assert vars(Wrapped)["__setattr__"] is outer


def test_who_wants_to_hear_no_more_is_not_told(changes: Changes) -> None:
    target = Plain()
    told = Changes()
    watch(target, "state", lambda *change: not told(*change))
    other = watch(target, "state", changes)
    target.state = 1
    target.state = 2
    assert (len(told), len(changes)) == (1, 2)
    unwatch(other, at_once=True)
    assert methods(Plain) == {}


def test_a_class_that_is_watched_may_go(changes: Changes) -> None:
    class Short:
        pass

    target = Short()
    watch(target, "state", changes)
    gone = weakref.ref(Short)
    del target, Short
    gc.collect()
    assert gone() is None


def test_no_code_of_a_strange_object_or_its_class_is_called(changes: Changes) -> None:
    kind = hostile_class(Plain)
    target = kind()
    with armed():
        assert value_of(target, "state") == "new"
        assert value_of(target, "absent") is UNSET
        assert value_of(target, "kind") == "default"
