"""The speedup of pipelining, as a function of the round trip and the batch: fitted, solved, and said in a sentence.

What belongs here: the model, as pure functions of numbers. What does not: how anything was measured.

One by one, an operation takes a round trip and c1, what client and server spend on it by themselves. In a batch of B it
takes its share of a round trip, and c2. So

    speedup(RTT, B) = (RTT + c1) / (RTT / B + c2)

which goes from c1 / c2 without a network to B on an endless one. It is a function, never a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, exp, inf, log
from statistics import median

CLAIM = 82.0
"""The speedup that was claimed before anybody had measured it."""

FITTED_FROM = 10
"""The batch from which on the model is fitted: what a batch costs as a whole, which is all there is to one of a single
event, has no place in it."""

_STEPS = 200
"""Steps of the fit at most; ten are enough for anything that resembles the model."""
_SHORTEST, _LONGEST = 1e-9, 10.0
"""The costs, in seconds, that are believed."""


@dataclass(frozen=True)
class Point:
    """A measured speedup.

    Attributes:
        rtt: The round trip, in seconds; 0 is that of loopback.
        batch: How many operations share one.
        speedup: How many times faster than one by one.
    """

    rtt: float
    batch: int
    speedup: float


@dataclass(frozen=True)
class Interval:
    """The round trips, in seconds, from which and up to which something is true."""

    low: float
    high: float = inf


@dataclass(frozen=True)
class Model:
    """The two costs that explain the measured speedups.

    Attributes:
        c1: Seconds of an operation that goes alone, beside the round trip.
        c2: Seconds of an operation in a batch, beside its share of the round trip.
    """

    c1: float
    c2: float

    def speedup(self, rtt: float, batch: float) -> float:
        """Return how many times faster a batch is, over a round trip of so many seconds."""
        return (rtt + self.c1) / (rtt / batch + self.c2)

    def where(self, speedup: float, batch: int) -> Interval | None:
        """Return the round trips over which a batch is at least so many times faster; None: over none."""
        gain = 1 - speedup / batch  # how fast the left side below grows beside the right one
        lack = speedup * self.c2 - self.c1  # how far the right side is ahead without a network
        # rtt + c1 >= speedup * (rtt / batch + c2), or rtt * gain >= lack
        if lack <= 0:
            return Interval(0.0, inf if gain >= 0 else lack / gain)
        return Interval(lack / gain) if gain > 0 else None

    def smallest_batch(self, speedup: float, rtt: float) -> float:
        """Return the batch from which on it is so many times faster over that round trip; inf: none is."""
        share = (rtt + self.c1) / speedup - self.c2  # of the round trip, that an operation may have
        if share < 0 or (share == 0 and rtt > 0):
            return inf
        return max(1.0, rtt / share) if rtt > 0 else 1.0

    def error(self, points: Sequence[Point]) -> float:
        """Return the median distance of measured points from the model, as a share of it."""
        return median(abs(point.speedup / self.speedup(point.rtt, point.batch) - 1) for point in points)


def fit(points: Sequence[Point]) -> Model:
    """Find the costs by which the model comes nearest to the points, in relative terms.

    It is least squares of the logarithms, by Gauss and Newton's steps, damped after Levenberg, in the logarithms of both
    costs, which so stay above zero. (Multiplied out, the model is linear in its costs; but then the measured speedup
    stands on both sides, and its noise pulls both costs to zero.)

    Args:
        points: What was measured.

    Raises:
        ValueError: The points do not determine two costs.
    """
    grid = [10 ** (power / 2) for power in range(-16, -2)]  # 10 ns to 50 ms
    c1, c2 = min(product(grid, grid), key=lambda costs: _distance(Model(*costs), points))
    logs = (log(c1), log(c2))
    damping = 1e-3
    for _ in range(_STEPS):
        model = Model(exp(logs[0]), exp(logs[1]))
        (a, b, c), (right1, right2) = _normal_equations(model, points)
        if a * c - b * b <= 1e-12 * a * c:
            raise ValueError("the points do not determine two costs")
        p, r = a * (1 + damping), c * (1 + damping)
        determinant = p * r - b * b
        step = ((r * right1 - b * right2) / determinant, (p * right2 - b * right1) / determinant)
        tried = (_bounded(logs[0] + step[0]), _bounded(logs[1] + step[1]))
        if _distance(Model(exp(tried[0]), exp(tried[1])), points) <= _distance(model, points):
            damping /= 10
            if max(abs(tried[0] - logs[0]), abs(tried[1] - logs[1])) < 1e-12:
                break
            logs = tried
        else:
            damping *= 10
    return Model(exp(logs[0]), exp(logs[1]))


def _bounded(logarithm: float) -> float:
    return min(max(logarithm, log(_SHORTEST)), log(_LONGEST))


def _distance(model: Model, points: Sequence[Point]) -> float:
    return sum(_off(model, point) ** 2 for point in points)


def _off(model: Model, point: Point) -> float:
    """By how much the logarithm of a measured speedup is above the model's."""
    return log(point.speedup / model.speedup(point.rtt, point.batch))


def _normal_equations(model: Model, points: Sequence[Point]) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """What the best step of both logarithms solves: a symmetric matrix, by its three entries, and the right side."""
    a = b = c = right1 = right2 = 0.0
    for point in points:
        by_c1 = model.c1 / (point.rtt + model.c1)
        by_c2 = -model.c2 / (point.rtt / point.batch + model.c2)
        off = _off(model, point)
        a += by_c1 * by_c1
        b += by_c1 * by_c2
        c += by_c2 * by_c2
        right1 += by_c1 * off
        right2 += by_c2 * off
    return (a, b, c), (right1, right2)


def sentence(name: str, model: Model, batches: Sequence[int], claim: float = CLAIM, what: str = "batch") -> str:
    """Say from which round trip and which batch on a claimed speedup is true, and where it never is.

    Args:
        name: Whose speedup it is.
        model: What was fitted to it.
        batches: The batches to speak of, in rising order.
        claim: The speedup.
        what: What the batch is called: a batch, or a window.
    """
    said: list[tuple[str, list[int]]] = []  # batches of which the same is to be said stand together
    for batch in batches:
        truth = _truth(model.where(claim, batch))
        if said and said[-1][0] == truth:
            said[-1][1].append(batch)
        else:
            said.append((truth, [batch]))
    parts = [f"{truth} with a {what} of {_listed(group)}" for truth, group in said]
    costs = f"c1 = {model.c1 * 1e6:,.0f} us, c2 = {model.c2 * 1e6:,.2f} us"
    return f"{name}: {claim:g}x is true {'; '.join(parts)} (fitted: {costs})."


def batches_sentence(
    name: str, model: Model, round_trips: Sequence[float], claim: float = CLAIM, what: str = "batch"
) -> str:
    """Say how large a batch a claimed speedup takes over each round trip, in seconds.

    Args:
        name, model, claim, what: As in `sentence`.
        round_trips: Those to speak of, in rising order; 0 is loopback.
    """
    parts = []
    for rtt in round_trips:
        batch = model.smallest_batch(claim, rtt)
        path = f"an RTT of {milliseconds(rtt)}" if rtt else "loopback"
        size = "none is enough" if batch == inf else f"at least {ceil(batch - 1e-6):,}"
        parts.append(f"over {path} {size}")
    return f"{name}: the {what} that {claim:g}x takes, by the model: {', '.join(parts)}."


def _truth(where: Interval | None) -> str:
    if where is None:
        return "nowhere"
    if where.high < inf:
        return f"from an RTT of {milliseconds(where.low)} up to {milliseconds(where.high)}"
    return "at every RTT, loopback included," if where.low == 0 else f"from an RTT of {milliseconds(where.low)} on"


def _listed(batches: Sequence[int]) -> str:
    *first, last = (f"{batch:,}" for batch in batches)
    return f"{', '.join(first)} or {last}" if first else last


def milliseconds(seconds: float) -> str:
    """Write seconds as milliseconds for people."""
    shown = seconds * 1e3
    return f"{shown:,.0f} ms" if shown >= 10 else f"{shown:.2g} ms"
