"""The report's charts, as SVG: speedups by round trip with the fitted model, and figures side by side.

What belongs here: drawing what findings keep in their `series`. What does not: deciding what is measured, or words.
Needs matplotlib, of the extra `performance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.performance.measuring import Spread
from tests.performance.model import FITTED_FROM, Model
from tests.performance.results import Findings

UNITS = {
    "calls": "us",
    "delivery": "events/s",
    "emit": "us",
    "limit": "events/s",
    "memory": "MB",
    "peers": "us",
    "ticker": "us",
}
"""The series that are drawn side by side, and the unit of each."""

_NEAR = 0.05
"""Milliseconds up to which the axis of round trips is linear, so that loopback has a place on it."""


def draw(findings: Findings, folder: Path, stem: str) -> list[Path]:
    """Draw what there is to draw of a finding; returns the files.

    Args:
        findings: What was found.
        folder: Where the files go; it exists.
        stem: What their names begin with.
    """
    files: list[Path] = []
    for curve in findings.series.get("curves", []):
        files.append(folder / f"{stem}-{len(files) + 1}.svg")
        _draw_curve(curve, findings.series["claim"], findings.title, files[-1])
    for name, unit in UNITS.items():
        if findings.series.get(name):
            files.append(folder / f"{stem}-{name}.svg")
            _draw_bars(findings.series[name], unit, findings.title, files[-1])
    if findings.series.get("overhead"):
        files.append(folder / f"{stem}-overhead.svg")
        _draw_overhead(findings.series["overhead"], findings.title, files[-1])
    return files


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _draw_curve(curve: Mapping[str, Any], claim: float, title: str, file: Path) -> None:
    """Speedup by round trip: dots were measured, lines are the model's, and the claim is a line across."""
    figure, axes = _figure(8, 5)
    model = Model(curve["c1"], curve["c2"])
    points = curve["points"]
    longest = max(rtt for rtt, _, _ in points) * 1e3
    steps = [step / 100 for step in range(101)]
    grid = [*(_NEAR * step for step in steps), *(_NEAR * (max(longest, _NEAR) / _NEAR) ** step for step in steps)]
    for number, batch in enumerate(sorted({batch for _, batch, _ in points})):
        colour = f"C{number}"
        own = [(rtt * 1e3, speedup) for rtt, other, speedup in points if other == batch]
        axes.plot(*zip(*own, strict=True), "o", color=colour, label=f"{batch:,}")
        if batch < FITTED_FROM:
            continue
        axes.plot(grid, [model.speedup(rtt / 1e3, batch) for rtt in grid], "-", color=colour, linewidth=1)
        where = model.where(claim, batch)
        if where is not None and 0 < where.low * 1e3 <= longest:
            axes.plot([where.low * 1e3], [claim], "D", color=colour, markersize=8, markeredgecolor="black")
    axes.axhline(claim, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"{claim:g}x ", (max(longest, _NEAR) * 1.3, claim), xytext=(0, 3), textcoords="offset points", ha="right"
    )
    axes.set_xscale("symlog", linthresh=_NEAR)
    axes.set_yscale("log")
    axes.set_xlim(-_NEAR / 10, max(longest, _NEAR) * 1.3)
    axes.set_xlabel("round trip above loopback's, ms (measured)")
    axes.set_ylabel("times faster than one by one")
    costs = f"(RTT + {curve['c1'] * 1e6:.0f} us) / (RTT / B + {curve['c2'] * 1e6:.1f} us)"
    axes.set_title(f"{title}\n{curve['name']}: {costs}", fontsize=10)
    axes.legend(title="B", fontsize=8, loc="upper left")
    axes.grid(True, which="both", alpha=0.2)
    figure.savefig(file)


def _draw_bars(series: Mapping[str, Any], unit: str, title: str, file: Path) -> None:
    """Medians side by side on a logarithmic axis, with their quartiles; several figures of one thing stand together."""
    groups = {name: _by_figure(values) for name, values in series.items()}
    kinds = list(dict.fromkeys(kind for figures in groups.values() for kind in figures))
    figure, axes = _figure(9, 1.2 + 0.3 * sum(len(figures) + 0.5 for figures in groups.values()))
    place, ticks = 0.0, []
    named: set[str] = set()
    for name, figures in groups.items():
        first = place
        for kind, samples in figures.items():
            spread = Spread.of(samples)
            shown = max(spread.median, 1e-3)
            whiskers = [[max(0.0, shown - spread.low)], [max(0.0, spread.high - shown)]]
            colour = f"C{kinds.index(kind)}"
            label = kind if kind and kind not in named else None
            named.add(kind)
            axes.barh(place, shown, 0.9, xerr=whiskers, color=colour, ecolor="grey", label=label)
            axes.annotate(
                f" {spread.median:,.0f}" if spread.median >= 100 else f" {spread.median:.3g}",
                (max(shown, spread.high), place),
                va="center",
                fontsize=7,
            )
            place += 1
        ticks.append(((first + place - 1) / 2, name))
        place += 0.5
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    if any(kinds):
        axes.legend(fontsize=8)
    figure.savefig(file)


def _draw_overhead(series: Mapping[str, Mapping[str, Sequence[float]]], title: str, file: Path) -> None:
    """What each way of watching adds to each program, with its interval: by the percent, and evenly up to one."""
    ways = list(dict.fromkeys(way for costs in series.values() for way in costs))
    figure, axes = _figure(9, 1.5 + 0.13 * len(series) * (len(ways) + 1))
    for number, way in enumerate(ways):
        at = [place * (len(ways) + 1) + number for place, costs in enumerate(series.values()) if way in costs]
        added = [[(end - 1) * 100 for end in costs[way]] for costs in series.values() if way in costs]
        shown = [one[0] for one in added]
        whiskers = [[one[0] - one[1] for one in added], [one[2] - one[0] for one in added]]
        axes.errorbar(shown, at, xerr=whiskers, fmt="o", markersize=3, color=f"C{number}", label=way)
    middle = (len(ways) - 1) / 2
    axes.set_yticks([place * (len(ways) + 1) + middle for place in range(len(series))], list(series), fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    for bound in (2, 5):
        axes.axvline(bound, color="black", linestyle=":", linewidth=1)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_xlabel("processor time added, % (dotted: 2 % and 5 %)")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.grid(True, axis="x", alpha=0.2)
    figure.savefig(file)


def _by_figure(values: Any) -> dict[str, Sequence[float]]:
    """Whatever shape it was kept in: numbers by figure."""
    if isinstance(values, Mapping):
        return {str(kind): samples for kind, samples in values.items() if samples}
    if values and isinstance(values[0], Mapping):
        kinds = [kind for kind, value in values[0].items() if isinstance(value, (int, float))]
        return {kind: [one[kind] for one in values] for kind in kinds}
    return {"": values} if values else {}
