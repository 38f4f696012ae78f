"""What other libraries take for an event, a log line or a span of the same content, and what streamll takes, in this process.

What belongs here: one small class for each, set up as its documentation says for a program under load. What does not:
brokers (delivery.py).
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any, Protocol

import streamll
from streamll.delivery.outcome import BatchOutcome, Entry
from streamll.options import SinkOptions
from streamll.sinks.base import Sink, Transport
from tests.performance.calls import BLOCK, EVENT, time_calls
from tests.performance.child import Answer, Work, serve

ROOM = 1_000_000
"""Events that whatever has a bounded queue is given room for, so that none drops any."""


def library(name: str) -> Any:
    """Import what not every environment has, not even those whose types are checked."""
    return import_module(name)


class Peer(Protocol):
    """One of those that are compared."""

    def call(self) -> object:
        """Make one event, log line or span."""

    def settle(self) -> int:
        """Wait until what was made has arrived, and return how many have in all."""


class Append:
    """The least that could be done: keep the data."""

    def __init__(self) -> None:
        self._queue: deque[object] = deque(maxlen=ROOM)
        self._settled = 0

    def call(self) -> object:
        self._queue.append(EVENT)
        return None

    def settle(self) -> int:
        self._settled += len(self._queue)
        self._queue.clear()
        return self._settled


class _CountingTransport(Transport):
    """Delivers to nowhere, and counts."""

    service_interval: float | None = None
    is_open = False
    count = 0

    def open(self, deadline: float) -> None:
        self.is_open = True

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        self.count += len(batch)
        return BatchOutcome()

    def idle(self, seconds: float) -> None:
        pass

    def close(self, clean: bool) -> None:
        self.is_open = False

    def interrupt(self) -> None:
        pass


class CountingSink(Sink):
    """A sink of streamll with all that sinks have, over a transport that counts, as the other libraries' exporters do."""

    keeps_notes = False

    def __init__(self) -> None:
        self.counting = _CountingTransport()
        super().__init__(
            destination="counted",
            transport=lambda producer: self.counting,
            options=SinkOptions(buffer_size=ROOM, buffer_bytes=1 << 30),
        )


class Emit:
    """streamll.emit, inside of a span."""

    def __init__(self) -> None:
        self._sink = CountingSink()
        streamll.configure(sinks=[self._sink])
        self._span = streamll.span("request")  # kept: its end would be one event more
        self._span.__enter__()

    def call(self) -> object:
        return streamll.emit("token", EVENT, operation="generate")

    def settle(self) -> int:
        assert streamll.flush(60)
        return self._sink.counting.count


class Span(Emit):
    """streamll.span, inside of a span."""

    def call(self) -> object:
        with streamll.span("retrieve", **EVENT):
            return None


class OpenTelemetry:
    """A span of the OpenTelemetry SDK, inside of a span, to a BatchSpanProcessor whose exporter counts."""

    def __init__(self) -> None:
        sdk = library("opentelemetry.sdk.trace")
        export = library("opentelemetry.sdk.trace.export")

        class Counting(export.SpanExporter):  # type: ignore[misc,name-defined]  # its types are not known everywhere
            count = 0

            def export(self, spans: Sequence[Any]) -> Any:
                self.count += len(spans)
                return export.SpanExportResult.SUCCESS

        self._exporter = Counting()
        self._provider = sdk.TracerProvider()
        self._provider.add_span_processor(export.BatchSpanProcessor(self._exporter, max_queue_size=ROOM))
        self._tracer = self._provider.get_tracer("benchmark")
        self._parent = self._tracer.start_as_current_span("request")
        self._parent.__enter__()

    def call(self) -> object:
        with self._tracer.start_as_current_span("retrieve", attributes=EVENT):
            return None

    def settle(self) -> int:
        self._provider.force_flush()
        return self._exporter.count


class QueueLogging:
    """A line of the standard library's logging through a QueueHandler; its listener formats and counts it."""

    def __init__(self) -> None:
        class Counting(logging.Handler):
            count = 0

            def emit(self, record: logging.LogRecord) -> None:
                self.format(record)
                self.count += 1

        lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._counting = Counting()
        self._listener = logging.handlers.QueueListener(lines, self._counting)
        self._listener.start()
        self._log = logging.getLogger("benchmark")
        self._log.propagate = False
        self._log.setLevel(logging.INFO)
        self._log.addHandler(logging.handlers.QueueHandler(lines))

    def call(self) -> object:
        self._log.info("token", extra=EVENT)
        return None

    def settle(self) -> int:
        self._listener.stop()  # which waits for what is in the queue
        self._listener.start()
        return self._counting.count


class _ToFile:
    """What the loggers that write a file share: the lines in it are what arrived."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "log"
        self._read = self._lines = 0

    def lines(self) -> int:
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        self._lines += new.count(b"\n")
        return self._lines


class Structlog(_ToFile):
    """A line of structlog, as JSON into a file, written and flushed in the caller."""

    def __init__(self) -> None:
        super().__init__()
        structlog = library("structlog")
        self._file = self.path.open("w")
        structlog.contextvars.bind_contextvars(execution_id="4bf92f3577b34da6a3ce929d0e0e4736")
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=structlog.WriteLoggerFactory(self._file),
            cache_logger_on_first_use=True,
        )
        self._log = structlog.get_logger()

    def call(self) -> object:
        return self._log.info("token", **EVENT)

    def settle(self) -> int:
        return self.lines()


class Loguru(_ToFile):
    """A line of loguru, as JSON into a file, by a thread of its own (enqueue)."""

    def __init__(self) -> None:
        super().__init__()
        logger = library("loguru").logger
        logger.remove()
        logger.add(self.path, serialize=True, enqueue=True)
        self._log = logger

    def call(self) -> object:
        self._log.info("token", **EVENT)
        return None

    def settle(self) -> int:
        self._log.complete()
        return self.lines()


class Sentry:
    """A span of Sentry's SDK in transactions of 500 spans each, to a transport that counts and discards."""

    SPANS = 500

    def __init__(self) -> None:
        sentry_sdk = library("sentry_sdk")

        class Counting(library("sentry_sdk.transport").Transport):  # type: ignore[misc]  # its types are not known everywhere
            count = 0

            def capture_envelope(self, envelope: Any) -> None:
                transaction = envelope.get_transaction_event()
                if transaction is not None:
                    self.count += len(transaction["spans"])

        self._counting = Counting()
        sentry_sdk.init(
            dsn="http://nobody@127.0.0.1:9/1",  # nothing is sent there: the transport above is all there is
            transport=self._counting,
            traces_sample_rate=1.0,
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
        )
        self._sdk = sentry_sdk
        self._open: Any = None
        self._left = 0

    def call(self) -> object:
        if not self._left:
            self._begin()
        self._left -= 1
        with self._sdk.start_span(op="retrieve", name="retrieve") as span:
            span.update_data(EVENT)
        return None

    def _begin(self) -> None:
        self._end()
        self._open = self._sdk.start_transaction(op="request", name="request")
        self._open.__enter__()
        self._left = self.SPANS

    def _end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open, self._left = None, 0

    def settle(self) -> int:
        self._end()
        self._sdk.flush()
        return self._counting.count


PEERS: Mapping[str, type[Peer]] = {
    "append": Append,
    "emit": Emit,
    "span": Span,
    "opentelemetry": OpenTelemetry,
    "queue_logging": QueueLogging,
    "structlog": Structlog,
    "loguru": Loguru,
    "sentry": Sentry,
}


def make(name: str) -> Mapping[str, Work]:
    peer = PEERS[name]()
    made = 0

    def lap(n: int) -> Answer:
        nonlocal made
        timed = time_calls(peer.call, n)
        made += n + n // BLOCK * BLOCK
        peer.settle()
        cpu = process_time()
        for _ in range(n):
            peer.call()
        made += n
        arrived = peer.settle()
        used = process_time() - cpu
        return {**timed, "cpu": used / n * 1e6, "made": made, "arrived": arrived}

    return {"lap": lap}


if __name__ == "__main__":
    serve(make)
