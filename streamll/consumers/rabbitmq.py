"""RabbitMQConsumer: reads events from a queue, a stream queue, or an exchange by a queue of its own.

What belongs here: what is subscribed to and how deliveries become items. What does not: pika
(rabbitmq_subscription.py), the form of a message (wire), doubles and iteration (base.py).

A thread serves the connection, so that heartbeats are answered however long an item takes. It hands deliveries over
through a queue that the prefetch limit bounds, and acknowledgements come back the same way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from streamll.brokers.rabbitmq_errors import NOT_FOUND, PRECONDITION_FAILED, Refused, failure_of
from streamll.brokers.rabbitmq_url import Address, read_url
from streamll.consumers.base import Consumer
from streamll.consumers.base_options import BEGINNING, END, ConsumerOptions
from streamll.consumers.received import Coming, Received, Sheaf, Ticket, read_event, read_note
from streamll.delivery.outcome import Failure
from streamll.errors import ConfigurationError, DecodeError, FatalError, TransportError, UnavailableError
from streamll.options import SinkOptions, option
from streamll.wire.rabbitmq import decode_messages

if TYPE_CHECKING:
    from streamll.consumers.rabbitmq_subscription import Subscription

logger = logging.getLogger("streamll.consumers")

SINK_OPTIONS = frozenset(
    {
        "name",
        "exchange_type",
        "routing_key",
        "queue_type",
        "framing",
        "confirm_window",
        "confirm_timeout",
        "dead_letter_exchange",
        "declare",
    }
)
"""What only RabbitMQSink can be told; its URL serves to read it back, so it is left out."""

NO_STREAM = "is no stream queue"
"""What an error says when `stream_only` refuses a queue."""

_STREAM_OFFSET = "x-stream-offset"
_SETTLED = 1.0
"""Without `follow`: seconds without a message after which a queue has given all that it had."""
_TURN = 1.0
_LOOK_BEHIND = 5.0
_CLOSE_PATIENCE = 1.5


@dataclass(frozen=True)
class RabbitMQConsumerOptions(ConsumerOptions):
    """What a RabbitMQ consumer can be told."""

    owner: ClassVar[str] = "RabbitMQ consumer "

    queue: str = option("", "The queue to read, which must exist; empty: an own one, bound to the exchange.")
    stream_only: bool = option(
        False, "Refuse a queue that is no stream, instead of having its messages delivered to us and nobody else."
    )
    exchange: str = option("streamll", "Without a queue: the exchange whose events to watch from now on.")
    binding_key: str = option("#", "Without a queue: which of its events.")
    prefetch: int = option(250, "Messages delivered and not acknowledged, at most.", at_least=1, at_most=65_535)
    cacertfile: str = option("", "For amqps: the authority to trust instead of the system's; a PEM file.")
    certfile: str = option("", "For amqps: the certificate to show; a PEM file.")
    keyfile: str = option("", "For amqps: its key; a PEM file.")

    def check(self) -> None:
        """Refuse what cannot be read."""
        if self.start not in (None, BEGINNING, END) and not (str(self.start).isascii() and str(self.start).isdigit()):
            raise ConfigurationError(
                f"{self.owner}option start={self.start!r}: must be beginning, end, or an offset of a stream queue"
            )
        if self.queue:
            return
        if not self.exchange:
            raise ConfigurationError(
                f"{self.owner}option exchange='': give a queue, or an exchange that is not the default one"
            )
        if self.start not in (None, END) or not self.follow:
            asked = f"start={self.start!r}" if self.follow else "follow=False"
            raise ConfigurationError(
                f"{self.owner}option {asked}: an exchange keeps nothing to read back; name a queue that is bound to it"
            )


class RabbitMQConsumer(Consumer):
    """Reads events from RabbitMQ.

    With a queue: each message is acknowledged by `ack`, and goes to one consumer of the queue only; one that holds many
    events is acknowledged when all of them are, or rejected if any of them was. What was not acknowledged when the
    connection ended comes again. A stream queue keeps its messages: reading begins at `start`, and needs no
    acknowledging. Other queues have no positions: they give what they hold, whatever `start` says.

    With an exchange: a queue of our own, which ends with the connection, gets a copy of each event that is published
    from now on; nothing is taken from anybody, and what is published while the connection is lost is missed.

    Args:
        amqp_url: The server, as for RabbitMQSink: `amqp://user:password@host/vhost`. Its query may hold options; those
            that only a sink can be told are left out.
        queue: The queue, instead of the URL's; empty: none.
        exchange: The exchange, instead of the URL's.
        options: Those of RabbitMQConsumerOptions.

    Raises:
        ConfigurationError: When the URL or an option cannot be used.
    """

    def __init__(
        self,
        amqp_url: str = "amqp://guest:guest@localhost/",
        queue: str | None = None,
        exchange: str | None = None,
        **options: Any,
    ) -> None:
        ours = RabbitMQConsumerOptions.names()
        address = read_url(amqp_url, ours={*ours, *SINK_OPTIONS, *SinkOptions.names()})
        found = {name: value for name, value in address.options.items() if name in ours}
        named = {name: value for name, value in (("queue", queue), ("exchange", exchange)) if value is not None}
        chosen = RabbitMQConsumerOptions.from_mapping({**found, **named, **options})
        super().__init__(_RabbitMQSource(address, chosen), chosen)


class _RabbitMQSource:
    """Deliveries of one subscription after another."""

    def __init__(self, address: Address, options: RabbitMQConsumerOptions) -> None:
        what = f"queue {options.queue}" if options.queue else f"exchange {options.exchange}"
        self.shown = f"{address.shown} {what}"
        self.restarts = 0
        self.cuts = 0
        self.pending_lost = 0
        self.whole = False
        self._address = address
        self._options = options
        self._session: _Session | None = None
        self._was_open = False
        self._offset: int | None = None
        """The stream offset that was read last."""
        self._had = 0
        """Messages that waited when this subscription began, and how many have come since."""
        self._came_at = 0.0

    def open(self) -> None:
        """Connect and subscribe."""
        from streamll.consumers.rabbitmq_subscription import Subscription

        options = self._options
        link = Subscription(
            self._address.url,
            host=self._address.host,
            blocked_timeout=options.read_timeout,
            name="streamll consumer",
            cacertfile=options.cacertfile,
            certfile=options.certfile,
            keyfile=options.keyfile,
        )
        session = self._session = _Session(link, options, self.shown)
        deadline = time.monotonic() + options.connect_timeout
        try:
            link.connect(deadline)
            if options.queue:
                self._had = link.count_messages(options.queue, deadline=deadline)
                self._subscribe(link, session, deadline)
            else:
                queue = session.own = link.watch_exchange(options.exchange, options.binding_key, deadline=deadline)
                link.subscribe(queue, session.on_message, options.prefetch, {}, deadline=deadline)
        except Refused as error:
            raise _explain(error, self.shown) from error
        self.cuts += self._was_open and not options.queue
        self._was_open = True
        self._came_at = time.monotonic()
        session.start()

    def read(self, wait: float) -> Sequence[Received] | None:
        """Return what was delivered."""
        session = self._session
        if session is None:
            raise UnavailableError(f"{self.shown}: not connected")
        items = session.take(wait, self._options.page_size)
        if items:
            self._came_at = time.monotonic()
            if session.first_offset is not None:
                self._place(session.first_offset)
                self._offset = session.last_offset
            return items
        if session.failure is not None:
            raise session.failure
        if not self._options.follow:
            all_came = self._offset is None and 0 < self._had <= session.came
            if all_came or time.monotonic() - self._came_at >= _SETTLED:
                return None
        return []

    def acknowledge(self, done: Sequence[Any], rejected: Sequence[Any]) -> None:
        """Acknowledge and reject; a delivery of an earlier connection comes again anyway."""
        session = self._session
        if session is not None:
            session.settle(
                [tag for owner, tag in done if owner is session], [tag for owner, tag in rejected if owner is session]
            )

    def interrupt(self) -> None:
        """End a connection attempt."""
        session = self._session
        if session is not None:
            session.wake()

    def close(self) -> None:
        """Send what was acknowledged and hang up."""
        session, self._session = self._session, None
        if session is not None:
            session.stop()

    def _place(self, first: int) -> None:
        """Compare the offset of what came with what was read before: what is missing between was removed meanwhile."""
        if self._offset is not None:
            self.cuts += first > self._offset + 1
        else:
            self.whole = first == 0 and (self._options.start or BEGINNING) == BEGINNING

    def _subscribe(self, link: Subscription, session: _Session, deadline: float) -> None:
        """Subscribe to the queue, from an offset on if it is a stream; only its own kind of queue may refuse that."""
        named: dict[str, Any] = {BEGINNING: "first", END: "next"}
        start = self._options.start or BEGINNING
        offset = self._offset + 1 if self._offset is not None else named.get(start)
        arguments = {_STREAM_OFFSET: int(start) + 1 if offset is None else offset}
        queue, prefetch = self._options.queue, self._options.prefetch
        try:
            link.subscribe(queue, session.on_message, prefetch, arguments, deadline=deadline)
        except Refused as error:
            if error.code != PRECONDITION_FAILED or _STREAM_OFFSET not in error.text:
                raise
            if self._options.stream_only:
                raise FatalError(f"{self.shown}: {NO_STREAM}, and reading it would take its messages") from error
            session.may_be_stream = False
            link.subscribe(queue, session.on_message, prefetch, {}, deadline=deadline)


class _Message(NamedTuple):
    """A delivery, as it came."""

    tag: int
    redelivered: bool
    properties: Any
    body: bytes


class _Session:
    """One subscription and the thread that serves it.

    Attributes:
        failure: Why it has ended; set before the end of the inbox can be taken.
        came: How many messages were taken.
        first_offset, last_offset: The stream offsets of the first and the last message that were taken last; None when it
            is no stream.
        own: The name of the queue when it is our own; empty when it is somebody's.
        may_be_stream: Whether the queue has accepted an offset to start from. In messages of other queues, a header that
            speaks of one is not to be believed.
    """

    def __init__(self, link: Subscription, options: RabbitMQConsumerOptions, shown: str) -> None:
        self.failure: TransportError | None = None
        self.came = 0
        self.first_offset: int | None = None
        self.last_offset: int | None = None
        self.own = ""
        self.may_be_stream = bool(options.queue)
        self._link = link
        self._link_lock = threading.Lock()
        self._gone = False
        self._read = read_event if options.decode else read_note
        self._limit = options.max_event_bytes
        self._look_at = 0.0
        self._behind = False
        self._shown = shown
        self._inbox: SimpleQueue[_Message | None] = SimpleQueue()
        self._outbox: deque[tuple[Callable[..., None], dict[str, Any]]] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve the connection from now on, in a thread; nobody else may touch it any more."""
        self._thread = threading.Thread(target=self._serve, name="streamll-rabbitmq-consumer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up, after what was acknowledged was sent."""
        self._stopping = True
        if self._thread is None:
            self._link.close(clean=False)
        else:
            self.wake()
            self._thread.join(_CLOSE_PATIENCE)

    def wake(self) -> None:
        """End what the connection waits for; safe from any thread."""
        with self._link_lock:
            if not self._gone:
                self._link.wake()

    def take(self, wait: float, most: int) -> list[Received]:
        """Return what was delivered, waiting for the first; none once the connection has ended.

        Messages are taken whole, so there may be more than `most` events where the last is a frame.
        """
        items: list[Received] = []
        tags: list[int] = []
        self.first_offset = self.last_offset = None
        try:
            while len(items) < most:
                message = self._inbox.get(timeout=wait) if not items and wait > 0 else self._inbox.get_nowait()
                if message is None:
                    break
                items += self._receive(message)
                self.came += 1
                if items[-1].ticket is None:
                    tags.append(message.tag)
        except Empty:
            pass
        if tags:
            # Nobody else acknowledges these. Where that holds for all, the tag of the last stands for those before it.
            self.settle(tags[-1:] if self.own else tags, [], multiple=bool(self.own))
        return items

    def settle(self, done: Sequence[int], rejected: Sequence[int], multiple: bool = False) -> None:
        """Acknowledge and reject deliveries, by their tags."""
        channel = self._link.channel
        if channel is not None:
            self._outbox.extend((channel.basic_ack, {"delivery_tag": tag, "multiple": multiple}) for tag in done)
            self._outbox.extend((channel.basic_reject, {"delivery_tag": tag, "requeue": False}) for tag in rejected)
            self.wake()

    def on_message(self, _channel: object, delivery: Any, properties: Any, body: bytes) -> None:
        """Take a delivery in; called by pika. What is in it is looked at when it is taken: a frame is shorter than that."""
        self._inbox.put(_Message(delivery.delivery_tag, delivery.redelivered, properties, body))

    def _receive(self, message: _Message) -> list[Received]:
        """The event of a message, or the events of its frame; or what is wrong with it."""
        properties, headers = message.properties, message.properties.headers or {}
        offset = headers.get(_STREAM_OFFSET)
        if self.may_be_stream and isinstance(offset, int):
            self.last_offset = offset
            if self.first_offset is None:
                self.first_offset = offset
        else:
            offset = None
        try:
            found = decode_messages(message.body, headers, properties.message_id)
        except DecodeError as error:
            items = [Received(None, str(error), message.body, "", 0, "")]
        else:
            items = [
                Received(*self._read(wire.payload, self._limit), wire.payload, wire.producer, wire.seq, "", wire.reason)
                for wire in found
            ]
        for item in items:
            item.position = str(message.tag) if offset is None else _position(offset, is_last=item is items[-1])
        if not self.own and offset is None:
            token: Any = (self, message.tag) if len(items) == 1 else Sheaf((self, message.tag), len(items))
            coming = Coming.RETURNED if message.redelivered else Coming.NEW
            for item in items:
                item.ticket = Ticket(token, (item.producer, item.seq) if item.producer else None, coming)
        return items

    def _serve(self) -> None:
        link = self._link
        try:
            while link.error is None and link.refused is None and not link.cancelled and not self._stopping:
                link.interrupted = False
                link.run(lambda: bool(self._outbox) or self._stopping or link.cancelled, time.monotonic() + _TURN)
                self._send()
                link.serve()
                if self.own and time.monotonic() >= self._look_at:
                    self._look_at = time.monotonic() + _LOOK_BEHIND
                    link.tell_waiting(self.own, self._on_waiting)
            if self._stopping:
                self._send()
        finally:
            self.failure = self._why()
            self._inbox.put(None)
            with self._link_lock:
                self._gone = True
            link.close(clean=self._stopping or link.cancelled)

    def _on_waiting(self, waiting: int, most: int) -> None:
        """Say once when we are so slow that our queue may soon drop what we did not read."""
        behind = waiting > most // 2
        if behind and not self._behind:
            logger.warning(
                "%s: %s messages wait for us to read them; beyond %s the oldest go, and are missed",
                self._shown,
                f"{waiting:,}",
                f"{most:,}",
            )
        self._behind = behind

    def _send(self) -> None:
        while self._outbox and self._link.is_open:
            answer, arguments = self._outbox.popleft()
            answer(**arguments)

    def _why(self) -> TransportError:
        link = self._link
        if link.error is not None:
            return link.error
        if link.refused is not None:
            lasting = failure_of(link.refused.code, link.refused.text) is Failure.FATAL
            return (FatalError if lasting else UnavailableError)(f"{self._shown}: {link.refused}")
        said = "closed" if self._stopping else "the broker ended the subscription: the queue was deleted, or has moved"
        return UnavailableError(f"{self._shown}: {said}")


def _position(offset: int, is_last: bool) -> str:
    """Where to go on after an event of a stream: after any but the last of a frame, with the whole frame again."""
    if is_last:
        return str(offset)
    return str(offset - 1) if offset else BEGINNING


def _explain(refused: Refused, shown: str) -> TransportError:
    """What a request that was refused while subscribing means."""
    if refused.code == NOT_FOUND and "NOT_FOUND - no " in refused.text:  # else: it is there, on a node that is not
        return FatalError(f"{shown}: does not exist: {refused}")
    lasting = failure_of(refused.code, refused.text) is not Failure.UNAVAILABLE
    return (FatalError if lasting else UnavailableError)(f"{shown}: {refused}")
