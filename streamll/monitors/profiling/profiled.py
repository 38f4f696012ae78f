"""What profiled calls take: the counting of them, exact from any number of threads and tasks, for a microsecond each.

What belongs here: actions, what is counted of each call, and the block that is one call. What does not: the decorator
(wrappers.py), and what is made of the numbers (action_profiler.py).

A call that ends leaves a note of what it took, in one step that no other thread, signal handler or finaliser can come
between; so none is lost. Whoever comes upon enough notes folds them into the totals.

What a call spent in profiled calls inside it is known from its thread: each call, and each step of a coroutine or
generator, runs from beginning to end there, and leaves its time to the one around it (`ThreadState.inner`).
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass, replace
from time import perf_counter_ns, thread_time_ns
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from streamll.hub import hub
from streamll.monitors.budget import PROFILER, budget
from streamll.monitors.profiling.frame_owners import marked
from streamll.sketch import QuantileSketch
from streamll.spans import FRAMES_BOUND

if TYPE_CHECKING:
    from typing_extensions import Self

FOLD_AT = 64
"""Notes that are folded at once: it takes some tens of microseconds."""

CPU_EVERY = 16
"""Of so many calls, the processor time of one is measured, unless of all or none: a power of two."""

_PATIENCE = 1.0
"""Seconds that a reader waits for whoever folds; who may be in a signal handler, which waits for this reader."""

OTHER = "(other actions)"
_LONGEST_NAME = 200
_GENERATOR = 0x20 | 0x80 | 0x200
"""Flags of code that may be left before its end: generators, coroutines, asynchronous generators."""

_ENTERING = frozenset({"__enter__", "__aenter__", "enter_context", "enter_async_context"})
"""Functions that enter a block for somebody else, such as `contextlib.ExitStack`'s, and are gone before it is left."""

Note = int | tuple[int, int | None, bool, int, bool]
"""What a call took, in nanoseconds; or with more to say: by the clock; in its own code, None where that is not known;
whether it ran inside another call of the same action; processor time, -1 where it was not measured; whether it failed."""


class ThreadState:
    """What goes on in one thread.

    Attributes:
        inner: Nanoseconds that profiled calls inside the innermost open one took; None while none is open.
        run: The innermost open coroutine or generator.
    """

    __slots__ = ("inner", "run")

    def __init__(self) -> None:
        self.inner: int | None = None
        self.run: Any = None


class Cell:
    """One action in one thread.

    Attributes:
        state: What goes on in the thread.
        depth: Calls of the action that are under way in it.
        since: When the outermost of them began, by `perf_counter_ns`.
    """

    __slots__ = ("__weakref__", "depth", "since", "state")

    def __init__(self, state: ThreadState) -> None:
        self.state = state
        self.depth = 0
        self.since = 0


@dataclass
class Totals:
    """What all calls of an action took.

    Attributes:
        calls, errors: How many, and how many ended with an error.
        wall_ns: By the clock; a call inside another one of the same action is not counted twice.
        own_ns: Without what profiled calls inside took.
        own_unknown: Calls of which that cannot be told.
        cpu_ns, cpu_wall_ns, cpu_calls: Processor time, time by the clock and number of the calls it was measured of.
    """

    calls: int = 0
    errors: int = 0
    wall_ns: int = 0
    own_ns: int = 0
    own_unknown: int = 0
    cpu_ns: int = 0
    cpu_wall_ns: int = 0
    cpu_calls: int = 0


class Spread(NamedTuple):
    """How long calls took, in seconds: all together, the shortest, the longest, and quantiles; None without calls."""

    total: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Action:
    """Something that is profiled under one name: a function, or a block.

    Attributes:
        operation: The name.
        recorder: What it belongs to.
        local: Its cell in the present thread, as `cell`, once there is one.
        notes: Calls that have ended and are not in the totals yet.
        runs: When each coroutine and generator that is not finished began, by its identity.
        totals, sketch: All other calls; the sketch has seconds. `Recorder.read` reads them.
        codes: The code objects of its wrappers, by kind.
    """

    __slots__ = ("_folding", "cells", "codes", "local", "notes", "operation", "recorder", "runs", "sketch", "totals")

    def __init__(self, operation: str, recorder: Recorder) -> None:
        self.operation = operation
        self.recorder = recorder
        self.codes: dict[str, CodeType] = {}
        self.clear()

    def clear(self) -> None:
        """Begin from zero; calls that are under way will not be counted."""
        self.local = threading.local()
        self.cells: list[weakref.ref[Cell]] = []
        self.notes: deque[Note] = deque()
        self.runs: dict[int, int] = {}
        self.totals = Totals()
        self.sketch = QuantileSketch()
        self._folding = False

    def cell(self) -> Cell:
        """Return the present thread's cell."""
        local = self.local
        try:
            found: Cell = local.cell
        except AttributeError:
            found = local.cell = Cell(self.recorder.state())
            self.cells = [*(cell for cell in self.cells if cell() is not None), weakref.ref(found)]
        return found

    def code_of(self, kind: str, code: CodeType, shown_as: str | None = None) -> CodeType:
        """Return a copy of a wrapper's code that is this action's own, by which samples of its frames are known."""
        found = self.codes.get(kind)
        if found is None:
            found = self.codes[kind] = code.replace()
            marked[id(found)] = found, self.operation if shown_as is None else shown_as
        return found

    def active(self, now: int) -> tuple[int, int]:
        """Return how many calls are under way, and for how many nanoseconds the longest of them."""
        cells = [cell for reference in self.cells if (cell := reference()) is not None and cell.depth]
        began = [cell.since for cell in cells] + list(self.runs.values())
        return sum(cell.depth for cell in cells) + len(self.runs), max((now - since for since in began), default=0)

    def fold(self) -> None:
        """Put what notes there are into the totals; by one thread at a time, and once at a time."""
        if self._folding:
            return  # a signal handler or a finaliser has come between
        self._folding = True
        try:
            self._fold()
        finally:
            self._folding = False

    def _fold(self) -> None:
        totals, sketch, notes = self.totals, self.sketch, self.notes
        count = len(notes)
        for _ in range(count):
            note = notes.popleft()
            if type(note) is int:
                totals.calls += 1
                totals.wall_ns += note
                totals.own_ns += note
                sketch.add(note / 1e9)
                continue
            wall, own, nested, cpu, failed = note  # type: ignore[misc]  # it is no int
            totals.calls += 1
            totals.errors += failed
            sketch.add(wall / 1e9)
            if own is None:
                totals.own_unknown += 1
            else:
                totals.own_ns += own
            if not nested:
                totals.wall_ns += wall
                if cpu >= 0:
                    totals.cpu_ns += cpu
                    totals.cpu_wall_ns += wall
                    totals.cpu_calls += 1
        budget.costs.charge(PROFILER, count * self.recorder.cost_ns)


class Recorder:
    """All actions of one profiler.

    Args:
        cpu: Of which calls processor time is measured: "all", "sampled" or "off".
        max_actions: Names that are told apart; the calls of all others are counted as one.

    Attributes:
        on: Whether calls are counted.
        mask: Where the number of notes, masked, is 0, there is a closer look at the call: processor time, and whether to fold.
        cpu: Whether processor time is measured in a closer look.
        cost_ns: What counting one call takes, as measured.
        others: Names that were not told apart.
    """

    def __init__(self, cpu: str = "sampled", max_actions: int = 1000) -> None:
        self.on = False
        self.cost_ns = 0
        self.others = 0
        self.set(cpu, max_actions)
        self._actions: dict[str, Action] = {}
        self.become_new()

    def set(self, cpu: str, max_actions: int) -> None:
        """Change what is asked of it: the arguments are those that it was made with."""
        self.mask = 0 if cpu == "all" else CPU_EVERY - 1
        self.cpu = cpu != "off"
        self._max_actions = max_actions

    def become_new(self) -> None:
        """Begin from zero, also in a forked child: nobody holds the lock, and no call is under way."""
        self._reading = threading.RLock()
        self._local = threading.local()
        for action in self.actions():
            action.clear()

    def __del__(self) -> None:
        for action in self._actions.values():
            for code in action.codes.values():
                marked.pop(id(code), None)

    def state(self) -> ThreadState:
        """Return what goes on in the present thread."""
        try:
            found: ThreadState = self._local.state
        except AttributeError:
            found = self._local.state = ThreadState()
        return found

    def action(self, name: str) -> Action:
        """Return the action of a name."""
        found = self._actions.get(name)
        if found is None:
            if len(self._actions) >= self._max_actions:
                self.others += 1
                name = OTHER
            name = name[:_LONGEST_NAME]
            found = self._actions.setdefault(name, Action(name, self))
        return found

    def actions(self) -> list[Action]:
        """Return all actions."""
        return list(self._actions.values())

    def fold(self, action: Action) -> None:
        """Fold an action's notes, unless somebody is at it, who may be in this thread."""
        reading = self._reading
        if reading.acquire(blocking=False):
            try:
                action.fold()
            finally:
                reading.release()

    def read(self, action: Action) -> tuple[Totals, Spread]:
        """Return what all calls of an action took."""
        reading = self._reading
        held = reading.acquire(timeout=_PATIENCE)
        totals, sketch = action.totals, action.sketch
        try:
            if held:
                action.fold()
            totals = replace(totals)
            p50, p95, p99 = sketch.quantiles((0.5, 0.95, 0.99))
            return totals, Spread(sketch.total, sketch.minimum, sketch.maximum, p50, p95, p99)
        except RuntimeError:  # without the lock: it changed meanwhile
            return totals, Spread()
        finally:
            if held:
                reading.release()


def is_error(error: BaseException) -> bool:
    """Whether what ended a call is an error: not a cancelled task, nor a generator that is not wanted any more."""
    return not isinstance(error, GeneratorExit) and type(error).__name__ not in ("CancelledError", "Cancelled")


class ProfiledBlock:
    """`with profiler.profile_action(name):`, or `async with`: one call of an action.

    It may be entered again once it was left. In a coroutine or generator, which may be left in the middle, how much of
    it passed in profiled calls inside cannot be told: its own time is not known there.

    Attributes:
        operation: The action's name.
        code: What the frame runs that it is entered in; None while it is not.
    """

    __slots__ = ("_action", "_around", "_began", "_cell", "_cpu", "_inner", "_key", "_within", "code")

    def __init__(self, action: Action) -> None:
        self._action = action
        self._cell: Cell | None = None
        self.code: CodeType | None = None
        self._key = self._began = 0

    @property
    def operation(self) -> str:
        """The action's name."""
        return self._action.operation

    def __enter__(self) -> Self:
        if self._action.recorder.on and self._cell is None:
            self._enter(sys._getframe(1))
        return self

    def _enter(self, frame: FrameType) -> None:
        """Begin a call in the frame of whoever enters, or of whom he does it for."""
        action = self._action
        while frame.f_code.co_name in _ENTERING and frame.f_back is not None:
            frame = frame.f_back
        self.code = frame.f_code
        if hub.frames is not None and len(hub.frames) < FRAMES_BOUND:
            self._key = key = id(frame)
            self._around = hub.frames.get(key)
            hub.frames[key] = self
        self._within = bool(frame.f_code.co_flags & _GENERATOR)
        self._cell = cell = action.cell()
        self._inner = cell.state.inner
        if self._within:
            action.runs[id(self)] = perf_counter_ns()
        else:
            cell.state.inner = 0
            cell.depth += 1
            if cell.depth == 1:
                cell.since = perf_counter_ns()
        recorder = action.recorder
        measured = recorder.cpu and not self._within and not len(action.notes) & recorder.mask
        self._cpu = thread_time_ns() if measured else -1
        self._began = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        wall = perf_counter_ns() - self._began
        cell, self._cell = self._cell, None
        if cell is None:
            return
        self.code = None
        cpu = thread_time_ns() - self._cpu if self._cpu >= 0 else -1
        own: int | None = None
        nested = False
        if self._within:
            self._action.runs.pop(id(self), None)
            if self._inner is None:
                own = wall  # of a coroutine that is not profiled: whatever is inside, the time is this action's
        else:
            state = cell.state
            own = max(0, wall - (state.inner or 0))
            state.inner = None if self._inner is None else self._inner + wall
            cell.depth -= 1
            nested = cell.depth > 0
        if self._key:
            self._leave_frame()
        failed = error is not None and is_error(error)
        self._action.notes.append((wall, own, nested, cpu, failed))
        if len(self._action.notes) >= FOLD_AT:
            self._action.recorder.fold(self._action)

    async def __aenter__(self) -> Self:
        if self._action.recorder.on and self._cell is None:
            self._enter(sys._getframe(1))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _leave_frame(self) -> None:
        key, self._key = self._key, 0
        around, self._around = self._around, None
        frames = hub.frames
        if frames is not None and frames.get(key) is self:
            if around is None:
                frames.pop(key, None)
            else:
                frames[key] = around
