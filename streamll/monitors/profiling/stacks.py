"""Samples of call stacks, added up: which function, from where, on whose behalf, for how long.

What belongs here: the counting of samples in bounded memory, and the questions that a finished count answers. What does
not: how a stack is looked at (stack_sampler.py), or how the answer is written to a file (formats.py).

All is kept as words and numbers. Code objects are held by a cache only, which is emptied when it is full: a program
that makes new code all the time gets it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, NamedTuple

MAX_DEPTH = 200
"""Frames of a stack that are kept: the innermost."""

CACHED_CODES = 4096
"""Code objects whose function is known without asking for its names."""

_LONGEST_NAME = 200


class Function(NamedTuple):
    """What a frame runs.

    Attributes:
        name: Its qualified name; the plain one on Python 3.10.
        file: Where it is from.
        line: The line it begins at; 0 for what stands for several.
    """

    name: str
    file: str
    line: int


class Owner(NamedTuple):
    """On whose behalf a stack ran; words, empty where there is none.

    Attributes:
        thread: The thread's name.
        task: The asyncio task, by its coroutine's name.
        action: The innermost profiled action.
        operation: The innermost span's operation.
    """

    thread: str
    task: str = ""
    action: str = ""
    operation: str = ""


class Sample(NamedTuple):
    """One stack of one owner, at one line, with all the times it was seen.

    Attributes:
        owner, stack: Places in `Samples.owners` and `Samples.stacks`.
        line: The line that the innermost frame was at.
        times: How often it was seen.
        cpu_ns: Processor time that this stands for, in nanoseconds; 0 when the thread waited.
        wall_ns: Time by the clock, waiting included; 0 where only processor time was sampled.
    """

    owner: int
    stack: int
    line: int
    times: int
    cpu_ns: int
    wall_ns: int


OTHER_FUNCTION = Function("(other functions)", "", 0)
OUTER_FRAMES = Function("(outer frames)", "", 0)
OTHER_OWNER = Owner("(others)")


@dataclass(frozen=True)
class Samples:
    """A finished count.

    Attributes:
        functions: All functions that stacks are made of.
        owners: All owners.
        stacks: Each stack as places in `functions`, the outermost first.
        samples: What was counted.
    """

    functions: Sequence[Function] = ()
    owners: Sequence[Owner] = ()
    stacks: Sequence[tuple[int, ...]] = ()
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class StackStats:
    """How full the count is, and what did not fit into it as it was.

    Attributes:
        functions, owners, stacks, records: What is told apart.
        other_functions: Functions seen that stand under "(other functions)", counted each time.
        other_owners: Samples whose owner was counted as "(others)".
        other_stacks: Samples of which only the innermost function was counted.
        deep: Stacks whose outermost frames were left out.
    """

    functions: int = 0
    owners: int = 0
    stacks: int = 0
    records: int = 0
    other_functions: int = 0
    other_owners: int = 0
    other_stacks: int = 0
    deep: int = 0


@dataclass
class _Record:
    count: int = 0
    cpu_ns: int = 0
    wall_ns: int = 0


class Stacks:
    """Counts samples. One thread at a time may use it.

    Args:
        max_functions, max_owners, max_stacks, max_records: Bounds on what is told apart; a record is a stack of an owner
            at a line. What comes when one is reached is counted under what stands for all the others, with its weight.
        max_depth: Frames of a stack that are kept: the innermost.
    """

    def __init__(
        self,
        *,
        max_functions: int = 20_000,
        max_owners: int = 1_000,
        max_stacks: int = 10_000,
        max_records: int = 20_000,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        self._bounds = max_functions, max_owners, max_stacks, max_records
        self.max_depth = max_depth
        self.clear()

    def clear(self) -> None:
        """Begin from zero."""
        self._functions: dict[Function, int] = {OTHER_FUNCTION: 0, OUTER_FRAMES: 1}
        self._owners: dict[Owner, int] = {OTHER_OWNER: 0}
        self._stacks: dict[tuple[int, ...], int] = {}
        self._records: dict[tuple[int, int, int], _Record] = {}
        self._codes: dict[int, tuple[CodeType, int]] = {}  # by identity: code objects compare by what they do
        self._other_functions = self._other_owners = self._other_stacks = self._deep = 0

    def owner(self, thread: str, task: str = "", action: str = "", operation: str = "") -> int:
        """Return the number of an owner."""
        key = Owner(thread, task, action, operation)
        number = self._owners.get(key)
        if number is None:
            if len(self._owners) > self._bounds[1]:
                self._other_owners += 1
                return 0
            key = Owner(*(word[:_LONGEST_NAME] for word in key))
            number = self._owners.setdefault(key, len(self._owners))
        return number

    def stack(self, codes: Sequence[CodeType], deeper: bool = False) -> int:
        """Return the number of a stack.

        Args:
            codes: What its frames run, the innermost first.
            deeper: Whether there are more frames outside of these.
        """
        if deeper or len(codes) > self.max_depth:
            self._deep += 1
            codes = codes[: self.max_depth]
            deeper = True
        known = self._codes
        places = []
        for code in codes:
            found = known.get(id(code))
            places.append(self._function(code) if found is None else found[1])
        if deeper:
            places.append(1)
        key = tuple(places)
        number = self._stacks.get(key)
        if number is None:
            if len(self._stacks) >= self._bounds[2]:
                self._other_stacks += 1
                # All that can be told: two functions' worth of a stack, which there are few of.
                key = (places[0], 1) if len(places) > 1 else key
                if key not in self._stacks and len(self._stacks) >= 2 * self._bounds[2]:
                    key = (0,)
            number = self._stacks.setdefault(key, len(self._stacks))
        return number

    def _function(self, code: CodeType) -> int:
        name: str = getattr(code, "co_qualname", code.co_name)  # Python 3.11 and later know the qualified name
        function = Function(name[:_LONGEST_NAME], code.co_filename[-_LONGEST_NAME:], code.co_firstlineno)
        place = self._functions.get(function)
        if place is None:
            if len(self._functions) > self._bounds[0] + 1:
                self._other_functions += 1
                return 0
            place = self._functions.setdefault(function, len(self._functions))
        if len(self._codes) >= CACHED_CODES:
            self._codes.clear()
        self._codes[id(code)] = code, place
        return place

    def add(self, owner: int, stack: int, line: int, *, cpu_ns: int, wall_ns: int) -> None:
        """Count a sample.

        Args:
            owner: From `owner`.
            stack: From `stack`.
            line: The line that the innermost frame is at.
            cpu_ns, wall_ns: What it stands for, in nanoseconds.
        """
        key = owner, stack, line
        record = self._records.get(key)
        if record is None:
            if len(self._records) >= self._bounds[3]:
                # One record for each owner: its time stays its own.
                self._other_stacks += 1
                key = owner, self._stacks.setdefault((0,), len(self._stacks)), 0
            record = self._records.setdefault(key, _Record())
        record.count += 1
        record.cpu_ns += cpu_ns
        record.wall_ns += wall_ns

    def read(self) -> Samples:
        """Return what was counted so far."""
        return Samples(
            tuple(self._functions),
            tuple(self._owners),
            tuple(stack[::-1] for stack in self._stacks),
            tuple(Sample(*key, held.count, held.cpu_ns, held.wall_ns) for key, held in self._records.items()),
        )

    def stats(self) -> StackStats:
        """Return how full it is."""
        return StackStats(
            functions=len(self._functions) - 2,
            owners=len(self._owners) - 1,
            stacks=len(self._stacks),
            records=len(self._records),
            other_functions=self._other_functions,
            other_owners=self._other_owners,
            other_stacks=self._other_stacks,
            deep=self._deep,
        )


@dataclass(frozen=True)
class HotSpot:
    """What one function took.

    Attributes:
        function, file, line: Which; the line is the one where it was seen most.
        self_seconds: Time in its own code and in what it calls that is not Python.
        total_seconds: Time in it and all it calls; once, however often it is on a stack.
        self_share, total_share: The same as shares of all that was sampled.
        samples: How often it was the innermost.
    """

    function: str
    file: str
    line: int
    self_seconds: float
    total_seconds: float
    self_share: float
    total_share: float
    samples: int


@dataclass
class _Spent:
    own: int = 0
    total: int = 0
    count: int = 0
    lines: dict[int, int] = field(default_factory=dict)


Weight = Callable[[Sample], int]


def weight_of(mode: str) -> Weight:
    """What a sample weighs, in nanoseconds: processor time for "cpu", time by the clock for "wall"."""
    return _cpu_ns if mode == "cpu" else _wall_ns


def _cpu_ns(sample: Sample) -> int:
    return sample.cpu_ns


def _wall_ns(sample: Sample) -> int:
    return sample.wall_ns


def hot_spots(samples: Samples, mode: str = "cpu", limit: int | None = None) -> list[HotSpot]:
    """Return the functions by what they took themselves, the most first.

    Args:
        samples: What was counted.
        mode: "cpu" or "wall".
        limit: How many to return; all when None.
    """
    weigh = weight_of(mode)
    spent: dict[int, _Spent] = {}
    whole = 0
    for sample in samples.samples:
        weight = weigh(sample)
        if not weight:
            continue
        whole += weight
        stack = samples.stacks[sample.stack]
        for place in set(stack):
            spent.setdefault(place, _Spent()).total += weight
        innermost = spent[stack[-1]]
        innermost.own += weight
        innermost.count += sample.times
        innermost.lines[sample.line] = innermost.lines.get(sample.line, 0) + weight
    ranked = sorted(spent.items(), key=lambda each: (-each[1].own, -each[1].total, each[0]))
    found = []
    for place, held in ranked[:limit]:
        function = samples.functions[place]
        line = max(held.lines, key=held.lines.__getitem__) if held.lines else function.line
        shares = held.own / whole, held.total / whole
        found.append(HotSpot(function.name, function.file, line, held.own / 1e9, held.total / 1e9, *shares, held.count))
    return found


def by_owner(samples: Samples, mode: str = "cpu", limit: int | None = None) -> list[dict[str, Any]]:
    """Return what each owner took: its words, "seconds", "share" and "samples"; the most first.

    Args:
        samples, mode, limit: As for `hot_spots`.
    """
    weigh = weight_of(mode)
    weights: dict[int, list[int]] = {}
    for sample in samples.samples:
        held = weights.setdefault(sample.owner, [0, 0])
        held[0] += weigh(sample)
        held[1] += sample.times
    whole = sum(held[0] for held in weights.values()) or 1
    ranked = sorted(weights.items(), key=lambda each: (-each[1][0], each[0]))
    return [
        {**samples.owners[owner]._asdict(), "seconds": ns / 1e9, "share": ns / whole, "samples": count}
        for owner, (ns, count) in ranked[:limit]
    ]


def total_seconds(samples: Samples, mode: str = "cpu") -> float:
    """Return what all samples together stand for."""
    return sum(map(weight_of(mode), samples.samples)) / 1e9
