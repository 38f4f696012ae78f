"""One AMQP connection that reads a queue: what a subscription needs beyond what publishing does.

What belongs here: the requests that subscribe. What does not: connecting and errors (rabbitmq_connection.py), and what
is made of the messages (rabbitmq.py). This file imports pika, so it is imported when a connection is first opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamll.brokers.rabbitmq_connection import Connection

_TAIL_LIMITS = {"x-max-length": 100_000, "x-max-length-bytes": 64 * 1024 * 1024}
"""What a queue of our own may hold while we are slow: then the oldest messages go, not the broker's memory."""


class Subscription(Connection):
    """A connection with a subscription to one queue. All requests raise as those of Connection do.

    Attributes:
        cancelled: Whether the broker has ended the subscription: the queue was deleted, or has moved to another node.
    """

    cancelled = False
    _heard: Any = None
    """The channel whose cancellations are heard of."""

    def count_messages(self, queue: str, *, deadline: float) -> int:
        """The messages that wait in a queue, which must exist; for a stream, about those it holds."""
        answers: list[Any] = []

        def request(channel: Any, done: Callable[[Any], None]) -> None:
            channel.queue_declare(queue, passive=True, callback=_both(answers.append, done))

        self._ask(request, deadline)
        return int(answers[0].method.message_count)

    def tell_waiting(self, queue: str, tell: Callable[[int, int], None]) -> None:
        """Ask how many messages wait in a queue of our own; `tell` hears of it, and of the most it holds, while we go on."""
        channel = self.channel
        if channel is not None and channel.is_open:
            most = _TAIL_LIMITS["x-max-length"]
            channel.queue_declare(
                queue, passive=True, callback=lambda answer: tell(int(answer.method.message_count), most)
            )

    def watch_exchange(self, exchange: str, binding_key: str, *, deadline: float) -> str:
        """Bind a queue that lives as long as this connection to an exchange, which must exist; return its name."""
        answers: list[Any] = []

        def look(channel: Any, done: Callable[[Any], None]) -> None:
            channel.exchange_declare(exchange, passive=True, callback=done)

        def declare(channel: Any, done: Callable[[Any], None]) -> None:
            channel.queue_declare(
                "",
                exclusive=True,
                auto_delete=True,
                arguments=_TAIL_LIMITS,
                callback=_both(answers.append, done),
            )

        self._ask(look, deadline)
        self._ask(declare, deadline)
        name = str(answers[0].method.queue)
        self.bind(name, exchange, binding_key, deadline=deadline)
        return name

    def subscribe(
        self,
        queue: str,
        on_message: Callable[[Any, Any, Any, bytes], None],
        prefetch: int,
        arguments: Mapping[str, Any],
        *,
        deadline: float,
    ) -> None:
        """Have messages delivered, so many unacknowledged at once: channel, delivery, properties and body of each."""
        self._ask(lambda channel, done: channel.basic_qos(prefetch_count=prefetch, callback=done), deadline)

        def request(channel: Any, done: Callable[[Any], None]) -> None:
            if channel is not self._heard:
                channel.add_on_cancel_callback(self._on_cancel)
                self._heard = channel
            channel.basic_consume(queue, on_message, arguments=dict(arguments), callback=done)

        self._ask(request, deadline)

    def _on_cancel(self, _frame: object) -> None:
        self.cancelled = True


def _both(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    def answered(frame: Any) -> None:
        first(frame)
        second(frame)

    return answered
