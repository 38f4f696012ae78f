"""Dead letters in a RabbitMQ queue, and an exchange as the place where redriven events go.

Letters are acknowledged once the broker has confirmed what was published in their place. AMQP 0-9-1 has no step that
does both, so it is at least once: a connection that is cut in between leaves events in both places, under the same
message id, by which readers drop the double. What no queue takes, and what is not meant, goes back to the queue.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamll import codec
from streamll.brokers.rabbitmq_errors import NOT_FOUND, Refused, failure_of
from streamll.brokers.rabbitmq_url import Address
from streamll.delivery.outcome import BatchOutcome, Failure
from streamll.errors import DecodeError, FatalError, TransportError, UnavailableError
from streamll.models import Record
from streamll.options import SinkOptions
from streamll.replay.base import PAGE, Letter
from streamll.sinks.rabbitmq_confirms import Confirms
from streamll.sinks.rabbitmq_options import RabbitMQOptions
from streamll.wire import frame
from streamll.wire.entry import WireEntry
from streamll.wire.rabbitmq import LABELS, Encoder, RoutingKey, decode_messages, message_id

if TYPE_CHECKING:
    from streamll.brokers.rabbitmq_connection import Connection
    from streamll.replay.rabbitmq_queue import Delivery, Withdrawals

_AT_ONCE = 250
"""Messages taken at once."""
_SETTLED = 1.0
"""Seconds without a message after which the queue has no more for us: somebody else has the rest."""
_ENCODERS_KEPT = 1024
_LAST_NUMBER = 2**63 - 1
_NAME = "streamll replay"


class RabbitMQDeadLetters:
    """The dead letters in a queue.

    Args:
        address: The broker.
        queue: The queue.
        own: The certificates.
        options: The timeouts.
    """

    def __init__(self, address: Address, queue: str, own: RabbitMQOptions, options: SinkOptions) -> None:
        self.shown = f"{address.shown} queue {queue}"
        self._address = address
        self._queue = queue
        self._own = own
        self._options = options
        self._link: Withdrawals | None = None
        self._to_come = 0
        self._taken: deque[Letter] = deque()
        self._held: dict[int, int] = {}  # by the message's tag: how many of its letters were not removed

    def open(self) -> None:
        """See `DeadLetters.open`: a queue that does not exist is an empty one, since the first dead letter declares it."""
        from streamll.replay.rabbitmq_queue import Withdrawals

        own, deadline = self._own, time.monotonic() + self._options.connect_timeout
        self._link = Withdrawals(
            self._address.url,
            host=self._address.host,
            blocked_timeout=own.confirm_timeout,
            name=_NAME,
            cacertfile=own.cacertfile,
            certfile=own.certfile,
            keyfile=own.keyfile,
        )
        self._link.connect(deadline)
        self._to_come = self._count(self._link)

    def take(self) -> list[Letter]:
        """See `DeadLetters.take`. A frame, which a reader rejected, is as many letters as it has events."""
        most = min(self._to_come, _AT_ONCE)
        if not self._taken and most:
            try:
                taken = self._opened().take(self._queue, most, _SETTLED, timeout=self._options.send_timeout)
            except Refused as refused:
                raise _explain(self.shown, refused) from None
            self._to_come -= len(taken)
            for delivery in taken:
                letters = _letters(delivery)
                self._held[delivery.tag] = len(letters)
                self._taken.extend(letters)
        return [self._taken.popleft() for _ in range(min(len(self._taken), PAGE))]

    def remove(self, letters: Sequence[Letter]) -> None:
        """See `DeadLetters.remove`: a message goes when all of its letters do."""
        done = []
        for letter in letters:
            self._held[letter.handle] -= 1
            if not self._held[letter.handle]:
                done.append(letter.handle)
        try:
            self._opened().acknowledge(done)
        except Refused as refused:
            raise _explain(self.shown, refused) from None
        for tag in done:
            del self._held[tag]

    def count(self) -> int:
        """See `DeadLetters.count`."""
        link = self._opened()
        count = self._count(link) + sum(self._held.values())  # while these are in our hands, it does not count them
        link.give_back(sorted(self._held))
        self._held.clear()
        return count

    def close(self) -> None:
        """See `DeadLetters.close`: what is not acknowledged goes back to the queue with the connection's end."""
        link, self._link = self._link, None
        if link is not None:
            link.close(clean=True)

    def _opened(self) -> Withdrawals:
        if self._link is None:
            raise UnavailableError(f"{self.shown}: not connected")
        return self._link

    def _count(self, link: Withdrawals) -> int:
        try:
            return link.count_messages(self._queue, deadline=time.monotonic() + self._options.send_timeout)
        except Refused as refused:
            if refused.code == NOT_FOUND:
                return 0
            raise _explain(self.shown, refused) from None


class RabbitMQDestination:
    """An exchange that redriven events are published to: mandatory, persistent and confirmed. Nothing is declared.

    Args:
        address: The broker.
        own: The exchange, the routing key's template and the certificates.
        options: The timeouts.
        own_keys: Whether letters that came from a queue keep the routing key that they were published under.
    """

    takes_away = False

    def __init__(self, address: Address, own: RabbitMQOptions, options: SinkOptions, *, own_keys: bool) -> None:
        self.shown = f"{address.shown} exchange {own.exchange or '(default)'}"
        self._address = address
        self._own = own
        self._options = options
        self._own_keys = own_keys
        self._link: Connection | None = None
        # Of the present channel:
        self._channel = 0
        self._next_tag = 1
        self._encoders: dict[tuple[str, str], Encoder] = {}
        # Of the present batch:
        self._confirms = Confirms(1, 0)
        self._places: dict[str, deque[int]] = {}

    def prepare(self) -> None:
        """See `Destination.prepare`."""
        link = self._link
        if link is not None and link.is_open:
            link.serve()
            if link.is_open:
                return
        if link is None or link.error is not None:
            link = self._connect()
        try:
            self._channel = link.confirm(
                self._on_answer, self._on_return, deadline=time.monotonic() + self._options.connect_timeout
            )
        except Refused as refused:
            raise _explain(self.shown, refused) from None
        self._next_tag = 1
        self._encoders.clear()

    def deliver(self, letters: Sequence[Letter]) -> BatchOutcome:
        """See `Destination.deliver`."""
        self.prepare()
        link = self._link
        if link is None:
            raise UnavailableError(f"{self.shown}: not connected")
        unusable: dict[int, str] = {}
        places: list[int] = []
        frames: list[bytes] = []
        self._places = {}
        for place, letter in enumerate(letters):
            try:
                frames += self._frames(link, letter)
            except ValueError as error:  # no event, or a producer's name that no message can bear
                unusable[place] = str(error)
                continue
            self._places.setdefault(message_id(letter.producer, letter.seq), deque()).append(len(places))
            places.append(place)
        confirms = self._confirms = Confirms(self._next_tag, len(places))
        confirms.feed(len(places))
        self._next_tag += len(places)
        link.write(b"".join(frames))
        link.run(lambda: confirms.complete, time.monotonic() + self._own.confirm_timeout)
        failure, why = self._failure(link)
        delivered = frozenset(places[place] for place in confirms.delivered())
        rejected = unusable | {places[place]: reason for place, reason in confirms.returned.items()}
        return BatchOutcome(failure, delivered, rejected, error=why)

    def close(self, clean: bool) -> None:
        """See `Destination.close`."""
        link, self._link = self._link, None
        if link is not None:
            link.close(clean)

    def _connect(self) -> Connection:
        from streamll.brokers.rabbitmq_connection import Connection

        self.close(clean=False)
        own = self._own
        link = self._link = Connection(
            self._address.url,
            host=self._address.host,
            blocked_timeout=own.confirm_timeout,
            name=_NAME,
            cacertfile=own.cacertfile,
            certfile=own.certfile,
            keyfile=own.keyfile,
        )
        link.connect(time.monotonic() + self._options.connect_timeout)
        return link

    def _frames(self, link: Connection, letter: Letter) -> Sequence[bytes]:
        if letter.seq > _LAST_NUMBER:
            raise ValueError("no event of ours: its number is none that is given out")
        if letter.labels is not None:
            record = _record(letter.payload, letter.labels)
        else:
            record = _record_of_event(letter.payload)
        key = self._own.key_template
        if self._own_keys and letter.routing_key is not None:
            key = letter.routing_key.replace("{", "{{").replace("}", "}}")
        encoder = self._encoders.get((letter.producer, key))
        if encoder is None:
            if len(self._encoders) >= _ENCODERS_KEPT:
                self._encoders.clear()
            encoder = self._encoders[letter.producer, key] = Encoder(
                letter.producer,
                self._own.exchange,
                RoutingKey(key),
                self._own.dead_letter_name,
                channel=self._channel,
                frame_max=link.frame_max,
            )
        return encoder.encode(record, letter.seq)

    def _failure(self, link: Connection) -> tuple[Failure | None, str]:
        """Why not all of the batch was answered, or not all of it taken."""
        confirms = self._confirms
        if confirms.complete:
            if not confirms.nacked:
                return None, ""
            said = f"the broker refused {confirms.nacked} messages for now (nack): is a queue full?"
            return Failure.UNAVAILABLE, f"{self.shown}: {said}"
        if link.refused is not None:
            failure = failure_of(link.refused.code, link.refused.text)
            return Failure.FATAL if link.refused.code == NOT_FOUND else failure, f"{self.shown}: {link.refused}"
        if link.error is not None:
            return Failure.UNAVAILABLE, str(link.error)
        text = f"{self.shown}: {link.blocked or 'no answer in time'}, {confirms.waiting} messages unconfirmed"
        self.close(clean=False)  # what comes for these messages now must not be taken for the answers to others
        return Failure.UNAVAILABLE, text

    def _on_answer(self, tag: int, multiple: bool, acked: bool) -> None:
        self._confirms.answer(tag, multiple, acked)

    def _on_return(self, name: str, reason: str) -> None:
        places = self._places.get(name)
        if places:  # messages of one name come back in the order in which they were published
            self._confirms.returned[places.popleft()] = reason


def _letters(delivery: Delivery) -> list[Letter]:
    """The dead letter that a message is; of a frame, all that it holds."""
    properties, headers = delivery.properties, delivery.properties.headers or {}
    try:
        found = decode_messages(delivery.body, headers, properties.message_id)
    except DecodeError as error:
        return [Letter(delivery.tag, "", delivery.body, "", 0, "", str(error))]
    labels: dict[str, Any] = {label: text for label in LABELS if isinstance(text := headers.get(label), str)}
    labels["content_type"] = properties.content_type if properties.content_type != frame.CONTENT_TYPE else None
    labels["timestamp"] = properties.timestamp
    said = _broker_said(headers)
    return [_letter(delivery, entry, labels, said) for entry in found]


def _letter(delivery: Delivery, entry: WireEntry, labels: Mapping[str, Any], said: str) -> Letter:
    problem = "" if entry.producer else "no event of ours: neither headers nor message id name a producer and a number"
    return Letter(
        delivery.tag,
        message_id(entry.producer, entry.seq) if entry.producer else delivery.properties.message_id or "",
        entry.payload,
        entry.producer,
        entry.seq,
        entry.reason or said,
        problem,
        delivery.routing_key,
        labels,
    )


def _broker_said(headers: Mapping[str, Any]) -> str:
    """Why the broker itself dead-lettered a message, such as one that a consumer rejected."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    return f"{last.get('reason')} from queue {last.get('queue')}" if isinstance(last, dict) else ""


def _record(payload: bytes, labels: Mapping[str, Any]) -> Record:
    """The record that a message was made of, as far as the message says; of one whose headers are gone, the event's."""
    if "event_type" not in labels:
        return _record_of_event(payload)
    content_type, moment = labels["content_type"], labels["timestamp"]
    return Record(
        payload=payload,
        content_type=content_type if isinstance(content_type, str) else _content_type(payload),
        event_id="",
        execution_id="",
        timestamp=moment * 1_000_000_000 if isinstance(moment, int) else 0,
        created=0,
        **{label: labels.get(label, "") for label in LABELS},
    )


def _record_of_event(payload: bytes) -> Record:
    event = codec.decode(payload)
    return Record(
        payload=payload,
        content_type=_content_type(payload),
        event_id=event.event_id,
        execution_id=event.execution_id,
        timestamp=event.timestamp,
        created=0,
        **{label: getattr(event, label) for label in LABELS},
    )


def _content_type(payload: bytes) -> str:
    return codec.JSON if payload.lstrip()[:1] == b"{" else codec.MSGPACK


def _explain(shown: str, refused: Refused) -> TransportError:
    lasting = failure_of(refused.code, refused.text) is not Failure.UNAVAILABLE
    return (FatalError if lasting else UnavailableError)(f"{shown}: {refused}")
