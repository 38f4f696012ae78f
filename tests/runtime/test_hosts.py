"""What the servers that run a program are told of us, and we of them: stand-ins for what they put into sys.modules."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from streamll.runtime.hosts import settle_in


def nothing() -> None:
    """Leaves nothing."""


def uwsgi(worker: int = 0, master: int = 1, workers: int = 2, threads: bool = True, **options: object) -> ModuleType:
    """What uWSGI offers to the program in it."""
    module = ModuleType("uwsgi")
    module.__dict__.update(
        has_threads=threads,
        numproc=workers,
        opt={name.replace("_", "-"): value for name, value in options.items()},
        worker_id=lambda: worker,
        masterpid=lambda: master,
    )
    return module


def said(module: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    with caplog.at_level(logging.DEBUG, "streamll"):
        settle_in(nothing)
    return caplog.text


class TestUWSGI:
    @pytest.mark.parametrize(
        "module",
        [
            uwsgi(lazy_apps=True),
            uwsgi(py_call_uwsgi_fork_hooks=True),
            uwsgi(py_call_osafterfork=True),
            uwsgi(worker=2),
            uwsgi(master=0, workers=1),
        ],
        ids=["lazy", "hooks", "osafterfork", "in a worker", "does not fork"],
    )
    def test_that_tells_of_forks_needs_no_advice(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert said(module, monkeypatch, caplog) == ""

    @pytest.mark.parametrize("module", [uwsgi(), uwsgi(master=0)], ids=["master", "without one"])
    def test_that_does_not_is_said_once(
        self, module: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert said(module, monkeypatch, caplog).count("lazy-apps = true") == 1

    def test_without_threads(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        assert "enable-threads = true" in said(uwsgi(threads=False, lazy_apps=True), monkeypatch, caplog)

    def test_of_another_kind_is_no_trouble(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = said(ModuleType("uwsgi"), monkeypatch, caplog)
        assert "WARNING" not in text
        assert "AttributeError" in text


def test_celery_calls_before_a_process_of_its_pool_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    receivers: list[Callable[..., Any]] = []

    def connect(receiver: Callable[..., Any], weak: bool, dispatch_uid: str) -> None:
        assert not weak  # nobody else holds it
        assert dispatch_uid  # connected twice, it is called once
        receivers.append(receiver)

    signals = SimpleNamespace(worker_process_shutdown=SimpleNamespace(connect=connect))
    monkeypatch.setitem(sys.modules, "celery.signals", signals)
    left: list[bool] = []
    settle_in(lambda: left.append(True))
    assert left == []
    for receiver in receivers:
        receiver(signal=None, sender="worker@host", pid=1, exitcode=0)
    assert left == [True]
