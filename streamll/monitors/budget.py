"""What monitoring may cost: each tool's cost as it is charged, and what the tools are to leave out while it is too much.

What belongs here: the counting of costs, and the decision, which has no thread and no clock. What does not: who asks for
the decision (agent.py), and how a tool leaves something out (the tools).
"""

from __future__ import annotations

from dataclasses import dataclass

from streamll.tally import Tally

PROFILER, MEMORY, METRICS, TRACER, LOOP, AGENT = "profiler", "memory", "metrics", "tracer", "loop", "agent"
TOOLS = (PROFILER, MEMORY, METRICS, TRACER, LOOP, AGENT)
"""Who costs are charged to."""

SLOWEST_SAMPLING = 16
"""Stacks are sampled at this multiple of the wanted interval at most, before anything else gives way."""

RECOVERY = 0.5
"""Below this share of the target, one step is taken back: so far below that the step's own cost fits in again."""

PATIENCE = 5
"""So many decisions in a row must find room before a step is taken back, so that it does not go to and fro."""


class Costs:
    """What monitoring has cost so far: nanoseconds of processor time, by tool. Charging never waits.

    What runs on the agent's thread is measured and charged there. A tool that works on the host's threads measures one
    of many calls, and charges it for all of them.
    """

    def __init__(self) -> None:
        self._spent = Tally()

    def charge(self, tool: str, ns: int) -> None:
        """Add nanoseconds to what a tool has cost."""
        self._spent.add(tool, ns)

    def read(self) -> dict[str, int]:
        """Return nanoseconds by tool."""
        return self._spent.read()


@dataclass(frozen=True)
class Allowance:
    """What the tools may do at present. A tool reads it before it does something that it could leave out.

    Attributes:
        sampling: Stacks are sampled at the wanted interval times this: 1, 2, 4, ... SLOWEST_SAMPLING.
        memory: Whether memory is looked at beyond what a reading of numbers tells: census, allocation windows; and
            whether readings come as often as wanted, else a tenth as often.
        debug: Whether monitors make events of priority "debug".
    """

    sampling: int = 1
    memory: bool = True
    debug: bool = True


STEPS = (
    Allowance(),
    *(Allowance(sampling=2**n) for n in range(1, SLOWEST_SAMPLING.bit_length())),
    Allowance(SLOWEST_SAMPLING, memory=False),
    Allowance(SLOWEST_SAMPLING, memory=False, debug=False),
)
"""What gives way, in this order: the sampling rate, then memory, then debug events."""


class Controller:
    """Decides, from what monitoring has cost, what it may do next.

    Args:
        target: The share of one processor that monitoring may take, above 0.

    Attributes:
        target: As given.
        share: The share that it took in the last interval; 0.0 before the first.
        step: Where in STEPS it stands.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.share = 0.0
        self.step = 0
        self._calm = 0

    @property
    def allowance(self) -> Allowance:
        """What the tools may do."""
        return STEPS[self.step]

    def decide(self, spent: float, elapsed: float) -> bool:
        """Take in what an interval has cost, and decide for the next one.

        Args:
            spent: Seconds of processor time that monitoring took.
            elapsed: Seconds by the clock, above 0.

        Returns:
            Whether the allowance has changed.
        """
        self.share = spent / elapsed
        before = self.step
        if self.share > self.target:
            self._calm = 0
            self.step = min(self.step + 1, len(STEPS) - 1)
        elif self.share < self.target * RECOVERY:
            self._calm += 1
            if self._calm >= PATIENCE and self.step:
                self._calm = 0
                self.step -= 1
        else:
            self._calm = 0
        return self.step != before


class Budget:
    """What holds now, for tools to read: one look-up of an attribute.

    Attributes:
        allowance: What the tools may do.
        costs: Where they charge what they cost.
    """

    __slots__ = ("allowance", "costs")

    def __init__(self) -> None:
        self.allowance = Allowance()
        self.costs = Costs()


budget = Budget()
