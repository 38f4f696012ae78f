"""Which numbers of which producers a reader has seen: what it drops doubles by, in bounded memory.

Numbers that follow each other are one run, however many they are, so a reader that misses nothing remembers everything
at the price of one run a producer. Only gaps cost memory, and they are bounded.
"""

from __future__ import annotations

from collections import OrderedDict

from streamll.ranges import RangeSet

_LONGEST_PRODUCER = 256
_FORGOTTEN_SHARE = 8


class SeenNumbers:
    """The numbers seen of each producer, as runs without gaps.

    Args:
        window: Runs to remember, over all producers; at least so many numbers, however far apart they are. Beyond it,
            the producer that was silent longest loses its lowest numbers first. 0 remembers nothing.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._producers: OrderedDict[str, RangeSet] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        """The runs remembered."""
        return self._size

    def add(self, producer: str, seq: int) -> bool:
        """Note a number; return whether it was new. One without a producer or a number is always new."""
        if not producer or seq <= 0 or not self._window or len(producer) > _LONGEST_PRODUCER:
            return True
        runs = self._producers.get(producer)
        if runs is None:
            runs = self._producers[producer] = RangeSet()
        else:
            self._producers.move_to_end(producer)
            if runs.follow(seq):
                return True
        before = len(runs)
        new = runs.add_one(seq)
        self._size += len(runs) - before
        while self._size > self._window:
            self._forget()
        return new

    def _forget(self) -> None:
        producer, runs = next(iter(self._producers.items()))
        # Several at once: removing from the front of a list moves all that is behind.
        forgotten = max(1, len(runs) // _FORGOTTEN_SHARE)
        runs.cut_off(runs[forgotten - 1][1])
        self._size -= forgotten
        if not runs:
            del self._producers[producer]
