"""The report of a run: what was stored is shown, with its verdicts, its machine, and what is missing in it."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.performance import report
from tests.performance.pairs import Interval
from tests.performance.report import BEGIN, END, NoRun
from tests.performance.results import KEY, Aim, Findings

MACHINE = {
    "system": "Linux",
    "machine": "x86_64",
    "cpu": {"brand_raw": "A Processor"},
    "processors": 2,
    "versions": {"python": "3.11.7", "streamll": "0.1.0"},
    "quick": False,
}


def pipeline() -> Findings:
    findings = Findings()
    findings.about("pipeline", "One by one or together")
    findings.say("A sentence about it.")
    findings.row("together: times faster", [80.0, 90.0, 100.0], "x", aim=Aim(at_least=82), note="a | b")
    findings.series["claims"] = ["together: 82x is true from here on."]
    findings.series["grid"] = {"title": "By batch", "columns": ["path", "10"], "rows": [["loopback", "5.0"]]}
    return findings


def budgets() -> Findings:
    findings = Findings()
    findings.about("budgets", "What was promised")
    findings.row("start-up", [0.12, 0.13], "s", aim=Aim(at_most=0.1))
    findings.row("slower than before", [1.5, 1.5], "us", to=("before", [1.0, 1.2]), aim=Aim(at_most=1.5, of_ratio=True))
    findings.row("without an aim", [12_345.0], "events/s")
    return findings


def overhead() -> Findings:
    findings = Findings()
    findings.about("monitoring", "What it adds")
    sure = Interval(1.2, -0.5, 2.5)
    findings.row("typical", [1.0, 1.2, 1.4], "%", aim=Aim(at_most=2), interval=sure)
    findings.series["overhead"] = {
        "nbody": {"ours": [1.012, 0.995, 1.025], "another": [2.9, 2.7, 3.1]},
        "c_call": {"ours": [1.0, 1.0, 1.0]},  # measured once
    }
    return findings


def stored(folder: Path, *found: Findings, **more: Any) -> Path:
    """Write what pytest-benchmark writes at the end of a run."""
    file = folder / "0001_performance.json"
    benchmarks: list[dict[str, Any]] = [{"name": one.title, "extra_info": {KEY: one.to_json()}} for one in found]
    benchmarks.append({"name": "of somebody else", "extra_info": {}})
    run = {
        "machine_info": MACHINE | more.pop("machine", {}),
        "benchmarks": benchmarks,
        "datetime": datetime(2026, 3, 4, 5, 6, tzinfo=timezone.utc).isoformat(),
        KEY: {"servers": {"Redis": "7.0.15"}, "unmeasured": [], **more},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run))
    return file


class TestReport:
    def test_it_shows_what_was_stored(self, tmp_path: Path) -> None:
        text = report.markdown(report.read(stored(tmp_path, budgets(), pipeline())), {})
        assert (
            "2 processors (A Processor), Linux x86_64; Python 3.11.7, Redis 7.0.15, streamll 0.1.0; 2026-03-04" in text
        )
        assert "stored as 0001_performance.json" in text
        assert "- A sentence about it." in text
        assert "| loopback | 5.0 |" in text
        assert "| together: times faster | 90.0 | 85.0 to 95.0 | x | at least 82x | pass | a \\| b |" in text
        assert "12,345" in text
        assert "2 of 3 aims and budgets are met." in text

    def test_what_falls_short_stands_out_and_stands_first(self, tmp_path: Path) -> None:
        text = report.markdown(report.read(stored(tmp_path, pipeline(), budgets())), {})
        before_sections = text.split("## What pipelining")[0]
        assert "| start-up | 0.12 | 0.12 to 0.13 | s | at most 0.1 s | **falls short** |" in before_sections
        assert "together" not in before_sections

    def test_what_monitoring_adds_is_a_table(self, tmp_path: Path) -> None:
        run = report.read(stored(tmp_path, overhead()))
        rows = ["| nbody | 1.012x (0.995 to 1.025) | 2.90x |", "| c_call | 1.000x |  |"]
        for text in (report.markdown(run, {}), report.section(run)):
            assert "\n".join(["| program | ours | another |", "| --- | --- | --- |", *rows]) in text
        assert "| typical | 1.20 | 1.10 to 1.30 | -0.50 to 2.50 | % | at most 2% | pass |" in report.markdown(run, {})
        assert "| typical | 1.20% (-0.50 to 2.50) | at most 2% | pass |" in report.section(run)

    def test_sections_have_their_order_whatever_order_they_ran_in(self, tmp_path: Path) -> None:
        strange = Findings(section="something new", title="Its title")
        text = report.markdown(report.read(stored(tmp_path, strange, budgets(), pipeline())), {})
        places = [text.index(f"## {title}\n") for title in ("What pipelining is worth", "Budgets", "something new")]
        assert places == sorted(places)

    def test_a_ratio_is_judged_where_it_is_what_counts(self, tmp_path: Path) -> None:
        text = report.markdown(report.read(stored(tmp_path, budgets())), {})
        (row,) = [line for line in text.splitlines() if line.startswith("| slower than before")]
        assert "1.38x of before (1.31 to 1.44)" in row
        assert "at most 1.5x of it | pass" in row

    def test_charts_stand_with_their_finding(self, tmp_path: Path) -> None:
        run = report.read(stored(tmp_path, budgets(), pipeline()))
        text = report.markdown(run, {0: [tmp_path / "of-budgets.svg"]})
        assert text.index("### What was promised") < text.index("](of-budgets.svg)")
        assert text.index("### One by one") < text.index("### What was promised")

    def test_it_says_what_it_is_not(self, tmp_path: Path) -> None:
        missing = [{"test": "test_peers.py::test_them", "outcome": "skipped", "why": "psutil is not installed"}]
        file = stored(tmp_path, pipeline(), machine={"quick": True}, unmeasured=missing)
        run = report.read(file)
        for text in (report.markdown(run, {}), report.section(run)):
            assert "quick look" in text
            assert "- Not measured: `test_peers.py::test_them` (skipped): psutil is not installed" in text
            assert "Nothing was measured of: The limit" in text
            assert "Budgets." in text

    def test_of_a_whole_run_it_says_nothing_of_the_kind(self, tmp_path: Path) -> None:
        found = [Findings(section=section, title="One") for section in report.SECTIONS]
        run = report.read(stored(tmp_path, *found))
        assert report.shortcomings(run) == []
        assert "No aim was measured." in report.markdown(run, {})

    def test_it_is_written_also_where_nothing_can_be_drawn(self, tmp_path: Path) -> None:
        old = tmp_path / "chart-09-limit.svg"
        old.write_text("of an earlier run")
        run = report.read(stored(tmp_path, pipeline()))
        assert "One by one or together" in report.write(run, tmp_path).read_text()
        assert not old.exists()

    def test_speeds_and_figures_are_drawn(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="charts need matplotlib, of the extra `performance`")
        found = pipeline()
        points = [[0.0, 1, 0.9], [0.0, 100, 5.0], [1e-3, 1, 1.0], [1e-3, 100, 50.0]]
        found.series["curves"] = [{"name": "together", "c1": 60e-6, "c2": 1e-6, "points": points}]
        found.series["claim"] = 82.0
        found.series["delivery"] = {"one": [1.0, 2.0], "other": [3.0]}
        found.series["ticker"] = {"one": [{"median": 1.0, "p99": 2.0}], "other": [{"median": 1.0, "p99": 0.0}]}
        found.series["emit"] = {"one": {"median": [1.0], "p99": []}}
        text = report.write(report.read(stored(tmp_path, found, overhead())), tmp_path / "report").read_text()
        drawn = sorted(file.name for file in (tmp_path / "report").glob("*.svg"))
        names = ["chart-01-1", "chart-01-delivery", "chart-01-emit", "chart-01-ticker", "chart-02-overhead"]
        assert drawn == [f"{name}.svg" for name in names]
        assert all(f"]({name})" in text for name in drawn)

    def test_the_newest_run_is_taken(self, tmp_path: Path) -> None:
        older, newer = stored(tmp_path / "a", budgets()), stored(tmp_path / "b", budgets())
        os.utime(older, (1, 1))
        assert report.newest(tmp_path) == newer

    def test_without_a_run_there_is_no_report(self, tmp_path: Path) -> None:
        with pytest.raises(NoRun, match="no stored run"):
            report.newest(tmp_path)
        with pytest.raises(NoRun, match="no findings"):
            report.read(stored(tmp_path))


class TestReadme:
    def test_the_section_alone_is_replaced(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        readme = tmp_path / "README.md"
        readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
        file = stored(tmp_path, pipeline(), budgets())
        for _ in range(2):  # written twice, it is the same
            assert report.main(["--json", str(file), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"# Title\n\n{BEGIN}\n")
        assert text.endswith(f"\n{END}\n\nThe end.\n")
        assert "old" not in text
        assert "- together: 82x is true from here on." in text
        assert "| together: times faster | 90.0x | at least 82x | pass |" in text
        assert "| start-up | 0.12 s | at most 0.1 s | **falls short** |" in text
        assert "without an aim" not in text
        assert "make test-performance" in text
        assert "0001_performance.json (2026-03-04)" in capsys.readouterr().out

    @pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}", f"{BEGIN}{END}{END}"])
    def test_without_a_place_it_is_left_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
    ) -> None:
        readme = tmp_path / "README.md"
        readme.write_text(text)
        assert report.main(["--json", str(stored(tmp_path, budgets())), "--readme", str(readme)]) == 1
        assert readme.read_text() == text
        assert "no place for it" in capsys.readouterr().err


class TestWords:
    @pytest.mark.parametrize(
        ("number", "words"),
        [
            (0, "0"),
            (1234.5, "1,234"),
            (99.94, "99.9"),
            (3.14159, "3.14"),
            (0.5, "0.50"),
            (0.0123, "0.012"),
            (-5, "-5.00"),
        ],
    )
    def test_a_figure_has_as_many_digits_as_mean_something(self, number: float, words: str) -> None:
        assert report.figure(number) == words

    def test_a_column_that_is_empty_is_left_out(self) -> None:
        assert report.table(("a", "b", "c"), [("1", "", "2"), ("3", "", "")]) == [
            "| a | c |",
            "| --- | --- |",
            "| 1 | 2 |",
            "| 3 |  |",
        ]
