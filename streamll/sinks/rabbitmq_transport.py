"""The transport of RabbitMQSink: batches of events, published and confirmed in a window.

What belongs here: what is declared, how a batch is fed, and which outcome follows from the broker's answers. What does
not: pika (rabbitmq_connection.py, imported when the first connection is opened) and the form of a message (wire).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from streamll.brokers.rabbitmq_errors import ACCESS_REFUSED, NOT_FOUND, Refused, failure_of
from streamll.brokers.rabbitmq_url import Address
from streamll.delivery.outcome import BatchOutcome, Entry, Failure
from streamll.errors import FatalError, TransportError, UnavailableError
from streamll.runtime.fork import whole_import
from streamll.sinks.rabbitmq_confirms import Confirms
from streamll.sinks.rabbitmq_messages import Messages
from streamll.sinks.rabbitmq_options import BATCH, RabbitMQOptions
from streamll.wire.rabbitmq import Encoder, RoutingKey

if TYPE_CHECKING:
    from streamll.brokers.rabbitmq_connection import Connection

_WRITE_SIZE = 256 * 1024
_LONGEST_SERVICE_INTERVAL = 10.0
_LARGEST_SIZE = re.compile(r"max(?:imum)? size (\d+)")


class RabbitMQTransport:
    """Publishes to one exchange of one RabbitMQ, persistent, mandatory and confirmed: at least once.

    A batch is fed in windows of `confirm_window` messages, of one event each, or of many with `framing`. What was fed
    and not answered when the connection ends, or the deadline passes, may have arrived, and is sent again: AMQP 0-9-1
    cannot tell doubles apart, readers can, by the events' numbers. To keep them few, a new connection is tried with a
    single event first: a broker that takes messages in without answering (frozen, or out of memory) then gets one double
    for each attempt, not a window of them.

    Args:
        address: Where the broker is.
        options: What to declare and how to publish.
        producer: The id that, with the sequence number, names each message.
        name: What the broker's management shows for the connection.
    """

    def __init__(self, address: Address, options: RabbitMQOptions, producer: str, name: str = "streamll") -> None:
        self.service_interval: float | None = _LONGEST_SERVICE_INTERVAL
        self._address = address
        self._options = options
        self._producer = producer
        self._name = name
        self._routing_key = RoutingKey(options.key_template)
        self._framing = options.framing == BATCH
        self._link: Connection | None = None
        self._interrupted = False
        # Of the present connection:
        self._encoder = self._new_encoder(channel=1, frame_max=0)
        self._proven = False
        self._next_tag = 1
        self._dead_letters_ready = False
        self._dead_letters_refused = ""
        # Of the present batch:
        self._batch: Sequence[Entry] = ()
        self._messages = Messages(())
        self._names: dict[str, int] = {}
        self._confirms = Confirms(1, 0)

    @property
    def is_open(self) -> bool:
        """Whether `send` may be called."""
        return self._link is not None and self._link.is_open

    def open(self, deadline: float) -> None:
        """Connect, declare what is missing, and turn confirms on.

        Raises:
            UnavailableError: The broker cannot be reached or cannot serve now.
            FatalError: Wrong password, no such virtual host, no permission for it, or something is missing that may not
                be declared.
        """
        self._drop(clean=False)
        with whole_import():
            from streamll.brokers.rabbitmq_connection import Connection

        options = self._options
        link = self._link = Connection(
            self._address.url,
            host=self._address.host,
            blocked_timeout=options.confirm_timeout,
            name=self._name,
            cacertfile=options.cacertfile,
            certfile=options.certfile,
            keyfile=options.keyfile,
        )
        try:
            if self._interrupted:
                raise UnavailableError(f"{self._address.host}: interrupted")
            link.connect(deadline)
            if options.declare:
                self._declare(link, deadline)
            self._proven = False
            self._dead_letters_ready, self._dead_letters_refused = not options.declare, ""
            self._start_publishing(link, deadline)
        except TransportError:
            self._drop(clean=False)
            raise
        finally:
            self._interrupted = False
        heartbeat = link.heartbeat
        self.service_interval = (
            min(heartbeat / 4, _LONGEST_SERVICE_INTERVAL) if heartbeat else _LONGEST_SERVICE_INTERVAL
        )

    def send(self, batch: Sequence[Entry], deadline: float) -> BatchOutcome:
        """Publish a batch and collect the broker's answers, until all are there or the deadline has passed.

        A message that no queue takes is rejected, by its position. A message that the broker refuses for now (nack)
        fails the batch as UNAVAILABLE, while the others of it are delivered.
        """
        link = self._link
        if link is None or not link.is_open:
            return BatchOutcome(Failure.UNAVAILABLE, sent=False, error=f"{self._address.host}: not connected")
        try:
            link.serve()  # a goodbye of the broker that waits here already spares the batch
            dead = [position for position, entry in enumerate(batch) if entry.dead_letter]
            if dead:
                self._prepare_dead_letters(link, deadline)
                if self._dead_letters_refused:
                    rejected = dict.fromkeys(dead, self._dead_letters_refused)
                    return BatchOutcome(
                        Failure.REJECTED, rejected=rejected, sent=False, error=self._dead_letters_refused
                    )
            self._publish(link, batch, deadline)
            return self._outcome(link)
        except TransportError as error:
            self._drop(clean=False)
            failure = Failure.FATAL if isinstance(error, FatalError) else Failure.UNAVAILABLE
            return BatchOutcome(failure, sent=False, error=str(error))
        finally:
            self._batch, self._messages, self._names = (), Messages(()), {}
            self._interrupted = link.interrupted = False

    def idle(self, seconds: float) -> None:
        """Serve the connection (heartbeats, notices of the broker) for at most so many seconds; 0: what waits already."""
        link = self._link
        if link is None:
            return
        if seconds > 0:
            link.run(_never, time.monotonic() + seconds)
        else:
            link.serve()
        self._interrupted = link.interrupted = False

    def close(self, clean: bool) -> None:
        """Give the connection up, in a second at most; never raises."""
        self._drop(clean)

    def interrupt(self) -> None:
        """End a blocked `open`, `send` or `idle` soon, or else the next one; safe from any thread."""
        self._interrupted = True
        link = self._link
        if link is not None:
            link.wake()

    def _drop(self, clean: bool) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(clean)

    def _declare(self, link: Connection, deadline: float) -> None:
        options = self._options
        if options.exchange:
            self._ensure(
                f"exchange {options.exchange!r}",
                lambda passive: link.declare_exchange(
                    options.exchange, options.exchange_type, passive=passive, deadline=deadline
                ),
            )
        if options.queue:
            self._ensure(
                f"queue {options.queue!r}",
                lambda passive: link.declare_queue(
                    options.queue, {"x-queue-type": options.queue_type}, passive=passive, deadline=deadline
                ),
            )
            if options.exchange:
                self._bind(link, options.queue, options.exchange, options.binding, deadline)

    def _ensure(self, what: str, declare: Callable[[bool], None]) -> None:
        """Look whether something is there before declaring it: so one that exists is used as it is, by anybody."""
        if not self._exists(what, declare):
            self._create(what, declare)

    def _exists(self, what: str, declare: Callable[[bool], None]) -> bool:
        try:
            declare(True)
        except Refused as refused:
            if refused.code == NOT_FOUND:
                return False
            if refused.code != ACCESS_REFUSED:  # hidden from us: publishing will tell
                raise self._trouble(f"{what} cannot be used", refused) from None
        return True

    def _create(self, what: str, declare: Callable[[bool], None]) -> None:
        try:
            declare(False)
        except Refused as refused:
            raise self._trouble(f"{what} does not exist and cannot be declared", refused) from None

    def _bind(self, link: Connection, queue: str, exchange: str, key: str, deadline: float) -> None:
        try:
            link.bind(queue, exchange, key, deadline=deadline)
        except Refused as refused:
            # Who may publish may not always bind: then somebody else has, or messages come back as unroutable.
            if refused.code != ACCESS_REFUSED:
                raise self._trouble(f"queue {queue!r} cannot be bound to exchange {exchange!r}", refused) from None

    def _prepare_dead_letters(self, link: Connection, deadline: float) -> None:
        """Make sure of the dead-letter exchange, when the first dead letter comes: most producers never need it.

        A new one gets a queue of the same name, or its messages would be lost. One that exists is used as it is; but where
        such a queue is there too, somebody may have been cut off before the two were bound.
        """
        if self._dead_letters_ready:
            return
        name, channel = self._options.dead_letter_name, link.channel
        exchange, queue = f"dead-letter exchange {name!r}", f"dead-letter queue {name!r}"

        def declare_exchange(passive: bool) -> None:
            link.declare_exchange(name, "fanout", passive=passive, deadline=deadline)

        def declare_queue(passive: bool) -> None:
            link.declare_queue(name, {}, passive=passive, deadline=deadline)

        try:
            is_new = not self._exists(exchange, declare_exchange)
            if is_new:
                self._ensure(queue, declare_queue)
                self._create(exchange, declare_exchange)
            if is_new or self._exists(queue, declare_queue):
                self._bind(link, name, name, "", deadline)
        except FatalError as error:
            self._dead_letters_refused = str(error)
        if link.channel is not channel or not link.is_open:
            self._start_publishing(link, deadline)
        self._dead_letters_ready = True

    def _start_publishing(self, link: Connection, deadline: float) -> None:
        try:
            channel = link.confirm(self._on_answer, self._on_return, deadline=deadline)
        except Refused as refused:
            raise self._trouble("publisher confirms cannot be turned on", refused) from None
        self._encoder = self._new_encoder(channel, link.frame_max)
        self._next_tag = 1

    def _new_encoder(self, channel: int, frame_max: int) -> Encoder:
        options = self._options
        return Encoder(
            self._producer,
            options.exchange,
            self._routing_key,
            options.dead_letter_name,
            channel=channel,
            frame_max=frame_max,
        )

    def _publish(self, link: Connection, batch: Sequence[Entry], deadline: float) -> None:
        """Feed the batch and wait for the answers; returns early when the connection, or the time, has ended."""
        self._batch = batch
        messages = self._messages = Messages(batch, framing=self._framing, first_alone=not self._proven)
        confirms = self._confirms = Confirms(self._next_tag, len(messages))

        def room() -> int:
            """How many messages may be fed now; none while more than half of a window waits, so that writes stay few."""
            if link.blocked or confirms.fed == len(messages) or not link.is_open:
                return 0
            window = self._options.confirm_window if self._proven else 1
            return window - confirms.waiting if confirms.waiting <= window // 2 else 0

        while not confirms.complete and not link.interrupted and time.monotonic() < deadline:
            count = room()
            if count:
                self._write(link, range(confirms.fed, min(confirms.fed + count, len(messages))))
            if not link.run(lambda: confirms.complete or room() > 0, deadline):
                return

    def _write(self, link: Connection, messages: range) -> None:
        encode, encoder = self._messages.encode, self._encoder
        self._confirms.feed(len(messages))
        self._next_tag += len(messages)
        frames: list[bytes] = []
        size = 0
        for message in messages:
            pieces, length = encode(encoder, message)
            frames += pieces
            size += length
            if size >= _WRITE_SIZE:
                link.write(b"".join(frames))
                frames, size = [], 0
        if frames:
            link.write(b"".join(frames))

    def _on_answer(self, tag: int, multiple: bool, acked: bool) -> None:
        self._proven = True
        self._confirms.answer(tag, multiple, acked)

    def _on_return(self, name: str, reason: str) -> None:
        if not self._names:
            self._names = self._messages.names(self._producer)
        message = self._names.get(name)
        if message is not None:
            self._confirms.returned[message] = reason

    def _outcome(self, link: Connection) -> BatchOutcome:
        confirms = self._confirms
        rejected = self._messages.spread(confirms.returned)
        if confirms.complete and not confirms.nacked:
            return BatchOutcome(rejected=rejected)
        host = self._address.host
        failure, refused = Failure.UNAVAILABLE, link.refused
        if confirms.complete:
            error = f"{host}: the broker refused {confirms.nacked} messages for now (nack): is a queue full?"
        elif refused is not None:
            failure = self._judge(refused, rejected)
            error = f"{host}: {refused}"
        elif link.error is not None:
            failure = Failure.FATAL if isinstance(link.error, FatalError) else failure
            error = str(link.error)
        elif link.interrupted:
            error = f"{host}: interrupted with {confirms.waiting} messages unconfirmed"
        else:
            error = f"{host}: {link.blocked or 'no answer in time'}, {confirms.waiting} messages unconfirmed"
        if confirms.waiting or not link.is_open:
            # What comes for these messages now must never be taken for the answers to others.
            self._drop(clean=False)
        delivered = frozenset(self._messages.events(confirms.delivered()))
        return BatchOutcome(failure, delivered, rejected, sent=confirms.fed > 0, error=error)

    def _judge(self, refused: Refused, rejected: dict[int, str]) -> Failure:
        """Say what the closing of the channel means, and reject the messages that are known to be its reason."""
        options, failure = self._options, failure_of(refused.code, refused.text)
        unanswered = self._messages.events(self._confirms.unanswered())
        if refused.code == NOT_FOUND and not options.declare:
            failure = Failure.FATAL
        if failure is Failure.FATAL and repr(options.dead_letter_name) in refused.text:
            # No place for dead letters must not keep the living from being delivered.
            dead = [position for position in unanswered if self._batch[position].dead_letter]
            rejected.update(dict.fromkeys(dead, str(refused)))
            return Failure.REJECTED
        if failure is Failure.REJECTED:
            found = _LARGEST_SIZE.search(refused.text)
            largest = int(found[1]) if found else sys.maxsize
            too_large = [position for position in unanswered if len(self._batch[position].record.payload) > largest]
            rejected.update(dict.fromkeys(too_large, str(refused)))
            if found and self._messages.framed and not too_large:
                self._framing = False  # the broker takes only messages that are shorter than frames
        return failure

    def _trouble(self, what: str, refused: Refused) -> TransportError:
        message = f"{self._address.host}: {what}: {refused}"
        fatal = failure_of(refused.code, refused.text) is Failure.FATAL
        return FatalError(message) if fatal else UnavailableError(message)


def _never() -> bool:
    return False
