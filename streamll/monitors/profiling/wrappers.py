"""The decorator's wrappers: a profiled callable is in all else what it was.

What belongs here: wrapping each kind of callable, and the runs of those that stop in the middle. What does not: what is
counted (profiled.py).

A coroutine's time by the clock is that from its first step to its end; a generator's that of its steps alone, since
what passes between them is its consumer's.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Generator
from time import perf_counter_ns, thread_time_ns
from typing import Any

from streamll.monitors.profiling.frame_owners import marked
from streamll.monitors.profiling.profiled import FOLD_AT, Action, Recorder, is_error


def wrap(target: Any, name: str, recorder: Recorder) -> Any:
    """Return what is to stand in a callable's place, so that its calls are counted.

    Args:
        target: A function, coroutine function, generator function, method, class or static method, property, or another
            callable object.
        name: The action's name; the callable's module and qualified name when empty.
        recorder: Where its calls are counted.

    Raises:
        TypeError: When it is a class, or nothing that can be called.
    """
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(wrap(target.__func__, name, recorder))
    if isinstance(target, property):
        get, put, delete = (each and wrap(each, name, recorder) for each in (target.fget, target.fset, target.fdel))
        return property(get, put, delete, target.__doc__)
    if isinstance(target, functools.cached_property):
        return functools.cached_property(wrap(target.func, name, recorder))
    if isinstance(target, type) or not callable(target):
        kind = f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"
        raise TypeError(f"profile decorates functions, methods and properties, not {kind}")
    named: Any = target
    while isinstance(named, functools.partial):
        named = named.func
    body = named
    if not hasattr(named, "__qualname__"):  # an object with a `__call__`
        named = type(named)
        body = named.__call__
    if not name:
        module = getattr(named, "__module__", None)
        name = f"{module}.{named.__qualname__}" if isinstance(module, str) else named.__qualname__
    action = recorder.action(name)
    if inspect.iscoroutinefunction(body):
        kind, wrapper = "coroutine", _around_coroutine(target, action)
    elif inspect.isasyncgenfunction(body):
        kind, wrapper = "async generator", _around_async_generator(target, action)
    elif inspect.isgeneratorfunction(body):
        kind, wrapper = "generator", _around_generator(target, action)
        if body.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
            wrapper = types.coroutine(wrapper)
            kind = "awaited generator"
    else:
        kind, wrapper = "function", _around_function(target, action)
    wrapper.__code__ = action.code_of(kind, wrapper.__code__)
    return functools.update_wrapper(wrapper, target)


def _around_function(function: Callable[..., Any], action: Action) -> Any:
    recorder = action.recorder

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.on:
            return function(*args, **kwargs)
        try:
            cell = action.local.cell
        except AttributeError:
            cell = action.cell()
        notes = action.notes
        state = cell.state
        outer = state.inner
        depth = cell.depth
        closer = not len(notes) & recorder.mask
        cpu = thread_time_ns() if closer and recorder.cpu else -1
        failed = False
        began = perf_counter_ns()
        try:
            state.inner = 0
            cell.depth = depth + 1
            if not depth:
                cell.since = began
            return function(*args, **kwargs)
        except BaseException as error:
            failed = is_error(error)
            raise
        finally:
            took = perf_counter_ns() - began
            inner = state.inner
            state.inner = None if outer is None else outer + took
            cell.depth = depth
            if inner or depth or failed or closer:
                used = thread_time_ns() - cpu if cpu >= 0 else -1
                notes.append((took, max(0, took - (inner or 0)), depth > 0, used, failed))
                if len(notes) >= FOLD_AT:
                    recorder.fold(action)
            else:
                notes.append(took)

    return wrapper


class _Run:
    """One run of a coroutine or generator, step by step.

    Attributes:
        wall: Nanoseconds by the clock so far, where that is not from the first step to the last.
    """

    __slots__ = (
        "_action",
        "_around",
        "_awaited",
        "_began",
        "_cell",
        "_cpu",
        "_cpu_began",
        "_inner",
        "_nested",
        "_notes",
        "_outer",
        "_parent",
        "_running",
        "_step_began",
        "wall",
    )

    def __init__(self, action: Action) -> None:
        recorder = action.recorder
        self._action = action
        self._notes = action.notes
        self.wall = -1
        self._running = self._inner = self._awaited = 0
        self._cpu = 0 if recorder.cpu and not len(action.notes) & recorder.mask else -1
        cell = action.cell()
        self._nested = cell.depth > 0
        self._parent = cell.state.run
        self._began = action.runs[id(self)] = perf_counter_ns()

    def resume(self) -> None:
        """Before a step."""
        self._cell = cell = self._action.cell()
        state = cell.state
        self._outer, state.inner = state.inner, 0
        self._around, state.run = state.run, self
        cell.depth += 1
        self._action.runs.pop(id(self), None)
        if cell.depth == 1:
            cell.since = self._began
        if self._cpu >= 0:
            self._cpu_began = thread_time_ns()
        self._step_began = perf_counter_ns()

    def suspend(self) -> None:
        """After a step, in the same thread."""
        took = perf_counter_ns() - self._step_began
        if self._cpu >= 0:
            self._cpu += thread_time_ns() - self._cpu_began
        cell = self._cell
        state = cell.state
        self._running += took
        self._inner += state.inner or 0
        state.inner = None if self._outer is None else self._outer + took
        state.run, self._around = self._around, None
        cell.depth -= 1
        if self._notes is self._action.notes:  # else it was begun before all was forgotten
            self._action.runs[id(self)] = self._began

    def end(self, error: BaseException | None) -> None:
        """After the last step."""
        action = self._action
        action.runs.pop(id(self), None)
        wall = perf_counter_ns() - self._began if self.wall < 0 else self.wall
        waited = max(0, wall - self._running)
        parent, self._parent = self._parent, None
        if parent is not None and action.cell().state.run is parent:
            parent._awaited += waited  # it waited for this one, and not in its own code
        own = max(0, self._running - self._inner) + max(0, waited - self._awaited)
        failed = error is not None and is_error(error)
        self._notes.append((wall, own, self._nested, self._cpu, failed))
        if len(self._notes) >= FOLD_AT:
            action.recorder.fold(action)


@types.coroutine
def _drive(steps: Any, run: _Run) -> Generator[Any, Any, Any]:
    """Await a coroutine, or a step of an asynchronous generator, each of its own steps as one of the run's."""
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        run.resume()
        try:
            awaited = steps.send(sent) if thrown is None else steps.throw(thrown)
        except StopIteration as stop:
            return stop.value
        finally:
            sent = thrown = None  # an error that leaves here would hold this frame, and this frame the error
            run.suspend()
        try:
            sent = yield awaited
        except BaseException as error:
            thrown = error


marked[id(_drive.__code__)] = _drive.__code__, ""  # no part of the program


def _around_coroutine(function: Callable[..., Any], action: Action) -> Any:
    recorder = action.recorder

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.on:
            return await function(*args, **kwargs)
        run = _Run(action)
        ended_by: BaseException | None = None
        try:
            return await _drive(function(*args, **kwargs), run)
        except BaseException as error:
            ended_by = error
            raise
        finally:
            run.end(ended_by)
            ended_by = None

    return wrapper


def _around_generator(function: Callable[..., Any], action: Action) -> Any:
    recorder = action.recorder

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        if not recorder.on:
            return (yield from generator)
        run = _Run(action)
        sent: Any = None
        thrown: BaseException | None = None
        ended_by: BaseException | None = None
        try:
            while True:
                run.resume()
                try:
                    item = [generator.send(sent) if thrown is None else generator.throw(thrown)]
                except StopIteration as stop:
                    return stop.value
                finally:
                    sent = thrown = None
                    run.suspend()
                    run.wall = run._running
                try:
                    sent = yield item.pop()  # so that it is the consumer's alone
                except BaseException as error:
                    thrown = error
        except BaseException as error:
            ended_by = error
            raise
        finally:
            run.end(ended_by)
            ended_by = None

    return wrapper


def _around_async_generator(function: Callable[..., Any], action: Action) -> Any:
    recorder = action.recorder

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        run = _Run(action) if recorder.on else None
        sent: Any = None
        thrown: BaseException | None = None
        ended_by: BaseException | None = None
        try:
            while True:
                began = perf_counter_ns()
                step = generator.asend(sent) if thrown is None else generator.athrow(thrown)
                try:
                    item = [await (step if run is None else _drive(step, run))]
                except StopAsyncIteration:
                    return
                finally:
                    sent = thrown = step = None
                    if run is not None:
                        run.wall = max(0, run.wall) + perf_counter_ns() - began
                try:
                    sent = yield item.pop()
                except BaseException as error:
                    thrown = error
        except BaseException as error:
            ended_by = error
            raise
        finally:
            if run is not None:
                run.end(ended_by)
            ended_by = None

    return wrapper
