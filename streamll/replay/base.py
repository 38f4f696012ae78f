"""Redriving: dead letters go, after a fix, back to where they belonged.

What belongs here: a dead letter, what a place of dead letters and a destination must be able to do, and the loop between
the two. What does not: how one broker does it (redis.py, rabbitmq.py, file.py), or what is printed (cli).

Nothing here tries again: what could not be done ends the run with an error, at a moment when every letter is still where
it can be found. Whoever runs it again goes on with what is left.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import FatalError, TransportError, UnavailableError

PAGE = 500
"""Letters that are taken and delivered at once, at most."""
PAGE_BYTES = 4 * 1024 * 1024
"""About as many of their bytes as one such page may have."""

_NO_REASON = "no reason is given"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter.

    Attributes:
        handle: What its place knows it by.
        identity: What it can be recognised by when it is met again; empty when nothing is known.
        payload: The event's bytes.
        producer, seq: Who accepted the event, and under which number.
        reason: Why it is a dead letter.
        problem: Why it cannot be sent again, wherever to: it is no event of ours; empty when it can.
        routing_key: On RabbitMQ, the routing key it was published under; else None.
        labels: On RabbitMQ, the event's labels and content type, which travel beside it; else None.
    """

    handle: Any
    identity: str
    payload: bytes
    producer: str
    seq: int
    reason: str
    problem: str = ""
    routing_key: str | None = None
    labels: Mapping[str, Any] | None = None


class DeadLetters(Protocol):
    """A place where dead letters lie. Errors are TransportErrors; used by one thread.

    Attributes:
        shown: The place for people: no credentials.
    """

    shown: str

    def open(self) -> None:
        """Connect, and note what is there: what comes later is not taken."""

    def take(self) -> Sequence[Letter]:
        """Return the next letters, in their order; none at the end of what was there at the beginning."""

    def remove(self, letters: Sequence[Letter]) -> None:
        """Take letters away for good, some of those that `take` returned last."""

    def count(self) -> int:
        """How many dead letters there are now; nothing may be taken after it."""

    def close(self) -> None:
        """Leave the rest as it was, and give the connection up; never raises, may be called in any state."""


class Destination(Protocol):
    """Where redriven events go. Used by one thread.

    Attributes:
        shown: The destination for people: no credentials.
        takes_away: Whether delivering a letter also removes it from where it lay, in the same step.
    """

    shown: str
    takes_away: bool

    def prepare(self) -> None:
        """Be ready for letters that are taken from now on: connects at need; raises TransportErrors."""

    def deliver(self, letters: Sequence[Letter]) -> BatchOutcome:
        """Deliver letters in their order, and say what became of each, by their positions: as a transport's `send`."""

    def close(self, clean: bool) -> None:
        """Give the connection up; never raises. `clean`: everything that was delivered is removed, too."""


@dataclass
class Tally:
    """What a run has come to.

    Attributes:
        redriven: Events that were delivered, and are dead letters no more.
        stayed: Letters that were to be delivered and could not, by what the destination said, or what is wrong with them.
        left: Dead letters that are there still, besides those; None while that is not known.
    """

    redriven: int = 0
    stayed: Counter[str] = field(default_factory=Counter)
    left: int | None = None

    @property
    def rejected(self) -> int:
        """How many stayed."""
        return self.stayed.total()


class Selection:
    """Which letters are meant.

    Args:
        reason: A text that the reason must contain, in upper or lower case; empty: any.
        limit: How many letters at most, in their order; None: all.
    """

    def __init__(self, reason: str = "", limit: int | None = None) -> None:
        self._reason = reason.casefold()
        self._room = limit

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._room == 0

    def of(self, letters: Sequence[Letter]) -> list[Letter]:
        """Return those that are meant, as far as the limit allows."""
        chosen = [letter for letter in letters if self._reason in letter.reason.casefold()]
        if self._room is not None:
            chosen = chosen[: self._room]
            self._room -= len(chosen)
        return chosen


def survey(
    source: DeadLetters, selection: Selection, stop: Callable[[], bool] = lambda: False
) -> tuple[Counter[str], Counter[str], int]:
    """Look at the dead letters, and move none.

    Args:
        source: Where they are.
        selection: Which are meant.
        stop: Asked now and then whether to end before the end.

    Returns:
        How many would be delivered, by reason; how many cannot be, by what is wrong with them; how many are not meant.

    Raises:
        UnavailableError, FatalError: It could not be done.
    """
    meant: Counter[str] = Counter()
    unusable: Counter[str] = Counter()
    others = 0
    try:
        source.open()
        while not stop():
            letters = source.take()
            if not letters:
                break
            chosen = selection.of(letters)
            others += len(letters) - len(chosen)
            for letter in chosen:
                if letter.problem:
                    unusable[letter.problem] += 1
                else:
                    meant[letter.reason or _NO_REASON] += 1
    finally:
        source.close()
    return meant, unusable, others


class Redrive:
    """Moves dead letters to a destination.

    Args:
        source: Where they are.
        destination: Where they go.
        selection: Which are meant.

    Attributes:
        tally: What has been done so far; also right after an error.
    """

    def __init__(self, source: DeadLetters, destination: Destination, selection: Selection) -> None:
        self.tally = Tally()
        self._source = source
        self._destination = destination
        self._selection = selection

    def run(self, stop: Callable[[], bool] = lambda: False, on_page: Callable[[], None] = lambda: None) -> None:
        """Move all that are meant.

        Args:
            stop: Asked before each page whether to end there.
            on_page: Called after each page.

        Raises:
            UnavailableError, FatalError: It could not be done to its end; what was done is in the tally.
        """
        source, destination = self._source, self._destination
        clean = False
        try:
            source.open()
            while not stop() and not self._selection.full:
                destination.prepare()
                letters = source.take()
                if not letters:
                    break
                self._move(self._selection.of(letters))
                on_page()
            self.tally.left = max(0, source.count() - self.tally.rejected)
            clean = True
        finally:
            source.close()
            destination.close(clean)

    def _move(self, letters: Sequence[Letter]) -> None:
        good = []
        for letter in letters:
            if letter.problem:
                self.tally.stayed[letter.problem] += 1
            else:
                good.append(letter)
        groups = deque([good])
        while groups:
            group = groups.popleft()
            if group:
                groups.extendleft(reversed(self._deliver(group)))

    def _deliver(self, letters: list[Letter]) -> list[list[Letter]]:
        """Deliver letters, and return those that are to be delivered anew, in groups."""
        outcome = self._destination.deliver(letters)
        settled = outcome.delivered if outcome.failure is not None else range(len(letters))
        delivered = [
            letter for place, letter in enumerate(letters) if place in settled and place not in outcome.rejected
        ]
        self._remove(delivered)
        self.tally.redriven += len(delivered)
        self.tally.stayed.update(outcome.rejected.values())
        if outcome.failure is None:
            return []
        if outcome.failure is not Failure.REJECTED:
            raise (FatalError if outcome.failure is Failure.FATAL else UnavailableError)(outcome.error)
        left = [
            letter for place, letter in enumerate(letters) if place not in settled and place not in outcome.rejected
        ]
        if outcome.rejected or not left:
            return [left]
        if len(left) == 1:
            self.tally.stayed[outcome.error or "rejected by the destination"] += 1
            return []
        middle = len(left) // 2
        return [left[:middle], left[middle:]]

    def _remove(self, delivered: Sequence[Letter]) -> None:
        if not delivered or self._destination.takes_away:
            return
        try:
            self._source.remove(delivered)
        except TransportError as error:
            said = (
                f"{error}; {len(delivered)} events were delivered and are dead letters still: the next run repeats them"
            )
            raise type(error)(said) from error
