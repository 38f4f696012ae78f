"""The schedule: one fault after the other on one broker, each followed by proof that the sink recovers.

What belongs here: which fault comes when, and the wait for the recovery. What does not: how something is hurt
(tests/chaos/faults.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from random import Random

from tests.chaos.faults import Rule
from tests.fixtures.waiting import PATIENCE
from tests.soak.brokers import Broker
from tests.soak.reader import Reader
from tests.soak.report import SinkReport

_LOOK_EVERY = 0.1


class Schedule(threading.Thread):
    """Hurts one broker until it is told to end, and leaves it well.

    Args:
        broker: What to hurt.
        reader: Its reader, which may be made slow.
        seed: Decides what is done and for how long.
        longest: Seconds that something is away, at most.
        numbers: Returns the sink's latest numbers.

    Attributes:
        said: The faults since somebody took them away.
        count: Faults so far.
        wrong: What did not recover.
        error: What broke the schedule itself.
    """

    def __init__(
        self, broker: Broker, reader: Reader, seed: int, longest: float, numbers: Callable[[], SinkReport]
    ) -> None:
        super().__init__(name=f"soak-schedule-{broker.name}", daemon=True)
        self.said: deque[str] = deque()
        self.count = 0
        self.wrong: list[str] = []
        self.error: Exception | None = None
        self._rng = Random(f"{seed}-{broker.name}")
        self._reader = reader
        self._longest = longest
        self._numbers = numbers
        self._end = threading.Event()
        self._faults = broker.faults_kind(broker.server, broker.proxy, self._rng, self._meanwhile, longest)

    def stop(self) -> None:
        """Make all well, and end."""
        self._end.set()
        self.join(4 * PATIENCE)
        if self.is_alive():
            raise RuntimeError(f"{self.name} does not end")

    def run(self) -> None:
        """The thread."""
        menu: list[tuple[float, Rule]] = [*self._faults.menu(), (1.0, self.slow_reader)]
        weights, rules = [weight for weight, _ in menu], [rule for _, rule in menu]
        try:
            while not self._end.is_set():
                (rule,) = self._rng.choices(rules, weights)
                self._hurt(rule)
        except Exception as error:
            self.error = error
        finally:
            self._faults.get_well()

    def slow_reader(self) -> str:
        """Nobody reads for a while: the broker has to keep what comes."""
        self._reader.be_slow(self._longest)
        self._end.wait(self._longest)
        return f"{self._longest:.1f} s"

    def _hurt(self, rule: Rule) -> None:
        began = time.monotonic()
        text = rule()
        self._meanwhile()
        self._faults.get_well()
        self.count += 1
        what = f"{rule.__name__} ({text}) for {time.monotonic() - began:.1f} s"
        self.said.append(what)
        if not self._recovers() and not self._end.is_set():
            self.wrong.append(f"after {what}: no recovery within {PATIENCE:.0f} s")
        self._end.wait(self._rng.uniform(0.2, 0.5) * self._longest)

    def _meanwhile(self) -> str:
        seconds = self._rng.uniform(0.1, 1.0) * self._longest
        self._end.wait(seconds)
        return f"{seconds:.1f} s"

    def _recovers(self) -> bool:
        """Whether the sink delivers again, and the fate of all that it had accepted by now is known before long."""
        then = self._numbers()
        deadline = time.monotonic() + PATIENCE
        while not self._end.wait(_LOOK_EVERY):
            now = self._numbers()
            if now.delivered > then.delivered and now.settled >= then.accepted:
                return True
            if time.monotonic() > deadline:
                return False
        return True
