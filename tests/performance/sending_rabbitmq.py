"""How others publish the same message to RabbitMQ, persistent and confirmed: pika in two ways, and frames made by hand.

What belongs here: those, the queue they fill, and the broker's own processor time. What does not: the sink (sending.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import pika
import pika.exceptions
from pika import frame, spec
from pika.channel import Channel

from streamll.models import Record
from streamll.wire.rabbitmq import message_id
from tests.fixtures.rabbitmq import PASSWORD, USER, connect
from tests.performance.sending import EVENT_TYPE, OPERATION, PATIENCE, Sent, clocked, with_query

NAME = "performance"
"""Of the exchange and of the queue."""

PRODUCER = "0123456789abcdef0123456789abcdef"

_CHUNK = 1 << 18


def url_to(port: int, **options: object) -> str:
    """The broker's URL on some port of loopback; without heartbeats, since some connections rest for a while."""
    return with_query(f"amqp://{USER}:{PASSWORD}@127.0.0.1:{port}/%2F", **options)


def properties(record: Record, seq: int) -> pika.BasicProperties:
    """The properties and headers that the sink gives to a message."""
    headers: dict[str, Any] = {"event_type": EVENT_TYPE, "operation": OPERATION}
    return pika.BasicProperties(
        content_type=record.content_type,
        delivery_mode=2,  # persistent
        message_id=message_id(PRODUCER, seq),
        timestamp=record.timestamp // 1_000_000_000,
        type=EVENT_TYPE,
        headers=headers,
    )


class Queue:
    """The durable classic queue that all of them fill, bound to a durable topic exchange."""

    def __init__(self, port: int) -> None:
        self._connection = connect(url_to(port, heartbeat=0))
        self._channel = self._connection.channel()
        self._channel.exchange_declare(NAME, "topic", durable=True)
        self._channel.queue_declare(NAME, durable=True)
        self._channel.queue_bind(NAME, NAME, "#")

    def purge(self) -> None:
        """Empty it."""
        self._channel.queue_purge(NAME)

    def __len__(self) -> int:
        return int(self._channel.queue_declare(NAME, passive=True).method.message_count)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class OneByOne:
    """pika's BlockingConnection with a confirm for each message: the next is published when it is there."""

    def __init__(self, port: int, record: Record) -> None:
        self._connection = connect(url_to(port, heartbeat=0))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self._record = record

    def send(self, n: int) -> Sent:
        """Publish so many."""
        publish, record = self._channel.basic_publish, self._record
        with clocked(n) as sent:
            for seq in range(1, n + 1):
                publish(NAME, EVENT_TYPE, record.payload, properties(record, seq), mandatory=True)
        return sent

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Windowed:
    """pika's SelectConnection with publisher confirms, so many messages under way at most."""

    def __init__(self, port: int, record: Record) -> None:
        self._record = record
        self._left = self._window = self._waiting = 0
        self._lowest = self._next = 1  # delivery tags: the lowest unconfirmed one, and the next
        self._early: set[int] = set()
        self._error: BaseException | None = None
        self._channel: Channel | None = None
        self._connection = pika.SelectConnection(
            pika.URLParameters(url_to(port, heartbeat=0)),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=self._on_end,
            on_close_callback=self._on_end,
        )
        self._run()

    def send(self, n: int, window: int) -> Sent:
        """Publish so many, and wait for all confirms."""
        self._left, self._window = n, window
        with clocked(n) as sent:
            self._fill()
            self._run()
        return sent

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
        with suppress(pika.exceptions.ConnectionClosedByClient):
            self._run()
        self._connection.ioloop.close()

    def _run(self) -> None:
        self._connection.ioloop.start()
        if self._error is not None:
            raise self._error

    def _on_channel(self, channel: Channel) -> None:
        self._channel = channel
        channel.confirm_delivery(self._on_confirm, callback=lambda _: self._connection.ioloop.stop())

    def _on_end(self, _: object, error: BaseException | str) -> None:
        self._error = error if isinstance(error, BaseException) else RuntimeError(error)
        self._connection.ioloop.stop()

    def _fill(self) -> None:
        assert self._channel is not None
        publish, record = self._channel.basic_publish, self._record
        while self._left and self._next - self._lowest < self._window:
            publish(NAME, EVENT_TYPE, record.payload, properties(record, self._next), mandatory=True)
            self._next += 1
            self._left -= 1

    def _on_confirm(self, answer: Any) -> None:
        method = answer.method
        if not isinstance(method, spec.Basic.Ack):
            raise RuntimeError(f"the broker refused a message: {method}")
        if method.multiple:
            self._lowest = max(self._lowest, method.delivery_tag + 1)
            self._early = {tag for tag in self._early if tag >= self._lowest}
        else:
            self._early.add(method.delivery_tag)
        while self._lowest in self._early:
            self._early.remove(self._lowest)
            self._lowest += 1
        if self._left:
            self._fill()
        elif self._lowest == self._next:
            self._connection.ioloop.stop()


class ByHand:
    """A socket and frames that were marshalled once, one write for half a window: what a client cannot do better.

    All messages are the same bytes, message id included, and confirms are counted without a look at who they are for.
    """

    def __init__(self, port: int, record: Record) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._socket.sendall(frame.ProtocolHeader().marshal())
        self._expect(spec.Connection.Start)
        response = f"\0{USER}\0{PASSWORD}"
        self._call(0, spec.Connection.StartOk({}, "PLAIN", response, "en_US"), spec.Connection.Tune)
        self._socket.sendall(frame.Method(0, spec.Connection.TuneOk(1, 131_072, 0)).marshal())
        self._call(0, spec.Connection.Open("/"), spec.Connection.OpenOk)
        self._call(1, spec.Channel.Open(), spec.Channel.OpenOk)
        self._call(1, spec.Confirm.Select(), spec.Confirm.SelectOk)
        publish = spec.Basic.Publish(exchange=NAME, routing_key=EVENT_TYPE, mandatory=True)
        self._message = b"".join(
            (
                frame.Method(1, publish).marshal(),
                frame.Header(1, len(record.payload), properties(record, 1)).marshal(),
                frame.Body(1, record.payload).marshal(),
            )
        )
        self._tag = 0  # the last delivery tag

    def send(self, n: int, window: int) -> Sent:
        """Publish so many, and wait for all confirms."""
        piece = max(1, window // 2)
        left, waiting = n, set(range(self._tag + 1, self._tag + n + 1))
        lowest, fed = self._tag + 1, 0
        with clocked(n) as sent:
            while waiting:
                confirmed = n - len(waiting)
                if left and fed - confirmed <= window - piece:
                    count = min(piece, left)
                    self._socket.sendall(self._message * count)
                    left -= count
                    fed += count
                    continue
                for tag, multiple in self._confirms():
                    if multiple:
                        waiting.difference_update(range(lowest, tag + 1))
                        lowest = tag + 1
                    else:
                        waiting.discard(tag)
        self._tag += n
        return sent

    def close(self) -> None:
        """Hang up."""
        self._socket.sendall(frame.Method(0, spec.Connection.Close(200, "", 0, 0)).marshal())
        self._socket.close()

    def _read(self) -> None:
        data = self._socket.recv(_CHUNK)
        if not data:
            raise RuntimeError("the broker closed the connection")
        self._data += data

    def _confirms(self) -> list[tuple[int, bool]]:
        """Read what is there: a frame of basic.ack has 21 bytes, of which 11 to 18 are the tag and 19 says `multiple`."""
        self._read()
        whole = len(self._data) // 21 * 21
        found = []
        for kind, _, size, group, method, tag, multiple, _ in struct.iter_unpack(">BHIHHQBB", self._data[:whole]):
            if (kind, size, group, method) != (1, 13, 60, 80):
                raise RuntimeError(f"the broker answered with something else than basic.ack: {self._data[:64]!r}")
            found.append((tag, bool(multiple)))
        self._data = self._data[whole:]
        return found

    def _expect(self, kind: type) -> None:
        while True:
            used, answer = frame.decode_frame(self._data)
            if answer is not None:
                break
            self._read()
        self._data = self._data[used:]
        if not isinstance(answer, frame.Method) or not isinstance(answer.method, kind):
            raise RuntimeError(f"the broker answered {answer} instead of {kind.__name__}")

    def _call(self, channel: int, method: Any, answer: type) -> None:
        self._socket.sendall(frame.Method(channel, method).marshal())
        self._expect(answer)


def process_cpu(pid: int) -> Callable[[], float] | None:
    """What reads the processor time of a process, in seconds; None without psutil, of the extra `performance`."""
    if find_spec("psutil") is None:
        return None
    import psutil

    process = psutil.Process(pid)

    def read() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return read
