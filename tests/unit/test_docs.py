"""What the docs say is what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import streamll

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_of_options_comes_from_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "options_doc.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_readme_names_only_what_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    names = set(re.findall(r"streamll\.([a-z_]+)\b(?=\()", readme))
    assert names - {"testing"} <= set(streamll.__all__)
    for target in re.findall(r"\]\(([^):]+)\)", readme):
        assert (ROOT / target).is_file(), target


def test_the_readme_never_says_to_install_another_projects_package() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"pip install\s+[\"']?streamll", page.read_text()), page.name


def test_the_rooms_in_the_architecture_are_there() -> None:
    house = (ROOT / "ARCHITECTURE.md").read_text().split("## The house")[1].split("## Contracts")[0]
    for name in re.findall(r"^  +(\w+\.py|\w+/)", house, re.MULTILINE):
        assert list((ROOT / "streamll").rglob(name.rstrip("/"))), name
