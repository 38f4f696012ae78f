"""Pairs of short blocks, with something and without, in an order that is drawn; and how sure their median is.

What belongs here: the order, and the statistics. What does not: running blocks (children/overhead.py), or verdicts.

The noise of a shared machine comes in stretches that are longer than a block. So both blocks of a pair run one right after
the other and only they are compared; which of the two is first, and which pair follows which, is drawn, each order as often
as the other. A pair that something hit is far off, and a few are: the median of the pairs does not mind.

What an arm does less often than once a block is in some blocks and not in others, as it should be: in which is drawn, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

Figure = Callable[[Sequence[Sequence[float]]], float]
"""Of groups of measurements."""

RESAMPLES = 2_000
"""How many times the bootstrap draws: the ends of a 95 % interval are then the 50th values from outside."""


@dataclass(frozen=True)
class Turn:
    """One pair, to be run.

    Attributes:
        arm: What is compared with the plain block.
        plain_first: Whether the plain block is the first of the two.
        phase: From 0 to 1: which part of a period, of whatever the arm does periodically, has passed when its block begins.
    """

    arm: str
    plain_first: bool
    phase: float


def in_turn(pairs: Mapping[str, int], seed: int) -> list[Turn]:
    """Draw the order of pairs.

    Args:
        pairs: How many of each arm.
        seed: The same one draws the same order.

    Returns:
        All of them, mixed; of each arm the plain block comes first in half of its pairs.
    """
    random = Random(seed)
    turns: list[Turn] = []
    for arm, count in pairs.items():
        odd = random.random() < 0.5
        turns += [Turn(arm, (number % 2 == 0) == odd, random.random()) for number in range(count)]
    random.shuffle(turns)
    return turns


@dataclass(frozen=True)
class Interval:
    """A figure, and where it may well lie.

    Attributes:
        figure: What the measurements say.
        low, high: The ends of its 95 % interval.
    """

    figure: float
    low: float
    high: float


def bootstrap(
    groups: Sequence[Sequence[float]],
    figure: Figure,
    seed: int = 20,
    resamples: int = RESAMPLES,
) -> Interval:
    """Tell how sure a figure is by the percentile bootstrap (Efron 1979): draw from the measurements as they were drawn.

    Args:
        groups: The measurements; each group is drawn from by itself, with replacement, as many as it has.
        figure: The figure of such groups.
        seed: The same one gives the same interval.
        resamples: How many times it is drawn.

    Raises:
        ValueError: When there is no group, or an empty one.
    """
    if not groups or not all(groups):
        raise ValueError("nothing was measured")
    random = Random(seed)
    drawn = sorted(figure([random.choices(group, k=len(group)) for group in groups]) for _ in range(resamples))
    cut = max(0, round(resamples * 0.025) - 1)
    return Interval(figure(groups), drawn[cut], drawn[-1 - cut])


def middle(groups: Sequence[Sequence[float]]) -> float:
    """The median of the groups' medians; that of the only one, where there is one."""
    return median(median(group) for group in groups)


def worst(groups: Sequence[Sequence[float]]) -> float:
    """The highest of the groups' medians."""
    return max(median(group) for group in groups)
