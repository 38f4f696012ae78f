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
from math import inf, isclose
from statistics import median

CLAIM = 82.0
"""The speedup that was claimed before anybody had measured it."""

_ROUNDS = 50
"""How often the weights are renewed, at most; a handful is enough for anything that resembles the model."""

_SHORTEST = 1e-9
"""Seconds that an operation takes at least: what would weigh without bound is no measurement."""


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

    Multiplied out, the model is linear in both costs: speedup * c2 - c1 = rtt - speedup * rtt / batch. A point that is
    wrong by a share of itself is wrong there by about that share of rtt + c1, so its weight is 1 / (rtt + c1), which is
    renewed until it stays what it is. No cost is below zero: noise may ask for it, and is then given zero.

    Args:
        points: At least two that differ.

    Raises:
        ValueError: The points do not determine two costs.
    """
    c1 = max(point.rtt for point in points) if points else 0.0
    c2 = 0.0
    for _ in range(_ROUNDS):
        weights = [1 / max(point.rtt + c1, _SHORTEST) ** 2 for point in points]
        before, (c1, c2) = (c1, c2), _least_squares(points, weights)
        if isclose(before[0], c1, rel_tol=1e-12) and isclose(before[1], c2, rel_tol=1e-12):
            break
    return Model(c1, c2)


def _least_squares(points: Sequence[Point], weights: Sequence[float]) -> tuple[float, float]:
    """Solve speedup * c2 - c1 = right for both costs, each point with its weight."""
    ones = speeds = squares = rights = products = 0.0
    for point, weight in zip(points, weights, strict=True):
        right = point.rtt * (1 - point.speedup / point.batch)
        ones += weight
        speeds += weight * point.speedup
        squares += weight * point.speedup**2
        rights += weight * right
        products += weight * point.speedup * right
    determinant = ones * squares - speeds**2
    if determinant <= 1e-12 * ones * squares:
        raise ValueError("points that all have one speedup do not determine two costs")
    c2 = (ones * products - speeds * rights) / determinant
    c1 = (speeds * c2 - rights) / ones
    if c2 < 0:
        return max(0.0, -rights / ones), 0.0
    if c1 < 0:
        return 0.0, max(0.0, products / squares)
    return c1, c2


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
