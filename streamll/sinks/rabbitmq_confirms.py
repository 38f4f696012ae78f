"""Which messages of a batch the broker has answered for: publisher confirms, counted.

What belongs here: acknowledgements, refusals and returns, by position in the batch. What does not: where they come from.
"""

from __future__ import annotations

_OPEN, _ACKED, _NACKED = 0, 1, 2


class Confirms:
    """The answers to the messages of one batch.

    On a channel in confirm mode the broker counts the messages from 1 and answers with these numbers (delivery tags), in
    any order, for one message or for all up to it (`multiple`). A message that no queue takes is returned first, and
    then acknowledged like any other.

    Args:
        first_tag: The tag of the batch's first message.
        size: How many messages the batch has.

    Attributes:
        waiting: Messages that were fed to the broker and have no answer yet.
        fed: Messages that were fed to the broker.
        nacked: Messages that it refused, for now.
        returned: Reasons of messages that no queue takes, by position.
    """

    def __init__(self, first_tag: int, size: int) -> None:
        self._first = first_tag
        self._answers = bytearray(size)
        self._low = 0
        self.waiting = 0
        self.fed = 0
        self.nacked = 0
        self.returned: dict[int, str] = {}

    @property
    def complete(self) -> bool:
        """Whether every message of the batch was fed and answered."""
        return self.waiting == 0 and self.fed == len(self._answers)

    def feed(self, count: int) -> None:
        """Note that the next `count` messages are on their way."""
        self.fed += count
        self.waiting += count

    def answer(self, tag: int, multiple: bool, acked: bool) -> None:
        """Take an answer; tags of other batches, and second answers for a message, change nothing."""
        last = min(tag - self._first, self.fed - 1) if multiple else tag - self._first
        if not 0 <= last < self.fed:
            return
        answer = _ACKED if acked else _NACKED
        for position in range(self._low if multiple else last, last + 1):
            if self._answers[position] == _OPEN:
                self._answers[position] = answer
                self.waiting -= 1
                self.nacked += not acked
        if multiple:
            self._low = max(self._low, last + 1)

    def delivered(self) -> frozenset[int]:
        """The positions of messages that a queue has taken."""
        return frozenset(
            position
            for position, answer in enumerate(self._answers)
            if answer == _ACKED and position not in self.returned
        )

    def unanswered(self) -> list[int]:
        """The positions of messages that were fed and have no answer yet."""
        return [position for position in range(self.fed) if self._answers[position] == _OPEN]
