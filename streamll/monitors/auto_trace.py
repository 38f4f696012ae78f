"""Automatic tracing: spans for the functions that patterns name, with no change to the code.

What belongs here: the tool that users start and stop: which functions it traces, with which engine, and what it tells
of that. What does not: reading patterns (tracing/patterns.py), finding functions (tracing/places.py) and modules
(tracing/imports.py), the engines (tracing/monitoring.py, tracing/wrapping.py), and the bound on how often
(tracing/rate.py).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from time import monotonic
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from streamll.errors import ConfigurationError
from streamll.models import DEBUG, NORMAL, PRIORITIES
from streamll.monitors.agent import agent
from streamll.monitors.budget import TRACER, budget
from streamll.monitors.config import read_options
from streamll.monitors.outlet import send
from streamll.monitors.tracing.imports import ImportWatch
from streamll.monitors.tracing.monitoring import Monitoring
from streamll.monitors.tracing.patterns import Patterns
from streamll.monitors.tracing.places import Place, innermost, names_in, places
from streamll.monitors.tracing.rate import Rate
from streamll.monitors.tracing.wrapping import Wrapping
from streamll.options import OptionSet, option
from streamll.runtime.fork import tell_after_fork

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

log = logging.getLogger("streamll")

MONITORING, WRAPPING = "monitoring", "wrapping"
ENGINES = ("auto", MONITORING, WRAPPING)

TICK = 1.0
"""Seconds to which `max_rate` applies."""

FIRST_LOOK = 0.02
"""Seconds until `__main__` is looked at again, whose functions come about without an import; then twice as long each time,
until it is TICK."""

CODES_PER_FUNCTION = 4
"""How many codes there may be on average for each function that may be traced: each reload of a module makes new ones."""

REPORTED = 50
"""Functions that `report` lists: those with most calls."""

_GENERATORS = 0x20 | 0x200
"""The flags of the code of a generator and of an asynchronous one (`inspect.CO_GENERATOR`, `CO_ASYNC_GENERATOR`)."""

_NEW_LOCALS = 0x2
"""The flag of the code of a function, which that of a class has not (`inspect.CO_NEWLOCALS`)."""


@dataclass(frozen=True)
class AutoTracerOptions(OptionSet):
    """What automatic tracing can be told."""

    owner = "auto tracer "

    patterns: str = option(
        "",
        "Which functions, separated by commas (or as a list): pkg.*, pkg.mod:Class.method; !pkg.internal.* leaves out.",
    )
    max_functions: int = option(2000, "Functions that are traced, at most.", at_least=1, at_most=100_000)
    max_rate: int = option(
        1000,
        "Calls of one function that are traced in a second, at most; beyond, it is left alone for a second, and longer each "
        "time. Divided by 2, 4, ... 16 while monitoring costs more than it may.",
        at_least=1,
        at_most=1_000_000,
    )
    priority: str = option(
        NORMAL,
        "The spans' priority; with debug, there are none while the budget has no room for them.",
        choices=PRIORITIES,
    )
    engine: str = option(
        "auto",
        "How: by sys.monitoring (Python 3.12 and later), by wrapping, or the first of them that can be had.",
        choices=ENGINES,
    )


@dataclass(frozen=True)
class AutoTracerStats:
    """What automatic tracing does.

    Attributes:
        engine: "monitoring" or "wrapping"; empty before the first start.
        functions: Functions that are traced.
        beyond: Functions that are not, for want of room: see `max_functions`.
        modules: Modules that were looked through.
        calls: Calls that were traced.
        paused: Functions that are left alone at present, since they were called too often.
        pauses: How often that began.
        unfinished: Calls whose span was ended before they were: at a stop, or in a pause.
        changed: Functions that somebody else has replaced meanwhile, which were not put back.
        errors: Functions that could not be traced, which is a defect: report it.
    """

    engine: str = ""
    functions: int = 0
    beyond: int = 0
    modules: int = 0
    calls: int = 0
    paused: int = 0
    pauses: int = 0
    unfinished: int = 0
    changed: int = 0
    errors: int = 0


class AutoTracer:
    """Makes a span of each call of the functions that patterns name: those that are there, and those imported later.

    The spans are those that `streamll.trace` would make. It finds what stands in modules and in classes, not functions
    within functions; special methods only when a pattern spells them. It never traces streamll itself.

    On Python 3.12 and later functions are not touched (but generators are wrapped). Before, they are replaced by wrappers
    in their modules and classes, and put back at the end: a copy taken before by `from pkg import f` has no span.

    Args:
        config: Options by name, an `AutoTracerOptions`, or the patterns alone: a string, or a list of them.
        **options: Options by keyword, which win.

    Raises:
        ConfigurationError: An option is unknown or cannot be understood, or no pattern says what is wanted.

    Example:
        with streamll.AutoTracer(patterns=["shop.*", "!shop.cache.*"]):
            shop.run()
    """

    def __init__(
        self, config: Mapping[str, Any] | AutoTracerOptions | Iterable[str] | None = None, **options: Any
    ) -> None:
        if isinstance(config, (str, list, tuple)):
            config = {"patterns": config}
        if isinstance(config, Mapping):
            config = {**config, "patterns": _joined(config.get("patterns", ""))}
        if "patterns" in options:
            options["patterns"] = _joined(options["patterns"])
        self.options = read_options(AutoTracerOptions, config, options)  # type: ignore[arg-type]  # or refused there
        self._patterns = Patterns(self.options.patterns.split(","))
        self._watch = ImportWatch(self._patterns.may_want, self._executed)
        self._lock = threading.RLock()
        self._monitoring: Monitoring | None = None
        self._wrapping: Wrapping | None = None
        self._running = False
        self._engine = ""
        self.reset()
        tell_after_fork(self)

    @property
    def tool(self) -> str:
        """Whom its turns are charged to."""
        return TRACER

    @property
    def running(self) -> bool:
        """Whether it traces."""
        return self._running

    def reset(self) -> None:
        """Forget the figures."""
        with self._lock:
            self._rates: dict[tuple[str, str], Rate] = {} if not self._running else self._rates
            for rate in self._rates.values():
                rate.calls = rate.pauses = 0
            self._beyond = self._unfinished = self._changed = self._errors = 0
            self._modules: set[str] = set()
            self._told: set[tuple[str, str]] = set()

    def start(self) -> Self:
        """Trace what there is, and what is imported from now on.

        Raises:
            ConfigurationError: The engine that was chosen cannot be had: Python is older than 3.12, or other tools have
                the ids of `sys.monitoring` that there are.
        """
        with self._lock:
            if self._running:
                return self
            monitoring = Monitoring(self.options.priority) if self.options.engine != WRAPPING else None
            if monitoring is not None and not monitoring.start():
                if self.options.engine == MONITORING:
                    raise ConfigurationError(
                        "auto tracer option engine='monitoring': needs Python 3.12, and a tool id that is free"
                    )
                if sys.version_info >= (3, 12):
                    log.warning("automatic tracing wraps functions: other tools have the tool ids of sys.monitoring")
                monitoring = None
            self._monitoring = monitoring
            self._wrapping = Wrapping(self.options.priority)
            self._engine = WRAPPING if monitoring is None else MONITORING
            self._rates = {}
            self._second = 0.0
            self._pace = FIRST_LOOK if self._patterns.may_want("__main__") else TICK
            self._running = True
            self._watch.start()
            for module in list(sys.modules.values()):
                self.look_at(module)
        agent.add(self, monotonic() + self._pace)
        return self

    def stop(self) -> None:
        """End it, and put everything back. Spans of calls that are under way may end now, as `unfinished`."""
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._watch.stop()
            if self._wrapping is not None:
                self._changed += self._wrapping.stop()
            if self._monitoring is not None:
                self._monitoring.stop()
                self._unfinished += self._monitoring.unfinished
        agent.remove(self)
        if self._running:
            agent.add(self)  # another thread has started it meanwhile

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def look_at(self, module: object) -> None:
        """Trace what is wanted in a module; for one that came about otherwise than by an import.

        Functions that were put into a module later are found too, and a second look at the others changes nothing.
        """
        if not issubclass(type(module), ModuleType):
            return
        name = names_in(module).get("__name__")  # type: ignore[arg-type]  # as was just looked up
        if type(name) is not str or not self._patterns.may_want(name):
            return
        with self._lock:
            if not self._running:
                return
            self._modules.add(name)
            for place in places(module):  # type: ignore[arg-type]  # as above
                try:
                    self._trace(name, place)
                except Exception:  # whatever it is, the program goes on without this function's spans
                    self._errors += 1

    def expect(self, code: CodeType, module: str = "__main__") -> None:
        """Trace what a module's code is going to define; for a program that is about to be run. From Python 3.12 on.

        Args:
            code: The module's code.
            module: The name that the module will have.
        """
        with self._lock:
            if self._monitoring is None or not self._running or not self._patterns.may_want(module):
                return
            pending = [code]
            while pending:
                for found in pending.pop().co_consts:
                    if type(found) is CodeType:
                        pending.append(found)
                        name: str = getattr(found, "co_qualname", "<>")
                        is_function = found.co_flags & _NEW_LOCALS and not found.co_flags & _GENERATORS
                        if is_function and "<" not in name and self._patterns.want(module, name):
                            self._monitor(found, module, name)

    def tick(self, now: float) -> float:
        """Begin another second for those that are called too often, and look at the main program. The agent calls it."""
        with self._lock:
            if not self._running:
                return inf
            self.look_at(sys.modules.get("__main__"))
            if now >= self._second:
                self._second = now + TICK
                self._begin_second(now)
            self._pace = min(2 * self._pace, TICK)
            return min(self._second, now + self._pace)

    def _begin_second(self, now: float) -> None:
        allowance = budget.allowance
        bound = max(1, self.options.max_rate // allowance.sampling)
        if self.options.priority == DEBUG and not allowance.debug:
            bound = 0
        for name, rate in self._rates.items():
            rate.bound = bound
            if rate.paused and name not in self._told:
                self._told.add(name)
                send(
                    "trace_paused",
                    {"max_rate": bound},
                    operation="streamll.auto_trace",
                    module_name=name[0],
                    method_name=name[1],
                )
        if sum(rate.tick(now) for rate in self._rates.values()):
            if self._monitoring is not None:
                self._monitoring.resume()
            if self._wrapping is not None:
                self._wrapping.resume()

    def stats(self) -> AutoTracerStats:
        """Return what it does."""
        with self._lock:
            rates = list(self._rates.values())
            live = self._monitoring.unfinished if self._monitoring is not None and self._running else 0
            return AutoTracerStats(
                engine=self._engine,
                functions=len(rates),
                beyond=self._beyond,
                modules=len(self._modules),
                calls=sum(rate.calls for rate in rates),
                paused=sum(rate.paused for rate in rates) if self._running else 0,
                pauses=sum(rate.pauses for rate in rates),
                unfinished=self._unfinished + live,
                changed=self._changed,
                errors=self._errors,
            )

    def report(self) -> dict[str, Any]:
        """Return a summary: the figures of `stats`, and the functions that were called most."""
        with self._lock:
            rates = sorted(self._rates.items(), key=lambda each: -each[1].calls)[:REPORTED]
        functions = [
            {"module": module, "function": function, "calls": rate.calls, "pauses": rate.pauses}
            for (module, function), rate in rates
        ]
        return {**asdict(self.stats()), "most_called": functions}

    def after_fork_in_child(self) -> None:
        """Go on in a child: whoever held the lock is not there."""
        self._lock = threading.RLock()

    def _executed(self, module: ModuleType) -> None:
        try:
            self.look_at(module)
        except Exception:  # a module of a kind of its own
            self._errors += 1

    def _trace(self, module: str, place: Place) -> None:
        name = place.functions[0].__qualname__
        if not self._patterns.want(module, name):
            return
        inner = [innermost(each) for each in place.functions]
        if self._monitoring is None or any(each.__code__.co_flags & _GENERATORS for each in inner):
            rate = self._rate(module, name)
            if rate is not None and self._wrapping is not None:
                self._wrapping.add(place, rate)
            return
        for each in inner:
            self._monitor(each.__code__, module, name)

    def _monitor(self, code: CodeType, module: str, name: str) -> None:
        if self._monitoring is None or code in self._monitoring:
            return
        if len(self._monitoring) >= CODES_PER_FUNCTION * self.options.max_functions:
            self._beyond += 1
            return
        rate = self._rate(module, name)
        if rate is not None:
            self._monitoring.add(code, module, name, rate)

    def _rate(self, module: str, name: str) -> Rate | None:
        """What bounds a function's calls; None when there are too many functions."""
        rate = self._rates.get((module, name))
        if rate is None:
            if len(self._rates) >= self.options.max_functions:
                self._beyond += 1
                return None
            rate = self._rates[module, name] = Rate(self.options.max_rate)
        return rate


def _joined(patterns: object) -> object:
    """Patterns as one string, where they are a list of strings."""
    if isinstance(patterns, (list, tuple, set, frozenset)) and all(isinstance(each, str) for each in patterns):
        return ",".join(patterns)
    return patterns
