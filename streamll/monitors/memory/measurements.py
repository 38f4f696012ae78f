"""What blocks of code change in memory: a reading before, one after, and their sums by name.

What belongs here: that. What does not: the readings (readings.py).
"""

from __future__ import annotations

from time import thread_time_ns
from types import TracebackType
from typing import TYPE_CHECKING

from streamll.models import DEBUG
from streamll.monitors.budget import MEMORY, budget
from streamll.monitors.memory.readings import read_now
from streamll.monitors.outlet import send
from streamll.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import Self

NAMES = 256
"""Names that are told apart."""

OTHERS = "(others)"
"""The name under which all further ones are counted."""

QUANTITIES = ("rss", "footprint", "blocks")

WORD_BOUND = 200
"""Characters of a label or a name."""


def word_of(value: object) -> str:
    """A label or a name, bounded, and read without code of its own."""
    if value is None:
        return ""
    return str.__str__(value)[:WORD_BOUND] if isinstance(value, str) else type(value).__name__


class Measurement:
    """What a block of code changed: `with profiler.measure("load") as measured:`. What other threads did meanwhile is in it.

    Attributes:
        name: As given.
        changes: Once it has ended, how much more there was: `rss` and `footprint` in bytes, Python's `blocks`; without
            what this platform does not tell.
    """

    __slots__ = ("_before", "_sums", "changes", "name")

    def __init__(self, sums: Measurements, name: str) -> None:
        self._sums = sums
        self.name = name
        self.changes: dict[str, int] = {}

    def __enter__(self) -> Self:
        began = thread_time_ns()
        self._before = read_now()
        budget.costs.charge(MEMORY, thread_time_ns() - began)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        began = thread_time_ns()
        after = read_now()
        for quantity in QUANTITIES:
            was, is_now = getattr(self._before, quantity), getattr(after, quantity)
            if was is not None and is_now is not None:
                self.changes[quantity] = is_now - was
        self._sums.add(self)
        budget.costs.charge(MEMORY, thread_time_ns() - began)


class Measurements:
    """The sums, by name. Any thread may add, at any time."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._sums = {quantity: Tally() for quantity in ("calls", *QUANTITIES)}
        self._counts = Tally()

    def of(self, name: object) -> Measurement:
        """Return what measures a block of this name."""
        return Measurement(self, word_of(name))

    def add(self, measured: Measurement) -> None:
        """Take in a block that has ended, and make an event of it."""
        name = measured.name
        self._counts.add("blocks_measured")
        if name not in self._names:
            if len(self._names) < NAMES:
                self._names.add(name)
            else:
                self._counts.add("names_refused")
                name = OTHERS
        self._sums["calls"].add(name)
        for quantity, change in measured.changes.items():
            self._sums[quantity].add(name, change)
        data = {f"{quantity}_change": change for quantity, change in measured.changes.items()}
        send("memory", data, operation=measured.name, priority=DEBUG)

    def counts(self) -> dict[str, int]:
        """Return `blocks_measured`, and `names_refused`: those of names beyond NAMES."""
        return self._counts.read()

    def read(self) -> dict[str, dict[str, int]]:
        """Return `calls` and the sums of what they changed, by name."""
        columns = {quantity: tally.read() for quantity, tally in self._sums.items()}
        return {
            name: {quantity: column.get(name, 0) for quantity, column in columns.items()}
            for name in list(columns["calls"])
        }
