"""Say whether sinks would work: reachable, permitted, and able to keep what is promised.

Each URL is looked at as a sink would use it; nothing is left behind on its server. The exit code is 1 when there is an
error, that is something that keeps events from being delivered. A warning is something that works, but may not keep a
promise.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable

from streamll.cli.output import conceal, conceal_url, takes_color, write_line
from streamll.errors import ConfigurationError, StreamllError
from streamll.registry import scheme_of, sink_class
from streamll.sinks.base import Finding
from streamll.views.line import neutral, neutral_json

# In the order in which they are shown.
_COLORS = {"ok": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_RESET = "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument(
        "urls", nargs="+", metavar="URL", help="a sink's URL, such as redis://localhost:6379/0?stream=app"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each URL")


def run(arguments: argparse.Namespace) -> int:
    """Check each URL, the others too when one cannot be used."""
    code = 0
    for position, url in enumerate(arguments.urls):
        try:
            findings = sink_class(scheme_of(url)).check_url(url.strip())
        except ConfigurationError as error:
            findings = [Finding("error", str(error))]
            code = 2
        except StreamllError as error:
            findings = [Finding("error", str(error))]
        if any(finding.level == "error" for finding in findings):
            code = code or 1
        if arguments.json:
            _print_json(url, findings)
        else:
            if position:
                write_line("")
            _print_text(url, findings, takes_color(os.environ))
    return code


def _print_text(url: str, findings: Iterable[Finding], color: bool) -> None:
    write_line(neutral(conceal_url(url)))
    for finding in sorted(findings, key=lambda finding: list(_COLORS).index(finding.level)):
        level = f"{finding.level:<7}"
        if color:
            level = f"{_COLORS[finding.level]}{level}{_RESET}"
        write_line(f"  {level}  {neutral(conceal(finding.text))}")
        if finding.remedy:
            write_line(f"           -> {neutral(conceal(finding.remedy))}")


def _print_json(url: str, findings: Iterable[Finding]) -> None:
    rows = [
        {"level": finding.level, "text": conceal(finding.text), "remedy": conceal(finding.remedy)}
        for finding in findings
    ]
    text = json.dumps({"url": conceal_url(url), "findings": rows}, ensure_ascii=False)
    write_line(neutral_json(text))
