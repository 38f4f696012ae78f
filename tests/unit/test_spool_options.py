"""How a sink is told to keep events on disk: by its class, a URL, the environment, configure(); and where it keeps them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamll
from streamll.errors import ConfigurationError
from streamll.options import MIB, SinkOptions
from streamll.registry import make_sink
from streamll.sinks.redis import RedisSink

GIVEN: dict[str, Any] = {
    "durability": "disk",
    "spool_dir": "/var/spool/app",
    "spool_bytes": 64 * MIB,
    "segment_bytes": 4 * MIB,
    "sync_interval": 0.5,
    "buffer_overflow_strategy": "spill",
}


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    """Nothing is configured afterwards."""
    yield
    streamll.shutdown()


def given(options: SinkOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in GIVEN}


def test_by_the_class() -> None:
    assert given(RedisSink(stream_key="s", **GIVEN).options) == GIVEN


@pytest.mark.parametrize("url", ["redis://localhost/0", "amqp://localhost/", "file:///tmp/events.jsonl", "memory://"])
def test_by_a_url(url: str) -> None:
    query = "&".join(f"{name}={value}" for name, value in GIVEN.items())
    assert given(make_sink(f"{url}?{query}").options) == GIVEN


def test_by_the_environment(tmp_path: Path) -> None:
    environ = {f"STREAMLL_{name.upper()}": str(value) for name, value in GIVEN.items()}
    assert given(SinkOptions.from_mapping(SinkOptions.from_env(environ))) == GIVEN
    environ["STREAMLL_SPOOL_DIR"] = str(tmp_path / "spool")
    streamll.configure(sinks=["memory://?flush_interval=3600"], environ=environ)
    assert streamll.emit("kept")
    assert [path.suffix for path in (tmp_path / "spool").rglob("*") if path.is_file()] == [".segment"]


def test_by_configure(tmp_path: Path) -> None:
    options = {**GIVEN, "spool_dir": str(tmp_path / "spool"), "flush_interval": 3600.0}
    streamll.configure(sinks=["memory://"], environ={}, **options)
    assert streamll.emit("kept")
    assert [path.suffix for path in (tmp_path / "spool").rglob("*") if path.is_file()] == [".segment"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"durability": "forever"}, "durability='forever': must be one of memory, process, disk"),
        ({"durability": True}, "durability=True: must be one of"),
        ({"durability": "process", "spool_bytes": 1}, "spool_bytes=1: must be"),
        ({"durability": "process", "segment_bytes": 1000}, "segment_bytes=1000: must be"),
        ({"durability": "process", "segment_bytes": 1 << 40}, "segment_bytes="),
        ({"durability": "disk", "sync_interval": 0}, "sync_interval=0: must be"),
        ({"durability": "disk", "sync_interval": "soon"}, "sync_interval='soon': must be"),
        ({"durability": "process", "spool_dir": 7}, "spool_dir=7: must be a string"),
        (
            {"durability": "process", "spool_bytes": 8 * MIB},
            "spool_bytes=8388608: must be at least twice segment_bytes",
        ),
        ({"buffer_overflow_strategy": "spill", "spool_bytes": 8 * MIB}, "at least twice segment_bytes"),
        ({"buffer_overflow_strategy": "spool"}, "must be one of drop_oldest, drop_newest, block, raise_error, spill"),
        ({"spooldir": "/tmp"}, "did you mean spool_dir?"),
    ],
)
def test_what_is_wrong_is_a_clear_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisSink(stream_key="s", **options)
    assert says in str(caught.value)


def test_without_either_nothing_is_on_disk_and_nothing_is_looked_for() -> None:
    sink = RedisSink(stream_key="s", spool_dir="/nowhere", spool_bytes=8 * MIB)
    assert not sink.options.spools
    assert (sink._shelf, sink._adopter) == (None, None)


def folder_of(**options: Any) -> Path:
    """Where a sink keeps its events."""
    shelf = RedisSink(stream_key="s", **{"durability": "process", **options})._shelf
    assert shelf is not None
    return shelf.journal.spool_dir


class TestTheFolder:
    def test_is_with_what_a_users_programs_keep(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        assert folder_of() == tmp_path / "streamll" / "spool"
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert folder_of() == tmp_path / "home" / ".local" / "state" / "streamll" / "spool"
        monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")  # which the specification says is to be ignored
        assert folder_of() == tmp_path / "home" / ".local" / "state" / "streamll" / "spool"

    def test_may_begin_with_a_tilde(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert folder_of(spool_dir="~/spool") == tmp_path / "spool"

    def test_stays_where_it_is_when_the_process_goes_elsewhere(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        sink = RedisSink(stream_key="s", durability="process", spool_dir="spool")
        monkeypatch.chdir("/")
        assert sink._shelf is not None
        assert sink._shelf.journal.spool_dir == tmp_path / "spool"

    def test_must_be_given_where_there_is_no_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os, "getuid", lambda: (1 << 31) - 7)  # which no list of users knows
        for nowhere in ("", "~/spool"):
            with pytest.raises(ConfigurationError, match="spool_dir"):
                folder_of(spool_dir=nowhere)
        assert folder_of(spool_dir="/var/spool/app") == Path("/var/spool/app")

    def test_is_not_made_before_there_is_something_to_keep(self, tmp_path: Path) -> None:
        folder_of(spool_dir=str(tmp_path / "spool"))
        assert list(tmp_path.iterdir()) == []


def test_no_credential_gets_there() -> None:
    sink = RedisSink("redis://user:secret@localhost/0?stream=s", durability="process")
    assert sink._shelf is not None
    identity = sink._shelf.journal.identity
    assert "secret" not in f"{identity.destination} {identity.url}"
    assert "user" not in f"{identity.destination} {identity.url}"


def test_the_same_destination_in_other_words_is_the_same() -> None:
    """Or a process would not find what another has left, when its URL is written in another way."""

    def address(url: str, **options: Any) -> str:
        return make_sink(url, durability="process", **options).address

    urls = [
        "redis://localhost:6379/0?stream=s",
        "redis://localhost/0?stream=s&buffer_size=7",
        "redis://localhost?stream=s&durability=disk",
        "redis://someone:secret@localhost:6379/0?stream=s",
    ]
    assert len({address(url) for url in urls}) == 1, [address(url) for url in urls]
    assert address("redis://localhost/1?stream=s") != address(urls[0])
    assert address("redis://localhost/0?stream=t") != address(urls[0])
    queues = ["amqp://localhost/?queue=q", "amqp://guest:guest@localhost:5672/%2F?queue=q&spool_bytes=33554432"]
    assert len({address(url) for url in queues}) == 1, [address(url) for url in queues]
    assert address("amqp://localhost/v?queue=q") != address(queues[0])
