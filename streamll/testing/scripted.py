"""ScriptedTransport: a transport that answers from a script, for tests of what a sink decides.

It shows decisions only: what is sent again, halved, dead-lettered, given up, and when. It proves nothing about a real
broker; each test with it wants a twin on a real server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.options import SinkOptions
from streamll.sinks.base import Sink, Transport

UNAVAILABLE = BatchOutcome(Failure.UNAVAILABLE, error="scripted: unavailable")
REJECTED = BatchOutcome(Failure.REJECTED, error="scripted: rejected")
FATAL = BatchOutcome(Failure.FATAL, error="scripted: fatal")
DELIVERED = BatchOutcome()


@dataclass
class Hang:
    """A step that does not answer until the deadline, an interrupt, or `release()`.

    Attributes:
        then: The outcome after `release`; without it, and after an interrupt, it is UNAVAILABLE.
        stubborn: Whether it goes on beyond deadline and interrupt, as a call that cannot be ended.
        reached: Set as soon as the step has begun.
    """

    then: BatchOutcome = DELIVERED
    stubborn: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _interrupted: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let it answer."""
        self._released.set()
        self._interrupted.set()

    def wait(self, deadline: float) -> BatchOutcome:
        """Wait, and return what to answer."""
        self.reached.set()
        if self.stubborn:
            self._released.wait()
        else:
            self._interrupted.wait(max(0.0, deadline - monotonic()))
        return self.then if self._released.is_set() else UNAVAILABLE


Answer = BatchOutcome | Exception | Hang
Step = Answer | Callable[[Sequence[Entry]], Answer]


class ScriptedTransport(Transport):
    """Answers each `send` with the next step of a script: an outcome, an error to raise, a `Hang`, or a function.

    A function gets the batch and returns one of the others: with it a test can be a whole broker.

    After an answer of UNAVAILABLE or FATAL, and after an error, it is no longer open, as the contract wants it.

    Args:
        steps: The answers, in order.
        opening: What each `open` does, in order: None, an error to raise, or a `Hang`; afterwards it succeeds.
        then: The answer when the script is over; default: delivered.

    Attributes:
        sent: Every batch that was sent, in order.
        opened: Times that `open` succeeded.
        closed: The `clean` of every `close`.
        threads: The names of the threads that called.
    """

    service_interval: float | None = None

    def __init__(
        self, steps: Iterable[Step] = (), opening: Iterable[Exception | Hang | None] = (), then: Step = DELIVERED
    ) -> None:
        self.sent: list[list[Entry]] = []
        self.opened = 0
        self.closed: list[bool] = []
        self.threads: set[str] = set()
        self._steps: Iterator[Step] = iter(steps)
        self._opening = iter(opening)
        self._then = then
        self._is_open = False
        self._hanging: Hang | None = None

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called."""
        return self._is_open

    def open(self, deadline: float) -> None:
        """Do the next step of `opening`."""
        self.threads.add(threading.current_thread().name)
        step = next(self._opening, None)
        if isinstance(step, Hang):
            self._hang(step, deadline)
        elif step is not None:
            raise step
        self._is_open = True
        self.opened += 1

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        """Answer with the next step."""
        self.threads.add(threading.current_thread().name)
        self.sent.append(list(batch))
        step = next(self._steps, self._then)
        answer = step if isinstance(step, BatchOutcome | Exception | Hang) else step(batch)
        if isinstance(answer, Exception):
            self._is_open = False
            raise answer
        outcome = self._hang(answer, deadline) if isinstance(answer, Hang) else answer
        if outcome.failure in (Failure.UNAVAILABLE, Failure.FATAL):
            self._is_open = False
        return outcome

    def _hang(self, step: Hang, deadline: float) -> BatchOutcome:
        self._hanging = step
        try:
            return step.wait(deadline)
        finally:
            self._hanging = None

    def idle(self, seconds: float) -> None:
        """Nothing to serve."""

    def close(self, clean: bool) -> None:
        """Note it."""
        self._is_open = False
        self.closed.append(clean)

    def interrupt(self) -> None:
        """End a `Hang` that is not stubborn."""
        hanging = self._hanging
        if hanging is not None:
            hanging._interrupted.set()


class ScriptedSink(Sink):
    """A sink over a ScriptedTransport.

    Args:
        transport: The transport; or a function from a producer's id to one, for a sink that may need several: it makes
            one for each dead process whose events it finds in its spool.
        name, event_filter, on_delivery, pipeline, retry_wait, options: As for every sink.
    """

    scheme = "scripted"

    def __init__(
        self,
        transport: ScriptedTransport | Callable[[str], ScriptedTransport],
        *,
        name: str = "",
        event_filter: Any = None,
        on_delivery: Any = None,
        pipeline: Any = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            destination="scripted",
            transport=(lambda producer: transport) if isinstance(transport, ScriptedTransport) else transport,
            options=SinkOptions.from_mapping(options),
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )
