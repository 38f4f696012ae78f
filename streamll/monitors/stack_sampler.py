"""The sampler: looks at the stacks of all threads now and then, and at whose they are.

What belongs here: when to look, at which threads, and what a look stands for. What does not: the count of what was seen
(profiling/stacks.py), the timer that interrupts the main thread (profiling/prof_timer.py), and how an asyncio task is
found (loops/tasks.py).

A look at a thread stands for the processor time that the thread has had since the last one: read from its own clock, so
that a look that comes late, or a thread that shares the processor, does not make the answer wrong. A thread whose clock
has not moved has not moved either: its stack is not walked. Where a thread is seen waiting, what it did before is not
known; its time is given to where it is next seen running, but never more than has passed since the last look. What was
seen nowhere is said to be so (`unseen_seconds`).

Two ways of looking. In the signal handler of ITIMER_PROF, in the main thread: whenever so much processor time has
passed, between any two instructions. Else on the agent's thread, whenever so much time has passed: that thread has to
wait for the running one to let go, for 5 ms at most, or until it calls something that lets others run. So a thread that
works for less than that between two such calls is seen at those calls.
"""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from time import monotonic, monotonic_ns, process_time_ns, thread_time_ns
from types import CodeType, FrameType
from typing import Any

from streamll.hub import hub
from streamll.monitors.agent import agent
from streamll.monitors.budget import PROFILER, budget
from streamll.monitors.loops.tasks import loop_code, task_here, task_in
from streamll.monitors.profiling.frame_owners import marked, want_frames, want_frames_no_more
from streamll.monitors.profiling.interpreters import is_alone, why_no_look
from streamll.monitors.profiling.prof_timer import ProfTimer
from streamll.monitors.profiling.stacks import Samples, Stacks
from streamll.monitors.profiling.thread_clocks import HAVE_CLOCKS, look_up, read_clock
from streamll.monitors.profiling.waits import waits
from streamll.runtime.fork import tell_after_fork
from streamll.spans import FRAMES_BOUND, Span

log = logging.getLogger("streamll")

THREADS_A_TICK = 25
"""Threads that are looked at in one turn, at most; the others have theirs in the next ones."""

_PATIENCE = 1.0
"""Seconds that a reader waits for the end of a turn: it may be a finaliser that runs in the middle of one."""

_HOT_A_TICK = 20
"""Those among them that ran at one of the last looks, at most."""

WATCH = 0.1
"""Seconds between two looks at whether the signal handler runs."""

_A_LOOKS_WORTH, _BY_SIGNAL = 1_000_000, 8_000_000
"""Nanoseconds of processor time that threads have had which were still, until they are looked at. More by signal: while
ITIMER_PROF runs, Linux counts the process's processor time by its scheduler's ticks only, of up to 4 ms."""

_STILL = 3
"""A thread that has not moved at more looks than so many in a row is not looked at every time."""

_SITES = 4096
"""Places in the program of which is remembered what line they are and whether they wait."""

_REFRESH = 1.0
"""Seconds until it is asked again who a thread without a clock is, and whether asyncio has been imported."""

SIGNAL, AGENT, OFF = "signal", "agent", "off"

_OURS = "streamll-"
"""How the names of our own threads begin: they are not part of the program."""


@dataclass(frozen=True)
class SamplerStats:
    """What the sampler did, and what it could not see.

    Attributes:
        way: How it looks: "signal" (ITIMER_PROF), "agent" (a thread) or "off".
        why: Why it does not look by signal, or not at all; empty when there is nothing to say.
        ticks: Turns.
        ticks_by_signal: Those of them that the timer's signal began.
        busy: Turns that were left out since one was under way, or the count was being read.
        looks: Threads that were looked at.
        idle: Looks that found a thread that had not moved.
        deferred: Looks that were left for the next turn: more than THREADS_A_TICK threads.
        forgotten: Frames with a span or an action open in them that were forgotten: too many, most of them long gone.
        waiting: Looks that found a thread that waited, though it had moved.
        seen_seconds: Processor time that was seen somewhere.
        unseen_seconds: Processor time of the process since the start that was not, the sampler's own left out: of threads
            that were never caught running, that ended before they were, that run no Python, or that are streamll's own.
        own_seconds: Processor time that looking took.
        errors: Turns that ended in an error, which is a defect: report it.
    """

    way: str = OFF
    why: str = ""
    ticks: int = 0
    ticks_by_signal: int = 0
    busy: int = 0
    looks: int = 0
    idle: int = 0
    deferred: int = 0
    forgotten: int = 0
    waiting: int = 0
    seen_seconds: float = 0.0
    unseen_seconds: float = 0.0
    own_seconds: float = 0.0
    errors: int = 0


class _Look:
    """What is known of a thread from the looks before."""

    __slots__ = ("asked", "clock", "cpu", "credit", "here", "key", "line", "name", "owner", "seen", "stack", "still")

    def __init__(self, ident: int, seen: int) -> None:
        self.seen = seen
        self.cpu = self.credit = self.still = 0
        self.here = False
        self.key: tuple[int, int, int] | None = None
        self.owner = self.stack = self.line = 0
        self.ask(ident, seen)

    def ask(self, ident: int, now: int) -> None:
        self.name, self.clock = look_up(ident)
        self.asked = now


class StackSampler:
    """Samples the stacks of all threads of the process.

    Args:
        mode: "cpu": processor time, of threads that run; "wall": time by the clock too, of all.
        interval: Seconds between two looks: of processor time by signal, else by the clock.
        by_signal: Whether ITIMER_PROF may be used.
        stacks: Where samples are counted.
        clocks: Whether threads have clocks of their own.
    """

    tool = PROFILER

    def __init__(
        self,
        mode: str = "cpu",
        interval: float = 0.02,
        by_signal: bool = True,
        stacks: Stacks | None = None,
        clocks: bool = HAVE_CLOCKS,
    ) -> None:
        self.mode = mode
        self.interval = interval
        self._by_signal = by_signal
        self._clocks = clocks
        self._stacks = stacks or Stacks()
        self._timer = ProfTimer(self._on_signal)
        self.running = False
        self._why = ""
        self._busy = threading.Lock()  # held during a turn, and while the count is read
        self._begin_anew()
        tell_after_fork(self)

    def _begin_anew(self) -> None:
        self._stacks.clear()
        self._looks: dict[int, _Look]
        self._sites: dict[tuple[int, int], tuple[CodeType, int, bool]] = {}
        self._loop: CodeType | None = None
        self._loop_asked = 0
        self._hot: set[int] = set()  # threads that had processor time at one of the last looks
        self._rest_ns = 0
        self._forgotten = 0
        self._ticks = self._by_signal_ticks = self._missed = self._looked = 0
        self._idle = self._deferred = self._waiting = self._errors = 0
        self._seen_ns = self._own_ns = self._last_own_ns = 0
        self._ticks_then = self._unheard_ns = 0
        self._process_ns = 0  # of the runs before
        self._baseline()

    def _baseline(self) -> None:
        """Take as given what threads have used by now."""
        self._last = now = monotonic_ns()
        self._began_cpu = self._cpu_then = self._process_then = process_time_ns()
        self._looks = {}
        if not self.running:
            return
        for ident in sys._current_frames():
            look = self._looks[ident] = _Look(ident, now)
            look.cpu = (look.clock and read_clock(look.clock)) or 0

    def start(self) -> None:
        """Look from now on; what was counted before is kept. In the main thread the timer is taken, where it may be had."""
        if self.running:
            return
        self._why = why_no_look()
        if self._why:
            log.warning("streamll samples no stacks: %s", self._why)
            return
        self.running = True
        self._baseline()
        want_frames(self)
        if self._by_signal and self.mode == "cpu":
            self._why = self._timer.arm(self._interval_now())
        agent.add(self, monotonic() + (WATCH if self._timer.had else self._interval_now()))

    def stop(self) -> None:
        """Look no more; what was counted stays to be read."""
        if not self.running:
            return
        self.running = False
        self._process_ns += process_time_ns() - self._began_cpu
        self._timer.disarm()
        agent.remove(self)
        want_frames_no_more(self)
        if self._busy.acquire(timeout=_PATIENCE):
            self._looks, self._sites, self._hot = {}, {}, set()
            self._busy.release()

    def reset(self) -> None:
        """Begin from zero."""
        if self._busy.acquire(timeout=_PATIENCE):
            try:
                self._begin_anew()
            finally:
                self._busy.release()

    def after_fork_in_child(self) -> None:
        """Begin anew in a child: threads, timer and samples are the parent's."""
        self._busy = threading.Lock()
        self._begin_anew()
        self._timer.after_fork_in_child()
        if hub.frames is not None:
            hub.frames = {}

    def read(self) -> Samples:
        """Return what was counted so far."""
        if not self._busy.acquire(timeout=_PATIENCE):
            return Samples()
        try:
            return self._stacks.read()
        finally:
            self._busy.release()

    def stats(self) -> SamplerStats:
        """Return what it did, and what it could not see."""
        cpu = self._process_ns + (process_time_ns() - self._began_cpu if self.running else 0)
        by_signal = self._timer.had
        return SamplerStats(
            way=SIGNAL if by_signal else AGENT if self.running else OFF,
            why="" if by_signal else self._timer.reason or self._why,
            ticks=self._ticks,
            ticks_by_signal=self._by_signal_ticks,
            busy=self._missed,
            looks=self._looked,
            idle=self._idle,
            deferred=self._deferred,
            forgotten=self._forgotten,
            waiting=self._waiting,
            seen_seconds=self._seen_ns / 1e9,
            unseen_seconds=max(0, cpu - self._seen_ns - self._own_ns) / 1e9 if self._looked else 0.0,
            own_seconds=self._own_ns / 1e9,
            errors=self._errors,
        )

    def count(self) -> Any:
        """Return how full the count of stacks is: a `StackStats`."""
        return self._stacks.stats()

    def tick(self, now: float) -> float:
        """Have a turn on the agent's thread: look, or see to it that the signal handler does."""
        interval = self._interval_now()
        if self._timer.had:
            if not self._timer.keep(interval):
                log.warning("streamll samples stacks on a thread from now on: %s", self._timer.reason)
            elif not self._is_blind(interval):
                return now + WATCH
        self._look(None)
        # Not in step with what the program does at intervals of its own.
        return now + interval * (0.75 + 0.5 * (self._ticks * 0.6180339887498949 % 1))

    def _is_blind(self, interval: float) -> bool:
        """Whether processor time passes and the signal handler has not run since the last turn: the main thread waits."""
        cpu = process_time_ns()
        used, self._cpu_then = cpu - self._cpu_then, cpu
        ticks, self._ticks_then = self._by_signal_ticks - self._ticks_then, self._by_signal_ticks
        self._unheard_ns = 0 if ticks else self._unheard_ns + used
        return self._unheard_ns > (2 * interval + 0.01) * 1e9

    def _interval_now(self) -> float:
        return self.interval * budget.allowance.sampling

    def _on_signal(self, frame: FrameType | None) -> None:
        self._by_signal_ticks += 1
        try:
            self._look(frame)
        except RecursionError:  # as in `_look`
            self._missed += 1

    def _look(self, interrupted: FrameType | None) -> None:
        """Have a turn: look at the threads, and count what is seen.

        Args:
            interrupted: The frame that a signal has interrupted, in this thread; None on the agent's thread.
        """
        busy = self._busy
        if not self.running or not busy.acquire(blocking=False):
            self._missed += self.running
            return
        try:
            began = thread_time_ns()
            try:
                self._ticks += 1
                self._look_at_all(interrupted)
            except RecursionError:  # the program has left no room on the stack
                self._missed += 1
            except Exception:  # this may be a signal handler, whose error would be raised into the program
                self._errors += 1
            self._account(thread_time_ns(), began, in_turn=interrupted is None)
        finally:
            busy.release()

    def _account(self, ended: int, began: int, in_turn: bool) -> None:
        """Put down what looking took."""
        self._last_own_ns = ended - began
        self._own_ns += self._last_own_ns
        if not in_turn:  # which the agent charges itself
            budget.costs.charge(PROFILER, ended - began)
            mine = self._looks.get(threading.get_ident())
            if mine is not None and mine.clock:
                mine.cpu = ended  # what looking took is none of the program's

    def _look_at_all(self, interrupted: FrameType | None) -> None:
        self._here = here = threading.get_ident()
        now = monotonic_ns()
        if now - self._loop_asked > _REFRESH * 1e9:
            self._refresh(now)
        self._clockless: list[tuple[_Look, int]] = []
        self._known_ns = 0
        worth = _A_LOOKS_WORTH if interrupted is None else _BY_SIGNAL
        done = interrupted is not None and self._clocks and self._hot == {here}
        if interrupted is not None and done:
            self._look_at(here, interrupted, now)
            self._rest_ns += self._rest()
            if self._rest_ns <= worth:
                return  # only this thread has run: as nearly always, and the others need not even be found
        if not is_alone():
            self._why = "another interpreter runs in the process"
            return
        frames = sys._current_frames()
        if interrupted is None:
            frames.pop(here, None)
        else:
            frames[here] = interrupted
        self._admit(frames)
        hot = [ident for ident in self._hot if not done or ident != here]
        for ident in self._next_of(hot, _HOT_A_TICK):
            self._look_at(ident, frames[ident], now)
        # What others have used; asking each of them whether it was that one costs more than asking the process.
        rest = self._rest()
        self._rest_ns += rest
        if self._rest_ns > worth or self._clockless or not self._clocks or self.mode == "wall":
            others = [ident for ident in frames if ident not in self._hot]
            for ident in self._next_of(others, THREADS_A_TICK - min(len(self._hot), _HOT_A_TICK)):
                self._look_at(ident, frames[ident], now)
            self._rest_ns = 0
        if self._clockless:
            self._share_out(rest - self._known_ns)
            self._clockless = []
        self._last = now

    def _refresh(self, now: int) -> None:
        """Do what needs no doing at every turn."""
        self._loop_asked = now
        self._loop = loop_code()
        if hub.frames is not None and len(hub.frames) >= FRAMES_BOUND:
            self._forgotten += len(hub.frames)
            hub.frames.clear()  # left open by frames that are gone: nobody else would ever be told apart again

    def _rest(self) -> int:
        """What the process has used since it was last asked, and neither the threads that were looked at nor looking."""
        process_ns = process_time_ns()
        rest = process_ns - self._process_then - self._known_ns - self._last_own_ns
        self._process_then, self._known_ns, self._last_own_ns = process_ns, 0, 0
        return rest

    def _admit(self, frames: dict[int, FrameType]) -> None:
        """Forget the threads that have ended, and get to know those that have begun."""
        for ident in self._looks.keys() - frames.keys():
            del self._looks[ident]
            self._hot.discard(ident)
        new = frames.keys() - self._looks.keys()
        for ident in new:
            self._looks[ident] = _Look(ident, self._last)
        self._hot.update(new)

    def _next_of(self, idents: list[int], room: int) -> list[int]:
        """As many threads as there is room for, each time others."""
        if len(idents) <= room:
            return idents
        self._deferred += len(idents) - room
        begin = self._ticks * room % len(idents)
        return (idents[begin:] + idents[:begin])[:room]

    def _look_at(self, ident: int, frame: FrameType, now: int) -> None:
        look = self._looks[ident]
        look.here = ident == self._here
        if not look.clock and now - look.asked > _REFRESH * 1e9:
            look.ask(ident, now)
        if look.name.startswith(_OURS):
            self._hot.discard(ident)
            return
        self._looked += 1
        elapsed, look.seen = now - look.seen, now
        wall_ns = elapsed if self.mode == "wall" else 0
        has_clock = bool(look.clock) and self._clocks
        if has_clock:
            used = self._used(look, ident, now)
            self._known_ns += used
            look.credit += used
            if used:
                self._hot.add(ident)
                look.still = 0
            else:
                look.still += 1
                if look.still > _STILL:
                    self._hot.discard(ident)
                if look.key == (id(frame), frame.f_lasti, id(frame.f_code)):
                    self._idle += 1
                    if wall_ns:
                        self._stacks.add(look.owner, look.stack, look.line, cpu_ns=0, wall_ns=wall_ns)
                    return
        look.line, waiting = self._site(frame)
        look.key = (id(frame), frame.f_lasti, id(frame.f_code)) if wall_ns or waiting else None
        if waiting:
            self._waiting += 1
            if not wall_ns:
                return
        self._walk(look, frame)
        if waiting:
            self._count(look, 0, wall_ns)
        elif has_clock:
            worth = min(look.credit, elapsed)
            look.credit -= worth
            self._count(look, worth, wall_ns)
        else:
            self._clockless.append((look, elapsed))

    def _used(self, look: _Look, ident: int, now: int) -> int:
        """The processor time that a thread has had since the last look."""
        cpu = read_clock(look.clock)
        if cpu is None:  # that one has ended; this one has got its identifier
            look.ask(ident, now)
            look.credit, look.cpu, look.key = 0, 0, None
            cpu = (look.clock and read_clock(look.clock)) or 0
        used, look.cpu = cpu - look.cpu, cpu
        return max(0, used)

    def _count(self, look: _Look, cpu_ns: int, wall_ns: int) -> None:
        self._seen_ns += cpu_ns
        self._stacks.add(look.owner, look.stack, look.line, cpu_ns=cpu_ns, wall_ns=wall_ns)

    def _share_out(self, ns: int) -> None:
        """Give threads that have no clock, and seem to run, equal parts of what the process used and no other thread did."""
        part = max(0, ns) // len(self._clockless)
        for look, elapsed in self._clockless:
            self._count(look, min(part, elapsed), elapsed if self.mode == "wall" else 0)

    def _site(self, frame: FrameType) -> tuple[int, bool]:
        """The line that a frame is at, and whether it waits there."""
        code = frame.f_code
        key = id(code), frame.f_lasti
        known = self._sites.get(key)
        if known is None:
            if len(self._sites) >= _SITES:
                self._sites.clear()
            line = frame.f_lineno or code.co_firstlineno
            known = self._sites[key] = code, line, waits(code, frame.f_lasti)
        return known[1], known[2]

    def _walk(self, look: _Look, innermost: FrameType) -> None:
        """Find out what stack a thread is in, and whose."""
        frames, loop = hub.frames, self._loop
        codes: list[CodeType] = []
        action = operation = task = ""
        bound = self._stacks.max_depth
        frame: FrameType | None = innermost
        while frame is not None and len(codes) < bound:
            code = frame.f_code
            if frames:
                what = frames.get(id(frame))
                if what is not None:
                    if isinstance(what, Span):
                        operation = operation or _word(what.operation)
                    elif what.code is code:  # else it was left open, and another frame has got its place
                        action = action or what.operation
            mark = marked.get(id(code))
            if mark is not None:
                action = action or mark[1]
            else:
                codes.append(code)
                if code is loop and not task:
                    task = task_in(frame)
            frame = frame.f_back
        if not task and look.here and loop is not None:
            task = task_here()
        look.stack = self._stacks.stack(codes or [innermost.f_code], deeper=frame is not None)
        look.owner = self._stacks.owner(look.name, task, action, operation)


def _word(operation: Any) -> str:
    return operation if type(operation) is str else f"<{type(operation).__name__}>"
