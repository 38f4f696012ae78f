"""Errors that nobody caught: each is an event before the process ends, and the host prints what it would have printed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamll.context import muted
from streamll.errors import ConfigurationError
from streamll.models import StreamllEvent
from streamll.monitors.uncaught import UncaughtCapture, capture_uncaught

PROGRAM = """
import asyncio, gc, os, sys, threading
import streamll
streamll.configure(sinks=["file://" + sys.argv[1] + "?exit_timeout=30"])
if sys.argv[2] == "captured":
    from streamll.monitors.uncaught import capture_uncaught
    capture_uncaught()

class Final:
    def __del__(self):
        raise BufferError("in a finaliser")

def work():
    raise LookupError("in a thread")

def leave():
    raise SystemExit("of a thread, which is no error")

async def forgotten():
    raise ArithmeticError("in a task")

async def main():
    task = asyncio.get_running_loop().create_task(forgotten())
    await asyncio.sleep(0)
    del task
    gc.collect()
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0.001)

for function in (work, leave):
    thread = threading.Thread(target=function, name="a thread of mine")
    thread.start()
    thread.join()
Final()
asyncio.run(main())
raise ValueError("the end")
"""


def run(folder: Path, how: str) -> tuple[str, list[dict[str, Any]], int]:
    """What the program prints, without what differs from run to run; its events; and its exit status."""
    script, path = folder / "program.py", folder / f"{how}.jsonl"
    script.write_text(PROGRAM)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(path), how],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ,
    )
    printed = re.sub(r"0x[0-9a-f]+|Thread-\d+|Task-\d+", "...", done.stderr)
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return printed, [event for event in found if not event["event_type"].startswith("streamll.")], done.returncode


def test_each_is_delivered_before_the_process_ends_and_nothing_else_has_changed(tmp_path: Path) -> None:
    usual, none, status = run(tmp_path, "alone")
    printed, events, captured_status = run(tmp_path, "captured")
    assert (none, status, captured_status) == ([], 1, 1)
    assert printed == usual
    assert "ValueError: the end" in printed
    assert [(event["data"]["uncaught"], event["data"]["error"]["type"], event["level"]) for event in events] == [
        ("thread", "LookupError", "error"),
        ("unraisable", "BufferError", "error"),
        ("loop", "ArithmeticError", "error"),
        ("loop", "ZeroDivisionError", "error"),
        ("main", "ValueError", "critical"),
    ]
    assert events[0]["data"]["thread"] == "a thread of mine"
    assert events[1]["data"]["message"] == "Exception ignored in: Final.__del__"
    assert events[2]["data"]["message"] == "Task exception was never retrieved"
    assert all(event["data"]["error"]["stack"] for event in events)
    assert [event["method_name"].split(".")[-1] for event in events] == [
        "work",
        "__del__",
        "forgotten",
        "<lambda>",
        "<module>",
    ]


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Hooks of the host's, which note what they are called with."""
    called: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: called.append(args))
    monkeypatch.setattr(sys, "unraisablehook", lambda args: called.append(args.exc_value))
    monkeypatch.setattr(threading, "excepthook", lambda args: called.append(args.exc_value))
    return called


def test_the_hosts_hooks_run_and_come_back(hooks: list[Any], events: list[StreamllEvent]) -> None:
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    error, asked = OSError("gone"), KeyboardInterrupt()
    with capture_uncaught() as capture:
        sys.excepthook(OSError, error, None)
        sys.excepthook(KeyboardInterrupt, asked, None)
        thread = threading.Thread(target=lambda: hooks[99])
        thread.start()
        thread.join()
        args: Any = SimpleNamespace(exc_value=error, exc_traceback=None, err_msg=None, object=gc.collect)
        sys.unraisablehook(args)
        odd: Any = SimpleNamespace(exc_value=error)
        sys.unraisablehook(odd)  # not all that is due: the host's hook may live with it
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook) == before
    assert hooks[:2] == [(OSError, error, None), (KeyboardInterrupt, asked, None)]
    assert [type(one) for one in hooks[2:]] == [IndexError, OSError, OSError]
    assert [event.data["uncaught"] for event in events] == ["main", "thread", "unraisable"]
    assert events[2].data["message"] == "Exception ignored in: collect"
    assert capture.report() == {"events": {"main": 1, "thread": 1, "unraisable": 1}, "left_out": {"asked": 1}}


def test_their_number_is_bounded_but_for_the_last(hooks: list[Any], events: list[StreamllEvent]) -> None:
    with UncaughtCapture({"per_minute": 2}) as capture:
        for _ in range(4):
            threading.excepthook(threading.ExceptHookArgs((OSError, OSError(), None, None)))
        sys.excepthook(OSError, OSError(), None)
        with muted():
            sys.excepthook(OSError, OSError(), None)
    assert capture.stats().left_out == {"rate": 2, "muted": 1}
    assert len(events) == 3
    assert len(hooks) == 6


def test_of_two_tools_one_tells(hooks: list[Any], events: list[StreamllEvent]) -> None:
    with capture_uncaught() as first, capture_uncaught() as second:
        sys.excepthook(OSError, OSError(), None)
        first.stop()
        sys.excepthook(OSError, OSError(), None)
    assert (len(events), len(hooks)) == (2, 2)
    assert second.report() == {"events": {"main": 1}, "left_out": {"twice": 1}}


def test_a_text_that_fails_is_no_second_error(hooks: list[Any], events: list[StreamllEvent]) -> None:
    class Worse(Exception):
        def __str__(self) -> str:
            sys.excepthook(Worse, self, None)
            raise self

    with capture_uncaught() as capture:
        sys.excepthook(Worse, Worse(), None)
    assert capture.stats().left_out == {"reentrant": 1}
    assert "__str__ raised>" in events[0].data["error"]["message"]


class TestLoopsWithAHandlerOfTheirOwn:
    @staticmethod
    async def fail(called: list[Any]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: called[5])
        await asyncio.sleep(0.001)

    def test_are_seen_and_come_back_as_they_were(self, events: list[StreamllEvent]) -> None:
        called: list[Any] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()

            def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
                called.append(context["exception"])

            loop.set_exception_handler(handle)
            with capture_uncaught() as capture:
                capture.watch_loop()  # `start` did so
                await self.fail(called)
            assert loop.get_exception_handler() is handle
            with capture:
                ours = loop.get_exception_handler()
                loop.set_exception_handler(lambda loop, context: ours(loop, context) if ours else None)
            await self.fail(called)
            loop.call_exception_handler({"message": "no error in it", "exception": IndexError()})

        asyncio.run(main())
        assert [type(one) for one in called] == [IndexError, IndexError, IndexError]
        assert [(event.data["uncaught"], event.data["error"]["type"]) for event in events] == [("loop", "IndexError")]

    def test_must_run_where_none_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match="watch_loop"):
            UncaughtCapture().watch_loop()
