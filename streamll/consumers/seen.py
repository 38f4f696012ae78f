"""Which numbers of which producers a reader has seen: what it drops doubles by, in bounded memory.

Numbers that follow each other are one run, however many they are, so a reader that misses nothing remembers everything
at the price of one run a producer. Only gaps cost memory, and they are bounded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

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
        self._producers: OrderedDict[str, _Runs] = OrderedDict()
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
            runs = self._producers[producer] = _Runs()
        else:
            self._producers.move_to_end(producer)
        before = len(runs.starts)
        new = runs.add(seq)
        self._size += len(runs.starts) - before
        while self._size > self._window:
            self._forget()
        return new

    def _forget(self) -> None:
        producer, runs = next(iter(self._producers.items()))
        # Several at once: removing from the front of a list moves all that is behind.
        forgotten = max(1, len(runs.starts) // _FORGOTTEN_SHARE)
        del runs.starts[:forgotten], runs.ends[:forgotten]
        self._size -= forgotten
        if not runs.starts:
            del self._producers[producer]


class _Runs:
    """Ordered, disjoint runs: first and last number of each."""

    __slots__ = ("ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []

    def add(self, seq: int) -> bool:
        starts, ends = self.starts, self.ends
        if ends and seq == ends[-1] + 1:
            ends[-1] = seq
            return True
        at = bisect_right(starts, seq)  # the first run that begins above seq
        if at and seq <= ends[at - 1]:
            return False
        joins_left = at > 0 and ends[at - 1] == seq - 1
        joins_right = at < len(starts) and starts[at] == seq + 1
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif joins_left:
            ends[at - 1] = seq
        elif joins_right:
            starts[at] = seq
        else:
            starts.insert(at, seq)
            ends.insert(at, seq)
        return True
