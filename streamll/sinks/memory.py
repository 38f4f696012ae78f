"""MemorySink: keeps events in this process, for tests and examples.

It is a sink like any other, with its pipeline, buffer and worker: what it holds went the way that it would go to a
broker. To see events as they are emitted, without a sink, there is `streamll.testing.capture()`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

from streamll import codec
from streamll.delivery.outcome import BatchOutcome, Entry
from streamll.errors import ConfigurationError, DecodeError
from streamll.models import StreamllEvent
from streamll.options import EventFilter, OptionSet, option
from streamll.pipeline import Pipeline
from streamll.sinks.base import Finding, OnDelivery, Sink, Transport

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class MemoryOptions(OptionSet):
    """What a memory sink can be told beyond what every sink can."""

    owner: ClassVar[str] = "memory "

    max_events: int = option(
        10_000, "Events kept, and dead letters kept, at most; the oldest give way.", at_least=1, unit="events"
    )


class MemorySink(Sink):
    """Keeps delivered events in memory; call `flush()` before looking at them.

    A forked child starts empty.

    Args:
        name: The sink's name in stats and logs.
        event_filter, on_delivery, pipeline, retry_wait: As for every sink.
        options: Those of every sink, and `max_events`.

    Raises:
        ConfigurationError: When an option cannot be used.

    Example:
        with MemorySink() as sink:
            sink.handle_event(StreamllEvent(event_type="token"))
            sink.flush()
            assert [event.event_type for event in sink.events] == ["token"]
    """

    own_options: ClassVar[type[OptionSet]] = MemoryOptions
    scheme: ClassVar[str] = "memory"
    keeps_notes: ClassVar[bool] = False  # its reader is in this process, and has the sink's own numbers

    def __init__(
        self,
        name: str = "",
        *,
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        own, shared = self.split_options(options)
        self._max_events: int = own.max_events
        super().__init__(
            destination=f"memory://{name}",
            transport=lambda producer: _MemoryTransport(self._kept, self._dead),
            options=shared,
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    def _build(self, parent: str = "") -> None:
        self._kept: deque[tuple[Entry, StreamllEvent]] = deque(maxlen=self._max_events)
        self._dead: deque[Entry] = deque(maxlen=self._max_events)
        super()._build(parent)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from `memory://name`.

        Raises:
            ConfigurationError: When the URL or an option cannot be used.
        """
        parts = urlsplit(url)
        if parts.path.strip("/") or parts.fragment:
            raise ConfigurationError("memory URL: must be memory:// or memory://name, with options after a `?`")
        named = {"name": unquote(parts.netloc)} if parts.netloc else {}
        return cls(**{**named, **cls.query_options(parts.query), **options})

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say what a memory sink does not promise."""
        cls.from_url(url)
        return [Finding("warning", "events are kept in this process only, and end with it", "use it in tests")]

    @property
    def events(self) -> list[StreamllEvent]:
        """What was delivered, decoded, in order."""
        return [event for _, event in self._kept.copy()]

    @property
    def records(self) -> list[Entry]:
        """What was delivered as it was encoded, each record with its sequence number, in order."""
        return [entry for entry, _ in self._kept.copy()]

    @property
    def dead_letters(self) -> list[Entry]:
        """What was dead-lettered, each with its sequence number and the reason (`entry.dead_letter`)."""
        return list(self._dead.copy())

    def clear(self) -> None:
        """Forget what was delivered and dead-lettered so far; the numbers in `stats()` stay."""
        self._kept.clear()
        self._dead.clear()


class _MemoryTransport(Transport):
    """Appends to two queues; refuses what cannot be decoded, as a reader of it would."""

    service_interval: float | None = None

    def __init__(self, kept: deque[tuple[Entry, StreamllEvent]], dead: deque[Entry]) -> None:
        self._kept = kept
        self._dead = dead
        self._open = False

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self, deadline: float) -> None:
        self._open = True

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        rejected: dict[int, str] = {}
        for position, entry in enumerate(batch):
            if entry.dead_letter:
                self._dead.append(entry)
                continue
            try:
                self._kept.append((entry, codec.decode(entry.record.payload)))
            except DecodeError as error:
                rejected[position] = str(error)
        return BatchOutcome(rejected=rejected)

    def idle(self, seconds: float) -> None:
        """There is no connection to serve."""

    def close(self, clean: bool) -> None:
        self._open = False

    def interrupt(self) -> None:
        """Nothing here waits."""
