"""Quantiles of a stream of numbers, from memory that does not grow with it: a sketch that other sketches can be merged into.

What belongs here: the sketch, its arithmetic and its form in an event. What does not: whose numbers they are, or when
they are sent.

The way is that of DDSketch (Masson, Rim and Lee, PVLDB 12(12), 2019): numbers are counted by their order of magnitude.
Bucket i holds what is above base^(i - 1) and at most base^i, and stands for 2 base^i / (base + 1), which is off by at most
(base - 1) / (base + 1) of any number in it. With base = 1 + 2e that is e / (1 + e): less than e, by more than what the
rounding of logarithms takes. A bucket's place depends on the number alone, so a merged sketch says what one sketch of all
the numbers would say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate, repeat
from math import ceil, inf, isfinite, log, nan
from operator import mul
from sys import float_info
from typing import Any

MAX_BUCKETS = 2048
"""So many neighbouring buckets of each sign: at 1 %, from the largest magnitude down to 1 / 4e17 of it."""

_MOST_BUCKETS = 1 << 16
_FINEST, _COARSEST = 0.001, 0.5
_LARGEST = float_info.max
_MANY = 1 << 63
_NOWHERE = -_MANY
_FARTHEST = 1 << 20
"""No float lies so far out: at 0.1 %, the largest and the smallest are in buckets 355,000 and -373,000."""


class QuantileSketch:
    """Counts numbers so that any quantile of them can be told, to within a share of its value.

    Zero, negative, tiny and huge numbers are all counted; infinities, NaN and what is no number are refused. Of each sign
    only the `max_buckets` orders of magnitude below the largest are told apart: what is nearer to zero is counted in the
    last of them (`collapsed`). One thread at a time may use it.

    Args:
        relative_error: A quantile is off by at most this share of its value: 0.001 to 0.5.
        max_buckets: The bound on its size: 1 to 65536 for each sign.

    Raises:
        ValueError: When an argument is out of its bounds.

    Attributes:
        relative_error, max_buckets: As given.
        zeros: How many of the numbers are zero.
        refused: What `add` was given and did not count.
    """

    __slots__ = (
        "_high",
        "_low",
        "_negative",
        "_positive",
        "_positive_counts",
        "_scale",
        "_total",
        "max_buckets",
        "refused",
        "relative_error",
        "zeros",
    )

    def __init__(self, relative_error: float = 0.01, max_buckets: int = MAX_BUCKETS) -> None:
        if not _FINEST <= relative_error <= _COARSEST:
            raise ValueError(f"relative_error must be {_FINEST} to {_COARSEST}")
        if not 1 <= max_buckets <= _MOST_BUCKETS:
            raise ValueError(f"max_buckets must be 1 to {_MOST_BUCKETS}")
        self.relative_error = relative_error
        self.max_buckets = max_buckets
        self._scale = 1 / log(1 + 2 * relative_error)
        self.refused = 0
        self.clear()

    def clear(self) -> None:
        """Forget all numbers; `refused` stays."""
        self.zeros = 0
        self._total = 0.0
        self._low, self._high = inf, -inf
        self._positive, self._negative = _Side(self.max_buckets), _Side(self.max_buckets)
        self._positive_counts = self._positive.counts

    def add(self, value: float, count: int = 1) -> None:
        """Count a number; never raises for what the number is.

        Args:
            value: An int or a float. Anything else that is given, a bool too, is refused, and not asked what it is.
            count: How often it came, from 0 to 2**63 - 1.

        Raises:
            ValueError: When `count` is no such number.
        """
        if count != 1:
            self._add_many(value, count)
            return
        kind: type = type(value)
        if kind is not float:
            try:
                value = float(value) if kind is int else _as_float(value)
            except (TypeError, OverflowError):
                self.refused += 1
                return
        if value > 0.0:
            try:
                index = ceil(log(value) * self._scale)
            except OverflowError:  # infinity
                self.refused += 1
                return
            try:
                self._positive_counts[index] += 1
            except KeyError:
                self._positive.add(index, 1)
        elif not self._add_rest(value, 1):
            return
        self._total += value
        if value < self._low:
            self._low = value
        if value > self._high:
            self._high = value

    def extend(self, values: Collection[float]) -> None:
        """Count several numbers, each as `add` would; where there are many, it takes a third of the time."""
        total = sum(values) if set(map(type, values)) == {float} else nan
        if not isfinite(total) or min(values) <= 0.0:  # the sum is NaN if any is, which `min` might pass over
            for value in values:
                self.add(value)
            return
        indexes = map(ceil, map(mul, map(log, values), repeat(self._scale)))
        for index, count in Counter(indexes).items():
            self._positive.add(index, count)
        self._total += total
        self._low, self._high = min(self._low, *values), max(self._high, *values)

    def _add_many(self, value: float, count: int) -> None:
        if type(count) is not int or not 0 <= count < _MANY:
            raise ValueError("count must be a whole number from 0 to 2**63 - 1")
        try:
            value = _as_float(value)
        except (TypeError, OverflowError):
            value = inf
        if not isfinite(value):
            self.refused += count
        elif count:
            if value > 0.0:
                self._positive.add(ceil(log(value) * self._scale), count)
            else:
                self._add_rest(value, count)
            self._total += _bounded(value * count)
            self._low, self._high = min(self._low, value), max(self._high, value)

    def _add_rest(self, value: float, count: int) -> bool:
        """Count a zero or a negative number; return whether it was one."""
        if value == 0.0:
            self.zeros += count
        elif isfinite(value):
            self._negative.add(ceil(log(-value) * self._scale), count)
        else:
            self.refused += count
            return False
        return True

    def merge(self, other: QuantileSketch) -> None:
        """Count all that another sketch has counted, which stays as it is; the smaller `max_buckets` holds from then on.

        Raises:
            ValueError: When its relative error is another, since its buckets are others then.
        """
        if other.relative_error != self.relative_error:
            raise ValueError("sketches of different relative errors cannot be merged")
        self._positive.merge(other._positive)
        self._negative.merge(other._negative)
        self.zeros += other.zeros
        self.refused += other.refused
        self._total = self.total + other.total
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return sum(self._positive.counts.values()) + self.zeros + sum(self._negative.counts.values())

    @property
    def collapsed(self) -> int:
        """How many of them were too near to zero, beside the largest, to be told apart."""
        self._settle()
        return self._positive.collapsed + self._negative.collapsed

    @property
    def total(self) -> float:
        """Their sum; the largest float where it would be more."""
        return _bounded(self._total)

    @property
    def minimum(self) -> float | None:
        """The lowest, exactly; None without any."""
        return self._low if self._low <= self._high else None

    @property
    def maximum(self) -> float | None:
        """The highest, exactly; None without any."""
        return self._high if self._low <= self._high else None

    def quantile(self, q: float) -> float | None:
        """Return the number that a share of all does not exceed: of n, in order, that at place max(1, ceil(q n)).

        Args:
            q: The share, from 0 to 1.

        Returns:
            That number, to within `relative_error` of it; None without any.

        Raises:
            ValueError: When `q` is no share.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return several quantiles, in the order asked for, for little more than the price of one."""
        for q in shares:
            if not 0 <= q <= 1:
                raise ValueError("a quantile is from 0 to 1")
        buckets = self._in_order()
        passed = list(accumulate(held for _, _, held in buckets))
        count = passed[-1]
        if not count:
            return [None] * len(shares)
        return [self._value_of(*buckets[bisect_left(passed, min(max(1, ceil(q * count)), count))]) for q in shares]

    def _value_of(self, sign: int, index: int, _: int) -> float:
        """What the numbers of a bucket are taken for."""
        base = 1 + 2 * self.relative_error
        try:
            value = sign * base**index * (2 / (base + 1))
        except OverflowError:  # the upper end of the last bucket is beyond all floats
            value = sign * inf
        return min(max(value, self._low), self._high)

    def _in_order(self) -> list[tuple[int, int, int]]:
        """The buckets from the lowest number to the highest: a sign, an index, a count."""
        self._settle()
        negative = [(-1, index, held) for index, held in sorted(self._negative.counts.items(), reverse=True)]
        positive = [(1, index, held) for index, held in sorted(self._positive.counts.items())]
        return [*negative, (0, 0, self.zeros), *positive]

    def _settle(self) -> None:
        self._positive.settle()
        self._negative.settle()

    def to_dict(self) -> dict[str, Any]:
        """Return it as a flat map of numbers and lists of whole numbers, for an event or a file.

        Bucket `indexes[n]` holds `counts[n]` numbers above base^(index - 1) and at most base^index, where base is
        1 + 2 relative_error; `negative_indexes` and `negative_counts`, where there are any, are those of magnitudes.
        """
        self._settle()
        made: dict[str, Any] = {
            "relative_error": self.relative_error,
            "count": self.count,
            "total": self.total,
            "min": self.minimum,
            "max": self.maximum,
            "zeros": self.zeros,
        }
        for prefix, side in (("", self._positive), ("negative_", self._negative)):
            if side.counts or not prefix:
                indexes = sorted(side.counts)
                made[f"{prefix}indexes"] = indexes
                made[f"{prefix}counts"] = [side.counts[index] for index in indexes]
            if side.collapsed:
                made[f"{prefix}collapsed"] = side.collapsed
        if self.refused:
            made["refused"] = self.refused
        return made

    @classmethod
    def from_dict(cls, data: dict[str, Any], max_buckets: int = MAX_BUCKETS) -> QuantileSketch:
        """Build a sketch from what `to_dict` returned, also where that came from a stranger.

        Args:
            data: Such a dict; what else is in it is ignored.
            max_buckets: The new sketch's bound.

        Raises:
            ValueError: When it is none, or contradicts itself; nothing else, whatever is in it.
        """
        if type(data) is not dict:
            raise ValueError("a sketch is a map")
        sketch = cls(_number(data, "relative_error"), max_buckets)
        sketch._positive.read(data, "")
        sketch._negative.read(data, "negative_")
        sketch.zeros = _whole(data, "zeros")
        sketch.refused = _whole(data, "refused")
        if sketch.count != _whole(data, "count"):
            raise ValueError("a sketch's count is not that of its buckets")
        if sketch.count:
            sketch._low, sketch._high, sketch._total = (_number(data, name) for name in ("min", "max", "total"))
            sketch._check_bounds()
        sketch._settle()
        return sketch

    def _check_bounds(self) -> None:
        """Refuse a minimum or a maximum that is not where the buckets are.

        Another machine's logarithm may put a number that lies on a border into the neighbour.
        """
        order = [(sign, index) for sign, index, held in self._in_order() if held]
        for value, (sign, index) in ((self._low, order[0]), (self._high, order[-1])):
            place = ceil(log(abs(value)) * self._scale) if value else 0
            collapsed = sign and index == (self._positive if sign > 0 else self._negative).floor
            if (value > 0) - (value < 0) != sign or place > index + 1 or (place < index - 1 and not collapsed):
                raise ValueError("a sketch's bounds are not those of its buckets")


class _Side:
    """The buckets of one sign: counts by index, of which only the highest `most` neighbours are told apart."""

    __slots__ = ("collapsed", "counts", "floor", "lowest", "most", "top")

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: dict[int, int] = {}
        self.lowest, self.top = _MANY, _NOWHERE
        """The first and the last bucket."""
        self.floor = _NOWHERE
        """The lowest index there may be; what is below was counted there."""
        self.collapsed = 0
        """How many were. If any, then at the next `settle` the floor is as far below the highest bucket as it may be."""

    def add(self, index: int, count: int) -> None:
        if index < self.floor:
            index = self.floor
            self.collapsed += count
        self.counts[index] = self.counts.get(index, 0) + count
        if index < self.lowest:
            self.lowest = index
        if index > self.top:
            self.top = index
        if len(self.counts) > self.most:
            self.settle()

    def settle(self) -> None:
        """Collapse what lies too far below the highest bucket. It makes no difference when, or how often, this is done."""
        floor = self.top - self.most + 1
        if self.lowest < floor:
            counts = self.counts
            # Those that were collapsed before are among them: they are in the lowest bucket of all.
            self.collapsed = sum(counts.pop(index) for index in [index for index in counts if index < floor])
            counts[floor] = counts.get(floor, 0) + self.collapsed
            self.floor = self.lowest = floor

    def merge(self, other: _Side) -> None:
        self.most = min(self.most, other.most)
        self.settle()
        other.settle()
        counts = self.counts
        if counts:
            for index, count in list(other.counts.items()):
                counts[index] = counts.get(index, 0) + count
        else:
            counts.update(other.counts)
        self.lowest, self.top = min(self.lowest, other.lowest), max(self.top, other.top)
        # Neither floor is above the one that holds now, so what was collapsed stays there, or is collapsed again.
        floor = self.top - self.most + 1
        collapsed = sum(side.collapsed for side in (self, other) if side.floor == floor)
        self.collapsed = 0
        self.settle()
        self.collapsed += collapsed
        if self.collapsed:
            self.floor = floor

    def read(self, data: dict[str, Any], prefix: str) -> None:
        """Take up what `to_dict` made of a side, which must be empty."""
        indexes, counts = data.get(f"{prefix}indexes", []), data.get(f"{prefix}counts", [])
        if type(indexes) is not list or type(counts) is not list or len(indexes) != len(counts):
            raise ValueError("a sketch's buckets are two lists of the same length")
        for index, count in zip(indexes, counts, strict=True):
            if type(index) is not int or abs(index) > _FARTHEST or type(count) is not int or not 0 < count < _MANY:
                raise ValueError("a sketch's buckets are whole numbers, and none is empty")
            self.counts[index] = count
        if len(self.counts) != len(indexes):
            raise ValueError("a sketch's buckets are each named once")
        if indexes:
            self.lowest, self.top = min(indexes), max(indexes)
        self.collapsed = _whole(data, f"{prefix}collapsed")
        if self.collapsed:
            self.floor = self.lowest
            if self.collapsed > self.counts.get(self.floor, 0):
                raise ValueError("a sketch's lowest bucket holds what was collapsed")
            self.most = min(self.most, self.top - self.floor + 1)


def _as_float(value: Any) -> float:
    """Read a number without any code of its own: a subclass may have some."""
    kind = type(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, int) and kind is not bool:
        return float(int.__int__(value))
    raise TypeError("not a number")


def _bounded(value: float) -> float:
    return min(max(value, -_LARGEST), _LARGEST)


def _number(data: dict[str, Any], name: str) -> float:
    try:
        value = _as_float(data.get(name))
    except (TypeError, OverflowError):
        value = inf
    if not isfinite(value):
        raise ValueError(f"a sketch's {name} is a finite number")
    return value


def _whole(data: dict[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if type(value) is not int or not 0 <= value < _MANY:
        raise ValueError(f"a sketch's {name} is a whole number")
    return value
