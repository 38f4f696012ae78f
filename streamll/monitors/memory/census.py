"""Which objects there are, by type: a census of what the garbage collector tracks, and what came between two of them.

What belongs here: counting, without keeping the program waiting for long. What does not: when it is worth it
(memory_profiler.py).

`gc.get_objects` cannot be had in parts: it keeps the program waiting for 10 to 100 ns for each object. All the rest is
done in slices, between which other threads have their turn. No code of the program is called: objects are told apart by
the identity of their types, and sizes are asked of exact built-in containers alone. What the program drops meanwhile
ends when the slice that it is in ends, on the thread that counts.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress, repeat
from operator import is_
from sys import getsizeof
from time import perf_counter_ns, time_ns
from typing import NamedTuple

SLICE = 10_000
"""Objects counted at once, which takes about 2 ms."""

KEPT = 1000
"""Types of which a census keeps the numbers: those with the most objects."""

NS_EACH = 100.0
"""What `gc.get_objects` takes for each object where it is slow, since its memory is in no cache."""

CONTAINERS = (list, dict, tuple, set, frozenset)
"""Whose sizes are asked for: without what is in them."""

_qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_module_of: Callable[[type], object] = type.__dict__["__module__"].__get__


class TypeCount(NamedTuple):
    """How many objects of a type there are.

    Attributes:
        name: The type's, with its module unless that is builtins.
        objects: How many.
        size: Bytes of all of them, without what they refer to; None where only code of the type's own could tell.
    """

    name: str
    objects: int
    size: int | None = None


@dataclass(frozen=True)
class Census:
    """What there was at one moment.

    Attributes:
        timestamp: When, in nanoseconds since the epoch.
        objects: All that the garbage collector tracks: containers and instances, not numbers and text.
        types: The KEPT types with the most objects, those first.
        stall_ns: How long the program had to wait at once, at most.
    """

    timestamp: int
    objects: int
    types: tuple[TypeCount, ...]
    stall_ns: int

    def growth(self, before: Census) -> list[TypeCount]:
        """What there is more of than before: the types that grew most first, by objects."""
        known = {each.name: each for each in before.types}
        grown = []
        for each in self.types:
            then = known.get(each.name, TypeCount(each.name, 0, 0))
            if each.objects > then.objects:
                size = None if each.size is None else each.size - (then.size or 0)
                grown.append(TypeCount(each.name, each.objects - then.objects, size))
        return sorted(grown, key=lambda each: -each.objects)


def name_of(kind: type) -> str:
    """A type's name as people know it, without asking a metaclass of its own."""
    module = _module_of(kind)
    return f"{module}.{_qualname_of(kind)}" if isinstance(module, str) and module != "builtins" else _qualname_of(kind)


def take_census() -> Census:
    """Count all objects that the garbage collector tracks."""
    timestamp, began = time_ns(), perf_counter_ns()
    objects = gc.get_objects()
    stall = perf_counter_ns() - began
    count = len(objects)
    counts: Counter[int] = Counter()
    kinds: dict[int, type] = {}
    sizes = dict.fromkeys(map(id, CONTAINERS), 0)
    while objects:
        began = perf_counter_ns()
        _count(objects[-SLICE:], counts, kinds, sizes)
        del objects[-SLICE:]
        stall = max(stall, perf_counter_ns() - began)
    return Census(timestamp, count, _named(counts, kinds, sizes), stall)


def _count(objects: list[object], counts: Counter[int], kinds: dict[int, type], sizes: dict[int, int]) -> None:
    """Add a slice's objects up by their types' identities; each line is one loop in C."""
    types = list(map(type, objects))
    identities = list(map(id, types))
    counts.update(identities)
    kinds.update(zip(identities, types, strict=True))
    for kind in CONTAINERS:
        sizes[id(kind)] += sum(map(getsizeof, compress(objects, map(is_, types, repeat(kind)))))


def _named(counts: Counter[int], kinds: dict[int, type], sizes: dict[int, int]) -> tuple[TypeCount, ...]:
    by_name: dict[str, TypeCount] = {}
    counts.pop(id(TypeCount), None)  # those of the last census
    for identity, count in counts.items():
        name, size = name_of(kinds[identity]), sizes.get(identity)
        same = by_name.get(name)  # classes that a function makes all have one name
        by_name[name] = TypeCount(name, count, size) if same is None else same._replace(objects=same.objects + count)
    return tuple(sorted(by_name.values(), key=lambda each: (-each.objects, each.name))[:KEPT])
