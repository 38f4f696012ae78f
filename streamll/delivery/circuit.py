"""CircuitBreaker: when to stop trying for a while. A table of transitions; the time is an argument.

closed ──threshold or fatal──► open ──recovery over──► half-open ──success──► closed
                                ▲                          │
                                └──────────failure─────────┘
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

HISTORY = 32
"""Changes of state kept for `stats()`."""

_JITTER = 0.25
"""The share of a doubled recovery time that jitter may take off, so that a fleet does not probe in step."""


class CircuitState(str, Enum):
    """The three states; a string, so that it reads well in stats and JSON."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class _Event(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    TRIP = "trip"
    PROBE = "probe"


_CLOSED, _OPEN, _HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN

TRANSITIONS: dict[tuple[CircuitState, _Event], CircuitState] = {
    (_CLOSED, _Event.SUCCESS): _CLOSED,
    (_CLOSED, _Event.FAILURE): _CLOSED,
    (_CLOSED, _Event.TRIP): _OPEN,
    (_OPEN, _Event.SUCCESS): _CLOSED,
    (_OPEN, _Event.TRIP): _OPEN,
    (_OPEN, _Event.PROBE): _HALF_OPEN,
    (_HALF_OPEN, _Event.SUCCESS): _CLOSED,
    (_HALF_OPEN, _Event.TRIP): _OPEN,
}


@dataclass(frozen=True)
class CircuitChange:
    """One change of state.

    Attributes:
        at: When, in the clock of the caller's `now` (a sink's: `time.monotonic()` seconds).
        state: The state from then on.
        reason: What led to it.
    """

    at: float
    state: CircuitState
    reason: str


class CircuitBreaker:
    """Opens after some failures in a row, lets one probe through after a while, and closes when it succeeds.

    It has no clock and no lock: every method takes the present time, and one thread at a time calls it.

    Args:
        failure_threshold: Failures in a row that open it.
        recovery_timeout: Seconds that it stays open at first.
        recovery_bound: Seconds that it stays open at most; the time doubles, with jitter, while probes fail.
        enabled: When False it never opens.

    Attributes:
        state: The present state.
        failures: Failures since the last success.
        retry_at: When an open circuit lets a probe through.
        history: The last changes of state, oldest first.
    """

    def __init__(
        self,
        failure_threshold: int = 3,
        recovery_timeout: float = 30.0,
        recovery_bound: float = 300.0,
        *,
        enabled: bool = True,
    ) -> None:
        self.failure_threshold = failure_threshold
        self.recovery_timeout = recovery_timeout
        self.recovery_bound = max(recovery_bound, recovery_timeout)
        self.enabled = enabled
        self.state = CircuitState.CLOSED
        self.failures = 0
        self.retry_at = 0.0
        self.history: deque[CircuitChange] = deque(maxlen=HISTORY)
        self._openings = 0

    def allows(self, now: float) -> bool:
        """Return whether a batch may be sent now; an open circuit whose time is over becomes half-open by it.

        Half-open means that one probe is on its way: the caller sends one, and reports what came of it.
        """
        if self.state is CircuitState.OPEN and now >= self.retry_at:
            self._apply(_Event.PROBE, now, "recovery time is over")
        return self.state is not CircuitState.OPEN

    def record_success(self, now: float) -> None:
        """Tell that the broker answered."""
        self.failures = 0
        self._openings = 0
        self._apply(_Event.SUCCESS, now, "the broker answered")

    def record_failure(self, now: float, reason: str = "", jitter: float = 0.0) -> None:
        """Tell that a batch failed because the broker was not available.

        Args:
            now: The present time, in seconds.
            reason: What went wrong, for the history.
            jitter: A random number from 0 to 1, for the length of the next pause.
        """
        self.failures += 1
        if self.state is CircuitState.CLOSED and self.failures < self.failure_threshold:
            self._apply(_Event.FAILURE, now, reason)
        else:
            self.trip(now, reason, jitter)

    def trip(self, now: float, reason: str = "", jitter: float = 0.0) -> None:
        """Open the circuit at once, for a failure that waiting does not mend."""
        if not self.enabled:
            return
        pause = min(self.recovery_bound, self.recovery_timeout * 2.0 ** min(self._openings, 64))
        if self._openings:
            pause *= 1 - _JITTER * jitter
        self._openings += 1
        self.retry_at = now + pause
        self._apply(_Event.TRIP, now, reason)

    def allow_probe(self, now: float) -> None:
        """Let an open circuit probe now rather than when its time is over: somebody waits for the result."""
        if self.state is CircuitState.OPEN:
            self.retry_at = min(self.retry_at, now)

    def _apply(self, event: _Event, now: float, reason: str) -> None:
        state = TRANSITIONS[self.state, event]
        if state is not self.state:
            self.state = state
            self.history.append(CircuitChange(now, state, reason))
