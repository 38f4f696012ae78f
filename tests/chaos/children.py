"""Processes that emit and end: in peace, in the middle, or in the middle of a jump through time.

What belongs here: what runs in a child, and the verdict on what it left. What does not: when one is started (real.py).
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import resource
import select
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from streamll.models import GAP, StreamllEvent
from streamll.sinks.base import Sink, SinkStats
from tests.chaos.clock import jump
from tests.chaos.oracle import Found, Place, Verdict, Witness, judge
from tests.fixtures.waiting import PATIENCE, wait_until

FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def quiet_fork() -> Iterator[None]:
    """Fork without warnings: Python 3.12 warns of threads, which this is about, and coverage in the child of modules that
    are there already, which must be no error there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def end(process: Any, patience: float) -> None:
    """Wait for a child, and then no longer."""
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows: the disk is full, as far as it can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_in(spool: str) -> set[str]:
    """The producers of which something lies in a spool."""
    try:
        return {path.parent.name for path in Path(spool).glob("*/*/*.segment")}
    except FileNotFoundError:  # a folder went away while it was looked at
        return {"some"}


def is_over(sink: Sink, timeout: float) -> bool:
    """Whether the worker's thread of a stopped sink ends."""
    name = f"streamll-{sink.name}"
    return wait_until(lambda: name not in {thread.name for thread in threading.enumerate()}, timeout, 0.0005)


def emit_in_child(
    sink: Sink, witness: Witness, sending: Any, events: Sequence[StreamllEvent], way: str, timeout: float
) -> None:
    """Emit with the sink that the child inherited, tell the parent, and end."""
    logging.disable()
    for place, event in enumerate(events):
        if way == "clock" and place % 3 == 0:
            jump((86_400.0, -200_000.0, 50_000.0)[place // 3 % 3])
        witness.offer(sink, event)
    if way != "leave":
        sink.stop(timeout)
        is_over(sink, PATIENCE)  # the last reports may come late
    sending.send((witness, sink.producer, sink.stats()))
    sending.close()


class Child:
    """What a child left at the destination: the verdict is for later, when all is over.

    Attributes:
        producer: Its sink's.
    """

    producer: str

    def judge(self, place: Place, may_miss: int | None) -> Verdict:
        """Say what is wrong; the arguments are those of `oracle.judge`."""
        raise NotImplementedError


class Stopped(Child):
    """A child that stopped its sink and told all it knew."""

    def __init__(self, witness: Witness, producer: str, stats: SinkStats, closing: bool | None) -> None:
        self.producer = producer
        self._witness = witness
        self._stats = stats
        self._closing = closing

    def judge(self, place: Place, may_miss: int | None) -> Verdict:
        """See Child."""
        verdict = judge(self._witness, self._stats, place, self._closing, may_miss=may_miss)
        return Verdict(f"in a child: {text}" for text in verdict)


class Left(Child):
    """A child that just ended while all was well."""

    def __init__(self, witness: Witness, producer: str, room: int) -> None:
        self.producer = producer
        self._witness = witness
        self._room = room

    def judge(self, place: Place, may_miss: int | None) -> Verdict:
        """See Child."""
        verdict = Verdict()
        there = {found.event_id for found in events_of(self.producer, place)}
        accepted = self._witness.accepted
        verdict.hold(there <= accepted, "a child's sink delivered what it had not accepted")
        if len(accepted) <= self._room and may_miss is not None:
            verdict.hold(there == accepted, f"a child that ended delivered {len(there)} of {len(accepted)}")
        return verdict


class Killed(Child):
    """An application that was killed, with all that it had been told by then.

    Args:
        producer: Its sink's.
        events: What it was to emit, in order.
        answers: For each event that was answered before the end, whether it was accepted.
        torn: How the disk was hurt after that, so that events may be missing, but nothing else; empty: not at all.
    """

    def __init__(self, producer: str, events: Sequence[StreamllEvent], answers: Sequence[bool], torn: str) -> None:
        self.producer = producer
        self._events = events
        self._answers = answers
        self._torn = torn

    def judge(self, place: Place, may_miss: int | None) -> Verdict:
        """See Child: what was accepted is there, once, in order and under its number; and nothing else but the one
        event whose answer was under way.
        """
        verdict = Verdict()
        accepted = [event.event_id for event, yes in zip(self._events, self._answers, strict=False) if yes]
        numbers = dict(enumerate(accepted, 1))
        found = events_of(self.producer, place)
        under_way = len(accepted) + 1
        for one in found:
            expected = numbers.get(one.seq)
            if expected is None:
                emitting = self._events[len(self._answers)].event_id if len(self._answers) < len(self._events) else ""
                ok = one.seq == under_way and one.event_id == emitting
                verdict.hold(ok, f"a killed application: number {one.seq} of {len(accepted)} was never accepted")
            else:
                verdict.hold(one.event_id == expected, f"a killed application: {one.seq} is another event")
        there = {one.seq for one in found}
        missing = sorted(numbers.keys() - there)
        if not self._torn and may_miss is not None:
            verdict.hold(not missing, f"a killed application had accepted {len(accepted)}, and lost {missing}")
        stored = [one.seq for one in place.stored if one.producer == self.producer]
        if place.once:
            verdict.hold(len(set(stored)) == len(stored), "a killed application: an event is there twice")
            verdict.hold(len(found) == len(there), "a killed application: stored and dead, or dead twice")
            verdict.hold(stored == sorted(stored), "a killed application: out of order")
        gaps = [one for one in place.stored if one.producer == self.producer and one.event_type == GAP]
        told = {seq for gap in gaps for first, last in gap.ranges() for seq in range(first, last + 1)}
        verdict.hold(not told & there, f"a killed application: declared as lost, and there: {sorted(told & there)}")
        silent = [seq for seq in missing if there and min(there) < seq < max(there) and seq not in told]
        # Of a whole file that is gone nobody knows what was in it, when it was the first.
        verdict.hold(not silent or self._torn in ("cut", "empty"), f"a killed application: not a word of {silent}")
        return verdict


def events_of(producer: str, place: Place) -> list[Found]:
    """A producer's events and dead letters, notes left out."""
    return [found for found in (*place.stored, *place.dead) if found.producer == producer and not found.is_note]


def be_an_application(sink: Sink, writing: int, events: Sequence[StreamllEvent], ends_after: int, how: str) -> None:
    """In a child: emit, say to a pipe what was answered, and end in the middle, unless killed before.

    Args:
        sink: A sink of its own.
        writing: The pipe: the producer's id and a line's end, then a 1 or a 0 for each event.
        events: What to emit.
        ends_after: After so many events it ends by itself.
        how: "_exit", "crash" (a segmentation fault), or "wait" (for the parent to kill it).
    """
    logging.disable()
    os.write(writing, sink.producer.encode() + b"\n")
    for place, event in enumerate(events):
        if place == ends_after and how == "crash":
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.SIGSEGV)
        elif place == ends_after and how == "_exit":
            os._exit(0)
        os.write(writing, b"1" if sink.handle_event(event) else b"0")
    while True:  # it is killed
        time.sleep(1.0)


def read_answers(descriptor: int, patience: float, count: int | None = None) -> bytes:
    """Read what an application tells: the first line and so many answers, or, without a number, all until its end."""
    told = b""
    while count is None or b"\n" not in told or len(told.partition(b"\n")[2]) < count:
        if not select.select([descriptor], [], [], patience)[0]:
            break
        more = os.read(descriptor, 65_536)
        if not more:
            break
        told += more
    return told
