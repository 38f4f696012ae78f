"""TerminalSink: a readable line for each event, on standard error or another stream.

Where the stream has a file descriptor, lines are written straight to it, one at a time and only when it takes them. So
a pipe that nobody reads, or a terminal stopped by Ctrl-S, does not hold the worker beyond its deadline (unless another
writer fills it at that very moment), and never holds a lock of the stream, which the interpreter would wait for at its
exit.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, TextIO
from urllib.parse import urlsplit

from streamll import codec
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import ConfigurationError, DecodeError, FatalError
from streamll.options import EventFilter, OptionSet, option
from streamll.pipeline import Pipeline
from streamll.sinks.base import Finding, OnDelivery, Sink, Transport
from streamll.views.line import LINE_LIMIT, format_event, neutral

if TYPE_CHECKING:
    from typing_extensions import Self

STREAMS = ("stderr", "stdout")

_MOST_BYTES = getattr(select, "PIPE_BUF", 512)
"""A pipe takes so many bytes whole, and without waiting, once it says that it takes any."""
_POLL = 0.05
_RETRY = 0.01
_MENDABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


@dataclass(frozen=True)
class TerminalOptions(OptionSet):
    """What a terminal sink can be told beyond what every sink can."""

    owner: ClassVar[str] = "terminal "

    color: str = option(
        "auto",
        "Colour the lines; auto: when the stream is a terminal, NO_COLOR is not set and TERM is not dumb.",
        choices=("auto", "always", "never"),
    )


class TerminalSink(Sink):
    """Writes events as lines that people read, with everything in them that a terminal would obey made visible.

    Dead letters are shown too, with their reason. A stream that is closed, or a pipe without a reader, is reported once;
    the application never notices.

    Args:
        stream: "stderr", "stdout" (what `sys` calls so when the first event is written), or a text stream.
        event_filter, on_delivery, pipeline, retry_wait: As for every sink.
        name: The sink's name in stats and logs.
        options: Those of every sink, and `color`.

    Raises:
        ConfigurationError: When an option cannot be used.
    """

    own_options: ClassVar[type[OptionSet]] = TerminalOptions
    scheme: ClassVar[str] = "terminal"
    keeps_notes: ClassVar[bool] = False  # nobody counts the lines on a screen

    def __init__(
        self,
        stream: str | TextIO = "stderr",
        *,
        name: str = "",
        event_filter: EventFilter | None = None,
        on_delivery: OnDelivery | None = None,
        pipeline: Pipeline | None = None,
        retry_wait: Any = None,
        **options: Any,
    ) -> None:
        own, shared = self.split_options(options)
        known = stream in STREAMS if isinstance(stream, str) else callable(getattr(stream, "write", None))
        if not known:
            raise ConfigurationError(f"terminal option stream={stream!r}: must be stderr, stdout or a text stream")
        super().__init__(
            destination=f"terminal://{stream if isinstance(stream, str) else ''}",
            transport=lambda producer: _TerminalTransport(stream, own.color),
            options=shared,
            name=name,
            event_filter=event_filter,
            on_delivery=on_delivery,
            pipeline=pipeline,
            retry_wait=retry_wait,
        )

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Make a sink from `terminal://stderr?color=auto`.

        Raises:
            ConfigurationError: When the URL or an option cannot be used.
        """
        parts = urlsplit(url)
        if parts.path.strip("/") or parts.fragment or parts.netloc not in ("", *STREAMS):
            raise ConfigurationError("terminal URL: must be terminal://stderr or terminal://stdout")
        return cls(parts.netloc or "stderr", **{**cls.query_options(parts.query), **options})

    @classmethod
    def check_url(cls, url: str) -> list[Finding]:
        """Say whether the stream is there."""
        cls.from_url(url)
        name = urlsplit(url).netloc or "stderr"
        stream: TextIO | None = getattr(sys, name)
        if stream is None or stream.closed:
            return [Finding("error", f"{name} is closed", "run the program with it open, or choose another sink")]
        return [Finding("ok", f"{name} is {'a terminal' if stream.isatty() else 'open, and no terminal'}")]


class _TerminalTransport(Transport):
    """Writes one line an event."""

    service_interval: float | None = None

    def __init__(self, stream: str | TextIO, color: str) -> None:
        self._named = stream
        self._color_option = color
        self._stream: TextIO | None = None
        self._descriptor: int | None = None
        self._encoding = "utf-8"
        self._color = False
        self._interrupted = False
        self._torn = False  # a line's end is missing: the stream took a part of it

    @property
    def is_open(self) -> bool:
        return self._stream is not None

    def open(self, deadline: float) -> None:
        stream: TextIO | None = getattr(sys, self._named) if isinstance(self._named, str) else self._named
        if stream is None or getattr(stream, "closed", False):
            raise FatalError(f"{self._shown} is closed")
        self._interrupted = False
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._color = self._color_option == "always" or (self._color_option == "auto" and _takes_color(stream))
        self._descriptor = _descriptor_of(stream)
        self._stream = stream

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        stream = self._stream
        if stream is None:
            return BatchOutcome(Failure.UNAVAILABLE, sent=False, error=f"{self._shown} is not open")
        delivered: set[int] = set()
        rejected: dict[int, str] = {}
        for position, entry in enumerate(batch):
            try:
                line = self._line(entry)
            except DecodeError as error:
                rejected[position] = str(error)
                continue
            try:
                written = self._write(stream, line, deadline)
            except Exception as error:  # a text stream may be anybody's object
                self._stream = None
                mendable = isinstance(error, OSError) and error.errno in _MENDABLE
                failure = Failure.UNAVAILABLE if mendable else Failure.FATAL
                words = f"{self._shown}: {_words_of(error)}"
                return BatchOutcome(failure, delivered, rejected, sent=False, error=words)
            if not written:
                self._stream = None
                words = f"{self._shown} takes nothing: nobody reads it"
                return BatchOutcome(Failure.UNAVAILABLE, delivered, rejected, sent=False, error=words)
            delivered.add(position)
        return BatchOutcome(rejected=rejected)

    def idle(self, seconds: float) -> None:
        """There is no connection to serve."""

    def close(self, clean: bool) -> None:
        self._stream = None

    def interrupt(self) -> None:
        self._interrupted = True

    @property
    def _shown(self) -> str:
        return self._named if isinstance(self._named, str) else "the stream"

    def _line(self, entry: Entry) -> bytes:
        if not entry.dead_letter:
            event = codec.decode(entry.record.payload)
            limit = LINE_LIMIT
            line = self._encode(format_event(event, color=self._color))
            while len(line) > _MOST_BYTES:
                limit //= 2
                line = self._encode(format_event(event, color=self._color, limit=limit))
            return line
        record = entry.record
        what = f"dead letter {entry.seq}: {record.event_type} {record.operation}"[:200]
        return self._encode(neutral(f"{what} ({len(record.payload)} bytes): {entry.dead_letter[:200]}"))

    def _encode(self, text: str) -> bytes:
        return f"{text}\n".encode(self._encoding, "backslashreplace")

    def _write(self, stream: TextIO, line: bytes, deadline: float) -> bool:
        """Write a line whole; False when the stream did not take it in time."""
        if self._descriptor is None:
            stream.write(line.decode(self._encoding))
            stream.flush()
            return True
        if self._torn:
            line = b"\n" + line
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while True:
            remaining = deadline - monotonic()
            takes = poll.poll(max(0.0, min(remaining, _POLL)) * 1000)
            if stream.closed:  # its descriptor may be another file's by now
                raise ValueError("is closed")
            if takes:
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BlockingIOError:  # somebody made it non-blocking, and there is room for a part only
                    sleep(_RETRY)
                else:
                    self._torn = bool(line)
                    if not line:
                        return True
            if remaining <= 0 or self._interrupted:
                return False


def _descriptor_of(stream: TextIO) -> int | None:
    """The descriptor to write to; None for a stream that is not simply a file's."""
    if not isinstance(stream, io.TextIOWrapper) or not hasattr(select, "poll"):
        return None
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _takes_color(stream: TextIO) -> bool:
    try:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def _words_of(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
