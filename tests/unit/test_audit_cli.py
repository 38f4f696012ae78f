"""`streamll audit` on files: what it prints and how it ends. Servers are in tests/integration/test_audit_*.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamll import codec
from streamll.cli import main
from streamll.consumers import FileConsumer
from streamll.models import CLOSING, GAP, StreamllEvent
from streamll.sinks import file as file_sink
from streamll.wire import file as file_wire
from streamll.wire.file import dead_letter_line, event_line
from tests.unit.test_audit import P, closing, gap

EVENT = StreamllEvent(event_type="t", data={"text": "Hi"})


def line(seq: int, event: StreamllEvent = EVENT, producer: str = P) -> bytes:
    return event_line(codec.to_json(event), producer, seq)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


Audited = tuple[int, list[str], str]


@pytest.fixture
def audited(path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Audited]:
    """Audit the file, after these lines were written; returns the exit code, the lines and the words beside them."""

    def audit(*lines: bytes, words: tuple[str, ...] = ()) -> Audited:
        path.write_bytes(b"".join(lines))
        code = main(["audit", str(path), *words])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return audit


def as_json(audited: Callable[..., Audited], *lines: bytes, words: tuple[str, ...] = ()) -> tuple[int, Any]:
    code, (text,), err = audited(*lines, words=("--json", *words))
    assert err == ""
    outcome = json.loads(text)
    assert outcome["status"] == code
    return code, outcome


def test_all_is_there(audited: Callable[..., Audited]) -> None:
    code, lines, err = audited(*map(line, range(1, 101)), line(101, closing(100)))
    assert (code, err) == (0, "")
    assert lines[-1] == "no undeclared loss: 100 events of 1 producer"
    assert lines[1].endswith("closed")


def test_a_loss_that_was_declared(audited: Callable[..., Audited]) -> None:
    code, lines, _ = audited(line(1), line(4, gap((2, 4))), line(5))
    assert code == 0
    assert lines[-1] == "no undeclared loss: 2 events of 1 producer; 3 events declared lost"


def test_a_loss_that_was_not(audited: Callable[..., Audited]) -> None:
    code, lines, _ = audited(line(1), line(4), line(6, closing(5)))
    assert code == 1
    assert f"{P}: UNDECLARED: 3 numbers missing: 2-3, 5" in lines
    assert lines[-1] == "UNDECLARED LOSS: 3 numbers of 1 producer missing, and nothing says why"


def test_doubles_and_disorder_do_not_change_the_outcome(audited: Callable[..., Audited]) -> None:
    code, outcome = as_json(audited, line(1), line(3), line(2), line(3))
    assert code == 0
    (row,) = outcome["producers"]
    assert (row["counts"]["doubles"], row["counts"]["out_of_order"]) == (1, 1)


def test_as_json(audited: Callable[..., Audited], path: Path) -> None:
    code, outcome = as_json(audited, line(11), line(12, producer=f"{P}.aa"), line(14, producer=f"{P}.aa"), b"junk\n")
    assert code == 1
    assert outcome["source"] == f"file {path}"
    assert [(row["producer"], row["parent"], row["first"], row["ranges"]) for row in outcome["producers"]] == [
        (P, "", 11, []),
        (f"{P}.aa", P, 12, [[13, 13]]),
    ]
    assert outcome["total"]["undeclared"] == 1
    assert outcome["strangers"] == 1
    assert not outcome["whole"]  # rotated files may have been removed


def test_a_beginning_that_was_not_read(audited: Callable[..., Audited]) -> None:
    code, lines, _ = audited(line(1001))
    assert code == 0
    assert f"{P}: begins at 1,001: what came before was trimmed, or not read" in lines


def test_from_a_place_on(audited: Callable[..., Audited], path: Path) -> None:
    path.write_bytes(line(1) + line(5))
    with FileConsumer(path, follow=False) as consumer:
        next(consumer)
        place = next(consumer).position
    code, lines, _ = audited(line(1), line(5), line(6), words=("--start", place))
    assert code == 0
    assert lines[-1] == "no undeclared loss: 1 event of 1 producer"
    code, _, err = audited(line(1), words=("--from", "end"))
    assert code == 2
    assert "nothing to judge" in err


class TestDeadLetters:
    def test_beside_the_file(self, audited: Callable[..., Audited], path: Path) -> None:
        beside = path.with_name(f"{path.name}.dead-letter.jsonl")
        beside.write_bytes(
            dead_letter_line(codec.to_json(EVENT), P, 2, "too large") + dead_letter_line(b"\x81", P, 3, "no JSON")
        )
        code, outcome = as_json(audited, line(1), line(4))
        assert code == 0
        assert outcome["total"]["dead_letters"] == 2
        assert as_json(audited, line(1), line(4), words=("--dead-letters", "none"))[0] == 1

    def test_elsewhere(self, audited: Callable[..., Audited], path: Path) -> None:
        elsewhere = path.with_name("elsewhere")
        elsewhere.write_bytes(dead_letter_line(codec.to_json(EVENT), P, 2, "too large"))
        assert as_json(audited, line(1), line(3), words=("--dead-letters", str(elsewhere)))[0] == 0
        assert as_json(audited, line(1), line(3), words=("--dead-letters", f"file://{elsewhere}"))[0] == 0

    def test_elsewhere_where_nothing_is_is_worth_a_word(self, audited: Callable[..., Audited], path: Path) -> None:
        code, _, err = audited(line(1), words=("--dead-letters", str(path.with_name("nothing"))))
        assert code == 0
        assert "does not exist" in err

    def test_their_name_is_the_sinks(self) -> None:
        assert file_wire.DEAD_LETTER_SUFFIX == file_sink.DEAD_LETTER_SUFFIX


class TestNothingToJudge:
    def test_an_empty_file(self, audited: Callable[..., Audited]) -> None:
        code, lines, err = audited()
        assert (code, lines) == (2, [])
        assert "has no events of streamll, so there is nothing to judge" in err

    def test_only_entries_of_strangers(self, audited: Callable[..., Audited]) -> None:
        assert audited(b"hello\n")[0] == 2

    def test_a_file_that_is_not_there(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", str(path)]) == 2
        assert "does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["/tmp/x", "--drain"], "only a RabbitMQ queue"),
            (["redis://localhost/0", "--drain"], "only a RabbitMQ queue"),
            (["amqp://u:secret@localhost/"], "say --follow"),
            (["amqp://u:secret@localhost/?exchange=app"], "say --follow"),
            (["amqp://u:secret@localhost/?exchange=app", "--drain"], "name the queue"),
            (["amqp://u:secret@localhost/?exchange=app", "--follow", "--start", "beginning"], "keeps nothing"),
            (["gopher://u:secret@localhost/"], "can be read from"),
            (["redis://localhost/0?stream=a&dead_letter_stream=a"], "must not be the stream itself"),
            (["/tmp/x", "--grace", "-1"], "must be a number of seconds"),
            (["/tmp/x", "--grace", "soon"], "must be a number of seconds"),
        ],
    )
    def test_what_cannot_be_asked(self, words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["audit", *words]) == 2
        err = capsys.readouterr().err
        assert why in err
        assert "secret" not in err


class TestHostileEntries:
    @pytest.mark.parametrize(
        "data",
        [
            {"count": 2**63, "ranges": [[1, 2**63]], "reasons": {"overflow": 2**63}},
            {"count": -1, "ranges": [[-5, -7]], "reasons": {"overflow": -1}},
            {"count": 1, "ranges": [[9, 3]], "reasons": {"overflow": 1}},
            {"count": "many", "ranges": "all", "reasons": None},
            {"ranges": [[n, n] for n in range(2, 400_000, 2)], "count": 7, "reasons": {"\x1b[2J": 7}},
            {"ranges": [[[[[[[]]]]]]]},
            {},
        ],
    )
    @pytest.mark.parametrize("kind", [GAP, CLOSING])
    def test_notes_that_are_nonsense(self, audited: Callable[..., Audited], data: Any, kind: str) -> None:
        code, outcome = as_json(audited, line(1), line(4, StreamllEvent(event_type=kind, data=data)), line(5))
        assert code == 1
        assert outcome["total"]["malformed"] == 1
        assert outcome["producers"][0]["ranges"] == [[2, 3]]

    def test_a_note_of_millions_of_ranges(self, audited: Callable[..., Audited]) -> None:
        ranges = b",".join(b"[%d,%d]" % (n, n) for n in range(2, 300_000, 2))
        note = b'{"v":1,"event_type":"%s","data":{"ranges":[%s]},"producer":"p","seq":4}\n' % (GAP.encode(), ranges)
        assert len(note) > 2_000_000
        code, outcome = as_json(audited, line(1, producer="p"), note)
        assert code == 1
        assert outcome["total"]["malformed"] == 1

    def test_what_only_speaks_of_notes_is_an_event(self, audited: Callable[..., Audited]) -> None:
        loud = StreamllEvent(event_type="log", data={"message": f"a {GAP} and a {CLOSING}", "more": "x" * 1_100_000})
        code, outcome = as_json(
            audited, line(1), line(2, loud), line(3, StreamllEvent(event_type="log", operation=GAP))
        )
        assert code == 0
        assert outcome["total"]["events"] == 3

    @pytest.mark.parametrize("name", ["", GAP])
    def test_depth_without_end(self, audited: Callable[..., Audited], name: str) -> None:
        deep = b'{"event_type":"t %s","data":%s,"producer":"p","seq":2}\n' % (name.encode(), b"[" * 200_000)
        closed = deep.replace(b"[,", b"[" + b"]" * 200_000 + b",")
        code, _ = as_json(audited, line(1, producer="p"), deep, closed, line(3, producer="p"))
        assert code in (0, 1)

    @given(st.lists(st.binary(max_size=60) | st.sampled_from([line(1), line(2), line(5, gap((3, 5)))]), max_size=8))
    def test_whatever_the_bytes_are(self, parts: list[bytes]) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "events.jsonl"
            path.write_bytes(b"".join(parts))
            assert main(["audit", "--json", str(path)]) in (0, 1, 2)

    def test_no_text_of_them_reaches_the_terminal(self, audited: Callable[..., Audited]) -> None:
        evil = "\x1b]0;owned\x07\x1b[2J\u202e"
        note = StreamllEvent(event_type=GAP, data={"count": 1, "ranges": [[2, 2]], "reasons": {evil: 1}})
        for words in ((), ("--json",)):
            code, lines, err = audited(line(1, producer=evil), line(2, note, producer=evil), words=words)
            assert code == 0
            assert not {"\x1b", "\x07", "\u202e"} & {*"".join(lines), *err}
