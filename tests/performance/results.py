"""What a measurement says: rows with their spread, their ratio to something else, an aim and a verdict in words.

What belongs here: the shape of results, in which pytest-benchmark stores them beside its own figures. What does not: how
they were measured (measuring.py), or how they are shown (report.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.performance.measuring import Spread, ratios
from tests.performance.pairs import Interval

KEY = "streamll"
"""Where results stand in the `extra_info` of a benchmark."""

PASS, SHORT = "pass", "falls short"


@dataclass(frozen=True)
class Aim:
    """What a figure, or its ratio, is to be.

    Attributes:
        at_most: It is not to be more.
        at_least: It is not to be less.
        of_ratio: Whether the ratio is meant, and not the figure itself.
    """

    at_most: float | None = None
    at_least: float | None = None
    of_ratio: bool = False

    def verdict(self, figure: float) -> str:
        """Whether a figure is as it is to be."""
        too_much = self.at_most is not None and figure > self.at_most
        too_little = self.at_least is not None and figure < self.at_least
        return SHORT if too_much or too_little else PASS


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured.
        value: The figure.
        unit: Its unit: "us", "events/s", "MB", "%", "x".
        to: What it was compared with; empty: with nothing.
        ratio: The figure divided by that of `to`, round by round.
        aim: What it is to be; None: nothing was set.
        verdict: "pass" or "falls short"; empty without an aim.
        note: What it does and does not guarantee, or how it is to be read.
        interval: Where the figure may well lie, where that was found out: the ends of its 95 % interval.
    """

    what: str
    value: Spread
    unit: str
    to: str = ""
    ratio: Spread | None = None
    aim: Aim | None = None
    verdict: str = ""
    note: str = ""
    interval: Interval | None = None


@dataclass
class Findings:
    """What one test found, for the report.

    Attributes:
        section: The part of the report it belongs to: "pipeline", "limit", "host", "monitoring", "peers", "budgets".
        title: The heading of its table.
        rows: Its figures.
        words: Sentences that say what they mean.
        series: Whatever the charts are drawn from.
    """

    section: str = ""
    title: str = ""
    rows: list[Row] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)

    def about(self, section: str, title: str) -> None:
        """Say where in the report this belongs."""
        self.section, self.title = section, title

    def row(
        self,
        what: str,
        samples: Sequence[float],
        unit: str,
        *,
        to: tuple[str, Sequence[float]] | None = None,
        aim: Aim | None = None,
        note: str = "",
        interval: Interval | None = None,
    ) -> Row:
        """Add a figure.

        Args:
            what: What was measured.
            samples: The measurements, one for each round.
            unit: Their unit.
            to: What it is compared with: a name, and its measurements in the same rounds.
            aim: What it is to be.
            note: How it is to be read.
            interval: Where the median may well lie.
        """
        value = Spread.of(samples)
        ratio = Spread.of(ratios(samples, to[1])) if to else None
        judged = ratio if aim is not None and aim.of_ratio else value
        verdict = aim.verdict(judged.median) if aim is not None and judged is not None else ""
        row = Row(what, value, unit, to[0] if to else "", ratio, aim, verdict, note, interval)
        self.rows.append(row)
        return row

    def say(self, sentence: str) -> None:
        """Add a sentence that says what the figures mean."""
        self.words.append(sentence)

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Findings:
        """Read what `to_json` made."""
        rows = [
            Row(
                **{
                    **row,
                    "value": Spread(**row["value"]),
                    "ratio": Spread(**row["ratio"]) if row["ratio"] else None,
                    "aim": Aim(**row["aim"]) if row["aim"] else None,
                    "interval": Interval(**row["interval"]) if row.get("interval") else None,
                }
            )
            for row in stored["rows"]
        ]
        return cls(stored["section"], stored["title"], rows, stored["words"], stored["series"])
