"""Delivers batches to a Redis stream, each entry once, over one connection.

What belongs here: the connection's life, and what became of each entry. What does not: how an append is kept from
happening twice (redis_fence.py), or what an error means (redis_errors.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from streamll.brokers.redis_connection import RedisConnection, import_client
from streamll.brokers.redis_dialer import Dialer
from streamll.brokers.redis_errors import NOT_PERMITTED, trouble_of
from streamll.brokers.redis_tap import Tap
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import TransportError
from streamll.runtime.fork import whole_import
from streamll.sinks.redis_batch import Batch
from streamll.sinks.redis_fence import Fence, Progress, ScriptFence, Target, TransactionFence
from streamll.sinks.redis_options import BATCH, RedisOptions
from streamll.wire.redis import FENCE_TTL, STOPPED_FENCE_TTL, Argument, Keys
from streamll.wire.redis_append import Trim

_LOOK_AFTER = 1.0
"""Seconds without a batch after which the connection is looked at before it is used: is it still there?"""

_FAREWELL = 0.2
"""Seconds that a clean close spends on the fence's short life."""

# The server is there, but not the one that serves the stream now: look for that anew.
_ELSEWHERE = frozenset({"MOVED", "ASK", "READONLY", "CLUSTERDOWN", "MASTERDOWN"})


class RedisTransport:
    """The connection of one sink to its stream.

    Batches must come in the order of their sequence numbers, and a batch that did not get in must come again before
    anything behind it: what is at or below the fence counts as delivered.

    Args:
        dialer: Finds and opens the connection.
        keys: The keys to write.
        producer: The producer's id.
        options: The sink's own options.
    """

    service_interval: float | None = None

    def __init__(self, dialer: Dialer, keys: Keys, producer: str, options: RedisOptions) -> None:
        self._dialer = dialer
        self._options = options
        self._keys = keys
        trim = Trim(options.max_stream_length, exact=options.trim == "exact")
        self._target = Target(keys, producer.encode(), trim, options.wait_replicas)
        self._tap = Tap()
        self._connection: RedisConnection | None = None
        self._pid = os.getpid()
        self._fence: Fence = (ScriptFence if options.fence == "script" else TransactionFence)(self._target)
        self._after = 0
        self._used = 0.0
        self._fenced = 0.0

    @property
    def is_open(self) -> bool:
        """See `Transport.is_open`."""
        if self._connection is None:
            return False
        idle = time.monotonic() - self._used > _LOOK_AFTER
        if self._connection.broken or (idle and not self._connection.is_quiet()):
            self._drop()
        return self._connection is not None

    def open(self, deadline: float) -> None:
        """See `Transport.open`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        with whole_import():
            import_client()
        try:
            connection = self._dialer.connect(deadline, self._tap)
            self._greet(connection, deadline)
        except TransportError:
            self._tap.reset()  # an interruption has had its effect, also one that came before
            raise
        self._connection = connection
        self._pid = os.getpid()
        self._fence.forget()
        self._used = time.monotonic()

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        """See `Transport.send`."""
        connection = self._connection
        if connection is None:
            return BatchOutcome(Failure.UNAVAILABLE, sent=False, error="not connected")
        if not batch:
            return BatchOutcome()
        events = Batch(batch, self._options.framing == BATCH)
        if time.monotonic() - self._fenced > FENCE_TTL * 0.9:
            # The fence has outlived itself, or is about to: that it is gone does not mean that events are lost.
            self._after = 0
        progress = self._fence.append(connection, events, self._after, deadline)
        if self._options.fence == "auto" and _not_permitted(progress):
            other = _other_than(self._fence, self._target)
            otherwise = other.append(connection, events, self._after, deadline)
            if not _not_permitted(otherwise):
                self._fence, progress = other, otherwise
        self._after = progress.after
        self._used = time.monotonic()
        trouble = progress.trouble
        if trouble is None or progress.delivered:
            self._fenced = self._used
        if connection.broken or (trouble is not None and trouble.code in _ELSEWHERE):
            self._drop()
        return BatchOutcome(
            failure=None if trouble is None else trouble.failure,
            delivered=progress.delivered,
            rejected=progress.rejected,
            error="" if trouble is None else trouble.text,
            lost_after_ack=progress.lost,
        )

    def idle(self, seconds: float) -> None:
        """See `Transport.idle`: Redis asks nothing of an idle connection."""

    def close(self, clean: bool) -> None:
        """See `Transport.close`."""
        if clean and self._connection is not None and self._pid == os.getpid():
            command = (b"PEXPIRE", self._keys.fence, int(STOPPED_FENCE_TTL * 1000))
            self._connection.exchange([command], time.monotonic() + _FAREWELL)
        self._drop()

    def interrupt(self) -> None:
        """See `Transport.interrupt`: cuts the connection, so the batch under way, or the next one, fails."""
        self._tap.interrupt()

    def _greet(self, connection: RedisConnection, deadline: float) -> None:
        """See whether the server serves us before a batch is entrusted to it, and create the group that is wanted."""
        commands: list[tuple[Argument, ...]] = [(b"PING",)]
        if self._options.create_group:
            commands.append((b"XGROUP", b"CREATE", self._keys.stream, self._options.create_group, b"0", b"MKSTREAM"))
        replies, trouble = connection.exchange(commands, deadline)
        for reply, harmless in zip(replies, (NOT_PERMITTED, {"BUSYGROUP"}), strict=False):
            if trouble is None and isinstance(reply, Exception):
                found = trouble_of(reply, self._target.stream)
                # A user need not be allowed PING, and a group that exists is as good as a new one.
                trouble = None if found.code in harmless else found
        if trouble is not None:
            connection.close()
            raise trouble.as_error()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._tap.reset()


def _other_than(fence: Fence, target: Target) -> Fence:
    return ScriptFence(target) if isinstance(fence, TransactionFence) else TransactionFence(target)


def _not_permitted(progress: Progress) -> bool:
    return progress.trouble is not None and progress.trouble.code in NOT_PERMITTED
