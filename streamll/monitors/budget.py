"""What monitoring may cost: each tool's cost as it is charged, and what the tools are to leave out while it is too much.

What belongs here: the counting of costs, and the decision, which has no thread and no clock. What does not: who asks
for the decision (agent.py), and how a tool leaves something out (the tools).
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
"""Below this part of the target there is room for one step back: sampling twice as often costs twice as much."""

PATIENCE, MOST_PATIENCE = 5, 320
"""So many decisions in a row must find room before a step is taken back. Where that turns out to have been too early,
twice as many must the next time, up to the second number: so it does not go to and fro."""


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
        self._calm = 0  # decisions in a row that found room
        self._patience = PATIENCE
        self._since_return = MOST_PATIENCE  # decisions since a step was taken back

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
        self._since_return += 1
        before = self.step
        if self.share > self.target:
            self._calm = 0
            if self._since_return <= PATIENCE:
                self._patience = min(2 * self._patience, MOST_PATIENCE)
                self._since_return = MOST_PATIENCE
            self.step = min(self.step + 1, len(STEPS) - 1)
        elif self.share >= self.target * RECOVERY:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm >= self._patience:
                self._calm = 0
                if self.step:
                    self.step -= 1
                    self._since_return = 0
                else:
                    self._patience = PATIENCE
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
