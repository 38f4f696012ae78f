"""The two ways to append a batch so that each event is in the stream once, however often the batch is sent.

Both keep, for each producer, the highest number that is in the stream, move it in the same step as they append, and
leave out what is not above it.

- `TransactionFence`: WATCH and GET of the fence, then a transaction that appends what is above it and sets it. Whichever
  copy of a batch comes second finds the fence touched, and its EXEC does nothing. Each write re-arms WATCH behind its
  EXEC, so a batch is one round trip.
- `ScriptFence`: a script does all of it on the server, for those that do not permit transactions. The entries of one
  write go in chunks, each one step: a chunk names the number that must precede it, so none gets in when the one before
  it did not.

Copies under way of one kind are harmless to the other: a script looks at the fence when it runs, and what it does to
the fence makes the EXEC of a transaction fail.

The transaction goes first, because the server is what limits both, and the script costs it about two thirds more: 2.1
microseconds of its time an event, where the transaction takes 1.2 to 1.5, and an XADD of redis-benchmark's 1.3 (Redis 7.0,
events of 300 bytes, batches of 500 to 5,000, all in one run on 2 shared cores). Our own share is 0.5 and 0.7.

What speaks for the script is that the server serves others between its chunks. The EXEC of 5,000 events, the longest
batch by default, keeps it for two or three milliseconds.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

from streamll.brokers.redis_connection import RedisConnection, Reply
from streamll.brokers.redis_errors import Trouble, trouble_of
from streamll.delivery.outcome import Failure
from streamll.sinks.redis_batch import Batch, Part
from streamll.wire.redis import Argument, Keys
from streamll.wire.redis_append import (
    ASTRIDE,
    BEHIND,
    EventPacker,
    Items,
    Trim,
    fence_command,
    probing_commands,
    script_command,
    xadd_commands,
)

CHUNK = 500
"""Entries that one run of the script appends at most: about a millisecond during which the server serves nobody else."""

_CLOCK_STEP = 0.2
"""Seconds before the deadline at which WAIT is to end."""

_STREAM_OR_NONE = (b"stream", b"none")

_TRIES = 4
"""Round trips within one batch, each for a reason of its own: script not known, state lost, fence touched, frames astride
it."""

_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


@dataclass
class Progress:
    """How far a batch has come.

    Attributes:
        after: The number that must precede the next batch.
        delivered: Positions in the batch that are in a stream; not said when all of them are.
        rejected: Positions that can never be, with the reason.
        lost: Events, at most, that the server had acknowledged and has no longer.
        trouble: Why not all of it is delivered.
    """

    after: int
    delivered: Set[int] = frozenset()
    rejected: Mapping[int, str] = field(default_factory=dict)
    lost: int = 0
    trouble: Trouble | None = None


class Fence(Protocol):
    """A way to append a batch."""

    def forget(self) -> None:
        """A new connection: whatever was known of the old one's state holds no longer."""

    def append(self, connection: RedisConnection, batch: Batch, after: int, deadline: float) -> Progress:
        """Append a batch.

        Args:
            connection: Where to.
            batch: The events.
            after: The highest number known to be in the stream.
            deadline: When to give up, in monotonic seconds.
        """


@dataclass(frozen=True)
class Target:
    """What both ways need to know.

    Attributes:
        keys: The keys to write.
        producer: The producer's id.
        trim: How long the stream may get.
        replicas: How many replicas must have a batch.
    """

    keys: Keys
    producer: bytes
    trim: Trim
    replicas: int = 0

    @property
    def stream(self) -> str:
        """The stream's key, for messages."""
        return self.keys.stream.decode("utf-8", "backslashreplace")

    def wait(self, deadline: float) -> tuple[Argument, ...]:
        """The command that waits for the replicas, and answers a little before the deadline."""
        left = max(0.0, deadline - time.monotonic())
        # A server looks at the clock ten times a second, so its answer may come that much later.
        return (b"WAIT", self.replicas, max(1, int(1000 * max(left - _CLOCK_STEP, left / 2))))

    def missing_replicas(self, reply: Reply) -> Trouble | None:
        """What the answer to `wait` means."""
        if isinstance(reply, Exception):
            return trouble_of(reply, self.stream)
        if reply >= self.replicas:
            return None
        text = f"only {reply} of {self.replicas} replicas have the batch (wait_replicas)"
        return Trouble("NOREPLICAS", Failure.UNAVAILABLE, text)


class ScriptFence:
    """Appends by the script."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def forget(self) -> None:
        """Nothing is known of a connection."""

    def append(self, connection: RedisConnection, batch: Batch, after: int, deadline: float) -> Progress:
        """See `Fence.append`."""
        target = self._target
        progress = Progress(after)
        base = after
        done = 0
        whole = False
        replies: Sequence[Reply] = ()
        trouble: Trouble | None = None
        for _ in range(_TRIES):
            parts = batch.parts(done, CHUNK)
            commands: list[tuple[Argument, ...]] = []
            before = progress.after
            for part in parts:
                first = whole and not commands
                commands.append(script_command(target.keys, target.producer, before, target.trim, part.items, first))
                before = batch.numbers[part.end - 1]
            if target.replicas:
                commands.append(target.wait(deadline))
            replies, trouble = connection.exchange(commands, deadline)
            broke, again = trouble, False
            for part, reply in zip(parts, replies, strict=False):
                if isinstance(reply, Exception):
                    trouble = trouble_of(reply, target.stream)
                    again = trouble.code == "NOSCRIPT" and not whole
                    whole = True
                    if trouble.code == "PROTOCOL":
                        progress.rejected = part.rejected(part.longest, trouble.text)
                    break
                at, *why = reply
                if not why:
                    done = part.end
                    progress.after = batch.numbers[part.end - 1]
                elif why[0] == BEHIND:
                    # Only the first chunk that does not get in is looked at, so this is not one behind a failed one.
                    progress.lost += progress.after - at
                    progress.after = base = at
                    trouble = Trouble("BEHIND", Failure.UNAVAILABLE, "the server loses the fence again and again")
                    again = True
                    break
                elif why[0] == ASTRIDE:
                    # The events were in other frames when they were sent before: what is above the fence gets new ones.
                    done = bisect_right(batch.numbers, at)
                    progress.after = max(progress.after, at)
                    trouble = Trouble("ASTRIDE", Failure.UNAVAILABLE, "another process uses this producer id")
                    again = True
                    break
                else:
                    trouble = trouble_of(why[0], target.stream)
                    done = max(done, bisect_right(batch.numbers, at))
                    progress.after = max(progress.after, at)
                    break
            if again and broke is not None:
                trouble = broke
            if not again or broke is not None:
                break
        if target.replicas:
            trouble = trouble or target.missing_replicas(replies[-1])
            if trouble is not None:
                # All of it is sent again, and must not be missed as lost where only the primary had it.
                return Progress(base, rejected=progress.rejected, lost=progress.lost, trouble=trouble)
        progress.trouble = trouble
        if trouble is not None:
            progress.delivered = frozenset(range(done))
        return progress


class TransactionFence:
    """Appends by a transaction guarded by WATCH on the fence.

    A transaction is not undone when one of its commands fails, and would leave the fence above what is missing. Only
    one thing makes an XADD fail after it was accepted: a key that is no stream. So the types are looked at each time
    WATCH is armed; and where it happens in between, the fence is put back, and what it said is not believed.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._packer = EventPacker(target.keys, target.producer, target.trim)
        self._armed = False
        self._stored = 0
        self._takes_dead_letters = True
        # A number that the fence must not be believed to have, and the one that is true instead.
        self._disbelieved: tuple[int, int] | None = None

    def forget(self) -> None:
        """A new connection watches nothing."""
        self._armed = False

    def append(self, connection: RedisConnection, batch: Batch, after: int, deadline: float) -> Progress:
        """See `Fence.append`."""
        progress = Progress(after)
        if not self._armed:
            progress.trouble = self._arm(connection, after, deadline)
            if progress.trouble is not None:
                return progress
        numbers = batch.numbers
        for _ in range(_TRIES):
            if self._stored < progress.after:
                progress.lost += progress.after - self._stored
                progress.after = self._stored
            done = bisect_right(numbers, self._stored)
            if not self._target.replicas:
                progress.delivered = frozenset(range(done))
                if done == len(numbers):
                    progress.after = max(progress.after, numbers[-1])
                    return progress
            if self._transact(connection, batch.part(done), batch.numbers[-1], deadline, progress):
                return progress
        text = "the fence changes again and again: does another process use this producer id?"
        progress.trouble = Trouble("", Failure.UNAVAILABLE, text)
        return progress

    def _arm(self, connection: RedisConnection, after: int, deadline: float) -> Trouble | None:
        """Watch the fence and look at it, once a transaction without effect has shown that transactions are permitted.

        Where MULTI alone is not, what follows it would be carried out one by one, and not fenced. And where a cluster has
        the dead letters in another slot, that is not to be found out by the first of them.
        """
        probe = probing_commands(self._target.keys)
        replies, trouble = connection.exchange([*probe, *self._arming()], deadline)
        if trouble is not None:
            return trouble
        end = len(probe)
        refusal = next((reply for reply in replies[: end + 2] if isinstance(reply, Exception)), None)
        if refusal is None:
            return self._armed_by(connection, replies[end:], after)
        if not isinstance(replies[0], Exception) and _leaves_open(replies[end - 1]):
            connection.close()
        trouble = trouble_of(refusal, self._target.stream)
        # A proxy that does not know transactions says so in words of its own.
        return replace(trouble, code="UNKNOWN") if trouble.code == "ERR" else trouble

    def _arming(self) -> list[tuple[Argument, ...]]:
        keys = self._target.keys
        return [(b"WATCH", keys.fence), (b"GET", keys.fence), (b"TYPE", keys.stream), (b"TYPE", keys.dead_letters)]

    def _armed_by(self, connection: RedisConnection, replies: Sequence[Reply], after: int) -> Trouble | None:
        """Take note of the answers to `_arming`."""
        watched, stored, kind, other_kind = replies
        for reply in (watched, stored):
            if isinstance(reply, Exception):
                connection.close()  # it may be inside a transaction that an old server did not end
                return trouble_of(reply, self._target.stream)
        if not (stored or b"0").isdigit():
            return trouble_of("WRONGTYPE the fence holds no number", self._target.stream)
        self._stored = int(stored or 0)
        # A user who may not ask for types gets an error here, and does without this care.
        self._takes_dead_letters = other_kind in _STREAM_OR_NONE or isinstance(other_kind, Exception)
        if kind not in _STREAM_OR_NONE and not isinstance(kind, Exception):
            self._disbelieved = self._stored, min(after, self._stored)
            return trouble_of("WRONGTYPE the key is no stream", self._target.stream)
        if self._disbelieved is not None:
            wrong, right = self._disbelieved
            self._stored = right if self._stored == wrong else self._stored
        self._armed = True
        return None

    def _transact(
        self, connection: RedisConnection, part: Part, last: int, deadline: float, progress: Progress
    ) -> bool:
        """Send one transaction for what is above the fence; False when the fence was touched and it did nothing."""
        target, items = self._target, part.items
        if not self._takes_dead_letters and any(items.reasons):
            self._armed = False  # to look again, when it has been mended
            progress.trouble = trouble_of("WRONGTYPE the dead letters' key is no stream", target.stream)
            return True
        last = max(last, self._stored)
        behind = [fence_command(target.keys, last), (b"EXEC",), *self._arming()]
        if target.replicas:
            behind.append(target.wait(deadline))
        requests = [connection.pack((b"MULTI",)), *self._appends(connection, items), *map(connection.pack, behind)]
        end = len(items) + 3
        self._armed = False
        usual = _OK + _QUEUED * (len(items) + 1)
        count = len(items) + 1 + len(behind)
        replies, trouble = connection.exchange_packed(requests, count, deadline, usual, usual_count=len(items) + 2)
        if len(replies) < end:
            progress.trouble = self._rejection(part, progress, replies) or trouble
            return True
        queued, result, arming = replies[1 : end - 1], replies[end - 1], replies[end : end + 4]
        if isinstance(result, Exception):
            first = next((reply for reply in queued if isinstance(reply, Exception)), result)
            progress.trouble = trouble_of(first, target.stream)
            if _leaves_open(result):
                connection.close()
            return True
        if result is None:
            # The fence has changed: a copy of this batch came first, or the server lost it.
            progress.trouble = trouble or self._armed_by(connection, arming, progress.after)
            return progress.trouble is not None
        self._disbelieved = None
        errors = {place: reply for place, reply in enumerate(result) if type(reply) is not bytes}
        if errors:
            self._put_back(connection, part, last, errors, deadline, progress)
            return True
        if len(arming) == 4:
            self._armed_by(connection, arming, last)  # what is wrong with it the next batch will hear
        if target.replicas:
            progress.trouble = trouble or target.missing_replicas(replies[-1])
            if progress.trouble is not None:
                return True
        progress.after = last
        return True

    def _appends(self, connection: RedisConnection, items: Items) -> list[bytes]:
        """The XADDs; all in one step where they are of the one kind that nearly all are of."""
        target = self._target
        if items and not items.reasons and not items.counts:
            return self._packer.pack(items.numbers, items.payloads)
        return [*map(connection.pack, xadd_commands(target.keys, target.producer, target.trim, items))]

    def _rejection(self, part: Part, progress: Progress, replies: Sequence[Reply]) -> Trouble | None:
        """When the server hung up because a part was too long for it: say which."""
        if not replies or not isinstance(replies[-1], Exception):
            return None
        trouble = trouble_of(replies[-1], self._target.stream)
        place = len(replies) - 2  # the first answer is that to MULTI
        if trouble.code == "PROTOCOL" and 0 <= place < len(part.items):
            progress.rejected = part.rejected(place, trouble.text)
        return trouble

    def _put_back(
        self,
        connection: RedisConnection,
        part: Part,
        last: int,
        errors: Mapping[int, Exception],
        deadline: float,
        progress: Progress,
    ) -> None:
        """Some appends of a transaction failed: let the fence stand below the first of them."""
        count = len(part.items)
        failed = min(errors)
        progress.trouble = trouble_of(errors[failed], self._target.stream)
        stored = [place for which in range(count) if which not in errors for place in part.places(which)]
        progress.delivered = frozenset(range(part.start)).union(stored)
        if failed == count:  # the fence itself could not be set, and has not moved
            return
        right = part.items.numbers[failed] - 1
        self._disbelieved = last, right
        progress.after = right
        replies, trouble = connection.exchange([fence_command(self._target.keys, right)], deadline)
        if trouble is None and not isinstance(replies[0], Exception):
            self._disbelieved = None


def _leaves_open(answer: Reply) -> bool:
    """Whether the transaction may still be open after such an answer to EXEC, as an old server leaves it."""
    return isinstance(answer, Exception) and not str(answer).startswith("EXECABORT")
