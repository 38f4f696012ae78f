"""The scope that goes along into executors, pools and processes, where the user asks for it.

What belongs here: what is put around the standard library's ways of running something elsewhere, and taken off again.
What does not: the scope itself (context.py), and its way into other programs (propagation.py).

Only the scope goes along: execution, span, bound attributes. Other libraries' context variables stay where they are;
`bind_context` takes them all. Into another process go the ids and, of the bound attributes, plain values.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from streamll.context import CHILD_SCOPE, ROOT, SCOPE, Scope, current
from streamll.monitors.config import read_options
from streamll.monitors.tracing.imports import ImportWatch
from streamll.options import OptionSet, option
from streamll.runtime.fork import tell_after_fork
from streamll.tally import Tally

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

THREADS, PROCESSES = "threads", "processes"

_PLACES = {
    "concurrent.futures.thread": (THREADS, "ThreadPoolExecutor", ("submit",)),
    "concurrent.futures.process": (PROCESSES, "ProcessPoolExecutor", ("submit",)),
    "multiprocessing.pool": (
        PROCESSES,
        "Pool",
        ("apply", "apply_async", "map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered"),
    ),
    "multiprocessing.process": (PROCESSES, "BaseProcess", ("start",)),
}
"""Module by module: what for, in which class, and which methods."""

_SERVERS = frozenset({"concurrent.futures.process", "multiprocessing.pool", "multiprocessing.managers"})
"""Modules whose processes outlive what they are started for: they belong to nobody's span."""

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


class Carried:
    """A function with the scope that it is to run in: picklable where the function is.

    Args:
        function: Any callable.
        scope: Where it runs.
    """

    __slots__ = ("function", "scope")

    def __init__(self, function: Callable[..., Any], scope: Scope) -> None:
        self.function = function
        self.scope = scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function there."""
        token = SCOPE.set(self.scope)
        try:
            return self.function(*args, **kwargs)
        finally:
            SCOPE.reset(token)

    def __reduce__(self) -> tuple[Any, ...]:
        return _carried_on, (self.function, _to_words(self.scope))


def _carried_on(function: Callable[..., Any], words: tuple[Any, ...]) -> Carried:
    return Carried(function, _from_words(words))


class _Entered:
    """What a process that is about to start takes along: it is in its scope once it has unpickled this."""

    __slots__ = ("scope",)

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __reduce__(self) -> tuple[Any, ...]:
        return _enter, (_to_words(self.scope),)


def _enter(words: tuple[Any, ...]) -> None:
    SCOPE.set(_from_words(words))


def _to_words(scope: Scope) -> tuple[Any, ...]:
    plain = {name: value for name, value in scope.attributes.items() if type(value) in _PLAIN}
    return scope.execution_id, scope.span_id, plain, scope.trace_flags, scope.trace_state


def _from_words(words: tuple[Any, ...]) -> Scope:
    execution_id, span_id, attributes, flags, state = words
    return Scope(execution_id, span_id, "", attributes, False, flags, state)


@dataclass(frozen=True)
class PropagatorOptions(OptionSet):
    """Where the scope goes along."""

    owner = "propagator "

    threads: bool = option(True, "Into ThreadPoolExecutor, and so into run_in_executor.")
    processes: bool = option(
        True, "Into ProcessPoolExecutor, and multiprocessing's processes and pools (its pool of threads too)."
    )


@dataclass(frozen=True)
class PropagatorStats:
    """What the scope went along with.

    Attributes:
        calls: Functions that were handed to an executor or a pool from within a span, an execution or a `bind`.
        processes: Processes that were started from there.
        changed: Methods that somebody else has replaced meanwhile, which were not put back; ours does nothing there.
    """

    calls: int = 0
    processes: int = 0
    changed: int = 0


class Propagator:
    """Has the scope go along when something is run elsewhere, with no change to the code; see `propagate`.

    Args:
        config: Options by name, a `PropagatorOptions`, or None for the defaults.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: An option is unknown or its value is not allowed.
    """

    def __init__(self, config: Mapping[str, Any] | PropagatorOptions | None = None, **options: Any) -> None:
        self.options = read_options(PropagatorOptions, config, options)
        self._kinds = {THREADS: self.options.threads, PROCESSES: self.options.processes}
        self._lock = threading.RLock()
        self._watch = ImportWatch(self._wants, self._executed)
        self._put: list[tuple[type, str, Any, Any]] = []
        self._running = False
        self.reset()
        tell_after_fork(self)

    @property
    def running(self) -> bool:
        """Whether the scope goes along."""
        return self._running

    def reset(self) -> None:
        """Forget the figures."""
        self._tally = Tally()

    def start(self) -> Self:
        """Begin; what is not imported yet is seen to when it is."""
        with self._lock:
            if not self._running:
                self._running = True
                self._watch.start()
                for name in _PLACES:
                    self._executed(sys.modules.get(name))
        return self

    def stop(self) -> None:
        """End it, and put the standard library's own methods back."""
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._watch.stop()
            while self._put:
                owner, name, original, replacement = self._put.pop()
                if owner.__dict__.get(name) is replacement:
                    setattr(owner, name, original)
                else:
                    self._tally.add("changed")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stats(self) -> PropagatorStats:
        """Return what the scope went along with."""
        return PropagatorStats(**self._tally.read())

    def report(self) -> dict[str, Any]:
        """Return the same as a dict."""
        return asdict(self.stats())

    def after_fork_in_child(self) -> None:
        """Go on in a child: whoever held the lock is not there."""
        self._lock = threading.RLock()

    def _wants(self, module: str) -> bool:
        place = _PLACES.get(module)
        return place is not None and self._kinds[place[0]]

    def _executed(self, module: ModuleType | None) -> None:
        if module is None or not self._wants(module.__name__):
            return
        _, class_name, methods = _PLACES[module.__name__]
        owner: Any = getattr(module, class_name, None)
        with self._lock:
            for name in methods:
                original = None if owner is None or not self._running else owner.__dict__.get(name)
                if original is not None:
                    replacement = self._start_of(original) if name == "start" else self._call_of(original)
                    setattr(owner, name, replacement)
                    self._put.append((owner, name, original, replacement))

    def _call_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """What hands a function on with its scope."""

        @functools.wraps(method)
        def carrying(*args: Any, **kwargs: Any) -> Any:
            scope = current()
            if self._running and scope is not ROOT:
                if len(args) > 1 and type(args[1]) is not Carried:
                    args = (args[0], Carried(args[1], scope), *args[2:])
                    self._tally.add("calls")
                elif "func" in kwargs and type(kwargs["func"]) is not Carried:
                    kwargs["func"] = Carried(kwargs["func"], scope)
                    self._tally.add("calls")
            return method(*args, **kwargs)

        return carrying

    def _start_of(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """What starts a process in the scope of whoever starts it."""

        @functools.wraps(method)
        def start(process: Any) -> Any:
            scope = current()
            target = getattr(process, "_target", None)
            if not self._running or scope is ROOT or getattr(target, "__module__", None) in _SERVERS:
                return method(process)
            self._tally.add("processes")
            inherited = _from_words(_to_words(scope))
            token = CHILD_SCOPE.set(inherited)  # for one that is forked
            process._streamll_scope = _Entered(inherited)  # for one that unpickles what it is
            try:
                return method(process)
            finally:
                process.__dict__.pop("_streamll_scope", None)
                CHILD_SCOPE.reset(token)

        return start


def propagate(config: Mapping[str, Any] | PropagatorOptions | None = None, **options: Any) -> Propagator:
    """Have the execution, the span and what is bound go along into executors, pools and processes, from now on.

    What is handed to a `ThreadPoolExecutor` (also by `run_in_executor`), a `ProcessPoolExecutor` or a pool, or is the
    work of a `multiprocessing.Process`, then belongs to the span it was handed over in: spans and events in there are its
    children. A process still has to `configure` where its events go. Without this, `bind_context` does it for one
    function.

    Args:
        config: Options by name.
        **options: `threads=False` or `processes=False` leave those out.

    Returns:
        What ends it: its `stop`, or leaving a `with` block of it.

    Example:
        streamll.propagate()
        with streamll.span("request"), ThreadPoolExecutor() as pool:
            pool.map(fetch, urls)
    """
    return Propagator(config, **options).start()
