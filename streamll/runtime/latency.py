"""How long events take from emit to their confirmation, as a histogram with buckets 6 to 13 % wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from streamll.delivery.outcome import Entry

_STEPS = 8  # buckets for each doubling, so that a bucket is at most an eighth wider than its lower end
_SAMPLED = 32


@dataclass(frozen=True)
class Latencies:
    """Quantiles of the time from emit to confirmed delivery, in seconds; None while nothing has been delivered.

    They come from up to 32 events of each batch, evenly spaced and weighted, and are the upper ends of buckets that are
    6 to 13 % wide.
    """

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class Histogram:
    """Counts durations by their order of magnitude; one thread adds, any may read."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._max = 0

    def add_batch(self, delivered: Sequence[Entry], now: int) -> None:
        """Count a delivered batch.

        Args:
            delivered: Its entries.
            now: The present time in monotonic nanoseconds.
        """
        if not delivered:
            return
        step = max(1, len(delivered) // _SAMPLED)
        # The first entry is the oldest, so the longest wait is always among those looked at.
        for entry in delivered[::step]:
            elapsed = max(1, now - entry.record.created)
            exponent = elapsed.bit_length() - 1
            within = (elapsed - (1 << exponent)) * _STEPS >> exponent
            bucket = exponent * _STEPS + within
            self._counts[bucket] = self._counts.get(bucket, 0) + step
            if elapsed > self._max:
                self._max = elapsed

    def read(self) -> Latencies:
        """Return the quantiles so far, each the upper end of its bucket."""
        counts = sorted(self._counts.copy().items())
        total = sum(n for _, n in counts)
        if not total:
            return Latencies()

        def quantile(share: float) -> float:
            seen = 0
            for bucket, n in counts:
                seen += n
                if seen >= share * total:
                    exponent, within = divmod(bucket, _STEPS)
                    upper = (1 << exponent) * (_STEPS + within + 1) / _STEPS
                    return min(upper, self._max) / 1e9
            return self._max / 1e9

        return Latencies(quantile(0.5), quantile(0.95), quantile(0.99), self._max / 1e9)
