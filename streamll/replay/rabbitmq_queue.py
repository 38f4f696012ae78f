"""A connection that takes messages from a queue, so many at a time, and gives back those that are not wanted.

What belongs here: the requests for that. What does not: what the messages are (rabbitmq.py). This file is imported when
a connection is first opened, since it brings pika along.

A consumer that is cancelled keeps what was delivered to it until it is acknowledged or given back, and a new one on the
same channel may have as much again. So what is not wanted waits in our hands, without a limit and out of the way, and
goes back at the end: given back at once, it would be delivered again at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streamll.consumers.rabbitmq_subscription import Subscription


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as the broker delivered it."""

    tag: int
    routing_key: str
    properties: Any
    body: bytes


class Withdrawals(Subscription):
    """A connection that takes messages from one queue. Its requests raise as those of Connection do."""

    def take(self, queue: str, most: int, patience: float, *, timeout: float) -> list[Delivery]:
        """Return the next messages, fewer when no more come within `patience` seconds; none are acknowledged."""
        taken: list[Delivery] = []
        came_at = time.monotonic()

        def on_message(_channel: object, delivery: Any, properties: Any, body: bytes) -> None:
            nonlocal came_at
            taken.append(Delivery(delivery.delivery_tag, delivery.routing_key, properties, body))
            came_at = time.monotonic()

        self.cancelled = False
        deadline = time.monotonic() + timeout
        self.subscribe(queue, on_message, most, {}, deadline=deadline)
        while len(taken) < most and self.is_open and not self.cancelled:
            left = came_at + patience - time.monotonic()
            if left <= 0:
                break
            self.run(lambda: len(taken) >= most or self.cancelled, time.monotonic() + left)
        if not self.is_open:
            raise self._why("reading")
        if not self.cancelled:
            self._ask(_cancelling, time.monotonic() + timeout)
        return taken

    def acknowledge(self, tags: Sequence[int]) -> None:
        """Take messages off the queue for good."""
        channel = self.channel
        if channel is None or not self.is_open:
            raise self._why("acknowledging")
        for tag in tags:
            channel.basic_ack(tag)
        self.serve()

    def give_back(self, tags: Sequence[int]) -> None:
        """Put messages back into the queue, each in its place where the queue can do that."""
        channel = self.channel
        if channel is not None and self.is_open:
            for tag in tags:
                channel.basic_nack(tag, requeue=True)
            self.serve()


def _cancelling(channel: Any, done: Callable[[Any], None]) -> None:
    (tag,) = channel.consumer_tags
    channel.basic_cancel(tag, callback=done)
