"""Makes the report of a run of the benchmarks: Markdown with charts, and the performance section of a README.

    python -m tests.performance.report [--json FILE] [--folder FOLDER] [--readme README.md]

What belongs here: showing what a run has stored, with its machine, versions and date, and what is missing in it. What does
not: figures of any other origin. Without `--json` it is the newest run under .benchmarks/, where pytest-benchmark stores them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.performance.results import KEY, PASS, Aim, Findings, Row

ROOT = Path(__file__).resolve().parents[2]
STORAGE = ROOT / ".benchmarks"
FOLDER = STORAGE / "report"
REPORT = "report.md"

BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
"""What the performance section of a README stands between."""

SECTIONS = {
    "pipeline": "What pipelining is worth",
    "limit": "The limit: beside what the broker can take",
    "host": "What it costs the host",
    "monitoring": "What monitoring costs",
    "peers": "Peers, same work, same run",
    "budgets": "Budgets",
}

COMMAND = "make test-performance"


class NoRun(Exception):
    """Raised when there is no stored run to report of, or a README without a place for it."""


@dataclass
class Run:
    """A stored run.

    Attributes:
        findings: What its tests found.
        machine: pytest-benchmark's words on the machine, with the versions of libraries.
        servers: The versions of servers.
        unmeasured: The tests that were skipped or failed, and why.
        date: When it ended: an ISO date and time, UTC.
        source: The file it was read from.
    """

    findings: list[Findings]
    machine: dict[str, Any]
    servers: dict[str, str] = field(default_factory=dict)
    unmeasured: list[dict[str, str]] = field(default_factory=list)
    date: str = ""
    source: str = ""

    @property
    def day(self) -> str:
        """The date alone."""
        return self.date[:10]

    @property
    def is_quick(self) -> bool:
        """Whether it was a look rather than a measurement."""
        return bool(self.machine.get("quick"))

    @property
    def judged(self) -> list[Row]:
        """The rows that have an aim, in the order of the sections."""
        return [row for _, found in self.by_section() for findings in found for row in findings.rows if row.aim]

    @property
    def absent(self) -> list[str]:
        """The sections of which there is nothing."""
        there = {findings.section for findings in self.findings}
        return [title for section, title in SECTIONS.items() if section not in there]

    def by_section(self) -> Iterator[tuple[str, list[Findings]]]:
        """The findings under the title of their section."""
        sections = [*SECTIONS, *(findings.section for findings in self.findings)]
        for section in dict.fromkeys(sections):
            found = [findings for findings in self.findings if findings.section == section]
            if found:
                yield SECTIONS.get(section, section), found


def newest(storage: Path = STORAGE) -> Path:
    """Return the run that was stored last.

    Raises:
        NoRun: There is none.
    """
    runs = sorted(storage.glob("*/[0-9]*.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise NoRun(f"there is no stored run under {storage}: {COMMAND}")
    return runs[-1]


def read(file: Path) -> Run:
    """Read what pytest-benchmark has stored.

    Raises:
        NoRun: It holds no findings.
    """
    stored = json.loads(file.read_text())
    found = [bench["extra_info"][KEY] for bench in stored["benchmarks"] if KEY in bench["extra_info"]]
    if not found:
        raise NoRun(f"{file} holds no findings: was it stored by {COMMAND}?")
    more = stored.get(KEY, {})
    return Run(
        [Findings.from_json(one) for one in found],
        stored["machine_info"],
        more.get("servers", {}),
        more.get("unmeasured", []),
        stored["datetime"],
        file.name,
    )


# Words


def figure(number: float) -> str:
    """Write a figure with as many digits as mean something."""
    size = abs(number)
    if size >= 100 or size == 0:
        return f"{number:,.0f}"
    return f"{number:.1f}" if size >= 10 else f"{number:.2f}" if size >= 0.1 else f"{number:.2g}"


def aim_in_words(aim: Aim | None, unit: str) -> str:
    """Say what a figure is to be."""
    if aim is None:
        return ""
    of = " of it" if aim.of_ratio else ""
    scale = "x" if aim.of_ratio else f" {unit}" if unit not in ("x", "%") else unit
    parts = []
    for word, bound in (("at most", aim.at_most), ("at least", aim.at_least)):
        if bound is not None:
            parts.append(f"{word} {f'{bound:,}'.removesuffix('.0')}{scale}{of}")
    return ", ".join(parts)


def ratio_in_words(row: Row) -> str:
    """Say what the figure is beside what it was compared with; empty where it was not."""
    if row.ratio is None:
        return ""
    return f"{figure(row.ratio.median)}x of {row.to} ({figure(row.ratio.low)} to {figure(row.ratio.high)})"


def verdict_in_words(verdict: str) -> str:
    """Make what falls short stand out."""
    return verdict if verdict in ("", PASS) else f"**{verdict}**"


def machine_in_words(run: Run) -> str:
    """Say on what, with what and when it was measured."""
    machine = run.machine
    processor = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "an unknown processor")
    versions = dict(machine.get("versions", {}))
    named = {"Python": versions.pop("python", machine.get("python_version", "?")), **run.servers, **versions}
    libraries = ", ".join(f"{name} {version}" for name, version in named.items())
    system = f"{machine.get('system', '')} {machine.get('machine', '')}".strip()
    return f"{machine.get('processors', '?')} processors ({processor}), {system}; {libraries}; {run.day}"


def shortcomings(run: Run) -> list[str]:
    """Say what this run is not."""
    said = []
    if run.is_quick:
        said.append("This was a quick look (`QUICK=1`): few rounds of little work. Its figures are rough.")
    said += [f"Not measured: `{test['test']}` ({test['outcome']}): {test['why']}" for test in run.unmeasured]
    if run.absent:
        said.append(f"Nothing was measured of: {', '.join(run.absent)}.")
    return said


def tally(run: Run) -> str:
    """Say how many aims are met."""
    met = sum(row.verdict == PASS for row in run.judged)
    return f"{met} of {len(run.judged)} aims and budgets are met." if run.judged else "No aim was measured."


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table; a column that is empty throughout is left out."""
    kept = [at for at in range(len(columns)) if any(row[at] for row in rows)]
    cells = [[columns[at] for at in kept], ["---" for _ in kept], *([row[at] for at in kept] for row in rows)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells]


def rows_table(rows: Sequence[Row]) -> list[str]:
    """Write rows with their spread, ratio, aim, verdict and note."""
    columns = ("what", "median", "quartiles", "95 % interval", "unit", "ratio", "aim", "verdict", "note")
    cells = [
        (
            row.what,
            figure(row.value.median),
            f"{figure(row.value.low)} to {figure(row.value.high)}" if row.value.n > 1 else "",
            f"{figure(row.interval.low)} to {figure(row.interval.high)}" if row.interval else "",
            row.unit,
            ratio_in_words(row),
            aim_in_words(row.aim, row.unit),
            verdict_in_words(row.verdict),
            row.note,
        )
        for row in rows
    ]
    return table(columns, cells)


def factor(ends: Sequence[float]) -> str:
    """Write how many times as much something is, with its interval: where it is much, neither matters to a thousandth.

    Args:
        ends: The figure, and the ends of its interval.
    """
    number, low, high = ends
    if number >= 1.995:
        return f"{figure(number)}x"
    return f"{number:.3f}x ({low:.3f} to {high:.3f})" if low < high else f"{number:.3f}x"


def overhead_table(findings: Findings) -> list[str]:
    """Write how many times the processor time of each program it is with what watches it."""
    programs: Mapping[str, Mapping[str, Sequence[float]]] = findings.series["overhead"]
    ways = list(dict.fromkeys(way for costs in programs.values() for way in costs))
    cells = [
        (program, *(factor(costs[way]) if way in costs else "" for way in ways)) for program, costs in programs.items()
    ]
    return table(("program", *ways), cells)


# The report


def markdown(run: Run, charts: Mapping[int, Sequence[Path]]) -> str:
    """Write the report.

    Args:
        run: What it is of.
        charts: The files drawn of each finding, by its place in `run.findings`; in the report's own folder.
    """
    lines = ["# Performance", "", machine_in_words(run) + f"; stored as {run.source}.", ""]
    lines += [
        "Arms run in turn, in one run; figures are medians over the rounds, ratios are taken round by round.",
        "",
    ]
    for shortcoming in shortcomings(run):
        lines += [f"- {shortcoming}"]
    lines += ["", tally(run)]
    short = [row for row in run.judged if row.verdict != PASS]
    if short:
        lines += ["", "What falls short:", "", *rows_table(short)]
    for title, found in run.by_section():
        lines += ["", f"## {title}"]
        for findings in found:
            lines += ["", f"### {findings.title}", "", *(f"- {word}" for word in findings.words)]
            grid = findings.series.get("grid")
            if grid:
                lines += ["", f"{grid['title']}:", "", *table(grid["columns"], grid["rows"])]
            if findings.series.get("overhead"):
                lines += ["", *overhead_table(findings)]
            if findings.rows:
                lines += ["", *rows_table(findings.rows)]
            at = next(place for place, one in enumerate(run.findings) if one is findings)
            for file in charts.get(at, ()):
                lines += ["", f"![{findings.title}]({file.name})"]
    return "\n".join(lines) + "\n"


def write(run: Run, folder: Path) -> Path:
    """Write the report and its charts into a folder; returns the report's file."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("chart-*.svg"):  # of an earlier run
        old.unlink()
    charts: dict[int, list[Path]] = {}
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed (extra `performance`): the report has no charts", file=sys.stderr)
    else:
        from tests.performance.charts import draw

        for at, findings in enumerate(run.findings):
            charts[at] = draw(findings, folder, f"chart-{at + 1:02}")
    file = folder / REPORT
    file.write_text(markdown(run, charts))
    return file


# The README's section


def section(run: Run) -> str:
    """Write a README's performance section: the claim, the aims and budgets, the machine, the command."""
    lines = [f"`{COMMAND}` measures this, and more, on your machine; `make performance-report` writes it down here."]
    lines += ["", f"Measured on {machine_in_words(run)}.", *(f"- {said}" for said in shortcomings(run))]
    claims = [claim for findings in run.findings for claim in findings.series.get("claims", [])]
    lines += ["", *(f"- {claim}" for claim in claims)] if claims else []
    lines += ["", tally(run)]
    if run.judged:
        columns = ("what", "measured", "aim", "")
        rows = [
            (
                row.what,
                ratio_in_words(row) if row.aim and row.aim.of_ratio else measured_in_words(row),
                aim_in_words(row.aim, row.unit),
                verdict_in_words(row.verdict),
            )
            for row in run.judged
        ]
        lines += ["", *table(columns, rows)]
    for findings in run.findings:
        if findings.series.get("overhead"):
            lines += ["", f"{SECTIONS['monitoring']}: times the processor time of the plain program (95 % interval)."]
            lines += ["", *overhead_table(findings)]
    return "\n".join(lines)


def measured_in_words(row: Row) -> str:
    """Say the figure, with its unit, and with its interval where it has one."""
    shown = figure(row.value.median)
    shown += row.unit if row.unit in ("x", "%") else f" {row.unit}"
    return f"{shown} ({figure(row.interval.low)} to {figure(row.interval.high)})" if row.interval else shown


def place(text: str, new: str) -> str:
    """Return a README with its performance section replaced.

    Raises:
        NoRun: The two markers do not stand in it, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise NoRun(f"the README has no place for it: two lines, {BEGIN} and {END}, must stand in it once")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, or the README's section; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="the stored run; default: the newest")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the report goes")
    parser.add_argument("--readme", type=Path, help="write the performance section of this file instead")
    given = parser.parse_args(arguments)
    try:
        run = read(given.json or newest())
        if given.readme is not None:
            given.readme.write_text(place(given.readme.read_text(), section(run)))
            print(f"{given.readme}: the performance section is that of {run.source} ({run.day})")
        else:
            print(f"{write(run, given.folder)}: {tally(run)}")
    except NoRun as error:
        print(f"performance report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
