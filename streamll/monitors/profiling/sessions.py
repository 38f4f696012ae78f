"""Sessions: stretches of a program's run, in phases, each with what was called in it.

What belongs here: which are open, and what each held, from readings that are handed in. What does not: the readings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_PHASES = 1000
"""Phases of a session that are kept; the later ones are counted."""


class Reading(NamedTuple):
    """What all calls of an action have come to.

    Attributes:
        calls, errors: How many, and how many failed.
        wall_ns, own_ns: Time by the clock, and without what was called inside.
    """

    calls: int
    errors: int
    wall_ns: int
    own_ns: int


Readings = Mapping[str, Reading]


@dataclass
class _Stretch:
    name: str
    began: int
    before: Readings
    ended: int | None = None
    called: dict[str, dict[str, Any]] = field(default_factory=dict)

    def end(self, now: int, readings: Readings) -> None:
        if self.ended is None:
            self.ended = now
            self.called = self.calls(readings)
            self.before = {}

    def calls(self, readings: Readings) -> dict[str, dict[str, Any]]:
        """What was called since it began: the actions that were, those that took most time first."""
        found = []
        for name, reading in readings.items():
            before = self.before.get(name, _NOTHING)
            if reading.calls > before.calls:
                found.append((name, Reading(*(now - then for now, then in zip(reading, before, strict=True)))))
        found.sort(key=lambda each: (-each[1].wall_ns, each[0]))
        return {
            name: {
                "calls": made.calls,
                "errors": made.errors,
                "wall_time": made.wall_ns / 1e9,
                "self_time": made.own_ns / 1e9,
            }
            for name, made in found
        }

    def describe(self, now: int, readings: Readings) -> dict[str, Any]:
        is_open = self.ended is None
        ended = now if self.ended is None else self.ended
        called = self.calls(readings) if is_open else self.called
        return {"name": self.name, "open": is_open, "duration": (ended - self.began) / 1e9, "profiles": called}


_NOTHING = Reading(0, 0, 0, 0)


@dataclass
class _Session(_Stretch):
    timestamp: int = 0
    phases: list[_Stretch] = field(default_factory=list)
    more_phases: int = 0


class Sessions:
    """The sessions of one profiler. One thread at a time may use it.

    Args:
        max_sessions: Sessions that are kept; the oldest are forgotten, those that have ended first.

    Attributes:
        unknown: How often a session was named that there is not, or not any more.
        forgotten: Sessions that gave way to newer ones.
    """

    def __init__(self, max_sessions: int = 100) -> None:
        self._max = max_sessions
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self.unknown = self.forgotten = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def open(self) -> int:
        """How many have not ended."""
        return sum(session.ended is None for session in self._sessions.values())

    def is_open(self, session_id: str) -> bool:
        """Whether there is such a session, which has not ended."""
        session = self._sessions.get(session_id)
        return session is not None and session.ended is None

    def start(self, session_id: str, name: str, timestamp: int, now: int, readings: Readings) -> None:
        """Begin a session.

        Args:
            session_id: What it is called by from now on.
            name: What a person would call it.
            timestamp: Nanoseconds since the epoch.
            now: Nanoseconds, by the clock that all times of sessions are by.
            readings: What all actions have come to by now.
        """
        if len(self._sessions) >= self._max:
            ended = (key for key, session in self._sessions.items() if session.ended is not None)
            del self._sessions[next(ended, next(iter(self._sessions)))]
            self.forgotten += 1
        self._sessions[session_id] = _Session(name, now, readings, timestamp=timestamp)

    def _find(self, session_id: str | None) -> tuple[str, _Session] | None:
        """An open session: the one that is named, or the last that began."""
        if session_id is None:
            for key, session in reversed(self._sessions.items()):
                if session.ended is None:
                    return key, session
        elif self.is_open(session_id):
            return session_id, self._sessions[session_id]
        self.unknown += 1
        return None

    def begin_phase(self, name: str, session_id: str | None, now: int, readings: Readings) -> tuple[str, int] | None:
        """Begin a phase of a session, which ends the one before.

        Returns:
            The session's id and the phase's number; None where there is no such session, or it has ended.
        """
        found = self._find(session_id)
        if found is None:
            return None
        key, session = found
        if session.phases:
            session.phases[-1].end(now, readings)
        if len(session.phases) >= MAX_PHASES:
            session.more_phases += 1
            return None
        session.phases.append(_Stretch(name, now, readings))
        return key, len(session.phases) - 1

    def end_phase(self, phase: tuple[str, int], now: int, readings: Readings) -> None:
        """End a phase, unless it has ended."""
        session = self._sessions.get(phase[0])
        if session is not None:
            session.phases[phase[1]].end(now, readings)

    def end(self, session_id: str | None, now: int, readings: Readings) -> str | None:
        """End a session and its last phase.

        Args:
            session_id: Which; the last that began when None.

        Returns:
            Its id; None where there is no such session, or it has ended.
        """
        found = self._find(session_id)
        if found is None:
            return None
        key, session = found
        if session.phases:
            session.phases[-1].end(now, readings)
        session.end(now, readings)
        return key

    def describe(self, session_id: str, now: int, readings: Readings) -> dict[str, Any] | None:
        """Return what a session held so far; None when there is none of that id."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        phases = [phase.describe(now, readings) for phase in session.phases]
        described = {"id": session_id, "started": session.timestamp / 1e9, **session.describe(now, readings)}
        return {**described, "phases": phases, "more_phases": session.more_phases}

    def ids(self) -> list[str]:
        """Return the ids of all sessions that are kept, the oldest first."""
        return list(self._sessions)


class Phase:
    """A phase that has begun; as a block, it ends with it.

    Args:
        begun: What `Sessions.begin_phase` returned.
        end: What ends it.
    """

    def __init__(self, begun: tuple[str, int] | None, end: Callable[[tuple[str, int]], None]) -> None:
        self._begun = begun
        self._end = end

    def end(self) -> None:
        """End it, unless it has ended."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self._end(begun)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
