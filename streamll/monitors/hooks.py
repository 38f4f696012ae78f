"""Hooks: functions of the standard library that are replaced while somebody wants to see their calls.

What belongs here: putting a function around another one, and taking it away again without hurting whoever did the same;
and being switched on and off, for the tools that do it. What does not: which functions, and what is made of their calls
(logging_events.py, warning_events.py, uncaught.py).

What was there before always runs, with the same arguments, and its result or error is the caller's. Those who see a
call come first, unless told otherwise. When nobody wants to see it any more, exactly what was there before is put back;
if somebody else has been put around ours meanwhile, ours stays where it is, and does nothing but pass calls on.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from streamll.runtime.fork import tell_after_fork

if TYPE_CHECKING:
    from typing_extensions import Self

See = Callable[..., None]
"""Is shown the arguments of a call; it takes no lock, and does not raise where they are the usual ones."""


class Hook:
    """One function that may be replaced.

    Args:
        holder: The module or class that it is an attribute of.
        name: The attribute.
        after: Whether those who see a call come after what was there before has returned, instead of first.
    """

    def __init__(self, holder: Any, name: str, after: bool = False) -> None:
        self._holder = holder
        self._name = name
        self._after = after
        self._seers: tuple[See, ...] = ()
        self._put: Callable[..., Any] | None = None
        self._before: Any = None
        self._inherited = False
        self.after_fork_in_child()
        tell_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Whoever held the lock is not in the child."""
        self._lock = threading.RLock()

    def add(self, see: See) -> None:
        """Show `see` every call from now on."""
        with self._lock:
            if getattr(self._holder, self._name) is not self._put:
                self._install()
            self._seers = (*(one for one in self._seers if one != see), see)

    def remove(self, see: See) -> None:
        """Show it no more calls."""
        with self._lock:
            self._seers = tuple(one for one in self._seers if one != see)
            if not self._seers and self._put is not None and getattr(self._holder, self._name) is self._put:
                if self._inherited:
                    delattr(self._holder, self._name)
                else:
                    setattr(self._holder, self._name, self._before)
                self._put = self._before = None

    def call(self, before: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what was there before; a subclass may do something around it."""
        return before(*args, **kwargs)

    def _show(self, hooked: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._put is hooked:  # else it is one of ours that was buried under somebody else's
            for see in self._seers:
                try:
                    see(*args, **kwargs)
                except Exception:  # noqa: S110  # it was called with other arguments, which what comes now may refuse
                    pass

    def _install(self) -> None:
        before = getattr(self._holder, self._name)

        def hooked(*args: Any, **kwargs: Any) -> Any:
            if not self._after:
                self._show(hooked, args, kwargs)
            result = self.call(before, args, kwargs)
            if self._after:
                self._show(hooked, args, kwargs)
            return result

        functools.update_wrapper(hooked, before)
        self._put, self._before, self._inherited = hooked, before, self._name not in vars(self._holder)
        setattr(self._holder, self._name, hooked)


class Tool:
    """What is switched on and off, from any thread. It goes on also when nobody holds it any more."""

    _started: ClassVar[list[Tool]] = []
    """All that are switched on, in that order."""

    def __init__(self) -> None:
        self._running = False

    @property
    def leads(self) -> bool:
        """Whether of those of its kind that are switched on it was the first: what all of them see, one tells."""
        return next((one for one in self._started if type(one) is type(self)), self) is self

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        return self._running

    def start(self) -> Self:
        """Begin, unless it has begun already."""
        if not self._running:
            self._running = True
            self._started.append(self)
            self._begin()
        return self

    def stop(self) -> None:
        """End; what it has counted stays to be read."""
        if self._running:
            self._running = False
            if self in self._started:
                self._started.remove(self)
            self._end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _begin(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError
