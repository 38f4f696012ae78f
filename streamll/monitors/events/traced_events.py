"""What an event tracer keeps: each event as bytes, in order, within a bound on their number and one on their size.

What belongs here: the form of a kept event, and the memory of them. What does not: which events are made, and when
(event_tracer.py), or what is read out of them (flow.py, formats.py).

An event is encoded in the moment it is kept. So nothing that the program changes later changes what was, nothing of the
program is kept alive, and the garbage collector has nothing to look at.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

_FOLD_AT = 64
_LARGE = 4096
_BESIDE = 48
"""Bytes that an event takes in memory beside its own: the object's head, and its place in a queue."""


class TracedEvent(msgspec.Struct, frozen=True, array_like=True):
    """An event as it was when it was traced. Fields can be read as attributes, and by name: `event["data"]`.

    Attributes:
        event_type, event_id, execution_id, span_id, parent_span_id, operation, level, priority: As in `StreamllEvent`.
        timestamp: When it happened, in nanoseconds since the epoch; a span's is its start.
        monotonic_ns: The same by a clock that is never set: only the difference of two of them, in one process, says
            something.
        thread_id: The thread it happened in (`threading.get_ident`); a span's is that of its start.
        thread_name: That thread's name.
        data: What else is known. It belongs to whoever has asked for the event.
    """

    event_type: str
    event_id: str
    execution_id: str
    span_id: str
    parent_span_id: str
    timestamp: int
    monotonic_ns: int
    thread_id: int
    thread_name: str
    operation: str
    level: str
    priority: str
    data: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; those of `data` as JSON has them."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["data"] = msgspec.to_builtins(self.data)
        return fields


class Memory:
    """The last events, encoded. Adding never waits, and may happen in the middle of another addition.

    As in `Tally`, additions are noted in one C call, and put in their place by whoever gets the lock without waiting.

    Args:
        most: Events kept at most.
        most_bytes: What they may take in memory; some hundred KiB more for a moment.

    Attributes:
        forgotten: How many gave way, the oldest first.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self.become_new()

    def become_new(self) -> None:
        """Forget all of it, and any lock that somebody holds who is not there any more."""
        self._noted: deque[bytes] = deque()
        self._kept: deque[bytes] = deque()
        self._size = 0
        self.forgotten = 0
        self._lock = threading.RLock()
        self._is_folding = False

    def add(self, event: bytes) -> None:
        """Keep an event."""
        self._noted.append(event)
        if len(self._noted) >= _FOLD_AT or len(event) > _LARGE:
            self._fold()

    def read(self) -> list[bytes]:
        """Return what is kept, the oldest first."""
        with self._lock:
            self._fold()
            return list(self._kept)

    @property
    def held(self) -> tuple[int, int]:
        """How many events are kept, and the bytes that they take."""
        with self._lock:
            self._fold()
            return len(self._kept), self._size

    def _fold(self) -> None:
        # Once more after the lock is given back: meanwhile somebody may have left it to us.
        while self._noted and self._lock.acquire(blocking=False):
            try:
                if self._is_folding:
                    return  # this is a finaliser or a signal handler; the call it interrupts goes on
                self._is_folding = True
                try:
                    self._put_in_place()
                finally:
                    self._is_folding = False
            finally:
                self._lock.release()

    def _put_in_place(self) -> None:
        noted, kept = self._noted, self._kept
        while noted:
            batch = [noted.popleft() for _ in range(len(noted))]
            kept.extend(batch)
            self._size += sum(map(len, batch)) + len(batch) * _BESIDE
        while len(kept) > self._most or self._size > self._most_bytes:
            self._size -= len(kept.popleft()) + _BESIDE
            self.forgotten += 1


encode_fields = msgspec.msgpack.Encoder().encode
"""Makes bytes of the fields of a `TracedEvent`, in their order, as a tuple."""

_decode = msgspec.msgpack.Decoder(TracedEvent).decode


def decode_all(events: list[bytes]) -> Iterator[TracedEvent]:
    """Read encoded events, one after the other."""
    return map(_decode, events)
