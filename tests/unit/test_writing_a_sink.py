"""The guide to writing a sink shows the file that the contract suite runs, and an entry point that works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamll import registry
from streamll.errors import ConfigurationError
from streamll.registry import make_sink, sink_class

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "writing-a-sink.md").read_text()
EXAMPLE = (ROOT / "examples" / "sqlite_sink.py").read_text()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example, installed with the entry point that the guide shows."""
    (points,) = re.findall(r'```toml\n\[project\.entry-points\."streamll\.sinks"\]\n(.*?)```', GUIDE, re.DOTALL)
    info = tmp_path / "sqlite_sink-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sqlite-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[streamll.sinks]\n" + points.replace('"', ""))
    (tmp_path / "sqlite_sink.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    caches = (registry.sink_class, registry._entry_points)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_the_guide_shows_the_whole_file_as_it_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert EXAMPLE in blocks


@pytest.mark.usefixtures("installed")
def test_its_urls(tmp_path: Path) -> None:
    sink = make_sink("sqlite:///a%20b/events.db?table_name=app_events&buffer_size=7&name=mine")
    assert (type(sink).__name__, sink.name, sink.options.buffer_size) == ("SQLiteSink", "mine", 7)
    assert sink.destination == "sqlite:///a b/events.db"
    for url in ("sqlite://host/events.db", "sqlite://", "sqlite:///"):
        with pytest.raises(ConfigurationError, match="three slashes"):
            make_sink(url)
    with pytest.raises(ConfigurationError, match="letters, digits and _"):
        make_sink("sqlite:///x.db?table_name=a%22;--")


@pytest.mark.usefixtures("installed")
def test_its_check(tmp_path: Path) -> None:
    check = sink_class("sqlite").check_url
    assert [finding.level for finding in check(f"sqlite://{tmp_path}/new/events.db?name=x")] == ["ok"]
    (tmp_path / "text").write_text("this is no database, and is long enough to be seen as none " * 20)
    (found,) = check(f"sqlite://{tmp_path}/text")
    assert (found.level, "not a database" in found.text) == ("error", True)
    assert [finding.level for finding in check(f"sqlite://{tmp_path}")] == ["error"]
