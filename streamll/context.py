"""What surrounds the code that runs now: its execution, its span, its bound attributes.

What belongs here: the `Scope`, how code enters and leaves one, and the blocks that change nothing but the scope. What
does not: spans, which also make events (spans.py), and the way of a scope across processes (propagation.py).

One context variable holds the scope, so that reading it costs one look-up, asyncio tasks inherit it, and leaving a
block puts back exactly what was there. Blocks may be left in any order and from any thread, task or context: that is
never an error, and never leaves the scope of an ended block behind as the current one.
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, Token, copy_context
from functools import update_wrapper
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from streamll.hub import hub
from streamll.ids import new_execution_id

P = ParamSpec("P")
R = TypeVar("R")


class Scope(msgspec.Struct, eq=False):
    """What an event made now belongs to. Only `instead` ever changes.

    Attributes:
        execution_id: The execution (W3C: trace); empty outside of any.
        span_id: The innermost span; empty outside of any.
        parent_span_id: The span around that one.
        attributes: What `bind` has bound: goes into the data of every event inside.
        muted: True on threads whose events are cut off, such as a sink's worker: telemetry about telemetry has no end.
        trace_flags: The W3C flags that came with an extracted context, passed on by `inject`; empty when it began here.
        trace_state: The W3C tracestate that came with it, passed on by `inject`.
        instead: What holds in its place, once its block was left where the context variable could not be put back.
    """

    execution_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    attributes: Mapping[str, Any] = {}
    muted: bool = False
    trace_flags: str = ""
    trace_state: str = ""
    instead: Scope | None = None


ROOT = Scope()

SCOPE: ContextVar[Scope] = ContextVar("streamll_scope", default=ROOT)

CHILD_SCOPE: ContextVar[Scope] = ContextVar("streamll_child_scope", default=ROOT)
"""What is current in a child that is forked now: nothing, unless somebody sees to it."""


def current() -> Scope:
    """Return the scope of the code that runs now."""
    scope = SCOPE.get()
    while scope.instead is not None:
        scope = scope.instead
    return scope


def leave(scope: Scope, token: Token[Scope]) -> None:
    """Leave a scope that was entered by `SCOPE.set`; never raises.

    Args:
        scope: The scope to leave, entered once and not left before.
        token: What `SCOPE.set(scope)` returned.
    """
    if current() is scope:
        try:
            SCOPE.reset(token)
        except ValueError:
            pass  # it was entered in another context, and came here by inheritance
        else:
            return
    # Either something inside it is still open, or it was entered in a context that cannot be reached from here. Whoever
    # comes upon it from now on steps over it.
    outer = ROOT if token.old_value is Token.MISSING else token.old_value
    while outer.instead is not None:
        outer = outer.instead
    scope.instead = outer


def mute_this_thread() -> None:
    """Cut off every event that this thread would emit from now on."""
    SCOPE.set(Scope(muted=True))


@contextmanager
def muted() -> Iterator[None]:
    """Cut off every event that is emitted inside, such as by a user's function that an event passes through."""
    token = SCOPE.set(Scope(muted=True))
    try:
        yield
    finally:
        SCOPE.reset(token)


class Block:
    """A `with` block that changes the scope and nothing else; `as` gives its execution id.

    It may be entered again, also while it is entered, and by several threads or tasks at once.
    """

    __slots__ = ("_entered", "_inner")

    def __init__(self, inner: Callable[[Scope], Scope]) -> None:
        self._inner = inner
        self._entered: dict[Scope, Token[Scope]] = {}

    def __enter__(self) -> str:
        scope = self._inner(current())
        self._entered[scope] = SCOPE.set(scope)
        return scope.execution_id

    def __exit__(self, *_: object) -> None:
        scope = current()
        token = self._entered.pop(scope, None)
        if token is None:
            # Left out of order, or by a thread that did not enter it: the last one entered will be meant.
            try:
                scope, token = self._entered.popitem()
            except KeyError:
                return
        leave(scope, token)


class _NoBlock(Block):
    """What `bind` returns while nothing is recorded: changes nothing."""

    def __enter__(self) -> str:
        return current().execution_id

    def __exit__(self, *_: object) -> None:
        pass


_NO_BLOCK = _NoBlock(lambda outer: outer)


def bind(**attributes: Any) -> Block:
    """Put attributes into the data of every event inside a block.

    Blocks nest: the inner one's attributes win over the outer one's, and an event's own data over both. It does nothing
    while nothing is configured to receive events.

    Args:
        **attributes: Values by name.

    Example:
        with streamll.bind(user=42, tenant="blue"):
            answer(question)
    """
    if not hub.active:
        return _NO_BLOCK
    return Block(lambda outer: msgspec.structs.replace(outer, attributes={**outer.attributes, **attributes}))


def execution(execution_id: str | None = None) -> Block:
    """Run a block as an execution of its own: events inside share its id, and spans inside have no parent outside.

    Args:
        execution_id: Any string. Made here when None or empty: 32 hex digits, a W3C trace id. Only an id of that shape
            can travel in the headers that `inject` writes.

    Example:
        with streamll.execution() as execution_id:
            run_job()
    """
    chosen = str(execution_id) if execution_id else new_execution_id()
    return Block(lambda outer: Scope(chosen, attributes=outer.attributes, muted=outer.muted))


def bind_context(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that runs in the context of now, whichever thread or task calls it, and whenever.

    The context is that of the standard library's `contextvars`, so it holds other libraries' variables too. Each call
    gets a fresh copy, so calls may overlap, and what one changes no other sees. A coroutine function stays one: each of
    its steps runs in the copy. Of a generator function only the call is bound, not the iteration.

    Args:
        function: Any callable.

    Example:
        executor.submit(streamll.bind_context(work), item)
    """
    context = copy_context()
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004  # not asking whether it is callable

        async def bound_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await _run_in(context.copy(), cast("Coroutine[Any, Any, Any]", function(*args, **kwargs)))

        return cast("Callable[P, R]", update_wrapper(bound_coroutine, function))

    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return update_wrapper(bound, function)


@types.coroutine
def _run_in(context: Context, coroutine: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
    """Await a coroutine, each of its steps inside a context."""
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        try:
            awaited = context.run(coroutine.send, sent) if thrown is None else context.run(coroutine.throw, thrown)
        except StopIteration as stop:
            return cast("R", stop.value)
        finally:
            sent = thrown = None  # an error that leaves here would hold this frame, and this frame the error
        try:
            sent = yield awaited
        except BaseException as error:
            thrown = error


def _forget_in_child() -> None:
    SCOPE.set(CHILD_SCOPE.get())
    CHILD_SCOPE.set(ROOT)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    # The spans that are open at a fork are the parent's: it will end them.
    os.register_at_fork(after_in_child=_forget_in_child)
