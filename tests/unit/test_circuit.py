"""CircuitBreaker: the table, and what its methods make of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamll.delivery.circuit import HISTORY, TRANSITIONS, CircuitBreaker, CircuitChange, CircuitState, _Event

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def opened(**options: float) -> CircuitBreaker:
    """One that failed often enough at 0 s."""
    circuit = CircuitBreaker(failure_threshold=1, **options)  # type: ignore[arg-type]  # the times are floats
    circuit.record_failure(0.0, "refused")
    return circuit


class TestClosed:
    def test_is_the_beginning(self) -> None:
        circuit = CircuitBreaker()
        assert circuit.state is CLOSED
        assert circuit.allows(0.0)
        assert list(circuit.history) == []

    @pytest.mark.parametrize("threshold", [1, 2, 3, 10])
    def test_opens_at_exactly_the_threshold(self, threshold: int) -> None:
        circuit = CircuitBreaker(failure_threshold=threshold)
        for n in range(1, threshold):
            circuit.record_failure(float(n))
            assert circuit.state is CLOSED
            assert circuit.allows(float(n))
        circuit.record_failure(float(threshold), "refused")
        assert circuit.state is OPEN
        assert list(circuit.history) == [CircuitChange(float(threshold), OPEN, "refused")]

    def test_counts_only_failures_in_a_row(self) -> None:
        circuit = CircuitBreaker(failure_threshold=2)
        for n in range(10):
            circuit.record_failure(float(n))
            circuit.record_success(float(n))
        assert circuit.state is CLOSED
        assert circuit.failures == 0

    def test_trips_at_once_for_what_waiting_does_not_mend(self) -> None:
        circuit = CircuitBreaker(failure_threshold=10)
        circuit.trip(0.0, "wrong password")
        assert circuit.state is OPEN

    def test_never_opens_when_it_is_disabled(self) -> None:
        circuit = CircuitBreaker(failure_threshold=1, enabled=False)
        for n in range(5):
            circuit.record_failure(float(n))
            circuit.trip(float(n))
            assert circuit.allows(float(n))
        assert circuit.state is CLOSED
        assert list(circuit.history) == []


class TestOpen:
    def test_allows_nothing_until_its_time_is_over(self) -> None:
        circuit = opened(recovery_timeout=30.0)
        assert circuit.retry_at == 30.0
        assert not circuit.allows(0.0)
        assert not circuit.allows(29.999)
        assert circuit.state is OPEN
        assert circuit.allows(30.0)
        assert circuit.state is HALF_OPEN

    def test_allows_a_probe_earlier_when_somebody_waits_for_it(self) -> None:
        circuit = opened()
        circuit.allow_probe(5.0)
        assert circuit.allows(5.0)
        assert circuit.state is HALF_OPEN

    def test_a_probe_is_never_later_for_being_asked_for(self) -> None:
        circuit = opened(recovery_timeout=30.0)
        circuit.allow_probe(100.0)
        assert circuit.retry_at == 30.0

    def test_asking_for_a_probe_changes_nothing_in_other_states(self) -> None:
        circuit = CircuitBreaker()
        circuit.allow_probe(5.0)
        assert circuit.state is CLOSED
        circuit = opened()
        circuit.allows(30.0)
        circuit.allow_probe(31.0)
        assert (circuit.state, circuit.retry_at) == (HALF_OPEN, 30.0)

    def test_a_success_that_comes_late_closes_it(self) -> None:
        circuit = opened()
        circuit.record_success(1.0)
        assert circuit.state is CLOSED

    def test_a_failure_that_comes_late_keeps_it_open_for_longer(self) -> None:
        circuit = opened(recovery_timeout=30.0)
        circuit.record_failure(1.0)
        assert circuit.state is OPEN
        assert circuit.retry_at == 61.0


class TestHalfOpen:
    def test_closes_on_success(self) -> None:
        circuit = opened()
        circuit.allows(30.0)
        circuit.record_success(30.5)
        assert circuit.state is CLOSED
        assert [(change.at, change.state) for change in circuit.history] == [
            (0.0, OPEN),
            (30.0, HALF_OPEN),
            (30.5, CLOSED),
        ]

    def test_opens_on_the_first_failure_whatever_the_threshold(self) -> None:
        circuit = CircuitBreaker(failure_threshold=5)
        circuit.trip(0.0)
        circuit.allows(30.0)
        circuit.record_failure(31.0)
        assert circuit.state is OPEN

    def test_needs_the_whole_threshold_again_after_it_closed(self) -> None:
        circuit = CircuitBreaker(failure_threshold=2)
        circuit.trip(0.0)
        circuit.allows(30.0)
        circuit.record_success(30.0)
        circuit.record_failure(31.0)
        assert circuit.state is CLOSED


class TestPause:
    def test_doubles_up_to_the_bound_and_starts_anew_after_a_success(self) -> None:
        circuit = CircuitBreaker(failure_threshold=1, recovery_timeout=30.0, recovery_bound=100.0)
        now, pauses = 0.0, []
        for _ in range(5):
            circuit.record_failure(now)
            pauses.append(circuit.retry_at - now)
            now = circuit.retry_at
            assert circuit.allows(now)
        assert pauses == [30.0, 60.0, 100.0, 100.0, 100.0]
        circuit.record_success(now)
        circuit.record_failure(now)
        assert circuit.retry_at - now == 30.0

    def test_jitter_takes_at_most_a_quarter_off_a_doubled_pause(self) -> None:
        circuit = CircuitBreaker(failure_threshold=1, recovery_timeout=30.0)
        circuit.record_failure(0.0, jitter=1.0)
        assert circuit.retry_at == 30.0
        circuit.allows(30.0)
        circuit.record_failure(30.0, jitter=1.0)
        assert circuit.retry_at == 30.0 + 45.0

    def test_the_bound_is_never_below_the_first_pause(self) -> None:
        assert opened(recovery_timeout=60.0, recovery_bound=1.0).retry_at == 60.0

    def test_a_thousand_failures_overflow_nothing(self) -> None:
        circuit = CircuitBreaker(failure_threshold=1, recovery_timeout=1e300, recovery_bound=1e300)
        for _ in range(1000):
            circuit.trip(0.0)
        assert circuit.retry_at == 1e300


class TestTable:
    def test_says_what_happens_in_every_state(self) -> None:
        assert {state for state, _ in TRANSITIONS} == set(CircuitState)
        assert {event for _, event in TRANSITIONS} == set(_Event)

    def test_every_row_happens(self) -> None:
        """A row that no method can take would be a false statement about the circuit."""
        taken = set()

        class Watched(CircuitBreaker):
            def _apply(self, event: _Event, now: float, reason: str) -> None:
                taken.add((self.state, event))
                super()._apply(event, now, reason)

        for to_open in (False, True):
            for probe in (False, True):
                for last in ("record_success", "record_failure", "trip"):
                    circuit = Watched(failure_threshold=2, recovery_timeout=1.0)
                    if to_open:
                        circuit.trip(0.0)
                    if probe:
                        circuit.allows(10.0)
                    getattr(circuit, last)(10.0)
        assert taken == set(TRANSITIONS)

    def test_states_read_well(self) -> None:
        assert [state.value for state in CircuitState] == ["closed", "open", "half_open"]
        assert CLOSED == "closed"


class TestHistory:
    def test_keeps_the_last_changes(self) -> None:
        circuit = CircuitBreaker(failure_threshold=1, recovery_timeout=1.0, recovery_bound=1.0)
        for n in range(100):
            circuit.record_failure(float(n), str(n))
            circuit.record_success(float(n))
        assert len(circuit.history) == HISTORY
        assert [change.at for change in circuit.history] == [float(n) for n in range(84, 100) for _ in range(2)]


class Walk(RuleBasedStateMachine):
    """Any order of calls, with a clock that never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threshold = 3
        self.circuit = CircuitBreaker(self.threshold, recovery_timeout=10.0, recovery_bound=50.0)
        self.in_a_row = 0
        self.opened_at: float | None = None

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        allowed = self.circuit.allows(self.now)
        assert allowed == (self.circuit.state is not OPEN)
        if not allowed:
            assert self.now < self.circuit.retry_at

    @rule()
    def succeed(self) -> None:
        self.circuit.record_success(self.now)
        self.in_a_row = 0
        assert self.circuit.state is CLOSED

    @rule(jitter=st.floats(0, 1))
    def fail(self, jitter: float) -> None:
        before = self.circuit.state
        self.circuit.record_failure(self.now, "x", jitter)
        self.in_a_row += 1
        expected = CLOSED if before is CLOSED and self.in_a_row < self.threshold else OPEN
        assert self.circuit.state is expected

    @rule(jitter=st.floats(0, 1))
    def trip(self, jitter: float) -> None:
        self.circuit.trip(self.now, "x", jitter)
        assert self.circuit.state is OPEN
        assert self.now + 10.0 * 0.75 <= self.circuit.retry_at <= self.now + 50.0

    @rule()
    def probe(self) -> None:
        self.circuit.allow_probe(self.now)
        assert self.circuit.allows(self.now)

    @invariant()
    def counts_failures(self) -> None:
        assert self.circuit.failures == self.in_a_row

    @invariant()
    def is_open_no_longer_than_the_bound(self) -> None:
        if self.circuit.state is OPEN:
            assert self.circuit.retry_at <= self.now + 50.0

    @invariant()
    def tells_its_changes_in_order(self) -> None:
        for earlier, later in pairwise(self.circuit.history):
            assert earlier.at <= later.at
            assert earlier.state is not later.state


TestWalk = Walk.TestCase


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=100))
def test_it_opens_when_and_only_when_so_many_failed_in_a_row(threshold: int, outcomes: list[bool]) -> None:
    circuit = CircuitBreaker(threshold)
    in_a_row = 0
    for succeeded in outcomes:
        if succeeded:
            circuit.record_success(0.0)
            in_a_row = 0
        else:
            circuit.record_failure(0.0)
            in_a_row += 1
        assert (circuit.state is OPEN) == (in_a_row >= threshold)
