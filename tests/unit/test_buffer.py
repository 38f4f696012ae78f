"""The buffer: every strategy, what interrupts it at any line, and the balance over all of it. No threads here."""

from __future__ import annotations

import gc
import linecache
import signal
import sys
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamll.delivery.gaps import Holes
from streamll.delivery.ledger import Balance
from streamll.delivery.machine import SHUTDOWN, UNCONFIRMED, Settlement
from streamll.delivery.outcome import Entry
from streamll.errors import BufferFullError
from streamll.models import StreamllEvent
from streamll.options import KIB, OVERFLOW_STRATEGIES, SinkOptions
from streamll.pipeline import Pipeline
from streamll.runtime import buffer as module
from streamll.runtime import inbox, waiters
from streamll.runtime.buffer import Buffer
from streamll.runtime.waiting import ENTRY_OVERHEAD, size_of
from tests.fixtures.interrupts import interrupted
from tests.unit.deliveries import record, seqs, untraced


def buffer(strategy: str = "drop_oldest", *, events: int = 4, room: int | None = None, **options: Any) -> Buffer:
    """One that holds so many events, of any size or of so many bytes beside their overhead."""
    size = 64 * KIB * KIB if room is None else max(KIB, room + events * ENTRY_OVERHEAD)
    return Buffer(
        SinkOptions(
            buffer_size=events,
            buffer_bytes=size,
            buffer_overflow_strategy=strategy,
            **{"block_timeout": 0.0, **options},
        )
    )


def check(held: Buffer) -> Balance:
    """What must hold whenever nothing is going on."""
    balance = held.read()
    assert balance.balanced, balance
    assert len(held) == balance.buffered + balance.in_flight
    if len(held) == 0:
        assert held.bytes_held == 0
    return balance


def fill(held: Buffer, n: int, size: int = 1) -> None:
    for _ in range(n):
        assert held.put(record(b"x" * size))


def settle_all(held: Buffer, reason: str = "") -> list[Entry]:
    """Take everything, and settle it as delivered, or as dropped for a reason."""
    batch = held.take(10**9, 10**12)
    settlement = Settlement(dropped=[(entry, reason) for entry in batch]) if reason else Settlement(delivered=batch)
    assert held.settle(settlement, None)
    return batch


class TestAccept:
    def test_numbers_rise_by_one_in_the_order_of_acceptance(self) -> None:
        held = buffer(events=100)
        fill(held, 10)
        assert held.last_seq == 10
        assert seqs(held.take(100, 10**6)) == list(range(1, 11))

    def test_an_accepted_event_is_counted_in_events_and_bytes_until_it_is_settled(self) -> None:
        held = buffer(events=100)
        sizes = [0, 1, 100, 5000]
        for size in sizes:
            held.put(record(b"x" * size))
        expected = sum(sizes) + ENTRY_OVERHEAD * len(sizes)
        assert held.bytes_held == expected
        batch = held.take(2, 10**6)
        assert held.bytes_held == expected
        assert check(held) == Balance(4, 4, buffered=2, in_flight=2)
        held.settle(Settlement(delivered=batch[:1], dead_lettered=batch[1:]), None)
        assert held.bytes_held == expected - sum(size_of(entry.record) for entry in batch)
        settle_all(held, "rejected")
        assert check(held) == Balance(4, 4, delivered=1, dead_lettered=1, dropped={"rejected": 2})

    def test_what_lies_in_the_inbox_is_bounded(self) -> None:
        held = buffer(events=100_000)
        fill(held, 10_000)
        assert len(held._inbox) <= inbox.MOST
        assert seqs(settle_all(held)) == list(range(1, 10_001))

    def test_after_close_everything_is_refused(self) -> None:
        held = buffer()
        fill(held, 1)
        held.close()
        assert not held.put(record())
        assert check(held) == Balance(2, 1, {"stopped": 1}, buffered=1)

    def test_a_sinks_own_refusals_are_counted_as_offered(self) -> None:
        held = buffer()
        held.refuse("filtered")
        assert check(held) == Balance(1, 0, {"filtered": 1})

    @pytest.mark.parametrize("strategy", OVERFLOW_STRATEGIES)
    def test_what_is_larger_than_the_whole_buffer_is_refused_and_nothing_gives_way_for_it(self, strategy: str) -> None:
        held = buffer(strategy, room=0)
        fill(held, 1)
        assert not held.put(record(b"x" * 100_000))
        assert check(held) == Balance(2, 1, {"too_large": 1}, buffered=1)


class TestOverflow:
    def test_drop_oldest_lets_the_oldest_give_way(self) -> None:
        held = buffer("drop_oldest", events=3)
        fill(held, 5)
        assert check(held) == Balance(5, 5, dropped={"overflow": 2}, buffered=3)
        assert seqs(settle_all(held)) == [3, 4, 5]

    def test_drop_oldest_lets_as_many_give_way_as_the_bytes_need(self) -> None:
        held = buffer("drop_oldest", events=10, room=1000)
        fill(held, 10, size=100)
        assert held.put(record(b"x" * 950))
        balance = check(held)
        assert balance.dropped == {"overflow": 3}
        assert held.bytes_held <= 1000 + 10 * ENTRY_OVERHEAD

    def test_in_a_large_buffer_the_oldest_give_way_many_at_a_time(self) -> None:
        held = buffer("drop_oldest", events=1000)
        fill(held, 1000)
        assert check(held).buffered == 1000
        fill(held, 1)
        assert check(held) == Balance(1001, 1001, dropped={"overflow": 10}, buffered=991)
        fill(held, 9)
        assert check(held).dropped == {"overflow": 10}
        fill(held, 1)
        assert check(held).dropped == {"overflow": 20}
        assert seqs(settle_all(held)) == list(range(21, 1012))

    def test_what_gives_way_is_handed_on(self) -> None:
        evicted: list[Entry] = []
        held = Buffer(SinkOptions(buffer_size=2), evicted.append)
        fill(held, 5)
        assert seqs(evicted) == [1, 2, 3]

    @pytest.mark.parametrize("events", [2, 3])
    def test_what_is_in_flight_never_gives_way(self, events: int) -> None:
        held = buffer("drop_oldest", events=events)
        fill(held, events)
        batch = held.take(events, 10**6)
        assert not held.put(record())
        assert check(held) == Balance(events + 1, events, {"buffer_full": 1}, in_flight=events)
        held.settle(Settlement(delivered=batch), None)
        assert held.put(record())

    def test_nothing_gives_way_for_an_event_that_will_not_fit_even_so(self) -> None:
        held = buffer("drop_oldest", events=10, room=1000)
        fill(held, 4, size=300)
        held.take(3, 10**6)
        assert not held.put(record(b"x" * 5000))
        assert check(held).refused == {"buffer_full": 1}
        assert check(held).buffered == 1

    def test_drop_newest_refuses_the_new_one(self) -> None:
        held = buffer("drop_newest", events=3)
        fill(held, 3)
        assert not held.put(record())
        assert check(held) == Balance(4, 3, {"buffer_full": 1}, buffered=3)

    def test_raise_error_tells_the_caller(self) -> None:
        held = buffer("raise_error", events=3)
        fill(held, 3)
        with pytest.raises(BufferFullError, match=r"3 events or .* bytes wait for the broker; raise buffer_size"):
            held.put(record())
        assert check(held) == Balance(4, 3, {"buffer_full": 1}, buffered=3)

    def test_block_refuses_when_its_time_is_over(self) -> None:
        held = buffer("block", events=3)
        fill(held, 3)
        assert not held.put(record())
        assert check(held) == Balance(4, 3, {"buffer_full": 1}, buffered=3)

    def test_block_refuses_when_the_buffer_is_closed(self) -> None:
        held = buffer("block", events=3, block_timeout=3600.0)
        fill(held, 3)
        held.close()
        assert not held.put(record())
        assert check(held).refused == {"stopped": 1}

    @pytest.mark.parametrize("strategy", ["block", "raise_error"])
    def test_waiting_for_room_or_a_flush_in_vain_leaves_nothing_behind(self, strategy: str) -> None:
        held = buffer(strategy, events=2)
        fill(held, 2)
        for _ in range(100):
            try:
                held.put(record())
            except BufferFullError:
                pass
            assert not held.wait_settled(2, 0.0)
        assert len(held._waiters) == 0
        assert check(held).refused == {"buffer_full": 100}


class TestTake:
    def test_is_limited_in_events(self) -> None:
        held = buffer(events=10)
        fill(held, 5)
        assert seqs(held.take(3, 10**6)) == [1, 2, 3]
        assert seqs(held.take(3, 10**6)) == [4, 5]
        assert held.take(3, 10**6) == []

    def test_is_limited_in_bytes_but_takes_one_at_least(self) -> None:
        held = buffer(events=10)
        for size in (10, 10, 10, 100, 1):
            held.put(record(b"x" * size))
        assert seqs(held.take(10, 25)) == [1, 2]
        assert seqs(held.take(10, 30)) == [3]
        assert seqs(held.take(10, 30)) == [4]
        assert seqs(held.take(10, 30)) == [5]
        assert check(held).in_flight == 5

    def test_of_an_empty_buffer_is_nothing(self) -> None:
        assert buffer().take(10, 10**6) == []

    @given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 10), st.integers(1, 120))
    def test_keeps_the_order_and_its_limits(self, sizes: list[int], max_events: int, max_bytes: int) -> None:
        held = buffer(events=100)
        for size in sizes:
            held.put(record(b"x" * size))
        taken: list[Entry] = []
        while batch := held.take(max_events, max_bytes):
            assert len(batch) <= max_events
            assert len(batch) == 1 or sum(len(entry.record.payload) for entry in batch) <= max_bytes
            taken += batch
            check(held)
        assert seqs(taken) == list(range(1, len(sizes) + 1))
        assert held.settle(Settlement(delivered=taken), None)
        check(held)


class TestActivity:
    @pytest.mark.parametrize("events", [10, 100])  # under the lock; by the inbox
    def test_is_set_when_so_many_wait(self, events: int) -> None:
        held = buffer(events=events)
        assert held.waiting(3) == 0
        fill(held, 2)
        assert not held.activity.wait(0)
        fill(held, 1)
        assert held.activity.wait(0)
        assert held.waiting(0) == 3
        fill(held, 4)
        assert not held.activity.wait(0)

    def test_is_set_by_whoever_numbers_what_another_thread_has_just_put_there(self) -> None:
        held = buffer(events=100)
        assert held.waiting(1) == 0
        held._inbox.records.append(record())  # and has not looked yet whether that is enough
        assert held.read().buffered == 1
        assert held.activity.wait(0)

    def test_is_not_set_when_so_many_waited_already(self) -> None:
        held = buffer(events=10)
        fill(held, 3)
        assert held.waiting(3) == 3
        fill(held, 3)
        assert not held.activity.wait(0)

    def test_expired_events_are_counted_and_make_room(self) -> None:
        held = buffer(events=10)
        for created in (1, 5, 9):
            held.put(record(created=created))
        expired, oldest = held.expire(6)
        assert (seqs(expired), oldest) == ([1, 2], 9)
        assert check(held) == Balance(3, 3, dropped={"expired": 2}, buffered=1)
        assert held.expire(6) == ([], 9)
        assert held.expire(10)[1] is None
        fill(held, 1)
        assert held.activity.wait(0)


class TestSettled:
    def test_waits_for_what_was_accepted_before_only(self) -> None:
        held = buffer(events=10)
        assert held.wait_settled(held.last_seq, 0.0)
        fill(held, 2)
        seq = held.last_seq
        assert not held.wait_settled(seq, 0.0)
        first = held.take(1, 10**6)
        assert not held.wait_settled(seq, 0.0)
        held.settle(Settlement(delivered=first), None)
        assert held.wait_settled(1, 0.0)
        assert not held.wait_settled(2, 0.0)
        second = held.take(1, 10**6)
        fill(held, 3)
        held.settle(Settlement(dropped=[(second[0], "rejected")]), None)
        assert held.wait_settled(seq, 0.0)
        assert not held.wait_settled(held.last_seq, 0.0)

    def test_what_is_still_in_flight_is_not_settled(self) -> None:
        held = buffer(events=10)
        fill(held, 3)
        one, two, three = held.take(3, 10**6)
        held.settle(Settlement(delivered=[two]), 1)
        assert not held.wait_settled(2, 0.0)
        assert held.wait_settled(0, 0.0)
        held.settle(Settlement(delivered=[one]), 3)
        assert held.wait_settled(2, 0.0)
        held.settle(Settlement(delivered=[three]), None)
        assert held.wait_settled(3, 0.0)
        check(held)

    def test_what_was_evicted_is_settled(self) -> None:
        held = buffer(events=2)
        fill(held, 2)
        seq = held.last_seq
        fill(held, 2)
        assert held.wait_settled(seq, 0.0)


class TestGiveUp:
    def test_drops_what_waits_and_what_has_no_answer(self) -> None:
        held = buffer(events=10)
        fill(held, 5)
        held.take(2, 10**6)
        waited = held.give_up()
        assert seqs(waited) == [3, 4, 5]
        assert check(held) == Balance(5, 5, dropped={SHUTDOWN: 3, UNCONFIRMED: 2})
        assert held.wait_settled(5, 0.0)

    def test_nothing_changes_after_it(self) -> None:
        held = buffer(events=10)
        fill(held, 2)
        batch = held.take(2, 10**6)
        held.give_up()
        before = check(held)
        assert not held.settle(Settlement(delivered=batch), None)
        assert held.give_up() == []
        assert check(held) == before
        assert not held.put(record())
        assert check(held).refused == {"stopped": 1}
        assert held.take(10, 10**6) == []

    def test_of_an_empty_buffer_counts_nothing(self) -> None:
        held = buffer()
        assert held.give_up() == []
        assert check(held) == Balance()


FILES = frozenset(str(part.__file__) for part in (module, inbox, waiters))


class Interrupted(BaseException):
    """What a signal handler may raise, as KeyboardInterrupt is."""


class Interruption:
    """Does something at the n-th moment inside the buffer's code: before a line, or at a call or return of a function.

    The latter are the moments at which Python runs signal handlers; a garbage collection may come at others too.
    """

    def __init__(self, moment: int, action: Callable[[], object], lines: bool) -> None:
        self.reached = False
        self.where = ""
        self._moment = moment
        self._action = action
        self._lines = lines
        self._seen = 0
        self._locked: set[tuple[FrameType, int]] = set()

    def __enter__(self) -> None:
        self._before = sys.gettrace(), sys.getprofile()
        if self._lines:
            sys.settrace(self._trace)
        else:
            sys.setprofile(self._profile)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before[0])
        sys.setprofile(self._before[1])

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename in FILES:
            if event == "line" and not self._is_leaving(frame):
                self._count(frame)
            return self._trace
        return None

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        leaving = event == "c_call" and getattr(argument, "__name__", "") == "__exit__"
        if frame.f_code.co_filename in FILES and not leaving:
            self._count(frame)

    def _is_leaving(self, frame: FrameType) -> bool:
        """Whether a block is about to be entered or left: a trace function may raise there, but Python itself does not."""
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if line == "with self._lock:":
            if (frame, frame.f_lineno) in self._locked:
                return True
            self._locked.add((frame, frame.f_lineno))
        return line in ("self._busy = False", "try:")

    def _count(self, frame: FrameType) -> None:
        self._seen += 1
        if self._seen == self._moment and not self.reached:
            self.reached = True
            self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}, {'line' if self._lines else 'call'}"
            # Python neither traces nor profiles what is called from here.
            self._action()


def empty() -> Buffer:
    held = buffer(events=10)
    held.waiting(1)
    return held


def arriving() -> Buffer:
    """Nearly all of it lies in the inbox."""
    held = buffer("drop_oldest", events=40)
    held.waiting(3)
    fill(held, 5)
    return held


def full(strategy: str = "drop_oldest") -> Buffer:
    held = buffer(strategy, events=3, room=1000)
    fill(held, 3, size=300)
    return held


def full_and_telling() -> Buffer:
    """What gives way is to be declared."""
    held = Buffer(SinkOptions(buffer_size=3, buffer_bytes=1000 + 3 * ENTRY_OVERHEAD), holes=Holes())
    fill(held, 3, size=300)
    return held


def flying() -> Buffer:
    held = full()
    held.take(2, 10**6)
    return held


def closed() -> Buffer:
    held = full()
    held.close()
    return held


STATES: dict[str, Callable[[], Buffer]] = {
    "empty": empty,
    "in the inbox": arriving,
    "full, drop_oldest": full,
    "full, and gaps are told": full_and_telling,
    "full, drop_newest": lambda: full("drop_newest"),
    "full, block": lambda: full("block"),
    "full, raise_error": lambda: full("raise_error"),
    "in flight": flying,
    "closed": closed,
}

LARGE = record(b"x" * 700)
LONG = record(b"x" * 5000)  # which goes around the inbox

CALLS: dict[str, Callable[[Buffer], object]] = {
    "put": lambda held: held.put(LARGE),
    "put, under the lock": lambda held: held.put(LONG),
    "refuse": lambda held: held.refuse("filtered"),
    "read": lambda held: held.read(),
    "wait_settled": lambda held: held.wait_settled(held.last_seq, 0.0),
}


def at_every_moment(
    state: str, call: str, action: Callable[[Buffer], object]
) -> Iterator[tuple[Buffer, Balance, object, str]]:
    """Make a call once for each moment in it, and do something at that moment.

    Yields the buffer, its balance before, what the call returned or raised, and where that moment was.
    """
    for lines in (True, False):
        for moment in range(1, 1000):
            held = STATES[state]()
            before = STATES[state]().read()
            interruption = Interruption(moment, partial(action, held), lines)
            try:
                with interruption:
                    result = CALLS[call](held)
            except (Interrupted, BufferFullError) as error:
                result = error
            if not interruption.reached:
                assert moment > 5
                break
            assert not held._lock._is_owned(), f"{interruption.where}: the lock is kept"  # type: ignore[attr-defined]
            yield held, before, result, interruption.where


def works_on(held: Buffer, where: str) -> None:
    """Whatever happened before, from now on it is a buffer like any other."""
    before = check(held)
    assert not held._side, where
    assert len(held._waiters) <= 1, where
    if before.buffered and before.accepted <= 2:
        assert held.activity.wait(0), f"{where}: the worker, which waits for one, is not told"
    assert held.bytes_held == sum(size_of(entry.record) for entry in held._waiting) + held._flying_bytes, where
    if held._holes is not None:
        waiting = {entry.seq for entry in held._waiting}
        told = {seq for seq in range(1, before.accepted + 1) if seq in held._holes}
        assert told == set(range(1, before.accepted + 1)) - waiting, where
    try:
        held.put(record())
    except BufferFullError:
        pass
    held.refuse("filtered")
    after = check(held)
    assert after.offered == before.offered + 2, f"{where}: it is stuck"
    numbers = seqs(sorted(held._waiting, key=lambda entry: entry.seq))
    assert numbers == sorted(set(numbers)), where
    batch = held.take(10**6, 10**9)
    assert held.settle(Settlement(delivered=batch), None)
    assert check(held).buffered == 0
    assert held.bytes_held == held._flying_bytes


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", STATES)
class TestInterrupted:
    def test_by_an_exception_at_any_moment_the_balance_holds(self, state: str, call: str) -> None:
        def interrupt(_held: Buffer) -> None:
            raise Interrupted

        for held, before, result, where in at_every_moment(state, call, interrupt):
            assert isinstance(result, Interrupted), where
            assert check(held).offered - before.offered in (0, 1), where
            works_on(held, where)

    def test_by_an_event_at_any_moment_both_are_counted(self, state: str, call: str) -> None:
        def emit(held: Buffer) -> None:
            try:
                held.put(record())
            except BufferFullError:
                pass

        for held, before, result, where in at_every_moment(state, call, emit):
            if isinstance(result, Balance):
                assert result.balanced, where
            expected = before.offered + 1 + (call != "read" and call != "wait_settled")
            assert check(held).offered == expected, where
            works_on(held, where)

    def test_by_a_refusal_at_any_moment_both_are_counted(self, state: str, call: str) -> None:
        for held, before, _, where in at_every_moment(state, call, lambda held: held.refuse("filtered")):
            counted = check(held)
            assert counted.refused["filtered"] == 1 + (call == "refuse"), where
            assert counted.offered == before.offered + 1 + (call != "read" and call != "wait_settled"), where
            works_on(held, where)

    def test_by_an_event_and_then_an_exception_the_event_is_not_lost(self, state: str, call: str) -> None:
        def emit_and_raise(held: Buffer) -> None:
            held.refuse("emitted")
            raise Interrupted

        for held, _, result, where in at_every_moment(state, call, emit_and_raise):
            assert isinstance(result, Interrupted), where
            assert check(held).refused["emitted"] == 1, where
            works_on(held, where)

    def test_by_a_reading_at_any_moment_it_is_a_balanced_one(self, state: str, call: str) -> None:
        readings: list[Balance] = []
        for held, _, _, where in at_every_moment(state, call, lambda held: readings.append(held.read())):
            assert readings.pop().balanced, where
            works_on(held, where)


class TestReentry:
    def test_a_finaliser_that_runs_in_a_put_may_put(self) -> None:
        held = buffer(events=10_000)

        class Emits:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                held.put(record(b"from a finaliser"))

        before = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            for _ in range(200):
                Emits()
                held.put(record(b"from the program"))
            gc.collect()
        finally:
            gc.set_threshold(*before)
        payloads = [entry.record.payload for entry in settle_all(held)]
        assert payloads.count(b"from a finaliser") == 200
        assert payloads.count(b"from the program") == 200
        assert check(held).delivered == 400

    def test_a_signal_handler_that_runs_in_a_put_may_put(self) -> None:
        held = buffer(events=100_000)
        handled = 0

        def handler() -> None:
            nonlocal handled
            handled += 1
            held.put(record(b"from the handler"))

        puts = 0
        with interrupted(handler, 0.0001, cpu_time=True):
            while handled < 20 and puts < 90_000:
                held.put(record())
                puts += 1
        assert handled
        assert check(held).offered == puts + handled

    def test_ctrl_c_in_a_put_leaves_the_balance(self) -> None:
        held = buffer(events=100)

        def handler(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGVTALRM, handler)
        caught = 0
        try:
            for _ in range(20):
                try:
                    with untraced():
                        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0001)
                        for _ in range(10_000_000):
                            held.put(record())
                except KeyboardInterrupt:
                    caught += 1
                check(held)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        assert caught == 20
        works_on(held, "after Ctrl-C")


class Life(RuleBasedStateMachine):
    """Anything the application and the worker may do, in any order, against a list of what should be where."""

    @initialize(
        strategy=st.sampled_from(OVERFLOW_STRATEGIES),
        events=st.integers(2, 8),
        room=st.none() | st.integers(0, 300),
        spare=st.sampled_from([0, inbox.SPARE]),
    )
    def begin(self, strategy: str, events: int, room: int | None, spare: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "SPARE", spare)  # none: of this thread's events, as many as can be lie in the inbox
        self.strategy = strategy
        self.held = buffer(strategy, events=events, room=room)
        self.options = self.held._options
        self.waiting: deque[tuple[int, int]] = deque()
        self.flying: list[Entry] = []
        self.offered = self.accepted = 0
        self.closed = self.sealed = False

    def is_full(self, size: int) -> bool:
        used = sum(size for _, size in self.waiting) + sum(size_of(entry.record) for entry in self.flying)
        count = len(self.waiting) + len(self.flying)
        return count >= self.options.buffer_size or used + size > self.options.buffer_bytes

    @rule(size=st.one_of(st.integers(0, 100), st.integers(0, 6000)))
    def put(self, size: int) -> None:
        self.offered += 1
        counted = size + ENTRY_OVERHEAD
        fits = not self.closed and counted <= self.options.buffer_bytes
        in_flight = sum(size_of(entry.record) for entry in self.flying)
        if fits and self.strategy == "drop_oldest" and in_flight + counted <= self.options.buffer_bytes:
            while self.waiting and self.is_full(counted):
                self.waiting.popleft()
        fits = fits and not self.is_full(counted)
        try:
            assert self.held.put(record(b"x" * size)) == fits
        except BufferFullError:
            assert self.strategy == "raise_error"
            assert not fits
        if fits:
            self.accepted += 1
            self.waiting.append((self.accepted, counted))

    @rule(events=st.integers(1, 5), size=st.integers(1, 5000))
    def take(self, events: int, size: int) -> None:
        batch = self.held.take(events, size)
        assert seqs(batch) == [seq for seq, _ in list(self.waiting)[: len(batch)]]
        assert bool(batch) == bool(self.waiting)
        for _ in batch:
            self.waiting.popleft()
        self.flying += batch

    @precondition(lambda self: self.flying)
    @rule(n=st.integers(1, 5), fate=st.sampled_from(["delivered", "dead_lettered", "dropped"]))
    def settle(self, n: int, fate: str) -> None:
        settled, left = self.flying[:n], self.flying[n:]
        values: Any = [(entry, "expired") for entry in settled] if fate == "dropped" else settled
        assert self.held.settle(Settlement(**{fate: values}), left[0].seq if left else None) == (not self.sealed)
        self.flying = left

    @rule()
    def refuse(self) -> None:
        self.offered += 1
        self.held.refuse("filtered")

    @rule()
    def close(self) -> None:
        self.held.close()
        self.closed = True

    @rule()
    def give_up(self) -> None:
        waited = self.held.give_up()
        assert seqs(waited) == [seq for seq, _ in self.waiting]
        self.waiting.clear()
        self.flying.clear()
        self.closed = self.sealed = True

    @rule(seq=st.integers(0, 30))
    def flush(self, seq: int) -> None:
        pending = [number for number, _ in self.waiting] + [entry.seq for entry in self.flying]
        assert self.held.wait_settled(seq, 0.0) == all(number > seq for number in pending)

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "held"):
            return
        balance = check(self.held)
        assert (balance.offered, balance.accepted) == (self.offered, self.accepted)
        assert (balance.buffered, balance.in_flight) == (len(self.waiting), len(self.flying))
        used = sum(size for _, size in self.waiting) + sum(size_of(entry.record) for entry in self.flying)
        assert self.held.bytes_held == used <= self.options.buffer_bytes
        assert len(self.held) <= self.options.buffer_size
        assert not self.held._waiters

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()


TestLife = Life.TestCase


@pytest.mark.parametrize("length", [0, 200, 2000])
def test_the_overhead_of_an_entry_is_about_what_it_takes(length: int) -> None:
    pipeline = Pipeline()
    held = buffer(events=20_000)
    held.put(pipeline.encode(StreamllEvent(event_type="warm")))
    before_bytes = held.bytes_held
    tracemalloc.start()
    try:
        for n in range(2000):
            event = StreamllEvent(
                event_type="token",
                operation="generate",
                execution_id=f"{n:032x}",
                module_name="app.module",
                method_name="Answer.generate",
                data={"text": "x" * length},
            )
            held.put(pipeline.encode(event))
            del event
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = held.bytes_held - before_bytes
    assert counted / 2 < taken < counted * 2
