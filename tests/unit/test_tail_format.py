"""What the command line prints: harmless to a terminal, JSON that reads back, and no credential."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll import codec
from streamll.cli import main, tail
from streamll.cli.interrupt import interruptions
from streamll.cli.output import as_json, as_text, conceal
from streamll.cli.tail import _filter
from streamll.consumers import FileConsumer, Received
from streamll.consumers.received import read_event
from streamll.models import StreamllEvent
from streamll.views.line import HARMFUL

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egnp.exe\u2066\u200b\u2028\ufeff\x00\x7f"


def received(payload: bytes = b"", event: StreamllEvent | None = None, **fields: Any) -> Received:
    if event is None:
        event, error = read_event(payload, 1_000_000)
    else:
        payload, error = codec.encode(event), ""
    return Received(event, error, payload, fields.pop("producer", "p"), 7, "5-0", **fields)


def text(item: Received, color: bool = False) -> str:
    return as_text(item, color=color, dated=False)


class TestText:
    def test_an_event(self) -> None:
        event = StreamllEvent(
            event_type="span", operation="retrieve", level="info", data={"duration_ns": 12_300_000, "k": 5}
        )
        shown = text(received(event=event))
        for part in ("INFO", "span", "retrieve", "12.3 ms", "k=5"):
            assert part in shown

    def test_an_undecodable_entry(self) -> None:
        shown = text(received(b"\xc1\x1b[2J" + b"x" * 200))
        assert shown.startswith("undecodable entry at 5-0: no event: bad MessagePack")
        assert "\x1b" not in shown
        assert shown.endswith("and 125 bytes more")

    def test_a_dead_letter(self) -> None:
        item = received(event=StreamllEvent(event_type="t"), dead_letter=f"too large{HOSTILE}")
        assert "(dead letter: too large" in text(item)
        assert not HARMFUL.search(text(item))

    @pytest.mark.parametrize(
        "event",
        [
            StreamllEvent(event_type=HOSTILE),
            StreamllEvent(event_type="t", operation=HOSTILE, level=HOSTILE, execution_id=HOSTILE),
            StreamllEvent(event_type="t", data={HOSTILE: HOSTILE, "deep": {HOSTILE: [HOSTILE, HOSTILE.encode()]}}),
            StreamllEvent(event_type="t", tags=[HOSTILE], module_name=HOSTILE, method_name=HOSTILE),
            StreamllEvent(
                event_type="t", tags={HOSTILE: HOSTILE}, data={"error": {"type": HOSTILE, "message": HOSTILE}}
            ),
        ],
    )
    def test_hostile_events(self, event: StreamllEvent) -> None:
        assert not HARMFUL.search(text(received(event=event)))
        assert not HARMFUL.search(as_json(received(event=event)))

    @given(st.text(), st.binary())
    def test_no_event_gets_a_harmful_character_through(self, words: str, data: bytes) -> None:
        event = StreamllEvent(event_type=words or "t", operation=words, data={words: words, "bytes": data})
        item = Received(event, words, data, words, 1, "5-0", words)
        undecodable = Received(None, words, data, words, 1, "5-0", words)
        for one in (item, undecodable):
            assert not HARMFUL.search(text(one))
            assert not HARMFUL.search(as_json(one))
            json.loads(as_json(one))


class TestJson:
    def test_it_reads_back(self, tmp_path: Path) -> None:
        event = StreamllEvent(
            event_type="t",
            operation=f"grün {HOSTILE}",
            data={"n": 1, "text": HOSTILE},
            tags={"a": "b"},
            extra={"new": 1},
        )
        path = tmp_path / "events.jsonl"
        path.write_text(as_json(received(event=event, dead_letter="why")) + "\n", encoding="utf-8")
        with FileConsumer(path, follow=False) as consumer:
            (item,) = consumer
        assert (item.producer, item.seq, item.dead_letter) == ("p", 7, "why")
        assert item.event is not None
        assert item.event.extra.pop("position") == "5-0"
        assert item.event == event

    def test_an_undecodable_entry(self) -> None:
        found = json.loads(as_json(received(b"\xc1\xff", producer="")))
        assert found.pop("undecodable").startswith("no event")
        assert found == {"payload": "wf8=", "position": "5-0"}

    @pytest.mark.parametrize(
        "data",
        [
            {1: "one", b"bytes": 2, None: 4, 1.5: []},
            {"ext": msgpack.ExtType(5, b"\x00"), "nan": float("nan"), "huge": 2**64 - 1},
            {"time": msgpack.Timestamp(2**33, 1)},
            {"text": [[[[[[[[[[[]]]]]]]]]]]},
        ],
    )
    def test_what_json_cannot_say(self, data: Any) -> None:
        payload = msgpack.packb({"event_type": "t", "data": data, 5: "five"})
        found = json.loads(as_json(received(payload)))
        assert found["event_type"] == "t"
        assert (found["producer"], found["seq"]) == ("p", 7)
        assert len(found["data"]) == len(data)

    def test_what_is_nested_beyond_measure(self) -> None:
        nested: Any = []
        for _ in range(400):
            nested = [nested]
        payload = msgpack.packb({"event_type": "t", "data": {"deep": nested}})
        assert json.loads(as_json(received(payload)))["event_type"] == "t"


class TestFilters:
    @pytest.mark.parametrize(
        ("wanted", "shown"),
        [
            ({}, True),
            ({"type": ["token"]}, True),
            ({"type": ["span", "tok*"]}, True),
            ({"type": ["span"]}, False),
            ({"type": ["token"], "operation": ["gen?rate"]}, True),
            ({"type": ["token"], "operation": ["retrieve"]}, False),
            ({"execution": ["abcd"]}, True),
            ({"execution": ["bcd"]}, False),
        ],
    )
    def test_each_kind_must_match(self, wanted: dict[str, list[str]], shown: bool) -> None:
        arguments = argparse.Namespace(**{"type": [], "operation": [], "execution": [], **wanted})
        event = StreamllEvent(event_type="token", operation="generate", execution_id="abcdef")
        assert _filter(arguments)(received(event=event)) is shown

    def test_what_cannot_be_decoded_is_shown_without_filters_only(self) -> None:
        nothing = argparse.Namespace(type=[], operation=[], execution=[])
        everything = argparse.Namespace(type=["*"], operation=[], execution=[])
        assert _filter(nothing)(received(b"\xc1"))
        assert not _filter(everything)(received(b"\xc1"))


class TestCredentials:
    @pytest.mark.parametrize(
        ("said", "shown"),
        [
            ("redis://user:secret@host:1/0", "redis://***@host:1/0"),
            ("amqp://u:sec/r@et@host", "amqp://***@host"),
            ("see redis://:secret@a and amqp://u:secret@b", "see redis://***@a and amqp://***@b"),
            ("redis://h/0?password=secret&db=1", "redis://h/0?password=***&db=1"),
            ("redis+sentinel://h/s?sentinel_password=secret", "redis+sentinel://h/s?sentinel_password=***"),
            ("file:///tmp/x@y", "file://***@y"),
            ("user:secret@host", "***@host"),
            ("at 12:30 on host:6379", "at 12:30 on host:6379"),
            ("redis://host/0", "redis://host/0"),
        ],
    )
    def test_they_are_concealed(self, said: str, shown: str) -> None:
        assert conceal(said) == shown


class TestMisuse:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["no-such-command"],
            ["tail"],
            ["check"],
            ["tail", "redis://u:secret@h", "redis://u:secret@h"],
            ["tail", "redis://u:secret@h", "--count", "0"],
            ["tail", "redis://u:secret@h", "--count", "many"],
            ["tail", "redis://u:secret@h", "--from", "yesterday"],
            ["tail", "redis://u:secret@h/?strem=a"],
            ["tail", "terminal://u:secret@h"],
            ["tail", "amqp://u:secret@h/?queue=q"],
            ["tail", "amqp://u:secret@h/?exchange=app", "--from", "beginning"],
            ["tail", "amqp://u:secret@h/?exchange=app", "--no-follow"],
            ["tail", ""],
            ["check", "gopher://u:secret@h"],
            ["check", "u:secret@h"],
            ["check", "redis://u:secret@h/?strem=a"],
        ],
    )
    def test_it_says_what_is_wrong_and_ends_with_2(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out or err
        assert "secret" not in out + err
        assert "Traceback" not in out + err

    def test_help_and_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["--help"], ["--version"], ["tail", "--help"], ["check", "--help"]):
            assert main(words) == 0
        assert "--no-follow" in capsys.readouterr().out


class TestInterruptions:
    def test_ctrl_c_is_raised_as_ever(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        with interruptions() as interrupted:
            assert not interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert interrupted()
        assert signal.getsignal(signal.SIGINT) is before

    def test_one_that_comes_to_nothing_is_seen(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Unlucky:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGINT)

        with interruptions() as interrupted:
            Unlucky()
            assert interrupted()
        assert capsys.readouterr().err == ""

    def test_what_else_goes_wrong_in_finalisers_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reported: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

        class Broken:
            def __del__(self) -> None:
                raise ValueError

        with interruptions():
            Broken()
        assert reported == [ValueError]

    def test_in_another_thread_nothing_is_changed(self) -> None:
        found: list[bool] = []

        def elsewhere() -> None:
            with interruptions() as interrupted:
                found.append(interrupted())

        before = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert found == [False]
        assert signal.getsignal(signal.SIGINT) is before


class TestMain:
    def test_a_mistake_of_ours_shows_no_text_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(_arguments: object) -> int:
            raise RuntimeError("redis://u:secret@h")

        monkeypatch.setattr(tail, "run", fail)
        monkeypatch.delenv("STREAMLL_DEBUG", raising=False)
        assert main(["tail", "redis://h"]) == 1
        assert capsys.readouterr().err == (
            "streamll: a mistake in streamll: RuntimeError; with STREAMLL_DEBUG=1 it shows where\n"
        )
        monkeypatch.setenv("STREAMLL_DEBUG", "1")
        with pytest.raises(RuntimeError):
            main(["tail", "redis://h"])
