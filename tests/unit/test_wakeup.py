"""A flag that may be set from anywhere."""

from __future__ import annotations

import _thread
import threading

import pytest

from streamll.runtime.wakeup import Wakeup


def test_is_not_set_at_first() -> None:
    assert not Wakeup().wait(0)
    assert not Wakeup().wait(-1.0)


def test_is_set_once_however_often_and_reset_by_waiting() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert wakeup.wait(0)
    assert not wakeup.wait(0)


def test_wakes_one_that_waits() -> None:
    wakeup = Wakeup()
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(wakeup.wait(30.0)))
    thread.start()
    wakeup.set()
    thread.join(30.0)
    assert woken == [True]


def test_a_time_may_be_over() -> None:
    assert not Wakeup().wait(0.001)


def test_its_lock_is_of_the_kind_that_is_there_when_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where gevent puts its own in the place of Python's, between the two."""
    wakeup = Wakeup()
    wakeup.set()
    made = []

    def allocate_lock() -> threading.Lock:
        made.append(threading.Lock())
        return made[-1]

    monkeypatch.setattr(_thread, "allocate_lock", allocate_lock)
    assert wakeup.wait(30.0)
    assert not wakeup.wait(0)
    assert len(made) == 1
    assert made[0].locked()
