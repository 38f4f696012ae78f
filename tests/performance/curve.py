"""The pipeline curve: the same events one by one and in batches, over ways of different length, and what comes of it.

What belongs here: what the curves of all brokers share: the plan of the laps, the speedups, the words. What does not: how
a broker is reached (the tests), or the model (model.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.performance.delay import DelayingProxy
from tests.performance.measuring import Arm, Lap, Race, ratios
from tests.performance.model import CLAIM, FITTED_FROM, Model, Point, batches_sentence, fit, milliseconds, sentence
from tests.performance.results import Aim, Findings
from tests.performance.sending import Sent

ROUND_TRIPS = (0.1e-3, 0.2e-3, 0.5e-3, 1e-3, 2e-3, 5e-3)
BATCHES = (1, 10, 100, 500, 1000)

ONE_BY_ONE = "one by one"

Send = Callable[[int], Sent]
"""Sends so many events."""


@dataclass
class Path:
    """A way to the server.

    Attributes:
        name: What it is called.
        rtt: By how many seconds its round trip is longer than loopback's, as was wished.
        measured: The same, as it was measured, again and again.
        is_fitted: Whether the model speaks of it: not where it is no network at all.
    """

    name: str
    rtt: float
    measured: list[float] = field(default_factory=list)
    is_fitted: bool = True

    @property
    def real(self) -> float:
        """The measured one."""
        return median(self.measured) if self.measured else self.rtt

    def __str__(self) -> str:
        return f"an RTT of {milliseconds(self.real)}" if self.measured else self.name


@dataclass(frozen=True)
class Way:
    """A way of sending.

    Attributes:
        name: Whose.
        batch: How many events share a round trip; 0: as many as it takes by itself.
    """

    name: str
    batch: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.batch:,}" if self.batch else self.name


@dataclass
class Curve:
    """A race of all ways of sending over all paths.

    Args:
        race: What runs them.
        proxy: What makes paths long.
        empty: Empties what is sent to.
        count: How much is there.
        seconds: How long a lap is to be, about.
        alone: Seconds of an operation by itself, about: for the length of laps only.
        together: Seconds of an operation in a batch, about.
    """

    race: Race
    proxy: DelayingProxy
    empty: Callable[[], object]
    count: Callable[[], int]
    seconds: float
    alone: float
    together: float
    arms: dict[str, Arm] = field(default_factory=dict)
    paths: list[Path] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    laps: dict[str, list[Lap]] = field(default_factory=dict)

    def distant(self, round_trips: Sequence[float]) -> list[Path]:
        """Make paths that long, through the proxy."""
        paths = [Path(f"delayed, {rtt * 1e3:g} ms wished", rtt) for rtt in round_trips]
        for path in paths:
            path.measured.append(self.proxy.calibrate(path.rtt))
        return paths

    def add(self, path: Path, way: Way, send: Send, *, n: int = 0, at_least: int = 4, framed: bool = False) -> None:
        """Have it sent so over that path.

        Args:
            path: Over which.
            way: How it is called.
            send: What sends so many events over it, and returns when all are confirmed.
            n: How many a lap; 0: as many whole batches as fill it.
            at_least: So many batches at least, then.
            framed: Whether many events may be in one entry or message, so that those cannot be counted.
        """
        batch = way.batch or 1
        alone = way.name == ONE_BY_ONE
        if not n:
            trips = self.seconds / (path.rtt + (self.alone if batch == 1 else batch * self.together))
            n = batch * max(at_least, int(trips))

        def lap() -> Sent:
            self.empty()
            if path.rtt and alone:
                path.measured.append(self.proxy.renew(path.rtt))
            elif path.rtt:
                self.proxy.use(path.rtt)
            sent = send(n)
            if self.count() < (1 if framed else n):
                raise RuntimeError(f"{way}, over {path}: {self.count()} of {n} are there")
            return sent

        self.arms[_key(path, way)] = lap
        if path not in self.paths:
            self.paths.append(path)
        if way not in self.ways:
            self.ways.append(way)

    def run(self, rounds: int, warm_up: int) -> None:
        """Run them all in turn."""
        self.laps = self.race(self.arms, rounds, warm_up=warm_up)

    def each(self, path: Path, way: Way) -> list[float]:
        """Seconds of an event, round by round."""
        return [lap.value.seconds / lap.value.n for lap in self.laps[_key(path, way)]]

    def speedups(self, path: Path, way: Way) -> list[float]:
        """How many times faster than one by one over the same path, round by round."""
        return ratios(self.each(path, Way(ONE_BY_ONE)), self.each(path, way))

    def points(self, name: str) -> list[Point]:
        """The measured speedups of whoever has that name, by batch."""
        return [
            Point(path.real, way.batch, median(self.speedups(path, way)))
            for path in self.paths
            for way in self.ways
            if way.name == name and way.batch and path.is_fitted
        ]

    def fitted(self, name: str) -> Model:
        """What explains them."""
        return fit([point for point in self.points(name) if point.batch >= FITTED_FROM])

    def tell(self, findings: Findings, names: Sequence[str], what: str = "batch") -> None:
        """Say what was found of those who have these names, and keep it for charts.

        Args:
            findings: Where it is said.
            names: Whose speedups are explained by a model.
            what: What a batch is called.
        """
        alone = Way(ONE_BY_ONE)
        curves = []
        claims = findings.series["claims"] = []
        for name in names:
            points = self.points(name)
            batches = sorted({point.batch for point in points})
            try:
                model = self.fitted(name)
            except ValueError as error:
                findings.say(f"{name}: no model could be fitted, {error}.")
                continue
            claims.append(sentence(name, model, [batch for batch in batches if batch >= FITTED_FROM], what=what))
            findings.say(claims[-1])
            findings.say(batches_sentence(name, model, (0.0, *ROUND_TRIPS), what=what))
            findings.say(_as_measured(name, points, what))
            off = model.error([point for point in points if point.batch >= FITTED_FROM])
            findings.say(f"{name}: half of the measured speedups are within {off:.0%} of the fitted ones.")
            stored = [[point.rtt, point.batch, point.speedup] for point in points]
            curves.append({"name": name, "c1": model.c1, "c2": model.c2, "points": stored})
        for way in self.ways:
            if not way.batch and way != alone:
                claims.append(self._reached_by(way))
                findings.say(claims[-1])
        findings.series["curves"] = curves
        findings.series["claim"] = CLAIM
        order = list(dict.fromkeys(way.name for way in self.ways))
        ways = sorted((way for way in self.ways if way != alone), key=lambda way: order.index(way.name))
        findings.series["grid"] = {
            "title": f"How many times faster than one by one, by {what} (medians)",
            "columns": ["path", "RTT above loopback's, ms", "one by one, us", *(str(way) for way in ways)],
            "rows": [
                [
                    path.name,
                    f"{path.real * 1e3:.3f}" if path.measured else "",
                    f"{median(self.each(path, alone)) * 1e6:,.0f}",
                    *(
                        f"{median(self.speedups(path, way)):.1f}" if _key(path, way) in self.laps else ""
                        for way in ways
                    ),
                ]
                for path in self.paths
            ],
        }

    def judge(self, findings: Findings, way: Way, aims: Sequence[tuple[float, Aim | None]], note: str) -> None:
        """Add a row for one way on each path; its aim is that of the longest wished round trip that is no longer."""
        for path in self.paths:
            if _key(path, way) in self.laps and path.is_fitted:
                aim = [aim for rtt, aim in aims if path.rtt >= rtt][-1]
                findings.row(f"{way}, over {path}: times faster", self.speedups(path, way), "x", aim=aim, note=note)

    def _reached_by(self, way: Way) -> str:
        """Say over which paths the claim was true of a way that chooses its batches by itself."""
        speedups = [(path, median(self.speedups(path, way))) for path in self.paths if path.is_fitted]
        speedups.sort(key=lambda one: one[0].real)
        parts = []
        for words, is_true in ((f"{CLAIM:g}x or more", True), ("less", False)):
            those = [f"{path} ({speedup:.0f}x)" for path, speedup in speedups if (speedup >= CLAIM) == is_true]
            parts.append(f"{words} over {', '.join(those) if those else 'none of the paths'}")
        return f"{way}, as measured: {'; '.join(parts)}."


def _key(path: Path, way: Way) -> str:
    return f"{path.name} | {way}"


def _as_measured(name: str, points: Sequence[Point], what: str) -> str:
    reached: dict[int, list[float]] = {}
    for point in points:
        if point.speedup >= CLAIM:
            reached.setdefault(point.batch, []).append(point.rtt)
    if not reached:
        best = max(points, key=lambda point: point.speedup)
        return (
            f"{name}, as measured: {CLAIM:g}x was reached nowhere; the most was {best.speedup:.0f}x, over an RTT of "
            f"{milliseconds(best.rtt)} with a {what} of {best.batch:,}."
        )
    parts = [
        f"with a {what} of {batch:,} over {', '.join(milliseconds(rtt) for rtt in sorted(rtts))}"
        for batch, rtts in sorted(reached.items())
    ]
    return f"{name}, as measured: {CLAIM:g}x or more {'; '.join(parts)}."
