"""The one thread that all tools share: it runs what is due, charges what that took, and keeps the whole within budget.

What belongs here: the thread, its clock, and the tools' turns on it. What does not: what a tool does in its turn, and
the decision what must give way (budget.py).

The thread exists while a tool has something to do, as a daemon. A forked child starts its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from time import monotonic, thread_time_ns
from typing import Protocol

from streamll.hub import hub
from streamll.monitors.budget import AGENT, Allowance, Controller, budget
from streamll.monitors.outlet import send, withheld
from streamll.runtime.fork import tell_after_fork
from streamll.runtime.wakeup import Wakeup

log = logging.getLogger("streamll")

OVERHEAD_TARGET = 0.02
"""The share of one processor that monitoring may take, unless told otherwise."""

DECIDE_EVERY = 1.0
"""Seconds between two looks at what monitoring costs."""

_AFTER_ERROR = 10.0
"""Seconds until a tool whose turn raised an error has its next."""

_STOP_TIMEOUT = 2.0
"""Seconds that `remove` waits for a turn that is under way."""


class Task(Protocol):
    """What has a turn on the agent's thread now and then."""

    @property
    def tool(self) -> str:
        """Whom its turns are charged to: one of `budget.TOOLS`."""

    def tick(self, now: float) -> float:
        """Do what is due.

        Args:
            now: Seconds, by `time.monotonic`.

        Returns:
            When the next turn is due, by the same clock; `math.inf` for when it is woken.
        """


@dataclass(frozen=True)
class AgentStats:
    """What monitoring costs, and what it leaves out for that.

    Attributes:
        target: The share of one processor that it may take.
        share: The share that it took in the last second; 0.0 before the first has passed.
        allowance: What the tools may do at present.
        seconds: Processor time so far, by tool.
        turns: Turns that tools had on the agent's thread.
        errors: Turns that ended in an error, which is a defect: report it.
        changes: How often the allowance changed.
        withheld: Events that monitors did not make: `debug` (no room in the budget), `refused` (no sink accepted them,
            or they were sampled out).
    """

    target: float = OVERHEAD_TARGET
    share: float = 0.0
    allowance: Allowance = field(default_factory=Allowance)
    seconds: Mapping[str, float] = field(default_factory=dict)
    turns: int = 0
    errors: int = 0
    changes: int = 0
    withheld: Mapping[str, int] = field(default_factory=dict)


class Agent:
    """Gives tools their turns. One object serves the process; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._controller = Controller(OVERHEAD_TARGET)
        self._due: dict[Task, float] = {}
        self._turns = self._errors = self._changes = 0
        self._complained = False
        self._become_new()
        tell_after_fork(self)

    def _become_new(self) -> None:
        self._lock = threading.RLock()
        self._turning = threading.RLock()  # held while a tool has its turn
        self._wakeup = Wakeup()
        self._thread: threading.Thread | None = None
        self._charged = 0  # of its thread's clock, until when all was charged
        self._sleeps_until = -inf  # by itself; -inf while it does not sleep
        self._decided_at = monotonic()
        self._spent_then = 0
        self._allow_all()

    def _allow_all(self) -> None:
        """Leave nothing out any more: nobody would look whether there is room again."""
        self._controller = Controller(self._controller.target)
        budget.allowance = self._controller.allowance

    @property
    def target(self) -> float:
        """The share of one processor that monitoring may take."""
        return self._controller.target

    @target.setter
    def target(self, share: float) -> None:
        self._controller.target = share

    @property
    def running(self) -> bool:
        """Whether its thread exists."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def add(self, task: Task, due: float = 0.0) -> None:
        """Give a task turns from now on; the first at `due`, by `time.monotonic`, or at once."""
        with self._lock:
            self._due[task] = due
            if self._thread is None:
                self._start()
        self._wakeup.set()

    def wake(self, task: Task, due: float = 0.0) -> None:
        """Give a task that was added its next turn at once, or at `due` if that is earlier than it would come.

        The thread is not woken for what it will wake up for in time.
        """
        with self._lock:
            if due < self._due.get(task, -inf):
                self._due[task] = due
            if due >= self._sleeps_until:
                return
        self._wakeup.set()

    def remove(self, task: Task) -> None:
        """Give a task no more turns; one that is under way is waited for, unless this is called in it.

        Do not call it while holding a lock that the task's `tick` takes.
        """
        with self._lock:
            self._due.pop(task, None)
        self._wakeup.set()
        if self._turning.acquire(timeout=_STOP_TIMEOUT):
            self._turning.release()

    def stats(self) -> AgentStats:
        """Return what monitoring costs."""
        controller = self._controller
        return AgentStats(
            target=controller.target,
            share=controller.share,
            allowance=controller.allowance,
            seconds={tool: ns / 1e9 for tool, ns in budget.costs.read().items()},
            turns=self._turns,
            errors=self._errors,
            changes=self._changes,
            withheld=withheld.read(),
        )

    def after_fork_in_child(self) -> None:
        """Start anew in a child: its thread is the parent's, and so is a turn that was under way."""
        self._become_new()
        self._due = dict.fromkeys(self._due, 0.0)
        if self._due:
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="streamll-agent", daemon=True)
        self._decided_at, self._spent_then = monotonic(), self._spent()
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or the process has no room for a thread
            log.debug("the monitors' thread could not be started")
            return
        self._thread = thread

    def _run(self) -> None:
        me = threading.current_thread()
        self._charged = thread_time_ns()
        while True:
            with self._lock:
                if self._thread is None:
                    self._thread = me  # `_start` has not come that far yet
                if not self._due or self._thread is not me:
                    if self._thread is me:
                        self._thread = None
                        self._allow_all()
                    return
            now = monotonic()
            with self._lock:
                ready = [task for task, due in self._due.items() if due <= now]
            for task in ready:
                self._turn(task, now)
            self._keep_within_budget()
            with self._lock:
                now = monotonic()
                until = self._sleeps_until = min(*self._due.values(), now + DECIDE_EVERY) if self._due else now
            self._wakeup.wait(max(0.0, until - now))
            self._sleeps_until = -inf

    def _turn(self, task: Task, now: float) -> None:
        with self._turning:
            with self._lock:
                if task not in self._due:
                    return
                self._due[task] = inf  # unless it is woken meanwhile
            self._charge(AGENT)
            try:
                following = task.tick(now)
            except Exception:  # a tool's defect is to take no other tool's turns
                self._errors += 1
                following = now + _AFTER_ERROR
                if not self._complained:
                    self._complained = True
                    log.warning("a monitor (%s) failed; please report it", task.tool, exc_info=True)
            self._charge(task.tool)
            self._turns += 1
            with self._lock:
                if self._due.get(task) == inf:
                    self._due[task] = following

    def _charge(self, tool: str) -> None:
        """Charge what the thread has used since the last time. To the agent itself goes what is between two turns: falling
        asleep, waking up and having the interpreter's lock is often more than a turn."""
        before, self._charged = self._charged, thread_time_ns()
        budget.costs.charge(tool, self._charged - before)

    def _spent(self) -> int:
        return sum(budget.costs.read().values())

    def _keep_within_budget(self) -> None:
        """Decide, now and then, what the tools may do; and say so in an event when that changes."""
        now = monotonic()
        elapsed = now - self._decided_at
        if elapsed < DECIDE_EVERY:
            return
        spent = self._spent()
        changed = self._controller.decide((spent - self._spent_then) / 1e9, elapsed)
        self._decided_at, self._spent_then = now, spent
        budget.allowance = allowance = self._controller.allowance
        if changed:
            self._changes += 1
            send(
                "streamll.overhead",
                {
                    "share": self._controller.share,
                    "target": self._controller.target,
                    "sampling": allowance.sampling,
                    "memory": allowance.memory,
                    "debug": allowance.debug,
                },
                operation="streamll.monitoring",
                level="warning" if self._controller.share > self._controller.target else "info",
            )


agent = Agent()
"""The process's one."""

hub.sources["monitoring"] = agent.stats
