"""The decorator: a span around each run of a function, coroutine, generator or async generator.

What belongs here: wrapping, so that a wrapped callable is in all else what it was: its signature, its kind, the errors
it raises, the values it is sent. What does not: what a span records (spans.py), also of a generator, whose span is
current only while its body runs (steps.py).
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from streamll.hub import hub
from streamll.spans import Span
from streamll.steps import Steps, async_generator_function, generator_function

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")


@overload
def trace(
    function: F, /, *, operation: str = ..., capture_args: bool = ..., announce: bool = ..., **attributes: Any
) -> F: ...


@overload
def trace(
    operation: str, /, *, capture_args: bool = ..., announce: bool = ..., **attributes: Any
) -> Callable[[F], F]: ...


@overload
def trace(
    *, operation: str = ..., capture_args: bool = ..., announce: bool = ..., **attributes: Any
) -> Callable[[F], F]: ...


def trace(
    function: Any = None,
    /,
    *,
    operation: str = "",
    capture_args: bool = False,
    announce: bool = False,
    **attributes: Any,
) -> Any:
    """Record a span for each run of a function: `@streamll.trace`, `@streamll.trace("answer", model="small")`.

    It serves functions, coroutine functions, generators, async generators, methods, class and static methods (in either
    order of the decorators) and callable objects. The span ends when the function returns, when the coroutine is done,
    when the generator is exhausted or closed; a generator's span tells of its items what one of `stream` tells. A function that returns an
    awaitable without being a coroutine function is timed until it returns. The event's `module_name` and `method_name`
    are the function's. A decorator that gives a function attributes, such as `functools.lru_cache`, goes above it.

    Args:
        function: What to wrap, or the operation's name.
        operation: The name that a person would look for; the function's qualified name when empty.
        capture_args: Put the call's arguments under `arguments` in the span's data, by name, as they are when the span
            ends; without the defaults that were not given, `self` and `cls`.
        announce: Make an event at the start too, of event_type "span_start".
        **attributes: Attributes of each span, under any other name.

    Raises:
        TypeError: When what is decorated is a class or cannot be called.
    """
    if isinstance(function, str):
        operation, function = function, None

    def decorate(target: Any) -> Any:
        return wrap(target, lambda inner: Call(inner, operation, capture_args, announce, attributes))

    return decorate if function is None else decorate(function)


def wrap(target: Any, call_of: Callable[[Any], Call]) -> Any:
    """Return what runs as a callable does, in a span.

    Args:
        target: What can be called; or a class or static method, of which the same kind is returned.
        call_of: From the callable to what makes its spans.

    Raises:
        TypeError: When it is a class or cannot be called.
    """
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(wrap(target.__func__, call_of))
    if isinstance(target, type) or not callable(target):
        kind = f"the class {target.__name__}" if isinstance(target, type) else f"a {type(target).__name__}"
        raise TypeError(f"streamll.trace decorates functions and methods, not {kind}")
    call = call_of(target)
    if inspect.iscoroutinefunction(call.body):
        wrapper = _around_coroutine(target, call)
    elif inspect.isasyncgenfunction(call.body):
        wrapper = async_generator_function(call.beginning(target))
    elif inspect.isgeneratorfunction(call.body):
        wrapper = generator_function(call.beginning(target))
        if call.body.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:
            wrapper = types.coroutine(wrapper)
    else:
        wrapper = _around_function(target, call)
    functools.update_wrapper(wrapper, target)
    return wrapper


class Call:
    """What is the same for every run of one decorated callable."""

    paused = False
    """Whether runs that begin now are left alone."""

    __slots__ = ("_announce", "_attributes", "_parameters", "body", "method_name", "module_name", "operation")

    def __init__(
        self, target: Any, operation: str, capture_args: bool, announce: bool, attributes: dict[str, Any]
    ) -> None:
        named = target
        while isinstance(named, functools.partial):
            named = named.func
        self.body: Any = named
        """The function that runs; its kind is the callable's."""
        if not hasattr(named, "__qualname__"):  # an object with a `__call__`
            named = type(named)
            self.body = named.__call__
        self.module_name: str = getattr(named, "__module__", None) or ""
        self.method_name: str = named.__qualname__
        self.operation = operation or self.method_name
        self._announce = announce
        self._attributes = attributes
        self._parameters = _positional(target) if capture_args else None

    def span(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Span:
        """The span of one run, not begun yet."""
        span = CallSpan(self)
        if self._attributes:
            span.set(**self._attributes)
        if self._parameters is not None:
            arguments = dict(zip(self._parameters, args, strict=False))
            if len(args) > len(self._parameters):
                arguments["*"] = args[len(self._parameters) :]
            arguments.update(kwargs)
            if self._parameters[:1] in (["self"], ["cls"]):
                arguments.pop(self._parameters[0], None)
            span.set(arguments=arguments)
        return span.announce() if self._announce else span

    def beginning(self, function: Callable[..., Any]) -> Callable[..., tuple[Any, Steps]]:
        """What makes a generator and the steps of its run."""

        def begin(*args: Any, **kwargs: Any) -> tuple[Any, Steps]:
            generator = function(*args, **kwargs)
            return generator, Steps(self.span(args, kwargs) if hub.active and not self.paused else None)

        return begin


def _positional(target: Any) -> list[str]:
    """The names of the parameters that can be given by position."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some of those written in C have none
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


class Named(Protocol):
    """What a span can be named after."""

    operation: str
    module_name: str
    method_name: str


class CallSpan(Span):
    """A span that knows whose run it is."""

    __slots__ = ("_method_name", "_module_name")

    def __init__(self, call: Named) -> None:
        super().__init__(call.operation)
        self._module_name = call.module_name
        self._method_name = call.method_name


def _around_function(function: Callable[..., Any], call: Call) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not hub.active or call.paused:
            return function(*args, **kwargs)
        with call.span(args, kwargs):
            return function(*args, **kwargs)

    return wrapper


def _around_coroutine(function: Callable[..., Any], call: Call) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not hub.active or call.paused:
            return await function(*args, **kwargs)
        with call.span(args, kwargs):
            return await function(*args, **kwargs)

    return wrapper
