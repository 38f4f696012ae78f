"""The buffer between threads: many put, one takes and settles, some wait for room or for a flush, anyone reads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from streamll.delivery.machine import Settlement
from streamll.delivery.outcome import Entry
from streamll.errors import BufferFullError
from streamll.options import OVERFLOW_STRATEGIES, SinkOptions
from streamll.runtime.buffer import Buffer
from tests.unit.deliveries import record, seqs, untraced

PATIENCE = 30.0

pytestmark = pytest.mark.concurrent


def buffer(strategy: str = "drop_oldest", events: int = 4, **options: Any) -> Buffer:
    return Buffer(SinkOptions(buffer_size=events, buffer_overflow_strategy=strategy, **options))


@contextmanager
def in_thread(function: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(function)


def until_waiting(held: Buffer, waiters: int) -> None:
    """Return once so many threads wait; they say so before they wait."""
    while len(held._waiters) < waiters:
        threading.Event().wait(0.001)


def settle(held: Buffer, n: int) -> list[Entry]:
    batch = held.take(n, 10**9)
    held.settle(Settlement(delivered=batch), None)
    return batch


class TestBlock:
    def test_waits_for_room_and_takes_it(self) -> None:
        held = buffer("block", events=2, block_timeout=PATIENCE)
        assert held.put(record())
        assert held.put(record())
        with in_thread(lambda: held.put(record(b"late"))) as put:
            until_waiting(held, 1)
            assert not put.done()
            settle(held, 1)
            assert put.result(PATIENCE) is True
        assert [entry.record.payload for entry in settle(held, 10)] == [b"x", b"late"]
        assert held.read().balanced
        assert not held._waiters

    def test_refuses_at_the_end_of_its_time(self) -> None:
        held = buffer("block", events=2, block_timeout=0.05)
        held.put(record())
        held.put(record())
        with in_thread(lambda: held.put(record())) as put:
            assert put.result(PATIENCE) is False
        assert held.read().refused == {"buffer_full": 1}
        assert not held._waiters

    def test_all_who_wait_get_room_as_it_comes(self) -> None:
        held = buffer("block", events=2, block_timeout=PATIENCE)
        held.put(record())
        held.put(record())
        with ThreadPoolExecutor(8) as executor:
            puts = [executor.submit(held.put, record()) for _ in range(8)]
            settled = 0
            while settled < 10:
                settled += len(settle(held, 1))
            assert all(put.result(PATIENCE) for put in puts)
        assert held.read().delivered == 10
        assert held.read().balanced

    def test_is_refused_as_soon_as_the_buffer_is_given_up(self) -> None:
        held = buffer("block", events=2, block_timeout=PATIENCE)
        held.put(record())
        held.put(record())
        with in_thread(lambda: held.put(record())) as put:
            until_waiting(held, 1)
            held.give_up()
            assert put.result(PATIENCE) is False
        assert held.read().refused == {"stopped": 1}

    def test_ctrl_c_ends_the_wait_and_the_event_was_never_offered(self) -> None:
        held = buffer("block", events=2, block_timeout=PATIENCE)
        held.put(record())
        held.put(record())

        def interrupt() -> None:
            until_waiting(held, 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        with in_thread(interrupt), pytest.raises(KeyboardInterrupt), untraced():
            held.put(record())
        assert held.read().offered == 2
        assert not held._waiters
        settle(held, 1)
        assert held.put(record())
        assert held.read().balanced

    def test_a_signal_handler_may_put_meanwhile(self) -> None:
        held = buffer("block", events=2, block_timeout=0.2)
        held.put(record())
        held.put(record())
        put_by_handler: list[bool] = []

        def handler(*_: object) -> None:
            put_by_handler.append(held.put(record()))

        def interrupt() -> None:
            until_waiting(held, 1)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            with in_thread(interrupt):
                assert held.put(record()) is False
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert put_by_handler == [False]
        assert held.read().refused == {"buffer_full": 2}
        assert held.read().balanced


class TestFlush:
    def test_ends_when_all_of_it_is_settled(self) -> None:
        held = buffer(events=10)
        for _ in range(3):
            held.put(record())
        with in_thread(lambda: held.wait_settled(3, PATIENCE)) as flush:
            until_waiting(held, 1)
            settle(held, 2)
            held.put(record())
            settle(held, 1)
            assert flush.result(PATIENCE) is True
        assert held.read().buffered == 1

    def test_ends_when_everything_is_given_up(self) -> None:
        held = buffer(events=10)
        held.put(record())
        held.take(1, 10**6)
        held.put(record())
        with in_thread(lambda: held.wait_settled(2, PATIENCE)) as flush:
            until_waiting(held, 1)
            held.give_up()
            assert flush.result(PATIENCE) is True

    def test_ends_when_what_it_waits_for_gives_way(self) -> None:
        held = buffer(events=2)
        held.put(record())
        with in_thread(lambda: held.wait_settled(1, PATIENCE)) as flush:
            until_waiting(held, 1)
            for _ in range(3):
                held.put(record())
            assert flush.result(PATIENCE) is True

    def test_many_may_wait_at_once(self) -> None:
        held = buffer(events=10)
        for _ in range(5):
            held.put(record())
        with ThreadPoolExecutor(5) as executor:
            flushes = [executor.submit(held.wait_settled, seq, PATIENCE) for seq in range(1, 6)]
            until_waiting(held, 5)
            settle(held, 10)
            assert all(flush.result(PATIENCE) for flush in flushes)
        assert not held._waiters


@pytest.mark.parametrize("strategy", OVERFLOW_STRATEGIES)
def test_many_threads_at_once_keep_the_balance_and_the_order(strategy: str) -> None:
    threads, each = 6, 400
    evicted: list[Entry] = []
    options = SinkOptions(buffer_size=50, buffer_overflow_strategy=strategy, block_timeout=PATIENCE)
    held = Buffer(options, evicted.append)
    accepted = [0] * threads
    finished = threading.Event()
    taken: list[Entry] = []
    readings = 0

    def produce(number: int) -> None:
        for n in range(each):
            try:
                accepted[number] += held.put(record(f"{number}:{n}".encode()))
            except BufferFullError:
                pass

    def consume() -> None:
        while not finished.is_set() or len(held):
            batch = held.take(7, 10**6)
            taken.extend(batch)
            half = len(batch) // 2
            for part in (batch[:half], batch[half:]):
                if part:
                    left = batch[half].seq if part[0].seq != batch[half].seq else None
                    held.settle(Settlement(delivered=part), left)
            if not batch:
                held.waiting(1)
                held.activity.wait(0.01)

    def read() -> int:
        n = 0
        while not finished.is_set():
            assert held.read().balanced
            assert held.bytes_held >= 0
            n += 1
        return n

    with ThreadPoolExecutor(threads + 2) as executor:
        consumer, reader = executor.submit(consume), executor.submit(read)
        try:
            for producer in [executor.submit(produce, number) for number in range(threads)]:
                producer.result(PATIENCE)
        finally:
            finished.set()
        consumer.result(PATIENCE)
        readings = reader.result(PATIENCE)
    assert readings
    balance = held.read()
    assert balance.balanced
    assert balance.offered == threads * each
    assert balance.accepted == sum(accepted) == held.last_seq
    assert balance.delivered == len(taken) == balance.accepted - len(evicted)
    assert held.bytes_held == 0
    assert sorted(seqs(taken) + seqs(evicted)) == list(range(1, balance.accepted + 1))
    assert seqs(taken) == sorted(seqs(taken))
    for number in range(threads):
        mine = [
            int(entry.record.payload.split(b":")[1])
            for entry in taken
            if entry.record.payload.startswith(b"%d:" % number)
        ]
        assert mine == sorted(mine), "what one thread emitted keeps its order"
    if strategy == "block":
        assert sum(accepted) == threads * each
